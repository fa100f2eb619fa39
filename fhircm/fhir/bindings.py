"""Whether codes come from the value sets that profiles bind them to, as far as their codes can be listed here.

https://hl7.org/fhir/R4/terminologies.html#strength. Value sets and code systems are those of the guides in force and those that are built in.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fhircm.fhir import guides, json
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.terminology.artefacts import Artefact, canonical
from fhircm.fhir.terminology.code_system import compiled
from fhircm.fhir.terminology.expansion import expand
from fhircm.fhir.terminology.library import Library, Versions, Wanted

Tree = dict[str, Any]
Codes = frozenset[tuple[str, str]]  # system and code


class Unlisted(Exception):
    """The codes of a value set cannot be listed here; the message says why."""


def codes_of(value_set: str, contained: Tree | None = None) -> Codes:
    """The codes of a value set, by its canonical URL, or of the one that a profile contains. Raises Unlisted."""
    if contained is not None:
        return _codes(compiled(contained, f"contained {value_set}"), _library(guides.in_force()))
    found = _listed(value_set, guides.in_force())
    if isinstance(found, str):
        raise Unlisted(found)
    return found


@lru_cache(maxsize=1024)
def _listed(value_set: str, around: guides.InForce) -> Codes | str:
    """The codes; or why they cannot be listed."""
    library = _library(around)
    found = library.find("ValueSet", canonical(value_set))
    if found is None:
        return "the value set is not known here"
    try:
        return _codes(found, library)
    except Unlisted as reason:
        return str(reason)


def _codes(value_set: Artefact, library: Library) -> Codes:
    try:
        return frozenset((one.system, one.code) for one in expand(library, value_set, Versions()).members.values())
    except FhirError as error:
        raise Unlisted(str(error)) from None


@lru_cache(maxsize=2)
def _library(around: guides.InForce) -> Library:
    stored: dict[Wanted, list[Artefact]] = {}
    for guide in around.guides:
        for one in guide.artefacts:
            if one.type in ("ValueSet", "CodeSystem"):
                stored.setdefault(Wanted(one.type, one.url), []).append(
                    compiled(json.loads(one.body), f"{one.url}|{one.version}")
                )
    return Library(stored)


def codings(value: Any) -> Iterator[tuple[str | None, str]]:
    """The codes of a code, Coding, CodeableConcept or Quantity; without a system (None) for a code, whose system is that of its value set."""
    if isinstance(value, str):
        yield None, value
    elif isinstance(value, dict):
        if "coding" in value:
            for one in value["coding"]:
                yield from codings(one)
        elif "code" in value:
            yield value.get("system", ""), value["code"]


def is_bound(value: Any, codes: Codes) -> bool:
    """Whether one of the codes of a value is in a value set."""
    return any((system, code) in codes if system is not None else code in _bare(codes) for system, code in codings(value))


@lru_cache(maxsize=256)
def _bare(codes: Codes) -> frozenset[str]:
    return frozenset(code for _, code in codes)
