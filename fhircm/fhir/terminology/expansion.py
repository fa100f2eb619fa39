"""The expansion of a value set: every code that belongs to it, in a stable order.

https://hl7.org/fhir/R4/valueset.html#expansion and #compositions
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fhircm.fhir.outcome import TooCostly
from fhircm.fhir.terminology.artefacts import Artefact, CannotCompute, Canonical, Tree, canonical
from fhircm.fhir.terminology.code_system import CodeSystem, Concept
from fhircm.fhir.terminology.filters import filtered
from fhircm.fhir.terminology.library import Library, Versions

LIMIT = 100_000  # codes of a value set that are counted through; more would hold up everybody else
DEPTH = 50  # value sets that include one the other
PARTS = ("fragment", "example")  # of a code system some codes are here
PARTIAL = frozenset({"toocostly", "unclosed"})

Key = tuple[str, str]  # system and code


@dataclass(slots=True, eq=False)
class Member:
    """A code of a value set; `concept` is what the code system says of it, where the code system is here."""

    system: str
    version: str | None
    code: str
    display: str | None
    concept: Concept | None = None
    own: tuple[Tree, ...] = ()  # designations that the value set gives
    marked: frozenset[str] = frozenset()  # inactive, abstract: as a stored expansion says

    @property
    def inactive(self) -> bool:
        """Whether it is in the code system still, but not to be used any more."""
        return self.concept.inactive if self.concept else "inactive" in self.marked

    @property
    def abstract(self) -> bool:
        """Whether it groups others and is no choice itself."""
        return self.concept.abstract if self.concept else "abstract" in self.marked

    @property
    def designations(self) -> list[Tree]:
        """Other words for it."""
        return [*self.own, *(self.concept.designations if self.concept else ())]


Members = dict[Key, Member]


@dataclass(slots=True)
class Expansion:
    """All members in order, and what they were taken from: code systems, those of which only a part is here, and value sets as they were stored."""

    members: Members = field(default_factory=dict)
    systems: set[Canonical] = field(default_factory=set)
    parts: set[Canonical] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)


def expand(
    library: Library,
    value_set: Artefact,
    versions: Versions | None = None,
    without: Iterable[Canonical] = (),
    only: str | None = None,
) -> Expansion:
    """Compute a value set: without the codes of some systems, or those of one system `only`.

    Raises CannotCompute for what is not here, TooCostly for more codes than LIMIT.
    """
    work = _Work(library, versions or Versions(), frozenset(without), only)
    work.found.members = work.members(value_set, ())
    return work.found


@dataclass(slots=True)
class _Work:
    library: Library
    versions: Versions
    without: frozenset[Canonical]
    only: str | None
    found: Expansion = field(default_factory=Expansion)
    counted: int = 0
    known: dict[str, Members] = field(default_factory=dict)

    def members(self, value_set: Artefact, above: tuple[str, ...]) -> Members:
        """The members of a value set that `above` leads to."""
        if value_set.identity in above:
            raise CannotCompute("A value set includes itself, by way of others")
        if len(above) > DEPTH:
            raise CannotCompute(f"Value sets include each other over more than {DEPTH} steps")
        if value_set.identity not in self.known:
            self.known[value_set.identity] = self._computed_or_stored(value_set, (*above, value_set.identity))
        return self.known[value_set.identity]

    def _computed_or_stored(self, value_set: Artefact, above: tuple[str, ...]) -> Members:
        compose, stored = value_set.tree.get("compose"), value_set.tree.get("expansion")
        try:
            if compose is None and stored is not None:
                raise CannotCompute("The value set has an expansion that is only a part of it")
            return self._composed(compose or {}, above)
        except CannotCompute:
            if stored is None or not _is_whole(stored):
                raise
            self.found.stored.add(value_set.canonical)
            return {(one.system, one.code): one for one in self._kept(_listed(stored))}

    def _kept(self, members: Iterable[Member]) -> Iterable[Member]:
        everything = self.only is None and not self.without
        return members if everything else (one for one in members if self._wants(one.system, one.version))

    def _wants(self, system: str, version: str | None) -> bool:
        if self.only is not None and system != self.only:
            return False
        return self.without.isdisjoint((Canonical(system), Canonical(system, version)))

    def _composed(self, compose: Tree, above: tuple[str, ...]) -> Members:
        members: Members = {}
        for part in compose.get("include", ()):
            for key, one in self._counted(self._part(part, above)).items():
                members.setdefault(key, one)
            if len(members) > LIMIT:
                raise TooCostly(f"The value set has more than {LIMIT} codes, which is the limit here")
        for part in compose.get("exclude", ()):
            for key in self._counted(self._part(part, above)):
                members.pop(key, None)
        if compose.get("inactive") is False:
            return {key: one for key, one in members.items() if not one.inactive}
        return members

    def _counted(self, members: Members) -> Members:
        """The members; all parts of all value sets together are limited too, for a few small ones can include a large one often."""
        self.counted += len(members)
        if self.counted > 10 * LIMIT:
            raise TooCostly(f"The value set is made of more than {10 * LIMIT} codes, many of them twice, which is the limit here")
        return members

    def _part(self, part: Tree, above: tuple[str, ...]) -> Members:
        """What one include or exclude says: everything in it must hold."""
        named = self._system(part["system"], part.get("version")) if "system" in part else None
        system = named.url if named else None
        if system is not None and self.only not in (None, system):
            return {}
        imported = [self._imported(canonical(text), above) for text in part.get("valueSet", ())]
        if named is None or (imported and not part.keys() & {"concept", "filter"}):
            first, *others = imported or [{}]
            return {key: one for key, one in first.items() if system in (None, key[0]) and all(key in other for other in others)}
        chosen = {(one.system, one.code): one for one in self._kept(self._of_system(named, part))}
        return {key: one for key, one in chosen.items() if all(key in other for other in imported)} if imported else chosen

    def _system(self, written: str, version: str | None) -> Canonical:
        """HL7's old v2 tables have a '|' in their URL; elsewhere it is a version, as published guides write it here and there."""
        if "|" in written and self.library.code_system(written) is None:
            return canonical(written, version)
        return Canonical(written, version)

    def _imported(self, wanted: Canonical, above: tuple[str, ...]) -> Members:
        found = self.library.find("ValueSet", wanted)
        if found is None:
            raise CannotCompute(f"The value set {wanted}, which is included, is not known here")
        return self.members(found, above)

    def _of_system(self, named: Canonical, part: Tree) -> Iterator[Member]:
        url, version = named.url, self.versions.of(*named)
        system = self.library.code_system(url, version)
        if "concept" in part:
            return self._named(url, version, system, part["concept"])
        if system is None:
            raise CannotCompute(f"The code system {Canonical(url, version)} is not known here")
        if system.content not in ("complete", *PARTS):
            raise CannotCompute(f"Of the code system {Canonical(url, version)} no codes are known here")
        self._used(system)
        if system.content in PARTS:
            self.found.parts.add(Canonical(system.url, system.version))
        concepts = filtered(system, part["filter"]) if "filter" in part else system.concepts.values()
        return (Member(url, system.version, one.code, one.display, one) for one in concepts)

    def _named(self, url: str, version: str | None, system: CodeSystem | None, listed: list[Tree]) -> Iterator[Member]:
        if system is not None:
            self._used(system)
        for one in listed:
            concept = system.find(one.get("code", "")) if system else None
            display = one.get("display") or (concept.display if concept else None)
            if "code" in one:
                code = concept.code if concept else one["code"]
                yield Member(
                    url, system.version if system else version, code, display, concept, tuple(one.get("designation", ()))
                )

    def _used(self, system: CodeSystem) -> None:
        self.found.systems.add(Canonical(system.url, system.version))


def _is_whole(stored: Tree) -> bool:
    """Whether a stored expansion says that it has all codes."""
    marks = {str(one.get("url", "")).rpartition("valueset-")[2] for one in stored.get("extension", ())}
    return not marks & PARTIAL and "contains" in stored and stored.get("total", 0) <= sum(1 for _ in _listed(stored))


def _listed(stored: Tree) -> Iterator[Member]:
    waiting = list(reversed(stored.get("contains", ())))
    while waiting:
        one = waiting.pop()
        waiting += reversed(one.get("contains", ()))
        if "code" in one and "system" in one:
            marked = frozenset(name for name in ("inactive", "abstract") if one.get(name) is True)
            yield Member(
                one["system"],
                one.get("version"),
                one["code"],
                one.get("display"),
                None,
                tuple(one.get("designation", ())),
                marked,
            )
