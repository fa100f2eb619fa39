"""Choose which searches of a panel to make now: what was hinted at, open loops, what waited longest, then where a change is likely.

https://hl7.org/fhir/R4/http.html#search. Pure: the same knowledge, hour and seed give the same plan. How often a patient's resources of a
type change is estimated from what was seen (a Gamma prior with Poisson events, both slowly forgotten), starting from mappings/crawl.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from hashlib import blake2b
from typing import Any, NamedTuple

from fhircm.exchange.schedule import duration
from fhircm.exchange.yaml_keys import Keys, load
from fhircm.fhir.artefacts import folder

DAY = 86_400.0
PATIENT = "Patient"  # its own record: one read, planned like a search
HINTED, NEVER, URGENT, WAITED, LIKELY = "hinted", "never", "urgent", "waited", "likely"


class Look(NamedTuple):
    """What is known of one type of one patient. Times are whole seconds since the epoch; 0 is never."""

    at: int = 0  # the newest successful look, by the hub's clock
    whole: int = 0  # the newest that saw everything, rather than what changed
    since: int = 0  # the partner's clock at the newest look, for `_lastUpdated`
    full: int = 0  # the partner's clock at the newest that saw everything
    events: float = 0.0  # looks that found a change, forgotten slowly
    days: float = 0.0  # watched, forgotten likewise
    cost: int = 1  # requests that it took

    def seen(self, at: int, changed: bool, cost: int, rules: Rules) -> Look:
        """What is known after one more look; the first one tells nothing of how often there are changes."""
        if not self.at:
            return self._replace(at=at, cost=max(1, cost))
        passed = max(0.0, (at - self.at) / DAY)
        kept = 0.5 ** (passed / rules.forget)
        # Of an interval with a change in it, only the part before the change is known to have been without one: half, on average.
        watched = passed / 2 if changed else passed
        return self._replace(at=at, events=self.events * kept + changed, days=self.days * kept + watched, cost=max(1, cost))


@dataclass(frozen=True, slots=True)
class Rules:
    """mappings/crawl.yaml, which explains the members. Durations in days, `urgent_every` in seconds."""

    types: Mapping[str, tuple[float, float]]
    other: tuple[float, float]
    pool: float
    strength: float
    forget: float
    open: float
    loops: Mapping[str, tuple[str, timedelta | None]]
    urgent_every: float
    urgent: frozenset[str]
    reserve: float
    near: float
    distrust: int
    trust: int
    vanish_least: int
    vanish_share: float

    def usual(self, looks: Iterable[tuple[str, Look]]) -> dict[str, float]:
        """Changes a day of each type over a whole panel, which what is supposed gives way to."""
        seen: dict[str, list[float]] = {}
        for type, look in looks:
            sums = seen.setdefault(type, [0.0, 0.0])
            sums[0] += look.events
            sums[1] += look.days
        pooled = {}
        for type, (events, days) in seen.items():
            supposed = self.types.get(type, self.other)[0]
            pooled[type] = (self.pool + events) / (self.pool * supposed + days)
        return pooled

    def rate(self, look: Look, usual: float, *, is_open: bool = False) -> float:
        """Changes a day to be expected: the mean of the Gamma distribution after what was seen."""
        rate = (self.strength + look.events) / (self.strength / usual + look.days)
        return rate * self.open if is_open else rate

    def value(self, type: str, look: Look, now: float, usual: float, *, is_open: bool) -> float:
        """What one request is worth: the chance that something changed since the last look, weighed, by what it costs."""
        passed = max(0.0, now - look.at) / DAY
        chance = -math.expm1(-self.rate(look, usual, is_open=is_open) * passed)
        return self.types.get(type, self.other)[1] * chance / look.cost


@cache
def rules() -> Rules:
    """The shipped rules. Raises YamlWrong."""
    keys = load(folder("mappings") / "crawl.yaml")
    types = keys.keys("types", "types with days and weight")
    loops = keys.keys("loops", "types with status and within")
    urgent, vanish = keys.keys("urgent", "every and types"), keys.keys("vanish", "least and share")
    read = Rules(
        types={name: _supposed(types.keys(name, "days and weight")) for name in list(types.tree)},
        other=_supposed(keys.keys("other", "days and weight")),
        pool=keys.number("pool", float, 0.01, 1000, ...),
        strength=keys.number("strength", float, 0.01, 1000, ...),
        forget=_span(keys, "forget") / DAY,
        open=keys.number("open", float, 1, 1000, ...),
        loops={name: _loop(loops.keys(name, "status and within")) for name in list(loops.tree)},
        urgent_every=_span(urgent, "every"),
        urgent=frozenset(urgent.take("types", list, "a list of types")),
        reserve=keys.number("reserve", float, 0.01, 1, ...),
        near=keys.number("near", float, 0.01, 1, ...),
        distrust=keys.number("distrust", int, 1, 1000, ...),
        trust=keys.number("trust", int, 1, 1000, ...),
        vanish_least=vanish.number("least", int, 1, 1_000_000, ...),
        vanish_share=vanish.number("share", float, 0, 1, ...),
    )
    for one in (keys, types, loops, urgent, vanish):
        one.done()
    return read


def _supposed(keys: Keys) -> tuple[float, float]:
    read = keys.number("days", float, 0.001, 10_000, ...), keys.number("weight", float, 0.001, 1000, ...)
    keys.done()
    return read


def _loop(keys: Keys) -> tuple[str, timedelta | None]:
    within = duration(keys.text("within", "an ISO 8601 duration", default="")) if "within" in keys.tree else None
    read = keys.text("status", "codes with commas between them"), within
    keys.done()
    return read


def _span(keys: Keys, key: str) -> float:
    span = duration(keys.text(key, "an ISO 8601 duration such as P90D"))
    return span.total_seconds() if span else keys.wrong(key, "must be an ISO 8601 duration such as P90D")


# --- the plan ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Visit:
    """One patient to be read now, and of what types, each with the reason."""

    patient: str
    types: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, the most urgent patient first."""

    visits: Sequence[Visit]
    requests: int  # that it will take, as far as is known
    left: int  # looks that are due and that the budget does not reach
    needed: float  # requests an hour without which the longest interval cannot be kept

    @property
    def looks(self) -> Iterator[tuple[str, str, str]]:
        """Patient, type and reason of each look."""
        return ((visit.patient, type, why) for visit in self.visits for type, why in visit.types.items())


@dataclass
class Situation:
    """What a plan is made of. Patients are ids at the partner; `longest` is in seconds."""

    patients: Sequence[str]
    types: Sequence[str]
    looks: Mapping[str, Mapping[str, Look]]
    longest: float
    open: frozenset[str] = frozenset()  # patients with an open loop
    hints: Mapping[tuple[str, str], str] = field(default_factory=dict)  # patient and type: who hinted
    told: Mapping[str, int] = field(default_factory=dict)  # type: until when one search told of every patient's changes


class _Due(NamedTuple):
    order: tuple[float, int]
    patient: str
    type: str
    why: str
    cost: int


def plan(situation: Situation, now: datetime, budget: int | None, seed: int = 0, by: Rules | None = None) -> Plan:
    """The looks to take now, for so many requests (none: as many as there are to take)."""
    by, at = by or rules(), now.timestamp()
    soonest: list[_Due] = []
    waited: list[_Due] = []
    likely: list[_Due] = []
    needed = 0.0
    usual = by.usual((type, look) for of in situation.looks.values() for type, look in of.items())
    for patient in situation.patients:
        known, is_open = situation.looks.get(patient, {}), patient in situation.open
        for type in situation.types:
            look = known.get(type, _NEVER)
            needed += look.cost
            due = _due(situation, patient, type, look, at, is_open, seed, by, usual.get(type, 1.0))
            (soonest if due.why in (HINTED, URGENT) else likely if due.why is LIKELY else waited).append(due)
    for dues in (soonest, waited, likely):
        dues.sort()
    chosen = list(_within(budget, by.reserve, soonest, waited, likely))
    must = len(soonest) + len(waited) - sum(due.why is not LIKELY for due in chosen)
    return Plan(_visits(chosen), sum(due.cost for due in chosen), must, needed * 3600 / situation.longest)


_NEVER = Look()


def _due(
    situation: Situation, patient: str, type: str, look: Look, at: float, is_open: bool, seed: int, by: Rules, usual: float
) -> _Due:
    """When one look is due, and why. In its class the smallest order comes first; ties fall by lot, the same for the same seed."""
    lot = int.from_bytes(blake2b(f"{seed}/{patient}/{type}".encode(), digest_size=4).digest())
    if (patient, type) in situation.hints:
        return _Due((0.0, lot), patient, type, HINTED, look.cost)
    if not look.at:
        return _Due((0.0, lot), patient, type, NEVER, look.cost)
    if at - look.whole >= by.near * situation.longest or look.whole > at:  # a clock that was set back is no reason to wait
        return _Due((float(look.whole) if look.whole <= at else 0.0, lot), patient, type, WAITED, look.cost)
    newest = max(look.at, situation.told.get(type, 0))
    if is_open and type in by.urgent and at - newest >= by.urgent_every:
        return _Due((float(newest), lot), patient, type, URGENT, look.cost)
    value = by.value(type, look._replace(at=newest), at, usual, is_open=is_open)
    return _Due((-value, lot), patient, type, LIKELY, look.cost)


def _within(
    budget: int | None, reserve: float, soonest: Sequence[_Due], waited: Sequence[_Due], likely: Sequence[_Due]
) -> Iterator[_Due]:
    """What the budget reaches: a part of it is kept for what waited, however much is urgent."""
    if budget is None:
        yield from (*soonest, *waited, *likely)
        return
    # What takes more requests than a whole round has is done all the same, alone: the rounds after it have less.
    soonest, waited, likely = ([due._replace(cost=min(due.cost, budget)) for due in dues] for dues in (soonest, waited, likely))
    kept = min(math.ceil(budget * reserve), sum(due.cost for due in waited))
    left = budget - kept
    passed: list[_Due] = []
    for due in soonest:
        if due.cost <= left:
            left -= due.cost
            yield due
        else:
            passed.append(due)
    left += kept
    for due in (*waited, *passed, *likely):
        if left <= 0:
            return
        if due.cost <= left:
            left -= due.cost
            yield due


def _visits(chosen: Iterable[_Due]) -> list[Visit]:
    types: dict[str, dict[str, str]] = {}
    for due in chosen:
        types.setdefault(due.patient, {})[due.type] = due.why
    return [Visit(patient, due) for patient, due in types.items()]


# --- the budget --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """Requests that may be made of a partner by the hour.

    What a round overspends, with a search of many pages, the next ones have less; what a human asked for, at most an hour's worth.
    """

    per_hour: int | None = None  # none: as many as the other limits allow

    def allowance(self, kept: Mapping[str, Any] | None, now: datetime) -> int | None:
        """How many requests may be made now, at most an hour's worth; `kept` is what `after` returned last."""
        if self.per_hour is None:
            return None
        return max(0, math.floor(self._left(kept, now)))

    def after(self, kept: Mapping[str, Any] | None, now: datetime, spent: int) -> dict[str, Any] | None:
        """What is to be kept once so many were made."""
        if self.per_hour is None:
            return None
        return {"left": round(max(self._left(kept, now) - spent, -self.per_hour), 3), "at": now.isoformat()}

    def _left(self, kept: Mapping[str, Any] | None, now: datetime) -> float:
        whole = float(self.per_hour or 0)
        if kept is None:
            return whole
        passed = (now - datetime.fromisoformat(kept["at"])).total_seconds()
        return min(whole, kept["left"] + whole * max(0.0, passed) / 3600)


def read(keys: Keys) -> Budget:
    """The section `budget` of a partner.yaml; it may be absent. Raises YamlWrong."""
    section = keys.keys("budget", "requests_per_hour", {})
    budget = Budget(section.number("requests_per_hour", int, 1, 10_000_000, ...)) if section.tree else Budget()
    section.done()
    return budget
