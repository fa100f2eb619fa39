"""Everybody's common ground: the requests that they make, what is to happen later, and the ledger of what was done from outside."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any

import httpx

from benchmarks.year.hub import Hub
from benchmarks.year.network import Network
from fhircm.fhir.systems import REFERRAL
from fhircm.store.stored import instant

Tree = dict[str, Any]
Doing = Callable[[], Awaitable[object]]
OPEN = "draft,requested,received,accepted,ready,in-progress,on-hold"


@dataclass
class Ledger:
    """What was done from outside, to hold against what the hub says at the end."""

    requests: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    orders: list[str] = field(default_factory=list)  # ids of the ServiceRequests of the clinics
    stays: list[str] = field(default_factory=list)  # ids of the Encounters of admissions
    payers_saw: Counter[str] = field(default_factory=Counter)


@dataclass
class World:
    """The hub, the network, and what is to come. Times are UTC."""

    hub: Hub
    network: Network
    ledger: Ledger = field(default_factory=Ledger)
    _later: list[tuple[datetime, int, Doing]] = field(default_factory=list)
    _number: count[int] = field(default_factory=count)

    @property
    def now(self) -> datetime:
        """The time of the year."""
        return self.hub.clock.now

    def at(self, when: datetime, doing: Doing) -> None:
        """Something will be done then."""
        heapq.heappush(self._later, (when, next(self._number), doing))

    async def until(self, hour: datetime) -> None:
        """What is to happen by then happens, each at its time."""
        while self._later and self._later[0][0] <= hour:
            when, _, doing = heapq.heappop(self._later)
            self.hub.clock.now = max(self.now, when)
            await doing()

    async def ask(
        self, client: httpx.AsyncClient, method: str, url: str, body: Tree | None = None, if_match: str = ""
    ) -> Tree | None:
        """A request; None when it is refused, which is counted with the reason."""
        headers = {"If-Match": f'W/"{if_match}"'} if if_match else {}
        self.hub.stirred |= method != "GET"
        answer = await client.request(method, url, json=body, headers=headers)
        what = url.partition("?")[0].strip("/").split("/")
        name = f"{method} {what[0]}{f'/{what[-1]}' if '$' in what[-1] else ''}"
        self.ledger.requests[name] += 1
        if answer.is_success:
            return answer.json() if answer.content else {}
        issue = (answer.json().get("issue") or [{}])[0] if "json" in answer.headers.get("content-type", "") else {}
        self.ledger.refused[f"{name}: {answer.status_code} {issue.get('diagnostics', '')[:160]}"] += 1
        return None

    async def call(self, client: httpx.AsyncClient, url: str, *said: Tree) -> Tree | None:
        """An operation."""
        return await self.ask(client, "POST", url, {"resourceType": "Parameters", **({"parameter": list(said)} if said else {})})

    async def update(self, client: httpx.AsyncClient, resource: Tree, **members: Any) -> Tree | None:
        """A plain update on top of the version that was read; None takes a member away."""
        body = {name: value for name, value in {**resource, **members}.items() if value is not None}
        if resource["resourceType"] == "Task":
            body["lastModified"] = instant(self.now)
        url = f"/{resource['resourceType']}/{resource['id']}"
        return await self.ask(client, "PUT", url, body, if_match=resource["meta"]["versionId"])

    async def found(self, client: httpx.AsyncClient, url: str) -> list[Tree]:
        """What a search finds, over all pages."""
        trees: list[Tree] = []
        to: str | None = url
        while to:
            page = await self.ask(client, "GET", to) or {}
            trees += [entry["resource"] for entry in page.get("entry", [])]
            to = next((link["url"] for link in page.get("link", []) if link["relation"] == "next"), None)
        return trees


def number_of(task: Tree) -> str:
    """The number of a referral."""
    return next((str(one["value"]) for one in task.get("identifier", []) if one.get("system") == REFERRAL), task["id"])


def said(name: str, **value: Any) -> Tree:
    """A parameter of an operation."""
    return {"name": name, **value}


def because(words: str) -> Tree:
    """The parameter `reason` of many operations."""
    return said("reason", valueCodeableConcept={"text": words})
