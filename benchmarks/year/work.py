"""Everybody at work: places look at their Tasks twice a business day, and do about each what they mean to do, in time or late.

They speak FHIR over HTTP to the hub. Nobody knows what the hub will do next: they see Tasks and answer them, half of them by operations,
half by plain updates.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

import httpx

from benchmarks.year.hub import coordinator_of
from benchmarks.year.network import Place
from benchmarks.year.referring import Referring, is_referral
from benchmarks.year.world import OPEN, World, because, said
from fhircm.coordination.codes import own
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.store.stored import instant

Tree = dict[str, Any]
_HOURS = (10, 15)
_TRIES = 3  # of what is refused, before somebody gives it up
_NUBC = "http://www.nubc.org/patient-discharge"


@dataclass
class _Plan:
    """What somebody means to do about a Task, and when."""

    at: datetime
    steps: deque[str]
    random: Random
    by_operation: bool
    tries: int = 0


@dataclass
class Work:
    """What everybody has to do."""

    world: World
    plans: dict[tuple[str, str], _Plan] = field(default_factory=dict)  # by place and Task
    _nth: Counter[str] = field(default_factory=Counter)
    _people: Random = field(init=False)

    def __post_init__(self) -> None:
        network, hub = self.world.network, self.world.hub
        self.referring = Referring(self.world)
        self.places = [*network.of("hospital", "clinic", "specialist", "post-acute"), coordinator_of(hub)]
        self.calendar: BusinessCalendar = hub.around.calendar
        self._wholes = {own(pathway.whole.code) for pathway in hub.around.pathways}
        self._people = Random(f"{network.seed} payers")

    def is_time(self, hour: datetime) -> bool:
        """Whether people look at their lists in this hour."""
        day = self.calendar.day_of(hour)
        local = round((hour - self.calendar.start_of(day)).total_seconds() / 3600)
        return self.calendar.is_business_day(day) and local in _HOURS

    async def everybody(self) -> None:
        """Each looks through their list and does what they mean to do by now; once a week payers look at some of their members."""
        for place in self.places:
            client = self._client(place)
            tasks = await self.world.found(client, f"/Task?owner={place.reference}&status={OPEN}&_count=500")
            if place.kind == "specialist":
                tasks += await self.world.found(client, "/Task?owner:missing=true&status=requested&_count=500")
            for task in sorted(tasks, key=_in_order):
                await self._look(place, client, task)
        if self.world.now.weekday() == 0:
            await self._payers()

    def _client(self, place: Place) -> httpx.AsyncClient:
        return self.world.hub.coordinator if place.kind == "coordinator" else self.world.hub.at[place.id]

    async def _look(self, place: Place, client: httpx.AsyncClient, task: Tree) -> None:
        key = (place.id, task["id"])
        plan = self.plans.get(key) or self.plans.setdefault(key, self._meant(place, task))
        if plan.at > self.world.now or not plan.steps or not _may_go_on(task, plan.steps[0]):
            return
        step = plan.steps[0]
        if await self._step(place, client, task, step, plan):
            plan.steps.popleft()
            plan.tries = 0
            if plan.at <= self.world.now and plan.steps:
                plan.at = self.world.now + timedelta(days=plan.random.expovariate(1 / 1.5))
        else:
            plan.tries += 1
            if plan.tries == _TRIES:
                plan.steps.clear()

    # --- what is meant -------------------------------------------------------------------------------------------------------------

    def _meant(self, place: Place, task: Tree) -> _Plan:
        """What they make up their mind to do, when they see a Task for the first time."""
        code, patient = own(task.get("code")), task.get("for", {}).get("reference")
        name = f"{self.world.network.seed} {place.id} {patient} {code} {task.get('instantiatesUri')}"
        self._nth[name] += 1
        draw = Random(f"{name} {self._nth[name]}")
        days, steps = self._referral(place, task, draw) if is_referral(task) else self._usual(place, task, code, draw)
        return _Plan(self.world.now + timedelta(days=days), deque(steps), draw, draw.random() < 0.5)

    def _referral(self, place: Place, task: Tree, draw: Random) -> tuple[float, list[str]]:
        days = draw.expovariate(1 / place.slow)
        if draw.random() > place.answers:
            days = draw.uniform(6, 20)  # until somebody asks
        if "owner" not in task and draw.random() > 0.5:
            return 0, []  # not for us
        question = ["ask"] if draw.random() < 0.1 and "owner" in task else []
        if draw.random() > place.accepts and "owner" in task:
            return days, [*question, "decline"]
        if place.kind == "post-acute":
            return days, [*question, "accept", "start", "complete"]
        if draw.random() < 0.04:
            return days, [*question, "accept", "fail"]
        booked = ["wait", "book"] if draw.random() < 0.08 else ["book"]
        come = ["miss", "book again", "see"] if draw.random() < 0.12 else ["see"]
        return days, [*question, "accept", *booked, *come, "report"]

    def _usual(self, place: Place, task: Tree, code: str | None, draw: Random) -> tuple[float, list[str]]:
        if code in self._wholes or code == "discharge-open-items":
            self._hurry(task, code)
            return 0, []  # its steps are what is done
        late = draw.random() > place.diligence
        days = draw.uniform(4, 9) if late else draw.uniform(0, 0.4 if task.get("priority") != "routine" else 1.4)
        match code:
            case "follow-up-visit":
                return draw.uniform(2, 11) if not late else draw.uniform(10, 18), ["start", "complete"]
            case "contact":
                return days, ["contact"] * 4
            case "discharge-barrier":
                return draw.uniform(0.5, 4), ["start", "complete"]
            case "choose-performer" | "choose-offer" | "acknowledge-report" | "provide-information":
                return days, [code]
            case "discharge-item" if task["instantiatesUri"].endswith("#expected-date"):
                return days, ["expect"]
            case "referral-overdue":
                return days, ["nudge", "start", "complete"]
        pause = ["pause"] if draw.random() < 0.03 else []
        return days, [*pause, "start", "complete" if draw.random() < 0.96 else "fail"]

    def _hurry(self, task: Tree, code: str | None) -> None:
        """Who is told that something is open the day before the discharge does it now."""
        if code == "discharge-open-items":
            for element in task.get("input", []):
                self.nudge(element.get("valueReference", {}).get("reference", ""), 0)

    def nudge(self, task: str, days: float) -> None:
        """Whoever has this Task, and means to answer later, does it soon."""
        for (_, id), plan in self.plans.items():
            if f"Task/{id}" == task and plan.at > self.world.now:
                plan.at = min(plan.at, self.world.now + timedelta(days=days))

    # --- what is done --------------------------------------------------------------------------------------------------------------

    async def _step(self, place: Place, client: httpx.AsyncClient, task: Tree, step: str, plan: _Plan) -> bool:
        """Do one thing about a Task. Returns whether it is done."""
        world, referring, draw, by = self.world, self.referring, plan.random, plan.by_operation
        match step:
            case "accept" | "decline" | "ask":
                return await referring.answer(place, client, task, step, draw)
            case "book" | "book again":
                plan.at = world.now + timedelta(days=draw.uniform(2, 18))
                visit = plan.at - timedelta(hours=1)
                return await referring.book(client, task, visit, again=step == "book again", by_operation=by)
            case "wait":
                plan.at = world.now + timedelta(days=draw.uniform(6, 25))
                return await world.call(client, f"/Task/{task['id']}/$waitlist", because("No place before")) is not None
            case "miss":
                return await referring.miss(client, task, by_operation=by)
            case "see":
                return await referring.see(place, client, task)
            case "report":
                return await referring.report(place, client, task, by_operation=by)
            case "acknowledge-report":
                return await referring.acknowledge(client, task, by_operation=by)
            case "provide-information":
                return await referring.inform(client, task, by_operation=by)
            case "choose-performer":
                return await referring.choose_whom(client, task, draw, by_operation=by)
            case "choose-offer":
                return await referring.choose_offer(client, task)
            case "contact":
                return await self._contact(client, task, draw, by_operation=by)
            case "expect":
                return await self._expect(client, task, draw)
            case "nudge":
                self.nudge(task.get("focus", {}).get("reference", ""), 0.5)
                return True
        return await self._plainly(client, task, step, plan)

    async def _plainly(self, client: httpx.AsyncClient, task: Tree, step: str, plan: _Plan) -> bool:
        world, url, now = self.world, f"/Task/{task['id']}", instant(self.world.now)
        if step == "start" and task["status"] in ("in-progress", "on-hold"):
            return True
        if step == "complete" and task["status"] == "on-hold":
            await world.call(client, f"{url}/$resume")
            return False
        if plan.by_operation:
            more: list[Tree] = [because("It cannot be done")] if step == "fail" else []
            if step == "pause":
                plan.at = world.now + timedelta(days=4)
                until = instant(world.now + timedelta(days=3))
                more = [because("The patient travels"), said("until", valueDateTime=until)]
            return await world.call(client, f"{url}/${step}", *more) is not None
        match step:
            case "start":
                return await world.update(client, task, status="in-progress", statusReason=None) is not None
            case "pause":
                plan.at = world.now + timedelta(days=4)
                why = {"text": "Waits for the pharmacy"}
                return await world.update(client, task, status="on-hold", statusReason=why) is not None
            case "fail":
                return await world.update(client, task, status="failed", statusReason={"text": "Not possible"}) is not None
        period = {"start": task["authoredOn"], "end": now}
        return await world.update(client, task, status="completed", statusReason=None, executionPeriod=period) is not None

    async def _contact(self, client: httpx.AsyncClient, task: Tree, draw: Random, *, by_operation: bool) -> bool:
        """A call: three in four are answered. Who is reached at the first call needs no other."""
        reached = draw.random() < 0.75
        self.world.ledger.happened["call after a discharge or visit"] += 1
        if by_operation:
            parts = (said("reached", valueBoolean=reached), said("medium", valueCode="PHONE"))
            return await self.world.call(client, f"/Task/{task['id']}/$record-contact", *parts) is not None
        attempt = {
            "resourceType": "Communication",
            "basedOn": [{"reference": f"Task/{task['id']}"}],
            "status": "completed" if reached else "not-done",
            "topic": {"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "contact-attempt"}]},
            "subject": {"reference": task["for"]["reference"]},
            "sent": instant(self.world.now),
        }
        return await self.world.ask(client, "POST", "/Communication", attempt) is not None

    async def _expect(self, client: httpx.AsyncClient, task: Tree, draw: Random) -> bool:
        """The date that was expected has passed, or nobody said one: in a day or two; home, unless more is known."""
        whole = await self.world.ask(client, "GET", f"/{task['partOf'][0]['reference']}")
        stated = [one for one in (whole or {}).get("extension", []) if one["url"].endswith("/expected-discharge")]
        where = [part for one in stated for part in one["extension"] if part["url"] == "disposition"]
        home = {"coding": [{"system": _NUBC, "code": "01"}]}
        date = (self.world.now + timedelta(days=draw.randrange(1, 3))).date().isoformat()
        parts = [said("date", valueDateTime=date), *([] if where else [said("disposition", valueCodeableConcept=home)])]
        return await self.world.call(client, f"/{task['focus']['reference']}/$expect-discharge", *parts) is not None

    # --- payers --------------------------------------------------------------------------------------------------------------------

    async def _payers(self) -> None:
        """Each payer looks at what is open of ten of its members, and at what happened to them."""
        network, seen = self.world.network, self.world.ledger.payers_saw
        for payer in network.of("payer"):
            members = [person for person in network.people if person.payer is payer]
            client = self.world.hub.at[payer.id]
            for person in self._people.sample(members, min(10, len(members))):
                seen["members looked at"] += 1
                tasks = await self.world.found(client, f"/Task?patient={person.reference}&status={OPEN}")
                seen["open Tasks seen"] += len(tasks)
                timeline = await self.world.ask(client, "GET", f"/{person.reference}/$timeline?_count=20") or {}
                seen["entries of timelines seen"] += sum(one["name"] == "entry" for one in timeline.get("parameter", []))
                seen["care plans seen"] += len(await self.world.found(client, f"/CarePlan?patient={person.reference}"))


def _in_order(task: Tree) -> tuple[str, ...]:
    """By when it came; among equals by what it is about, so that a seed gives the same year."""
    return task.get("authoredOn", ""), task.get("for", {}).get("reference", ""), task.get("instantiatesUri", ""), task["id"]


def _may_go_on(task: Tree, step: str) -> bool:
    """Whether it is the turn of who has the Task: not while a question is open, nor before an offer is chosen."""
    if not is_referral(task):
        return True
    if task["status"] == "draft":
        return False
    if step in ("accept", "decline", "ask"):
        return True
    if own(task.get("statusReason")) == "awaiting-information":
        return False
    given = next((one for one in task.get("extension", []) if one["url"].endswith("/distribution")), {"extension": []})
    parts = {part["url"]: part for part in given["extension"]}
    return parts.get("how", {}).get("valueCode") != "offers" or bool(parts.get("chosen", {}).get("valueBoolean"))
