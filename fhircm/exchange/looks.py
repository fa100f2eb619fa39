"""What is known of a panel's patients, type by type: when each was looked at, and how often that found a change.

https://hl7.org/fhir/R4/search.html#lastUpdated. Kept in few rows: some 64 patients share one, and a round writes a row only for those
patients that it looked at, every few seconds. What a killed process had not kept yet counts as not looked at: that costs requests, and
never claims a freshness that is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any

from fhircm.exchange.partners import Partner
from fhircm.exchange.plan import PATIENT, Look
from fhircm.store.resources import SetState, Store

SHARED = 64  # patients in one row, about
LOOKED = "looked"  # namespace of what is told of the looks of each partner in short
FULL = timedelta(days=7)  # the longest interval of a partner that names none
STEPS = 32  # of the promise: how exactly it is kept when patients become late


def namespace(partner: str) -> str:
    """Where a partner's looks are kept."""
    return f"looks:{partner}"


def columns(partner: Partner) -> dict[str, str]:
    """The types that are planned, each with a name that changes when its searches do: then what was seen before says nothing any more."""
    named = {one.type: one.strategy for one in partner.pull if one.searches} | {PATIENT: PATIENT}
    return {type: f"{type}:{sha256(f'{partner.base_url} {by}'.encode()).hexdigest()[:8]}" for type, by in named.items()}


def longest(partner: Partner) -> timedelta:
    """The promise: every patient and type is looked at from end to end at least this often."""
    return partner.schedule.full or FULL


@dataclass(frozen=True, slots=True)
class Looked:
    """The looks at one type in short. Times in seconds since the epoch; patients who were never looked at have none."""

    patients: int = 0
    never: int = 0
    newest: float = 0.0
    middle: tuple[float, float] = (0.0, 0.0)  # the two in the middle; of an odd number one twice
    oldest: float = 0.0
    whole: Mapping[str, int] = field(default_factory=dict)  # patients by the last look from end to end, or a little later

    @classmethod
    def of(cls, looks: Iterable[Look], step: float = 0.0) -> Looked:
        """In short; looks from end to end are told to the next `step`."""
        all_looks = list(looks)
        ats = sorted(look.at for look in all_looks if look.at)
        whole = Counter(-(-look.whole // step) * step if step else look.whole for look in all_looks)
        return cls(
            patients=len(all_looks),
            never=len(all_looks) - len(ats),
            newest=ats[-1] if ats else 0.0,
            middle=(ats[(len(ats) - 1) // 2], ats[len(ats) // 2]) if ats else (0.0, 0.0),
            oldest=ats[0] if ats else 0.0,
            whole={str(at): number for at, number in sorted(whole.items())},
        )

    def late(self, before: float) -> int:
        """How many patients were not looked at from end to end since then."""
        return sum(number for at, number in self.whole.items() if float(at) < before)


def looked(partner: Partner, row: Mapping[str, Any] | None) -> dict[str, Looked]:
    """What is kept in short of each type that is planned."""
    types = (row or {}).get("types", {})
    return {type: Looked(**types[name]) if name in types else Looked() for type, name in columns(partner).items()}


class Looks:
    """The looks at one partner, held by the one process that pulls from it."""

    def __init__(self, partner: Partner, rows: Mapping[str, Mapping[str, Any]], patients: Iterable[str] | None = None) -> None:
        """`rows` as they are kept. Patients who are not among `patients` are forgotten; without it, nobody is."""
        self._partner, self._namespace, self._columns = partner, namespace(partner.name), columns(partner)
        self.of: dict[str, dict[str, Look]] = {}
        types = {name: type for type, name in self._columns.items()}
        for row in rows.values():
            known = [types.get(name) for name in row["columns"]]
            for patient, looks in row["of"].items():
                self.of[patient] = {
                    type: Look(*look) for type, look in zip(known, looks, strict=True) if type is not None and look
                }
        if patients is not None:
            self.of = {patient: self.of.get(patient, {}) for patient in patients}
        self._rows = 1
        while self._rows * SHARED < len(self.of):
            self._rows *= 2
        names = {self._row(patient) for patient in self.of}
        self._dropped = set(rows) - names
        # After the panel grew or shrank by half everything is written anew, once.
        self._changed = names if self._dropped else set()

    @classmethod
    async def read(cls, store: Store, partner: Partner, patients: Iterable[str] | None = None) -> Looks:
        """What is kept of a partner."""
        return cls(partner, await store.states(namespace(partner.name)), patients)

    @property
    def types(self) -> Sequence[str]:
        """The types that are planned; the Patient itself is one of them."""
        return list(self._columns)

    def look(self, patient: str, type: str) -> Look:
        """What is known of a patient and a type."""
        return self.of.get(patient, {}).get(type, Look())

    def note(self, patient: str, type: str, look: Look) -> None:
        """Know something new; it is kept with the next facts."""
        self.of.setdefault(patient, {})[type] = look
        self._changed.add(self._row(patient))

    def facts(self) -> list[SetState]:
        """What is to be kept of what changed since these were asked for last; commit them."""
        changed, dropped, self._changed, self._dropped = self._changed, self._dropped, set(), set()
        patients: dict[str, list[str]] = {name: [] for name in changed}
        for patient in self.of:
            if (name := self._row(patient)) in patients:
                patients[name].append(patient)
        kept = [SetState(self._namespace, name, self._as_json(some)) for name, some in sorted(patients.items())]
        short = [SetState(LOOKED, self._partner.name, self._in_short())] if changed or dropped else []
        return [*(SetState(self._namespace, name, None) for name in sorted(dropped - changed)), *kept, *short]

    def looked(self, step: float = 0.0) -> dict[str, Looked]:
        """The looks of each type in short."""
        return {type: Looked.of((self.look(patient, type) for patient in self.of), step) for type in self.types}

    def _in_short(self) -> dict[str, Any]:
        step = max(1.0, longest(self._partner).total_seconds() / STEPS)
        return {"types": {self._columns[type]: asdict(one) for type, one in self.looked(step).items()}}

    def _as_json(self, patients: Sequence[str]) -> dict[str, Any]:
        of = {}
        for patient in patients:
            looks = self.of[patient]
            of[patient] = [_short(looks[type]) if type in looks else [] for type in self._columns]
        return {"columns": list(self._columns.values()), "of": of}

    def _row(self, patient: str) -> str:
        return f"{self._rows}/{int.from_bytes(sha256(patient.encode()).digest()[:4]) % self._rows}"


def _short(look: Look) -> list[float]:
    return [*look[:4], round(look.events, 3), round(look.days, 4), look.cost]
