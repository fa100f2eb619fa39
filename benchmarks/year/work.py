"""What the people of the network do: hospitals, clinics and post-acute facilities each work their list twice a business day, as well as they can.

Everybody speaks FHIR over HTTP to the hub. Nobody knows what the hub will do next: they see Tasks and answer them.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx

from benchmarks.year.hub import Hub, coordinator_of
from benchmarks.year.network import Happening, Network, Place
from fhircm.fhir.systems import COORDINATION, REFERRAL
from fhircm.store.stored import instant

Tree = dict[str, Any]
OPEN = "requested,received,accepted,ready,in-progress,on-hold"
_ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_DISPOSITION = "http://www.nubc.org/patient-discharge"
_DECLINES = ("No capacity", "Out of the area", "Not the right service", "Insurance not accepted")


@dataclass
class Ledger:
    """What was done from outside, to hold against what the hub says at the end."""

    requests: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    stays: int = 0
    discharges: int = 0
    visits: int = 0
    referrals: dict[str, Happening] = field(default_factory=dict)  # by ServiceRequest


@dataclass
class _Plan:
    """What somebody means to do about a Task, and when."""

    at: datetime
    steps: deque[str]


@dataclass
class World:
    """Everybody at work."""

    hub: Hub
    network: Network
    random: Random
    ledger: Ledger = field(default_factory=Ledger)
    plans: dict[tuple[str, str], _Plan] = field(default_factory=dict)  # by place and Task
    later: list[tuple[datetime, int, Happening, str]] = field(
        default_factory=list
    )  # ends of stays and visits, with the Encounter

    def __post_init__(self) -> None:
        self.places = [*self.network.of("hospital", "clinic", "specialist", "post-acute"), coordinator_of(self.hub)]

    # --- what befalls patients -------------------------------------------------------------------------------------------------

    async def befall(self, one: Happening) -> None:
        """It happens, and the one who sees it first writes it down."""
        if one.kind == "referral":
            await self._refer(one)
        else:
            await self._arrive(one)

    async def _arrive(self, one: Happening) -> None:
        stay = one.kind == "stay"
        self.ledger.stays += stay
        self.ledger.visits += not stay
        number = len(self.later) + self.ledger.stays + self.ledger.visits
        id = f"encounter-{self.ledger.stays + self.ledger.visits}"
        await self._ask(self.hub.feed, "PUT", f"/Encounter/{id}", _encounter(one, id))
        self.later.append((one.at + timedelta(days=one.days), number, one, id))
        self.later.sort(key=lambda entry: entry[:2])

    async def leave(self, until: datetime) -> None:
        """Stays and visits end that end by then."""
        while self.later and self.later[0][0] <= until:
            at, _, one, id = self.later.pop(0)
            await self._ask(self.hub.feed, "PUT", f"/Encounter/{id}", _encounter(one, id, at))
            if one.kind == "stay":
                self.ledger.discharges += 1
                if one.ends == "20":
                    died = {"deceasedDateTime": instant(at)}
                    patient = (await self._ask(self.hub.feed, "GET", f"/{one.person.reference}")) or {}
                    await self._ask(self.hub.feed, "PUT", f"/{one.person.reference}", {**patient, **died})

    async def _refer(self, one: Happening) -> None:
        order = {
            "resourceType": "ServiceRequest",
            "status": "active",
            "intent": "order",
            "priority": "urgent" if self.random.random() < 0.15 else "routine",
            "category": [{"coding": [{"system": "http://snomed.info/sct", "code": "3457005"}]}],
            "code": {"coding": [{"system": "http://snomed.info/sct", "code": one.what[0]}], "text": one.what[1]},
            "subject": {"reference": one.person.reference},
            "requester": {"reference": one.person.clinic.reference},
            "performer": [{"reference": one.place.reference}],
            "authoredOn": instant(one.at),
        }
        made = await self._ask(self.hub.at[one.person.clinic.id], "POST", "/ServiceRequest", order)
        if made:
            self.ledger.referrals[made["id"]] = one

    # --- work ------------------------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Everybody looks through their list and does what they mean to do by now."""
        for place in self.places:
            client = self.hub.coordinator if place.kind == "coordinator" else self.hub.at[place.id]
            url: str | None = f"/Task?owner={place.reference}&status={OPEN}&_count=200&_sort=authored-on"
            while url:
                page = await self._ask(client, "GET", url)
                for entry in (page or {}).get("entry", []):
                    await self._look(place, client, entry["resource"])
                url = next((link["url"] for link in (page or {}).get("link", []) if link["relation"] == "next"), None)

    async def _look(self, place: Place, client: httpx.AsyncClient, task: Tree) -> None:
        now = self.hub.clock.now
        key = (place.id, task["id"])
        if key not in self.plans:
            self.plans[key] = self._meant(place, task, now)
        plan = self.plans[key]
        if plan.at > now or not plan.steps:
            return
        step = plan.steps[0]
        if await self._step(place, client, task, step):
            plan.steps.popleft()
            plan.at = now + timedelta(days=self.random.expovariate(1 / 2.0)) if plan.steps else now

    def _meant(self, place: Place, task: Tree, now: datetime) -> _Plan:
        """What they make up their mind to do, when they see a Task for the first time."""
        draw = self.random
        if _is_referral(task):
            wait = now + timedelta(days=draw.expovariate(1 / place.slow))
            if draw.random() > place.answers:
                wait = now + timedelta(days=draw.uniform(6, 20))  # until somebody asks
            if draw.random() > place.accepts:
                return _Plan(wait, deque(["decline"]))
            ends = ["seen", "report"] if draw.random() > 0.12 else ["missed", "seen", "report"]
            return _Plan(wait, deque(["accept", "book", *ends]))
        code = next((one["code"] for one in task.get("code", {}).get("coding", []) if one.get("system") == COORDINATION), "")
        if code == "transition-of-care":
            return _Plan(now, deque())  # its steps are what is done
        if code == "follow-up-visit":
            return _Plan(
                now + timedelta(days=draw.uniform(2, 11)), deque(["start", "complete" if draw.random() < 0.88 else "fail"])
            )
        late = draw.random() > place.diligence
        wait = timedelta(days=draw.uniform(4, 9) if late else draw.uniform(0, 1.2))
        return _Plan(now + wait, deque(["start", "complete" if draw.random() < 0.95 else "fail"]))

    async def _step(self, place: Place, client: httpx.AsyncClient, task: Tree, step: str) -> bool:
        """Do one thing about a Task. Returns whether it is done."""
        now = instant(self.hub.clock.now)
        match step:
            case "accept":
                return await self._call(client, task, "accept")
            case "decline":
                return await self._call(client, task, "decline", reason=self.random.choice(_DECLINES))
            case "book" | "seen" | "missed":
                return await self._visit(place, task, step, now)
            case "report":
                return await self._report(place, task, now)
            case "start":
                if task["status"] in ("in-progress", "on-hold"):
                    return True
                return await self._put(client, task, status="in-progress")
            case "complete" if task["status"] == "in-progress":
                return await self._put(
                    client, task, status="completed", executionPeriod={"start": task["authoredOn"], "end": now}
                )
            case "fail" if task["status"] == "in-progress":
                return await self._put(client, task, status="failed", statusReason={"text": "Not possible"})
        return await self._put(client, task, status="in-progress")

    async def _visit(self, place: Place, task: Tree, step: str, now: str) -> bool:
        status = {"book": "planned", "seen": "finished", "missed": "cancelled"}[step]
        visit = {
            "resourceType": "Encounter",
            "id": f"visit-{task['id'][:50]}"
            + ("-again" if step == "seen" and task.get("businessStatus", {}).get("text") == "missed" else ""),
            "identifier": [{"system": REFERRAL, "value": _number(task)}],
            "status": status,
            "class": {"system": _ACT, "code": "AMB"},
            "subject": task["for"],
            "serviceProvider": {"reference": place.reference},
            "period": {"start": now, **({"end": now} if step == "seen" else {})},
        }
        if step == "missed":
            visit["reasonCode"] = [
                {"coding": [{"system": "http://snomed.info/sct", "code": "410543007"}], "text": "Did not attend"}
            ]
        return await self._ask(self.hub.feed, "PUT", f"/Encounter/{visit['id']}", visit) is not None

    async def _report(self, place: Place, task: Tree, now: str) -> bool:
        note = {
            "resourceType": "DocumentReference",
            "status": "current",
            "docStatus": "final",
            "type": {"coding": [{"system": "http://loinc.org", "code": "11488-4"}], "text": "Consult note"},
            "subject": task["for"],
            "date": now,
            "author": [{"reference": place.reference}],
            "content": [{"attachment": {"contentType": "text/plain", "data": "VGhhbmsgeW91Lg=="}}],
            "context": {"related": [{"identifier": {"system": REFERRAL, "value": _number(task)}}]},
        }
        return await self._ask(self.hub.feed, "POST", "/DocumentReference", note) is not None

    async def _call(self, client: httpx.AsyncClient, task: Tree, operation: str, **said: str) -> bool:
        parameters = [{"name": name, "valueCodeableConcept": {"text": text}} for name, text in said.items()]
        body = {"resourceType": "Parameters", **({"parameter": parameters} if parameters else {})}
        return await self._ask(client, "POST", f"/Task/{task['id']}/${operation}", body) is not None

    async def _put(self, client: httpx.AsyncClient, task: Tree, **members: Any) -> bool:
        body = {**task, **members, "lastModified": instant(self.hub.clock.now)}
        return await self._ask(client, "PUT", f"/Task/{task['id']}", body, if_match=task["meta"]["versionId"]) is not None

    async def _ask(
        self, client: httpx.AsyncClient, method: str, url: str, body: Tree | None = None, if_match: str = ""
    ) -> Tree | None:
        """A request; what is refused is counted, with the reason."""
        headers = {"If-Match": f'W/"{if_match}"'} if if_match else {}
        answer = await client.request(method, url, json=body, headers=headers)
        self.ledger.requests[f"{method} {url.split('?')[0].strip('/').split('/')[-1 if '$' in url else 0]}"] += 1
        if answer.is_success:
            return answer.json() if answer.content else {}
        issue = (answer.json().get("issue") or [{}])[0] if "json" in answer.headers.get("content-type", "") else {}
        self.ledger.refused[
            f"{method} {url.lstrip('/').split('/')[0].split('?')[0]}: {answer.status_code} {issue.get('diagnostics', '')[:90]}"
        ] += 1
        return None


def _is_referral(task: Tree) -> bool:
    return any(one.get("code") == "fulfill" for one in task.get("code", {}).get("coding", []))


def _number(task: Tree) -> str:
    return next((str(one["value"]) for one in task.get("identifier", []) if one.get("system") == REFERRAL), task["id"])


def _encounter(one: Happening, id: str, end: datetime | None = None) -> Tree:
    period = {"start": instant(one.at), **({"end": instant(end)} if end else {})}
    tree = {
        "resourceType": "Encounter",
        "id": id,
        "status": "finished" if end else "in-progress",
        "class": {"system": _ACT, "code": "IMP" if one.kind == "stay" else "EMER"},
        "subject": {"reference": one.person.reference},
        "serviceProvider": {"reference": one.place.reference},
        "period": period,
    }
    if end and one.kind == "stay":
        tree["hospitalization"] = {"dischargeDisposition": {"coding": [{"system": _DISPOSITION, "code": one.ends}]}}
    return tree


def hours(start: datetime, days: int) -> list[datetime]:
    """Every hour from the start on."""
    return [start + timedelta(hours=hour) for hour in range(1, 24 * days + 1)]


def at_work(now: datetime) -> bool:
    """Whether people look at their lists in this hour: at ten and at three, Monday to Friday (Chicago, in winter time)."""
    local = now.astimezone(UTC) - timedelta(hours=6)
    return local.weekday() < 5 and local.hour in (10, 15)
