"""Claim Tasks of one queue: `python -m benchmarks.claims --database postgresql > benchmarks/results/claims-postgresql.json`.

64 claimers in two processes want the same Tasks, in nearly the same order. Measured, one after the other over the same database: bare
`UPDATE ... WHERE owner IS NULL` transactions through the bare driver (the ceiling), `Task/$claim` as an operation carries it out, without
HTTP, `Task/$claim` over HTTP at a hub of two processes, and `Task/$claim-next` there, one and twenty at a time. After each, the history of every Task is read: one that had two owners is a
double claim.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import hub
from benchmarks.http import Connection
from benchmarks.run import machine
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination import claiming
from fhircm.coordination.acting import act
from fhircm.coordination.claims import person
from fhircm.coordination.rules import RULES
from fhircm.fhir.outcome import Conflict, VersionConflict
from fhircm.fhir.systems import ROLE
from fhircm.fhir.validation import check_tree
from fhircm.store.database import connect_sqlite, open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Put, Store

PROCESSES, CLAIMERS, PORT = 2, 64, 58197
_MIXED = 64  # Tasks within which each process has an order of its own: they meet again and again
Claim = Callable[[int, str], Awaitable[bool]]  # by a claimer, a Task: whether they have it now


def _task(id: str, place: str) -> Put:
    return Put(
        check_tree(
            {
                "resourceType": "Task",
                "id": id,
                "status": "ready",
                "intent": "order",
                "description": "Call the patient",
                "performerType": [{"coding": [{"system": ROLE, "code": "care-coordinator"}]}],
                "owner": {"reference": f"Organization/{place}"},
                "for": {"reference": "Patient/p"},
            }
        )
    )


async def _fill(url: str, queues: Mapping[str, Sequence[str]]) -> None:
    """Tasks in queues, each of an organisation."""
    await migrate(url)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    people = [{"resourceType": "Practitioner", "id": f"c{number}"} for number in range(CLAIMERS)]
    places = [{"resourceType": "Organization", "id": one, "name": one} for one in ("clinic", *queues)]
    first = [*places, {"resourceType": "Patient", "id": "p"}, *people]
    await store.transact([Put(check_tree(tree)) for tree in first], origin="load")
    for place, tasks in queues.items():
        for at in range(0, len(tasks), 500):
            await store.transact([_task(id, place) for id in tasks[at : at + 500]], origin="load")
    await store.close()


def _order(tasks: Sequence[str], process: int) -> list[str]:
    mixed = random.Random(process)
    blocks = [list(tasks[at : at + _MIXED]) for at in range(0, len(tasks), _MIXED)]
    for block in blocks:
        mixed.shuffle(block)
    return [one for block in blocks for one in block]


async def _claimers(process: int, tasks: Sequence[str], claim: Claim) -> dict[str, Any]:
    """The claimers of one process, each taking the next Task when it has an answer about the one before."""
    waiting = iter(_order(tasks, process))
    took: list[float] = []
    won = lost = 0

    async def claimer(number: int) -> None:
        nonlocal won, lost
        for id in waiting:
            begun = time.perf_counter()
            if await claim(number, id):
                won += 1
                took.append(time.perf_counter() - begun)
            else:
                lost += 1

    begun, cpu = time.time(), time.process_time()
    own = range(process, CLAIMERS, PROCESSES)
    await asyncio.gather(*(claimer(number) for number in own))
    return {"begun": begun, "ended": time.time(), "won": won, "lost": lost, "took": took, "cpu": time.process_time() - cpu}


# --- the three ways -----------------------------------------------------------------------------------------------------------


async def _bare(process: int, url: str, tasks: Sequence[str]) -> dict[str, Any]:
    if url.startswith("sqlite:///"):
        file = connect_sqlite(Path(url.removeprefix("sqlite:///")))
        file.execute("PRAGMA busy_timeout = 60000")  # whoever waits for the one writer waits as long as it takes

        async def claim(number: int, id: str) -> bool:
            file.execute("BEGIN IMMEDIATE")
            changed = file.execute("UPDATE bare SET owner = ? WHERE id = ? AND owner IS NULL", (f"c{number}", id)).rowcount
            file.execute("COMMIT")
            return changed == 1

        return await _claimers(process, tasks, claim)
    pool = await asyncpg.create_pool(url, min_size=16, max_size=16)

    async def claim_there(number: int, id: str) -> bool:
        async with pool.acquire() as connection, connection.transaction():
            done = await connection.execute("UPDATE bare SET owner = $1 WHERE id = $2 AND owner IS NULL", f"c{number}", id)
            return bool(done == "UPDATE 1")

    found = await _claimers(process, tasks, claim_there)
    await pool.close()
    return found


async def _operation(process: int, url: str, tasks: Sequence[str]) -> dict[str, Any]:
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC), rules=RULES)
    roles = frozenset({"care-coordinator"})
    people = [
        GuardedStore(
            store,
            Principal(
                "benchmark",
                parse_scopes("user/*.cruds"),
                roles,
                organization="Organization/operation",
                user=f"Practitioner/c{number}",
                known_as=frozenset({f"Practitioner/c{number}", "Organization/operation"}),
            ),
        )
        for number in range(CLAIMERS)
    ]

    async def claim(number: int, id: str) -> bool:
        try:
            await act(people[number], claiming.claim, "Task", id, {})
        except (Conflict, VersionConflict):
            return False
        return True

    found = await _claimers(process, tasks, claim)
    await store.close()
    return found


async def _http(process: int, token: str, tasks: Sequence[str]) -> dict[str, Any]:
    base = f"http://127.0.0.1:{PORT}/fhir"
    connections = [Connection(base) for _ in range(CLAIMERS)]
    headers = f"Authorization: Bearer {token}\r\nContent-Type: application/fhir+json\r\n"

    async def claim(number: int, id: str) -> bool:
        owner = {"name": "owner", "valueReference": {"reference": f"Practitioner/c{number}"}}
        body = json.dumps({"resourceType": "Parameters", "parameter": [owner]}).encode()
        status, answer = await connections[number].ask("POST", f"/Task/{id}/$claim", headers, body)
        if status not in (200, 409, 412):
            raise SystemExit(f"{status}: {answer[:500]!r}")
        return status == 200

    return await _claimers(process, tasks, claim)


async def _next(count: int, process: int, token: str, tasks: Sequence[str]) -> dict[str, Any]:
    """The claimers of one process, each taking the next of the queue until it is empty; `took` is the time of a request."""
    base = f"http://127.0.0.1:{PORT}/fhir"
    headers = f"Authorization: Bearer {token}\r\nContent-Type: application/fhir+json\r\n"
    place = f"Organization/{tasks[0].rpartition('-')[0]}"
    took: list[float] = []
    won = 0

    async def claimer(number: int) -> None:
        nonlocal won
        connection = Connection(base)
        said = [
            {"name": "owner", "valueReference": {"reference": f"Practitioner/c{number}"}},
            {"name": "role", "valueString": "care-coordinator"},
            {"name": "organization", "valueString": place},
            {"name": "count", "valuePositiveInt": count},
        ]
        body = json.dumps({"resourceType": "Parameters", "parameter": said}).encode()
        while True:
            begun = time.perf_counter()
            status, answer = await connection.ask("POST", "/Task/$claim-next", headers, body)
            if status != 200:
                raise SystemExit(f"{status}: {answer[:500]!r}")
            if not (taken := json.loads(answer)["total"]):
                return
            won += taken
            took.append(time.perf_counter() - begun)

    begun, cpu = time.time(), time.process_time()
    await asyncio.gather(*(claimer(number) for number in range(process, CLAIMERS, PROCESSES)))
    return {"begun": begun, "ended": time.time(), "won": won, "lost": 0, "took": took, "cpu": time.process_time() - cpu}


_WAYS = {"ceiling": _bare, "operation": _operation, "http": _http, "next": partial(_next, 1), "next-20": partial(_next, 20)}
_OVER_HTTP = ("http", "next", "next-20")


def _process(way: str, process: int, where: str, tasks: Sequence[str], start: Any, out: Any) -> None:
    start.wait()
    try:
        out.put(asyncio.run(_WAYS[way](process, where, tasks)))
    except BaseException as error:
        out.put(error)
        raise


def measure(way: str, where: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Two processes of claimers over these Tasks, begun together."""
    spawn = multiprocessing.get_context("spawn")
    start, out = spawn.Barrier(PROCESSES), spawn.Queue()
    running = [spawn.Process(target=_process, args=(way, one, where, tasks, start, out)) for one in range(PROCESSES)]
    for one in running:
        one.start()
    parts = [out.get() for _ in running]
    for one in running:
        one.join()
    if failed := [one for one in parts if isinstance(one, BaseException)]:
        raise SystemExit(f"{way}: {failed[0]!r}")
    seconds = max(one["ended"] for one in parts) - min(one["begun"] for one in parts)
    won = sum(one["won"] for one in parts)
    took = sorted(one for part in parts for one in part["took"])
    return {
        "claims": won,
        "refused": sum(one["lost"] for one in parts),
        "claims_per_second": round(won / seconds),
        "p50_ms": round(took[len(took) // 2] * 1000, 2),
        "p99_ms": round(took[len(took) * 99 // 100] * 1000, 2),
        "claimers_cpu_ms_per_claim": round(sum(one["cpu"] for one in parts) / won * 1000, 3),
    }


async def _double(url: str, tasks: Sequence[str]) -> int:
    """How many Tasks had more than one person as their owner, by their history; every one must have had one."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    double = 0
    for id in tasks:
        owners = {person(one.tree.get("owner")) for one in await store.history("Task", id)} - {None}
        if not owners:
            raise SystemExit(f"Task/{id} was claimed by nobody")
        double += len(owners) > 1
    await store.close()
    return double


def _bare_table(url: str, tasks: Sequence[str]) -> None:
    if url.startswith("sqlite:///"):
        file = sqlite3.connect(url.removeprefix("sqlite:///"))
        file.execute("CREATE TABLE bare (id TEXT PRIMARY KEY, owner TEXT)")
        file.executemany("INSERT INTO bare (id) VALUES (?)", [(one,) for one in tasks])
        file.commit()
        file.close()
        return

    async def make() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE bare (id text PRIMARY KEY, owner text)")
        await connection.executemany("INSERT INTO bare (id) VALUES ($1)", [(one,) for one in tasks])
        await connection.close()

    asyncio.run(make())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="postgresql", help="sqlite, postgresql, or the URL of an empty database")
    parser.add_argument("--tasks", type=int, default=5000, help="of each way")
    options = parser.parse_args()
    names = {way: [f"{way}-{number:06}" for number in range(options.tasks)] for way in _WAYS}
    with tempfile.TemporaryDirectory() as temporary, hub.database(options.database, Path(temporary)) as url:
        asyncio.run(_fill(url, {way: tasks for way, tasks in names.items() if way != "ceiling"}))
        _bare_table(url, names["ceiling"])
        found = {"ceiling": measure("ceiling", url, names["ceiling"]), "operation": measure("operation", url, names["operation"])}
        token = hub.token(url)
        with hub.hub(url, Path(temporary), PORT, PROCESSES) as server:
            for way in _OVER_HTTP:
                before = server.cpu()
                found[way] = measure(way, token, names[way])
                found[way]["hub_cpu_ms_per_claim"] = round((server.cpu() - before) / found[way]["claims"] * 1000, 3)
        for way in ("operation", *_OVER_HTTP):
            found[way]["double_claims"] = asyncio.run(_double(url, names[way]))
            found[way]["of_the_ceiling"] = round(found[way]["claims_per_second"] / found["ceiling"]["claims_per_second"], 3)
    json.dump({"machine": machine(), "claimers": CLAIMERS, "processes": PROCESSES, **found}, sys.stdout, indent=2)
    print()
    if any(found[way]["double_claims"] for way in ("operation", *_OVER_HTTP)):
        raise SystemExit("A Task was claimed twice")


if __name__ == "__main__":
    main()
