"""What a database reads for a search when it has no statistics to go by: the rows of a candidate, never all rows of a parameter again and again."""

import json
import re
import sqlite3

import asyncpg
import pytest

from fhircm.fhir.query import parse_query
from fhircm.store.search import _page_statement
from fhircm.store.search_sql import Builder

ASKED = [
    ["value-quantity=gt300"],
    ["value-quantity=300|http://unitsofmeasure.org|mg"],
    ["code:text=word"],
    ["value-quantity:missing=true"],
    ["value-string:missing=false"],
    ["date=ge2020"],
    ["code=http://loinc.org|"],
    ["component-code-value-quantity=8480-6$gt300"],
    ["component-code-value-quantity=http://loinc.org|$gt300,8480-6$5"],
    ["code-value-string=a$b"],
    ["component-code-value-quantity:missing=true"],
    ["patient.family=some"],
    ["_sort=value-quantity"],
    ["_sort=-value-string,date"],
]


FILLED = {
    "resource (key, type, id, version, last_updated, deleted)": "g, 'Observation', g, 1, g, false",
    "search_token (param, code, resource_key, system)": "1, 'c', g, ''",
    "search_reference (param, target_id, resource_key, target_type)": "1, 't', g, 'Patient'",
    "search_string (param, start, resource_key, normalised, exact)": "1, 'a', g, 'a', 'a'",
    "search_date (param, low, high, resource_key)": "1, g, g, g",
    "search_quantity (param, low, high, resource_key, system, code, unit)": "1, g, g, g, '', '', ''",
    "search_composite (param, resource_key, at, code, system, low, high)": "1, g, 0, 'c', '', NULL, NULL",
}


def statement_of(asked, dialect):
    parameters = [("subject", "Patient/1"), *(one.split("=", 1) for one in asked)]
    query = parse_query("Observation", parameters)
    builder = Builder(dialect)
    return _page_statement(builder, dialect, query, query.branches, None, ()), builder.arguments


@pytest.mark.parametrize("asked", ASKED)
async def test_candidates_are_tested_by_their_own_rows(sqlite_url, asked):
    statement, arguments = statement_of(asked, "sqlite")
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    numbered = re.sub(r"\$(\d+)", r"?\1", statement)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {numbered}", arguments)]
    connection.close()
    tests = [step for step in plan if re.match(r"SEARCH (x\d+|s) ", step)]
    assert tests, plan
    for step in tests:
        assert "resource_key=?" in step or "type=? AND id=?" in step, step


@pytest.mark.parametrize("asked", [*ASKED, ["status=final,amended", "date=ge2020"]])
async def test_candidates_are_tested_by_their_own_rows_on_postgresql(postgres_url, asked):
    statement, arguments = statement_of(asked, "postgresql")
    connection = await asyncpg.connect(postgres_url)
    for table, columns in FILLED.items():  # never analysed: PostgreSQL knows how large they are, and no more
        await connection.execute(f"INSERT INTO {table} SELECT {columns} FROM generate_series(1, 20000) g")
    (plan,) = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments))
    await connection.close()
    scans = [node for node in below(plan["Plan"]) if re.fullmatch(r"x\d+|s", node.get("Alias", ""))]
    assert scans
    for node in scans:
        index = node if "Index Cond" in node else node["Plans"][0]
        found_by_value = re.search(r"\bcode = .*resource_key = ", index["Index Cond"])
        assert found_by_value or "param" not in index["Index Cond"], index


def below(node):
    yield node
    for inner in node.get("Plans", ()):
        yield from below(inner)
