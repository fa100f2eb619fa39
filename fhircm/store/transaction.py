"""Writing resources: locks, conditions, rules, references, then version, change and search rows, in few statements.

https://hl7.org/fhir/R4/http.html#update and https://hl7.org/fhir/R4/references.html
"""

from __future__ import annotations

import hashlib
import json as std_json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.outcome import Conflict, FhirError, Forbidden, Gone, Invalid, Issue, NotFound, VersionConflict
from fhircm.fhir.query import Query
from fhircm.fhir.references import Reference
from fhircm.store import cycles
from fhircm.store.database import Connection
from fhircm.store.operations import Actor, Delete, Narrowing, Put, SetState, Write, WriteRule
from fhircm.store.principals import placed
from fhircm.store.search_rows import SearchRows, delete_search_rows, insert_statements, search_rows, write_search_rows
from fhircm.store.stored import Stored, instant, micros
from fhircm.store.visibility import is_open
from fhircm.store.write_guard import WriteGuard, referred_to, require_open, require_same_identity, seen

Identity = tuple[str, str]
_Use = tuple[Identity, Identity, Reference]
Tree = dict[str, Any]


@dataclass
class _Current:
    """What is there now, under the lock."""

    key: int
    version: int
    deleted: bool
    body: bytes | None = None  # of what is there and a rule asks about


async def write_resources(
    connection: Connection,
    dialect: str,
    writes: Sequence[Put | Delete],
    *,
    origin: str,
    now: datetime,
    rules: Sequence[WriteRule],
    confirm: Callable[[Connection], Awaitable[None]],
    words: bool = False,
    guard: WriteGuard | None = None,
    actor: Actor | None = None,
) -> tuple[list[Stored], list[SetState]]:
    """Write resources in the transaction of this connection, and what the rules want to be true with them; see Store.transact for what it raises.

    `guard`: what the writer may. `confirm` makes sure that the search parameters in force are known, right before the rows are made of them.
    """
    identities = [_identity(write) for write in writes]
    if len(set(identities)) != len(identities):
        raise ValueError("a resource stands twice in one transaction")
    known = [_identity(write) for write in writes if not (isinstance(write, Put) and write.fresh)]
    if known and dialect == "postgresql":
        await lock_identities(connection, known)
    current = await _current(connection, dialect, known, bodies_of={type for rule in rules for type in rule.types})
    if guard is not None:
        await _require_seen(connection, dialect, guard, writes, current)
    for write in writes:
        with _About(_identity(write)):
            _check_condition(write, current.get(_identity(write)))
    puts = [write for write in writes if isinstance(write, Put)]
    deletes = [write for write in writes if isinstance(write, Delete) and not current[_identity(write)].deleted]
    seen_as = {}
    for one in (*puts, *deletes):
        identity = _identity(one)
        new = None if isinstance(one, Delete) else {**one.resource.tree, "id": identity[1]}
        before = found.body if (found := current.get(identity)) else None
        seen_as[identity] = Write(None if before is None else json.loads(before), new, origin, actor, now)
    facts = await _check_rules(connection, dialect, seen_as, rules, actor)
    chains = {type: elements for rule in rules for type, elements in rule.chains.items()}
    longer = cycles.grown(seen_as, chains)
    cycles.require_none_within(longer)
    if cycles.needs_a_look(longer) and dialect == "postgresql":
        await _lock(connection, ["chains"])  # after it nobody else's are half written, as long as this transaction lasts
    if deletes and dialect == "postgresql":  # before anything of them is written: waits for those who are about to refer to them
        doomed = sorted(current[_identity(delete)].key for delete in deletes)
        await connection.execute("SELECT key FROM resource WHERE key = ANY($1::bigint[]) ORDER BY key FOR UPDATE", doomed)
    versions = {_identity(one): (found.version if (found := current.get(_identity(one))) else 0) + 1 for one in (*puts, *deletes)}
    seeing = guard.seeing if guard else None
    uses = _uses(puts)
    referred = await _referred(connection, dialect, puts, uses)
    hidden = await _hidden(connection, dialect, seeing, puts, uses, current, referred) if seeing else set()
    _check_references(puts, uses, deletes, versions, referred, hidden)
    await _check_not_referred_to(connection, deletes, current, set(identities), told=seeing is None)
    metas = {_identity(put): _meta(put, versions[_identity(put)], instant(now)) for put in puts}
    stored = {_identity(put): _version_of(put, metas[_identity(put)], versions[_identity(put)], current, now) for put in puts}
    stored |= {_identity(one): Stored(one.type, one.id, versions[_identity(one)], now, True, b"", "delete") for one in deletes}
    # Search reads meta.lastUpdated like any other element.
    trees = [{**put.resource.tree, "id": put.resource.id, "meta": metas[_identity(put)]} for put in puts]
    if seeing is not None:
        keys = {identity: one.key for identity, one in current.items()}
        await require_open(connection, dialect, seeing, trees, keys)
        if guard is not None and not guard.directory:
            await require_same_identity(connection, trees, keys)
    old = [current[identity].key for identity in stored if identity in current]
    if old:
        await delete_search_rows(connection, dialect, old)
    await confirm(connection)
    if stored:
        write_versions = _write_at_once if dialect == "postgresql" else _write_in_turn
        named = [put.resource.references for put in puts]
        await write_versions(connection, list(stored.values()), list(zip(trees, named, strict=True)), current, origin, words)
    await cycles.require_none(connection, longer, chains)
    if guard is not None:
        await _require_still_seen(connection, dialect, guard, puts, stored)
    return [stored.get(_identity(write)) or _deleted_before(write, current, now) for write in writes], facts


class _About:
    """Says of an error which of the resources of the transaction it is about."""

    __slots__ = ("identity",)

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, FhirError):
            error.issues = [replace(issue, resource=self.identity) for issue in error.issues]


def _rows(place: int, tree: Tree, named: Sequence[Reference], words: bool) -> SearchRows:
    with _About((tree["resourceType"], tree["id"])):
        return search_rows(place, tree["resourceType"], tree, words=words, named=named)


def _identity(write: Put | Delete) -> Identity:
    if isinstance(write, Delete):
        return write.type, write.id
    if write.resource.id is None:
        raise ValueError("a resource to store needs an id")
    return write.resource.type, write.resource.id


async def lock_identities(connection: Connection, identities: Iterable[Identity]) -> None:
    """Take the locks of all resources in one order, before the first write gives this transaction its number (PostgreSQL)."""
    await _lock(connection, ["/".join(identity) for identity in identities])


async def lock_free(connection: Connection, identities: Sequence[Identity], most: int) -> list[Identity]:
    """Take the locks of the first of these that nobody has, at most so many, without waiting for anybody (PostgreSQL)."""
    rows = await connection.fetch(
        "SELECT place FROM unnest($1::bigint[]) WITH ORDINALITY AS named (number, place) WHERE pg_try_advisory_xact_lock(number) LIMIT $2",
        [_lock_number("/".join(identity)) for identity in identities],
        most,
    )
    return [identities[row["place"] - 1] for row in rows]


async def lock_searches(connection: Connection, dialect: str, queries: Sequence[Query]) -> None:
    """Take the locks of the words of these searches, so that equal ones come one after the other. SQLite has one writer at a time."""
    if queries and dialect == "postgresql":
        await _lock(connection, [f"{query.type}?{sorted(query.used)}" for query in queries])


async def _lock(connection: Connection, names: Sequence[str]) -> None:
    numbers = sorted({_lock_number(one) for one in names})
    await connection.execute("SELECT pg_advisory_xact_lock(number) FROM unnest($1::bigint[]) AS number", numbers)


def _lock_number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


@dataclass(frozen=True, slots=True)
class Head:
    """How a resource stands: its newest version, and whether it is there or was deleted."""

    version: int
    exists: bool


async def heads(connection: Connection, dialect: str, identities: Collection[Identity]) -> dict[Identity, Head]:
    """How these stand, of those that ever were."""
    found = await _current(connection, dialect, sorted(identities))
    return {identity: Head(one.version, not one.deleted) for identity, one in found.items()}


async def versions_now(connection: Connection, dialect: str, identities: Collection[Identity]) -> dict[Identity, int]:
    """The current versions of resources that exist."""
    found = await _current(connection, dialect, sorted(identities))
    return {identity: one.version for identity, one in found.items() if not one.deleted}


async def _current(
    connection: Connection, dialect: str, identities: Sequence[Identity], lock: str = "", *, bodies_of: Collection[str] = ()
) -> dict[Identity, _Current]:
    """How these stand, of those that ever were; of those of some types that are there also what they say."""
    if not identities:
        return {}
    listed, *arguments = identities_listed(dialect, identities)
    body = "NULL"
    if not {type for type, _ in identities}.isdisjoint(bodies_of):
        types = ", ".join(f"'{type}'" for type in sorted(bodies_of))  # names of ours
        newest = "SELECT v.body FROM version v WHERE v.resource_key = resource.key AND v.version = resource.version"
        body = f"CASE WHEN NOT deleted AND type IN ({types}) THEN ({newest}) END"
    rows = await connection.fetch(
        f"SELECT key, type, id, version, deleted, {body} AS body FROM resource WHERE (type, id) IN ({listed}){lock}", *arguments
    )
    return {
        (row["type"], row["id"]): _Current(
            row["key"], row["version"], bool(row["deleted"]), None if row["body"] is None else bytes(row["body"])
        )
        for row in rows
    }


def identities_listed(dialect: str, identities: Sequence[Identity]) -> tuple[Any, ...]:
    """A query for these identities, and its arguments: one text for any number of them, so that databases keep its plan."""
    if dialect == "postgresql":
        return "SELECT * FROM unnest((SELECT $1::text[]), (SELECT $2::text[]))", *map(list, zip(*identities, strict=True))
    return "SELECT value ->> 0, value ->> 1 FROM json_each($1)", std_json.dumps(identities)


def _check_condition(write: Put | Delete, current: _Current | None) -> None:
    type, id = _identity(write)
    exists = current is not None and not current.deleted
    if isinstance(write, Delete) and current is None:
        raise NotFound(f"{type}/{id} is not known")
    if isinstance(write, Put) and write.must_exist and not exists:
        raise Gone(f"{type}/{id} was deleted") if current else NotFound(f"{type}/{id} is not known")
    if write.if_version is None:
        return
    if write.if_version == 0:
        if exists:
            raise VersionConflict(f"{type}/{id} exists already")
    elif not exists or current is None or current.version != write.if_version:
        now = f"version {current.version} is current" if exists and current else "it does not exist"
        raise VersionConflict(f"{type}/{id} is not at version {write.if_version}: {now}")


async def _require_seen(
    connection: Connection,
    dialect: str,
    guard: WriteGuard,
    writes: Sequence[Put | Delete],
    current: Mapping[Identity, _Current],
) -> None:
    """What is there, or was, and may not be seen is as if it had never been."""
    for kind, within in ((Put, guard.u), (Delete, guard.d)):
        there = [identity for write in writes if isinstance(write, kind) and (identity := _identity(write)) in current]
        if within is None or not there:
            continue
        for type, id in sorted(set(there) - await seen(connection, dialect, within, there)):
            with _About((type, id)):
                raise NotFound(f"{type}/{id} is not known")


async def _require_still_seen(
    connection: Connection, dialect: str, guard: WriteGuard, puts: Sequence[Put], stored: Mapping[Identity, Stored]
) -> None:
    """What was written must be what the writer may write."""
    for method, within in (("create", guard.c), ("update", guard.u)):
        written = [identity for put in puts if stored[identity := _identity(put)].method == method]
        for type, id in sorted(set(written) - await seen(connection, dialect, within, written)) if written else ():
            with _About((type, id)):
                raise Forbidden(
                    f"The caller may not {method} this {type}: it would lie outside of what the scopes, the care relationships and the"
                    " consents of its patients give"
                )


async def _referred(connection: Connection, dialect: str, puts: Sequence[Put], uses: Sequence[_Use]) -> dict[Identity, _Current]:
    """What these refer to outside of the transaction.

    PostgreSQL keeps it from being deleted until the reference is committed; SQLite has one writer at a time.
    """
    outside = {target for _, target, _ in uses} - {_identity(put) for put in puts}
    return await _current(connection, dialect, sorted(outside), " FOR KEY SHARE OF resource" if dialect == "postgresql" else "")


def _uses(puts: Iterable[Put]) -> list[_Use]:
    """Every local reference of these: of what, what it leads to, and itself."""
    return [
        (source, (reference.type, reference.id), reference)
        for put in puts
        for source in (_identity(put),)
        for reference in put.resource.references
        if reference.kind == "local" and reference.type and reference.id
    ]


async def _hidden(
    connection: Connection,
    dialect: str,
    seeing: Narrowing,
    puts: Sequence[Put],
    uses: Sequence[_Use],
    current: Mapping[Identity, _Current],
    referred: Mapping[Identity, _Current],
) -> set[tuple[Identity, Identity]]:
    """References (from, to) to what the writer does not see, and that were not there before."""
    written = {_identity(put) for put in puts}
    targets = {target for _, target, _ in uses} - written
    there = {one for one in targets if is_open(one[0]) and (found := referred.get(one)) and not found.deleted}
    asked = {one for one in targets if not is_open(one[0])}
    unseen = targets - there - await seen(connection, dialect, seeing, asked)
    if not unseen:
        return set()
    keys = {one.key: identity for identity, one in current.items() if identity in written}
    before = {(keys[key], target) for key, target in await referred_to(connection, list(keys))}
    return {(source, target) for source, target, _ in uses if target in unseen} - before


async def _check_rules(
    connection: Connection, dialect: str, writes: Mapping[Identity, Write], rules: Sequence[WriteRule], actor: Actor | None
) -> list[SetState]:
    """What the rules want to be true with the writes. Raises what they raise."""
    concerned = [
        (identity, write, rule)
        for identity, write in writes.items()
        for rule in rules
        if identity[0] in rule.types and (rule.deletes or write.new is not None)
    ]
    if actor is not None and not actor.everyone:
        parties = {one for _, write, rule in concerned if rule.parties for one in rule.parties(write)}
        if parties - actor.known_as:
            actor = await placed(connection, dialect, actor, parties)
    facts: list[SetState] = []
    for identity, write, rule in concerned:
        with _About(identity):
            known = replace(write, actor=actor) if rule.parties else write
            rule.check(known)
            facts += rule.facts(known) if rule.facts else ()
    return facts


def _check_references(
    puts: Sequence[Put],
    uses: Sequence[_Use],
    deletes: Sequence[Delete],
    versions: Mapping[Identity, int],
    referred: Mapping[Identity, _Current],
    hidden: Collection[tuple[Identity, Identity]],
) -> None:
    """Local references must lead to a resource that exists, or to one of this transaction; not to one that is `hidden` (from, to)."""
    known = {identity: (found.version, not found.deleted) for identity, found in referred.items()}
    known |= {_identity(delete): (versions[_identity(delete)], False) for delete in deletes}
    known |= {_identity(put): (versions[_identity(put)], True) for put in puts}
    issues = [
        Issue(
            "error",
            "not-found",
            f"{reference.path} refers to {_named(reference)}, which does not exist",
            reference.path,
            source,
        )
        for source, target, reference in uses
        if (source, target) in hidden or not is_there(reference, *known.get(target, (0, False)))
    ]
    if issues:
        raise Invalid(issues[0].text, issues=issues)


def is_there(reference: Reference, newest: int, exists: bool) -> bool:
    """Whether a reference leads somewhere. A version stays when its resource is deleted; anything else must exist."""
    if reference.version:
        return reference.version.isdigit() and 1 <= int(reference.version) <= newest
    return exists


def _named(reference: Reference) -> str:
    return f"{reference.type}/{reference.id}" + (f"/_history/{reference.version}" if reference.version else "")


async def _check_not_referred_to(
    connection: Connection,
    deletes: Sequence[Delete],
    current: Mapping[Identity, _Current],
    rewritten: set[Identity],
    *,
    told: bool,
) -> None:
    """What others refer to stays, unless they are rewritten or deleted in the same transaction. `told`: the error may name them."""
    for delete in deletes:
        rows = await connection.fetch(
            "SELECT r.type, r.id FROM search_reference s JOIN resource r ON r.key = s.resource_key"
            " WHERE s.param = 0 AND s.target_id = $1 AND s.target_type = $2 AND s.resource_key <> $3 LIMIT 50",
            delete.id,
            delete.type,
            current[_identity(delete)].key,
        )
        others = [f"{row['type']}/{row['id']}" for row in rows if (row["type"], row["id"]) not in rewritten]
        if others:
            who = ", ".join(others[:3]) if told else "another resource"
            text = f"{delete.type}/{delete.id} cannot be deleted: {who} refers to it"
            raise Conflict(text, issues=[Issue("error", Conflict.code, text, resource=_identity(delete))])


def _meta(put: Put, version: int, at: str) -> dict[str, Any]:
    return {**put.resource.tree.get("meta", {}), "versionId": str(version), "lastUpdated": at}


def _version_of(put: Put, meta: dict[str, Any], version: int, current: Mapping[Identity, _Current], now: datetime) -> Stored:
    resource = put.resource
    body = json.splice(resource.body, {"id": resource.id, "meta": meta})
    method = "update" if (found := current.get(_identity(put))) and not found.deleted else "create"
    return Stored(resource.type, resource.id or "", version, now, False, body, method)


async def _write_at_once(
    connection: Connection,
    stored: Sequence[Stored],
    made: Sequence[tuple[Tree, Sequence[Reference]]],
    current: Mapping[Identity, _Current],
    origin: str,
    words: bool,
) -> None:
    """All of it in one statement: each round trip costs as much as writing many rows (PostgreSQL). `made`: the first ones, and what they refer to."""
    known = [found.key if (found := current.get((one.type, one.id))) else None for one in stored]
    columns = [
        known,
        [one.type for one in stored],
        [one.id for one in stored],
        [one.version for one in stored],
        [one.method for one in stored],
        [micros(one.last_updated) for one in stored],
        [one.body for one in stored],
    ]
    parts = [
        "given AS (SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bytea[])"
        " WITH ORDINALITY AS given (key, type, id, version, method, at, body, place))",
        *_heads(known),
        "versions AS (INSERT INTO version (resource_key, version, method, last_updated, body)"
        " SELECT placed.key, version, method, at, body FROM given JOIN placed USING (place))",
        "changes AS (INSERT INTO change (tx, type, id, version, method, origin, at)"
        " SELECT pg_current_xact_id()::text::bigint, type, id, version, method, $8::text, at FROM given ORDER BY place)",
    ]
    rows = [_rows(place, tree, named, words) for place, (tree, named) in enumerate(made, start=1)]
    arguments: list[Any] = [*columns, origin]
    for number, (insert, arrays) in enumerate(insert_statements(rows, len(arguments) + 1)):
        parts.append(f"rows{number} AS ({insert})")
        arguments += arrays
    await connection.execute(f"WITH {', '.join(parts)} SELECT pg_notify('fhircm_change', '')", *arguments)


def _heads(known: Sequence[int | None]) -> list[str]:
    """Point each resource to its new version, and tell its key as placed (place, key)."""
    parts, keys = [], []
    if any(key is not None for key in known):
        parts.append(
            "moved AS (UPDATE resource SET version = given.version, last_updated = given.at, deleted = given.method = 'delete'"
            " FROM given WHERE resource.key = given.key)"
        )
        keys.append("SELECT place, key FROM given WHERE key IS NOT NULL")
    if None in known:
        parts.append(
            "made AS (INSERT INTO resource (type, id, version, last_updated, deleted)"
            " SELECT type, id, version, at, false FROM given WHERE key IS NULL ORDER BY place RETURNING key, type, id)"
        )
        keys.append("SELECT given.place, made.key FROM given JOIN made USING (type, id)")
    return [*parts, f"placed AS ({' UNION ALL '.join(keys)})"]


async def _write_in_turn(
    connection: Connection,
    stored: Sequence[Stored],
    made: Sequence[tuple[Tree, Sequence[Reference]]],
    current: Mapping[Identity, _Current],
    origin: str,
    words: bool,
) -> None:
    """One statement after the other (SQLite, which has no round trips)."""
    keys = {identity: found.key for identity, found in current.items()}
    for one in stored:
        at = micros(one.last_updated)
        if (key := keys.get((one.type, one.id))) is not None:
            update = "UPDATE resource SET version = $2, last_updated = $3, deleted = $4 WHERE key = $1"
            await connection.execute(update, key, one.version, at, one.deleted)
        else:
            insert = (
                "INSERT INTO resource (type, id, version, last_updated, deleted) VALUES ($1, $2, $3, $4, false) RETURNING key"
            )
            keys[one.type, one.id] = await connection.fetchval(insert, one.type, one.id, one.version, at)
    await connection.executemany(
        "INSERT INTO version (resource_key, version, method, last_updated, body) VALUES ($1, $2, $3, $4, $5)",
        [(keys[one.type, one.id], one.version, one.method, micros(one.last_updated), one.body) for one in stored],
    )
    await connection.executemany(
        "INSERT INTO change (tx, type, id, version, method, origin, at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [(0, one.type, one.id, one.version, one.method, origin, micros(one.last_updated)) for one in stored],
    )
    rows = [_rows(keys[tree["resourceType"], tree["id"]], tree, named, words) for tree, named in made]
    await write_search_rows(connection, rows)


def _deleted_before(write: Put | Delete, current: Mapping[Identity, _Current], now: datetime) -> Stored:
    type, id = _identity(write)
    return Stored(type, id, current[type, id].version, now, True, b"", "delete")


async def clear_states(connection: Connection, namespace: str) -> None:
    """Remove every fact of a namespace."""
    await connection.execute("DELETE FROM state WHERE namespace = $1", namespace)


async def set_state(connection: Connection, change: SetState) -> None:
    """Set or remove a durable fact. Raises Conflict when it must be absent and is not, or present and is not."""
    if change.value is None and change.if_equal is not None:
        equal = std_json.dumps(change.if_equal)
        sql = "DELETE FROM state WHERE namespace = $1 AND key = $2 AND value = $3"
        await connection.execute(sql, change.namespace, change.key, equal)
        return
    if change.value is None:
        removed = await connection.fetchval(
            "DELETE FROM state WHERE namespace = $1 AND key = $2 RETURNING key", change.namespace, change.key
        )
        if removed is None and change.if_present:
            raise Conflict(change.otherwise or f"{change.key} is not there any more")
        return
    otherwise = "NOTHING" if change.if_absent else "UPDATE SET value = excluded.value"
    written = await connection.fetchval(
        f"INSERT INTO state (namespace, key, value) VALUES ($1, $2, $3) ON CONFLICT (namespace, key) DO {otherwise} RETURNING key",
        change.namespace,
        change.key,
        std_json.dumps(change.value),
    )
    if written is None:
        raise Conflict(change.otherwise or f"{change.key} is there already")
