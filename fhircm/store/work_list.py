"""A page of the work lists of somebody, merged: a keyset over the lines, in one statement, and what comes along in one more.

https://hl7.org/fhir/R4/task.html. Lines are read in the order of their index, a list after the other and no more of each than the page can
show; what the caller may see is asked of these few. So a page costs the same whether a list has a hundred lines or a million.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhircm.fhir.conditions import Condition
from fhircm.fhir.work_list import RISKS
from fhircm.store.database import Connection
from fhircm.store.operations import Free, Narrowing
from fhircm.store.search_include import COLUMNS, CURRENT, narrowed_types, stored
from fhircm.store.search_sql import Builder
from fhircm.store.stored import Stored
from fhircm.store.transaction import lock_free, versions_now
from fhircm.store.visibility import PLANNED_ALIKE

# A line behind the cursor is one that comes later by all of these.
SORTS = {
    "due": ("due", "priority", "resource_key"),
    "priority": ("priority", "due", "resource_key"),
    "risk": ("risk", "due", "resource_key"),
}
_MANY_LISTS = 200  # that are read one after the other on SQLite, which joins at most 500 selects
_AT_MOST = 5000  # lines that are looked at at once, when most of them are hidden


@dataclass(frozen=True, slots=True)
class WorkQuery:
    """What is asked for. `lists`: the names of the lists (fhircm/fhir/work_list.py). Empty filters let everything through.

    `due`: within [low, high), in microseconds; `now`: what is hidden until later is not shown, unless `hidden`. `priorities` are places in
    PRIORITIES, `risks` places in RISKS (one behind them: not known); `conditions` hold of the Tasks besides. `after`: the place of the last line before.
    """

    lists: tuple[str, ...]
    now: int
    sort: str = "due"
    count: int = 20
    due: tuple[int | None, int | None] = (None, None)
    priorities: tuple[int, ...] = ()
    risks: tuple[int, ...] = ()
    statuses: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    hidden: bool = False
    conditions: tuple[Condition, ...] = ()
    after: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class WorkPage:
    """The Tasks in order; their Patients and the newest RiskAssessment of each, as far as the caller may see them, by the id of the Patient.

    `next`: what `after` is on the next page; None: there is no more.
    """

    tasks: list[Stored]
    patients: Mapping[str, Stored]
    risks: Mapping[str, Stored]
    next: tuple[int, ...] | None


async def work_list(connection: Connection, dialect: str, query: WorkQuery, within: Narrowing | None) -> WorkPage:
    """A page. What the caller does not see is passed over, and counted nowhere."""
    shown, following = await _page(connection, dialect, query, within)
    along = await _along(connection, dialect, sorted({row["patient"] for row in shown} - {""}), within)
    return WorkPage([stored(row) for row in shown], along["Patient"], along["RiskAssessment"], following)


async def free_tasks(connection: Connection, dialect: str, free: Free, within: Narrowing | None) -> list[Stored]:
    """The first Tasks of a work list that fit and that nobody else writes at this moment; they are locked, so that they stay as they are.

    Those behind the first thousands are not looked at. SQLite has one writer at a time.
    """
    wanted, after = free.query.count, free.query.after
    page = replace(free.query, count=4 * wanted)
    found: list[Stored] = []
    looked_at = 0
    while True:
        rows, after = await _page(connection, dialect, replace(page, after=after), within)
        looked_at += len(rows)
        fitting = {("Task", task.id): task for task in map(stored, rows) if free.fits(task)}
        if fitting and dialect == "postgresql":
            locked = await lock_free(connection, list(fitting), wanted - len(found))
            now = await versions_now(connection, dialect, locked)
            fitting = {one: fitting[one] for one in locked if now.get(one) == fitting[one].version}
        found += fitting.values()
        if after is None or len(found) >= wanted or looked_at >= _AT_MOST:
            return found[:wanted]


async def _page(
    connection: Connection, dialect: str, query: WorkQuery, within: Narrowing | None
) -> tuple[list[Mapping[str, Any]], tuple[int, ...] | None]:
    """The lines of a page with their Tasks, and where the next one begins."""
    rows: list[Mapping[str, Any]] = []
    after, limit, more = query.after, query.count + 1, bool(query.lists)
    while more and len(rows) <= query.count:
        builder = Builder(dialect, within)
        found = await connection.fetch(_statement(builder, query, after, limit), *builder.arguments)
        rows += [row for row in found if row["body"] is not None]
        more = len(found) == limit
        after = _place(query, found[-1]) if found else after
        limit = min(4 * limit, _AT_MOST)
    shown = rows[: query.count]
    return shown, _place(query, shown[-1]) if len(rows) > query.count else None


def _place(query: WorkQuery, row: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(row[column] for column in SORTS[query.sort])


def _statement(builder: Builder, query: WorkQuery, after: tuple[int, ...] | None, limit: int) -> str:
    """The next lines of all lists, and the Tasks behind them; a Task that may not be seen, or is not meant, has no body.

    The limit stands in the text: PostgreSQL would otherwise take any number of lines for possible, and read whole tables for them.
    """
    columns = ("due", "priority", "resource_key", "patient", *(("risk",) if _with_risk(query) else ()))
    order = ", ".join(SORTS[query.sort])
    lines = f"SELECT DISTINCT {', '.join(columns)} FROM ({_lines(builder, query, after, limit)}) q ORDER BY {order} LIMIT {limit}"
    tests = [builder.holds(one, "r.key", "r") for one in builder.narrowed("Task", query.conditions)]
    body = f"CASE WHEN {' AND '.join(tests)} THEN v.body END" if tests else "v.body"
    return (
        f"WITH line AS MATERIALIZED ({lines}) SELECT {', '.join(f'line.{column}' for column in columns)},"
        f" r.type, r.id, r.version, r.last_updated, v.method, {body} AS body FROM line JOIN resource r ON r.key = line.resource_key"
        f" {CURRENT} ORDER BY {', '.join(f'line.{column}' for column in SORTS[query.sort])}"
    )


def _with_risk(query: WorkQuery) -> bool:
    return query.sort == "risk" or bool(query.risks)


def _lines(builder: Builder, query: WorkQuery, after: tuple[int, ...] | None, limit: int) -> str:
    """The next lines of each list."""
    if builder.dialect == "postgresql":
        names = PLANNED_ALIKE["rows"].format(builder.argument(list(query.lists)))
        return f"SELECT w.* FROM unnest({names}) AS l (list) CROSS JOIN LATERAL ({_of_list(builder, query, 'l.list', after, limit)}) w"
    if len(query.lists) > _MANY_LISTS:
        names = builder.argument(json.dumps(query.lists))
        return _of_list(builder, query, None, after, limit).replace(
            "<lists>", f"w.list IN (SELECT value FROM json_each({names}))"
        )
    selects = [_of_list(builder, query, builder.argument(name), after, limit) for name in query.lists]
    return " UNION ALL ".join(f"SELECT * FROM ({select})" for select in selects)


def _of_list(builder: Builder, query: WorkQuery, list: str | None, after: tuple[int, ...] | None, limit: int) -> str:
    newest = _newest_risk(builder, "w.patient", "level") if _with_risk(query) else ""
    risk = f", COALESCE(({newest}), {len(RISKS)}) AS risk" if newest else ""
    where = [f"w.list = {list}" if list else "<lists>", *_filters(builder, query)]
    source, a = f"work_line w WHERE {' AND '.join(where)}", "w"
    if risk:
        source, a = f"(SELECT w.*{risk} FROM {source}) x WHERE 1 = 1", "x"
        if query.risks:
            source += f" AND x.risk IN ({', '.join(map(str, query.risks))})"
    if after is not None:
        place = ", ".join(
            builder.shared_argument(f"after {at}", value, PLANNED_ALIKE["number"]) for at, value in enumerate(after)
        )
        source += f" AND ({', '.join(f'{a}.{column}' for column in SORTS[query.sort])}) > ({place})"
    order = ", ".join(f"{a}.{column}" for column in SORTS[query.sort])
    columns = ("due", "priority", "resource_key", "patient", *(("risk",) if risk else ()))
    return f"SELECT {', '.join(f'{a}.{column}' for column in columns)} FROM {source} ORDER BY {order} LIMIT {limit}"


def _filters(builder: Builder, query: WorkQuery) -> list[str]:
    """What is asked of the lines themselves."""
    low, high = query.due
    tests = [] if low is None else [f"w.due >= {builder.shared_argument('due from', low, PLANNED_ALIKE['number'])}"]
    tests += [] if high is None else [f"w.due < {builder.shared_argument('due before', high, PLANNED_ALIKE['number'])}"]
    if query.priorities:
        tests.append(f"w.priority IN ({', '.join(map(str, sorted(query.priorities)))})")
    if query.statuses:
        tests.append(f"w.status IN ({', '.join(builder.shared_argument(f'status {one}', one) for one in query.statuses)})")
    if query.patients:
        tests.append(f"w.patient IN ({', '.join(builder.shared_argument(f'Patient/{one}', one) for one in query.patients)})")
    if query.reasons:
        tests.append(f"w.why IN ({', '.join(builder.shared_argument(f'why {one}', one) for one in query.reasons)})")
    if not query.hidden:
        tests.append(f"w.hidden <= {builder.shared_argument('awake', query.now, PLANNED_ALIKE['number'])}")
    return tests


# --- risk, and what comes along


def _newest_risk(builder: Builder, patient: str, what: str) -> str:
    """Of the newest RiskAssessment of a patient that the caller may see and that holds: its `resource_key`, or its `level`."""
    tests = [f" AND {builder.holds(one, 'x.resource_key')}" for one in builder.narrowed("RiskAssessment", [])]
    return (
        f"SELECT x.{what} FROM patient_risk x WHERE x.patient = {patient}{''.join(tests)}"
        " ORDER BY x.at DESC, x.resource_key DESC LIMIT 1"
    )


async def _along(
    connection: Connection, dialect: str, patients: Sequence[str], within: Narrowing | None
) -> dict[str, dict[str, Stored]]:
    """The Patients of the lines, and the newest RiskAssessment of each, by the id of the Patient."""
    along: dict[str, dict[str, Stored]] = {"Patient": {}, "RiskAssessment": {}}
    if not patients:
        return along
    builder = Builder(dialect, within)
    if dialect == "postgresql":
        listed = f"unnest({PLANNED_ALIKE['rows'].format(builder.argument(list(patients)))}) AS p (value)"
    else:
        listed = f"json_each({builder.argument(json.dumps(patients))}) p"
    sql = (
        f"SELECT p.value AS about, {COLUMNS} FROM {listed} CROSS JOIN resource r {CURRENT}"
        f" WHERE r.type = 'Patient' AND r.id = p.value AND NOT r.deleted{narrowed_types(builder, ['Patient'])}"
        f" UNION ALL SELECT p.value AS about, {COLUMNS} FROM {listed} CROSS JOIN resource r {CURRENT}"
        f" WHERE r.key = ({_newest_risk(builder, 'p.value', 'resource_key')})"
    )
    for row in await connection.fetch(sql, *builder.arguments):
        along[row["type"]][row["about"]] = stored(row)
    return along
