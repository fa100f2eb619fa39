"""The chain of audit: each AuditEvent of the hub is bound to the one before it by a hash, so that none can be changed or removed unseen.

The hash of an entry is SHA-256 over the hash before it, its number, time, id and the bytes that are stored. There is one chain for all
processes: the newest link is locked while the next are made. https://profiles.ihe.net/ITI/BALP and docs/decisions/audit-is-a-chain.md
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

from fhircm.fhir import json
from fhircm.fhir.belonging import named_by
from fhircm.fhir.definitions import param_key
from fhircm.fhir.extract import search_values
from fhircm.fhir.values import Target
from fhircm.store.database import Connection
from fhircm.store.resources import Store
from fhircm.store.search_rows import SearchRows, insert_statements, write_search_rows
from fhircm.store.stored import micros
from fhircm.store.transaction import identities_listed

BEGIN = b"\0" * 32  # stands for the hash before the first entry
_LOCK = 0x6175646974  # "audit"
_PAGE = 1000

# --- writing -------------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An AuditEvent that is to be chained: its bytes without its meta, and its search rows, in which its place stands for its key."""

    id: str
    body: bytes  # begins with {"resourceType":"AuditEvent","id":"…"
    rows: SearchRows


def link_hash(before: bytes, number: int, recorded: int, id: str, body: bytes) -> bytes:
    """The hash that binds an entry to the one before it."""
    head = before + number.to_bytes(8) + recorded.to_bytes(8) + id.encode() + b"\0"
    return hashlib.sha256(head + body).digest()


def stamped(body: bytes, id: str, at: str) -> bytes:
    """The bytes that are stored: with the version and the time of its writing behind its id."""
    head = len(_head(id))
    return body[:head] + b',"meta":{"versionId":"1","lastUpdated":"' + at.encode() + b'"}' + body[head:]


def _head(id: str) -> bytes:
    return b'{"resourceType":"AuditEvent","id":"' + id.encode() + b'"'


async def chain(store: Store, entries: Sequence[Entry], at: str) -> int:
    """Write entries and their links in one transaction; those that are there already are passed over. Returns how many were written.

    `at`: the time of the writing as a FHIR instant. Raises DatabaseUnavailable, and GuidesMoved when the search rows must be made anew.
    """
    dialect, now = store.database.dialect, micros(datetime.fromisoformat(at))
    async with store.database.writing() as connection:
        if dialect == "postgresql":
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await store.guides.confirm(connection)
        known = await _known(connection, dialect, [one.id for one in entries])
        new = [(place, one) for place, one in enumerate(entries, start=1) if one.id not in known]
        if not new:
            return 0
        head = await connection.fetchrow("SELECT number, hash FROM audit_link ORDER BY number DESC LIMIT 1")
        number, hash = (head["number"], bytes(head["hash"])) if head else (0, BEGIN)
        links = []
        for _, one in new:
            number += 1
            body = stamped(one.body, one.id, at)
            hash = link_hash(hash, number, now, one.id, body)
            links.append((number, one.id, now, hash, body))
        write = _write_at_once if dialect == "postgresql" else _write_in_turn
        await write(connection, new, links)
    return len(new)


async def _known(connection: Connection, dialect: str, ids: Sequence[str]) -> frozenset[str]:
    if dialect == "postgresql":
        rows = await connection.fetch("SELECT id FROM audit_link WHERE id = ANY($1::text[])", list(ids))
    else:
        rows = await connection.fetch("SELECT id FROM audit_link WHERE id IN (SELECT value FROM json_each($1))", json.dumps(ids))
    return frozenset(row["id"] for row in rows)


_Links = Sequence[tuple[int, str, int, bytes, bytes]]


async def _write_at_once(connection: Connection, new: Sequence[tuple[int, Entry]], links: _Links) -> None:
    numbers, ids, times, hashes, bodies = map(list, zip(*links, strict=True))
    arguments: list[Any] = [numbers, ids, times, hashes, bodies, [place for place, _ in new]]
    given = "$1::bigint[], $2::text[], $3::bigint[], $4::bytea[], $5::bytea[], $6::bigint[]"
    parts = [
        f"given AS (SELECT * FROM unnest({given}) AS given (number, id, at, hash, body, place))",
        "linked AS (INSERT INTO audit_link (number, id, recorded, hash) SELECT number, id, at, hash FROM given)",
        "made AS (INSERT INTO resource (type, id, version, last_updated, deleted)"
        " SELECT 'AuditEvent', id, 1, at, false FROM given ORDER BY number RETURNING key, id)",
        "placed AS (SELECT place, key FROM given JOIN made USING (id))",
        "versions AS (INSERT INTO version (resource_key, version, method, last_updated, body)"
        " SELECT key, 1, 'create', at, body FROM given JOIN made USING (id))",
        "changes AS (INSERT INTO change (tx, type, id, version, method, origin, at)"
        " SELECT pg_current_xact_id()::text::bigint, 'AuditEvent', id, 1, 'create', 'hub', at FROM given ORDER BY number)",
    ]
    for at, (insert, arrays) in enumerate(insert_statements([one.rows for _, one in new], len(arguments) + 1)):
        parts.append(f"rows{at} AS ({insert})")
        arguments += arrays
    await connection.execute(f"WITH {', '.join(parts)} SELECT 1", *arguments)


async def _write_in_turn(connection: Connection, new: Sequence[tuple[int, Entry]], links: _Links) -> None:
    # The one writer of SQLite knows the next keys: https://www.sqlite.org/autoinc.html
    last = await connection.fetchval("SELECT seq FROM sqlite_sequence WHERE name = 'resource'") or 0
    keys = range(last + 1, last + 1 + len(links))
    await connection.executemany(
        "INSERT INTO resource (key, type, id, version, last_updated, deleted) VALUES ($1, 'AuditEvent', $2, 1, $3, false)",
        [(key, id, at) for key, (_, id, at, _, _) in zip(keys, links, strict=True)],
    )
    await connection.executemany(
        "INSERT INTO audit_link (number, id, recorded, hash) VALUES ($1, $2, $3, $4)", [link[:4] for link in links]
    )
    await connection.executemany(
        "INSERT INTO version (resource_key, version, method, last_updated, body) VALUES ($1, 1, 'create', $2, $3)",
        [(key, at, body) for key, (_, _, at, _, body) in zip(keys, links, strict=True)],
    )
    await connection.executemany(
        "INSERT INTO change (tx, type, id, version, method, origin, at) VALUES (0, 'AuditEvent', $1, 1, 'create', 'hub', $2)",
        [(id, at) for _, id, at, _, _ in links],
    )
    rows = []
    for key, (_, one) in zip(keys, new, strict=True):
        rows.append(SearchRows({table: [(key, *row[1:]) for row in listed] for table, listed in one.rows.by_table.items()}))
    await write_search_rows(connection, rows)


# --- whose record it was -------------------------------------------------------------------------------------------------------


@cache
def _naming(type: str) -> frozenset[str]:
    return frozenset(named_by("Patient").get(type, ()))


@cache
def _naming_keys(type: str) -> frozenset[int]:
    return frozenset(param_key(type, code) for code in _naming(type))


async def patients_of(store: Store, touched: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The ids of the patients whose record these versions (Type/id/version, or Type/id) belong to.

    The search rows tell it of what is current; what was written over or deleted since is read again.
    """
    found: dict[str, tuple[str, ...]] = {}
    asked: dict[tuple[str, str], list[str]] = {}
    for one in touched:
        type, id = one.split("/")[:2]
        if type == "Patient":
            found[one] = (id,)
        elif _naming(type):
            asked.setdefault((type, id), []).append(one)
    if not asked:
        return found
    listed, *arguments = identities_listed(store.database.dialect, sorted(asked))
    async with store.database.reading(one_moment=True) as connection:
        rows = await connection.fetch(
            "SELECT r.key, r.type, r.id, r.version, r.deleted, s.param, s.target_id FROM resource r LEFT JOIN search_reference s"
            f" ON s.resource_key = r.key AND s.target_type = 'Patient' WHERE (r.type, r.id) IN ({listed}) ORDER BY r.key",
            *arguments,
        )
        for _, group in groupby(rows, key=lambda row: row["key"]):
            listed_rows = list(group)
            row = listed_rows[0]
            keys = _naming_keys(row["type"])
            now = tuple(dict.fromkeys(one["target_id"] for one in listed_rows if one["param"] in keys))
            for one in asked[row["type"], row["id"]]:
                _, _, version = (*one.split("/"), "")[:3]
                current = not row["deleted"] and version in ("", str(row["version"]))
                found[one] = now if current else await _patients_then(connection, row, version)
    return found


async def _patients_then(connection: Connection, row: Mapping[str, Any], version: str) -> tuple[str, ...]:
    """Of a version that is no longer current; of a deletion, what was deleted."""
    body = await connection.fetchval(
        "SELECT body FROM version WHERE resource_key = $1 AND version <= $2 AND method <> 'delete' ORDER BY version DESC LIMIT 1",
        row["key"],
        int(version or row["version"]),
    )
    if body is None:
        return ()
    values = search_values(json.loads(bytes(body)))
    naming = _naming(row["type"])
    ids = [v.target_id for v in values if isinstance(v, Target) and v.parameter in naming and v.target_type == "Patient"]
    return tuple(dict.fromkeys(ids))


async def patients_of_job(store: Store, job: str) -> list[str]:
    """The patients that an export is about, as far as it was bound to any."""
    async with store.database.reading() as connection:
        rows = await connection.fetch("SELECT id FROM job_target WHERE job = $1 AND type = 'Patient' ORDER BY id", job)
    return [row["id"] for row in rows]


# --- verifying -----------------------------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """The end of the chain."""

    number: int
    hash: bytes


class Broken(NamedTuple):
    """The first entry at which the chain does not hold, and why."""

    number: int
    id: str
    why: str


async def head(store: Store) -> Head:
    """The newest link; number 0 when there is none."""
    async with store.database.reading() as connection:
        row = await connection.fetchrow("SELECT number, hash FROM audit_link ORDER BY number DESC LIMIT 1")
    return Head(row["number"], bytes(row["hash"])) if row else Head(0, BEGIN)


async def length(store: Store, since: datetime | None) -> tuple[int, int]:
    """From which entry on to verify, and which is the last."""
    async with store.database.reading() as connection:
        first = 1
        if since is not None:
            first = await connection.fetchval("SELECT MIN(number) FROM audit_link WHERE recorded >= $1", micros(since)) or 1
        return first, await connection.fetchval("SELECT COALESCE(MAX(number), 0) FROM audit_link")


async def verified(store: Store, first: int) -> AsyncIterator[int | Broken]:
    """Walk the chain from an entry on: yields the number of the last entry of each page that holds, or at last where it breaks."""
    number, hash = first - 1, BEGIN
    async with store.database.reading() as connection:
        if number:
            kept = await connection.fetchval("SELECT hash FROM audit_link WHERE number = $1", number)
            if kept is None:
                yield Broken(number, "", "it was removed")
                return
            hash = bytes(kept)
    while True:
        async with store.database.reading() as connection:
            rows = await connection.fetch(
                "SELECT l.number, l.id, l.recorded, l.hash, r.version AS newest, r.last_updated, v.body"
                " FROM audit_link l LEFT JOIN resource r ON r.type = 'AuditEvent' AND r.id = l.id"
                " LEFT JOIN version v ON v.resource_key = r.key AND v.version = 1 WHERE l.number > $1 ORDER BY l.number LIMIT $2",
                number,
                _PAGE,
            )
        for row in rows:
            if row["number"] != number + 1:
                yield Broken(number + 1, "", "it was removed")
                return
            number, why = row["number"], None
            if row["body"] is None:
                why = "its AuditEvent was removed"
            elif row["newest"] != 1:
                why = "its AuditEvent was given another version"
            else:
                hash = link_hash(hash, number, row["recorded"], row["id"], _bytes(row["body"]))
                if hash != row["hash"]:
                    why = "it was changed, put in, or moved"
                elif row["last_updated"] != row["recorded"]:
                    why = "the time of its AuditEvent was changed"
            if why:
                yield Broken(number, row["id"], why)
                return
        if not rows:
            return
        yield number


def _bytes(body: Any) -> bytes:
    """What is stored; somebody may have put there what SQLite takes for a text, and that is no longer what it was."""
    return b"text:" + body.encode() if isinstance(body, str) else bytes(body)


async def strays(store: Store, server: str) -> list[str]:
    """The ids of AuditEvents that pretend to be the hub's (they name the system of its identifier), and are not in the chain."""
    found, after = [], 0
    while True:
        async with store.database.reading() as connection:
            rows = await connection.fetch(
                "SELECT r.key, r.id, v.body FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version"
                " WHERE r.type = 'AuditEvent' AND r.key > $1 AND NOT r.deleted"
                " AND NOT EXISTS (SELECT 1 FROM audit_link l WHERE l.id = r.id) ORDER BY r.key LIMIT $2",
                after,
                _PAGE,
            )
        if not rows:
            return found
        for row in rows:
            after = row["key"]
            if server.encode() in _bytes(row["body"]):
                found.append(row["id"])


async def link(store: Store, number: int) -> bytes | None:
    """The hash of one entry."""
    async with store.database.reading() as connection:
        found = await connection.fetchval("SELECT hash FROM audit_link WHERE number = $1", number)
    return None if found is None else bytes(found)
