"""Which codes mean the same, and which is the broader of two: as far as concept maps and code systems at the hub know.

https://hl7.org/fhir/R4/conceptmap-operation-translate.html and https://hl7.org/fhir/R4/codesystem-operation-subsumes.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.terminology import builtin
from fhircm.fhir.terminology.artefacts import Artefact, best, canonical
from fhircm.fhir.terminology.library import Library, Wanted
from fhircm.fhir.terminology.translation import Question, translate
from fhircm.store.operations import Narrowing
from fhircm.store.resources import Store

Code = tuple[str, str]  # system and code
_SAME = frozenset({"equal", "equivalent"})
_WIDER = frozenset({"wider", "subsumes"})  # the target of the map is the broader one
_NARROWER = frozenset({"narrower", "specializes"})


@dataclass(frozen=True, slots=True)
class Terms:
    """`meaning`: for a code the one that stands for all that mean the same; `broader`: pairs (narrower, broader) of such codes."""

    meaning: Mapping[Code, Code] = field(default_factory=dict)
    broader: frozenset[tuple[Code, Code]] = frozenset()

    def of(self, codes: Iterable[Code]) -> frozenset[Code]:
        """What these codes mean."""
        return frozenset(self.meaning.get(one, one) for one in codes)

    def around(self, codes: Iterable[Code]) -> frozenset[Code]:
        """What these codes mean, and whatever is broader than that."""
        meant = self.of(codes)
        return meant | {broad for narrow, broad in self.broader if narrow in meant}

    def related(self, some: Iterable[Code], others: Iterable[Code]) -> bool:
        """Whether one of these means the same as, or is broader or narrower than, one of those."""
        mine, theirs = self.of(some), self.of(others)
        if mine & theirs:
            return True
        return any((a in mine and b in theirs) or (a in theirs and b in mine) for a, b in self.broader)


async def known(store: Store, codes: Iterable[Code]) -> Terms:
    """What the terminology of the hub knows of these codes; what it cannot compute it does not know."""
    asked = sorted({(system, code) for system, code in codes if system and code})
    systems = sorted({system for system, _ in asked})
    maps = [one for system in systems for one in await _maps(store, system)]
    equal: dict[Code, set[Code]] = {}
    broader: set[tuple[Code, Code]] = set()
    for system, code in asked:
        for match in translate(maps, Question(code, system), lambda _: None):
            to = (match.coding.get("system", ""), match.coding.get("code", ""))
            if match.equivalence in _SAME:
                _join(equal, (system, code), to)
            elif match.equivalence in _WIDER:
                broader.add(((system, code), to))
            elif match.equivalence in _NARROWER:
                broader.add((to, (system, code)))
    broader |= await _hierarchies(store, asked)
    meaning = {one: min(group) for one, group in equal.items()}
    pairs = ((meaning.get(a, a), meaning.get(b, b)) for a, b in broader)
    return Terms(meaning, frozenset(pair for pair in pairs if pair[0] != pair[1]))


def _join(equal: dict[Code, set[Code]], one: Code, other: Code) -> None:
    group = equal.setdefault(one, {one}) | equal.setdefault(other, {other})
    for code in group:
        equal[code] = group


async def _maps(store: Store, system: str) -> list[Artefact]:
    """The maps from or to a system, of each the newest active version."""
    by_url: dict[str, list[Artefact]] = {}
    within = Narrowing(dict.fromkeys(definitions().resource_types, ()))
    for one in (*await store.concept_maps(system, within), *builtin.concept_maps(system)):
        by_url.setdefault(one.url or one.identity, []).append(one)
    return [found for listed in by_url.values() if (found := best(listed, None)) and found.status != "retired"]


async def _hierarchies(store: Store, codes: list[Code]) -> set[tuple[Code, Code]]:
    """(narrower, broader) among codes of one system, by the code systems that are at the hub with their codes."""
    by_system: dict[str, set[str]] = {}
    for system, code in codes:
        by_system.setdefault(system, set()).add(code)
    several = [system for system, of in sorted(by_system.items()) if len(of) > 1]
    found: set[tuple[Code, Code]] = set()
    for system in several:
        library = Library()
        with suppress(FhirError):  # too large to be gathered: then nothing is known
            library = await store.library([Wanted("CodeSystem", canonical(system).url)], None)
        concepts = library.code_system(system)
        if concepts is None or not concepts.concepts:
            continue
        here = sorted(code for code in by_system[system] if code in concepts.concepts)
        for code in here:
            found |= {((system, code), (system, broad)) for broad in concepts.above(code) & set(here) if broad != code}
    return found
