"""The steps of the story, each through the door that a real party would use.

The hospital's and the clinic's staff act at their own EHR (the sandbox's staff door), the clinic's app and the reader of the record
are SMART backend clients of the hub, and an operator uses the command line.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import httpx

from fhircm.demo.processes import Processes, free_port
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.trust import trust

HOSPITAL = "lakeside-hospital"
CLINIC = "riverbend-clinic"
Seen = TypeVar("Seen")
SCOPES = {
    "reader": "system/*.rs",
    "clinic-app": "system/Task.rus system/Patient.rs system/ServiceRequest.rs system/Organization.rs",
}


class DidNotHappen(Exception):
    """Something that the story waits for did not come about in time."""


@dataclass
class Story:
    """One telling: two sandbox EHRs, a hub and its worker, over a folder that is its own."""

    folder: Path
    database_url: str
    humans: int = 140
    seed: int = 7
    data: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hub = f"http://127.0.0.1:{free_port()}"
        ports = {HOSPITAL: free_port(), CLINIC: free_port()}
        self.doors = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        self.bases = {
            HOSPITAL: f"{self.doors[HOSPITAL]}/api/FHIR/R4",
            CLINIC: f"{self.doors[CLINIC]}/r4/riverbend-tenant",
        }
        self.environment = {
            "FHIRCM_DATABASE_URL": self.database_url,
            "FHIRCM_PUBLIC_BASE_URL": self.hub,
            "FHIRCM_PORT": self.hub.rpartition(":")[2],
            "FHIRCM_KEYS_DIR": str(self.folder / "keys"),
            "FHIRCM_AUDIT_DIR": str(self.folder / "audit"),
            "FHIRCM_PARTNER_BASE_URLS": json.dumps(self.bases),
            "FHIRCM_PARTNERS": json.dumps([HOSPITAL, CLINIC]),
            "FHIRCM_ALLOW_PRIVATE_JWKS": "true",
            "FHIRCM_ORGANIZATION_NAME": "Lakeside care coordination",
            **self.environment,
        }
        self.processes = Processes(self.folder / "logs", self.environment)
        self.offset = timedelta()
        self.registered: set[str] = set()
        self._tokens: dict[str, tuple[str, float]] = {}

    # --- processes -----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the hub and both EHRs, and register the reader of the record, who sees everything."""
        await self.start_hub()
        for name, vendor in ((HOSPITAL, "epic"), (CLINIC, "oracle")):
            self.start_sandbox(name, vendor)
        for name in self.bases:
            await self.processes.answering(name, f"{self.bases[name]}/.well-known/smart-configuration", 120)
        await self.register("reader", "--role", "custodian")

    async def start_hub(self) -> None:
        """Start the process that serves."""
        self.processes.start("hub", "fhircm.cli", "serve", environment=self.clock())
        await self.processes.answering("hub", f"{self.hub}/health/ready")

    def start_sandbox(self, name: str, vendor: str) -> None:
        """Start an EHR; it fetches the hub's keys from where the hub publishes them."""
        arguments = ["--vendor", vendor, "--port", self.doors[name].rpartition(":")[2], "--client-id", "fhircm"]
        arguments += ["--jwks-url", f"{self.hub}/.well-known/jwks.json", "--state", str(self.folder / name)]
        arguments += ["--data", str(self.data)] if self.data else ["--humans", str(self.humans), "--seed", str(self.seed)]
        self.processes.start(name, "fhircm.sandbox", *arguments)

    def start_worker(self) -> None:
        """Start the background process."""
        self.processes.start("worker", "fhircm.cli", "work", environment=self.clock())

    def clock(self) -> dict[str, str]:
        """How far the clock of this telling is ahead."""
        return {"FHIRCM_CLOCK_OFFSET": f"PT{int(self.offset.total_seconds())}S"}

    async def move_clock(self, by: timedelta) -> None:
        """Restart hub and worker on a clock that is ahead by so much."""
        self.offset += by
        self._tokens.clear()  # they are of the time before
        self.processes.stop("worker")
        self.processes.stop("hub")
        await self.start_hub()
        self.start_worker()

    def close(self) -> None:
        """End every process of this telling."""
        self.processes.stop_all()

    async def command(self, *arguments: str, quiet: bool = False) -> int:
        """Run `fhircm ARGUMENTS` as an operator would; returns its exit status."""
        whole = {**os.environ, **self.environment, **self.clock()}
        sink = subprocess.DEVNULL if quiet else None
        process = self.processes.launch("fhircm.cli", *arguments, environment=whole, output=sink)
        return await asyncio.to_thread(process.wait)

    # --- the parties ---------------------------------------------------------------------------------------------------------

    async def register(self, client: str, *options: str) -> None:
        """Make a key for a client and register it at the hub with its scopes; `options` say what else `fhircm client add` is told."""
        from fhircm.exchange.client_keys import public_jwks, signing_key

        keys = self.folder / "clients" / client
        signing_key(keys, client, "ES384")
        jwks = keys / "jwks.public.json"
        jwks.write_bytes(json.dumps(public_jwks(keys)).encode())
        scopes = [part for scope in SCOPES[client].split() for part in ("--scope", scope)]
        status = await self.command("client", "add", client, *scopes, "--jwks-file", str(jwks), *options, quiet=True)
        if status:
            raise DidNotHappen(f"client {client} could not be registered")
        self.registered.add(client)

    async def token(self, client: str) -> str:
        """An access token of a client, by a signed assertion; the same one while it is good for another minute."""
        from fhircm import wiring

        token, until = self._tokens.get(client, ("", 0.0))
        if until < monotonic():
            key = self.folder / "clients" / client / f"{client}.json"
            token = await wiring.client_token(self.hub, client, key, SCOPES[client])
            self._tokens[client] = token, monotonic() + 240
        return token

    async def read(self, path: str, client: str = "reader") -> dict[str, Any]:
        """GET from the hub's FHIR API."""
        async with httpx.AsyncClient(timeout=30, verify=trust()) as http:
            answer = await http.get(f"{self.hub}/fhir/{path}", headers={"Authorization": f"Bearer {await self.token(client)}"})
        answer.raise_for_status()
        return answer.json()

    async def find(self, path: str, client: str = "reader") -> list[dict[str, Any]]:
        """All resources that a search at the hub finds."""
        found: list[dict[str, Any]] = []
        while path:
            bundle = await self.read(path, client)
            found += [entry["resource"] for entry in bundle.get("entry", []) if entry.get("search", {}).get("mode") != "outcome"]
            following = next((link["url"] for link in bundle.get("link", []) if link["relation"] == "next"), "")
            path = following.removeprefix(f"{self.hub}/fhir/")
        return found

    async def staff(self, party: str, act: str, **details: Any) -> dict[str, Any]:
        """Do something at an EHR's own screens."""
        async with httpx.AsyncClient(timeout=30, verify=trust()) as http:
            answer = await http.post(f"{self.doors[party]}/staff/{act}", json=details)
        answer.raise_for_status()
        return answer.json()

    async def received(self, at: str) -> list[dict[str, Any]]:
        """What an EHR was sent."""
        async with httpx.AsyncClient(timeout=30, verify=trust()) as http:
            return (await http.get(f"{self.doors[at]}/staff/received")).json()

    async def until(self, what: str, look: Callable[[], Awaitable[Seen]], seconds: float = 60) -> Seen:
        """Look again and again until there is something to see. Raises DidNotHappen."""
        end = monotonic() + seconds
        while not (seen := await look()):
            if monotonic() > end:
                raise DidNotHappen(f"{what} did not happen within {seconds:.0f} s; logs: {self.folder / 'logs'}")
            await asyncio.sleep(0.2)
        return seen

    def at_hub(self, partner: str, reference: str) -> str:
        """The reference at the hub of a partner's resource."""
        return f"{reference.partition('/')[0]}/{hub_id(self.bases[partner], reference)}"
