"""What belongs to a patient, an encounter or an episode of care, and what comes along with it.

https://hl7.org/fhir/R4/compartmentdefinition.html and https://hl7.org/fhir/R4/patient-operation-everything.html. Beyond the compartments,
what names the patient or the encounter by a search parameter of that name belongs to it too: a Task, a Device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from fhircm.fhir.conditions import AnyOf, Chained, Condition, IdTest, Matches, Missing, SpanTest, TargetTest
from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import searchable
from fhircm.fhir.ranges import EARLIEST, LATEST

Conditions = Mapping[str, tuple[Condition, ...]]  # for each resource type, what must hold

# The parameters that name it, where the compartment definition has none.
_NAMED_BY = {
    "Patient": ("patient",),
    "Encounter": ("encounter", "context"),
    "EpisodeOfCare": ("encounter", "context", "episode-of-care"),
}
# When the care was that a resource tells of: the first of these parameters that its type has.
_WHEN = (
    "date",
    "occurrence",
    "effective",
    "effective-time",
    "onset-date",
    "period",
    "started",
    "collected",
    "sent",
    "start-date",
    "identified",
    "event-date",
    "authored",
    "authoredon",
    "authored-on",
    "whenhandedover",
    "datetime",
    "datewritten",
    "issued",
    "created",
    "recorded",
)
_OTHERWISE = {
    "MedicationRequest": "authoredon",
    "ServiceRequest": "authored",
}  # what their first parameter names is in the future
_UNTIL = {"Condition": "abatement-date", "Goal": "target-date"}  # where the end is told apart from the begin
_NOT_OF_CARE = frozenset({"Patient", "Person", "RelatedPerson", "Group"})  # who somebody is has no date of care


@dataclass(frozen=True, slots=True)
class Belonging:
    """What belongs to something, by resource type; and what may come along when it is referred to, which is never among the first."""

    inside: Conditions
    along: Conditions


def of_patients(ids: Sequence[str]) -> Belonging:
    """What belongs to these patients. What is somebody else's does not come along, what is nobody's does."""
    tests = tuple(TargetTest(id, ("Patient",)) for id in ids)
    inside = {type: (_any(type, codes, tests, _own("Patient", type, ids)),) for type, codes in named_by("Patient").items()}
    return Belonging(inside, _of_nobody("Patient"))


def of_every_patient() -> Belonging:
    """What belongs to any patient."""
    inside: dict[str, tuple[Condition, ...]] = {"Patient": ()}
    for type, codes in named_by("Patient").items():
        if type != "Patient":
            inside[type] = (AnyOf(tuple(Missing(type, code, False) for code in codes)),)
    return Belonging(inside, _of_nobody("Patient"))


def of_encounter(id: str) -> Belonging:
    """What belongs to an encounter; whatever else it refers to comes along."""
    tests = (TargetTest(id, ("Encounter",)),)
    inside: dict[str, tuple[Condition, ...]] = {}
    along: dict[str, tuple[Condition, ...]] = dict.fromkeys(definitions().resource_types, ())
    for type, codes in named_by("Encounter").items():
        own = _own("Encounter", type, (id,))
        inside[type] = (_any(type, codes, tests, own),)
        along[type] = tuple(Matches(type, code, tests, negated=True) for code in codes)
        along[type] += tuple(Matches(type, "_id", one.tests, negated=True) for one in own)
    return Belonging(inside, along)


def of_episode(id: str) -> Belonging:
    """What belongs to an episode of care or to one of its encounters."""
    tests = (TargetTest(id, ("EpisodeOfCare",)),)
    within = Matches("Encounter", "episode-of-care", tests)
    inside: dict[str, tuple[Condition, ...]] = {}
    for type in sorted(named_by("EpisodeOfCare").keys() | named_by("Encounter").keys()):
        direct = [Matches(type, code, tests) for code in named_by("EpisodeOfCare").get(type, ())]
        by_encounter = [Chained(type, code, (("Encounter", within),)) for code in named_by("Encounter").get(type, ())]
        inside[type] = (AnyOf((*_own("EpisodeOfCare", type, (id,)), *direct, *by_encounter)),)
    return Belonging(inside, {**_of_nobody("Encounter"), "EpisodeOfCare": (AnyOf(()),)})


def with_provenance(belonging: Belonging) -> Belonging:
    """The same and whence all of it came: a join over every type, for those who ask for it."""
    inside = belonging.inside
    if not all(inside.values()):  # of every patient
        return replace(belonging, inside={**inside, "Provenance": ()})
    about = Chained("Provenance", "target", tuple((type, one) for type, (one,) in inside.items() if type != "Provenance"))
    return replace(belonging, inside={**inside, "Provenance": (AnyOf((about, *inside.get("Provenance", ()))),)})


def without_audit(belonging: Belonging) -> Belonging:
    """The same without who looked at it."""
    inside, along = (
        {type: one for type, one in of.items() if type != "AuditEvent"} for of in (belonging.inside, belonging.along)
    )
    return Belonging(inside, along)


@cache
def named_by(kind: str) -> Mapping[str, tuple[str, ...]]:
    """For each type that can belong to one of this kind the search parameters that say so."""
    found: dict[str, tuple[str, ...]] = {}
    for type in sorted(definitions().resource_types):
        known = searchable(type).extractors
        listed = [*definitions().compartments.get(kind, {}).get(type, ()), *_NAMED_BY[kind]]
        codes = [code for code in listed if code in known and kind in known[code].targets]
        if codes or type == kind:
            found[type] = tuple(dict.fromkeys(codes))
    return found


@cache
def administrative() -> tuple[str, ...]:
    """The types that belong to no patient: people, organisations, places, products, definitions."""
    return tuple(sorted(definitions().resource_types - named_by("Patient").keys()))


def in_time(type: str, low: int | None, high: int | None) -> tuple[Condition, ...]:
    """That the care a resource tells of was in [low, high), microseconds since the epoch; what has no date is in."""
    begun = when(type)
    if begun is None or (low is None and high is None):
        return ()
    until = _UNTIL.get(type)
    if until is None:
        return (_within(type, begun, EARLIEST if low is None else low, LATEST if high is None else high),)
    begins = [] if high is None else [_within(type, begun, EARLIEST, high)]
    ends = [] if low is None else [_within(type, until, low, LATEST)]
    return (*begins, *ends)


def _within(type: str, code: str, low: int, high: int) -> Condition:
    # "ap" is true when both overlap.
    return AnyOf((Matches(type, code, (SpanTest("ap", low, high),)), Missing(type, code, True)))


@cache
def when(type: str) -> str | None:
    """The parameter that tells when the care was that a resource of a type tells of; None: it has no date of care."""
    known = {code for code, one in searchable(type).extractors.items() if one.definition.type == "date"}
    if type in _NOT_OF_CARE:
        return None
    return next((code for code in (_OTHERWISE.get(type, ""), *_WHEN) if code in known), None)


def _any(type: str, codes: Sequence[str], tests: tuple[TargetTest, ...], own: tuple[Matches, ...]) -> Condition:
    return AnyOf((*own, *(Matches(type, code, tests) for code in codes)) if tests else ())


def _own(kind: str, type: str, ids: Sequence[str]) -> tuple[Matches, ...]:
    return (Matches(type, "_id", tuple(map(IdTest, ids))),) if type == kind else ()


@cache
def _of_nobody(kind: str) -> Conditions:
    """Every type but the kind itself; of those that can belong to one, what belongs to none."""
    bound = named_by(kind)
    return {
        type: tuple(Missing(type, code, True) for code in bound.get(type, ()))
        for type in sorted(definitions().resource_types)
        if type != kind
    }
