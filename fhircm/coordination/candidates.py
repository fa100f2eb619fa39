"""Which services could take a referral, and why: kind, capacity, area, hours, language, and whom they take. profiles/directory/matching.yaml

https://hl7.org/fhir/R4/healthcareservice.html. The reasons name what agrees, never a value of the patient's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from fhircm.coordination.capacity import capacity
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Record, any_of, token
from fhircm.coordination.times import moment
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.store.resources import Stored

Tree = dict[str, Any]
Code = tuple[str, str]


@dataclass
class Candidate:
    """One service: what speaks for it and against it, in words; `points` out of `TOTAL`."""

    service: Stored
    points: int = 0
    reasons: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)

    def add(self, weight: str, reason: str) -> None:
        """Count an agreement."""
        self.points += _rules()["weights"][weight]
        self.reasons.append(reason)

    @property
    def score(self) -> float:
        """0 to 1; 0 when something rules it out."""
        return 0.0 if self.against else round(self.points / total(), 2)


@cache
def _rules() -> dict[str, Any]:
    return read_yaml(folder("profiles") / "directory" / "matching.yaml")


@cache
def total() -> int:
    """The points of a service with which everything agrees."""
    weights = _rules()["weights"]
    return sum(weights[name] for name in ("kind", "capacity", "near", "language", "open"))


async def candidates(record: Record, order: Tree, patient: Tree | None, now: datetime) -> list[Candidate]:
    """The active services of a fitting kind, the best first; those that something rules out at the end."""
    exact, wide = wanted(order)
    found: dict[str, Stored] = {}
    for parameter in ("service-type", "specialty", "service-category"):
        if exact | wide:
            value = any_of(token(*one) for one in sorted(exact | wide))
            found |= {one.id: one for one in await record.find("HealthcareService", (parameter, value))}
    judged = [
        await _judge(record, found[id], order, patient or {}, now, exact)
        for id in sorted(found)
        if found[id].tree.get("active") is not False
    ]
    return sorted(judged, key=lambda one: (bool(one.against), -one.points, one.service.id))


def wanted(order: Tree) -> tuple[set[Code], set[Code]]:
    """The codes of what an order asks for, and those of it that are too wide to say much."""
    asked = set(codings(order.get("code"), order.get("category"), order.get("performerType"), order.get("orderDetail")))
    asked |= {_code(one) for code in asked for one in _rules()["kinds"].get("|".join(code), ())}
    wide = {(system, code) for system, listed in _rules()["wide"].items() for code in listed}
    return asked - wide, asked & wide


def _code(text: str) -> Code:
    system, _, code = text.rpartition("|")
    return system, code


async def _judge(record: Record, service: Stored, order: Tree, patient: Tree, now: datetime, exact: set[Code]) -> Candidate:
    tree, judged = service.tree, Candidate(service)
    if exact & set(codings(tree.get("type"), tree.get("specialty"), tree.get("category"))):
        judged.add("kind", "It does what is asked for")
    else:
        judged.add("kind-wide", "It takes referrals of this category")
    _room(judged, capacity(tree))
    await _area(record, judged, patient)
    _languages(judged, patient)
    _hours(judged, order, now)
    _eligibility(judged, patient, now)
    return judged


def _room(judged: Candidate, status: str | None) -> None:
    match status:
        case "capacity":
            judged.add("capacity", "It has capacity")
        case "additional-assessment-required":
            judged.add("additional-assessment-required", "It decides after an assessment of its own")
        case "waitlist":
            judged.add("waitlist", "It has a waiting list")
        case "no-capacity":
            judged.against.append("It has no capacity")
        case _:
            judged.add("capacity-unknown", "It does not tell whether it has capacity")


async def _area(record: Record, judged: Candidate, patient: Tree) -> None:
    homes = [one for one in patient.get("address", []) if one.get("use") != "old"]
    covered = [one.tree.get("address", {}) for one in await _places(record, judged.service.tree.get("coverageArea", []))]
    if homes and covered and all(covered):
        if any(_within(home, area) for home in homes for area in covered):
            judged.add("near", "It covers the area where the patient lives")
        else:
            judged.against.append("It does not cover the area where the patient lives")
        return
    places = [one.tree.get("address", {}) for one in await _places(record, judged.service.tree.get("location", []))]
    pairs = [(home, place) for home in homes for place in places]
    for weight, elements, reason in (
        ("near", ("postalCode",), "It is in the patient's postal area"),
        ("city", ("city", "state"), "It is in the patient's city"),
        ("state", ("state",), "It is in the patient's state"),
    ):
        if any(_alike(home, place, elements) for home, place in pairs):
            judged.add(weight, reason)
            return


async def _places(record: Record, elements: Iterable[Tree]) -> list[Stored]:
    return [found for one in elements if (found := await record.follow(one)) is not None]


def _alike(home: Tree, place: Tree, elements: Iterable[str]) -> bool:
    return all(home.get(name) and place.get(name) and _plain(home[name]) == _plain(place[name]) for name in elements)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _within(home: Tree, area: Tree) -> bool:
    """Whether a home is in an area: it agrees in the finest that the area names."""
    for name in ("postalCode", "city", "district", "state", "country"):
        if area.get(name):
            coarser = ("state",) if name in ("city", "district") and area.get("state") else ()
            return _alike(home, area, (name, *coarser))
    return False


def _languages(judged: Candidate, patient: Tree) -> None:
    spoken = {code.split("-")[0].casefold() for _, code in codings(judged.service.tree.get("communication"))}
    told = patient.get("communication", [])
    preferred = [one for one in told if one.get("preferred")] or told
    needed = {code.split("-")[0].casefold() for one in preferred for _, code in codings(one.get("language"))}
    if needed & spoken:
        judged.add("language", "It speaks the patient's language")
    elif needed and spoken:
        judged.reasons.append("It does not say that it speaks the patient's language")


def _hours(judged: Candidate, order: Tree, now: datetime) -> None:
    tree = judged.service.tree
    period = order.get("occurrencePeriod", {})
    wanted_at = max(moment(order.get("occurrenceDateTime") or period.get("start")) or now, now)
    for closed in tree.get("notAvailable", []):
        start, end = (moment(closed.get("during", {}).get(name)) for name in ("start", "end"))
        if closed.get("during") and (start is None or start <= wanted_at) and (end is None or wanted_at <= end):
            judged.against.append("It is closed at the time that is asked for")
            return
    if tree.get("availableTime"):
        judged.add("open", "It has hours, and is not closed at the time that is asked for")


def _eligibility(judged: Candidate, patient: Tree, now: datetime) -> None:
    """A service may list several groups: of the rules on gender one must hold, and of those on age."""
    listed = [
        _rules()["eligibility"].get(f"{system}|{code}")
        for one in judged.service.tree.get("eligibility", [])
        for system, code in codings(one.get("code"))
    ]
    rules = [one for one in listed if one]
    genders = {one["gender"] for one in rules if "gender" in one}
    if genders and patient.get("gender") in ("male", "female") and patient["gender"] not in genders:
        judged.against.append("It does not take patients of this gender")
    ages = [(one.get("min", 0), one.get("max", 200)) for one in rules if "min" in one or "max" in one]
    age = _age(patient.get("birthDate"), now)
    if ages and age is not None and not any(low <= age <= high for low, high in ages):
        judged.against.append("It does not take patients of this age")


def _age(born: str | None, now: datetime) -> int | None:
    """In whole years; None when not even the day is known."""
    if not born or len(born) < 10:
        return None
    year, month, day = (int(part) for part in born.split("-"))
    return now.year - year - ((now.month, now.day) < (month, day))
