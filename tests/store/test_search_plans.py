"""What SQLite reads for a search, which has no statistics to go by: the rows of a candidate, never all rows of a parameter again and again."""

import re
import sqlite3

import pytest

from fhircm.fhir.query import parse_query
from fhircm.store.search import _page_statement
from fhircm.store.search_sql import Builder


@pytest.mark.parametrize(
    "asked",
    [
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
    ],
)
async def test_candidates_are_tested_by_their_own_rows(sqlite_url, asked):
    parameters = [("subject", "Patient/1"), *(one.split("=", 1) for one in asked)]
    query = parse_query("Observation", parameters)
    builder = Builder("sqlite")
    statement = _page_statement(builder, "sqlite", query, query.branches, None, ())
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    numbered = re.sub(r"\$(\d+)", r"?\1", statement)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {numbered}", builder.arguments)]
    connection.close()
    tests = [step for step in plan if re.match(r"SEARCH (x\d+|s) ", step)]
    assert tests, plan
    for step in tests:
        assert "resource_key=?" in step or "type=? AND id=?" in step, step
