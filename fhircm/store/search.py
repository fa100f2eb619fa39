"""Search: a query becomes one statement for a page with its bodies, and one more for what it includes.

https://hl7.org/fhir/R4/search.html and https://hl7.org/fhir/R4/http.html#paging

**Order.** Without `_sort` the newest come first, by `resource.key`: the order in which resources were created here.

**Pages are of one moment.** A page link carries the snapshot of its first page. On a later page, what has not changed since then comes
from the database as it is; what has (the change log tells) comes from search_past.py, as it was. So whatever others write meanwhile, every
match of the first moment is seen once, in its place, as it was; only what is *included* along with it is of now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cmp_to_key, partial
from typing import Any

from fhircm.fhir.extract import OWN_COLUMNS, searchable
from fhircm.fhir.outcome import Malformed
from fhircm.fhir.query import Cursor, Query, Sort
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import COLUMNS, CURRENT, among, included, stored
from fhircm.store.search_past import NOW, SNAPSHOT, Branch, changed_since
from fhircm.store.search_rows import SEARCH_TABLES, SearchRows, delete_search_rows, search_rows, write_search_rows
from fhircm.store.search_sql import Builder
from fhircm.store.stored import Stored

__all__ = [
    "SEARCH_TABLES",
    "Page",
    "SearchRows",
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
    """Carry out a query. Raises Malformed for a cursor of another query, TooCostly when too much would be included or has changed.

    A query with a cursor needs a connection that sees one moment.
    """
    branches = [(type, Builder(dialect, within).narrowed(type, conditions)) for type, conditions in query.branches]
    if query.count_only:
        return Page([], [], await _total(connection, dialect, branches, within), None)
    cursor = _checked(query)
    past = await changed_since(connection, dialect, branches, within, cursor.snapshot) if cursor else None
    builder = Builder(dialect, within)
    sql = _page_statement(builder, dialect, query, branches, cursor, past.keys if past else ())
    rows = list(await connection.fetch(sql, *builder.arguments))
    if past is not None and past.keys:
        builder = Builder("sqlite", replace(within, by_type={}) if within else None)
        rows += past.fetch(_page_statement(builder, "sqlite", query, past.branches, cursor, ()), builder.arguments)
        rows = sorted(rows, key=cmp_to_key(partial(_compared, query)))
    shown = rows[: query.count]
    total = cursor.total if cursor else None
    if cursor is None:
        if len(rows) <= query.count:
            total = len(rows)
        elif query.total:
            total = await _total(connection, dialect, branches, within)
    following = _cursor(query, shown[-1], cursor, total) if len(rows) > query.count else None
    more = await included(connection, dialect, query, within, shown)
    return Page([stored(row) for row in shown], [stored(row) for row in more], total, following)


async def _total(connection: Connection, dialect: str, branches: Sequence[Branch], within: Narrowing | None) -> int:
    total = 0
    for type, conditions in branches:
        builder = Builder(dialect, within)
        source, where, key = builder.candidates(type, conditions, "d")
        counted = "*" if key == "d.key" else f"DISTINCT {key}"
        total += int(await connection.fetchval(f"SELECT COUNT({counted}) FROM {source} WHERE {where}", *builder.arguments))
    return total


# --- pages


def _page_statement(
    builder: Builder, dialect: str, query: Query, branches: Sequence[Branch], cursor: Cursor | None, without: Sequence[int]
) -> str:
    """One page: for each type its first matches behind the cursor, of all these the first, and their bodies."""
    columns = [(f"s{at}", sort.descending) for at, sort in enumerate(query.sort)]
    columns.append(("key", query.sort[-1].descending if query.sort else True))
    order = ", ".join(f"q.{column} {'DESC' if descending else 'ASC'}" for column, descending in columns)
    limit = builder.argument(query.count + 1)
    parts = [_candidates(builder, dialect, query, branch, cursor, without, columns, limit) for branch in branches]
    page = parts[0]
    if len(parts) > 1:
        either = " UNION ALL ".join(f"SELECT * FROM ({part}) u{at}" for at, part in enumerate(parts))
        page = f"SELECT q.* FROM ({either}) q ORDER BY {order} LIMIT {limit}"
    carried = "".join(f", p.{column}" for column, _ in columns[:-1])
    return (
        f"WITH page AS ({page}) SELECT {COLUMNS}{carried}, {NOW[dialect]} AS snapshot FROM page p"
        f" JOIN resource r ON r.key = p.key {CURRENT} ORDER BY {order.replace('q.', 'p.')}"
    )


def _candidates(
    builder: Builder,
    dialect: str,
    query: Query,
    branch: Branch,
    cursor: Cursor | None,
    without: Sequence[int],
    columns: Sequence[tuple[str, bool]],
    limit: str,
) -> str:
    """The keys of one type, and what they are sorted by, behind the cursor."""
    type, conditions = branch
    source, where, key = builder.candidates(type, conditions, "d")
    distinct = "" if key == "d.key" else "DISTINCT "
    if without:
        where += f" AND NOT {key} {among(builder, dialect, without, 'bigint')}"
    if not query.sort:
        after = f" AND {key} < {builder.argument(cursor.after[0])}" if cursor else ""
        return f"SELECT {distinct}{key} AS key FROM {source} WHERE {where}{after} ORDER BY key DESC LIMIT {limit}"
    own = "d" if key == "d.key" else None
    values = "".join(f", {builder.sort_value(type, sort, key, own)} AS s{at}" for at, sort in enumerate(query.sort))
    after = f"WHERE {_after(builder, columns, cursor)}" if cursor else ""
    order = ", ".join(f"q.{column} {'DESC' if descending else 'ASC'}" for column, descending in columns)
    return f"SELECT q.* FROM (SELECT {distinct}{key} AS key{values} FROM {source} WHERE {where}) q {after} ORDER BY {order} LIMIT {limit}"


def _compared(query: Query, one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """Which of two rows comes first."""
    for at, sort in enumerate(query.sort):
        if one[f"s{at}"] != other[f"s{at}"]:
            return -1 if (one[f"s{at}"] < other[f"s{at}"]) != sort.descending else 1
    descending = query.sort[-1].descending if query.sort else True
    return -1 if (one["key"] < other["key"]) != descending else 1


def _after(builder: Builder, columns: Sequence[tuple[str, bool]], cursor: Cursor) -> str:
    """The entries behind the cursor, in an order in which each column has its own direction."""
    (column, descending), value = columns[0], builder.argument(cursor.after[0])
    beyond = f"q.{column} {'<' if descending else '>'} {value}"
    if len(columns) == 1:
        return beyond
    rest = _after(builder, columns[1:], replace(cursor, after=cursor.after[1:]))
    return f"q.{column} {'<=' if descending else '>='} {value} AND ({beyond} OR ({rest}))"


def _cursor(query: Query, last: Mapping[str, Any], before: Cursor | None, total: int | None) -> Cursor:
    after = (*(last[f"s{at}"] for at in range(len(query.sort))), last["key"])
    return Cursor(after, before.snapshot if before else last["snapshot"], total)


def _checked(query: Query) -> Cursor | None:
    """The cursor, if it fits the query: a link that somebody has changed must not reach the database."""
    cursor = query.cursor
    if cursor is None:
        return None
    kinds = [_kind(query.type, sort) for sort in query.sort] + [int]
    if len(cursor.after) != len(kinds) or not SNAPSHOT.fullmatch(cursor.snapshot):
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
