"""One test of a search parameter as SQL on one row of its table.

https://hl7.org/fhir/R4/search.html#prefix says what the prefixes mean for ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fhircm.fhir.conditions import (
    AmountTest,
    CodesTest,
    IdTest,
    NearTest,
    SpanTest,
    TargetTest,
    Test,
    TextTest,
    TokenTest,
    Unlike,
    UriTest,
    WordsTest,
)
from fhircm.fhir.ranges import normalise
from fhircm.fhir.values import START

Argument = Callable[[Any], str]  # turns a value into its placeholder, Listed ones into what a column is compared with
FEW = 50  # values that are worth an argument each


class Listed(tuple[str, ...]):
    """Texts, of any number, that go along as one argument: databases limit how many a statement may have."""


class OneOf(NamedTuple):
    """Tests that differ in their id alone: one list of ids, where a long row of ORs would take a planner ages."""

    ids: tuple[str, ...]
    like: TargetTest | IdTest


TABLES: dict[type, str] = {
    TokenTest: "search_token",
    CodesTest: "search_token",
    TargetTest: "search_reference",
    TextTest: "search_string",
    SpanTest: "search_date",
    AmountTest: "search_quantity",
    UriTest: "search_uri",
    NearTest: "search_position",
    WordsTest: "search_text",
}

_ROUNDING = 1e-11  # of the radius of the earth: less than 0.1 mm

# The search value is [{low}, {high}), the row is [low, high). Each form keeps one column within bounds, for the index.
_SPANS = {
    "eq": "{a}.low >= {low} AND {a}.low < {high} AND {a}.high <= {high}",
    "ne": "NOT ({a}.low >= {low} AND {a}.high <= {high})",
    "gt": "{a}.high > {high}",
    "lt": "{a}.low < {low}",
    "ge": "{a}.high > {low} AND ({a}.high > {high} OR {a}.low >= {low})",
    "le": "{a}.low < {high} AND ({a}.low < {low} OR {a}.high <= {high})",
    "sa": "{a}.low >= {high}",
    "eb": "{a}.high <= {low}",
    "ap": "{a}.low < {high} AND {a}.high > {low}",
    "po": "{a}.low < {high} AND {a}.high > {low}",
    "co": "{a}.low <= {low} AND {a}.high >= {high}",
}
_UPDATED = {
    "eq": "{a}.last_updated >= {low} AND {a}.last_updated < {high}",
    "ne": "({a}.last_updated < {low} OR {a}.last_updated >= {high})",
    "gt": "{a}.last_updated >= {high}",
    "lt": "{a}.last_updated < {low}",
    "ge": "{a}.last_updated >= {low}",
    "le": "{a}.last_updated < {high}",
    "sa": "{a}.last_updated >= {high}",
    "eb": "{a}.last_updated < {low}",
    "ap": "{a}.last_updated >= {low} AND {a}.last_updated < {high}",
    "po": "{a}.last_updated >= {low} AND {a}.last_updated < {high}",
    "co": "{a}.last_updated <= {low} AND {a}.last_updated + 1 >= {high}",
}
# The row is [low, high]: one point, except for a Range or a comparator.
_AMOUNTS = {
    "eq": "{a}.low >= {low} AND {a}.low < {top} AND {a}.high < {top}",
    "ne": "NOT ({a}.low >= {low} AND {a}.high < {top})",
    "gt": "{a}.high > {number}",
    "lt": "{a}.low < {number}",
    "ge": "{a}.high >= {number}",
    "le": "{a}.low <= {number}",
    "sa": "{a}.low > {number}",
    "eb": "{a}.high < {number}",
    "ap": "{a}.low <= {top} AND {a}.high >= {low}",
}


_COMPARED = {"gt": ">", "lt": "<", "ge": ">=", "le": "<="}


def table_of(test: Test) -> str:
    """The table that holds the rows of a test."""
    return TABLES[type(test.test if isinstance(test, Unlike) else test)]


def row_test(test: Test | OneOf, a: str, argument: Argument) -> str:
    """The test on the row with alias `a`, safe to stand beside AND."""
    match test:
        case TokenTest(codes, system):
            tests = [] if codes is None else [one_of(f"{a}.code", codes, argument)]
            tests += [] if system is None else [f"{a}.system = {argument(system)}"]
            return " AND ".join(tests)
        case CodesTest(codes, beside):
            column = f"{a}.code || ''" if beside else f"{a}.code"  # what is computed is in no index
            ways = [f"{a}.system = {argument(system)} AND {_any_of(column, listed, argument)}" for system, listed in codes]
            return f"({' OR '.join(f'({way})' for way in ways) or '1 = 0'})"
        case TargetTest(target_id):
            return _target((target_id,), test, a, argument)
        case OneOf(ids, TargetTest() as like):
            return _target(ids, like, a, argument)
        case OneOf(ids, IdTest()):
            return _any_of(f"{a}.id", ids, argument)
        case TextTest(text, how):
            return _text(text, how, a, argument)
        case SpanTest(prefix, low, high):
            return _filled(_SPANS[prefix], a, argument, low=low, high=high)
        case AmountTest(prefix, number, low, high, system, code):
            compared = _filled(_AMOUNTS[prefix], a, argument, number=number, low=low, top=high)
            return compared + _unit(system, code, a, argument)
        case UriTest(uris, below):
            equal = one_of(f"{a}.uri", uris, argument)
            return equal if below is None else f"({equal} OR {begins(f'{a}.uri', below, argument)})"
        case NearTest():
            return _near(test, a, argument)
        case IdTest(id):
            return f"{a}.id = {argument(id)}"
        case Unlike(inner):
            return f"NOT ({row_test(inner, a, argument)})"
    raise TypeError(f"{type(test).__name__} must be resolved before it is asked")


def _target(ids: tuple[str, ...], like: TargetTest, a: str, argument: Argument) -> str:
    local = f"{a}.target_type <> ''" if like.types is None else one_of(f"{a}.target_type", like.types, argument)
    return f"{_any_of(f'{a}.target_id', ids, argument)} AND {local}"


def updated_test(test: SpanTest, a: str, argument: Argument) -> str:
    """The test of `_lastUpdated`, on the resource row with alias `a`."""
    return _filled(_UPDATED[test.prefix], a, argument, low=test.low, high=test.high)


def _filled(form: str, a: str, argument: Argument, **values: Any) -> str:
    """The form with placeholders for those of the values that it names."""
    return form.format(a=a, **{name: argument(value) for name, value in values.items() if "{" + name + "}" in form})


def one_of(column: str, values: Sequence[Any], argument: Argument) -> str:
    """The column has one of the values."""
    if len(values) == 1:
        return f"{column} = {argument(values[0])}"
    return f"{column} IN ({', '.join(argument(value) for value in values)})"


def _any_of(column: str, values: Sequence[str], argument: Argument) -> str:
    """The column has one of any number of values."""
    return one_of(column, values, argument) if len(values) <= FEW else f"{column} {argument(Listed(values))}"


def begins(column: str, start: str, argument: Argument) -> str:
    """The column begins with the text: a range, so that a plain index serves it."""
    return f"({column} >= {argument(start)} AND {column} < {argument(start + chr(0x10FFFF))})"


def _text(text: str, how: str, a: str, argument: Argument) -> str:
    if how == "exact":
        return f"{a}.start = {argument(normalise(text)[:START])} AND {a}.exact = {argument(text)}"
    if how in ("contains", "end"):
        escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        behind = "%" if how == "contains" else ""
        return f"{a}.normalised LIKE {argument(f'%{escaped}{behind}')} ESCAPE '\\'"
    if how in _COMPARED:
        return f"{a}.normalised {_COMPARED[how]} {argument(text)}"
    if how == "equal":
        return f"{a}.start = {argument(text[:START])} AND {a}.normalised = {argument(text)}"
    if len(text) <= START:
        return begins(f"{a}.start", text, argument)
    return f"{a}.start = {argument(text[:START])} AND {begins(f'{a}.normalised', text, argument)}"


def _unit(system: str | None, code: str, a: str, argument: Argument) -> str:
    if system is None:
        return ""
    if system == "":
        written = argument(code)
        return f" AND ({a}.code = {written} OR {a}.unit = {written})"
    return f" AND {a}.system = {argument(system)} AND {a}.code = {argument(code)}"


def _near(test: NearTest, a: str, argument: Argument) -> str:
    """A box around the place, for the index, and the distance itself; no function that a database may lack."""
    within, across = [], []
    for axis in "zxy":
        middle = getattr(test, axis)
        low, high = argument(middle - test.chord - _ROUNDING), argument(middle + test.chord + _ROUNDING)
        within.append(f"{a}.{axis} BETWEEN {low} AND {high}")
        at = argument(middle)
        across.append(f"({a}.{axis} - {at}) * ({a}.{axis} - {at})")
    return f"{' AND '.join(within)} AND {' + '.join(across)} <= {argument((test.chord + _ROUNDING) ** 2)}"


def merged(tests: Sequence[Test]) -> list[Test | OneOf]:
    """Tests of codes of the same system become one test of several codes: one index range after the other, without OR; ids alike."""
    codes: dict[str | None, list[str]] = {}
    targets: dict[tuple[str, ...] | None, list[str]] = {}
    ids: list[str] = []
    others: list[Test | OneOf] = []
    for test in tests:
        if isinstance(test, TokenTest) and test.codes is not None:
            codes.setdefault(test.system, []).extend(test.codes)
        elif isinstance(test, TargetTest):
            targets.setdefault(test.types, []).append(test.target_id)
        elif isinstance(test, IdTest):
            ids.append(test.id)
        else:
            others.append(test)
    others += [TokenTest(tuple(dict.fromkeys(listed)), system) for system, listed in codes.items()]
    others += [OneOf(tuple(dict.fromkeys(listed)), TargetTest("", types)) for types, listed in targets.items()]
    return [*others, OneOf(tuple(dict.fromkeys(ids)), IdTest(""))] if ids else others
