"""What a code is elsewhere, by concept maps. https://hl7.org/fhir/R4/conceptmap-operation-translate.html"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fhircm.fhir.terminology.artefacts import Artefact, Tree, canonical

HOPS = 10  # maps that go on in one another, for codes that they do not have
NO_MATCH = frozenset({"unmatched", "disjoint"})
# What a map says from its source is the other way round from its target.
_REVERSED = {"wider": "narrower", "narrower": "wider", "subsumes": "specializes", "specializes": "subsumes"}

MapByUrl = Callable[[str], Artefact | None]


@dataclass(frozen=True, slots=True)
class Question:
    """A code to be translated. None: of any system or version, to any target; `given`: what is known besides, (element, system, code)."""

    code: str
    system: str | None
    version: str | None = None
    target_system: str | None = None
    reverse: bool = False
    given: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """A code that it is elsewhere, how well that fits, what it brings along, and the map that says so."""

    equivalence: str
    coding: Tree
    products: tuple[Tree, ...] = ()
    source: str = ""


def translate(maps: Iterable[Artefact], question: Question, by_url: MapByUrl) -> list[Match]:
    """What the maps say, each match once."""
    found = [match for one in maps for match in _Translator(by_url).matches(one, question)]
    seen: dict[str, Match] = {}
    for match in found:
        seen.setdefault(repr((match.equivalence, match.coding.get("system"), match.coding.get("code"))), match)
    return list(seen.values())


def fits(map: Artefact, source: str | None, target: str | None, *, reverse: bool) -> bool:
    """Whether a map is between these value sets."""
    if reverse:
        source, target = target, source
    return all(
        wanted is None
        or canonical(wanted).url in {canonical(map.tree.get(f"{side}{kind}", "")).url for kind in ("Canonical", "Uri")}
        for side, wanted in (("source", source), ("target", target))
    )


@dataclass(slots=True)
class _Translator:
    by_url: MapByUrl
    passed: set[str] = field(default_factory=set)

    def matches(self, map: Artefact, question: Question) -> Iterator[Match]:
        if map.identity in self.passed or len(self.passed) > HOPS:
            return
        self.passed.add(map.identity)
        for group in map.tree.get("group", ()):
            source, target = group.get("source"), group.get("target")
            here, there = (target, source) if question.reverse else (source, target)
            version = group.get("targetVersion" if question.reverse else "sourceVersion")
            if _is(question.system, here) and _is(question.target_system, there) and _is(question.version, version):
                yield from self._reversed(map, group, question) if question.reverse else self._of_group(map, group, question)

    def _reversed(self, map: Artefact, group: Tree, question: Question) -> Iterator[Match]:
        for element in group.get("element", ()):
            for target in element.get("target", ()):
                if target.get("code") == question.code and "code" in element and _depends(target, question.given):
                    equivalence = target.get("equivalence", "relatedto")
                    yield _match(map, _REVERSED.get(equivalence, equivalence), group.get("source"), element)

    def _of_group(self, map: Artefact, group: Tree, question: Question) -> Iterator[Match]:
        elements = [one for one in group.get("element", ()) if one.get("code") == question.code]
        if not elements:
            yield from self._unmapped(map, group, question)
        for element in elements:
            for target in element.get("target", ()):
                if _depends(target, question.given):
                    yield _match(map, target.get("equivalence", "relatedto"), group.get("target"), target)

    def _unmapped(self, map: Artefact, group: Tree, question: Question) -> Iterator[Match]:
        """What the group says of codes that it does not have."""
        unmapped = group.get("unmapped", {})
        match unmapped.get("mode"):
            case "provided":
                yield _match(map, "equal", group.get("target"), {"code": question.code})
            case "fixed":
                yield _match(map, "inexact", group.get("target"), unmapped)
            case "other-map":
                other = self.by_url(unmapped.get("url", ""))
                yield from self.matches(other, question) if other else ()


def _is(wanted: str | None, said: str | None) -> bool:
    """Whether a map says nothing that contradicts what is asked."""
    return wanted is None or said is None or wanted == said


def _match(map: Artefact, equivalence: str, system: str | None, target: Tree) -> Match:
    tree = {"system": system} if system else {}
    tree |= {name: target[name] for name in ("code", "display") if name in target}
    return Match(equivalence, tree, tuple(_product(one) for one in target.get("product", ())), map.canonical)


def _product(tree: Tree) -> Tree:
    concept = {"system": tree.get("system"), "code": tree.get("value"), "display": tree.get("display")}
    return {"element": tree.get("property"), "concept": {name: value for name, value in concept.items() if value}}


def _depends(target: Tree, given: Sequence[tuple[str, str, str]]) -> bool:
    """Whether all that the mapping depends on was given."""
    return all(
        any(
            (element, code) == (one.get("property"), one.get("value")) and one.get("system", system) == system
            for element, system, code in given
        )
        for one in target.get("dependsOn", ())
    )
