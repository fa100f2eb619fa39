"""One Person over the Patients of one human at several partners; what is uncertain goes to a human.

https://hl7.org/fhir/R4/person.html. The result follows from the records and from what humans said, not from the order of arrival, and the
id of a Person follows from its members: two workers, or a replay, make the same Person. fhircm/exchange/matching.py judges the pairs,
linkage.py makes groups of them, review.py asks humans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from fhircm.exchange import human, review
from fhircm.exchange.candidates import BLOCK, blocks
from fhircm.exchange.exposure import told_while_linked
from fhircm.exchange.features import features
from fhircm.exchange.linkage import Linkage, ordered
from fhircm.exchange.matching import Thresholds
from fhircm.exchange.merge import survivor
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.changes import Change
from fhircm.store.resources import Op, Put, Store, Stored

CROWD = 24  # so many Patients that all match one another are nobody's identity
APART, APART_DISPLAY = "match-withdrawn", "Two records that were linked no longer match"


async def link_person(
    store: Store, change: Change, *, owner: str | None = None, thresholds: Mapping[str, Thresholds] | None = None
) -> list[Op]:
    """Reaction to a Patient, or to a human's decision (Task): link and unlink, or ask.

    `owner` is the local reference of the organisation that coordinates: it owns the Tasks for a human. `thresholds` are those of partners
    that have their own, by base URL.
    """
    task = await _decided(store, change) if change.type == "Task" else None
    start = review.pair_of(task.tree) if task else [change.id] if change.type == "Patient" else []
    if not start:
        return []
    around = await surroundings(store, start, thresholds or {})
    operations = [*around.carried, *await _persons(around, owner)]
    if task:
        operations += await _who_decided(store, task, change, operations)
    return [*operations, *await review.questions(store, around.linkage, around.explored, start, owner)]


async def surroundings(store: Store, start: Sequence[str], thresholds: Mapping[str, Thresholds]) -> Surroundings:
    """The records around these that could share a Person with them, every pair judged."""
    around = Surroundings(store, Linkage(thresholds=thresholds))
    await around.explore(start)
    return around


async def _decided(store: Store, change: Change) -> Stored | None:
    """A possible-match Task that a human completed."""
    stored = (await store.read_many([("Task", change.id)])).get(("Task", change.id))
    return stored if stored and review.answer(stored.tree) else None


@dataclass
class Surroundings:
    """The Patients around those that changed: everything that could share a Person with them."""

    store: Store
    linkage: Linkage
    patients: dict[str, Stored] = field(default_factory=dict)
    persons: dict[str, Stored] = field(default_factory=dict)
    explored: set[str] = field(default_factory=set)
    given_up: dict[str, list[str]] = field(default_factory=dict)  # by survivor: the records that were merged into it
    carried: list[Op] = field(default_factory=list)  # what humans said of those, kept for the survivor

    async def explore(self, start: Sequence[str]) -> None:
        """Follow links, made or to be made, until nobody new turns up."""
        await self._load(start)
        # Of whom it was asked, a rival of theirs may be gone now.
        asked = [other for id in start for other in sorted(await review.partners_of(self.store, id)) if other not in start]
        await self._load(asked)
        waiting = list(dict.fromkeys([*start, *await self._survivors(start), *asked]))
        while waiting and not self.crowded:
            id = waiting.pop(0)
            if id in self.explored:
                continue
            self.explored.add(id)
            known = await self._persons_of(id)
            await self._load(known)
            candidates = await self._candidates(id) | known | (set(start) - {id} if id in start else set())
            candidates |= await review.partners_of(self.store, id)
            for former in self.given_up.get(id, ()):
                candidates |= await self._persons_of(former) | await review.partners_of(self.store, former)
            await self._load(candidates)
            await self._judge(id, sorted(candidates))
            waiting += sorted(known | {other for other in candidates if self.linkage.linkable(id, other)})

    async def _survivors(self, start: Sequence[str]) -> list[str]:
        """In whose place those stand now that were merged away."""
        found = []
        for id in start:
            if id not in self.patients and (end := await survivor(self.store, id)) and end != id:
                self.given_up.setdefault(end, []).append(id)
                found.append(end)
        await self._load(found)
        return found

    @property
    def crowded(self) -> bool:
        """Whether so many match one another that it says nothing of anybody."""
        return len(self.explored) > CROWD

    def groups(self) -> list[list[str]]:
        """The humans among them."""
        return [] if self.crowded else self.linkage.groups(self.explored)

    async def _load(self, ids: Iterable[str]) -> None:
        missing = [("Patient", id) for id in ids if id not in self.patients]
        for (_, id), stored in (await self.store.read_many(missing)).items() if missing else ():
            self._take(id, stored)

    def _take(self, id: str, stored: Stored) -> None:
        tree = stored.tree
        if any(link.get("type") == "replaced-by" for link in tree.get("link", [])):
            return  # merged into another record of the same partner
        self.patients[id] = stored
        self.linkage.folded[id] = features(tree)
        self.linkage.sources[id] = tree.get("meta", {}).get("source", "").rpartition("/Patient/")[0]

    async def _persons_of(self, id: str) -> set[str]:
        """The Patients that share a Person with this one now."""
        found = await _search(self.store, "Person", [("patient", f"Patient/{id}")])
        self.persons.update({person.id: person for person in found})
        return {member for person in found for member in members(person.tree)} - {id}

    async def _candidates(self, id: str) -> set[str]:
        """Patients of other partners that one of the searches finds: never the whole panel."""
        if id not in self.patients:
            return set()
        found: set[str] = set()
        for block in blocks(self.patients[id].tree, self.linkage.folded[id]):
            for stored in await _search(self.store, "Patient", block):
                if stored.id not in self.patients:
                    self._take(stored.id, stored)
                found.add(stored.id)
        sources = self.linkage.sources
        return {other for other in found if other in self.patients and sources[other] != sources[id]}

    async def _judge(self, id: str, others: Sequence[str]) -> None:
        """Judge the pairs that are new, with what humans said of them."""
        linkage = self.linkage
        pairs = [ordered(id, other) for other in others if {id, other} <= self.patients.keys()]
        pairs = [pair for pair in pairs if pair not in linkage.matches]
        said = await review.decisions(self.store, pairs)
        for pair in pairs:
            other = pair[1] if pair[0] == id else pair[0]
            formerly = [ordered(former, other) for former in self.given_up.get(id, ())]
            before = await review.decisions(self.store, formerly)
            if pair not in said and before:
                said[pair] = min(before.values())  # different, if there were both
                self.carried.append(review.carry(pair, said[pair]))
        for pair in pairs:
            match = linkage.judge(*pair)
            if pair in said:
                linkage.decisions[pair] = said[pair]
            if match.decision != "distinct" or pair in said:
                linkage.matches[pair] = match


async def _search(store: Store, type: str, parameters: list[tuple[str, str]]) -> list[Stored]:
    page = await store.search(parse_query(type, [*parameters, ("_count", str(BLOCK))]))
    return list(page.matches)


def members(person: dict[str, Any]) -> set[str]:
    """The ids of the Patients that a Person links."""
    targets = (link["target"].get("reference", "") for link in person.get("link", []))
    return {target.removeprefix("Patient/") for target in targets if target.startswith("Patient/")}


async def _persons(around: Surroundings, owner: str | None) -> list[Op]:
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


async def _known_persons(around: Surroundings, groups: dict[str, list[str]]) -> None:
    """A Person that was retired is not found by its members, but lives again under the same id."""
    missing = [("Person", id) for id in groups if id not in around.persons]
    found = await around.store.read_many(missing) if missing else {}
    around.persons.update({id: stored for (_, id), stored in found.items()})


def _person(id: str, group: list[str], around: Surroundings) -> dict[str, Any]:
    first = around.patients[group[0]].tree
    known = {name: first[name] for name in ("name", "gender", "birthDate") if name in first}
    links = [{"target": {"reference": f"Patient/{member}"}, "assurance": _assurance(member, group, around)} for member in group]
    return {"resourceType": "Person", "id": id, **known, "active": True, "link": links}


def _assurance(member: str, group: list[str], around: Surroundings) -> str:
    """The best of this member's links: level4 rests on a number of their own, level3 on all else and on a human's word."""
    matches = around.linkage.matches
    own = [matches[pair] for other in group if (pair := ordered(member, other)) in matches]
    return max((match.assurance for match in own if match.assurance), default="level3")


def _retired(person: dict[str, Any], groups: dict[str, list[str]]) -> dict[str, Any]:
    """A Person without members, pointing to the one that took over the first of them, if any did."""
    before = members(person)
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


async def _parted(around: Surroundings, person: Stored, groups: dict[str, list[str]], owner: str | None) -> list[Op]:
    """Tell a human of members that a Person loses: what was done for one may have been meant for the other."""
    where = {member: id for id, group in groups.items() for member in group}
    operations: list[Op] = []
    for a, b in combinations(sorted(members(person.tree)), 2):
        if a in where and where[a] == where.get(b):
            continue
        here = [f"Patient/{id}" for id in (a, b) if id in around.patients]
        deliveries = await told_while_linked(around.store, person, a, b)
        listed = (
            f" Sent while they were linked: {len(deliveries)}, listed here; nothing of it can be unsent." if deliveries else ""
        )
        told = await human.tell(
            around.store,
            (APART, person.id, str(person.version), a, b),
            APART,
            APART_DISPLAY,
            "The two records are no longer taken for one person: one of them changed, another like it appeared, or somebody said so. "
            f"Nothing goes from one to the other any more.{listed} Check what was exchanged for them.",
            focus=here[-1] if here else None,
            patient=here[0] if here else None,
            owner=owner,
        )
        operations += (
            [Put(check_tree({**put.resource.tree, "input": deliveries}), put.if_version) for put in told] if deliveries else told
        )
    return operations


async def _who_decided(store: Store, task: Stored, change: Change, operations: Sequence[Op]) -> list[Op]:
    """A Provenance that tells whose word made these Persons what they are."""
    written = [one.resource.tree for one in operations if isinstance(one, Put) and one.resource.type == "Person"]
    tree = task.tree
    said = {
        "same": "A human decided that two records are of one person",
        "different": "A human decided that they are of two people",
    }
    who = tree.get("owner") if "Practitioner" in tree.get("owner", {}).get("reference", "") else {"display": change.origin}
    return [
        Put(
            check_tree(
                {
                    "resourceType": "Provenance",
                    "id": human.stable_id("Provenance", "decided", person["id"], task.id, str(task.version)),
                    "target": [{"reference": f"Person/{person['id']}"}],
                    "recorded": human.instant(store.clock()),
                    "activity": {"text": said[review.answer(tree) or "different"]},
                    "agent": [{"who": who}],
                    "entity": [{"role": "source", "what": {"reference": f"Task/{task.id}"}}],
                }
            )
        )
        for person in written
    ]
