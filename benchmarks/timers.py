"""Timers that fire in time among a million: `python -m benchmarks.timers > benchmarks/results/timers.json`.

A million deadlines are pending, spread over a year, and two worker processes run over one database. Then some come due one after the other,
and many at the same moment, as at the end of a day: each is that of a real Task, which is passed to the next in line and tells it. Measured:
how late the outcome is committed after it was due, and how the same goes with handlers that do nothing (the ceiling of claiming).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.hub import database
from benchmarks.run import machine
from fhircm.coordination import escalation
from fhircm.coordination.build import coordinating_organization
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import load_pathways
from fhircm.fhir.validation import check
from fhircm.reactions import TimerHandler
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Op, Put, SetTimer, Store, Timer
from fhircm.worker import Worker

PROCESSES = 2
STARTING = 8  # seconds that the processes have to start


class Noting(Worker):
    """A worker that notes how late each timer was when its outcome was committed (seconds)."""

    late: list[float]

    async def _handle_together(self, handler: TimerHandler, timers: Sequence[Timer]) -> None:
        await super()._handle_together(handler, timers)
        now = datetime.now(UTC)
        self.late += [(now - timer.due).total_seconds() for timer in timers]


def _opened(store: Store) -> Context:
    organization = coordinating_organization("Benchmark")
    return Context(store, organization.id or "", "Benchmark", BusinessCalendar("UTC", "US"), pathways=load_pathways())


async def _nothing(_: Timer) -> list[Op]:
    return []


async def _work(url: str, real: bool, seconds: float, out: Any) -> None:
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    function = partial(escalation.overdue, _opened(store)) if real else _nothing
    worker = Noting(store, [], [TimerHandler(escalation.KIND, function)], None, None)  # type: ignore[arg-type]
    worker.late = []
    used = time.process_time()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await worker.run()
    out.put({"late": worker.late, "cpu": (time.process_time() - used) / seconds})
    await store.close()


def _process(*arguments: Any) -> None:
    asyncio.run(_work(*arguments))


async def _fill(url: str, pending: int) -> None:
    """Deadlines of the year to come, beginning tomorrow."""
    start, step = int((time.time() + 86_400) * 1e6), 365 * 86_400 * 1_000_000 // pending
    row = f"'due:Task/pending-' || n, 'deadline', {start} + CAST(n AS BIGINT) * {step}, '{{\"task\": \"pending-' || n || '\"}}'"
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.execute(
                "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < ?)"
                f" INSERT INTO timer (key, kind, due, payload) SELECT {row} FROM s",
                (pending,),
            )
        connection.close()
        return
    connection = await asyncpg.connect(url)
    await connection.execute(
        f"INSERT INTO timer (key, kind, due, payload) SELECT {row} FROM generate_series(1, {pending}) n", timeout=600
    )
    await connection.execute("VACUUM ANALYZE timer", timeout=600)
    await connection.close()


async def _begin(url: str) -> None:
    """The organisation that has what nobody else has."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    await store.transact([Put(coordinating_organization("Benchmark"))], origin="hub")
    await store.close()


async def _due(url: str, name: str, count: int, first: datetime, apart: timedelta) -> None:
    """Tasks that come due one after the other, with their timers."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    for start in range(0, count, 100):
        operations: list[Op] = []
        for number in range(start, min(start + 100, count)):
            id, at = f"{name}-{number}", first + number * apart
            end = {"period": {"end": at.isoformat(timespec="milliseconds")}}
            task = {"resourceType": "Task", "id": id, "status": "ready", "intent": "order", "restriction": end}
            operations += [
                Put(check(json.dumps(task).encode())),
                SetTimer(escalation.key(id), escalation.KIND, at, {"task": id}),
            ]
        await store.transact(operations, origin="hub")
    await store.close()


def _ranked(late: list[float]) -> dict[str, float]:
    late = sorted(late)
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(late[min(len(late) - 1, int(len(late) * share))], 3) for name, share in at.items()} if late else {}


def _run(url: str, what: str, real: bool, count: int, apart: float) -> dict[str, Any]:
    name = f"{what}-{'real' if real else 'ceiling'}"
    seconds = STARTING + count * apart + count / 50 + 10
    first = datetime.now(UTC) + timedelta(seconds=STARTING + count / 150)
    asyncio.run(_due(url, name, count, first, timedelta(seconds=apart)))
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=_process, args=(url, real, seconds, out)) for _ in range(PROCESSES)]
    for one in processes:
        one.start()
    ended = [out.get() for _ in processes]
    for one in processes:
        one.join()
    late = [each for one in ended for each in one["late"]]
    return {
        "due": count,
        "every_seconds": apart,
        "fired": len(late),
        "late_seconds": _ranked(late),
        "processor_share": [round(one["cpu"], 3) for one in ended],
    }


async def _plan(url: str) -> list[str]:
    """How the database finds what to claim."""
    sql = (
        "SELECT key FROM timer WHERE due <= 1 AND leased_until <= 1 AND kind IN ('deadline', 'open-loops') ORDER BY due LIMIT 100"
    )
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        found = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        connection.close()
        return found
    server = await asyncpg.connect(url)
    found = [
        row[0]
        for row in await server.fetch(
            f"EXPLAIN UPDATE timer SET attempts = attempts + 1 WHERE key IN ({sql} FOR UPDATE SKIP LOCKED) RETURNING key"
        )
    ]
    await server.close()
    return found


def _measured(url: str, options: argparse.Namespace) -> dict[str, Any]:
    asyncio.run(migrate(url))
    asyncio.run(_fill(url, options.pending))
    asyncio.run(_begin(url))
    result: dict[str, Any] = {"plan": asyncio.run(_plan(url))}
    for real in (False, True):
        of = result["tasks" if real else "ceiling"] = {}
        of["one_after_the_other"] = _run(url, "spread", real, options.due, 0.05)
        of["at_the_same_moment"] = _run(url, "burst", real, options.due, 0.0)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--pending", type=int, default=1_000_000)
    parser.add_argument("--due", type=int, default=400)
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "pending": options.pending, "processes": PROCESSES}
    for kind in options.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as folder, database(kind, Path(folder)) as url:
            results[kind] = _measured(url, options)
            sys.stderr.write(f"{kind}: {json.dumps(results[kind], indent=1)}\n")
    json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
