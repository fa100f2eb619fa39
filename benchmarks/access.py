"""What authorization costs: `python -m benchmarks.access > access.json`.

One process answers the same requests, over ASGI, in turns: to a caller whom nobody looks up and who sees everything (the ceiling), to a
token that sees everything, to one that sees by care relationship, and to one with consents and labels in the way besides. The processor time of a
request, best of some rounds, the database server's left out; and the time that passes, its share in it. Prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from benchmarks import hub as hubs
from benchmarks.audit import BASE, Caller
from benchmarks.run import machine
from benchmarks.workloads import WORKLOADS, Known
from fhircm.access.bearer import Bearer
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.fhir.validation import check_tree
from fhircm.rest.exchange import RestSettings
from fhircm.rest.links import PageLinks
from fhircm.rest.router import Router
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.principals import Principals
from fhircm.store.resources import Put, Store

NAMES = ("read", "patient's active plans", "work list", "newest 20")
ASKED = 100  # requests of a round
CLINIC = "Organization/clinic"


class Unasked:
    """A bearer that looks nobody up."""

    async def principal(self, header: str | None) -> Principal:
        """Somebody who may do everything."""
        return _ANYBODY


_ANYBODY = Principal("anybody", parse_scopes("system/*.cruds"), frozenset({"custodian"}))


async def _treated(store: Store, known: Known) -> None:
    """The clinic cares for every patient, and half of them have a consent that denies something to somebody else."""
    for id in ("clinic", "elsewhere"):
        await store.transact([Put(check_tree({"resourceType": "Organization", "id": id, "name": id}))], origin="load")
    for number, id in enumerate(known.ids["Patient"]):
        subject = {"reference": f"Patient/{id}"}
        team = {"resourceType": "CareTeam", "id": f"clinic-{id}", "status": "active", "subject": subject}
        writes = [Put(check_tree(team | {"participant": [{"member": {"reference": CLINIC}}]}))]
        if number % 2:
            consent = {
                "resourceType": "Consent",
                "id": f"no-{id}",
                "status": "active",
                "scope": {"coding": [{"code": "patient-privacy"}]},
                "category": [{"coding": [{"code": "59284-0", "system": "http://loinc.org"}]}],
                "patient": subject,
                "policyRule": {"coding": [{"code": "OPTIN"}]},
                "provision": {
                    "type": "deny",
                    "actor": [{"role": {"coding": [{"code": "IRCP"}]}, "reference": {"reference": "Organization/elsewhere"}}],
                },
            }
            writes.append(Put(check_tree(consent)))
        await store.transact(writes, origin="load")


async def run(url: str, rounds: int, patients: int) -> dict[str, Any]:
    """All of it on one database."""
    await migrate(url)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    credentials = Credentials(store.database)
    bearer = Bearer(credentials, Principals(store.database))
    router = Router(store, bearer, await PageLinks.of(store), BASE, RestSettings(10**7, 10**8, True, 1))
    caller = Caller(await asyncio.to_thread(hubs.token, url))
    known = await caller.load(router, patients)
    await _treated(store, known)
    await credentials.add_client("clinic", {"scope": "system/*.cruds", "organization": CLINIC, "roles": ["system"]})
    clinic = Caller(await bearer.issue("clinic", "system/*.cruds", lifetime=86_400))
    ways = {
        "nobody asked": (replace(router, bearer=Unasked()), caller),
        "sees everything": (router, caller),
        "by care relationship": (router, clinic),
    }
    found = {}
    for name in NAMES:
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        passed: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, (door, who) in sorted(ways.items(), reverse=bool(number % 2)):
                asked = [WORKLOADS[name](known) for _ in range(ASKED)]
                begun, clock = process_time(), perf_counter()
                for method, path, _, body in asked:
                    await who.ask(door, method, path, body)
                cpu[way].append((process_time() - begun) / ASKED * 1e6)
                passed[way].append((perf_counter() - clock) / ASKED * 1e6)
        ceiling = min(cpu["nobody asked"]), min(passed["nobody asked"])
        found[name] = {
            way: {
                "cpu_us": round(min(cpu[way]), 1),
                "elapsed_us": round(min(passed[way]), 1),
                "cpu : ceiling": round(min(cpu[way]) / ceiling[0], 3),
                "elapsed : ceiling": round(min(passed[way]) / ceiling[1], 3),
            }
            for way in ways
        }
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr)
    await store.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.access", description=__doc__)
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--patients", type=int, default=60)
    options = parser.parse_args()
    databases = {}
    for kind in options.database or ["sqlite", "postgresql"]:
        with tempfile.TemporaryDirectory() as name, hubs.database(kind, Path(name)) as url:
            databases[kind] = asyncio.run(run(url, options.rounds, options.patients))
    print(json.dumps({"machine": machine(), "databases": databases}, indent=1))


if __name__ == "__main__":
    main()
