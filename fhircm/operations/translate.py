"""$translate: what a code is in another code system. https://hl7.org/fhir/R4/conceptmap-operation-translate.html"""

from __future__ import annotations

from collections.abc import Iterator

from fhircm.fhir.outcome import NotSupported
from fhircm.fhir.terminology import builtin
from fhircm.fhir.terminology.artefacts import Artefact, Tree, best, canonical
from fhircm.fhir.terminology.library import Library, Wanted
from fhircm.fhir.terminology.translation import NO_MATCH, Match, Question, fits
from fhircm.fhir.terminology.translation import translate as by_maps
from fhircm.fhir.terminology.validation import Asked
from fhircm.operations.call import Answer, Call, parameters
from fhircm.operations.terms import artefact, codings, member, present


async def translate(call: Call) -> Answer:
    """The matches of a code, of a coding, or of the codings of a concept: by one map, or by all that fit."""
    asked = codings(call)
    named = call.id or call.one("url") or call.one("conceptMap")
    maps = (
        [(await artefact(call, "ConceptMap", "conceptMap", "conceptMapVersion"))[1]] if named else await _of_systems(call, asked)
    )
    source, target, reverse = call.one("source"), call.one("target"), call.one("reverse", False)
    maps = [one for one in maps if fits(one, source, target, reverse=reverse)]
    if not maps:
        return _answer([], "There is no concept map here for this system and what it is to be translated to")
    library = await _others(call, maps)
    questions = [_question(call, one) for one in asked]
    found = [match for one in questions for match in by_maps(maps, one, lambda url: library.find("ConceptMap", canonical(url)))]
    return _answer(found, None if found else "The concept maps have no match for this code")


async def _of_systems(call: Call, asked: list[Asked]) -> list[Artefact]:
    """The maps from or to the systems of the codings, the newest active version of each."""
    systems = sorted({one.system for one in asked if one.system})
    if not systems or not (call.one("target") or call.one("targetsystem") or call.one("source")):
        raise NotSupported("A concept map is needed, by 'url'; or the system of the code, and 'target' or 'targetsystem'")
    by_url: dict[str, list[Artefact]] = {}
    for system in systems:
        for one in await call.store.concept_maps(system):
            by_url.setdefault(one.url or one.identity, []).append(one)
    for one in [one for system in systems for one in builtin.concept_maps(system)]:
        by_url.setdefault(one.url, [one])
    return [found for listed in by_url.values() if (found := best(listed, None))]


async def _others(call: Call, maps: list[Artefact]) -> Library:
    """The maps in which these go on, for the codes that they do not have."""
    urls = {group.get("unmapped", {}).get("url") for one in maps for group in one.tree.get("group", ())}
    return await call.store.library(*(Wanted("ConceptMap", canonical(url).url) for url in sorted(url for url in urls if url)))


def _question(call: Call, asked: Asked) -> Question:
    given = [
        (next((part.value for part in one.parts if part.name == "element"), ""), coding.get("system", ""), coding.get("code", ""))
        for one in call.arguments
        if one.name == "dependency"
        for part in one.parts
        if part.name == "concept"
        for coding in part.value.get("coding", ())
    ]
    return Question(asked.code, asked.system, asked.version, call.one("targetsystem"), call.one("reverse", False), tuple(given))


def _answer(found: list[Match], message: str | None) -> Answer:
    result = any(one.equivalence not in NO_MATCH for one in found)
    told = present([member("result", "boolean", result), member("message", "string", message)])
    return parameters(*told, *({"name": "match", "part": list(_parts(one))} for one in found))


def _parts(match: Match) -> Iterator[Tree]:
    yield member("equivalence", "code", match.equivalence)
    if "code" in match.coding:
        yield member("concept", "Coding", match.coding)
    for product in match.products:
        parts = [member("element", "uri", product["element"]), member("concept", "Coding", product["concept"])]
        yield {"name": "product", "part": present(parts)}
    if match.source:
        yield member("source", "uri", match.source)
