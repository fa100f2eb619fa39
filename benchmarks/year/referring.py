"""What clinics and those to whom they refer do about a referral: order, answer, see the patient, report, look at the report.

Half of it is done by operations, half by plain updates: by turns of the draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

import httpx

from benchmarks.year.network import SERVICES, Happening, Place
from benchmarks.year.records import SCT
from benchmarks.year.world import World, because, number_of, said
from fhircm.coordination.codes import value_set
from fhircm.coordination.distribution import DIRECT, FIRST_ACCEPT, OPEN, Distribution
from fhircm.fhir.systems import COORDINATION, REFERRAL
from fhircm.store.stored import instant

Tree = dict[str, Any]
_ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_DECLINES = sorted(value_set("decline-reason"))
_FULL = ("no-capacity", "no-capacity", "exceeds-capability", "payer-not-accepted", "out-of-area")


@dataclass
class Referring:
    """Everybody who has to do with referrals."""

    world: World

    # --- who asks ------------------------------------------------------------------------------------------------------------------

    async def refer(self, one: Happening) -> None:
        """A clinic orders: of one, of one after the other, of several at once, or of whoever is able."""
        world, clinic = self.world, one.person.clinic
        draw = Random(f"{world.network.seed} {one.person.number} {one.at}")
        able = [place for place in world.network.able(one.service) if place != one.place]
        performers = {"direct": [one.place], "in turn": [one.place, *able[:1]], "first-accept": [one.place, *able], "open": []}[
            one.how
        ]
        order = {
            "resourceType": "ServiceRequest",
            "status": "active",
            "intent": "order",
            "priority": "urgent" if draw.random() < 0.15 else "routine",
            "category": [{"coding": [{"system": SCT, "code": "3457005"}]}],
            "code": {"coding": [{"system": SCT, "code": one.service.code}], "text": one.service.name},
            "subject": {"reference": one.person.reference},
            "requester": {"reference": clinic.reference},
            "authoredOn": instant(one.at),
            "reasonCode": [{"text": "For assessment and treatment"}],
        }
        if performers:
            order["performer"] = [{"reference": place.reference} for place in performers]
        else:
            order["performerType"] = {"coding": [{"system": SCT, "code": one.service.able}]}
        if one.how in ("first-accept", "open"):
            order["extension"] = [Distribution(FIRST_ACCEPT if performers else OPEN).extension()]
        made = await world.ask(world.hub.at[clinic.id], "POST", "/ServiceRequest", order)
        if made:
            world.ledger.happened["referral"] += 1
            world.ledger.orders.append(made["id"])
            if draw.random() < 0.04:
                world.at(world.now + timedelta(days=draw.uniform(0.5, 12)), lambda: self._cancel(clinic, made["id"], draw))

    async def _cancel(self, clinic: Place, order: str, draw: Random) -> None:
        """The patient wants it no more."""
        world, client = self.world, self.world.hub.at[clinic.id]
        asked = await world.found(client, f"/Task?focus=ServiceRequest/{order}&status=requested,accepted,in-progress,on-hold")
        asked = [one for one in asked if is_referral(one)]
        if asked and draw.random() < 0.5:
            world.ledger.happened["referral cancelled"] += 1
            await world.call(client, f"/Task/{asked[0]['id']}/$cancel", because("The patient wants it no more"))
        there = await world.ask(client, "GET", f"/ServiceRequest/{order}")
        if there and there["status"] == "active":
            await world.update(client, there, status="revoked")

    async def acknowledge(self, client: httpx.AsyncClient, task: Tree, *, by_operation: bool) -> bool:
        """The one who asked has looked at the report."""
        if by_operation:
            return await self.world.call(client, f"/{task['focus']['reference']}/$acknowledge") is not None
        order = await self.world.ask(client, "GET", f"/{task['basedOn'][0]['reference']}") if "basedOn" in task else None
        return order is not None and await self.world.update(client, order, status="completed") is not None

    async def inform(self, client: httpx.AsyncClient, task: Tree, *, by_operation: bool) -> bool:
        """The one who asked answers a question."""
        if by_operation:
            answer = said("text", valueString="As on the card: see the Coverage on record")
            return await self.world.call(client, f"/Task/{task['id']}/$provide-information", answer) is not None
        output = [{"type": {"text": "Answer"}, "valueString": "See the Coverage on record"}]
        return await self.world.update(client, task, status="completed", output=output) is not None

    async def choose_whom(self, client: httpx.AsyncClient, task: Tree, draw: Random, *, by_operation: bool) -> bool:
        """All have declined: others are asked, or all once more; some patients go without."""
        world = self.world
        order = await world.ask(client, "GET", f"/{task['focus']['reference']}")
        if order is None:
            return False
        if order["status"] != "active" or draw.random() < 0.2:
            return order["status"] != "active" or await world.update(client, order, status="revoked") is not None
        others = self._others(order, draw)
        if by_operation:
            to = [said("to", valueReference={"reference": place.reference}) for place in others]
            return await world.call(client, f"/ServiceRequest/{order['id']}/$refer", *to) is not None
        before = next((one for one in order.get("extension", []) if one["url"].endswith("/distribution")), {"extension": []})
        parts = {part["url"]: part for part in before["extension"]}
        how = parts.get("how", {}).get("valueCode", DIRECT)
        round = parts.get("round", {}).get("valuePositiveInt", 1) + 1
        kept = [one for one in order.get("extension", []) if one is not before]
        extension = [*kept, Distribution(DIRECT if how == OPEN else how, round).extension()]
        performer = [{"reference": place.reference} for place in others]
        return await world.update(client, order, performer=performer, extension=extension) is not None

    def _others(self, order: Tree, draw: Random) -> list[Place]:
        """Who has not been asked, as far as there are any; else all."""
        codes = {one.get("code") for one in order["code"].get("coding", [])}
        service = next((one for one in SERVICES if one.code in codes), None)
        able = self.world.network.able(service) if service else self.world.network.of("post-acute")
        asked = {one["reference"].partition("/")[2] for one in order.get("performer", [])}
        fresh = [place for place in able if place.id not in asked]
        return draw.sample(fresh or able, min(len(fresh or able), 1 if service else 3))

    async def choose_offer(self, client: httpx.AsyncClient, task: Tree) -> bool:
        """Of the offers, the one that the patient wants most is chosen."""
        compared = await self.world.ask(client, "GET", f"/{task['focus']['reference']}/$compare-offers")
        for answer in (compared or {}).get("parameter", []):
            parts = {part["name"]: part for part in answer.get("part", [])}
            if parts.get("answer", {}).get("valueCode") == "offered":
                return await self.world.call(client, f"/{parts['task']['valueReference']['reference']}/$choose") is not None
        return compared is not None

    # --- who is asked --------------------------------------------------------------------------------------------------------------

    async def answer(self, place: Place, client: httpx.AsyncClient, task: Tree, step: str, draw: Random) -> bool:
        """Accept, offer, decline or ask back."""
        world, by_operation = self.world, draw.random() < 0.5
        url = f"/Task/{task['id']}"
        if step == "ask":
            world.ledger.happened["question"] += 1
            question = said("question", valueString="Which payer, and is there an authorisation?")
            return await world.call(client, f"{url}/$request-information", question) is not None
        if step == "decline":
            system, code = draw.choice([(COORDINATION, draw.choice(_FULL)), draw.choice(_DECLINES)])
            reason: Tree = {"coding": [{"system": system, "code": code}]}
            if by_operation:
                return await world.call(client, f"{url}/$decline", said("reason", valueCodeableConcept=reason)) is not None
            return await world.update(client, task, status="rejected", statusReason={**reason, "text": code}) is not None
        if by_operation:
            return await world.call(client, f"{url}/${'offer' if _is_for_offers(task) else 'accept'}") is not None
        return await world.update(client, task, status="accepted", owner={"reference": place.reference}) is not None

    async def book(self, client: httpx.AsyncClient, task: Tree, at: datetime, *, again: bool, by_operation: bool) -> bool:
        """An appointment then."""
        start, end = instant(at), instant(at + timedelta(minutes=30))
        if by_operation or again:
            verb = "reschedule" if again else "schedule"
            times = (said("start", valueInstant=start), said("end", valueInstant=end))
            return await self.world.call(client, f"/Task/{task['id']}/${verb}", *times) is not None
        appointment = {
            "resourceType": "Appointment",
            "identifier": [{"system": REFERRAL, "value": number_of(task)}],
            "basedOn": [{"reference": task["focus"]["reference"]}],
            "status": "booked",
            "start": start,
            "end": end,
            "participant": [{"actor": {"reference": task["for"]["reference"]}, "status": "accepted"}],
        }
        return await self.world.ask(client, "POST", "/Appointment", appointment) is not None

    async def miss(self, client: httpx.AsyncClient, task: Tree, *, by_operation: bool) -> bool:
        """The patient did not come."""
        self.world.ledger.happened["no-show"] += 1
        if by_operation:
            return await self.world.call(client, f"/Task/{task['id']}/$no-show", because("No transport")) is not None
        booked = await self.world.found(client, f"/Appointment?based-on={task['focus']['reference']}&status=booked")
        return bool(booked) and await self.world.update(client, booked[0], status="noshow") is not None

    async def see(self, place: Place, client: httpx.AsyncClient, task: Tree) -> bool:
        """The visit took place: the performer's system tells of it."""
        now = self.world.now
        booked = await self.world.found(client, f"/Appointment?based-on={task['focus']['reference']}&status=booked")
        visit = {
            "resourceType": "Encounter",
            "id": f"visit-{task['id'][:50]}",
            "identifier": [{"system": REFERRAL, "value": number_of(task)}],
            "status": "finished",
            "class": {"system": _ACT, "code": "AMB"},
            "subject": {"reference": task["for"]["reference"]},
            "serviceProvider": {"reference": place.reference},
            "period": {"start": instant(now - timedelta(minutes=30)), "end": instant(now)},
            **({"appointment": [{"reference": f"Appointment/{booked[0]['id']}"}]} if booked else {}),
        }
        if booked and await self.world.update(client, booked[0], status="fulfilled") is None:
            return False
        return await self.world.ask(self.world.hub.feed, "PUT", f"/Encounter/{visit['id']}", visit) is not None

    async def report(self, place: Place, client: httpx.AsyncClient, task: Tree, *, by_operation: bool) -> bool:
        """The report goes back: found by its number, or named in the completed Task."""
        note = {
            "resourceType": "DocumentReference",
            "status": "current",
            "docStatus": "final",
            "type": {"coding": [{"system": "http://loinc.org", "code": "11488-4"}], "text": "Consult note"},
            "subject": {"reference": task["for"]["reference"]},
            "date": instant(self.world.now),
            "author": [{"reference": place.reference}],
            "content": [{"attachment": {"contentType": "text/plain", "data": "VGhhbmsgeW91Lg=="}}],
        }
        if not by_operation:
            note["context"] = {"related": [{"identifier": {"system": REFERRAL, "value": number_of(task)}}]}
        made = await self.world.ask(client, "POST", "/DocumentReference", note)
        if made is None or not by_operation:
            return made is not None
        report = said("report", valueReference={"reference": f"DocumentReference/{made['id']}"})
        return await self.world.call(client, f"/Task/{task['id']}/$complete", report) is not None


def is_referral(task: Tree) -> bool:
    """Whether a Task asks to fulfil an order."""
    return any(one.get("code") == "fulfill" for one in task.get("code", {}).get("coding", []))


def _is_for_offers(task: Tree) -> bool:
    given = next((one for one in task.get("extension", []) if one["url"].endswith("/distribution")), {"extension": []})
    return any(part.get("valueCode") == "offers" for part in given["extension"])
