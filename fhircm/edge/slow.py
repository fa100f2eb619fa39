"""Bodies must come at some pace: who sends one byte now and then keeps no request open.

https://www.rfc-editor.org/rfc/rfc9110#section-15.5.9. Heads and answers are watched by fhircm/edge/connection.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar

from starlette.types import Message, Receive

from fhircm.fhir.outcome import FhirError

PACE = 2_000  # bytes a second, at least, once the first seconds are over


class TooSlow(FhirError):
    """The body did not come in time."""

    status: ClassVar[int] = 408
    code: ClassVar[str] = "timeout"

    @property
    def headers(self) -> Iterator[tuple[str, str]]:
        """Nothing more is read of what comes."""
        yield "Connection", "close"


def paced(receive: Receive, seconds: float) -> Receive:
    """The messages of a request, as long as its body makes headway. The receiver raises TooSlow.

    Only the time that is spent waiting for the sender counts, not that which the application takes between two looks at the body.
    """
    loop = asyncio.get_running_loop()
    left, complete = seconds, False

    async def receiving() -> Message:
        nonlocal left, complete
        if complete:
            return await receive()
        asked = loop.time()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                message = await receive()
        except TimeoutError:
            raise TooSlow("The body did not come in time") from None
        complete = not message.get("more_body", False)
        left += len(message.get("body", b"")) / PACE - (loop.time() - asked)
        return message

    return receiving
