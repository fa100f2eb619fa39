"""Exchange with a FHIR server that nobody here wrote: pull by search, by bulk export, and by its Subscriptions. Prints what came of each.

    python -m benchmarks.against_hapi http://127.0.0.1:8090/fhir

Any R4 server without sign-in will do that lets clients choose ids. It is loaded with a small panel first. docs/how-to/pull-in-bulk.md,
https://hapifhir.io/hapi-fhir/docs/server_jpa/introduction.html
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from fhircm.access.sealing import Seal
from fhircm.exchange import bulk_due, bulk_export, subscriptions
from fhircm.exchange.bulk_shape import Bulk
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner, PullType
from fhircm.exchange.pull import pull
from fhircm.exchange.subscription_shape import Subscriptions, Topic
from fhircm.rest.notify import Notifier, add_routes
from fhircm.sandbox.population import population
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Store

BY_PATIENT = ("Encounter", "Condition", "CarePlan", "CareTeam", "Goal", "ServiceRequest", "Task", "DocumentReference", "Coverage")
BY_REFERENCE = ("Organization", "Practitioner", "PractitionerRole", "Location")
# HAPI FHIR refuses an export of types that no search parameter ties to patients: Task, PractitionerRole, Location.
BULK = Bulk(
    types=(*(one for one in BY_PATIENT if one != "Task"), "Organization", "Practitioner"),
    poll_least=1.0,
    poll_most=5.0,
    every=None,
)
PLAIN = Subscriptions((Topic("Encounter?", (), "none", ("Encounter",)),), status=False, events=False, heartbeat=None)
PORT = 8189


def partner(base_url: str) -> Partner:
    """The server as a partner."""
    pulled = [PullType(type, ((("patient", "{patient}"),),), False, True) for type in BY_PATIENT]
    pulled += [PullType(type, (), True, False) for type in BY_REFERENCE]
    own = Organization("lakeside", "Lakeside Hospital", "1234567893")
    limits = Limits(requests_per_second=1000.0)
    calendar = Calendar("US", None, (), (5, 6))
    return Partner(
        "hapi",
        Path("hapi"),
        "hapi",
        base_url,
        "fhircm",
        "ES384",
        (),
        own,
        "UTC",
        calendar,
        "panel",
        tuple(pulled),
        limits,
        bulk=BULK,
    )


async def load(http: httpx.AsyncClient, base_url: str, humans: int) -> int:
    """Give the server a panel: each resource under its own id. Returns how many."""
    trees = population(7, humans, date.today()).hospital
    for start in range(0, len(trees), 200):
        entries = [
            {"resource": one, "request": {"method": "PUT", "url": f"{one['resourceType']}/{one['id']}"}}
            for one in trees[start : start + 200]
        ]
        answer = await http.post(base_url, json={"resourceType": "Bundle", "type": "batch", "entry": entries})
        answer.raise_for_status()
        bad = [one["response"]["status"] for one in answer.json()["entry"] if not one["response"]["status"].startswith("20")]
        if bad:
            print(f"  not taken by the server: {len(bad)} ({bad[0]})")
    return len(trees)


async def export(store: Store, client: PartnerClient, spool: Path) -> dict[str, Any]:
    """One export, from beginning to end."""
    await store.transact([bulk_due.request(store, client.partner.name)], origin="hub")
    while True:
        step = await bulk_export.advance(store, client, BULK, spool)
        if step.finished is not None:
            return step.finished
        if step.due is not None and step.due > store.clock():
            await asyncio.sleep((step.due - store.clock()).total_seconds())


async def notified(store: Store, client: PartnerClient, http: httpx.AsyncClient, folder: Path) -> None:
    """Subscribe, change something there, and see the hint here."""
    app = FastAPI()
    app.state.store = store
    add_routes(app, {"hapi": Notifier(client.partner.base_url, PLAIN)}, folder)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=PORT, log_level="error"))
    serving = asyncio.create_task(server.serve())
    try:
        url, seal = f"http://127.0.0.1:{PORT}/notify/hapi", Seal.open(folder)
        patients = [one["entity"]["reference"].split("/")[1] for one in (await client.read("Group", "panel")).tree["member"]]
        await subscriptions.keep(store, client, PLAIN, url, seal, patients)
        for row in (await subscriptions.kept(store, "hapi")).values():
            print(f"  Subscription {row.id}: {row.state} {row.why}")
        for key in await store.states("hint:hapi"):
            await store.transact([subscriptions.SetState("hint:hapi", key, None)], origin="hub")
        await asyncio.sleep(3)  # it activates a Subscription a moment later
        changed = (await http.get(f"{client.partner.base_url}/Encounter?_count=1")).json()["entry"][0]["resource"]
        begun = monotonic()
        changed["status"] = "finished" if changed["status"] != "finished" else "in-progress"
        (await http.put(f"{client.partner.base_url}/Encounter/{changed['id']}", json=changed)).raise_for_status()
        while monotonic() - begun < 20 and not await store.states("notified-of:hapi"):
            await asyncio.sleep(0.02)
        told = await store.states("notified-of:hapi")
        print(f"  a change was told after {monotonic() - begun:.2f} s" if told else "  a change was not told within 20 s")
        await subscriptions.keep(store, client, PLAIN, url, seal, patients)
        print(f"  hints: {len(await store.states('hint:hapi'))}")
    finally:
        server.should_exit = True
        await serving


async def main(base_url: str) -> None:
    """Everything, one after another."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await migrate(f"sqlite:///{folder / 'hub.db'}")
        store = Store(await open_database(f"sqlite:///{folder / 'hub.db'}"), clock=lambda: datetime.now(UTC))
        async with httpx.AsyncClient(timeout=120, trust_env=False) as http, PartnerClient(partner(base_url)) as client:
            software = (await http.get(f"{base_url}/metadata")).json().get("software", {})
            print(f"{software.get('name')} {software.get('version')} at {base_url}")
            print(f"  loaded: {await load(http, base_url, 20)} resources")
            print("bulk export, the first")
            print(f"  {bulk_export.told(figures := await export(store, client, folder / 'spool'))}")
            print(
                "".join(
                    f"  {text}\n" for text in (*figures["told"], *map(str, figures["failed"].items()), *figures["refusals"][:5])
                ),
                end="",
            )
            print("pull by search, afterwards")
            print(f"  {(report := await pull(store, client)).summary()}")
            print("".join(f"  {text}\n" for text in (*report.failed[:3], *map(str, report.refused[:3]))), end="")
            print("bulk export, of what changed since")
            print(f"  since {(figures := await export(store, client, folder / 'spool'))['since']}: {bulk_export.told(figures)}")
            print("Subscription")
            await notified(store, client, http, folder)
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/")))
