"""Which records of several partners are one and the same problem, goal, activity or member of the team. Pure: no store, no clock.

https://hl7.org/fhir/R4/condition.html, https://hl7.org/fhir/R4/goal.html, https://hl7.org/fhir/R4/careteam.html. What is recognised follows
from the records alone, never from their order. Where a record would join two that contradict each other, only those stay together that
say exactly the same. What is closed by a security label is never joined with anything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from fhircm.coordination.codes import NPI, codings
from fhircm.coordination.longitudinal.sources import Records, Source, local
from fhircm.fhir.ranges import EARLIEST, LATEST, date_range, normalise

Tree = dict[str, Any]
Same = Callable[[Source, Source], bool]


@dataclass(frozen=True, slots=True)
class Thing:
    """What was recognised: its sources, in the order of their references."""

    sources: tuple[Source, ...]

    @property
    def key(self) -> str:
        """The reference of its first source."""
        return self.sources[0].reference


def problems(records: Records, conditions: Sequence[Source]) -> list[Thing]:
    """Conditions that are one problem: codes that mean the same, or of which one is broader, at times that overlap."""

    def related(a: Source, b: Source) -> bool:
        return records.terms.related(codings(a.tree.get("code")), codings(b.tree.get("code")))

    def same(a: Source, b: Source) -> bool:
        return related(a, b) and _overlap(_course(a.tree), _course(b.tree))

    def against(a: Source, b: Source) -> bool:
        if related(a, b):
            return not _overlap(_course(a.tree), _course(b.tree))
        return bool(_systems(a.tree.get("code")) & _systems(b.tree.get("code")))

    def alike(one: Source) -> Hashable:
        codes = records.terms.of(codings(one.tree.get("code")))
        return (codes, _course(one.tree)) if codes else None

    return _things(conditions, lambda one: records.terms.around(codings(one.tree.get("code"))), same, against, alike)


def goals(records: Records, found: Sequence[Source], problem_of: Mapping[str, str]) -> list[Thing]:
    """Goals that are one: the same code, or the same words, measure and due date; about the same problem.

    `problem_of` tells for the reference of a Condition which problem it is.
    """

    def about(one: Source) -> frozenset[str]:
        to = (local(element) for element in one.tree.get("addresses", []))
        return frozenset(problem_of.get(reference, reference) for reference in to if reference)

    def same(a: Source, b: Source) -> bool:
        if against(a, b):
            return False
        if records.terms.related(codings(a.tree.get("description")), codings(b.tree.get("description"))):
            return True
        return _words(a.tree.get("description")) == _words(b.tree.get("description")) != "" and _aim(a.tree) == _aim(b.tree)

    def against(a: Source, b: Source) -> bool:
        ours, theirs = _measures(a.tree), _measures(b.tree)
        if ours and theirs and not records.terms.related(ours, theirs):
            return True
        return bool(about(a) and about(b) and not about(a) & about(b))

    def alike(one: Source) -> Hashable:
        codes = records.terms.of(codings(one.tree.get("description")))
        what = codes or (_words(one.tree.get("description")), _aim(one.tree))
        return (what, _measures(one.tree), about(one))

    def keys(one: Source) -> Iterable[Hashable]:
        return {*records.terms.around(codings(one.tree.get("description"))), _words(one.tree.get("description"))} - {""}

    return _things(found, keys, same, against, alike)


def activities(records: Records, orders: Sequence[Source]) -> list[Thing]:
    """Orders that are one: an identifier in common, or at two partners the same code at the same time."""

    def same(a: Source, b: Source) -> bool:
        if set(_numbers(a.tree)) & set(_numbers(b.tree)):
            return True
        times = _when(a.tree) is not None and _when(a.tree) == _when(b.tree)
        return times and a.voice != b.voice and records.terms.related(codings(a.tree.get("code")), codings(b.tree.get("code")))

    def keys(one: Source) -> Iterable[Hashable]:
        return {*_numbers(one.tree), *records.terms.around(codings(one.tree.get("code")))}

    return _things(orders, keys, same, lambda a, b: False, lambda one: one.reference)


def possible(records: Records, things: Sequence[Thing]) -> list[tuple[str, str]]:
    """Pairs of things, by key, that have the same words and were not recognised as one: shown side by side, never joined."""
    by_words: dict[str, list[str]] = {}
    for thing in things:
        said = {_words(one.tree.get("code") or one.tree.get("description")) for one in thing.sources if not one.protected}
        for words in said - {""}:
            by_words.setdefault(words, []).append(thing.key)
    return sorted({pair for keys in by_words.values() for pair in combinations(sorted(set(keys)), 2)})


# --- members of the team -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seat:
    """One place of one person or organisation in one source: `at` is the number of the participant in its CareTeam."""

    team: Source
    at: int
    tree: Tree
    member: str

    @property
    def order(self) -> tuple[str, int]:
        """Where it stands."""
        return self.team.reference, self.at


def members(records: Records, teams: Sequence[Source]) -> list[list[Seat]]:
    """The seats of all teams by who sits there: an NPI or another number in common, or for relatives name, relationship and telephone."""
    seats = [
        Seat(team, at, one, local(one.get("member")) or "")
        for team in teams
        for at, one in enumerate(team.tree.get("participant", []))
    ]
    seats = [one for one in seats if one.member]
    who = {one.member: _who(records, one.member) for one in seats}
    groups = _joined(sorted(who), who.__getitem__)
    sound: list[list[str]] = []
    for group in groups:
        numbers = {key for one in group for key in who[one] if key[0] == NPI}
        if len(numbers) < 2:
            sound.append(group)
        else:  # two people share some number: only the NPI tells them apart
            sound += _joined(group, lambda one: {key for key in who[one] if key[0] == NPI} or {("", one)})
    return [sorted((seat for seat in seats if seat.member in group), key=lambda seat: seat.order) for group in sound]


def _who(records: Records, member: str) -> frozenset[tuple[str, str]]:
    """By what somebody is known."""
    type = member.partition("/")[0]
    if type == "Patient":
        return frozenset({("Patient", "self") if member.removeprefix("Patient/") in records.patients else ("", member)})
    tree = records.others.get(member, {})
    if type == "PractitionerRole":
        holder = local(tree.get("practitioner"))
        if holder:
            return _who(records, holder)
        return frozenset({("", member)})
    if type == "RelatedPerson" and (known := _relative(tree)):
        return frozenset({("", member), ("RelatedPerson", known)})
    return frozenset({("", member), *(_numbers(tree) if type in ("Practitioner", "Organization") else ())})


def _relative(tree: Tree) -> str | None:
    """Name, relationship and telephone of a relative, when all three are there."""
    name = next((_name(one) for one in tree.get("name", []) if _name(one)), "")
    phones = (
        "".join(filter(str.isdigit, one.get("value", ""))) for one in tree.get("telecom", []) if one.get("system") == "phone"
    )
    phone = next((one[-10:] for one in sorted(phones) if len(one) >= 7), "")
    relation = "+".join(sorted(code for _, code in codings(tree.get("relationship", [])))) or _words(tree.get("relationship", []))
    return f"{name}|{relation}|{phone}" if name and relation and phone else None


def _name(name: Tree) -> str:
    return normalise(name.get("text") or " ".join([*name.get("given", []), name.get("family", "")]))


# --- how records are compared ------------------------------------------------------------------------------------------------


def _things(
    found: Sequence[Source],
    keys: Callable[[Source], Iterable[Hashable]],
    same: Same,
    against: Same,
    alike: Callable[[Source], Hashable],
) -> list[Thing]:
    """The groups of sources that are the same. Only those with a key in common are compared."""
    open_ones = sorted((one for one in found if not one.protected), key=lambda one: one.reference)
    pairs: dict[str, set[str]] = {one.reference: set() for one in open_ones}
    buckets: dict[Hashable, list[Source]] = {}
    for one in open_ones:
        for key in set(keys(one)):
            buckets.setdefault(key, []).append(one)
    for bucket in buckets.values():
        for a, b in combinations(bucket, 2):
            if b.reference not in pairs[a.reference] and same(a, b):
                pairs[a.reference].add(b.reference)
    by_reference = {one.reference: one for one in open_ones}
    groups: list[list[Source]] = []
    for group in _joined(list(by_reference), lambda reference: {reference, *pairs[reference]}):
        members = [by_reference[reference] for reference in group]
        if any(against(a, b) for a, b in combinations(members, 2)):
            groups += _alike(members, alike)
        else:
            groups.append(members)
    groups += [[one] for one in found if one.protected]
    return sorted((Thing(tuple(group)) for group in groups), key=lambda thing: thing.key)


def _alike(members: Sequence[Source], alike: Callable[[Source], Hashable]) -> list[list[Source]]:
    groups: dict[Hashable, list[Source]] = {}
    for one in members:
        told = alike(one)
        groups.setdefault(one.reference if told is None else told, []).append(one)
    return list(groups.values())


def _joined(names: Sequence[str], keys: Callable[[str], Iterable[Hashable]]) -> list[list[str]]:
    """Names in groups that are connected by keys in common, each in order."""
    group_of: dict[Hashable, set[str]] = {}
    for name in names:
        mine: set[str] = {name}
        through: set[Hashable] = set(keys(name))
        for other in {id(group_of[key]): group_of[key] for key in through if key in group_of}.values():
            mine |= other
        for one in mine:
            through |= set(keys(one))
        for key in through:
            group_of[key] = mine
    distinct = {id(group): group for group in group_of.values()}
    known = set(names)
    return sorted(sorted(group & known) for group in distinct.values())


def _systems(element: Any) -> set[str]:
    return {system for system, _ in codings(element) if system}


def _words(element: Any) -> str:
    """The words of a CodeableConcept as they are compared; the displays of its codes when it has no text."""
    for one in element if isinstance(element, list) else [element]:
        if isinstance(one, dict):
            text = one.get("text") or next((coding["display"] for coding in one.get("coding", []) if coding.get("display")), "")
            if text:
                return normalise(text)
    return ""


def _course(condition: Tree) -> tuple[int, int]:
    """From when to when a Condition lasted, in microseconds; open where nothing is said."""
    begun = condition.get("onsetDateTime") or condition.get("onsetPeriod", {}).get("start")
    over = condition.get("abatementDateTime") or condition.get("abatementPeriod", {}).get("end")
    return (date_range(begun)[0] if begun else EARLIEST, date_range(over)[1] if over else LATEST)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _measures(goal: Tree) -> frozenset[tuple[str, str]]:
    return frozenset(codings([target.get("measure") for target in goal.get("target", [])]))


def _aim(goal: Tree) -> frozenset[tuple[Hashable, Hashable]]:
    """Measure and due of every target."""
    return frozenset(
        (frozenset(codings(one.get("measure"))), one.get("dueDate") or str(sorted(one.get("dueDuration", {}).items())))
        for one in goal.get("target", [])
    )


def _numbers(tree: Tree) -> list[tuple[str, str]]:
    return [
        (one["system"], one["value"])
        for one in tree.get("identifier", [])
        if one.get("system") and one.get("value") and one.get("use") != "old"
    ]


def _when(order: Tree) -> str | None:
    """The day for which something was ordered, else the day on which it was."""
    said = order.get("occurrenceDateTime") or order.get("occurrencePeriod", {}).get("start") or order.get("authoredOn")
    return said[:10] if isinstance(said, str) and len(said) >= 10 else None
