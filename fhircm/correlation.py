"""The id of the request at hand: in every log line, in the answer's X-Request-Id, and in what an error shows.

https://www.rfc-editor.org/rfc/rfc9110#section-16.3 (fields of one's own)
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

current: ContextVar[str] = ContextVar("request_id", default="-")
_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")


def accepted(given: str | None) -> str:
    """The id that the caller gave when nothing can be done with it but to tell it again, else a new one."""
    return given if given and _HARMLESS.fullmatch(given) else str(uuid4())
