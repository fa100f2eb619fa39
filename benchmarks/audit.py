"""What the audit costs: `python -m benchmarks.audit > audit.json`.

One process asks the FHIR API, over ASGI, with a journal and without one in turns: the processor time of a request, best of some rounds,
so that what else the machine does is left out. Then what it costs to make AuditEvents of the journal, for each. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks import hub as hubs
from benchmarks.population import Records
from benchmarks.run import machine
from benchmarks.workloads import WORKLOADS, Known
from fhircm.access.audit import RULE
from fhircm.access.audit_drain import Drain
from fhircm.access.audit_journal import Journal
from fhircm.access.bearer import Bearer
from fhircm.rest.exchange import RestSettings
from fhircm.rest.links import PageLinks
from fhircm.rest.router import Router
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.principals import Principals
from fhircm.store.resources import Store

BASE = "http://127.0.0.1/fhir"
NAMES = ("read", "patient's active plans", "create")
ASKED = 100  # requests of a round


class Caller:
    """Asks a router as a server would, with a token that may do everything."""

    def __init__(self, token: str) -> None:
        self.headers = [(b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/fhir+json")]

    async def ask(self, router: Router, method: str, path: str, body: bytes) -> bytes:
        """The body of the answer."""
        parts: list[bytes] = []
        path, _, query = path.partition("?")

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            parts.append(message.get("body", b""))

        scope = {
            "type": "http",
            "method": method,
            "path": "/fhir" + path,
            "root_path": "/fhir",
            "query_string": query.encode(),
            "headers": self.headers,
            "client": ("127.0.0.1", 4711),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
        }
        await router(scope, receive, send)
        return b"".join(parts)

    async def load(self, router: Router, patients: int) -> Known:
        """Some patients, through the API."""
        records, known = Records(), Known({}, [], patients)
        known.staff = [reference for reference, _ in self._made(await self.ask(router, "POST", "", records.staff(20)))]
        for body in records.patients(patients, known.staff):
            for reference, type in self._made(await self.ask(router, "POST", "", body)):
                known.ids.setdefault(type, []).append(reference.partition("/")[2])
        return known

    @staticmethod
    def _made(answer: bytes) -> list[tuple[str, str]]:
        places = [entry["response"]["location"].split("/")[-4:-2] for entry in json.loads(answer)["entry"]]
        return [(f"{type}/{id}", type) for type, id in places]


async def run(url: str, folder: Path, rounds: int) -> dict[str, Any]:
    """All of it on one database."""
    await migrate(url)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC), rules=[RULE])
    settings = RestSettings(10**7, 10**8, True, 1)
    bearer = Bearer(Credentials(store.database), Principals(store.database))
    off = Router(store, bearer, await PageLinks.of(store), BASE, settings)
    on = replace(off, journal=Journal(folder / "audit", 10**10))
    caller = Caller(await asyncio.to_thread(hubs.token, url))
    known = await caller.load(off, 60)
    requests = {}
    for name in NAMES:
        best: dict[str, list[float]] = {"on": [], "off": []}
        for number in range(rounds):
            for audit, router in sorted({"on": on, "off": off}.items(), reverse=bool(number % 2)):
                asked = [WORKLOADS[name](known) for _ in range(ASKED)]
                begun = process_time()
                for method, path, _, body in asked:
                    await caller.ask(router, method, path, body)
                best[audit].append((process_time() - begun) / ASKED * 1e6)
        with_it, without = min(best["on"]), min(best["off"])
        requests[name] = {"on_us": round(with_it, 1), "off_us": round(without, 1), "on : off": round(with_it / without, 3)}
        print(f"{name}: {requests[name]}", file=sys.stderr)
    drained = await _drained(store, on, caller, known, rounds)
    await store.close()
    return {"requests": requests, "drain": drained}


async def _drained(store: Store, router: Router, caller: Caller, known: Known, rounds: int) -> dict[str, Any]:
    """The events of reads, a round at a time."""
    assert router.journal is not None
    drain, costs, waited, bytes_each = Drain(store, router.journal.folder, BASE), list[float](), list[float](), 0
    router.journal.close_segment()
    await drain.drain()
    make: Callable[[Known], Any] = WORKLOADS["read"]
    for _ in range(max(rounds // 4, 3)):
        for _ in range(10 * ASKED):
            method, path, _, body = make(known)
            await caller.ask(router, method, path, body)
        bytes_each = router.journal.size // (10 * ASKED)
        router.journal.close_segment()
        begun, clock = process_time(), perf_counter()
        events = await drain.drain()
        costs.append((process_time() - begun) / events * 1e6)
        waited.append((perf_counter() - clock) / events * 1e6)
    return {"cpu_us": round(min(costs)), "elapsed_us": round(min(waited)), "journal_bytes": bytes_each}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    databases = {}
    for kind in options.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as name, hubs.database(kind, Path(name)) as url:
            databases[kind] = asyncio.run(run(url, Path(name), options.rounds))
    print(json.dumps({"machine": machine(), "databases": databases}, indent=1))


if __name__ == "__main__":
    main()
