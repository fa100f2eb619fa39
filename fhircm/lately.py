"""What was found lately, kept for a while: so that asking often costs little, whoever asks.

https://prometheus.io/docs/instrumenting/writing_exporters/#scheduling
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")

LONG = 10.0  # seconds for which it is kept
SHARE = 0.1  # of the time that may be spent on finding it: what took two seconds is kept for twenty


class Lately(Generic[T]):
    """Finds something when it is asked for, and not again for a while. Who asks meanwhile waits for the one that finds it."""

    def __init__(self, find: Callable[[], Awaitable[T]], now: Callable[[], float] = monotonic) -> None:
        self._find, self._now = find, now
        self._lock = asyncio.Lock()
        self._found: T
        self._until: float | None = None

    async def get(self) -> T:
        """What was found lately, or is now. Raises what finding it raises; then nothing is kept."""
        async with self._lock:
            begun = self._now()
            if self._until is None or begun >= self._until:
                self._until = None
                self._found = await self._find()
                ended = self._now()
                self._until = ended + max(LONG, (ended - begun) / SHARE)
            return self._found
