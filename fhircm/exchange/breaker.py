"""When a partner is left alone, as a whole or for one kind of request, and when one request may try whether it is back.

https://martinfowler.com/bliki/CircuitBreaker.html and https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3 (Retry-After). A breaker is
closed while things go well. After some failures in a row it opens: nothing is sent until its wait is over, then one request is tried, and
its answer closes the breaker or opens it for twice as long. Breakers are rows of the store: they outlive the process, and all see the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fhircm.exchange.errors import PartnerUnavailable, SignInRefused
from fhircm.exchange.yaml_keys import Keys
from fhircm.fhir.outcome import FhirError
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.exchange.breaker")

WHOLE = "*"  # the breaker of the partner as a whole; the others are named "Type interaction"
FIRST_WAIT = 1.0  # seconds before the second attempt at one delivery; doubled each time


@dataclass(frozen=True, slots=True)
class Policy:
    """How soon a breaker opens, and how long it stays open. Times in seconds."""

    failures: int = 3  # in a row
    first_wait: float = 5.0  # doubled each time that the one request that was tried fails
    longest_wait: float = 300.0  # a Retry-After may ask for more


def read(keys: Keys) -> Policy:
    """The section `breaker` of a partner.yaml."""
    default = Policy()
    policy = Policy(
        keys.number("failures", int, 1, 100, default.failures),
        keys.number("first_wait", float, 0.1, 3600, default.first_wait),
        keys.number("longest_wait", float, 1, 86_400, default.longest_wait),
    )
    keys.done()
    return policy


@dataclass(frozen=True, slots=True)
class State:
    """One breaker as it stands, for people: `what` is the partner as a whole ("*") or a type and interaction."""

    what: str
    failures: int
    until: datetime | None  # open until then; None: closed
    why: str


def namespace(partner: str) -> str:
    """Where the breakers of a partner are kept."""
    return f"breaker:{partner}"


async def state(store: Store, partner: str) -> list[State]:
    """The breakers of a partner at which anything failed since it last went well; the whole first."""
    return stand(await store.states(namespace(partner)))


def stand(rows: Mapping[str, Mapping[str, Any]]) -> list[State]:
    """The same of the rows of a partner."""
    return [
        State(what, row["failures"], datetime.fromisoformat(row["until"]) if row["until"] else None, row["why"])
        for what, row in sorted(rows.items())
    ]


def backoff(attempts: int, longest: float) -> timedelta:
    """How long one delivery waits after so many failed attempts."""
    return timedelta(seconds=min(FIRST_WAIT * 2.0 ** min(max(attempts, 1) - 1, 60), longest))


class Breakers:
    """The breakers of one partner, in the hands of the one that has its lease."""

    def __init__(self, store: Store, partner: str, policy: Policy, clock: Callable[[], datetime]) -> None:
        self.store, self.policy, self.clock = store, policy, clock
        self.partner, self.kept_in = partner, namespace(partner)
        self.rows: dict[str, dict[str, Any]] = {}
        self._one = asyncio.Lock()  # lanes side by side must not keep their rows in another order than they were made in

    async def load(self) -> None:
        """See how they stand."""
        self.rows = await self.store.states(self.kept_in)

    def wait(self, what: str = WHOLE) -> datetime | None:
        """Until when nothing of this kind may be sent; None when it may. A clock that was set back ends the wait."""
        row = self.rows.get(what)
        if row is None or not row["until"]:
            return None
        since, until = datetime.fromisoformat(row["since"]), datetime.fromisoformat(row["until"])
        return until if since <= self.clock() < until else None

    @property
    def half_open(self) -> bool:
        """Whether the partner's wait is over and nobody has tried since: one request may."""
        row = self.rows.get(WHOLE)
        return row is not None and bool(row["until"]) and self.wait() is None

    async def failed(self, what: str, error: Exception) -> None:
        """Note a failure of one kind of request, and open what is to be opened."""
        async with self._one:
            await self._note(what, error)

    async def _note(self, what: str, error: Exception) -> None:
        unavailable = error if isinstance(error, PartnerUnavailable) else None
        asked = unavailable.retry_after if unavailable else None
        everything = isinstance(error, SignInRefused) or (unavailable is not None and unavailable.answered is None)
        throttled = unavailable is not None and unavailable.throttled
        whole = self._row(WHOLE)
        changed = {WHOLE: whole}
        if not everything and not throttled:
            own = self._row(what)
            self._count(own, error, asked)
            changed[what] = own
        if throttled or asked:
            self._open(whole, asked)
            whole["why"] = _words(error)
        if not throttled and (everything or what not in whole["of"] or whole["until"]):
            whole["of"] = sorted({*whole["of"], what})
            self._count(whole, error, asked)
        self.rows |= changed
        await self.store.transact([SetState(self.kept_in, name, row) for name, row in changed.items()], origin="hub")

    async def answered(self, what: str) -> None:
        """It went well: the partner is there, and does this."""
        async with self._one:
            gone = [name for name in (WHOLE, what) if self.rows.pop(name, None) is not None]
            if gone:
                await self.store.transact([SetState(self.kept_in, name, None) for name in gone], origin="hub")

    def _row(self, what: str) -> dict[str, Any]:
        fresh = {"failures": 0, "trips": 0, "since": None, "until": None, "why": "", "of": []}
        return dict(self.rows.get(what, fresh))

    def _count(self, row: dict[str, Any], error: Exception, asked: float | None) -> None:
        row["failures"] += 1
        row["why"] = _words(error)
        if row["failures"] >= self.policy.failures:
            self._open(row, asked)

    def _open(self, row: dict[str, Any], asked: float | None) -> None:
        now = self.clock()
        if row["until"] and now < datetime.fromisoformat(row["until"]) and not asked:
            return  # one that was under way when it opened
        row["trips"] += 1
        wait = min(self.policy.first_wait * 2.0 ** min(row["trips"] - 1, 60), self.policy.longest_wait)
        row["since"] = now.isoformat()
        row["until"] = (now + timedelta(seconds=max(wait, asked or 0.0))).isoformat()
        log.warning("%s: a breaker is open until %s", self.partner, row["until"])


def _words(error: Exception) -> str:
    """An error as it may be told. Texts of unknown errors may quote a resource, so of those only the kind is."""
    return str(error) if isinstance(error, FhirError) else type(error).__name__
