"""The appointments of a referral: made, missed, made again, waited for; and nobody who did not come is forgotten."""

from datetime import timedelta

import pytest

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scopes
from fhircm.coordination import scheduling
from fhircm.coordination.acting import act
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.fhir.systems import COORDINATION

from .conftest import SCT
from .test_referral import Referral

CAPACITY = "http://hl7.org/fhir/us/sdoh-clinicalcare/StructureDefinition/SDOHCC-ExtensionHealthcareServiceCapacityStatus"
SDOH = "http://hl7.org/fhir/us/sdoh-clinicalcare/CodeSystem/SDOHCC-CodeSystemTemporaryCodes"
FIRST = {"start": ["2026-03-05T15:00:00Z"], "end": ["2026-03-05T15:30:00Z"]}
SECOND = {"start": ["2026-03-12T15:00:00Z"], "end": ["2026-03-12T15:30:00Z"]}


class Scheduled(Referral):
    """An accepted referral, with the acts of a front desk."""

    async def begin(self):
        await self.patients()
        await self.order()
        await self.set(status="accepted")
        principal = Principal("desk", parse_scopes("system/*.cruds"), frozenset({"custodian"}))
        self.guarded = GuardedStore(self.world.store, principal)

    async def do(self, verb, **said):
        stored = await act(self.guarded, verb, "Task", self.id, said)
        await self.world.react()
        return stored

    async def booking(self, status, id="a1", start="2026-03-05T15:00:00Z", **members):
        """An appointment as the clinic keeps it, that comes with a pull."""
        when = {} if status == "waitlist" else {"start": start, "end": start.replace(":00:00Z", ":30:00Z")}
        who = [{"actor": self.clinic.ref("Patient/q1"), "status": "accepted"}]
        await self.clinic.put(f"Appointment/{id}", status=status, identifier=[self.number], participant=who, **when, **members)
        await self.world.react()

    async def left(self, code):
        found = await self.world.find("Task", code=f"{COORDINATION}|{code}")
        return sorted(one["status"] for one in found)

    async def state(self):
        return (await self.history())[-1]


@pytest.fixture
async def referral(world):
    made = Scheduled(world)
    await made.begin()
    return made


async def test_the_clinic_s_appointments_move_the_referral(referral):
    seen = []
    for status in ("proposed", "pending", "booked", "arrived", "fulfilled"):
        await referral.booking(status)
        seen.append(await referral.state())
    assert seen == [("accepted", "3.0")] * 2 + [("in-progress", "5.1.1")] * 2 + [("in-progress", "5.1.4")]
    await referral.booking("entered-in-error", "a2")
    assert await referral.state() == ("in-progress", "5.1.4")


async def test_who_did_not_come_is_looked_after_until_there_is_another_appointment(referral):
    await referral.booking("booked")
    await referral.booking("noshow")
    assert await referral.state() == ("in-progress", "5.1.2")
    (task,) = await referral.world.find("Task", code=f"{COORDINATION}|no-show-outreach")
    assert (task["status"], task["owner"]["display"]) == ("ready", "Lakeside care coordination")
    assert task["focus"] == referral.clinic.ref("Appointment/a1")
    assert task["restriction"]["period"]["end"] == "2026-03-04T23:59:59-06:00", "two business days"
    await referral.booking("booked", "a2", start="2026-03-12T15:00:00Z")
    assert await referral.state() == ("in-progress", "5.1.1")
    assert await referral.left("no-show-outreach") == ["cancelled"]
    await referral.booking("noshow", "a2", start="2026-03-12T15:00:00Z")
    assert await referral.left("no-show-outreach") == ["cancelled", "ready"]
    await referral.booking("cancelled", "a3", start="2026-03-13T15:00:00Z")
    assert await referral.state() == ("in-progress", "5.1.3")
    await referral.report()
    assert await referral.left("no-show-outreach") == ["cancelled", "cancelled"]
    before = await referral.world.counts()
    assert await referral.world.again() == []
    assert await referral.world.counts() == before


async def test_a_missed_visit_whose_encounter_is_still_planned_is_missed(referral):
    await referral.booking("booked")
    await referral.visit("planned", appointment=[referral.clinic.ref("Appointment/a1")])
    await referral.booking("noshow")
    assert await referral.state() == ("in-progress", "5.1.2")


async def test_the_waiting_list_is_asked_again_until_there_is_a_place(referral):
    await referral.booking("waitlist")
    task = await referral.task()
    assert (task["status"], task["businessStatus"]["text"]) == ("on-hold", "On the waiting list")
    assert task["statusReason"]["coding"][0]["code"] == "waitlist"
    (recheck,) = await referral.world.find("Task", code=f"{COORDINATION}|recheck-waitlist")
    assert recheck["restriction"]["period"]["end"].startswith("2026-03-16")
    referral.world.clock.advance(timedelta(days=15))
    assert await referral.world.timers() >= 1, "nobody looked: it goes up"
    for status in ("in-progress", "completed"):
        await referral.world.edit("Task", recheck["id"], client="hub", status=status)
    await referral.world.react()
    assert await referral.left("recheck-waitlist") == ["completed", "ready"]
    await referral.booking("booked", start="2026-03-25T15:00:00Z")
    assert await referral.state() == ("in-progress", "5.1.1")
    assert await referral.left("recheck-waitlist") == ["cancelled", "completed"]


async def test_the_acts_of_a_front_desk_are_plain_appointments(referral):
    made = await referral.do(scheduling.schedule, **FIRST, description=["Cardiology"])
    assert (made.type, made.tree["status"], await referral.state()) == ("Appointment", "booked", ("in-progress", "5.1.1"))
    assert made.tree["basedOn"] == [{"reference": (await referral.task())["focus"]["reference"]}]
    assert made.tree["identifier"] == [referral.number]
    with pytest.raises(Conflict, match=r"move it with \$reschedule"):
        await referral.do(scheduling.schedule, **SECOND)
    referral.world.clock.advance(timedelta(days=4))
    missed = await referral.do(scheduling.no_show, reason=[{"text": "No transport"}])
    assert (missed.id, missed.tree["status"], await referral.state()) == (made.id, "noshow", ("in-progress", "5.1.2"))
    again = await referral.do(scheduling.reschedule, **SECOND)
    assert again.id != made.id, "what was missed stays as it was"
    moved = await referral.do(scheduling.reschedule, start=["2026-03-13T15:00:00Z"], end=["2026-03-13T16:00:00Z"])
    assert (moved.id, moved.tree["start"]) == (again.id, "2026-03-13T15:00:00Z")
    assert await referral.left("no-show-outreach") == ["cancelled"]
    waiting = await referral.do(scheduling.waitlist, reason=[{"coding": [{"system": SCT, "code": "185335007"}]}])
    assert (waiting.tree["status"], (await referral.task())["status"]) == ("waitlist", "on-hold")
    told = await referral.world.find("Provenance", target=f"Appointment/{made.id}")
    assert [one["agent"][0]["who"]["identifier"]["value"] for one in told] == ["desk", "desk"], "who did it is on record"
    place = await referral.do(scheduling.schedule, **SECOND)
    assert (place.id, place.tree["status"], await referral.state()) == (waiting.id, "booked", ("in-progress", "5.1.1"))
    states = sorted(one["status"] for one in await referral.world.find("Appointment"))
    assert states == ["booked", "cancelled", "noshow"]


async def test_what_makes_no_sense_is_refused_with_what_to_do(referral):
    with pytest.raises(Invalid, match="'end' must be after 'start'"):
        await referral.do(scheduling.schedule, start=FIRST["end"], end=FIRST["start"])
    with pytest.raises(Invalid, match="'location' is a Reference to a Location"):
        await referral.do(scheduling.schedule, **FIRST, location=[{"reference": "Patient/1"}])
    with pytest.raises(Conflict, match=r"make one with \$schedule"):
        await referral.do(scheduling.reschedule, **FIRST)
    with pytest.raises(Conflict, match="no appointment that the patient could have missed"):
        await referral.do(scheduling.no_show)
    await referral.report()
    with pytest.raises(Conflict, match="has ended as 'completed'"):
        await referral.do(scheduling.waitlist)
    assert await referral.world.find("Appointment") == []


@pytest.mark.parametrize(("status", "state", "asked"), [("waitlist", "on-hold", []), ("no-capacity", "accepted", ["ready"])])
async def test_a_service_that_has_no_room_says_so(world, status, state, asked):
    referral = Scheduled(world)
    await referral.patients()
    told = {"url": "capacityStatus", "valueCodeableConcept": {"coding": [{"system": SDOH, "code": status}]}}
    service = {"active": True, "providedBy": referral.clinic.ref("Organization/riverbend")}
    await referral.clinic.put("HealthcareService/h1", extension=[{"url": CAPACITY, "extension": [told]}], **service)
    await referral.order(performer=[referral.clinic.ref("HealthcareService/h1")])
    await referral.set(status="accepted")
    assert (await referral.task())["status"] == state
    assert await referral.left("service-full") == asked
    told["valueCodeableConcept"] = {"coding": [{"system": SDOH, "code": "capacity"}]}
    await referral.clinic.put("HealthcareService/h1", extension=[{"url": CAPACITY, "extension": [told]}], **service)
    await world.react()
    assert await referral.left("service-full") == ["cancelled"] * len(asked)
