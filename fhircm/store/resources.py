"""The store: one write door, reading by id, and what belongs to it.

`transact` commits a version, its search rows and its change in one transaction with the timers, cursors and facts that go with it:
nothing is lost between a write and its reactions. https://hl7.org/fhir/R4/http.html#transactional-integrity
"""

from __future__ import annotations

import asyncio
import json as std_json
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import asyncpg

from fhircm.fhir.conditions import AnyOf, Condition, Matches, UriTest, Visible
from fhircm.fhir.outcome import Conflict, Gone, NotFound
from fhircm.fhir.query import Query
from fhircm.fhir.ranges import clip
from fhircm.fhir.terminology.artefacts import Artefact
from fhircm.fhir.terminology.library import Library, Wanted
from fhircm.fhir.validation import Checked
from fhircm.store import changes as change_log
from fhircm.store import export as exporting
from fhircm.store import job_files
from fhircm.store import quarantine as quarantining
from fhircm.store import reindex as reindexing
from fhircm.store import search as searching
from fhircm.store import timers as timing
from fhircm.store import work_list as working
from fhircm.store import writers as writing
from fhircm.store.database import Connection, Database
from fhircm.store.guides import GuidesFollowed, GuidesMoved
from fhircm.store.history import HistoryPage, HistoryQuery, history_page
from fhircm.store.labels import labels_in_use
from fhircm.store.operations import (
    Actor,
    CancelTimer,
    Change,
    ClearStates,
    Delete,
    DropForJob,
    FinishTimer,
    Hold,
    KeepForJob,
    LetGo,
    MoveCursor,
    Narrowing,
    Op,
    Plan,
    Position,
    Put,
    RepeatTimer,
    RewriteSearchRows,
    SetState,
    SetTimer,
    Timer,
    Write,
    WriteRule,
)
from fhircm.store.quarantine import Held
from fhircm.store.search_past import passing
from fhircm.store.search_sql import Builder
from fhircm.store.stored import Stored, moment
from fhircm.store.terminology import Terminology, asked
from fhircm.store.transaction import (
    Head,
    clear_states,
    heads,
    identities_listed,
    lock_identities,
    lock_searches,
    set_state,
    versions_now,
    write_resources,
)
from fhircm.store.visibility import Viewer
from fhircm.store.write_guard import WriteGuard

__all__ = [
    "Actor",
    "CancelTimer",
    "Change",
    "ClearStates",
    "Delete",
    "DropForJob",
    "FinishTimer",
    "Head",
    "Held",
    "Hold",
    "KeepForJob",
    "LetGo",
    "MoveCursor",
    "Narrowing",
    "Op",
    "Plan",
    "Position",
    "Put",
    "RepeatTimer",
    "RewriteSearchRows",
    "SetState",
    "SetTimer",
    "Store",
    "Stored",
    "Timer",
    "Write",
    "WriteRule",
]

Clock = Callable[[], datetime]
ATTEMPTS = 6  # of a transaction that PostgreSQL could not serialise
_ASKED = 400  # facts in one statement

_VERSION = "r.type, r.id, v.version, v.last_updated, v.method, v.body"


@lru_cache(maxsize=4096)
def _narrowed_read(
    dialect: str, conditions: tuple[Condition, ...], viewer: Viewer | None, type: str, plainly: bool
) -> tuple[str, list[Any], dict[str, int]]:
    """How a type is read within a narrowing: the text, its arguments, and where those stand that each read has its own of."""
    builder = Builder(dialect, Narrowing({type: conditions}, viewer))
    own = builder.argument(type)
    id = builder.shared_argument("id", "")
    tests = [
        builder.plainly_seen(type, "r.key", "r") if plainly and isinstance(one, Visible) else builder.holds(one, "r.key", "r")
        for one in builder.narrowed(type, [])
    ]
    sql = (
        f"SELECT {_VERSION} FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version"
        f" WHERE r.type = {own} AND r.id = {id} AND NOT r.deleted{''.join(f' AND {test}' for test in tests)}"
    )
    return sql, builder.arguments, builder.places


def read_narrowed(dialect: str, within: Narrowing, type: str, id: str, *, plainly: bool = False) -> list[Any]:
    """The statement that reads a resource within a narrowing, and its arguments: the text is made once for each viewer and type.

    `plainly`: by the short test, which does not find all that may be seen.
    """
    conditions = within.by_type.get(type)
    if conditions is None:
        conditions = (AnyOf(()),)
    sql, kept, places = _narrowed_read(dialect, tuple(conditions), within.viewer, type, plainly)
    arguments = list(kept)
    arguments[places["id"]] = id
    if "now" in places:
        arguments[places["now"]] = within.now
    if "lately" in places and within.viewer is not None:
        arguments[places["lately"]] = within.now - within.viewer.grace
    return [sql, *arguments]


class _WrittenMeanwhile(Exception):
    """Somebody wrote what a plan had found before it could be locked: the plan is asked anew."""


class _Rehearsed(Exception):
    """All of a rehearsal went well; it leaves the transaction, and so undoes it."""


class Store:
    """Everything that is kept, over one database. `clock` gives versions their time and says which timers are due.

    `full_text`: the words of what is written are kept for `_text` and `_content`.
    """

    def __init__(self, database: Database, *, clock: Clock, rules: Sequence[WriteRule] = (), full_text: bool = False) -> None:
        self.database, self.clock, self.rules, self.full_text = database, clock, tuple(rules), full_text
        self.guides = GuidesFollowed(database)
        self.terminology = Terminology(database.dialect)

    # --- reading -------------------------------------------------------------------------------------------------------------

    async def read(self, type: str, id: str, within: Narrowing | None = None) -> Stored:
        """The current version. Raises NotFound, Gone; NotFound also for what the narrowing hides, deleted or not."""
        if within is not None:
            async with self.database.reading() as connection:
                row = None
                if within.viewer is not None:
                    row = await connection.fetchrow(*read_narrowed(self.database.dialect, within, type, id, plainly=True))
                if row is None:
                    row = await connection.fetchrow(*read_narrowed(self.database.dialect, within, type, id))
            return _existing(row, type, id)
        async with self.database.reading() as connection:
            row = await connection.fetchrow(
                f"SELECT {_VERSION} FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version"
                " WHERE r.type = $1 AND r.id = $2",
                type,
                id,
            )
        return _existing(row, type, id)

    async def vread(self, type: str, id: str, version: int, within: Narrowing | None = None) -> Stored:
        """One version. Raises NotFound, and Gone for the version that is a deletion.

        Within a narrowing both the resource as it is now and the version must be seen.
        """
        if within is not None:
            await self.read(type, id, within)
        async with self.database.reading() as connection:
            row = await connection.fetchrow(
                f"SELECT {_VERSION} FROM resource r JOIN version v ON v.resource_key = r.key"
                " WHERE r.type = $1 AND r.id = $2 AND v.version = $3",
                type,
                id,
                version,
            )
            if within is not None and row is not None:
                row = next(iter(await passing(connection, self.database.dialect, within, [row])), None)
        return _existing(row, type, id)

    async def history(self, type: str, id: str) -> list[Stored]:
        """Every version, deletions too, the newest first. Raises NotFound."""
        async with self.database.reading() as connection:
            rows = await connection.fetch(
                f"SELECT {_VERSION} FROM resource r JOIN version v ON v.resource_key = r.key"
                " WHERE r.type = $1 AND r.id = $2 ORDER BY v.version DESC",
                type,
                id,
            )
        if not rows:
            raise NotFound(f"{type}/{id} is not known")
        return [_stored(row) for row in rows]

    async def history_page(self, query: HistoryQuery, within: Narrowing | None = None) -> HistoryPage:
        """A page of versions of a resource, of a type or of everything."""
        if within is not None and query.type is None:
            there = await self.types()
            within = replace(within, by_type={type: one for type, one in within.by_type.items() if type in there})
        async with self.database.reading(one_moment=within is not None) as connection:
            return await history_page(connection, self.database.dialect, query, within)

    async def read_many(self, references: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Stored]:
        """The current versions of those that exist."""
        wanted = sorted(set(references))
        if not wanted:
            return {}
        listed, *arguments = identities_listed(self.database.dialect, wanted)
        async with self.database.reading() as connection:
            rows = await connection.fetch(
                f"SELECT {_VERSION} FROM resource r JOIN version v ON v.resource_key = r.key AND v.version = r.version"
                f" WHERE (r.type, r.id) IN ({listed}) AND NOT r.deleted",
                *arguments,
            )
        return {(row["type"], row["id"]): _stored(row) for row in rows}

    async def heads(self, identities: Collection[tuple[str, str]]) -> dict[tuple[str, str], Head]:
        """The newest version of each that ever was, and whether it is still there: nothing of what they say is read."""
        async with self.database.reading() as connection:
            return await heads(connection, self.database.dialect, identities)

    async def search(self, query: Query, within: Narrowing | None = None) -> searching.Page:
        """A page of what a query finds. Raises NotSupported for a parameter whose guide went since the query was understood."""
        await self.guides.follow()
        of_terms = bool(asked(query.branches))
        async with self.database.reading(one_moment=of_terms or query.cursor is not None) as connection:
            if of_terms:
                query = await self.terminology.resolved(connection, query, within)
            return await searching.search(connection, self.database.dialect, query, within)

    async def work_list(self, query: working.WorkQuery, within: Narrowing | None = None) -> working.WorkPage:
        """A page of work lists, with the Patients and what is known of their risk."""
        async with self.database.reading() as connection:
            return await working.work_list(connection, self.database.dialect, query, within)

    async def types(self) -> frozenset[str]:
        """The resource types of which there is, or was, any: the index is leapt through. It only grows."""
        async with self.database.reading() as connection:
            rows = await connection.fetch(
                "WITH RECURSIVE t (type) AS (SELECT MIN(type) FROM resource UNION ALL"
                " SELECT (SELECT MIN(r.type) FROM resource r WHERE r.type > t.type) FROM t WHERE t.type IS NOT NULL)"
                " SELECT type FROM t WHERE type IS NOT NULL"
            )
        return frozenset(row["type"] for row in rows)

    async def labels(self, within: Narrowing) -> list[Stored]:
        """Resources that together have every profile, tag and security label in use among those of the narrowing."""
        async with self.database.reading() as connection:
            return await labels_in_use(connection, self.database.dialect, within)

    async def library(self, roots: Iterable[Wanted], within: Narrowing | None) -> Library:
        """The terminology that a computation needs. Raises TooCostly."""
        async with self.database.reading(one_moment=True) as connection:
            return await self.terminology.library(connection, roots, within)

    async def concept_maps(self, system: str, within: Narrowing) -> list[Artefact]:
        """The concept maps that map from or to codes of a system."""
        ways = [Matches("ConceptMap", code, (UriTest((clip(system),)),)) for code in ("source-system", "target-system")]
        async with self.database.reading() as connection:
            return await self.terminology.found(connection, "ConceptMap", AnyOf(tuple(ways)), within)

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def transact(
        self, operations: Sequence[Op] | Plan, *, origin: str, guard: WriteGuard | None = None, actor: Actor | None = None
    ) -> list[Stored]:
        """Do all of it or nothing; returns what was stored for each Put and Delete, in order. `guard`: what the writer may; `actor`: who it is.

        A plan is asked what to do inside the transaction. Raises Forbidden for what the guard does not let through. Raises what it raises, VersionConflict, Invalid (a reference to nowhere, with its path), Conflict (a delete of what others refer to, a fact
        that is there already), NotFound (a delete of nothing), CursorMoved, StaleClaim, and what a write rule raises.
        """
        return await self._attempted(operations, origin, guard, actor)

    def check_rules(self, previous: Stored | None, new: Checked, origin: str) -> None:
        """What a write of this would have to obey, before it is written. Raises what the rules for its type raise."""
        for rule in self.rules:
            if new.type in rule.types:
                rule.check(Write(previous.tree if previous else None, new.tree, origin, now=self.clock()))

    async def rehearse(
        self, operations: Sequence[Op], *, origin: str, guard: WriteGuard | None = None, actor: Actor | None = None
    ) -> None:
        """Do all of it as `transact` does, and take it back: nothing is written. Raises what `transact` raises."""
        with suppress(_Rehearsed):
            await self._attempted(operations, origin, guard, actor, rehearsal=True)

    async def _attempted(
        self,
        operations: Sequence[Op] | Plan,
        origin: str,
        guard: WriteGuard | None,
        actor: Actor | None,
        *,
        rehearsal: bool = False,
    ) -> list[Stored]:
        for attempt in range(ATTEMPTS):
            await self.guides.follow()
            try:
                async with self.database.writing() as connection:
                    planned = operations
                    if isinstance(operations, Plan):
                        planned = await self._planned(connection, operations)
                    stored = await self._write(connection, planned, origin, guard, actor)
                    if rehearsal:
                        raise _Rehearsed
                    return stored
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, _WrittenMeanwhile, GuidesMoved) as error:
                if attempt == ATTEMPTS - 1:
                    raise Conflict("Too many others write the same resources at this moment; try again") from error
                await asyncio.sleep(0.01 * 2**attempt * (0.5 + random.random()))  # noqa: S311 jitter, not a secret
        raise AssertionError("unreachable")

    async def _planned(self, connection: Connection, plan: Plan) -> Sequence[Op]:
        """What a plan comes to. What it found is locked, so that it still holds when it is written."""
        dialect = self.database.dialect
        await lock_searches(connection, dialect, plan.searches)
        queries = [await self.terminology.resolved(connection, query, plan.within) for query in plan.searches]
        found = [(await searching.search(connection, dialect, query, plan.within)).matches for query in queries]
        versions = {(one.type, one.id): one.version for matches in found for one in matches}
        if versions and dialect == "postgresql":
            await lock_identities(connection, versions)
            if await versions_now(connection, dialect, versions) != versions:
                raise _WrittenMeanwhile
        if plan.free is not None:
            found.append(await working.free_tasks(connection, dialect, plan.free, plan.within))
        return plan.make(found)

    async def _write(
        self, connection: Connection, operations: Sequence[Op], origin: str, guard: WriteGuard | None, actor: Actor | None
    ) -> list[Stored]:
        writes = [one for one in operations if isinstance(one, Put | Delete)]
        dialect, now = self.database.dialect, self.clock()
        stored: list[Stored] = []
        facts: list[SetState] = []
        if writes:
            stored, facts = await write_resources(
                connection,
                dialect,
                writes,
                origin=origin,
                now=now,
                rules=self.rules,
                confirm=self.guides.confirm,
                words=self.full_text,
                guard=guard,
                actor=actor,
            )
        # In one order for everybody, so that two transactions wait for each other at most, never both ways.
        others = [one for one in operations if not isinstance(one, Put | Delete)]
        for operation in sorted([*others, *facts], key=_order):
            match operation:
                case SetTimer():
                    await timing.set_timer(connection, operation)
                case CancelTimer(key):
                    await timing.cancel_timer(connection, key)
                case FinishTimer(timer):
                    await timing.finish_timer(connection, timer)
                case RepeatTimer():
                    await timing.repeat_timer(connection, operation)
                case SetState():
                    await set_state(connection, operation)
                case ClearStates(namespace):
                    await clear_states(connection, namespace)
                case MoveCursor():
                    await change_log.move_cursor(connection, operation)
                case RewriteSearchRows():
                    await self.guides.confirm(connection)
                    await reindexing.rewrite(connection, dialect, operation)
                case KeepForJob():
                    await job_files.keep(connection, operation)
                case DropForJob(job):
                    await job_files.drop(connection, job)
                case Hold():
                    await quarantining.hold(connection, operation, now)
                case LetGo():
                    await quarantining.let_go(connection, operation)
        return stored

    # --- changes, timers, facts ----------------------------------------------------------------------------------------------

    async def changes(self, after: Position, *, types: frozenset[str] | None = None, limit: int = 200) -> change_log.Changes:
        """Changes in order; never past a transaction that is still in flight."""
        async with self.database.reading() as connection:
            return await change_log.read_changes(connection, self.database.dialect, after, types, limit)

    async def change(self, type: str, id: str, version: int) -> Change:
        """The change that made one version. Raises NotFound."""
        async with self.database.reading() as connection:
            return await change_log.read_change(connection, type, id, version)

    async def heard(self) -> int:
        """Up to where changes were heard of: who asks this before they look, and then waits for what is new since, misses none."""
        return await self.database.heard()

    async def wait(self, timeout: float, since: int | None = None) -> None:
        """Until something changed since what was heard (None: since now), or so many seconds."""
        await self.database.wait(timeout, since)

    async def cursor(self, name: str) -> Position:
        """Where a cursor stands."""
        async with self.database.reading() as connection:
            return await change_log.read_cursor(connection, name)

    async def cursors(self, names: Sequence[str]) -> dict[str, Position]:
        """Where some cursors stand, of those that ever moved."""
        async with self.database.reading() as connection:
            return await change_log.read_cursors(connection, names)

    async def state(self, namespace: str, key: str) -> dict[str, Any] | None:
        """A durable fact, or None."""
        async with self.database.reading() as connection:
            text = await connection.fetchval("SELECT value FROM state WHERE namespace = $1 AND key = $2", namespace, key)
        return None if text is None else std_json.loads(text)

    async def states(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = 1_000_000
    ) -> dict[str, dict[str, Any]]:
        """The facts of a namespace whose keys begin with a prefix, in order of their keys; the first of those behind `after`."""
        async with self.database.reading() as connection:
            rows = await connection.fetch(
                "SELECT key, value FROM state WHERE namespace = $1 AND key >= $2 AND key < $3 AND key > $4 ORDER BY key LIMIT $5",
                namespace,
                prefix,
                prefix + chr(0x10FFFF),
                after,
                limit,
            )
        return {row["key"]: std_json.loads(row["value"]) for row in rows}

    async def states_of(self, namespace: str, keys: Collection[str]) -> dict[str, dict[str, Any]]:
        """Those of these facts that are there."""
        wanted, found = sorted(keys), {}
        async with self.database.reading() as connection:
            for start in range(0, len(wanted), _ASKED):
                chunk = wanted[start : start + _ASKED]
                marks = ", ".join(f"${at}" for at in range(2, len(chunk) + 2))
                rows = await connection.fetch(
                    f"SELECT key, value FROM state WHERE namespace = $1 AND key IN ({marks})", namespace, *chunk
                )
                found |= {row["key"]: std_json.loads(row["value"]) for row in rows}
        return found

    async def state_keys(self, namespace: str, limit: int) -> list[str]:
        """The first keys of a namespace, in order."""
        async with self.database.reading() as connection:
            rows = await connection.fetch("SELECT key FROM state WHERE namespace = $1 ORDER BY key LIMIT $2", namespace, limit)
        return [row["key"] for row in rows]

    async def claim_timers(self, kinds: Collection[str], *, limit: int, lease: timedelta) -> list[Timer]:
        """Claim timers that are due by the store's clock; a claim that is not finished ends with the lease (real time)."""
        if not kinds:
            return []
        async with self.database.reading() as connection:  # most of the time nothing is due, and a look costs no write
            if not await timing.any_due(connection, sorted(kinds), self.clock(), time.time()):
                return []
        async with self.database.writing() as connection:
            return await timing.claim_timers(
                connection, self.database.dialect, sorted(kinds), self.clock(), time.time(), limit, lease
            )

    async def next_due(self, kinds: Collection[str]) -> datetime | None:
        """When the next timer of these kinds that nobody has claimed is due, or was; None when there is none."""
        if not kinds:
            return None
        async with self.database.reading() as connection:
            return await timing.next_due(connection, sorted(kinds), time.time())

    async def timer(self, key: str) -> Timer | None:
        """A timer as it stands, to be looked at."""
        async with self.database.reading() as connection:
            return await timing.read_timer(connection, key)

    async def retry_timer(self, timer: Timer, due: datetime) -> None:
        """Give a claimed timer back, to be due again. Raises StaleClaim."""
        async with self.database.writing() as connection:
            await timing.retry_timer(connection, timer, due)

    async def extend_timer(self, timer: Timer, lease: timedelta) -> bool:
        """Hold a claim longer; False when it was lost."""
        async with self.database.writing() as connection:
            return await timing.extend_timer(connection, timer, time.time(), lease)

    async def lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or renew a lease (real time); False while another holds it."""
        async with self.database.writing() as connection:
            return await timing.take_lease(connection, name, holder, time.time(), seconds)

    async def release(self, name: str, holder: str) -> None:
        """Give a lease back."""
        async with self.database.writing() as connection:
            await timing.release_lease(connection, name, holder)

    # --- long work -----------------------------------------------------------------------------------------------------------

    async def count(self, types: Sequence[str]) -> int:
        """How many resources of these types there are."""
        async with self.database.reading() as connection:
            return await reindexing.count(connection, types)

    async def in_flight(self) -> int:
        """A mark behind every transaction that is in flight now, for `has_settled`."""
        async with self.database.reading() as connection:
            return await change_log.in_flight(connection, self.database.dialect)

    async def has_settled(self, mark: int) -> bool:
        """Whether all that was in flight at that mark has ended."""
        async with self.database.reading() as connection:
            return await change_log.has_settled(connection, self.database.dialect, mark)

    async def to_reindex(self, type: str, after: int, limit: int) -> reindexing.ReindexPage:
        """The search rows of the next resources of a type, in order of their keys, made anew from their bytes."""
        await self.guides.follow()
        async with self.database.reading() as connection:
            return await reindexing.reindex_page(connection, type, after, limit, words=self.full_text)

    async def export_page(self, query: exporting.ExportQuery, within: Narrowing | None = None) -> exporting.ExportPage:
        """The next resources of an export, as they were at its moment."""
        async with self.database.reading(one_moment=True) as connection:
            query = await self.terminology.resolved(connection, query, within)
            return await exporting.export_page(connection, self.database.dialect, query, within)

    async def writers(self) -> str:
        """A mark of this moment: `writers_done` tells when everyone has ended who was writing then."""
        async with self.database.reading() as connection:
            return await writing.writers(connection, self.database.dialect)

    async def writers_done(self, mark: str) -> bool:
        """Whether every transaction has ended that had begun at the mark; what comes now has a later time."""
        async with self.database.reading() as connection:
            return await writing.writers_done(connection, self.database.dialect, mark)

    # --- quarantine ----------------------------------------------------------------------------------------------------------

    async def held(self, partner: str, names: Collection[str]) -> dict[str, Held]:
        """Those of these names that are in quarantine for a partner."""
        async with self.database.reading() as connection:
            return await quarantining.held(connection, partner, names)

    async def held_page(
        self, partner: str | None = None, kind: str | None = None, *, after: tuple[str, str] = ("", ""), limit: int = 200
    ) -> list[Held]:
        """What is in quarantine, in order of partner and name, behind `after`."""
        async with self.database.reading() as connection:
            return await quarantining.held_page(connection, partner, kind, after, limit)

    async def held_counts(self, partner: str) -> dict[str, int]:
        """How many of each kind are in quarantine for a partner."""
        async with self.database.reading() as connection:
            return await quarantining.counts(connection, partner)

    async def held_body(self, partner: str, name: str) -> bytes | None:
        """The bytes in quarantine under a name, or None."""
        async with self.database.reading() as connection:
            return await quarantining.body(connection, partner, name)

    async def job_part(self, job: str, file: int, part: int) -> bytes:
        """A part of a file of a job. Raises NotFound."""
        async with self.database.reading() as connection:
            return await job_files.part(connection, job, file, part)

    async def close(self) -> None:
        """Close the database."""
        await self.database.close()


def _order(operation: Op) -> tuple[str, ...]:
    match operation:
        case SetTimer(key=key) | CancelTimer(key=key):
            return "1", key  # of one timer in the order given: it is finished, then set anew
        case FinishTimer(timer=timer) | RepeatTimer(timer=timer):
            return "1", timer.key
        case SetState(namespace=namespace, key=key, value=value):
            return "3", f"{namespace} {key}", "" if value is None else "set"  # one lets go of a fact before another takes it
        case ClearStates(namespace=namespace):
            return "3", namespace
        case MoveCursor(name=name):
            return "4", name
        case RewriteSearchRows():
            return "5", ""
        case KeepForJob(job=job) | DropForJob(job=job):  # behind its timer: who has that, has the job
            return "6", job
        case Hold(partner=partner, name=name) | LetGo(partner=partner, name=name):
            return "7", f"{partner} {name}"
    raise TypeError(type(operation).__name__)


def _existing(row: Mapping[str, Any] | None, type: str, id: str) -> Stored:
    if row is None:
        raise NotFound(f"{type}/{id} is not known")
    if row["method"] == "delete":
        raise Gone(f"{type}/{id} was deleted")
    return _stored(row)


def _stored(row: Mapping[str, Any]) -> Stored:
    method = row["method"]
    return Stored(
        row["type"], row["id"], row["version"], moment(row["last_updated"]), method == "delete", bytes(row["body"]), method
    )
