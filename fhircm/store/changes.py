"""The change log: read in order, never past a transaction that is still in flight. docs/decisions/change-numbers-in-order.md"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.outcome import NotFound
from fhircm.store.database import Connection
from fhircm.store.operations import START, Change, MoveCursor, Position
from fhircm.store.stored import moment

SCANNED = 5_000  # changes looked through at a time, so that a reaction to a rare type passes over the others


class CursorMoved(Exception):
    """Another worker moved the cursor first."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Some changes in order; `upto` is where to go on, and may lie behind changes of other types.

    `held_up`: there are newer ones, which can be read as soon as an older transaction has ended.
    """

    changes: list[Change]
    upto: Position
    held_up: bool = False

    def of(self, types: frozenset[str], limit: int) -> Changes:
        """Those of some types, at most so many."""
        found = [one for one in self.changes if one.type in types]
        if len(found) <= limit:
            return Changes(found, self.upto, self.held_up)
        return Changes(found[:limit], found[limit - 1].position)


# What lies after a place (transaction, number). SQLite, of which all transactions have the number 0 here, would go through all of one transaction.
AFTER = {"sqlite": "tx = {} AND number > {}", "postgresql": "(tx, number) > ({}, {})"}
_SETTLED = {"sqlite": "1", "postgresql": "tx < (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint)"}


async def read_changes(
    connection: Connection, dialect: str, after: Position, types: frozenset[str] | None, limit: int
) -> Changes:
    """The changes after a position, of these types (None: all)."""
    rows = await connection.fetch(
        f"SELECT tx, number, type, id, version, method, origin, at, {_SETTLED[dialect]} AS settled FROM change"
        f" WHERE {AFTER[dialect].format('$1', '$2')} ORDER BY tx, number LIMIT $3",
        *after,
        SCANNED if types is not None else limit,
    )
    found: list[Change] = []
    upto = after
    for row in rows:
        if not row["settled"]:
            return Changes(found, upto, held_up=True)
        if types is None or row["type"] in types:
            if len(found) == limit:
                break
            found.append(_change(row))
        upto = Position(row["tx"], row["number"])
    return Changes(found, upto)


async def in_flight(connection: Connection, dialect: str) -> int:
    """The number behind every transaction that is in flight; SQLite has one writer at a time, and nothing waits for it."""
    if dialect == "sqlite":
        return 0
    return int(await connection.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))


async def has_settled(connection: Connection, dialect: str, mark: int) -> bool:
    """Whether every transaction before this number has ended."""
    if dialect == "sqlite":
        return True
    return bool(await connection.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= $1", mark))


async def read_change(connection: Connection, type: str, id: str, version: int) -> Change:
    """The change that made one version. Raises NotFound."""
    # There is no index by identity: only a human who replays what was parked asks, and may wait for a scan.
    row = await connection.fetchrow(
        "SELECT tx, number, type, id, version, method, origin, at FROM change WHERE type = $1 AND id = $2 AND version = $3",
        type,
        id,
        version,
    )
    if row is None:
        raise NotFound(f"{type}/{id} has no version {version}")
    return _change(row)


def _change(row: Mapping[str, Any]) -> Change:
    position = Position(row["tx"], row["number"])
    return Change(position, row["type"], row["id"], row["version"], row["method"], row["origin"], moment(row["at"]))


async def read_cursors(connection: Connection, names: Sequence[str]) -> dict[str, Position]:
    """Where some cursors stand, of those that ever moved."""
    listed = ", ".join(f"${at}" for at in range(1, len(names) + 1))
    rows = await connection.fetch(f"SELECT name, tx, number FROM cursor WHERE name IN ({listed})", *names)
    return {row["name"]: Position(row["tx"], row["number"]) for row in rows}


async def read_cursor(connection: Connection, name: str) -> Position:
    """Where a cursor stands; the beginning for one that never moved."""
    row = await connection.fetchrow("SELECT tx, number FROM cursor WHERE name = $1", name)
    return Position(row["tx"], row["number"]) if row else START


async def move_cursor(connection: Connection, move: MoveCursor) -> None:
    """Compare and swap. Raises CursorMoved."""
    if move.before == START:
        moved = await connection.fetchval(
            "INSERT INTO cursor (name, tx, number) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING RETURNING name",
            move.name,
            *move.to,
        )
    else:
        moved = await connection.fetchval(
            "UPDATE cursor SET tx = $2, number = $3 WHERE name = $1 AND tx = $4 AND number = $5 RETURNING name",
            move.name,
            *move.to,
            *move.before,
        )
    if moved is None:
        raise CursorMoved(move.name)
