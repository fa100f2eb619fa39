"""The filters by which a value set takes concepts out of a code system. https://hl7.org/fhir/R4/valueset-filter-operator.html"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jsonschema_rs

from fhircm.fhir.terminology.artefacts import CannotCompute, Tree
from fhircm.fhir.terminology.code_system import CodeSystem, Concept

REGEX_SIZE = 1_000_000  # bytes of a compiled expression; the engine matches in linear time, so no text can make it slow

Test = Callable[[Concept], bool]


def filtered(system: CodeSystem, filters: Iterable[Tree]) -> list[Concept]:
    """The concepts that pass all filters, in the order of the code system. Raises CannotCompute."""
    tests = [_test(system, one.get("property", ""), one.get("op", ""), one.get("value", "")) for one in filters]
    return [concept for concept in system.concepts.values() if all(test(concept) for test in tests)]


def _test(system: CodeSystem, name: str, op: str, value: str) -> Test:
    match op:
        case "is-a":
            return _within(system.below(value))
        case "descendent-of":
            return _within(system.below(value) - _self(system, value))
        case "is-not-a":
            return _without(system.below(value))
        case "generalizes":
            return _within(system.above(value))
        case "=":
            return lambda concept: value in _texts(concept, name)
        case "in":
            listed = {part.strip() for part in value.split(",")}
            return lambda concept: not listed.isdisjoint(_texts(concept, name))
        case "not-in":
            listed = {part.strip() for part in value.split(",")}
            return lambda concept: listed.isdisjoint(_texts(concept, name))
        case "exists":
            return lambda concept: bool(concept.values(name)) == (value == "true")
        case "regex":
            return _regex(name, value)
    raise CannotCompute(f"The filter operator '{op[:32]}' is not one that can be computed here")


def _self(system: CodeSystem, code: str) -> set[str]:
    found = system.find(code)
    return {found.code if found else code}


def _within(codes: set[str]) -> Test:
    return lambda concept: concept.code in codes


def _without(codes: set[str]) -> Test:
    return lambda concept: concept.code not in codes


def _texts(concept: Concept, name: str) -> list[str]:
    """The values of a property as a filter writes them: a Coding by its code, a flag as true or false."""
    return [_text(value) for value in concept.values(name)]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("code", ""))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _regex(name: str, pattern: str) -> Test:
    """The whole value must match. The engine is Rust's: without backtracking, and without what needs it."""
    options = jsonschema_rs.RegexOptions(size_limit=REGEX_SIZE)
    try:
        rule = jsonschema_rs.validator_for({"type": "string", "pattern": f"^(?:{pattern})$"}, pattern_options=options)
    except ValueError:
        raise CannotCompute("A filter holds a regular expression that cannot be matched in linear time") from None
    return lambda concept: any(rule.is_valid(text) for text in _texts(concept, name))
