"""Conditions as SQL: what drives a search, and what every candidate must pass.

https://hl7.org/fhir/R4/search.html. The most selective condition drives: its index gives resource keys newest first, so that a
page reads little more than it shows. The others become EXISTS on the candidate's key. Nothing here depends on a
planner's statistics, and the same text runs on SQLite and PostgreSQL, but for lists of any length.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fhircm.fhir.conditions import (
    AllOf,
    AnyOf,
    Chained,
    CodesTest,
    Combined,
    Condition,
    IdTest,
    Linked,
    Matches,
    Missing,
    NearTest,
    Not,
    SpanTest,
    TargetTest,
    Test,
    TextTest,
    TokenTest,
    Unlike,
    UriTest,
    Visible,
    WordsTest,
)
from fhircm.fhir.definitions import param_key
from fhircm.fhir.extract import OWN_COLUMNS, searchable
from fhircm.fhir.outcome import TooCostly
from fhircm.fhir.query import Sort
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST
from fhircm.store.full_text import words_stand, words_test
from fhircm.store.operations import Narrowing
from fhircm.store.search_tests import Listed, merged, row_test, table_of, updated_test
from fhircm.store.visibility import begun_with, is_open, plainly_visible, visible

_TABLES_OF_KIND = {
    "token": ("search_token", "search_string"),
    "reference": ("search_reference", "search_token"),
    "string": ("search_string",),
    "date": ("search_date",),
    "number": ("search_quantity",),
    "quantity": ("search_quantity",),
    "uri": ("search_uri",),
    "special": ("search_position",),
    "composite": ("search_composite",),
}
_SORT_COLUMNS = {
    "token": ("search_token", "code"),
    "reference": ("search_reference", "target_id"),
    "string": ("search_string", "start"),
    "date": ("search_date", "low"),
    "number": ("search_quantity", "low"),
    "quantity": ("search_quantity", "low"),
    "uri": ("search_uri", "uri"),
}
_LAST: dict[str, tuple[Any, Any]] = {  # where resources without a value go, when ascending and when descending: behind all others
    "date": (LATEST, EARLIEST),
    "number": (BOUNDLESS, -BOUNDLESS),
    "quantity": (BOUNDLESS, -BOUNDLESS),
}
_LAST_TEXT = (chr(0x10FFFF), "")
_WITH_ROWID = frozenset({"search_string", "search_quantity", "search_text", "search_position", "search_composite"})
_FEW_CODES = frozenset({"code", "boolean"})  # element types of which each value is in a large part of all resources
_MANY = 50  # alternatives: more of them match too much to begin with
_CANNOT_DRIVE = 9
_FEW_PATIENTS = 5.5  # before codes that many resources have, behind what finds few of them
_ARGUMENTS_LIMIT = 32_000  # of one statement: SQLite takes 32,766, asyncpg 32,767
_NOTHING = "SELECT key AS resource_key FROM resource WHERE 1 = 0"


def _is_own(condition: Condition) -> bool:
    return isinstance(condition, Matches) and condition.parameter in OWN_COLUMNS


def _table(condition: Matches) -> str:
    return "resource" if _is_own(condition) else table_of(condition.tests[0])


def _is_equality(test: Test) -> bool:
    """Whether an index by values leads straight to what passes."""
    match test:
        case TokenTest(codes=codes):
            return codes is not None
        case TextTest(how=how):
            return how in ("equal", "exact")
        case UriTest(below=below):
            return below is None
    return isinstance(test, CodesTest | TargetTest | WordsTest)


def _rank(condition: Condition) -> int:
    """How little a condition is expected to match: the lowest rank drives."""
    match condition:
        case Matches(tests=tests, negated=negated) if not negated and tests:
            return 7 if len(tests) > _MANY else _rank_of_match(condition)
        case Combined(alternatives=alternatives):
            return 4 if len(alternatives) <= _MANY else 7
        case Chained(targets=targets):
            return 3 if all(_rank(inner) < _CANNOT_DRIVE for _, inner in targets) else 8
        case Linked(condition=inner):
            return 3 if _rank(inner) < _CANNOT_DRIVE else 8
        case AnyOf(conditions):
            return max((_rank(one) for one in conditions), default=0)
        case AllOf(conditions):
            return min((_rank(one) for one in conditions), default=_CANNOT_DRIVE)
    return _CANNOT_DRIVE


def _flat(conditions: Sequence[Condition]) -> Iterator[Condition]:
    """The conditions, those that stand together in one of them each on its own."""
    for condition in conditions:
        if isinstance(condition, AllOf):
            yield from _flat(condition.conditions)
        else:
            yield condition


def _deepest_first(conditions: Sequence[Condition]) -> Sequence[Condition]:
    """So that SQLite's parser, which holds a hundred things at once, has put little aside when it comes to the next level."""
    return sorted(conditions, key=_depth, reverse=True)


def _depth(condition: Condition) -> int:
    match condition:
        case AnyOf(conditions) | AllOf(conditions):
            return 1 + max(map(_depth, conditions), default=0)
        case Not(inner) | Linked(condition=inner):
            return 2 + _depth(inner)
        case Chained(targets=targets):
            return 4 + max((_depth(inner) for _, inner in targets), default=0)
    return 0


def _rank_of_match(condition: Matches) -> int:
    match condition.tests[0]:
        case IdTest():
            return 0
        case TargetTest():
            return 2
        case TextTest(how=how):
            return 4 if how in ("start", "equal", "exact") else 8
        case Unlike():
            return 8
        case CodesTest(codes) if sum(len(listed) for _, listed in codes) > _MANY:
            return 7
        case UriTest() | WordsTest():
            return 3
        case NearTest():
            return 4
        case SpanTest(prefix=prefix):
            return 5 if prefix in ("eq", "ap") else 7
        case _:
            types = searchable(condition.type).extractors[condition.parameter.partition(":")[0]].types
            if types & {"Identifier", "Reference"}:
                return 1
            return 6 if types <= _FEW_CODES else 5


def _beside(condition: Matches) -> Matches:
    """The condition as one that does not drive."""
    if not any(isinstance(test, CodesTest) for test in condition.tests):
        return condition
    return replace(
        condition, tests=tuple(replace(test, beside=True) if isinstance(test, CodesTest) else test for test in condition.tests)
    )


class Builder:
    """Builds the text of one statement and gathers its arguments."""

    def __init__(self, dialect: str, within: Narrowing | None = None) -> None:
        self.dialect = dialect
        self.arguments: list[Any] = []
        self.within = within
        self.aliases = 0
        self.places: dict[str, int] = {}
        self._shared: dict[str, str] = {}

    def argument(self, value: Any) -> str:
        """The placeholder of a value; of Listed ones what a column is compared with, to be one of them.

        Raises TooCostly for more arguments than a statement can hold.
        """
        if isinstance(value, Listed):
            if self.dialect == "postgresql":
                return f"= ANY({self.argument(list(value))}::text[])"
            return f"IN (SELECT value FROM json_each({self.argument(json.dumps(value))}))"
        if len(self.arguments) >= _ARGUMENTS_LIMIT:
            raise TooCostly("This search compares with too many values; ask for fewer at once, or in fewer types")
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def shared_argument(self, name: str, value: Any, form: str = "{}") -> str:
        """The placeholder of a value, the same wherever the statement has it; of Listed ones as `argument` gives it.

        `form`: how PostgreSQL is to read it. `places` tells where it stands among the arguments.
        """
        if name not in self._shared:
            if isinstance(value, Listed) and self.dialect == "postgresql":
                value = list(value)
            self._shared[name] = self.argument(value)
            self.places[name] = len(self.arguments) - 1
            if self.dialect == "postgresql":
                self._shared[name] = form.format(self._shared[name])
        return self._shared[name]

    def as_rows(self, values: Listed) -> Any:
        """A list as the argument of which a statement makes rows."""
        return list(values) if self.dialect == "postgresql" else json.dumps(values)

    def parameter(self, type: str, code: str) -> str:
        """The placeholder of a search parameter's key."""
        return self.argument(param_key(type, code))

    def param(self, a: str, table: str, type: str, code: str, *, ranged: bool = False) -> str:
        """That a row (alias `a`) of `table`, of a resource that the statement has already, belongs to this search parameter.

        What is computed is in no index, so that the rows are found by the resource: on SQLite, which guesses, where a table's index by
        resource holds nothing besides; on PostgreSQL where a value is `ranged`, not equal, for there an index by values has the
        resource behind them, and would be read from end to end for each candidate.
        """
        if self.dialect == "postgresql" and table and ranged:
            return f"{a}.param + 0 = {self.parameter(type, code)}"
        plus = "+" if self.dialect == "sqlite" and table in _WITH_ROWID else ""
        return f"{plus}{a}.param = {self.parameter(type, code)}"

    def alias(self) -> str:
        """A table alias that no other part of the statement has."""
        self.aliases += 1
        return f"x{self.aliases}"

    def narrowed(self, type: str, conditions: Sequence[Condition]) -> list[Condition]:
        """The conditions and those that the narrowing adds for the type."""
        if self.within is None:
            return list(conditions)
        extra = self.within.by_type.get(type)
        if extra is None:
            return [AnyOf(())]
        seen = [Visible(type)] if self.within.viewer is not None and not is_open(type) else []
        return [*conditions, *extra, *seen]

    def candidates(self, type: str, conditions: Sequence[Condition], d: str) -> tuple[str, str, str]:
        """FROM clause (alias `d`), WHERE clause and key column of the resources of the type that fulfil all conditions.

        A key can come more than once, except when the resource table itself drives.
        """
        conditions = list(_flat(conditions))
        driver = min(conditions, key=self._rank, default=None)
        if driver is None or self._rank(driver) == _CANNOT_DRIVE or _is_own(driver) or driver == AnyOf(()):
            tests = [self.holds(condition, f"{d}.key", d) for condition in conditions]
            where = [f"{d}.type = {self.argument(type)}", f"NOT {d}.deleted", *tests]
            return f"resource {d}", " AND ".join(where), f"{d}.key"
        if isinstance(driver, Matches):
            source, where = f"{_table(driver)} {d}", [self.row(driver, d)]
        else:
            source, where = f"({self.driven(driver)}) {d}", []
        rest = [one for one in conditions if one is not driver or isinstance(one, Visible)]  # that begins with more than is seen
        where += [self.holds(condition, f"{d}.resource_key") for condition in rest]
        return source, " AND ".join(where) or "1 = 1", f"{d}.resource_key"

    def _rank(self, condition: Condition) -> float:
        if isinstance(condition, Visible) and self.within is not None and self.within.viewer and self.within.viewer.few:
            return _FEW_PATIENTS
        return _rank(condition)

    def keys(self, type: str, conditions: Sequence[Condition]) -> str:
        """A query for the keys of the resources of the type that fulfil all conditions, as `resource_key`."""
        source, where, key = self.candidates(type, conditions, self.alias())
        return f"SELECT {key} AS resource_key FROM {source} WHERE {where}"

    def driven(self, condition: Condition) -> str:
        """A query for the keys that fulfil one condition, beginning where the fewest rows are."""
        match condition:
            case Visible(type):
                return begun_with(self, type)
            case Chained(targets=targets):
                return " UNION ".join(self._chain_keys(condition, target, inner) for target, inner in targets)
            case Linked(type, source, parameter, inner):
                k, x, r = self.alias(), self.alias(), self.alias()
                keys = self.keys(source, self.narrowed(source, [inner]))
                own = self.argument(type)
                # CROSS JOIN keeps SQLite from turning the order round; PostgreSQL plans it like any join.
                return (
                    f"SELECT {r}.key AS resource_key FROM ({keys}) {k} CROSS JOIN search_reference {x} CROSS JOIN resource {r} "
                    f"WHERE {x}.resource_key = {k}.resource_key AND {x}.param = {self.parameter(source, parameter)} "
                    f"AND {x}.target_type = {own} AND {r}.type = {own} AND {r}.id = {x}.target_id AND NOT {r}.deleted"
                )
            case AnyOf(conditions):
                return " UNION ".join(self.driven(one) for one in conditions) or _NOTHING
            case Combined(alternatives=alternatives):
                return " UNION ".join(self._combined(condition, alternative) for alternative in alternatives)
            case AllOf(conditions):
                driver, k = min(conditions, key=_rank), self.alias()
                found = self.driven(driver)
                rest = [self.holds(one, f"{k}.resource_key") for one in conditions if one is not driver]
                return f"SELECT {k}.resource_key FROM ({found}) {k} WHERE {' AND '.join(rest) or '1 = 1'}"
        assert isinstance(condition, Matches)  # nothing else has a rank with which it drives
        return self.keys(condition.type, [condition])

    def _chain_keys(self, chain: Chained, target: str, inner: Condition) -> str:
        k, x, t = self.alias(), self.alias(), self.alias()
        keys = self.keys(target, self.narrowed(target, [inner]))
        return (
            f"SELECT {x}.resource_key FROM ({keys}) {k} CROSS JOIN resource {t} CROSS JOIN search_reference {x} "
            f"WHERE {t}.key = {k}.resource_key AND {x}.param = {self.parameter(chain.type, chain.parameter)} "
            f"AND {x}.target_id = {t}.id AND {x}.target_type = {self.argument(target)}"
        )

    def plainly_seen(self, type: str, key: str, own: str) -> str:
        """A short test that most of what the viewer may see passes."""
        return plainly_visible(self, type, key, own)

    def holds(self, condition: Condition, key: str, own: str | None = None) -> str:
        """The condition as a test on a resource key; `own`: the alias of the resource row, where there is one."""
        match condition:
            case Visible(type):
                return visible(self, type, key, own)
            case Matches(negated=negated):
                found = self._some_row(condition, key, own)
                return f"NOT {found}" if negated else found
            case Combined(alternatives=alternatives):
                ways = [self.exists(self._combined(condition, alternative, key)) for alternative in alternatives]
                return f"({' OR '.join(ways)})"
            case Missing(type, parameter, missing):
                found = self._any_value(type, parameter, key)
                return f"NOT {found}" if missing else found
            case Chained(type, parameter, targets):
                x, t = self.alias(), self.alias()
                ways = " OR ".join(self._way(x, t, target, inner) for target, inner in targets)
                return self.exists(
                    f"SELECT 1 FROM search_reference {x} JOIN resource {t} ON {t}.type = {x}.target_type "
                    f"AND {t}.id = {x}.target_id AND NOT {t}.deleted WHERE ({ways}) AND {x}.resource_key = {key} "
                    f"AND {self.param(x, 'search_reference', type, parameter, ranged=True)}"
                )
            case Linked():
                return self._linked(condition, key)
            case AnyOf(conditions):
                return f"({' OR '.join(self.holds(one, key, own) for one in _deepest_first(conditions)) or '1 = 0'})"
            case AllOf(conditions):
                return f"({' AND '.join(self.holds(one, key, own) for one in _deepest_first(conditions)) or '1 = 1'})"
            case Not(inner):
                return f"NOT {self.holds(inner, key, own)}"

    def _combined(self, condition: Combined, alternative: Sequence[tuple[str, Test]], key: str | None = None) -> str:
        """The keys of resources (or this one) of which one element passes all tests, beginning with a code: that has an index."""
        tables: list[str] = []
        tests: list[str] = []
        for parameter, test in sorted(alternative, key=lambda one: not isinstance(one[1], TokenTest)):
            a = self.alias()
            if tables:
                tests.append(f"{a}.resource_key = {tables[0]}.resource_key AND {a}.at = {tables[0]}.at")
            leads = isinstance(test, TokenTest) and not tables
            by_code = leads and (test.codes or not key)  # by the index of codes; the others by the resource and the element
            belongs = self.param(a, "" if by_code else "search_composite", condition.type, parameter, ranged=True)
            tests.append(f"{belongs} AND {row_test(test, a, self.argument)}")
            if leads:
                tests.append(f"{a}.low IS NULL")  # what that index holds
            tables.append(a)
        own = f"{tables[0]}.resource_key = {key} AND " if key else ""
        # CROSS JOIN keeps SQLite from turning the order round; PostgreSQL plans it like any join.
        joined = " CROSS JOIN ".join(f"search_composite {a}" for a in tables)
        return f"SELECT {tables[0]}.resource_key FROM {joined} WHERE {own}{' AND '.join(tests)}"

    def exists(self, rows: str) -> str:
        """That there is such a row, asked of one candidate after the other.

        OFFSET 0 keeps PostgreSQL from making a join of it: without fresh statistics it would read all rows of a parameter and value
        for each candidate.
        """
        return f"EXISTS ({rows}{' OFFSET 0' if self.dialect == 'postgresql' else ''})"

    def _way(self, x: str, t: str, target: str, inner: Condition) -> str:
        tests = [self.holds(one, f"{t}.key", t) for one in self.narrowed(target, [inner])]
        return " AND ".join([f"{x}.target_type = {self.argument(target)}", *tests])

    def _linked(self, link: Linked, key: str) -> str:
        x, r = self.alias(), self.alias()
        own = self.argument(link.type)
        tests = [self.holds(one, f"{x}.resource_key") for one in self.narrowed(link.source, [link.condition])]
        return self.exists(
            f"SELECT 1 FROM resource {r} JOIN search_reference {x} ON {x}.target_id = {r}.id WHERE {r}.key = {key} "
            f"AND {x}.param = {self.parameter(link.source, link.parameter)} AND {x}.target_type = {own} AND {' AND '.join(tests)}"
        )

    def _some_row(self, condition: Matches, key: str, own: str | None) -> str:
        if _is_own(condition) and own:
            return f"({self.row(condition, own)})"
        a = self.alias()
        column = "key" if _is_own(condition) else "resource_key"
        test = self.row(_beside(condition), a, of_candidate=True)
        return self.exists(f"SELECT 1 FROM {_table(condition)} {a} WHERE {a}.{column} = {key} AND {test}")

    def _any_value(self, type: str, code: str, key: str) -> str:
        tables = _TABLES_OF_KIND[searchable(type).extractors[code].definition.type]
        found = [
            self.exists(
                f"SELECT 1 FROM {table} s WHERE s.resource_key = {key} AND {self.param('s', table, type, code, ranged=True)}"
            )
            for table in tables
        ]
        return f"({' OR '.join(found)})"

    def row(self, condition: Matches, a: str, *, of_candidate: bool = False) -> str:
        """The condition as a test on one row (alias `a`) of its table; `of_candidate`: of those that one resource has."""
        if condition.parameter == "_lastUpdated":
            tests = [updated_test(test, a, self.argument) for test in condition.tests if isinstance(test, SpanTest)]
        else:
            tests = [self._row_test(condition, test, a, of_candidate) for test in merged(condition.tests)]
        either = " OR ".join(f"({test})" for test in tests)
        if _is_own(condition):
            return f"({either})"
        table, ranged = _table(condition) if of_candidate else "", not all(map(_is_equality, condition.tests))
        return f"{self.param(a, table, condition.type, condition.parameter, ranged=ranged)} AND ({either})"

    def _row_test(self, condition: Matches, test: Test, a: str, of_candidate: bool) -> str:
        if isinstance(test, WordsTest) and of_candidate and self.dialect == "sqlite":
            return words_stand(test, a, self.argument)
        if isinstance(test, WordsTest):
            return words_test(test, a, param_key(condition.type, condition.parameter), self.dialect, self.argument)
        return row_test(test, a, self.argument)

    def sort_value(self, type: str, sort: Sort, key: str, own: str | None) -> str:
        """What a resource is sorted by: of several values the first in the direction; without any it comes last."""
        if sort.code in OWN_COLUMNS:
            column = "id" if sort.code == "_id" else "last_updated"
            return f"{own}.{column}" if own else f"(SELECT r.{column} FROM resource r WHERE r.key = {key})"
        kind = searchable(type).extractors[sort.code].definition.type
        table, column = _SORT_COLUMNS[kind]
        first = "MAX" if sort.descending else "MIN"
        last = _LAST.get(kind, _LAST_TEXT)[sort.descending]
        param = self.param("s", table, type, sort.code, ranged=True)
        return (
            f"COALESCE((SELECT {first}(s.{column}) FROM {table} s WHERE s.resource_key = {key} AND {param}), "
            f"{self.argument(last)})"
        )
