"""Search rows made anew: read in order of keys, written under the same locks as any write, never over those of a newer version.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.guides import in_force
from fhircm.fhir.outcome import Invalid
from fhircm.store.database import Connection
from fhircm.store.guides import GuidesMoved
from fhircm.store.operations import RewriteSearchRows
from fhircm.store.search_rows import SearchRows, delete_search_rows, insert_statements, search_rows, write_search_rows
from fhircm.store.transaction import lock_identities, versions_now

BYTES = 4 * 1024 * 1024  # of bodies in one page; one larger body stands alone


@dataclass(frozen=True, slots=True)
class Reindexed:
    """The new search rows of one version of a resource."""

    key: int
    type: str
    id: str
    version: int
    rows: SearchRows
    generation: str  # of the definitions that the rows were made by


@dataclass(frozen=True, slots=True)
class ReindexPage:
    """A page; `refused` names those with a value that cannot be read, which keep the rows they have.

    `after` is where the next page begins; None: there is nothing more.
    """

    resources: list[Reindexed]
    refused: list[str]
    after: int | None


async def count(connection: Connection, types: Sequence[str]) -> int:
    """How many resources of these types there are."""
    marks = ", ".join(f"${at}" for at in range(1, len(types) + 1))
    return int(await connection.fetchval(f"SELECT COUNT(*) FROM resource WHERE type IN ({marks}) AND NOT deleted", *types))


async def reindex_page(connection: Connection, type: str, after: int, limit: int, *, words: bool) -> ReindexPage:
    """The next resources of a type behind a key, at most `limit` and about BYTES of them, with their new rows."""
    rows = await connection.fetch(
        "SELECT p.key, p.id, p.version, v.body FROM (SELECT r.key, r.id, r.version,"
        " SUM(length(v.body)) OVER (ORDER BY r.key) - length(v.body) AS bytes_before"
        " FROM (SELECT key, id, version FROM resource WHERE type = $1 AND key > $2 AND NOT deleted ORDER BY key LIMIT $3) r"
        " JOIN version v ON v.resource_key = r.key AND v.version = r.version) p"
        " JOIN version v ON v.resource_key = p.key AND v.version = p.version WHERE p.bytes_before < $4 ORDER BY p.key",
        type,
        after,
        limit,
        BYTES,
    )
    page = ReindexPage([], [], rows[-1]["key"] if rows else None)
    for row in rows:
        try:
            made = search_rows(row["key"], type, json.loads(bytes(row["body"])), words=words)
        except Invalid:
            page.refused.append(f"{type}/{row['id']}")
        else:
            page.resources.append(Reindexed(row["key"], type, row["id"], row["version"], made, in_force().generation))
    return page


async def rewrite(connection: Connection, dialect: str, change: RewriteSearchRows) -> None:
    """Replace the rows of those that are still at the version that was read: who wrote one meanwhile wrote its rows too.

    Raises GuidesMoved when the rows were made by definitions that are in force no longer: they are made anew.
    """
    identities = {(one.type, one.id): one for one in change.resources}
    if not identities:
        return
    if dialect == "postgresql":
        await lock_identities(connection, identities)
    if any(one.generation != in_force().generation for one in change.resources):
        raise GuidesMoved
    now = await versions_now(connection, dialect, identities)
    same = [one for identity, one in identities.items() if now.get(identity) == one.version]
    await delete_search_rows(connection, dialect, [one.key for one in same])
    rows = [one.rows for one in same]
    if dialect != "postgresql":
        await write_search_rows(connection, rows)
        return
    parts = ["placed AS (SELECT key AS place, key FROM unnest($1::bigint[]) AS key)"]
    arguments: list[Any] = [[one.key for one in same]]
    for number, (insert, arrays) in enumerate(insert_statements(rows, 2)):
        parts.append(f"rows{number} AS ({insert})")
        arguments += arrays
    await connection.execute(f"WITH {', '.join(parts)} SELECT 1", *arguments)
