"""From an event to what follows from it, under load: `python -m benchmarks.reactions > benchmarks/results/reactions.json`.

The hub serves in two processes, and one worker reacts (`fhircm work`), all on this machine's cores with the driver. While clients read, search and
write Tasks at a steady rate, referrals are ordered one after the other. Measured: from the sending of the order until the Task that the worker
makes of it is there for another process to read. The ceiling in the same load: a row inserted through the bare driver, of which a process that
listens (PostgreSQL) or looks every 50 ms (SQLite) makes another row.
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
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks import hub
from benchmarks.http import Connection
from benchmarks.run import machine
from fhircm.fhir.validation import check_tree
from fhircm.reactions import REACTIONS
from fhircm.store.changes import Position
from fhircm.store.database import connect_sqlite, open_database
from fhircm.store.figures import Figures
from fhircm.store.migrations import migrate
from fhircm.store.resources import Put, Store
from fhircm.worker import BATCH

PORT, PROCESSES, PATIENTS, TASKS, CONNECTIONS = 58231, 2, 300, 1000, 32
RATES = (0, 50, 200)  # requests/s of the load
PROBES, APART = 200, 0.1  # orders, and seconds between two of them
_SCT = "http://snomed.info/sct"


async def _fill(url: str) -> None:
    await migrate(url)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    trees: list[dict[str, Any]] = [{"resourceType": "Organization", "id": one, "name": one} for one in ("clinic", "shelter")]
    trees += [{"resourceType": "Patient", "id": f"p{number}"} for number in range(PATIENTS)]
    trees += [_task(number, "ready") for number in range(TASKS)]
    for at in range(0, len(trees), 500):
        await store.transact([Put(check_tree(tree)) for tree in trees[at : at + 500]], origin="load")
    await store.close()


def _task(number: int, status: str, version: int = 0) -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "id": f"t{number}",
        "status": status,
        "intent": "order",
        "description": f"Call the patient, {version}",
        "owner": {"reference": "Organization/clinic"},
        "for": {"reference": f"Patient/p{number % PATIENTS}"},
    }


def _order(number: int) -> bytes:
    return json.dumps(
        {
            "resourceType": "ServiceRequest",
            "status": "active",
            "intent": "order",
            "category": [{"coding": [{"system": _SCT, "code": "3457005"}]}],
            "code": {"coding": [{"system": _SCT, "code": "225358003"}], "text": "Wound care"},
            "subject": {"reference": f"Patient/p{number % PATIENTS}"},
            "requester": {"reference": "Organization/clinic"},
            "performer": [{"reference": "Organization/shelter"}],
            "authoredOn": datetime.now(UTC).isoformat(),
        }
    ).encode()


class Load:
    """Clients who together ask so many times a second."""

    def __init__(self, headers: str, rate: int) -> None:
        self.headers, self.rate, self.random, self.sent, self.took = headers, rate, random.Random(rate), 0, []

    async def run(self) -> None:
        """Until cancelled: each connection at its share of the rate."""
        if not self.rate:
            return
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        connection = Connection(f"http://127.0.0.1:{PORT}/fhir")
        step = CONNECTIONS / self.rate
        at = time.perf_counter() + step * number / CONNECTIONS
        while True:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            at = max(at + step, time.perf_counter() - 1)
            begun = time.perf_counter()
            status, answer = await connection.ask(*self._request())
            if status not in (200, 201):
                raise SystemExit(f"{status}: {answer[:300]!r}")
            self.sent += 1
            self.took.append(time.perf_counter() - begun)

    def _request(self) -> tuple[str, str, str, bytes]:
        drawn, patient = self.random.random(), self.random.randrange(PATIENTS)
        if drawn < 0.5:
            return "GET", f"/Patient/p{patient}", self.headers, b""
        if drawn < 0.75:
            return "GET", f"/Task?patient=Patient/p{patient}&status=ready", self.headers, b""
        if drawn < 0.85:
            return "GET", "/Task/$worklist?owner=Organization/clinic&_count=20", self.headers, b""
        task = _task(self.random.randrange(TASKS), "ready", self.sent)
        return "PUT", f"/Task/{task['id']}", self.headers, json.dumps(task).encode()


async def _seen(url: str, wanted: int) -> dict[str, float]:
    """When the Task of each order was there to be read, by the id of the order."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    after, found = Position(0, 0), dict[str, float]()
    while (batch := await store.changes(after, types=frozenset({"Task"}), limit=10_000)).changes:
        after = batch.upto
    while True:
        heard = await store.heard()
        batch = await store.changes(after, types=frozenset({"Task"}), limit=10_000)
        now, after = time.time(), batch.upto
        made = [(one.type, one.id) for one in batch.changes if one.version == 1]
        for task in (await store.read_many(made)).values() if made else ():
            order = task.tree.get("focus", {}).get("reference", "").removeprefix("ServiceRequest/")
            found.setdefault(order, now)
        if len(found) >= wanted:
            await store.close()
            return found
        if not batch.changes:
            await store.wait(1, heard)


async def _orders(headers: str) -> dict[str, float]:
    """Sends the orders; when each was sent, by its id."""
    connection, sent = Connection(f"http://127.0.0.1:{PORT}/fhir"), {}
    at = time.perf_counter()
    for number in range(PROBES):
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        at, begun = at + APART, time.time()
        status, answer = await connection.ask("POST", "/ServiceRequest", headers, _order(number))
        if status != 201:
            raise SystemExit(f"{status}: {answer[:300]!r}")
        sent[json.loads(answer)["id"]] = begun
    return sent


# --- the ceiling -------------------------------------------------------------------------------------------------------------


async def _bare(url: str, listening: Any) -> None:
    """Makes an answer of each row, at once."""
    if url.startswith("sqlite:///"):
        file = connect_sqlite(Path(url.removeprefix("sqlite:///")))
        file.execute("PRAGMA busy_timeout = 60000")
        listening.set()
        while True:
            file.execute("INSERT INTO answer SELECT id FROM event WHERE id NOT IN (SELECT id FROM answer)")
            await asyncio.sleep(0.05)
    connection, woken = await asyncpg.connect(url), asyncio.Event()
    await connection.add_listener("bare", lambda *_: woken.set())
    listening.set()
    while True:
        await woken.wait()
        woken.clear()
        await connection.execute(
            "WITH new AS (INSERT INTO answer SELECT id FROM event EXCEPT SELECT id FROM answer) SELECT pg_notify('answered', '')"
        )


def _bare_process(*arguments: Any) -> None:
    asyncio.run(_bare(*arguments))


async def _ceiling(url: str) -> list[float]:
    """How long it takes until each row has its answer, seen by a third process."""
    late: list[float] = []
    if url.startswith("sqlite:///"):
        file = connect_sqlite(Path(url.removeprefix("sqlite:///")))
        file.execute("PRAGMA busy_timeout = 60000")
        for number in range(PROBES):
            begun = time.perf_counter()
            file.execute("INSERT INTO event VALUES (?)", (f"e{number}",))
            while not file.execute("SELECT 1 FROM answer WHERE id = ?", (f"e{number}",)).fetchone():
                await asyncio.sleep(0.01)
            late.append(time.perf_counter() - begun)
            await asyncio.sleep(max(0.0, APART - late[-1]))
        return late
    connection, listener, answered = await asyncpg.connect(url), await asyncpg.connect(url), asyncio.Event()
    await listener.add_listener("answered", lambda *_: answered.set())
    for number in range(PROBES):
        begun = time.perf_counter()
        await connection.execute("WITH new AS (INSERT INTO event VALUES ($1)) SELECT pg_notify('bare', '')", f"e{number}")
        while not await connection.fetchval("SELECT 1 FROM answer WHERE id = $1", f"e{number}"):
            with suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), 0.05)
            answered.clear()
        late.append(time.perf_counter() - begun)
        await asyncio.sleep(max(0.0, APART - late[-1]))
    await connection.close()
    await listener.close()
    return late


async def _script(url: str, statements: str) -> None:
    """Carry out statements on the tables of the ceiling."""
    if url.startswith("sqlite:///"):
        with sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60) as file:
            file.executescript(statements)
        return
    connection = await asyncpg.connect(url)
    await connection.execute(statements)
    await connection.close()


async def _caught_up(url: str) -> None:
    """Wait until the worker has reacted to everything that was loaded. A cursor moves with what is of its types, so some stay a little behind."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    while True:
        newest = await Figures(store.database).head()
        behind = [newest.number - (await store.cursor(name)).number for name in REACTIONS]
        if max(behind) <= BATCH:
            return await store.close()
        await asyncio.sleep(0.2)


# --- all of it ---------------------------------------------------------------------------------------------------------------


def _ranked(late: list[float]) -> dict[str, float]:
    late = sorted(late)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: round(1000 * late[min(len(late) - 1, int(len(late) * share))], 1) for name, share in at.items()}


async def _at_rate(url: str, headers: str, rate: int, worker: hub.Server) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        load = Load(headers, rate)
        loading = asyncio.create_task(load.run())
        stack.callback(loading.cancel)
        await asyncio.sleep(2)
        watching = asyncio.create_task(_seen(url, PROBES))
        await asyncio.sleep(1)
        begun, cpu, before = time.perf_counter(), worker.cpu(), load.sent
        sent = await _orders(headers)
        seen = await asyncio.wait_for(watching, 120)
        seconds, used, asked = time.perf_counter() - begun, worker.cpu() - cpu, load.sent - before
        late = [seen[id] - at for id, at in sent.items()]
        found = {
            "requests_per_second": round(asked / seconds),
            **_ranked(late),
            "worker_cpu": round(used / seconds, 2),
        }
        if load.took:
            found["load"] = _ranked(load.took)
        await _script(url, "DELETE FROM event; DELETE FROM answer")
        found["ceiling"] = _ranked(await _ceiling(url))
        if loading.done():
            loading.result()
        return found


def _measured(kind: str, folder: Path) -> dict[str, Any]:
    with hub.database(kind, folder) as url:
        asyncio.run(_fill(url))
        asyncio.run(_script(url, "CREATE TABLE event (id TEXT PRIMARY KEY); CREATE TABLE answer (id TEXT PRIMARY KEY)"))
        headers = f"Authorization: Bearer {hub.token(url)}\r\nContent-Type: application/fhir+json\r\n"
        spawn = multiprocessing.get_context("spawn")
        listening = spawn.Event()
        bare = spawn.Process(target=_bare_process, args=(url, listening), daemon=True)
        with hub.hub(url, folder, PORT, PROCESSES), hub.worker(url, folder, PORT) as worker:
            bare.start()
            listening.wait(60)
            try:
                begun = time.perf_counter()
                asyncio.run(asyncio.wait_for(_caught_up(url), 600))
                sys.stderr.write(f"caught up with what was loaded after {time.perf_counter() - begun:.0f} s\n")
                return {str(rate): asyncio.run(_at_rate(url, headers, rate, worker)) for rate in RATES}
            finally:
                bare.terminate()
                bare.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "processes": PROCESSES, "orders": PROBES, "seconds_between": APART}
    for kind in options.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as folder:
            results[kind] = _measured(kind, Path(folder))
            sys.stderr.write(f"{kind}: {json.dumps(results[kind], indent=1)}\n")
    json.dump(results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
