"""The language of `_filter`: tests joined by and, or and not, which become the same conditions as other parameters.

https://hl7.org/fhir/R4/search_filter.html

As that page says, `and` and `or` are taken from left to right, neither before the other, and every test is asked of the *set* of
values that its path leads to. So all operators but `pr false` and `ni` need a value that fulfils them: `gender ne male` finds nobody whose
gender is not known, `not (gender eq male)` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fhircm.fhir.asked import value_condition
from fhircm.fhir.conditions import (
    LENGTH_LIMIT,
    AllOf,
    Chained,
    Condition,
    IdTest,
    InvalidValue,
    Matches,
    Missing,
    SpanTest,
    Test,
    TextTest,
    TokenTest,
    Unlike,
    UriTest,
    all_of,
    any_of,
    opposite,
)
from fhircm.fhir.extract import Extractor
from fhircm.fhir.filter_syntax import Comparison, Joined, Negated, Node, Step, parse_filter
from fhircm.fhir.outcome import NotSupported
from fhircm.fhir.ranges import normalise

TESTS_LIMIT = 100  # tests in one filter, those of each type that a chain can lead to counted on their own
LINKS_LIMIT = 3  # of a chain

_COMPARED = frozenset({"eq", "ne", "gt", "lt", "ge", "le"})
_MEASURED = _COMPARED | {"ap", "sa", "eb"}
_OPERATORS = {
    "string": _COMPARED | {"co", "sw", "ew"},
    "number": _MEASURED,
    "quantity": _MEASURED,
    "date": _MEASURED | {"co", "po"},
    "token": frozenset({"eq", "ne", "in", "ni", "ss", "sb"}),
    "reference": frozenset({"re", "eq"}),
    "uri": frozenset({"eq", "ne"}),
}
# What is asked of the meaning of codes, as the modifier that asks the same: the value subsumes what is below it.
_TERMINOLOGY = {"in": "in", "ni": "not-in", "ss": "below", "sb": "above"}
_HOW = {"eq": "equal", "ne": "equal", "co": "contains", "sw": "start", "ew": "end"}
_SYSTEMS = {
    "loinc": "http://loinc.org",
    "snomed": "http://snomed.info/sct",
    "rxnorm": "http://www.nlm.nih.gov/research/umls/rxnorm",
    "ucum": "http://unitsofmeasure.org",
}

FindParameter = Callable[[str, str], Extractor]  # of a type and a code; raises NotSupported
FindTargets = Callable[[str, str, str], tuple[str, ...]]  # of a type, a code and the place to tell; raises NotSupported


def read_filter(text: str, type: str, find: FindParameter, targets: FindTargets, base_url: str | None) -> Condition:
    """The condition that a filter asks of resources of a type. Raises InvalidValue, and NotSupported for what is not there.

    Both tell the place in the filter, counted in characters from 1, and never a value.
    """
    return _Reader(find, targets, base_url).condition(type, parse_filter(text), 0)


@contextmanager
def _told(at: int) -> Iterator[None]:
    """Adds the place to an error."""
    try:
        yield
    except (InvalidValue, NotSupported) as error:
        raise error.__class__(f"{error} (at character {at} of '_filter')") from None


@dataclass(slots=True)
class _Reader:
    """Turns tests into conditions; `tests` counts them."""

    find: FindParameter
    targets: FindTargets
    base_url: str | None
    tests: int = field(default=0)

    def condition(self, type: str, node: Node, links: int) -> Condition:
        match node:
            case Joined(word, parts):
                conditions = [self.condition(type, part, links) for part in parts]
                return all_of(conditions) if word == "and" else any_of(conditions)
            case Negated(part):
                return opposite(self.condition(type, part, links))
            case Comparison():
                found = self.along(type, node.path, node, links)
                return opposite(found) if node.operator == "pr" and node.value == "false" else found

    def along(self, type: str, path: tuple[Step, ...], test: Comparison, links: int) -> Condition:
        """A path in every type that it can lead to and in which the rest of it has a meaning."""
        step, *rest = path
        if not rest:
            return self.compared(type, step, test)
        with _told(step.at):
            if links >= LINKS_LIMIT:
                raise NotSupported(f"Chains are followed over at most {LINKS_LIMIT} links")
            leads_to = self.targets(type, step.name, f"{step.name}.{rest[0].name}")
        alternatives: list[tuple[str, Condition]] = []
        refusal: NotSupported | None = None
        for target in leads_to:
            try:
                inner = self.along(target, tuple(rest), test, links + 1)
                if step.filter is not None:
                    inner = all_of((self.condition(target, step.filter, links + 1), inner))
                alternatives.append((target, inner))
            except NotSupported as error:
                refusal = error
        if not alternatives:
            raise refusal or NotSupported(f"'{step.name}' of {type} leads to no type that is known (at character {step.at})")
        return Chained(type, step.name, tuple(alternatives))

    def compared(self, type: str, step: Step, test: Comparison) -> Condition:
        """One test of one parameter."""
        self.tests += 1
        if self.tests > TESTS_LIMIT:
            raise InvalidValue(f"'_filter' asks for more than {TESTS_LIMIT} tests")
        with _told(step.at):
            extractor = self.find(type, step.name)
        with _told(test.operator_at):
            _check_operator(extractor, step.name, test.operator)
        with _told(test.value_at):
            if test.operator == "pr":
                return _present(type, step.name, extractor, test.value)
            if extractor.definition.type == "string":
                return Matches(type, step.name, (_text_test(step.name, test.operator, test.value),))
            return self.as_parameter(type, step.name, extractor, test)

    def as_parameter(self, type: str, name: str, extractor: Extractor, test: Comparison) -> Condition:
        """The test as the parameter itself would ask it, in which a comma stands between alternatives and a backslash escapes."""
        kind, modifier = extractor.definition.type, _TERMINOLOGY.get(test.operator, "")
        text = _written(test.value) if kind in ("token", "quantity") else re.sub(r"([\\,|$])", r"\\\1", test.value)
        if kind in ("date", "number", "quantity"):
            text = (test.operator if test.operator in _MEASURED else "eq") + text
        found = value_condition(type, name, modifier, extractor, text, self.base_url)
        if not isinstance(found, Matches):
            return found
        return replace(found, tests=tuple(_turned(asked, test.operator) for asked in found.tests))


def _check_operator(extractor: Extractor, name: str, operator: str) -> None:
    kind = extractor.definition.type
    possible = _OPERATORS.get(kind, frozenset()) | {"pr"}
    if operator not in possible:
        raise NotSupported(f"'{name}' is a {kind} parameter, which has no '{operator}'; it has: {', '.join(sorted(possible))}")


def _present(type: str, name: str, extractor: Extractor, value: str) -> Condition:
    """That there is a value at all: what `pr true` asks; `pr false` is its opposite."""
    if value not in ("true", "false"):
        raise InvalidValue("'pr' takes true or false")
    return Missing(type, name, False) if extractor.sources else AllOf(())  # every resource has an id and was updated once


def _turned(test: Test, operator: str) -> Test:
    """What a parameter cannot ask: a time that contains or overlaps, a token or URI that there is and that is another."""
    match test:
        case SpanTest() if operator in ("co", "po"):
            return replace(test, prefix=operator)
        case TokenTest() | UriTest() | IdTest() if operator == "ne":
            return Unlike(test)
    return test


def _text_test(name: str, operator: str, value: str) -> TextTest | Unlike:
    if "\0" in value or len(value) > LENGTH_LIMIT:
        raise InvalidValue(f"'{name}' takes at most {LENGTH_LIMIT} characters, none of them U+0000")
    folded = normalise(value)
    if not folded:
        raise InvalidValue(f"'{name}' takes some text")
    test = TextTest(folded, _HOW.get(operator, operator))
    return Unlike(test) if operator == "ne" else test


def _written(value: str) -> str:
    """A token or quantity as a parameter has it: commas escaped, and the short names of systems written out."""
    escaped = re.sub(r"\\.|,", lambda found: found[0] if len(found[0]) > 1 else r"\,", value)
    parts = re.split(r"(?<!\\)\|", escaped)
    return "|".join(_SYSTEMS.get(part, part) if at < len(parts) - 1 else part for at, part in enumerate(parts))
