"""How fresh each type of each partner is, what is missing, and what it cost: a ledger that pulls keep, and what is told from it.

https://hl7.org/fhir/R4/http.html. One row for each partner, committed with what a pull writes, so that after a kill the changes that were
found are counted exactly; requests of the last seconds may be missing from the count. Freshness itself is computed from the looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from json import dumps
from math import ceil
from typing import Any

from fhircm.exchange.client import Spent
from fhircm.exchange.looks import FULL, Looked, Looks, longest
from fhircm.exchange.mapping import Source
from fhircm.exchange.partners import Partner
from fhircm.exchange.plan import Rules, rules
from fhircm.store.figures import Figures
from fhircm.store.resources import SetState, Store

__all__ = ["FULL", "Ledger", "TypeFreshness", "freshness", "longest", "rendered"]

NAMESPACE = "freshness"
MISSING = "missing"  # namespace of the names of what is missing
REMEMBERED = 1000  # names of each kind of what is missing; more are only counted
MEANS = ("subscription", "adt", "bulk", "push", "last-updated", "hash", "full")


class Ledger:
    """What is counted of one partner, by the one process that pulls from it."""

    def __init__(
        self,
        partner: Partner,
        row: Mapping[str, Any] | None = None,
        missing: Mapping[str, Any] | None = None,
        by: Rules | None = None,
    ) -> None:
        """`row` and `missing` as they are kept."""
        self.partner, self.by = partner, by or rules()
        self.row: dict[str, Any] = {"types": {}, "across": {}, **(row or {})}
        self.missing: dict[str, Any] = {"failed": {}, "unreadable": {}, "gaps": {}, "merged": {}, **(missing or {})}
        self._kept = dumps(self.missing)

    @classmethod
    async def read(cls, store: Store, partner: Partner) -> Ledger:
        """The ledger as it is kept."""
        return cls(partner, await store.state(NAMESPACE, partner.name), await store.state(MISSING, partner.name))

    def fact(self, found: Iterable[tuple[str, str]] = ()) -> SetState:
        """What is to be kept; commit it with what it counts. `found`: types and means that are to be counted with it, once."""
        row = self.row
        if counts := Counter(found):
            row = deepcopy(row)
            for (type, means), number in counts.items():
                _add(row["types"].setdefault(type, {}).setdefault("found", {}), means, number)
        return SetState(NAMESPACE, self.partner.name, row)

    def facts(self) -> list[SetState]:
        """The same, with what is missing when that changed since it was asked for last."""
        kept = dumps(self.missing)
        changed, self._kept = kept != self._kept, kept
        return [self.fact(), *([SetState(MISSING, self.partner.name, self.missing)] if changed else [])]

    def of(self, type: str) -> dict[str, Any]:
        """What is counted of a type."""
        return self.row["types"].setdefault(type, {})

    # --- what was found, and what it cost -----------------------------------------------------------------------------------------

    def found(self, type: str, means: str, number: int = 1) -> None:
        """So many changes of a type were found by this means."""
        _add(self.of(type).setdefault("found", {}), means, number)

    def spent(self, by_type: Mapping[str, Spent]) -> None:
        """So much was spent since it was counted last."""
        for type, one in by_type.items():
            of = self.of(type)
            for name, value in (
                ("requests", one.requests),
                ("bytes", one.bytes),
                ("seconds", one.seconds),
                ("waited", one.waited),
            ):
                of[name] = round(of.get(name, 0) + value, 3)

    def came(self, type: str, seconds: float) -> None:
        """A change reached the hub so long after the partner says that it was made. Kept in powers of two."""
        _add(self.of(type).setdefault("lag", {}), str(max(0, int(seconds)).bit_length()), 1)

    # --- what is missing ------------------------------------------------------------------------------------------------------------

    def refused(self, type: str, why: str | None) -> None:
        """The partner refuses a type, or (None) gives it again."""
        if why is None:
            self.of(type).pop("refused", None)
        else:
            self.of(type)["refused"] = why

    def failed(self, type: str, patient: str, *, now_well: bool = False) -> None:
        """A search broke off or was not answered, or (`now_well`) was made from end to end."""
        names: list[str] = self.missing["failed"].setdefault(type, [])
        if now_well and patient in names:
            names.remove(patient)
        elif not now_well and patient not in names and len(names) < REMEMBERED:
            names.append(patient)

    def unreadable(self, patient: str, why: str | None) -> None:
        """The partner does not give a member of the panel, or (None) does again."""
        self._missing("unreadable", patient, why)

    def gap(self, one: Source, why: str | None) -> None:
        """Something is referred to and the partner does not give it, or (None) gave it now."""
        self._missing("gaps", str(one), why)

    def merged(self, patient: str, into: str) -> None:
        """The partner merged a patient into another."""
        self._missing("merged", patient, into)

    def _missing(self, kind: str, name: str, why: str | None) -> None:
        names: dict[str, str] = self.missing[kind]
        if why is None:
            names.pop(name, None)
        elif name in names or len(names) < REMEMBERED:
            names[name] = why

    def is_gap(self, one: Source) -> bool:
        """Whether this was asked for in vain since the last full reconciliation."""
        return str(one) in self.missing["gaps"]

    # --- whether _lastUpdated is honest ---------------------------------------------------------------------------------------------

    def trusts(self, type: str) -> bool:
        """Whether this partner's `_lastUpdated` is believed for a type."""
        return not self.of(type).get("distrusted")

    def missed(self, type: str, number: int = 1) -> bool:
        """Changes came to light that `_lastUpdated` should have told and did not; true when it is not believed from now on."""
        of = self.of(type)
        of["missed"], of["clean"] = of.get("missed", 0) + number, 0
        if of["missed"] < self.by.distrust or of.get("distrusted"):
            return False
        of["distrusted"] = True
        self.row["across"].pop(type, None)
        return True

    def distrust(self, type: str) -> None:
        """The partner refuses `_lastUpdated` for a type."""
        self.missed(type, self.by.distrust)

    def reconciled(self, at: datetime, figures: Mapping[str, Any]) -> list[str]:
        """A full reconciliation came to its end. Returns the types whose `_lastUpdated` is believed again."""
        self.row["full"] = {"at": at.isoformat(), **figures}
        again = []
        for type, of in self.row["types"].items():
            if "missed" in of:
                of["clean"] = of.get("clean", 0) + 1
                if of["clean"] > self.by.trust:  # the first one may be that in which it came to light
                    for name in ("missed", "clean", "distrusted"):
                        of.pop(name, None)
                    again.append(type)
        return again


def _add(counts: dict[str, int], name: str, number: int) -> None:
    counts[name] = counts.get(name, 0) + number


# --- told ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeFreshness:
    """One type at one partner. Ages in seconds; of a patient who was never looked at there is none."""

    type: str
    patients: int  # in the panel, as far as it was planned
    never: int  # of these, not looked at yet
    newest: float | None  # age of the youngest look
    middle: float | None
    oldest: float | None
    late: int  # patients whose look from end to end is older than was promised, or never was
    promise: float
    found: Mapping[str, int] = field(default_factory=dict)  # changes, by means
    missing: Mapping[str, int] = field(default_factory=dict)  # refused, failed, quarantined, gap
    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    lag: float | None = None  # half of the changes reached the hub within so many seconds of being made
    lag_95: float | None = None
    planned: bool = False  # patient by patient; the others are read as needed
    distrusted: bool = False  # its `_lastUpdated` was found to be dishonest
    missed: int = 0

    @property
    def per_change(self) -> float | None:
        """Requests for each change that was found."""
        changes = sum(self.found.values())
        return self.requests / changes if changes else None


async def freshness(store: Store, partner: Partner) -> list[TypeFreshness]:
    """How it stands with each type of a partner, in order of their names."""
    ledger, looks = await Ledger.read(store, partner), await Looks.read(store, partner)
    held = (await Figures(store.database).held([partner.name])).get(partner.name, {})
    return by_type(ledger, looks.looked(), held, store.clock())


def by_type(
    ledger: Ledger, looked: Mapping[str, Looked], in_quarantine: Mapping[tuple[str, str], int], at: datetime
) -> list[TypeFreshness]:
    """The same of what was read; what is in quarantine is told by kind and type."""
    now = at.timestamp()
    held: Counter[str] = Counter()
    for (_, type), number in in_quarantine.items():
        held[type] += number if type else 0
    gaps = Counter(name.partition("/")[0] for name in ledger.missing["gaps"])
    types = sorted(looked.keys() | ledger.row["types"].keys() | (+held).keys() | gaps.keys())
    found = [_of(type, ledger, looked.get(type), now, held[type], gaps[type]) for type in types]
    return [one for one in found if one.planned or one.requests or one.missing or one.found]


def _of(type: str, ledger: Ledger, looked: Looked | None, now: float, held: int, gaps: int) -> TypeFreshness:
    of, promise = ledger.row["types"].get(type, {}), longest(ledger.partner).total_seconds()
    told = ledger.row["across"].get(type, {}).get("told", 0)
    short = looked or Looked()
    any_look = short.patients > short.never

    def since(*at: float) -> float | None:
        return sum(max(0.0, now - max(one, told)) for one in at) / len(at) if any_look else None

    missing = {
        "refused": int("refused" in of),
        "failed": len(ledger.missing["failed"].get(type, ())),
        "quarantined": held,
        "gap": gaps,
    }
    if type == "Patient":
        missing["unreadable"] = len(ledger.missing["unreadable"])
    return TypeFreshness(
        type,
        patients=short.patients,
        never=short.never,
        newest=since(short.newest),
        middle=since(*short.middle),
        oldest=since(short.oldest),
        late=short.late(now - promise),
        promise=promise,
        found=of.get("found", {}),
        missing={kind: number for kind, number in missing.items() if number},
        requests=of.get("requests", 0),
        bytes=int(of.get("bytes", 0)),
        seconds=of.get("seconds", 0.0),
        waited=of.get("waited", 0.0),
        lag=_quantile(of.get("lag", {}), 0.5),
        lag_95=_quantile(of.get("lag", {}), 0.95),
        planned=looked is not None,
        distrusted=bool(of.get("distrusted")),
        missed=of.get("missed", 0),
    )


def _quantile(lag: Mapping[str, int], share: float) -> float | None:
    """The seconds within which this share came; counted in powers of two, so no more exact than that."""
    wanted, seen = share * sum(lag.values()), 0
    for power in sorted(map(int, lag)):
        seen += lag[str(power)]
        if seen >= wanted:
            return float(2**power)
    return None


def rendered(partner: Partner, types: Sequence[TypeFreshness]) -> str:
    """The freshness of a partner in lines, one for each type."""
    lines = [f"{partner.name}: every patient is promised a whole look within {age(longest(partner).total_seconds())}"]
    for one in types:
        said = [
            f"looked at {age(one.middle)} ago (oldest {age(one.oldest)})"
            if one.middle is not None
            else "not looked at yet"
            if one.planned
            else "read by reference"
        ]
        said += [f"{one.never} of {one.patients} never looked at"] if one.never else []
        said += [f"{one.late} of {one.patients} later than promised"] if one.late > one.never else []
        said += [f"{number} {kind}" for kind, number in one.missing.items()]
        changes = sum(one.found.values())
        by = ", ".join(f"{number} {means}" for means, number in one.found.items())
        said += [f"{one.requests} requests, {size(one.bytes)}, {one.seconds:.1f} s"] if one.requests else []
        said += [f"waited {one.waited:.0f} s"] if one.waited >= 1 else []
        said += [f"{changes} changes ({by})"] if changes else []
        said += [f"half within {age(one.lag)} of being made"] if one.lag is not None else []
        said += [f"_lastUpdated is not believed: it hid {one.missed} changes"] if one.distrusted else []
        lines.append(f"  {one.type}: {'; '.join(said)}")
    return "\n".join(lines)


def age(seconds: float | None) -> str:
    """A span of time in words, to the unit that matters."""
    if seconds is None:
        return "never"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """A number of bytes in words."""
    return f"{number / 1_000_000:.1f} MB" if number >= 1_000_000 else f"{ceil(number / 1000)} kB"
