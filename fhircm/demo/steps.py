"""What happens in the story after the panels are there: each step acts through a party's own door and waits for what must follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from fhircm.demo.story import CLINIC, HOSPITAL, DidNotHappen, Story
from fhircm.exchange.trust import trust
from fhircm.fhir.systems import COORDINATION, REFERRAL

CONSULT_NOTE = "Seen today. Heart failure is stable on the present dose; please recheck potassium in two weeks."


@dataclass(frozen=True)
class Linked:
    """How many humans were found in both EHRs."""

    people: int
    doubtful: int


@dataclass(frozen=True)
class Transition:
    """An opened transition of care; references are those at the hub."""

    patient: str
    encounter: str
    tasks: list[dict[str, Any]]


@dataclass(frozen=True)
class Referral:
    """A referral on its way; `patient` and `task` are at the hub, `at_clinic` is the clinic's own Patient."""

    task: str
    patient: str
    at_clinic: str
    number: str
    delivered: list[str]


@dataclass(frozen=True)
class Escalation:
    """What an overdue task came to."""

    task: str
    before: str
    after: str
    messages: int
    moved: timedelta


async def linked(story: Story) -> Linked:
    """Count the people with a record at both EHRs, and the pairs that a human must judge."""
    people = await story.find("Person?_count=200")
    doubtful = await story.find(f"Task?code={COORDINATION}|possible-match&_count=200")
    return Linked(sum(len(person.get("link", [])) > 1 for person in people), len(doubtful))


async def discharge(story: Story) -> Transition:
    """A patient goes home; the hub notices on its next pull and opens the transition of care."""
    left = await story.staff(HOSPITAL, "discharge", key="demo-discharge", disposition="home")
    await story.command("pull", HOSPITAL)
    encounter, patient = (story.at_hub(HOSPITAL, left[name]) for name in ("encounter", "patient"))

    async def opened() -> list[dict[str, Any]]:
        parents = await story.find(f"Task?focus={encounter}&code={COORDINATION}|transition-of-care")
        return [child for parent in parents for child in await story.find(f"Task?part-of=Task/{parent['id']}")]

    return Transition(patient, encounter, await story.until("the transition of care", opened))


async def refer(story: Story) -> Referral:
    """The hospital orders a referral to the clinic, for a patient that both know."""
    ordered = await story.staff(HOSPITAL, "order-referral", key="demo-referral", known_at_clinic=True)
    await story.command("pull", HOSPITAL)
    order, patient = (story.at_hub(HOSPITAL, ordered[name]) for name in ("service_request", "patient"))
    task = (await story.until("the referral", lambda: story.find(f"Task?focus={order}")))[0]
    number = next(one["value"] for one in task["identifier"] if one.get("system") == REFERRAL)
    letters = await story.until("the delivery to the clinic", lambda: _received(story, CLINIC, number))
    at_clinic = next(letter["patient"] for letter in letters if letter.get("patient"))
    return Referral(f"Task/{task['id']}", patient, at_clinic, number, [letter["type"] for letter in letters])


async def accept(story: Story, referral: Referral) -> None:
    """The clinic's app finds the referral at the hub and accepts it: it sees what its organisation is named in, and no more."""
    if "clinic-app" not in story.registered:
        owner = (await story.read(referral.task))["owner"]["reference"]
        await story.register("clinic-app", "--organization", owner)
    async with httpx.AsyncClient(timeout=30, verify=trust()) as http:
        http.headers["Authorization"] = f"Bearer {await story.token('clinic-app')}"
        answer = await http.get(f"{story.hub}/fhir/{referral.task}")
        answer.raise_for_status()
        task = answer.json() | {"status": "accepted"}
        headers = {"If-Match": answer.headers["ETag"], "Content-Type": "application/fhir+json"}
        (await http.put(f"{story.hub}/fhir/{referral.task}", json=task, headers=headers)).raise_for_status()


async def book(story: Story, referral: Referral) -> None:
    """The clinic's front desk books a visit under the referral number; the hub sees it on its next pull."""
    at = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    await story.staff(CLINIC, "book", key="demo-book", referral_number=referral.number, patient=referral.at_clinic, at=at)
    await story.command("pull", CLINIC)
    await story.until("the booking", _task(story, referral, lambda task: task["status"] == "in-progress"))


async def report(story: Story, referral: Referral) -> Referral:
    """The specialist writes the consult note; the loop closes and the requester is told."""
    note = {"referral_number": referral.number, "patient": referral.at_clinic, "text": CONSULT_NOTE}
    await story.staff(CLINIC, "consult-note", key="demo-note", **note)
    await story.command("pull", CLINIC)
    await story.until(
        "the end of the referral", _task(story, referral, lambda task: task["status"] == "completed" and task["output"])
    )

    async def told() -> list[dict[str, Any]]:
        got = await _received(story, HOSPITAL, referral.number)
        return got if {"ServiceRequest", "DocumentReference", "Communication"} <= {one["type"] for one in got} else []

    got = await story.until("the report to the hospital", told)
    return Referral(referral.task, referral.patient, referral.at_clinic, referral.number, [one["type"] for one in got])


async def refer_a_stranger(story: Story) -> list[str]:
    """A referral for somebody whom the clinic does not know: it cannot take it, so a human is told why."""
    ordered = await story.staff(HOSPITAL, "order-referral", key="demo-stranger", known_at_clinic=False)
    await story.command("pull", HOSPITAL)
    order = story.at_hub(HOSPITAL, ordered["service_request"])
    task = (await story.until("the referral", lambda: story.find(f"Task?focus={order}&code:not=undelivered")))[0]

    async def listed() -> list[dict[str, Any]]:
        return await story.find(f"Task?code={COORDINATION}|undelivered&focus=Task/{task['id']}")

    return [one["reasonCode"]["text"] for one in await story.until("the list for a human", listed)]


async def let_the_deadline_pass(story: Story, transition: Transition) -> Escalation:
    """Nobody calls the patient; when the contact is overdue, the next in line has it."""
    contact = min(transition.tasks, key=lambda task: task["restriction"]["period"]["end"])
    due = datetime.fromisoformat(contact["restriction"]["period"]["end"])
    moved = due - datetime.now(UTC) + timedelta(hours=1)
    await story.move_clock(moved)

    async def escalated() -> dict[str, Any] | None:
        task = await story.read(f"Task/{contact['id']}")
        return task if task["owner"] != contact["owner"] else None

    task = await story.until("the escalation", escalated)
    messages = await story.find(f"Communication?part-of=Task/{contact['id']}")
    names = [one["owner"].get("display", one["owner"].get("reference", "")) for one in (contact, task)]
    return Escalation(contact["code"]["text"], names[0], names[1], len(messages), moved)


def _task(story: Story, referral: Referral, wanted: Callable[[dict[str, Any]], Any]) -> Callable[[], Awaitable[Any]]:
    async def look() -> dict[str, Any] | None:
        task = await story.read(referral.task)
        if task["status"] in ("failed", "cancelled", "rejected"):
            raise DidNotHappen(f"{referral.task} ended as {task['status']}")
        return task if wanted(task) else None

    return look


async def _received(story: Story, at: str, number: str) -> list[dict[str, Any]]:
    return [write for write in await story.received(at) if number in write.get("identifiers", [])]
