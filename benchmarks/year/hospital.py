"""What hospitals do: admit, plan the discharge, ask post-acute places, and let their patients go. Sometimes they write it down wrongly first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

from benchmarks.year.network import POST_ACUTE, Happening, Place
from benchmarks.year.records import SCT, kinds_of
from benchmarks.year.world import World, said
from fhircm.coordination.codes import value_set
from fhircm.coordination.distribution import FIRST_ACCEPT, Distribution
from fhircm.fhir.systems import COORDINATION
from fhircm.store.stored import instant

Tree = dict[str, Any]
_ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_NUBC = "http://www.nubc.org/patient-discharge"
_BARRIERS = sorted(code for _, code in value_set("discharge-barrier"))
_LONGEST = 5  # days that a patient waits for a place, before they go home after all


@dataclass
class Stay:
    """A stay or emergency visit that goes on."""

    one: Happening
    id: str
    random: Random
    begun: str
    order: str = ""  # the request to post-acute places
    waited: int = 0

    @property
    def url(self) -> str:
        """Where its Encounter is."""
        return f"/Encounter/{self.id}"


@dataclass
class Hospitals:
    """All of them."""

    world: World

    async def arrive(self, one: Happening) -> None:
        """Somebody comes; what follows is drawn now."""
        world = self.world
        world.ledger.happened[one.kind] += 1
        id = f"encounter-{world.ledger.happened['stay'] + world.ledger.happened['emergency visit']}"
        draw = Random(f"{world.network.seed} {one.person.number} {one.at}")
        stay = Stay(one, id, draw, instant(one.at))
        await self._write(stay, "in-progress")
        length = timedelta(days=one.days)
        if one.kind == "emergency visit":
            world.at(one.at + length, lambda: self._write(stay, "finished", end=True))
            return
        world.ledger.stays.append(id)
        if one.wrong == "never was":
            world.ledger.happened["admission cancelled"] += 1
            world.at(one.at + timedelta(hours=draw.uniform(2, 10)), lambda: self._write(stay, "cancelled"))
            return
        if one.wrong == "begun earlier":
            world.at(one.at + min(length / 2, timedelta(hours=20)), lambda: self._correct(stay))
        world.at(one.at + min(length * 0.4, timedelta(hours=draw.uniform(8, 40))), lambda: self._expect(stay))
        if draw.random() < 0.2:
            world.at(one.at + length * draw.uniform(0.3, 0.7), lambda: self._hinder(stay))
        if one.ends in POST_ACUTE:
            world.at(one.at + length * 0.5, lambda: self._ask_around(stay))
        world.at(one.at + length, lambda: self._leave(stay))

    # --- the Encounter -------------------------------------------------------------------------------------------------------------

    async def _write(self, stay: Stay, status: str, *, end: bool = False, **more: Any) -> None:
        one, period = stay.one, {"start": stay.begun, **({"end": instant(self.world.now)} if end else {})}
        await self._put(
            {
                "resourceType": "Encounter",
                "id": stay.id,
                "status": status,
                "class": {"system": _ACT, "code": "IMP" if one.kind == "stay" else "EMER"},
                "subject": {"reference": one.person.reference},
                "serviceProvider": {"reference": one.place.reference},
                "period": period,
                **more,
            }
        )

    async def _put(self, tree: Tree) -> None:
        await self.world.ask(self.world.hub.feed, "PUT", f"/{tree['resourceType']}/{tree['id']}", tree)

    async def _correct(self, stay: Stay) -> None:
        self.world.ledger.happened["admission corrected"] += 1
        stay.begun = instant(stay.one.at - timedelta(hours=5))
        await self._write(stay, "in-progress")

    # --- planning ------------------------------------------------------------------------------------------------------------------

    async def _expect(self, stay: Stay, days: float | None = None, why: str = "") -> None:
        """Say when the patient leaves, and where to: seldom right the first time."""
        draw, one = stay.random, stay.one
        end = one.at + timedelta(days=one.days if days is None else days)
        guessed = end if days is not None else max(self.world.now, end + timedelta(days=draw.choice((-1, 0, 0, 0, 1))))
        where = "01" if one.ends in ("20", "07") or (days is None and draw.random() < 0.25) else one.ends
        await self.world.call(
            self.world.hub.at[one.place.id],
            f"{stay.url}/$expect-discharge",
            said("date", valueDateTime=guessed.date().isoformat()),
            said("disposition", valueCodeableConcept={"coding": [{"system": _NUBC, "code": where}]}),
            *([said("reason", valueString=why)] if why else []),
        )
        if days is None and where != one.ends:
            self.world.at(one.at + timedelta(days=one.days * 0.7), lambda: self._expect(stay, one.days, "Known better now"))

    async def _hinder(self, stay: Stay) -> None:
        code = {"system": COORDINATION, "code": stay.random.choice(_BARRIERS)}
        reason = said("reason", valueCodeableConcept={"coding": [code]})
        await self.world.call(self.world.hub.at[stay.one.place.id], f"{stay.url}/$add-barrier", reason)

    async def _ask_around(self, stay: Stay) -> None:
        """Several places are asked at once: those that the patient chose for offers, or all for the first who says yes."""
        world, one, draw = self.world, stay.one, stay.random
        client, service = world.hub.at[one.place.id], POST_ACUTE[one.ends]
        places = draw.sample([place for place in world.network.of("post-acute") if one.ends in kinds_of(place)], 5)
        if draw.random() < 0.5:
            candidates = [said("candidate", part=[said("provider", valueReference=_service(place))]) for place in places]
            text = said("service", valueCodeableConcept={"text": service})
            wanted = [said("choice", valueReference=_service(place)) for place in draw.sample(places, 4)]
            if await world.call(client, f"{stay.url}/$offer-choices", text, *candidates) is None:
                return
            if await world.call(client, f"{stay.url}/$record-choice", *wanted) is None:
                return
            made = await world.call(client, f"{stay.url}/$refer-to-chosen", text)
        else:
            made = await world.ask(client, "POST", "/ServiceRequest", _first_of(stay, places[:4], service, instant(world.now)))
        stay.order = made["id"] if made else ""

    # --- leaving -------------------------------------------------------------------------------------------------------------------

    async def _leave(self, stay: Stay) -> None:
        """The patient leaves, where the place that was found is; without one they wait."""
        world, one = self.world, stay.one
        place = await self._place_found(stay)
        if one.ends in ("03", "62") and place is None and stay.waited < _LONGEST:
            stay.waited += 1
            world.ledger.happened["day waited for a place"] += 1
            await self._expect(stay, one.days + stay.waited, "No place is found yet")
            world.at(world.now + timedelta(days=1), lambda: self._leave(stay))
            return
        ends = "01" if one.ends in ("03", "62") and place is None else one.ends
        await self._close_order(stay, taken=place is not None)
        world.ledger.happened["discharge"] += 1
        where: Tree = {"dischargeDisposition": {"coding": [{"system": _NUBC, "code": ends}]}}
        if place is not None:
            where["destination"] = {"reference": place.reference}
        if one.wrong == "came back":
            world.ledger.happened["discharge taken back"] += 1
            await self._write(stay, "finished", end=True, hospitalization=where)
            world.at(world.now + timedelta(hours=5), lambda: self._write(stay, "in-progress"))
            world.at(world.now + timedelta(hours=29), lambda: self._go(stay, ends, where, place))
        else:
            await self._go(stay, ends, where, place)

    async def _go(self, stay: Stay, ends: str, where: Tree, place: Place | None) -> None:
        world, one = self.world, stay.one
        await self._write(stay, "finished", end=True, hospitalization=where)
        if ends == "20":
            patient = await world.ask(world.hub.feed, "GET", f"/{one.person.reference}")
            if patient:
                await world.update(world.hub.feed, patient, deceasedDateTime=instant(world.now))
        elif ends in ("03", "62") and place is not None:
            world.at(world.now + timedelta(hours=stay.random.uniform(2, 20)), lambda: self._settle(stay, place))

    async def _place_found(self, stay: Stay) -> Place | None:
        if not stay.order:
            return None
        world = self.world
        url = f"/Task?focus=ServiceRequest/{stay.order}&status=accepted,in-progress,completed"
        tasks = await world.found(world.hub.at[stay.one.place.id], url)
        taken = next((one["owner"]["reference"] for one in tasks if _has_it(one)), None)
        return next((place for place in world.network.places if place.reference == taken), None)

    async def _close_order(self, stay: Stay, *, taken: bool) -> None:
        """Who leaves without anybody asked needs nobody any more."""
        if not stay.order or taken:
            return
        client = self.world.hub.at[stay.one.place.id]
        order = await self.world.ask(client, "GET", f"/ServiceRequest/{stay.order}")
        if order and order["status"] == "active":
            await self.world.update(client, order, status="revoked")

    async def _settle(self, stay: Stay, place: Place) -> None:
        """The patient arrives at the place, and stays there for a while."""
        world, one = self.world, stay.one
        begun, id = instant(world.now), f"{stay.id}-after"
        arrived = {
            "resourceType": "Encounter",
            "id": id,
            "status": "in-progress",
            "class": {"system": _ACT, "code": "IMP"},
            "type": [{"coding": [{"system": SCT, "code": "36125001"}]}],
            "subject": {"reference": one.person.reference},
            "serviceProvider": {"reference": place.reference},
            "period": {"start": begun},
        }
        world.ledger.happened["arrival at a post-acute place"] += 1
        await self._put(arrived)
        end = world.now + timedelta(days=stay.random.uniform(8, 25))
        gone = {"hospitalization": {"dischargeDisposition": {"coding": [{"system": _NUBC, "code": "01"}]}}}
        over = {**arrived, "status": "finished", "period": {"start": begun, "end": instant(end)}, **gone}
        world.at(end, lambda: self._put(over))


def _service(place: Place) -> Tree:
    return {"reference": f"HealthcareService/{place.id}", "display": place.name}


def _has_it(task: Tree) -> bool:
    given = next((one for one in task.get("extension", []) if one["url"].endswith("/distribution")), {})
    parts = {part["url"]: part for part in given.get("extension", [])}
    how = parts.get("how", {}).get("valueCode")
    return how != "offers" or bool(parts.get("chosen", {}).get("valueBoolean"))


def _first_of(stay: Stay, places: list[Place], service: str, now: str) -> Tree:
    """A request of the hospital's, written by hand."""
    return {
        "resourceType": "ServiceRequest",
        "extension": [Distribution(FIRST_ACCEPT).extension()],
        "status": "active",
        "intent": "order",
        "priority": "urgent",
        "category": [
            {"coding": [{"system": COORDINATION, "code": "post-acute-referral"}]},
            {"coding": [{"system": SCT, "code": "3457005"}]},
        ],
        "code": {"text": service},
        "subject": {"reference": stay.one.person.reference},
        "encounter": {"reference": f"Encounter/{stay.id}"},
        "requester": {"reference": stay.one.place.reference},
        "performer": [{"reference": place.reference} for place in places],
        "authoredOn": now,
    }
