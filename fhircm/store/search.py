"""Search: a query becomes one statement for a page with its bodies, and one more for what it includes.

https://hl7.org/fhir/R4/search.html and https://hl7.org/fhir/R4/http.html#paging

**Order.** Without `_sort` the newest come first, by `resource.key`: the order in which resources were created here. A key never
changes, so a chain of pages neither skips nor repeats an entry, whatever others write meanwhile; entries that are created later
stand before its first page, and one that is changed until it no longer matches is left out.

With `_sort` the values can move. Such a chain is bound to what its first page saw: a resource created later is not in it, and one
that is updated after the first page falls out of the rest of the chain. So none is repeated, and what fell out is found by
`_lastUpdated` at or after the time of the first page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhircm.fhir.extract import OWN_COLUMNS, searchable
from fhircm.fhir.outcome import Malformed
from fhircm.fhir.query import Cursor, Query, Sort
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import COLUMNS, CURRENT, TooCostly, included, stored
from fhircm.store.search_rows import SEARCH_TABLES, SearchRows, delete_search_rows, search_rows, write_search_rows
from fhircm.store.search_sql import Builder
from fhircm.store.stored import Stored

__all__ = [
    "SEARCH_TABLES",
    "Page",
    "SearchRows",
    "TooCostly",
    "delete_search_rows",
    "search",
    "search_rows",
    "write_search_rows",
]

_NUMERIC: dict[str, type[int] | type[float]] = {"date": int, "number": float, "quantity": float}


@dataclass(frozen=True, slots=True)
class Page:
    """One page. `total` is there when it was asked or is known for nothing; `next` when there is more.

    `included` holds no resource that is a match of this page, and none twice.
    """

    matches: list[Stored]
    included: list[Stored]
    total: int | None
    next: Cursor | None


async def search(connection: Connection, dialect: str, query: Query, within: Narrowing | None = None) -> Page:
    """Carry out a query. Raises Malformed for a cursor of another query, TooCostly when too much would be included."""
    if query.count_only:
        return Page([], [], await _total(connection, query, within), None)
    cursor = _checked(query)
    sql, arguments = _page_statement(query, cursor, within)
    rows = await connection.fetch(sql, *arguments)
    shown = rows[: query.count]
    total = cursor.total if cursor else None
    if cursor is None:
        if len(rows) <= query.count:
            total = len(rows)
        elif query.total:
            total = await _total(connection, query, within)
    following = _cursor(query, shown[-1], cursor, total) if len(rows) > query.count else None
    more = await included(connection, dialect, query, within, shown)
    return Page([stored(row) for row in shown], [stored(row) for row in more], total, following)


async def _total(connection: Connection, query: Query, within: Narrowing | None) -> int:
    builder = Builder(within)
    source, where, key = builder.candidates(query.type, builder.narrowed(query.type, query.conditions), "d")
    counted = "*" if key == "d.key" else f"DISTINCT {key}"
    return int(await connection.fetchval(f"SELECT COUNT({counted}) FROM {source} WHERE {where}", *builder.arguments))


# --- pages


def _page_statement(query: Query, cursor: Cursor | None, within: Narrowing | None) -> tuple[str, list[Any]]:
    builder = Builder(within)
    source, where, key = builder.candidates(query.type, builder.narrowed(query.type, query.conditions), "d")
    distinct = "" if key == "d.key" else "DISTINCT "
    limit = query.count + 1
    if not query.sort:
        after = f" AND {key} < {builder.argument(cursor.after[0])}" if cursor else ""
        page = (
            f"SELECT {distinct}{key} AS key FROM {source} WHERE {where}{after} ORDER BY key DESC LIMIT {builder.argument(limit)}"
        )
        return f"WITH page AS ({page}) SELECT {COLUMNS} FROM page p {_bodies()} ORDER BY p.key DESC", builder.arguments
    own = "d" if key == "d.key" else None
    values = [builder.sort_value(query.type, sort, key, own) for sort in query.sort]
    named = ", ".join(f"{value} AS s{at}" for at, value in enumerate(values))
    columns = [(f"s{at}", sort.descending) for at, sort in enumerate(query.sort)] + [("key", query.sort[-1].descending)]
    bounds = _bounds(builder, query.type, cursor, key)
    after = f"WHERE {_after(builder, columns, cursor)}" if cursor else ""
    order = ", ".join(f"q.{column} {'DESC' if descending else 'ASC'}" for column, descending in columns)
    page = (
        f"SELECT q.* FROM (SELECT {distinct}{key} AS key, {named} FROM {source} WHERE {where}{bounds}) q "
        f"{after} ORDER BY {order} LIMIT {builder.argument(limit)}"
    )
    carried = ", ".join(f"p.s{at}" for at in range(len(values)))
    highest = "(SELECT MAX(key) FROM resource) AS highest"
    updated = f"(SELECT MAX(last_updated) FROM resource WHERE type = {builder.argument(query.type)}) AS updated"
    sql = f"WITH page AS ({page}) SELECT {COLUMNS}, {carried}, {highest}, {updated} FROM page p {_bodies()} ORDER BY "
    return sql + order.replace("q.", "p."), builder.arguments


def _bodies() -> str:
    return f"JOIN resource r ON r.key = p.key {CURRENT}"


def _bounds(builder: Builder, type: str, cursor: Cursor | None, key: str) -> str:
    """What keeps a sorted chain to the resources, and the versions, of its first page."""
    if cursor is None:
        return ""
    until = builder.argument(cursor.updated)
    if key == "d.key":
        updated = f"d.last_updated <= {until}"
    else:
        updated = f"EXISTS (SELECT 1 FROM resource u WHERE u.key = {key} AND u.last_updated <= {until})"
    return f" AND {key} <= {builder.argument(cursor.highest)} AND {updated}"


def _after(builder: Builder, columns: Sequence[tuple[str, bool]], cursor: Cursor) -> str:
    """The entries behind the cursor, in an order in which each column has its own direction."""
    (column, descending), value = columns[0], builder.argument(cursor.after[0])
    beyond = f"q.{column} {'<' if descending else '>'} {value}"
    if len(columns) == 1:
        return beyond
    rest = _after(builder, columns[1:], replace(cursor, after=cursor.after[1:]))
    return f"q.{column} {'<=' if descending else '>='} {value} AND ({beyond} OR ({rest}))"


def _cursor(query: Query, last: Mapping[str, Any], before: Cursor | None, total: int | None) -> Cursor:
    if not query.sort:
        return Cursor((last["key"],), total=total)
    after = (*(last[f"s{at}"] for at in range(len(query.sort))), last["key"])
    bounds = before or Cursor((), last["highest"], last["updated"])
    return Cursor(after, bounds.highest, bounds.updated, total)


def _checked(query: Query) -> Cursor | None:
    """The cursor, if it fits the query: a link that somebody has changed must not reach the database."""
    cursor = query.cursor
    if cursor is None:
        return None
    kinds = [_kind(query.type, sort) for sort in query.sort] + [int]
    bounds = (cursor.highest, cursor.updated) if query.sort else ()
    if len(cursor.after) != len(kinds) or None in bounds:
        raise Malformed("This page link belongs to another search")
    return replace(cursor, after=tuple(_value(value, kind) for value, kind in zip(cursor.after, kinds, strict=True)))


def _kind(type: str, sort: Sort) -> type[int] | type[float] | type[str]:
    if sort.code in OWN_COLUMNS:
        return str if sort.code == "_id" else int
    return _NUMERIC.get(searchable(type).extractors[sort.code].definition.type, str)


def _value(value: Any, kind: type[int] | type[float] | type[str]) -> int | float | str:
    if kind is float and isinstance(value, int | float):
        return float(value)
    if type(value) is not kind:
        raise Malformed("This page link belongs to another search")
    return value
