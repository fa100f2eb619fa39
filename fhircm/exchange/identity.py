"""One Person over the Patients of one human at several partners; what is uncertain goes to a human.

https://hl7.org/fhir/R4/person.html. A link is made only when it is the one possible: each of the two Patients matches exactly
one Patient of the other's partner. The result follows from the records alone, not from their order of arrival, and the id of a Person
follows from its members: two workers, or a replay, make the same Person. fhircm/exchange/matching.py judges the pairs.

A human answers a `possible-match` Task by completing it with an output of type `match-decision`, valueCode `same` or `different`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from fhircm.exchange import human
from fhircm.exchange.candidates import BLOCK, blocks
from fhircm.exchange.features import Features, features
from fhircm.exchange.matching import Match, compare
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import check_tree
from fhircm.store.changes import Change
from fhircm.store.resources import Op, Put, Store, Stored

CROWD = 24  # so many Patients that all match one another are nobody's identity
CODE, DISPLAY = "possible-match", "Decide whether two records are of one person"
APART, APART_DISPLAY = "match-withdrawn", "Two records that were linked no longer match"


async def link_person(store: Store, change: Change, *, owner: str | None = None) -> list[Op]:
    """Reaction to a Patient, or to a human's decision (Task): link and unlink, or ask.

    `owner` is the local reference of the organisation that coordinates: it owns the Tasks for a human.
    """
    around = _Surroundings(store)
    if change.type == "Task":
        start = await _decided(store, change)
    elif change.type == "Patient":
        start = [change.id]
    else:
        start = []
    if not start:
        return []
    await around.explore(start)
    operations = await _persons(around, owner)
    return [*operations, *await _questions(around, start, owner)]


async def _decided(store: Store, change: Change) -> list[str]:
    """The two Patients of a possible-match Task that a human completed."""
    stored = (await store.read_many([("Task", change.id)])).get(("Task", change.id))
    if stored is None or _code(stored.tree) != CODE or stored.tree["status"] != "completed":
        return []
    return _pair_of(stored.tree)


def _code(task: dict[str, Any]) -> str | None:
    codings = task.get("code", {}).get("coding", [])
    return next((coding.get("code") for coding in codings if coding.get("system") == COORDINATION), None)


def _pair_of(task: dict[str, Any]) -> list[str]:
    """The two Patients that a Task is about: one is its focus, one it is for. Both can be searched by."""
    references = (task.get(element, {}).get("reference", "") for element in ("for", "focus"))
    return [reference.removeprefix("Patient/") for reference in references if reference.startswith("Patient/")]


Pair = tuple[str, str]  # two Patient ids, the smaller first


def _pair(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


@dataclass
class _Surroundings:
    """The Patients around those that changed: everything that could share a Person with them."""

    store: Store
    patients: dict[str, Stored] = field(default_factory=dict)
    folded: dict[str, Features] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    matches: dict[Pair, Match] = field(default_factory=dict)  # link or possible, of different partners
    decisions: dict[Pair, str] = field(default_factory=dict)  # what a human said
    persons: dict[str, Stored] = field(default_factory=dict)
    explored: set[str] = field(default_factory=set)

    async def explore(self, start: Sequence[str]) -> None:
        """Follow links, made or to be made, until nobody new turns up."""
        await self._load(start)
        waiting = list(start)
        while waiting and len(self.explored) <= CROWD:
            id = waiting.pop(0)
            if id in self.explored:
                continue
            self.explored.add(id)
            known = await self._persons_of(id)
            await self._load(known)
            candidates = await self._candidates(id) | known | (set(start) - {id} if id in start else set())
            for other in sorted(candidates):
                await self._judge(id, other)
            waiting += sorted(known | {other for other in candidates if self.linkable(id, other)})

    async def _load(self, ids: Iterable[str]) -> None:
        missing = [("Patient", id) for id in ids if id not in self.patients]
        for (_, id), stored in (await self.store.read_many(missing)).items() if missing else ():
            self._take(id, stored)

    def _take(self, id: str, stored: Stored) -> None:
        tree = stored.tree
        if any(link.get("type") == "replaced-by" for link in tree.get("link", [])):
            return  # merged into another record of the same partner
        self.patients[id] = stored
        self.folded[id] = features(tree)
        self.sources[id] = tree.get("meta", {}).get("source", "").rpartition("/Patient/")[0]

    async def _persons_of(self, id: str) -> set[str]:
        """The Patients that share a Person with this one now."""
        found = await _search(self.store, "Person", [("patient", f"Patient/{id}")])
        self.persons.update({person.id: person for person in found})
        return {member for person in found for member in _members(person.tree)} - {id}

    async def _candidates(self, id: str) -> set[str]:
        """Patients of other partners that share a birth date, a number of their own, or both names: never the whole panel."""
        if id not in self.patients:
            return set()
        found: set[str] = set()
        for block in blocks(self.patients[id].tree, self.folded[id]):
            for stored in await _search(self.store, "Patient", block):
                if stored.id not in self.patients:
                    self._take(stored.id, stored)
                found.add(stored.id)
        return {other for other in found if other in self.patients and self.sources[other] != self.sources[id]}

    async def _judge(self, id: str, other: str) -> None:
        pair = _pair(id, other)
        if pair in self.matches or id == other or not {id, other} <= self.patients.keys():
            return
        match = compare(self.folded[id], self.folded[other])
        stored, _ = await human.latest(self.store, CODE, *pair)
        if stored is not None and (said := _answer(stored.tree)):
            self.decisions[pair] = said
        if match.decision != "distinct" or pair in self.decisions:
            self.matches[pair] = match

    def linkable(self, a: str, b: str) -> bool:
        """Whether this pair may be linked if nothing else stands in the way."""
        pair = _pair(a, b)
        if pair not in self.matches or self.sources[a] == self.sources[b]:
            return False
        said = self.decisions.get(pair)
        return said == "same" or (said is None and self.matches[pair].decision == "link")

    def sure(self, a: str, b: str) -> bool:
        """Whether the pair is linkable and neither has another choice at the other's partner; a human's word ends the choice."""
        return self.linkable(a, b) and self._choices(a, b) == {b} and self._choices(b, a) == {a}

    def _choices(self, of: str, like: str) -> set[str]:
        """With whom `of` could be linked at the partner of `like`."""
        others = {other for pair in self.matches if of in pair for other in pair if other != of}
        rivals = {other for other in others if self.sources[other] == self.sources[like] and self.linkable(of, other)}
        said = {other for other in rivals if self.decisions.get(_pair(of, other)) == "same"}
        return said or rivals

    def groups(self) -> list[list[str]]:
        """The humans: Patients joined by sure links, in which no two contradict each other."""
        if len(self.explored) > CROWD:
            return []
        joined = {id: {id} for id in self.explored & self.patients.keys()}
        for a, b in self.matches:
            if a in joined and b in joined and joined[a] is not joined[b] and self.sure(a, b):
                joined[a] |= joined[b]
                for member in joined[b]:
                    joined[member] = joined[a]
        distinct = {id(group): group for group in joined.values()}
        return [sorted(group) for group in distinct.values() if len(group) > 1 and self.sound(group)]

    def sound(self, group: Iterable[str]) -> bool:
        """Whether every two of a group may be one human: at most one for each partner, and none that contradict."""
        return all(
            self.sources[a] != self.sources[b]
            and (
                self.decisions.get(pair := _pair(a, b)) == "same"
                or (pair in self.matches and pair not in self.decisions and not self.matches[pair].vetoes)
                or (pair not in self.matches and compare(self.folded[a], self.folded[b]).decision != "distinct")
            )
            for a, b in combinations(group, 2)
        )


def _answer(task: dict[str, Any]) -> str | None:
    """What a human decided in a completed Task: same or different."""
    if task["status"] != "completed":
        return None
    said = (
        entry.get("valueCode")
        for entry in task.get("output", [])
        if any(coding.get("code") == "match-decision" for coding in entry["type"].get("coding", []))
    )
    return next((code for code in said if code in ("same", "different")), None)


async def _search(store: Store, type: str, parameters: list[tuple[str, str]]) -> list[Stored]:
    page = await store.search(parse_query(type, [*parameters, ("_count", str(BLOCK))]))
    return list(page.matches)


def _members(person: dict[str, Any]) -> set[str]:
    targets = (link["target"].get("reference", "") for link in person.get("link", []))
    return {target.removeprefix("Patient/") for target in targets if target.startswith("Patient/")}


async def _persons(around: _Surroundings, owner: str | None) -> list[Op]:
    """Write every Person as its members say; retire those that stand for nobody now."""
    groups = {human.stable_id("Person", group[0]): group for group in around.groups()}
    await _known_persons(around, groups)
    operations: list[Op] = []
    for id, group in sorted(groups.items()):
        operations += _write(around.persons.get(id), _person(id, group, around))
    for id, stored in sorted(around.persons.items()):
        if id not in groups:
            operations += _write(stored, _retired(stored.tree, groups))
        operations += await _parted(around, stored, groups, owner)
    return operations


async def _known_persons(around: _Surroundings, groups: dict[str, list[str]]) -> None:
    """A Person that was retired is not found by its members, but lives again under the same id."""
    missing = [("Person", id) for id in groups if id not in around.persons]
    found = await around.store.read_many(missing) if missing else {}
    around.persons.update({id: stored for (_, id), stored in found.items()})


def _person(id: str, group: list[str], around: _Surroundings) -> dict[str, Any]:
    first = around.patients[group[0]].tree
    known = {name: first[name] for name in ("name", "gender", "birthDate") if name in first}
    links = [{"target": {"reference": f"Patient/{member}"}, "assurance": _assurance(member, group, around)} for member in group]
    return {"resourceType": "Person", "id": id, **known, "active": True, "link": links}


def _assurance(member: str, group: list[str], around: _Surroundings) -> str:
    """The best of this member's links: level4 rests on a number of their own, level3 on all else and on a human's word."""
    own = [around.matches[pair] for other in group if (pair := _pair(member, other)) in around.matches]
    return max((match.assurance for match in own if match.assurance), default="level3")


def _retired(person: dict[str, Any], groups: dict[str, list[str]]) -> dict[str, Any]:
    """A Person without members, pointing to the one that took over the first of them, if any did."""
    before = _members(person)
    heirs = sorted(id for id, group in groups.items() if before & set(group))
    kept = {name: value for name, value in person.items() if name not in ("link", "active")}
    successors = [{"target": {"reference": f"Person/{heir}"}} for heir in heirs if heir != person["id"]]
    if not before:
        successors = person.get("link", [])
    return {**kept, "active": False, **({"link": successors} if successors else {})}


def _write(stored: Stored | None, tree: dict[str, Any]) -> list[Op]:
    """The write that makes a Person so, or none when it is."""
    if stored is None:
        return [Put(check_tree(tree), if_version=0)]
    before = stored.tree
    meta = {name: value for name, value in before.pop("meta", {}).items() if name not in ("versionId", "lastUpdated")}
    tree = {name: value for name, value in tree.items() if name != "meta"}
    if before == tree:
        return []
    return [Put(check_tree({**tree, "meta": meta} if meta else tree), if_version=stored.version)]


async def _parted(around: _Surroundings, person: Stored, groups: dict[str, list[str]], owner: str | None) -> list[Op]:
    """Tell a human of members that a Person loses: what was done for one may have been meant for the other."""
    where = {member: id for id, group in groups.items() for member in group}
    operations: list[Op] = []
    for a, b in combinations(sorted(_members(person.tree)), 2):
        if a in where and where[a] == where.get(b):
            continue
        here = [f"Patient/{id}" for id in (a, b) if id in around.patients]
        operations += await human.tell(
            around.store,
            (APART, person.id, str(person.version), a, b),
            APART,
            APART_DISPLAY,
            "One of the two records changed, or another like it appeared, so they are no longer surely of one person. "
            "Check what was exchanged for them while they were linked.",
            focus=here[-1] if here else None,
            patient=here[0] if here else None,
            owner=owner,
        )
    return operations


async def _questions(around: _Surroundings, start: Sequence[str], owner: str | None) -> list[Op]:
    """Ask a human about every uncertain pair of the Patients that changed; take a question back that settled itself."""
    together = {id: group for group in around.groups() for id in group}
    operations: list[Op] = []
    for pair, match in sorted(around.matches.items()):
        if pair in around.decisions or around.sources[pair[0]] == around.sources[pair[1]]:
            continue
        if together.get(pair[0]) is not None and together[pair[0]] is together.get(pair[1]):
            operations += await human.take_back(around.store, (CODE, *pair), "The records were linked since")
            continue
        operations += await human.tell(
            around.store,
            (CODE, *pair),
            CODE,
            DISPLAY,
            _reason(match),
            focus=f"Patient/{pair[1]}",
            patient=f"Patient/{pair[0]}",
            owner=owner,
        )
    return [*operations, *await _settled(around, start)]


def _reason(match: Match) -> str:
    """Why a human is asked: names of elements only."""
    if match.vetoes:
        return f"Nearly everything agrees, but {', '.join(match.vetoes)} contradict each other"
    if match.decision == "link":
        return "The records match, but so does another record of the same partner: which is it?"
    agree = ", ".join(sorted(field for field, level in match.levels.items() if level == "same"))
    rest = ", ".join(f"{field} ({level})" for field, level in sorted(match.levels.items()) if level != "same")
    return f"The same: {agree or 'nothing'}. Not surely: {rest or 'nothing else is known'}"


async def _settled(around: _Surroundings, start: Sequence[str]) -> list[Op]:
    """Take back the questions about the changed Patients for which nothing speaks any more."""
    asked: set[Pair] = set()
    for id in start:
        for element in ("focus", "patient"):
            parameters = [(element, f"Patient/{id}"), ("code", f"{COORDINATION}|{CODE}"), ("status", "ready,in-progress,on-hold")]
            found = [_pair_of(stored.tree) for stored in await _search(around.store, "Task", parameters)]
            asked |= {_pair(*pair) for pair in found if len(pair) == 2}
    operations: list[Op] = []
    for pair in sorted(asked - around.matches.keys()):
        operations += await human.take_back(around.store, (CODE, *pair), "The records no longer resemble each other")
    return operations
