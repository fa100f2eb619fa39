"""Measure the hub beside the ceiling of this machine: `python -m benchmarks.run --database postgresql > result.json`.

Starts a hub of its own on a fresh database, loads seeded records through the API, and runs each workload; then a bare application over
the same rows does the same work (benchmarks/ceiling.py) in the same run. The ratio between the two holds on any machine. Prints JSON;
`python -m benchmarks.report result.json` makes a page of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from benchmarks import hub as hubs
from benchmarks.http import Connection
from benchmarks.load import load, measure
from benchmarks.workloads import JSON, WORKLOADS, Known, Request

ASKED = 40  # different requests of a workload whose rows the ceiling reads
_WRITES = ("create", "transaction of 10", "transaction of 50", "transaction of a whole patient")
PORT, CEILING_PORT = 58190, 58191


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


async def _found(base_url: str, line: str, known: Known, name: str) -> list[list[str]]:
    """What some requests of a workload answer: Type/id of each resource."""
    connection, found = Connection(base_url), []
    for _ in range(ASKED):
        method, path, headers, body = WORKLOADS[name](known)
        _, answer = await connection.ask(method, path, line + headers, body)
        tree = json.loads(answer)
        resources = [one["resource"] for one in tree.get("entry", ())] if tree["resourceType"] == "Bundle" else [tree]
        found.append([f"{one['resourceType']}/{one['id']}" for one in resources])
    connection.close()
    return found


async def _keys(database_url: str) -> dict[str, int]:
    sql = "SELECT type || '/' || id, key FROM resource"
    if database_url.startswith("sqlite:///"):
        file = sqlite3.connect(database_url.removeprefix("sqlite:///"))
        return dict(file.execute(sql).fetchall())
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(sql)
    await connection.close()
    return {row[0]: row[1] for row in rows}


def _plan(database_url: str, folder: Path, lists: list[list[int]], known: Known) -> Path:
    samples: dict[str, list[str]] = {}
    for name in (one for one in _WRITES if one in WORKLOADS):
        _, _, _, body = WORKLOADS[name](known)
        tree = json.loads(body)
        resources = [one["resource"] for one in tree["entry"]] if tree["resourceType"] == "Bundle" else [tree]
        samples[name.replace(" ", "-")] = [json.dumps(one).replace("urn:uuid:", "Patient/") for one in resources]
    path = folder / "plan.json"
    path.write_text(json.dumps({"database_url": database_url, "lists": lists, "samples": samples}))
    return path


def _bare(name: str, known: Known, first: int) -> Callable[[Known], Request]:
    """A workload as the ceiling is asked it."""
    if name in _WRITES:
        return lambda known: ("POST", f"/write/{name.replace(' ', '-')}", JSON, WORKLOADS[name](known)[3])
    draw = random.Random(3)
    return lambda known: ("GET", f"/read/{first + draw.randrange(ASKED)}", "", b"")


def run(database_url: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, on one database."""
    clients = [int(one) for one in options.clients.split(",")]
    names = options.workload or [*WORKLOADS]
    read = [name for name in names if WORKLOADS[name](_anything())[0] == "GET" and name != "mixed"]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with hubs.hub(database_url, folder, PORT, options.processes) as hub:
        line = f"Authorization: Bearer {hubs.token(database_url)}\r\n"
        known, loaded = asyncio.run(load(hub.base_url, lambda: line, options.patients))
        _say(f"loaded {loaded['resources']} resources, {loaded['rate']}/s")
        found = {name: asyncio.run(_found(hub.base_url, line, known, name)) for name in read}
        for name in names:
            for one in _measured(hub, line, known, name, WORKLOADS[name], clients, options.seconds):
                results[name].append(one)
                _say(f"{name}, {one['clients']} clients: {one['rate']}/s, p50 {one['p50_ms']} ms {one['errors'] or ''}")
        facts = {"started_s": hub.started, "memory_mb": round(hub.memory())}
    keys = asyncio.run(_keys(database_url))
    lists = [[keys[one] for one in listed] for name in read for listed in found[name]]
    plan = _plan(database_url, folder, lists, known)
    address = f"http://127.0.0.1:{CEILING_PORT}"
    command = ["-m", "benchmarks.ceiling", str(plan), str(CEILING_PORT)]
    with hubs.server(command, address, address, folder / "ceiling.log", {}) as ceiling:
        for name in [*read, *(one for one in names if one in _WRITES)]:
            make = _bare(name, known, read.index(name) * ASKED if name in read else 0)
            for one, mine in zip(_measured(ceiling, "", known, name, make, clients, options.seconds), results[name], strict=True):
                mine["ceiling"] = {part: one[part] for part in ("rate", "p50_ms", "cpu_us")}
                mine["ratio"] = round(mine["rate"] / one["rate"], 2)
                _say(f"{name}, {one['clients']} clients: {mine['ratio']:.0%} of the ceiling's {one['rate']}/s")
    return {
        "patients": options.patients,
        "processes": options.processes,
        "load": loaded,
        **facts,
        "results": [one for name in names for one in results[name]],
    }


def _measured(
    server: hubs.Server, line: str, known: Known, name: str, make: Callable[[Known], Request], clients: list[int], seconds: float
) -> list[dict[str, Any]]:
    asyncio.run(measure(server.base_url, lambda: line, known, name, 4, min(1.0, seconds), make))
    found = []
    for count in clients:
        before = server.cpu()
        one = asyncio.run(measure(server.base_url, lambda: line, known, name, count, seconds, make))
        found.append(one | {"cpu_us": round((server.cpu() - before) / one["requests"] * 1e6)})
    return found


def _anything() -> Known:
    class Any(dict[str, list[str]]):
        def __missing__(self, type: str) -> list[str]:
            return ["x"]

    return Known(Any(), ["Organization/x", "Practitioner/x"], 1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--database", action="append", help="sqlite, postgresql (from pip), or the URL of an empty database; may be given again"
    )
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--processes", type=int, default=1, help="of the hub; the ceiling has one")
    parser.add_argument("--workload", action="append", choices=[*WORKLOADS], help="may be given again; all without it")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    databases: dict[str, Any] = {}
    for kind in options.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as name, hubs.database(kind, Path(name)) as url:
            _say(f"--- {urlsplit(kind).scheme or kind}")
            databases[urlsplit(kind).scheme or kind] = run(url, Path(name), options)
    print(json.dumps({"machine": machine(), "databases": databases}, indent=1))


if __name__ == "__main__":
    main()
