"""Drive load at any FHIR R4 server: `python -m benchmarks.load --base-url http://127.0.0.1:8080/fhir --token … --patients 1000`.

Loads seeded records through the API, warms up, runs each workload at each number of clients for some seconds, and prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

from benchmarks.http import Connection
from benchmarks.population import Records
from benchmarks.workloads import JSON, WORKLOADS, Known, Request

Authorization = Callable[[], str]  # the header line, good for now
ALLOWED = frozenset({200, 201, 204})


async def load(
    base_url: str, authorization: Authorization, patients: int, clients: int = 8, known: Known | None = None
) -> tuple[Known, dict[str, Any]]:
    """Load so many patients (besides those that are `known`), with one nurse or doctor for every 25; returns what is there, and how fast it went."""
    known = known or Known({}, [], 0)
    records, connection = Records(7 + known.patients), Connection(base_url)
    made = await _sent(connection, authorization, records.staff(max(20, patients // 25), known.patients))
    staff = ["/".join(entry["response"]["location"].split("/")[-4:-2]) for entry in made]
    bundles, count, begun = records.patients(patients, staff, known.patients), 0, perf_counter()

    async def some() -> None:
        nonlocal count
        connection = Connection(base_url)
        for body in bundles:
            for entry in await _sent(connection, authorization, body):
                *_, type, id, _, _ = entry["response"]["location"].split("/")
                known.ids.setdefault(type, []).append(id)
                count += 1
        connection.close()

    await asyncio.gather(*(some() for _ in range(clients)))
    seconds = perf_counter() - begun
    known.staff = [*(known.staff or staff[:1]), *staff[1:]]
    known.patients += patients
    return known, {"resources": count, "seconds": round(seconds, 2), "rate": round(count / seconds)}


async def _sent(connection: Connection, authorization: Authorization, body: bytes) -> list[dict[str, Any]]:
    status, answer = await connection.ask("POST", "", authorization() + JSON, body)
    if status != 200:
        sys.exit(f"The server answered {status} to a transaction: {answer[:300].decode(errors='replace')}")
    return json.loads(answer)["entry"]


async def measure(
    base_url: str,
    authorization: Authorization,
    known: Known,
    name: str,
    clients: int,
    seconds: float,
    make: Callable[[Known], Request] | None = None,
) -> dict[str, Any]:
    """One workload at one number of clients; `make` makes its requests, when they are not those of its name."""
    make, times, statuses, size = make or WORKLOADS[name], list[float](), Counter[int](), 0
    end = perf_counter() + seconds

    async def client() -> None:
        nonlocal size
        connection = Connection(base_url)
        while (begun := perf_counter()) < end:
            method, path, headers, body = make(known)
            status, answer = await connection.ask(method, path, authorization() + headers, body)
            times.append(perf_counter() - begun)
            statuses[status] += 1
            size += len(answer)
        connection.close()

    begun = perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    times.sort()
    return {
        "workload": name,
        "clients": clients,
        "requests": len(times),
        "rate": round(len(times) / (perf_counter() - begun), 1),
        "p50_ms": round(times[len(times) // 2] * 1000, 2),
        "p99_ms": round(times[int(len(times) * 0.99)] * 1000, 2),
        "bytes": size,
        "errors": {str(status): n for status, n in statuses.items() if status not in ALLOWED},
    }


async def drive(
    base_url: str, authorization: Authorization, patients: int, names: list[str], clients: list[int], seconds: float
) -> dict[str, Any]:
    """Everything: load, warm up, measure."""
    known, loaded = await load(base_url, authorization, patients)
    print(f"loaded {loaded['resources']} resources, {loaded['rate']}/s", file=sys.stderr)
    results = []
    for name in names:
        await measure(base_url, authorization, known, name, 4, min(1.0, seconds))
        for count in clients:
            results.append(await measure(base_url, authorization, known, name, count, seconds))
            print(f"{name}, {count} clients: {results[-1]['rate']}/s {results[-1]['errors'] or ''}", file=sys.stderr)
    return {"base_url": base_url, "patients": patients, "load": loaded, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--token", default="")
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--workload", action="append", choices=[*WORKLOADS], help="may be given again; all without it")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    line = f"Authorization: Bearer {options.token}\r\n" if options.token else ""
    clients = [int(one) for one in options.clients.split(",")]
    names = options.workload or [*WORKLOADS]
    print(
        json.dumps(
            asyncio.run(drive(options.base_url, lambda: line, options.patients, names, clients, options.seconds)), indent=1
        )
    )


if __name__ == "__main__":
    main()
