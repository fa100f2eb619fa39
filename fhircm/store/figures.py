"""Figures for those who watch the hub: what is kept for many partners at once, and how far behind the work is.

https://prometheus.io/docs/practices/instrumentation/. Everything is read, nothing is kept; some partners more cost no statement more each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from fhircm.store.changes import AFTER
from fhircm.store.database import Database
from fhircm.store.operations import START, Position
from fhircm.store.stored import micros, moment

COUNTED = 10_000  # changes behind a cursor; more are not counted
_ASKED = 400  # names in one statement
# A member of a fact, which is JSON: its name is $1.
_MEMBER = {"sqlite": "json_extract(value, '$.' || $1)", "postgresql": "value::json ->> $1::text"}
_TYPE = {
    "sqlite": "substr(name, 1, instr(name, '/') - 1)",
    "postgresql": "CASE WHEN position('/' IN name) > 0 THEN split_part(name, '/', 1) ELSE '' END",
}


@dataclass(frozen=True, slots=True)
class Behind:
    """How far a reader of the changes is behind: changes, and since when the first of them waits."""

    changes: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Overdue:
    """The timers of one kind: all of them, those that are overdue, and since when the first of these is."""

    timers: int
    overdue: int
    since: datetime | None


class Figures:
    """Reads figures of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def states(self, namespaces: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """The facts of many namespaces, by namespace and key; of one without facts there is none."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        async for row in self._of("SELECT namespace, key, value FROM state WHERE namespace IN ({})", namespaces):
            found.setdefault(row["namespace"], {})[row["key"]] = msgspec.json.decode(row["value"])
        return found

    async def tallied(self, namespaces: Collection[str], member: str) -> dict[str, Counter[str]]:
        """How many facts of each namespace say what in a member."""
        found: dict[str, Counter[str]] = {}
        said = _MEMBER[self._database.dialect]
        sql = f"SELECT namespace, {said} AS said, COUNT(*) AS facts FROM state WHERE namespace IN ({{}}) GROUP BY 1, 2 ORDER BY 1, 2"
        async for row in self._of(sql, namespaces, member):
            found.setdefault(row["namespace"], Counter())[row["said"]] = int(row["facts"])
        return found

    async def least(self, namespaces: Collection[str], member: str) -> dict[str, tuple[int, str]]:
        """How many facts each namespace has, and the least of what they say in a member."""
        said = _MEMBER[self._database.dialect]
        sql = f"SELECT namespace, COUNT(*) AS facts, MIN({said}) AS least FROM state WHERE namespace IN ({{}}) GROUP BY 1"
        return {row["namespace"]: (int(row["facts"]), row["least"]) async for row in self._of(sql, namespaces, member)}

    async def held(self, partners: Collection[str]) -> dict[str, Counter[tuple[str, str]]]:
        """How much of each partner is in quarantine, by kind and type; the type is empty for what has none, such as a search."""
        found: dict[str, Counter[tuple[str, str]]] = {}
        sql = (
            f"SELECT partner, kind, {_TYPE[self._database.dialect]} AS type, COUNT(*) AS held FROM quarantine"
            " WHERE partner IN ({}) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
        async for row in self._of(sql, partners):
            found.setdefault(row["partner"], Counter())[row["kind"], row["type"]] = int(row["held"])
        return found

    async def due(self, keys: Collection[str]) -> dict[str, datetime]:
        """When these timers are due."""
        return {row["key"]: moment(row["due"]) async for row in self._of("SELECT key, due FROM timer WHERE key IN ({})", keys)}

    async def head(self) -> Position:
        """The place of the newest change."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow("SELECT tx, number FROM change ORDER BY tx DESC, number DESC LIMIT 1")
        return Position(row["tx"], row["number"]) if row else START

    async def behind(self, cursors: Sequence[str]) -> dict[str, Behind]:
        """How far these readers of the changes are behind; at most COUNTED changes are counted."""
        found, after = {}, AFTER[self._database.dialect].format("$1", "$2")
        async with self._database.reading() as connection:
            for name in cursors:
                row = await connection.fetchrow("SELECT tx, number FROM cursor WHERE name = $1", name)
                place = (row["tx"], row["number"]) if row else START
                counted = await connection.fetchrow(
                    "SELECT COUNT(*) AS changes, MIN(at) AS since FROM"
                    f" (SELECT at FROM change WHERE {after} ORDER BY tx, number LIMIT {COUNTED}) c",
                    *place,
                )
                since = counted["since"]
                found[name] = Behind(int(counted["changes"]), None if since is None else moment(since))
        return found

    async def overdue(self, now: datetime) -> dict[str, Overdue]:
        """The timers by kind."""
        at = micros(now)
        async with self._database.reading() as connection:
            rows = await connection.fetch(
                "SELECT kind, COUNT(*) AS timers, SUM(CASE WHEN due < $1 THEN 1 ELSE 0 END) AS overdue, MIN(due) AS first"
                " FROM timer GROUP BY kind ORDER BY kind",
                at,
            )
        return {
            row["kind"]: Overdue(int(row["timers"]), int(row["overdue"]), moment(row["first"]) if row["overdue"] else None)
            for row in rows
        }

    async def _of(self, sql: str, names: Collection[str], *first: Any) -> AsyncIterator[Mapping[str, Any]]:
        """The rows of a statement for many names, which stand where its {} is."""
        wanted = sorted(names)
        for start in range(0, len(wanted), _ASKED):
            chunk = wanted[start : start + _ASKED]
            marks = ", ".join(f"${at}" for at in range(len(first) + 1, len(first) + len(chunk) + 1))
            async with self._database.reading() as connection:
                rows = await connection.fetch(sql.format(marks), *first, *chunk)
            for row in rows:
                yield row
