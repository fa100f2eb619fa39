"""The rows by which a resource is found: made from its tree, written and deleted for a whole transaction at once.

https://hl7.org/fhir/R4/search.html#ptypes
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.care_relationship import Relationship, relationships
from fhircm.fhir.consent_rules import ConsentRule, consent_rules
from fhircm.fhir.definitions import param_key
from fhircm.fhir.extract import ANY_REFERENCE, search_values
from fhircm.fhir.references import Reference
from fhircm.fhir.values import Amount, Component, Place, Span, Target, Text, Token, Uri
from fhircm.fhir.words import Words, full_text
from fhircm.fhir.work_list import PatientRisk, WorkLine, patient_risks, work_lines
from fhircm.store.database import Connection
from fhircm.store.full_text import mark

ANY_PARAM = 0  # the param of the rows that hold every local reference

# For each kind of value: the table, its columns in the order of the value's fields behind the parameter, PostgreSQL's types of them.
_LAYOUT: dict[type, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    Token: ("search_token", ("code", "system"), ("text", "text")),
    Target: ("search_reference", ("target_id", "target_type"), ("text", "text")),
    Text: ("search_string", ("start", "normalised", "exact"), ("text", "text", "text")),
    Span: ("search_date", ("low", "high"), ("bigint", "bigint")),
    Amount: ("search_quantity", ("low", "high", "system", "code", "unit"), ("float8", "float8", "text", "text", "text")),
    Uri: ("search_uri", ("uri",), ("text",)),
    Place: ("search_position", ("x", "y", "z"), ("float8", "float8", "float8")),
    Component: ("search_composite", Component._fields[1:], ("integer", *["text"] * 7, "float8", "float8", "text")),
    Words: ("search_text", ("words",), ("text",)),
    Relationship: (
        "care_relationship",
        ("grantee", "type", "id", "whole", "low", "high"),
        ("text", "text", "text", "boolean", "bigint", "bigint"),
    ),
    ConsentRule: (
        "consent_rule",
        ConsentRule._fields[1:],
        ("text", "text", "boolean", "bigint", "bigint", *["text"] * 6, "bigint", "bigint"),
    ),
    WorkLine: ("work_line", WorkLine._fields[1:], ("text", "bigint", "integer", "text", "text", "bigint", "text")),
    PatientRisk: ("patient_risk", PatientRisk._fields[1:], ("text", "bigint", "integer")),
}
SEARCH_TABLES = tuple(table for table, _, _ in _LAYOUT.values())


@dataclass(frozen=True, slots=True)
class SearchRows:
    """The rows of one version of one resource: for each table (resource_key, param, …)."""

    by_table: dict[str, list[tuple[Any, ...]]]


def search_rows(
    resource_key: int, type: str, tree: dict[str, Any], *, words: bool, named: Sequence[Reference] | None = None
) -> SearchRows:
    """The search rows of a resource, with its `words` when full text is on; `named`: the references that it holds, when they are known. Raises Invalid for a value that cannot be read."""
    by_table: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for value in search_values(tree, named):
        table = _LAYOUT[value.__class__][0]
        param = ANY_PARAM if value.parameter == ANY_REFERENCE else param_key(type, value.parameter)
        by_table[table].append((resource_key, param, *value[1:]))
    for one in (*relationships(tree, named=named), *consent_rules(tree), *work_lines(tree), *patient_risks(tree)):
        by_table[_LAYOUT[one.__class__][0]].append((resource_key, param_key(type, one.parameter), *one[1:]))
    for text in full_text(tree) if words else ():
        param = param_key(type, text.parameter)
        by_table["search_text"].append((resource_key, param, f"{mark(param)} {text.words}"))
    return SearchRows(dict(by_table))


def insert_statement(table: str) -> str:
    """How SQLite writes one row of a search table."""
    columns = next(columns for name, columns, _ in _LAYOUT.values() if name == table)
    placeholders = ", ".join(f"?{at}" for at in range(1, len(columns) + 3))
    return f"INSERT INTO {table} ({', '.join(('resource_key', 'param', *columns))}) VALUES ({placeholders})"


def insert_statements(rows: Sequence[SearchRows], first: int) -> Iterator[tuple[str, list[list[Any]]]]:
    """How PostgreSQL writes the rows of any number of resources: a statement a table with one array a column, from argument `first` on.

    What stands in a row for the resource's key is its `place` in a table `placed (place, key)`.
    """
    for table, columns, types in _LAYOUT.values():
        batch = [row for one in rows for row in one.by_table.get(table, ())]
        if not batch:
            continue
        arrays = ", ".join(f"${at}::{type}[]" for at, type in enumerate(("bigint", "integer", *types), start=first))
        first += len(columns) + 2
        names = ", ".join(("param", *columns))
        yield (
            f"INSERT INTO {table} (resource_key, {names}) SELECT p.key, {names}"
            f" FROM unnest({arrays}) AS u (place, {names}) JOIN placed p USING (place)",
            list(map(list, zip(*batch, strict=True))),
        )


async def write_search_rows(connection: Connection, rows: Sequence[SearchRows]) -> None:
    """Write the rows of any number of resources, a table after the other (SQLite)."""
    for table in SEARCH_TABLES:
        batch = [row for one in rows for row in one.by_table.get(table, ())]
        if batch:
            await connection.executemany(insert_statement(table), batch)


async def delete_search_rows(connection: Connection, dialect: str, resource_keys: Sequence[int]) -> None:
    """Delete all rows of these resources: one round trip."""
    if not resource_keys:
        return
    if dialect == "postgresql":
        keys = "(SELECT $1::bigint[])::bigint[]"  # so that however many there are, the plan is the one that is kept
        *first, last = (f"DELETE FROM {table} WHERE resource_key = ANY({keys})" for table in SEARCH_TABLES)
        ahead = ", ".join(f"gone{at} AS ({delete})" for at, delete in enumerate(first))
        await connection.execute(f"WITH {ahead} {last}", list(resource_keys))
    else:
        for table in SEARCH_TABLES:
            await connection.executemany(f"DELETE FROM {table} WHERE resource_key = $1", [(key,) for key in resource_keys])
