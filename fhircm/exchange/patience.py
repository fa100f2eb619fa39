"""How long a partner that does not answer is left alone, and when enough is enough. It is remembered over restarts.

https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3 (Retry-After)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from fhircm.exchange.errors import PartnerUnavailable
from fhircm.fhir.outcome import FhirError
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.exchange.push")

FIRST_WAIT = 1.0  # seconds; doubled with each failure in a row
LONGEST_WAIT = 300.0  # seconds; a Retry-After may ask for more
_KEY = "wait"


class Waiting(Exception):
    """The partner must be left alone for a while."""


class Patience:
    """Attempts and waits for one partner, kept in a namespace of the store's facts."""

    def __init__(self, store: Store, namespace: str, clock: Callable[[], datetime], attempts: int) -> None:
        self.store, self.namespace, self.clock, self.attempts = store, namespace, clock, attempts
        self.until: datetime | None = None  # when the next attempt may be made

    async def must_wait(self) -> bool:
        """Whether the partner is to be left alone now. A clock that was set back ends the wait."""
        wait = await self.store.state(self.namespace, _KEY)
        if wait is None:
            return False
        since, until = (datetime.fromisoformat(wait[name]) for name in ("since", "until"))
        if since <= self.clock() < until:
            self.until = until
            return True
        return False

    async def failed(self, what: str, error: Exception) -> bool:
        """Note that an attempt at `what` failed; true when it was the last. One that was throttled is no attempt."""
        before = await self.store.state(self.namespace, _KEY) or {}
        unavailable = error if isinstance(error, PartnerUnavailable) else None
        counted = 0 if unavailable and unavailable.throttled else 1
        count = (before["attempts"] if before.get("what") == what else 0) + counted
        failures = before.get("failures", 0) + 1
        asked = (unavailable.retry_after if unavailable else None) or 0.0
        now = self.clock()
        self.until = now + timedelta(seconds=max(min(FIRST_WAIT * 2.0 ** (failures - 1), LONGEST_WAIT), asked))
        wait = {
            "what": what,
            "attempts": count,
            "failures": min(failures, 60),
            "since": now.isoformat(),
            "until": self.until.isoformat(),
        }
        await self.store.transact([SetState(self.namespace, _KEY, wait)], origin="hub")
        log.warning("%s: attempt %d at %s failed: %s", self.namespace, count, what, words(error))
        return count >= self.attempts

    async def answered(self) -> None:
        """The partner answers: the next failure is a first one again."""
        self.until = None
        if await self.store.state(self.namespace, _KEY):
            await self.store.transact([SetState(self.namespace, _KEY, None)], origin="hub")


def words(error: Exception) -> str:
    """An error as it may be told. Texts of unknown errors may quote a resource, so of those only the kind is."""
    return str(error) if isinstance(error, FhirError) else type(error).__name__
