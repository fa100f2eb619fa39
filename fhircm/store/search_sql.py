"""Conditions as SQL: what drives a search, and what every candidate must pass.

https://hl7.org/fhir/R4/search.html. The most selective condition drives: its index gives resource keys newest first, so that a
page reads little more than it shows. The others become EXISTS on the candidate's key. Nothing here depends on a
planner's statistics, and the same text runs on SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fhircm.fhir.conditions import (
    AnyOf,
    Chained,
    Condition,
    IdTest,
    Linked,
    Matches,
    Missing,
    SpanTest,
    TargetTest,
    TextTest,
    UriTest,
)
from fhircm.fhir.definitions import param_key
from fhircm.fhir.extract import OWN_COLUMNS, searchable
from fhircm.fhir.query import Sort
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST
from fhircm.store.operations import Narrowing
from fhircm.store.search_tests import TABLES, merged, row_test, updated_test

_TABLES_OF_KIND = {
    "token": ("search_token", "search_string"),
    "reference": ("search_reference", "search_token"),
    "string": ("search_string",),
    "date": ("search_date",),
    "number": ("search_quantity",),
    "quantity": ("search_quantity",),
    "uri": ("search_uri",),
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
_FEW_CODES = frozenset({"code", "boolean"})  # element types of which each value is in a large part of all resources
_MANY = 50  # alternatives: more of them match too much to begin with
_CANNOT_DRIVE = 9


def _is_own(condition: Condition) -> bool:
    return isinstance(condition, Matches) and condition.parameter in OWN_COLUMNS


def _table(condition: Matches) -> str:
    return "resource" if _is_own(condition) else TABLES[type(condition.tests[0])]


def _rank(condition: Condition) -> int:
    """How little a condition is expected to match: the lowest rank drives."""
    match condition:
        case Matches(tests=tests, negated=negated) if not negated and tests:
            return 7 if len(tests) > _MANY else _rank_of_match(condition)
        case Chained(targets=targets):
            return 3 if all(_rank(inner) < _CANNOT_DRIVE for _, inner in targets) else 8
        case Linked(condition=inner):
            return 3 if _rank(inner) < _CANNOT_DRIVE else 8
        case AnyOf(conditions):
            return max((_rank(one) for one in conditions), default=0)
    return _CANNOT_DRIVE


def _rank_of_match(condition: Matches) -> int:
    match condition.tests[0]:
        case IdTest():
            return 0
        case TargetTest():
            return 2
        case TextTest(how=how):
            return 8 if how == "contains" else 4
        case UriTest():
            return 3
        case SpanTest(prefix=prefix):
            return 5 if prefix in ("eq", "ap") else 7
        case _:
            types = searchable(condition.type).extractors[condition.parameter.partition(":")[0]].types
            if types & {"Identifier", "Reference"}:
                return 1
            return 6 if types <= _FEW_CODES else 5


class Builder:
    """Builds the text of one statement and gathers its arguments."""

    def __init__(self, within: Narrowing | None = None) -> None:
        self.arguments: list[Any] = []
        self.within = within
        self.aliases = 0

    def argument(self, value: Any) -> str:
        """The placeholder of a value."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def parameter(self, type: str, code: str) -> str:
        """The placeholder of a search parameter's key."""
        return self.argument(param_key(type, code))

    def alias(self) -> str:
        """A table alias that no other part of the statement has."""
        self.aliases += 1
        return f"x{self.aliases}"

    def narrowed(self, type: str, conditions: Sequence[Condition]) -> list[Condition]:
        """The conditions and those that the narrowing adds for the type."""
        if self.within is None:
            return list(conditions)
        extra = self.within.by_type.get(type)
        return [AnyOf(())] if extra is None else [*conditions, *extra]

    def candidates(self, type: str, conditions: Sequence[Condition], d: str) -> tuple[str, str, str]:
        """FROM clause (alias `d`), WHERE clause and key column of the resources of the type that fulfil all conditions.

        A key can come more than once, except when the resource table itself drives.
        """
        driver = min(conditions, key=_rank, default=None)
        if driver is None or _rank(driver) == _CANNOT_DRIVE or _is_own(driver) or driver == AnyOf(()):
            tests = [self.holds(condition, f"{d}.key", d) for condition in conditions]
            where = [f"{d}.type = {self.argument(type)}", f"NOT {d}.deleted", *tests]
            return f"resource {d}", " AND ".join(where), f"{d}.key"
        if isinstance(driver, Matches):
            source, where = f"{_table(driver)} {d}", [self.row(driver, d)]
        else:
            source, where = f"({self.driven(driver)}) {d}", []
        where += [self.holds(condition, f"{d}.resource_key") for condition in conditions if condition is not driver]
        return source, " AND ".join(where) or "1 = 1", f"{d}.resource_key"

    def keys(self, type: str, conditions: Sequence[Condition]) -> str:
        """A query for the keys of the resources of the type that fulfil all conditions, as `resource_key`."""
        source, where, key = self.candidates(type, conditions, self.alias())
        return f"SELECT {key} AS resource_key FROM {source} WHERE {where}"

    def driven(self, condition: Condition) -> str:
        """A query for the keys that fulfil one condition, beginning where the fewest rows are."""
        match condition:
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
                nothing = "SELECT key AS resource_key FROM resource WHERE 1 = 0"
                return " UNION ".join(self.driven(one) for one in conditions) or nothing
        return self.keys(condition.type, [condition])

    def _chain_keys(self, chain: Chained, target: str, inner: Condition) -> str:
        k, x, t = self.alias(), self.alias(), self.alias()
        keys = self.keys(target, self.narrowed(target, [inner]))
        return (
            f"SELECT {x}.resource_key FROM ({keys}) {k} CROSS JOIN resource {t} CROSS JOIN search_reference {x} "
            f"WHERE {t}.key = {k}.resource_key AND {x}.param = {self.parameter(chain.type, chain.parameter)} "
            f"AND {x}.target_id = {t}.id AND {x}.target_type = {self.argument(target)}"
        )

    def holds(self, condition: Condition, key: str, own: str | None = None) -> str:
        """The condition as a test on a resource key; `own`: the alias of the resource row, where there is one."""
        match condition:
            case Matches(negated=negated):
                found = self._some_row(condition, key, own)
                return f"NOT {found}" if negated else found
            case Missing(type, parameter, missing):
                found = self._any_value(type, parameter, key)
                return f"NOT {found}" if missing else found
            case Chained(type, parameter, targets):
                x, t = self.alias(), self.alias()
                ways = [self._way(x, t, target, inner) for target, inner in targets]
                return (
                    f"EXISTS (SELECT 1 FROM search_reference {x} JOIN resource {t} ON {t}.type = {x}.target_type "
                    f"AND {t}.id = {x}.target_id AND NOT {t}.deleted WHERE {x}.resource_key = {key} "
                    f"AND {x}.param = {self.parameter(type, parameter)} AND ({' OR '.join(ways)}))"
                )
            case Linked():
                return self._linked(condition, key)
            case AnyOf(conditions):
                return f"({' OR '.join(self.holds(one, key, own) for one in conditions) or '1 = 0'})"

    def _way(self, x: str, t: str, target: str, inner: Condition) -> str:
        tests = [self.holds(one, f"{t}.key", t) for one in self.narrowed(target, [inner])]
        return f"({' AND '.join([f'{x}.target_type = {self.argument(target)}', *tests])})"

    def _linked(self, link: Linked, key: str) -> str:
        x, r = self.alias(), self.alias()
        own = self.argument(link.type)
        tests = [self.holds(one, f"{x}.resource_key") for one in self.narrowed(link.source, [link.condition])]
        return (
            f"EXISTS (SELECT 1 FROM resource {r} JOIN search_reference {x} ON {x}.target_id = {r}.id WHERE {r}.key = {key} "
            f"AND {x}.param = {self.parameter(link.source, link.parameter)} AND {x}.target_type = {own} AND {' AND '.join(tests)})"
        )

    def _some_row(self, condition: Matches, key: str, own: str | None) -> str:
        if _is_own(condition) and own:
            return f"({self.row(condition, own)})"
        a = self.alias()
        column = "key" if _is_own(condition) else "resource_key"
        return f"EXISTS (SELECT 1 FROM {_table(condition)} {a} WHERE {a}.{column} = {key} AND {self.row(condition, a)})"

    def _any_value(self, type: str, code: str, key: str) -> str:
        param = self.parameter(type, code)
        tables = _TABLES_OF_KIND[searchable(type).extractors[code].definition.type]
        found = [f"EXISTS (SELECT 1 FROM {table} s WHERE s.resource_key = {key} AND s.param = {param})" for table in tables]
        return f"({' OR '.join(found)})"

    def row(self, condition: Matches, a: str) -> str:
        """The condition as a test on one row (alias `a`) of its table."""
        if condition.parameter == "_lastUpdated":
            tests = [updated_test(test, a, self.argument) for test in condition.tests if isinstance(test, SpanTest)]
        else:
            tests = [row_test(test, a, self.argument) for test in merged(condition.tests)]
        either = " OR ".join(f"({test})" for test in tests)
        if _is_own(condition):
            return f"({either})"
        return f"{a}.param = {self.parameter(condition.type, condition.parameter)} AND ({either})"

    def sort_value(self, type: str, sort: Sort, key: str, own: str | None) -> str:
        """What a resource is sorted by: of several values the first in the direction; without any it comes last."""
        if sort.code in OWN_COLUMNS:
            column = "id" if sort.code == "_id" else "last_updated"
            return f"{own}.{column}" if own else f"(SELECT r.{column} FROM resource r WHERE r.key = {key})"
        kind = searchable(type).extractors[sort.code].definition.type
        table, column = _SORT_COLUMNS[kind]
        first = "MAX" if sort.descending else "MIN"
        last = _LAST.get(kind, _LAST_TEXT)[sort.descending]
        param = self.parameter(type, sort.code)
        return (
            f"COALESCE((SELECT {first}(s.{column}) FROM {table} s WHERE s.resource_key = {key} AND s.param = {param}), "
            f"{self.argument(last)})"
        )
