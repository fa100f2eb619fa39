"""$lookup and $subsumes: what a code system says of a code, and of two codes which is a kind of the other.

https://hl7.org/fhir/R4/codesystem-operation-lookup.html and https://hl7.org/fhir/R4/codesystem-operation-subsumes.html
"""

from __future__ import annotations

from collections.abc import Iterator

from fhircm.fhir.outcome import NotFound, NotSupported
from fhircm.fhir.terminology.artefacts import Tree
from fhircm.fhir.terminology.code_system import CodeSystem, Concept
from fhircm.fhir.terminology.expansion import Member
from fhircm.fhir.terminology.listing import display, speaks
from fhircm.fhir.terminology.validation import Asked, coding
from fhircm.operations.call import Answer, Call, parameters
from fhircm.operations.terms import artefact, code_system, codings, member, present, with_codes


async def lookup(call: Call) -> Answer:
    """The name, words and properties of a code; of the properties those that are asked for, or all."""
    (asked,) = codings(call)
    system = await code_system(call, asked.system, asked.version)
    concept = _concept(system, asked.code)
    wanted, language = frozenset(call.all("property")), call.one("displayLanguage")
    words = display(Member(system.url, system.version, concept.code, concept.display, concept), language) or concept.code
    known = [
        member("name", "string", system.tree.get("title") or system.tree.get("name") or system.url),
        member("version", "string", system.version),
        member("display", "string", words),
    ]
    return parameters(*present(known), *_designations(concept, wanted), *_properties(concept, wanted))


def _concept(system: CodeSystem, code: str) -> Concept:
    concept = system.find(code)
    if concept is None:
        raise NotFound(f"The code system {system.canonical} has no such code here")
    return concept


def _designations(concept: Concept, wanted: frozenset[str]) -> Iterator[Tree]:
    languages = [name.removeprefix("lang.") for name in wanted if name.startswith("lang.")]
    for one in concept.designations:
        if not wanted or "designation" in wanted or any(speaks(one, language) for language in languages):
            parts = [member("language", "code", one.get("language")), member("use", "Coding", one.get("use"))]
            yield {"name": "designation", "part": present([*parts, member("value", "string", one.get("value"))])}


def _properties(concept: Concept, wanted: frozenset[str]) -> Iterator[Tree]:
    """What the code system states, and what follows from how it is ordered."""
    stated = [
        (one.get("code", ""), name, one[name])
        for one in concept.tree.get("property", ())
        for name in one
        if name.startswith("value")
    ]
    told = {code for code, _, _ in stated}
    implied = [("parent", "valueCode", code) for code in concept.parents] + [
        ("child", "valueCode", code) for code in concept.children
    ]
    if "inactive" not in told:
        implied.append(("inactive", "valueBoolean", concept.inactive))
    if "definition" in concept.tree:
        implied.append(("definition", "valueString", concept.tree["definition"]))
    for code, name, value in [one for one in stated if one[0] not in ("parent", "child")] + implied:
        if not wanted or code in wanted:
            yield {"name": "property", "part": [member("code", "code", code), {"name": "value", name: value}]}


async def subsumes(call: Call) -> Answer:
    """How code A relates to code B: equivalent, subsumes, subsumed-by or not-subsumed."""
    one, other = _of_two(call, "A"), _of_two(call, "B")
    systems = {asked.system for asked in (one, other) if asked.system}
    if len(systems) > 1:
        raise NotSupported("Two codes of different code systems cannot be compared")
    if call.id:
        _, found = await artefact(call, "CodeSystem", "codeSystem", "version")
        system = with_codes(found)
        if systems - {system.url}:
            raise NotSupported(f"The codes must be of the code system {system.url}")
    else:
        system = await code_system(call, next(iter(systems), None), one.version or other.version)
    codes = [_concept(system, asked.code).code for asked in (one, other)]
    return parameters(member("outcome", "code", system.subsumes(*codes)))


def _of_two(call: Call, which: str) -> Asked:
    code, tree = call.one(f"code{which}"), call.one(f"coding{which}")
    if (code is None) == (tree is None):
        raise NotSupported(f"One of 'code{which}' and 'coding{which}' is needed")
    return coding(tree) if tree else Asked(call.one("system"), call.one("version"), code, None)
