"""The sandbox's Subscription server: handshakes, heartbeats, events that are counted, and notifications that get lost on demand.

https://hl7.org/fhir/uv/subscriptions-backport/. What differs is in `subscriptions` of vendors/<name>.yaml (see RULES): the backport as it is
written, athenahealth's (signed, numbers within a notification, no $events) and plain R4 (criteria are searches, the body is empty).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fhircm.sandbox.chart import Tree, patient_of

RULES: Tree = {
    "style": "backport",  # backport, athena, plain
    "topics": [],  # canonicals; none: any
    "status": True,
    "events": True,
    "update": True,
    "types": ["Encounter", "Condition", "Patient"],  # that events are about
}
FHIR = "application/fhir+json"
Send = Callable[[str, str, dict[str, str], bytes], Awaitable[int]]  # method, URL, headers and body; returns the status


class Ehr(Protocol):
    """What of the EHR is looked at."""

    habits: Tree
    base_url: str
    chart: Any
    sign_in: Any


@dataclass
class _Subscription:
    tree: Tree
    secret: str = ""
    count: int = 0
    events: list[Tree] = field(default_factory=list)


class Subscriptions:
    """The Subscriptions of one EHR. `send` delivers; `lose` how many of the next notifications never arrive, though they are counted."""

    def __init__(self, ehr: Ehr, send: Send | None = None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.ehr, self.rules, self.clock = ehr, {**RULES, **ehr.habits.get("subscriptions", {})}, clock
        self.send = send or _over_http
        self.present: dict[str, _Subscription] = {}
        self.lose = 0
        self._telling: set[asyncio.Task[None]] = set()

    # --- the API -------------------------------------------------------------------------------------------------------------

    async def collection(self, request: Request) -> Response:
        """POST makes one, GET lists them."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        if request.method == "GET":
            entries = [{"resource": one.tree} for one in self.present.values()]
            return JSONResponse({"resourceType": "Bundle", "type": "searchset", "entry": entries}, media_type=FHIR)
        tree = json.loads(await request.body())
        if self.rules["topics"] and tree.get("criteria") not in self.rules["topics"]:
            return _outcome(400, "not-supported", "no such topic")
        stored = {**tree, "id": uuid4().hex, "status": "requested"}
        made = self.present[stored["id"]] = _Subscription(stored, request.headers.get("x-hub-secret", ""))
        await self._activate(made)
        headers = {"Location": f"{self.ehr.base_url}/Subscription/{stored['id']}/_history/1"}
        return JSONResponse(made.tree, 201, headers, media_type=FHIR)

    async def one(self, request: Request) -> Response:
        """GET, PUT and DELETE of one."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        found = self._found(request)
        if found is None:
            return _outcome(404, "not-found", "no such Subscription")
        if request.method == "DELETE":
            del self.present[found.tree["id"]]
            return Response(status_code=204)
        if request.method == "PUT":
            if not self.rules["update"]:
                return _outcome(405, "not-supported", "no update")
            found.tree = json.loads(await request.body())
            await self._activate(found)
        return JSONResponse(found.tree, media_type=FHIR)

    async def status(self, request: Request) -> Response:
        """GET [id]/$status."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        found = self._found(request)
        if found is None or not self.rules["status"]:
            return _outcome(404, "not-found", "no such Subscription")
        entry = {"resource": self._told(found, "query-status", [])}
        return JSONResponse({"resourceType": "Bundle", "type": "searchset", "entry": [entry]}, media_type=FHIR)

    async def events(self, request: Request) -> Response:
        """GET [id]/$events."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        found = self._found(request)
        if found is None or not self.rules["events"]:
            return _outcome(404, "not-supported", "no such operation")
        first, last = (
            int(request.query_params.get(name, default))
            for name, default in (("eventsSinceNumber", 1), ("eventsUntilNumber", 10**9))
        )
        wanted = [one for one in found.events if first <= one["number"] <= last]
        return JSONResponse(self._bundle(found, "query-event", wanted), media_type=FHIR)

    def _found(self, request: Request) -> _Subscription | None:
        found = self.present.get(request.path_params["id"])
        if found is not None and datetime.fromisoformat(found.tree.get("end", "9999-01-01T00:00:00+00:00")) <= self.clock():
            del self.present[found.tree["id"]]
            return None
        return found

    def _unauthorized(self, request: Request) -> Response | None:
        letter = {"GET": "r", "POST": "c", "PUT": "u", "DELETE": "d"}[request.method]
        allowed = self.ehr.sign_in.allowed(request.headers.get("authorization", ""), letter, "Subscription")
        return None if allowed else Response(status_code=401 if allowed is None else 403)

    # --- notifying -----------------------------------------------------------------------------------------------------------

    async def _activate(self, one: _Subscription) -> None:
        ok = self.rules["style"] == "plain" or await self._deliver(one, self._bundle(one, "handshake", []))
        one.tree["status"] = "active" if ok else "error"

    async def changed(self, tree: Tree) -> None:
        """A resource changed: every Subscription that is about it is told."""
        about = tree["id"] if tree["resourceType"] == "Patient" else patient_of(tree)
        for one in list(self.present.values()):
            filters = [each.get("valueString", "") for each in one.tree.get("_criteria", {}).get("extension", [])]
            named = " ".join([one.tree["criteria"], *filters])
            of_patient = "atient/" in named or "patient=" in named
            if tree["resourceType"] not in self.rules["types"] or (
                of_patient and f"atient/{about}" not in named and f"={about}" not in named
            ):
                continue
            one.count += 1
            event = {"number": one.count, "id": uuid4().hex, "focus": f"{tree['resourceType']}/{tree['id']}", "patient": about}
            one.events.append(event)
            if one.tree["status"] == "active":
                await self._deliver(one, self._bundle(one, "event-notification", [event]))

    def soon(self, tree: Tree) -> None:
        """Tell of a change, but not while whoever made it waits."""
        task = asyncio.get_running_loop().create_task(self.changed(tree))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def heartbeat(self) -> None:
        """Tell every subscriber that all is well."""
        for one in self.present.values():
            await self._deliver(one, self._bundle(one, "heartbeat", []))

    async def _deliver(self, one: _Subscription, bundle: Tree) -> bool:
        channel = one.tree["channel"]
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in channel.get("header", []))}
        body = json.dumps(bundle).encode() if self.rules["style"] != "plain" else b""
        if one.secret:
            headers["X-Hub-Signature"] = "sha256=" + hmac.new(one.secret.encode(), body, hashlib.sha256).hexdigest()
        if self.lose > 0:
            self.lose -= 1
            return True
        return await self.send("POST", channel["endpoint"], {**headers, "Content-Type": FHIR}, body) < 300

    def _bundle(self, one: _Subscription, type: str, events: list[Tree]) -> Tree:
        payload = next((each["valueCode"] for each in one.tree["channel"].get("_payload", {}).get("extension", [])), "empty")
        entries: list[Tree] = [
            {"fullUrl": f"urn:uuid:{uuid4()}", "resource": self._told(one, type, events if payload != "empty" else [])}
        ]
        for event in events if payload == "full-resource" else ():
            resource = self.ehr.chart.get(*event["focus"].split("/"))
            entries.append({"fullUrl": f"{self.ehr.base_url}/{event['focus']}", "resource": resource})
        return {
            "resourceType": "Bundle",
            "id": uuid4().hex,
            "type": "history",
            "timestamp": self.clock().isoformat(),
            "entry": entries,
        }

    def _told(self, one: _Subscription, type: str, events: list[Tree]) -> Tree:
        id, status = one.tree["id"], one.tree["status"]
        if self.rules["style"] == "athena":
            told = [
                {"eventNumber": str(place), "id": event["id"], "focus": {"reference": event["focus"]}}
                for place, event in enumerate(events, 1)
            ]
            return {
                "resourceType": "SubscriptionStatus",
                "status": status,
                "type": type,
                "eventsSinceSubscriptionStart": str(len(events)),
                "subscription": {"reference": f"Subscription/{id}"},
                "notificationEvent": told,
            }
        parameters: list[Tree] = [
            {"name": "subscription", "valueReference": {"reference": f"{self.ehr.base_url}/Subscription/{id}"}},
            {"name": "topic", "valueCanonical": one.tree["criteria"]},
            {"name": "status", "valueCode": status},
            {"name": "type", "valueCode": type},
            {"name": "events-since-subscription-start", "valueString": str(one.count)},
        ]
        for event in events:
            parts = [
                {"name": "event-number", "valueString": str(event["number"])},
                {"name": "timestamp", "valueInstant": self.clock().isoformat()},
                {"name": "focus", "valueReference": {"reference": event["focus"]}},
            ]
            parameters.append({"name": "notification-event", "part": parts})
        return {"resourceType": "Parameters", "parameter": parameters}


async def _over_http(method: str, url: str, headers: dict[str, str], body: bytes) -> int:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        try:
            return (await http.request(method, url, headers=headers, content=body)).status_code
        except httpx.HTTPError:
            return 599


def routes(subscriptions: Subscriptions, base_path: str) -> list[Route]:
    """Where it is served; before the route of everything else below the base path."""
    return [
        Route(f"{base_path}/Subscription", subscriptions.collection, methods=["GET", "POST"]),
        Route(f"{base_path}/Subscription/{{id}}", subscriptions.one, methods=["GET", "PUT", "DELETE"]),
        Route(f"{base_path}/Subscription/{{id}}/$status", subscriptions.status),
        Route(f"{base_path}/Subscription/{{id}}/$events", subscriptions.events),
    ]


def _outcome(status: int, code: str, text: str) -> Response:
    issue = {"severity": "error", "code": code, "details": {"text": text}}
    return JSONResponse({"resourceType": "OperationOutcome", "issue": [issue]}, status, media_type=FHIR)
