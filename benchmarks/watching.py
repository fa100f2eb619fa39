"""What it costs to tell how many partners are doing: `python -m benchmarks.watching > benchmarks/results/watching.json`.

For some numbers of partners of Epic's shape with some patients each: the statuses that the console lists, and the text of /metrics, in seconds
of wall and processor time; beside them, as the floor, reading the same facts from the database and decoding them with Python's own decoder.
`stall` is the longest time in which a request that came meanwhile would not have been begun. Best of some rounds. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks.run import machine
from fhircm.exchange.dead_letters import parked
from fhircm.exchange.due import Due
from fhircm.exchange.freshness import Ledger
from fhircm.exchange.looks import Looks
from fhircm.exchange.news import due
from fhircm.exchange.partners import Partner, load_partners
from fhircm.exchange.plan import Look
from fhircm.exchange.status import PULLED, statuses
from fhircm.metrics import Metrics
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import SetState, Store

ROUNDS = 5
PANELS = ((10, 1000), (100, 100), (1000, 20), (1000, 100))  # partners, patients each
TICK = 0.001


async def fill(store: Store, partner: Partner, patients: int, lot: random.Random) -> None:
    """What pulls and deliveries of a while leave behind."""
    now = store.clock()
    looks, ledger = Looks(partner, {}, [f"p{number}" for number in range(patients)]), Ledger(partner)
    for type in looks.types:
        for patient in looks.of:
            looks.note(patient, type, Look(now.timestamp() - 1e5 * lot.random(), now.timestamp() - 1e6 * lot.random()))
        ledger.found(type, "hash", 3)
        ledger.came(type, 33)
        ledger.of(type).update(requests=100, bytes=100_000, seconds=5.0)
    pulled = SetState(PULLED, partner.name, {"at": now.isoformat(), "success": now.isoformat()})
    waiting = Due("1:Task/1", "Patient/1", "Task", "1", 1, "referral-sent", now.isoformat()).put(partner.name)
    letter = SetState(parked(partner.name), "Task/1/x/1", {"why": "refused"})
    next_round = due(partner.name, now + timedelta(minutes=5))
    await store.transact([*looks.facts(), *ledger.facts(), pulled, waiting, letter, next_round], origin="hub")


async def timed(work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """The best of some rounds, with the longest stall of all of them."""
    stalls = []

    async def tick() -> None:
        while True:
            begun = perf_counter()
            await asyncio.sleep(TICK)
            stalls.append(perf_counter() - begun - TICK)

    rounds = []
    for _ in range(ROUNDS):
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(2 * TICK)
        wall, cpu = perf_counter(), process_time()
        await work()
        rounds.append((perf_counter() - wall, process_time() - cpu))
        await asyncio.sleep(2 * TICK)
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
    wall, cpu = (min(one) for one in zip(*rounds, strict=True))
    return {"wall": round(wall, 3), "cpu": round(cpu, 3), "stall": round(max(stalls), 3)}


async def measured(number: int, patients: int, folder: Path) -> dict[str, Any]:
    path = folder / f"{number}-{patients}.db"
    await migrate(f"sqlite:///{path}")
    store = Store(await open_database(f"sqlite:///{path}"), clock=lambda: datetime.now(UTC))
    one, lot = load_partners(None, {}, ["lakeside-hospital"])[0], random.Random(7)
    partners = [replace(one, name=f"partner-{at:04}") for at in range(number)]
    for partner in partners:
        await fill(store, partner, patients, lot)
    metrics = Metrics(store, partners, None)

    async def raw() -> None:
        with sqlite3.connect(path) as connection:
            for (text,) in connection.execute("SELECT value FROM state").fetchall():
                json.loads(text)

    found = {
        "partners": number,
        "patients": patients,
        "series": (await metrics.made()).count(b"\n"),
        "floor": await timed(raw),
        "statuses": await timed(lambda: statuses(store, partners)),
        "metrics": await timed(metrics.made),
    }
    await store.close()
    return {**found, "metrics to floor": round(found["metrics"]["cpu"] / found["floor"]["cpu"], 1)}


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = [await measured(number, patients, Path(folder)) for number, patients in PANELS]
    print(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
