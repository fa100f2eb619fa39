"""What comes along with a page: _include, _revinclude and their :iterate.

https://hl7.org/fhir/R4/search.html#revinclude
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fhircm.fhir.conditions import AnyOf, Condition, Visible
from fhircm.fhir.definitions import definitions, param_key
from fhircm.fhir.extract import searchable
from fhircm.fhir.outcome import TooCostly
from fhircm.fhir.query import Include, Query
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_rows import ANY_PARAM
from fhircm.store.search_sql import Builder
from fhircm.store.search_tests import one_of
from fhircm.store.stored import Stored, moment
from fhircm.store.visibility import is_open, visible_of_any_type

INCLUDED_LIMIT = 10_000  # resources that may come with one page
_MANY_TYPES = 3
ROUNDS_LIMIT = 10  # times that :iterate goes on

# A resource and its current body, for the aliases r and v.
COLUMNS = "r.key, r.type, r.id, r.version, r.last_updated, v.method, v.body"
CURRENT = "JOIN version v ON v.resource_key = r.key AND v.version = r.version"

Row = Mapping[str, Any]


def stored(row: Row) -> Stored:
    """The version that a row of COLUMNS holds."""
    at = moment(row["last_updated"])
    return Stored(row["type"], row["id"], row["version"], at, False, bytes(row["body"]), row["method"])


async def included(
    connection: Connection, dialect: str, query: Query, within: Narrowing | None, matches: Sequence[Row]
) -> list[Row]:
    """The rows that come along with the matches: each once, none that is a match. One statement a direction and round."""
    found: dict[int, Row] = {}
    seen = {row["key"] for row in matches}
    frontier = list(matches)
    includes, revincludes = query.includes, query.revincludes
    for _ in range(ROUNDS_LIMIT):
        fresh: list[Row] = []
        for sql, arguments in _statements(dialect, query, within, includes, revincludes, frontier, len(seen)):
            rows = [row for row in await connection.fetch(sql, *arguments) if row["key"] not in seen]
            seen.update(row["key"] for row in rows)
            fresh += rows
        if len(found) + len(fresh) > INCLUDED_LIMIT:
            raise TooCostly(f"More than {INCLUDED_LIMIT} resources would be included; ask for smaller pages with _count")
        found.update((row["key"], row) for row in fresh)
        frontier = fresh
        includes = tuple(include for include in query.includes if include.iterate)
        revincludes = tuple(include for include in query.revincludes if include.iterate)
        if not fresh or not (includes or revincludes):
            break
    return list(found.values())


def _statements(
    dialect: str,
    query: Query,
    within: Narrowing | None,
    includes: Sequence[Include],
    revincludes: Sequence[Include],
    frontier: Sequence[Row],
    seen: int,
) -> Iterable[tuple[str, list[Any]]]:
    limit = INCLUDED_LIMIT + seen + 1
    for listed, write in ((includes, _forward), (revincludes, _backward)):
        if not listed or not frontier:
            continue
        builder = Builder(dialect, within)
        keys, types = write(builder, dialect, listed, frontier)
        if keys:
            narrowed = narrowed_types(builder, types, query.include_only)
            yield (
                f"SELECT {COLUMNS} FROM resource r {CURRENT} WHERE r.key IN ({keys}) AND NOT r.deleted{narrowed} "
                f"ORDER BY r.key LIMIT {builder.argument(limit)}",
                builder.arguments,
            )


def _forward(builder: Builder, dialect: str, includes: Sequence[Include], frontier: Sequence[Row]) -> tuple[str, set[str]]:
    """The keys of what the frontier refers to, and the types that they can have."""
    ways, types = [], set[str]()
    for include in includes:
        targets = [include.target] if include.target else _targets(include)
        types.update(targets)
        sources = {row["key"] for row in frontier if include.source in ("*", row["type"]) or include.code != "*"}
        if not sources:
            continue
        of_target = f" AND s.target_type = {builder.argument(include.target)}" if include.target else ""
        of_param = "" if include.code == "*" else f" AND s.param = {builder.argument(param_key(include.source, include.code))}"
        of_source = f"s.resource_key {among(builder, dialect, sorted(sources), 'bigint')}"
        ways.append(
            f"SELECT t.key FROM search_reference s JOIN resource t ON t.type = s.target_type AND t.id = s.target_id "
            f"WHERE {of_source}{of_param}{of_target}"
        )
    return " UNION ".join(ways), types


def _targets(include: Include) -> Iterable[str]:
    if include.code == "*":
        return definitions().resource_types
    return searchable(include.source).extractors[include.code].targets or definitions().resource_types


def _backward(builder: Builder, dialect: str, revincludes: Sequence[Include], frontier: Sequence[Row]) -> tuple[str, set[str]]:
    """The keys of what refers to the frontier, and the types that they have."""
    ways, types = [], set[str]()
    for include in revincludes:
        types |= definitions().resource_types if include.source == "*" else {include.source}
        for type in sorted({row["type"] for row in frontier}):
            if include.target not in (None, type):
                continue
            ids = sorted(row["id"] for row in frontier if row["type"] == type)
            ways.append(
                f"SELECT s.resource_key FROM search_reference s WHERE s.param = {_followed(builder, include)} "
                f"AND s.target_type = {builder.argument(type)} AND s.target_id {among(builder, dialect, ids, 'text')}"
            )
    return " UNION ".join(ways), types


def _followed(builder: Builder, include: Include) -> str:
    """The parameter of the rows to follow; for every parameter of every type: the rows that hold every local reference."""
    return builder.argument(ANY_PARAM) if include.source == "*" else builder.parameter(include.source, include.code)


def among(builder: Builder, dialect: str, values: Sequence[Any], type: str) -> str:
    """Membership in a list of any length with one argument."""
    if dialect == "postgresql":
        return f"= ANY({builder.argument(list(values))}::{type}[])"
    return f"IN (SELECT value FROM json_each({builder.argument(json.dumps(values))}))"


def narrowed_types(
    builder: Builder, types: Iterable[str], wanted: Sequence[tuple[str, Sequence[Condition]]] | None = None
) -> str:
    """What the caller may see of a resource `r` of these types, and wants of it: a test behind others."""
    if builder.within is None and wanted is None:
        return ""
    only = None if wanted is None else dict(wanted)
    whole, tests = [], []
    column = "+r.type" if builder.dialect == "sqlite" else "r.type"  # SQLite would begin with every resource of each type
    listed = [type for type in sorted(types) if only is None or type in only]
    together = len(listed) > _MANY_TYPES and builder.within is not None and builder.within.viewer is not None
    for type in listed:
        conditions = [*builder.narrowed(type, ()), *(only[type] if only else ())]
        if together:  # what is seen of all of them is tested once
            conditions = [one for one in conditions if not isinstance(one, Visible)]
        if AnyOf(()) in conditions:
            continue
        if not conditions:
            whole.append(type)
            continue
        holds = " AND ".join(builder.holds(condition, "r.key", "r") for condition in conditions)
        tests.append(f"({column} = {builder.argument(type)} AND {holds})")
    if whole:
        tests.append(one_of(column, whole, builder.argument))
    if together and tests:
        opened = [type for type in listed if is_open(type)]
        seen = [*([one_of(column, opened, builder.argument)] if opened else []), visible_of_any_type(builder, "r")]
        return f" AND ({' OR '.join(tests)}) AND ({' OR '.join(seen)})"
    return f" AND ({' OR '.join(tests) or '1 = 0'})"
