"""The tests that an export makes of resources: now by their search rows, and as they were on a scratch database.

https://hl7.org/fhir/R4/compartmentdefinition-patient.html and https://hl7.org/fhir/uv/bulkdata/STU2/export.html (_typeFilter)
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fhircm.fhir.conditions import Condition
from fhircm.fhir.definitions import definitions, param_key
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_include import among
from fhircm.store.search_past import scratch_of
from fhircm.store.search_sql import Builder

_ASKED = 400


@dataclass(frozen=True, slots=True)
class ExportQuery:
    """What is exported of one type; times are microseconds since the epoch.

    `moment`: of the export. `since`, `until`: of the last change, both not included. `alternatives`: one of these lists of conditions holds.
    `compartment`: only what belongs to Patients (when `members`, to those that are kept for the job). `referenced`: only what is kept
    for the job. `few`: the members are so few that their records are sought rather than all others passed over.
    """

    job: str
    type: str
    moment: int
    since: int | None = None
    until: int | None = None
    alternatives: tuple[tuple[Condition, ...], ...] = ()
    compartment: bool = False
    members: bool = False
    few: bool = False
    referenced: bool = False
    after: int = 0

    @property
    def plain(self) -> bool:
        """Whether no test is to be made of a resource but on its time."""
        return not self.alternatives and not self.compartment


def patient_params(type: str) -> str:
    """The keys of the search parameters that put a type into the compartment of a Patient."""
    known = definitions().search_parameters[type]
    codes = [code for code in definitions().compartments["Patient"].get(type, ()) if code in known]
    return ", ".join(str(param_key(type, code)) for code in codes) or "NULL"


@cache
def every_param() -> str:
    return ", ".join(params for type in definitions().compartments["Patient"] if (params := patient_params(type)) != "NULL")


# The versions (key, version) that come as arguments, of which no statement has another text: databases keep those that they have read.
WANTED = {
    "sqlite": "(SELECT json_extract(value, '$[0]') AS key, json_extract(value, '$[1]') AS version FROM json_each($1)) w",
    "postgresql": "(SELECT * FROM unnest($1::bigint[], $2::bigint[])) AS w (key, version)",
}


def wanted(dialect: str, versions: Sequence[tuple[int, int]]) -> list[Any]:
    if dialect == "sqlite":
        return [json.dumps(versions)]
    return [[key for key, _ in versions], [version for _, version in versions]]


def chunks(all: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (all[start : start + _ASKED] for start in range(0, len(all), _ASKED))


async def holding(
    connection: Connection,
    dialect: str,
    query: ExportQuery,
    within: Narrowing | None,
    narrowed: Sequence[Condition],
    keys: Iterable[int],
) -> set[int]:
    """Those of these keys that pass every test now."""
    builder = Builder(dialect, within)
    where = f"r.key {among(builder, dialect, sorted(keys), 'bigint')}"
    sql = f"SELECT r.key FROM resource r WHERE {where} AND {_tests(builder, query, query.alternatives, narrowed)}"
    return {row["key"] for row in await connection.fetch(sql, *builder.arguments)}


async def held(
    connection: Connection,
    dialect: str,
    query: ExportQuery,
    within: Narrowing | None,
    narrowed: Sequence[Condition],
    versions: Sequence[tuple[int, int]],
) -> set[int]:
    """The keys of those versions (key, version) that passed every test, as what is around them is now."""
    rows = await connection.fetch(
        f"SELECT r.key, r.type, r.id, v.version, v.method, v.last_updated, v.body FROM {WANTED[dialect]} CROSS JOIN version v"
        " JOIN resource r ON r.key = v.resource_key WHERE v.resource_key = w.key AND v.version = w.version AND v.method <> 'delete'",
        *wanted(dialect, versions),
    )
    branches = [(query.type, list(one)) for one in (*query.alternatives, narrowed)]
    past = await scratch_of(connection, dialect, within, rows, branches)
    *alternatives, extra = (tuple(conditions) for _, conditions in past.branches)
    assert past.scratch is not None
    if query.compartment and query.type == "Provenance":
        await _remember_targets(connection, past.scratch)
    past.scratch.execute("CREATE TABLE job_target (job, type, id)")
    if query.members:
        referred = past.scratch.execute("SELECT target_id AS id FROM search_reference WHERE target_type = 'Patient'").fetchall()
        ids = {row["id"] for row in referred} | {row["id"] for row in rows}
        members = [(query.job, "Patient", id) for id in await _members(connection, query.job, sorted(ids))]
        past.scratch.executemany("INSERT INTO job_target VALUES (?, ?, ?)", members)
    builder = Builder("sqlite", replace(within, by_type={}) if within else None)
    sql = f"SELECT r.key FROM resource r WHERE {_tests(builder, query, alternatives, extra)}"
    return {row["key"] for row in past.fetch(sql, builder.arguments)}


async def _remember_targets(connection: Connection, scratch: sqlite3.Connection) -> None:
    """To which Patients those resources belong, as of now, that Provenances in a scratch database are about."""
    target = param_key("Provenance", "target")
    wanted = scratch.execute("SELECT DISTINCT target_type, target_id FROM search_reference WHERE param = ?", (target,)).fetchall()
    for chunk in chunks(wanted):
        pairs = ", ".join(f"(${at}, ${at + 1})" for at in range(1, 2 * len(chunk), 2))
        rows = await connection.fetch(
            "SELECT t.key, t.type, t.id, y.param, y.target_id FROM resource t JOIN search_reference y ON y.resource_key = t.key"
            f" WHERE (t.type, t.id) IN (VALUES {pairs}) AND y.param IN ({every_param()}) AND y.target_type = 'Patient'",
            *(part for one in chunk for part in one),
        )
        for row in rows:
            own = (row["key"], row["type"], row["id"])
            scratch.execute("INSERT OR IGNORE INTO resource VALUES (?, ?, ?, 0, 0, 0)", own)
            reference = (row["param"], row["target_id"], row["key"], "Patient")
            scratch.execute("INSERT OR IGNORE INTO search_reference VALUES (?, ?, ?, ?)", reference)


async def _members(connection: Connection, job: str, ids: Sequence[str]) -> list[str]:
    found: list[str] = []
    for chunk in chunks(ids):
        marks = ", ".join(f"${at}" for at in range(2, len(chunk) + 2))
        rows = await connection.fetch(
            f"SELECT id FROM job_target WHERE job = $1 AND type = 'Patient' AND id IN ({marks})", job, *chunk
        )
        found += [row["id"] for row in rows]
    return found


def _tests(
    builder: Builder, query: ExportQuery, alternatives: Sequence[Sequence[Condition]], narrowed: Sequence[Condition]
) -> str:
    """Every test on a resource `r`, as SQL."""
    tests = [builder.holds(condition, "r.key", "r") for condition in narrowed]
    ways = [" AND ".join(builder.holds(condition, "r.key", "r") for condition in one) or "1 = 1" for one in alternatives]
    if ways:
        tests.append(f"({' OR '.join(f'({way})' for way in ways)})")
    if query.compartment:
        tests.append(f"({' OR '.join(_belongs(builder, query))})")
    return " AND ".join(tests) or "1 = 1"


def _belongs(builder: Builder, query: ExportQuery) -> Iterable[str]:
    """The ways in which a resource belongs to a Patient: https://hl7.org/fhir/R4/compartmentdefinition-patient.html"""

    def patient(id: str) -> str:
        if not query.members:
            return ""
        job = builder.argument(query.job)
        return f" AND EXISTS (SELECT 1 FROM job_target m WHERE m.job = {job} AND m.type = 'Patient' AND m.id = {id})"

    if query.type == "Patient":
        yield f"(1 = 1{patient('r.id')})"
    yield (
        f"EXISTS (SELECT 1 FROM search_reference x WHERE x.resource_key = r.key AND x.param IN ({patient_params(query.type)})"
        f" AND x.target_type = 'Patient'{patient('x.target_id')})"
    )
    if query.type == "Provenance":  # and that of whatever belongs to the Patient
        yield (
            "EXISTS (SELECT 1 FROM search_reference x JOIN resource t ON t.type = x.target_type AND t.id = x.target_id"
            f" JOIN search_reference y ON y.resource_key = t.key WHERE x.resource_key = r.key AND"
            f" x.param = {param_key('Provenance', 'target')} AND y.param IN ({every_param()}) AND y.target_type = 'Patient'{patient('y.target_id')})"
        )
