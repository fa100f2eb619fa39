"""Which patients of a panel a pull has dealt with: kept beside what it wrote, so that the next one goes on from there.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from time import monotonic
from typing import Any, NamedTuple

from fhircm.store.resources import SetState, Store

NAMESPACE = "pull"
RESUME_WITHIN = timedelta(days=1)  # an older interruption starts over, where nothing else is said
SAVE = 5.0  # seconds between notes of progress while nothing changes
REMEMBERED = 1000  # patients done out of turn; the others are read again, which costs only the reading


class _Done(NamedTuple):
    """Patients by their number in the panel: all below `upto`, some beyond, but not those to be looked at once more at the end."""

    upto: int = 0
    beyond: frozenset[int] = frozenset()
    again: frozenset[int] = frozenset()

    def plus(self, number: int, again: bool) -> _Done:
        upto, beyond = self.upto, set(self.beyond)
        if number >= upto:
            beyond.add(number)
        while upto in beyond:
            beyond.remove(upto)
            upto += 1
        return _Done(upto, frozenset(beyond), self.again | {number} if again else self.again - {number})


class Progress:
    """The progress of one pull. A pull of another panel, or of another address, starts over."""

    def __init__(
        self, store: Store, partner: str, base_url: str, patients: Sequence[str], within: timedelta = RESUME_WITHIN
    ) -> None:
        self.store, self.partner, self._within = store, partner, within
        self._panel = sha256("\n".join([base_url, *patients]).encode()).hexdigest()
        self._started = store.clock()
        self._done = _Done()
        self._saved = monotonic()

    async def resume(self) -> int:
        """Take up where a pull of the same panel stopped before its end; returns how many patients are done."""
        kept = await self.store.state(NAMESPACE, self.partner)
        if kept and kept.get("panel") == self._panel:
            started = datetime.fromisoformat(kept["started"])
            if timedelta() <= self.store.clock() - started <= self._within:
                self._started = started
                self._done = _Done(kept["upto"], frozenset(kept["beyond"]), frozenset(kept["again"]))
        return self._done.upto + len(self._done.beyond) - len(self._done.again)

    def is_done(self, number: int) -> bool:
        """Whether a patient is done, by its number in the panel."""
        done = self._done
        return (number < done.upto or number in done.beyond) and number not in done.again

    def fact(self, number: int, *, again: bool = False) -> SetState:
        """The fact that one more patient is done, to commit with what was written of it; `again`: it refers to what may still come."""
        return self._fact(self._done.plus(number, again))

    def note(self, number: int, *, again: bool = False) -> None:
        """Count a patient as done, once that is committed or nothing was to be written."""
        self._done = self._done.plus(number, again)

    async def save(self, *, now: bool = False) -> None:
        """Keep the progress when nothing else was written for a while."""
        if now or monotonic() - self._saved > SAVE:
            self._saved = monotonic()
            await self.store.transact([self._fact(self._done)], origin=f"partner:{self.partner}")

    async def finish(self, figures: dict[str, Any]) -> None:
        """The pull came to its end: the next one starts at the beginning."""
        kept = {**figures, "finished": self.store.clock().isoformat()}
        await self.store.transact([SetState(NAMESPACE, self.partner, kept)], origin=f"partner:{self.partner}")

    def _fact(self, done: _Done) -> SetState:
        kept = {"upto": done.upto, "beyond": sorted(done.beyond)[:REMEMBERED], "again": sorted(done.again)[:REMEMBERED]}
        return SetState(NAMESPACE, self.partner, {"panel": self._panel, "started": self._started.isoformat(), **kept})
