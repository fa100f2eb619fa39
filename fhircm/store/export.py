"""What an export reads: resources in order of their keys, as they were at one moment, in pages of bounded size.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html (transactionTime). The moment is a time that all writers are past (writers.py): a
version belongs to it when its last_updated is not later. What has not changed since is found by its search rows, and its bytes are served
as they are stored; what has is looked up in the versions, and tested on a scratch database as search_past.py makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fhircm.store.database import Connection
from fhircm.store.export_tests import WANTED, ExportQuery, chunks, held, holding, patient_params, wanted
from fhircm.store.operations import Narrowing
from fhircm.store.search_sql import Builder

__all__ = ["ExportPage", "ExportQuery", "ExportRow", "export_page"]

BYTES = 4 * 1024 * 1024  # of bodies in one page; one larger body stands alone
ROWS = 2000


class ExportRow(NamedTuple):
    """A resource to export."""

    key: int
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ExportPage:
    """A page. `deleted` are ids of resources that were deleted since; `seen` is how many were looked at.

    `after` is where the next page begins; None: nothing is left of this type.
    """

    rows: list[ExportRow]
    deleted: list[str]
    seen: int
    after: int | None


class _Then(NamedTuple):
    """A resource at the moment of the export; `changed`: later, or gone, so that its search rows tell nothing of it."""

    key: int
    id: str
    version: int
    updated: int
    deleted: bool
    changed: bool


async def export_page(connection: Connection, dialect: str, query: ExportQuery, within: Narrowing | None) -> ExportPage:
    """The next page; the connection must see one moment."""
    heads = await _heads(connection, query)
    if not heads:
        return ExportPage([], [], 0, None)
    then = [one for one in await _then(connection, query, heads) if _in_time(query, one)]
    narrowed = Builder(within).narrowed(query.type, [])
    if narrowed or not query.plain:
        now = {one.key for one in then if not one.changed}
        passed = await holding(connection, dialect, query, within, narrowed, now) if now else set()
        was = [(one.key, one.version - one.deleted) for one in then if one.changed]  # what is deleted: as it was before
        passed |= await held(connection, dialect, query, within, narrowed, was) if was else set()
        then = [one for one in then if one.key in passed]
    alive = [one for one in then if not one.deleted]
    bodies = await _bodies(connection, dialect, [(one.key, one.version) for one in alive])
    rows = [ExportRow(one.key, one.id, bodies[one.key]) for one in alive]
    return ExportPage(rows, [one.id for one in then if one.deleted], len(heads), heads[-1]["key"])


async def _heads(connection: Connection, query: ExportQuery) -> Sequence[Mapping[str, Any]]:
    """The next resources that may be in it, as they are now; their bodies come to about BYTES."""
    source, where, arguments = _candidates(query)
    rows = await connection.fetch(
        "SELECT h.key, h.id, h.version, h.last_updated, h.deleted, length(v.body) AS size FROM"
        f" (SELECT r.key, r.id, r.version, r.last_updated, r.deleted FROM {source} WHERE r.type = $1 AND r.key > $2 AND {where}"
        f" ORDER BY r.key LIMIT {ROWS}) h JOIN version v ON v.resource_key = h.key AND v.version = h.version ORDER BY h.key",
        query.type,
        query.after,
        *arguments,
    )
    size = 0
    for at, row in enumerate(rows):
        size += row["size"]
        if size > BYTES and at:
            return rows[:at]
    return rows


def _candidates(query: ExportQuery) -> tuple[str, str, list[Any]]:
    """Where to look: what is kept for the job, what has changed since, the records of few Patients, or all of the type."""
    if query.referenced:
        return "job_target t JOIN resource r ON r.type = t.type AND r.id = t.id", "t.job = $3 AND t.type = $1", [query.job]
    if query.since is not None:
        return "resource r", "r.last_updated > $3", [query.since]
    if query.few and query.type != "Provenance":
        own = " UNION SELECT o.key FROM job_target m JOIN resource o ON o.type = m.type AND o.id = m.id WHERE m.job = $3 AND m.type = $1"
        keys = (
            "SELECT x.resource_key FROM job_target m CROSS JOIN search_reference x"  # so that SQLite begins with the Patients
            " WHERE m.job = $3 AND m.type = 'Patient' AND x.target_id = m.id AND x.target_type = m.type"
            f" AND x.param IN ({patient_params(query.type)}) AND x.resource_key > $2"
            f"{own if query.type == 'Patient' else ''}"
            " UNION SELECT c.key FROM resource c WHERE c.type = $1 AND c.last_updated > $4"
        )
        return "resource r", f"r.key IN ({keys})", [query.job, query.moment]
    return "resource r", "1 = 1", []


async def _then(connection: Connection, query: ExportQuery, heads: Sequence[Mapping[str, Any]]) -> list[_Then]:
    """Each as it was at the moment; those that were not there yet are left out."""
    later = [row["key"] for row in heads if row["last_updated"] > query.moment]
    older = {row["resource_key"]: row for row in await _versions_of(connection, later, query.moment)}
    found: list[_Then] = []
    for row in heads:
        if row["last_updated"] <= query.moment:
            gone = bool(row["deleted"])
            found.append(_Then(row["key"], row["id"], row["version"], row["last_updated"], gone, gone))
        elif (was := older.get(row["key"])) is not None:
            found.append(_Then(row["key"], row["id"], was["version"], was["last_updated"], was["method"] == "delete", True))
    return found


async def _versions_of(connection: Connection, keys: Sequence[int], moment: int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for chunk in chunks(keys):
        listed = ", ".join(map(str, chunk))  # numbers of ours
        found += await connection.fetch(
            "SELECT v.resource_key, v.version, v.method, v.last_updated FROM version v JOIN (SELECT resource_key, MAX(version) AS version"
            f" FROM version WHERE resource_key IN ({listed}) AND last_updated <= $1 GROUP BY resource_key) n"
            " ON n.resource_key = v.resource_key AND n.version = v.version",
            moment,
        )
    return found


def _in_time(query: ExportQuery, one: _Then) -> bool:
    """Whether its last change is in the time that is asked for; what was deleted counts only when a client has had it before."""
    if one.deleted and (query.since is None or query.referenced):
        return False
    if query.referenced:
        return True
    return (query.since is None or one.updated > query.since) and (query.until is None or one.updated < query.until)


async def _bodies(connection: Connection, dialect: str, versions: Sequence[tuple[int, int]]) -> dict[int, bytes]:
    rows = await connection.fetch(
        f"SELECT v.resource_key, v.body FROM {WANTED[dialect]} CROSS JOIN version v"
        " WHERE v.resource_key = w.key AND v.version = w.version",
        *wanted(dialect, versions),
    )
    return {row["resource_key"]: bytes(row["body"]) for row in rows}
