"""A discharge home sets a transition of care going, once, for the right people, by the right day; and it ends."""

import json
from datetime import timedelta
from itertools import groupby

import pytest

from fhircm.coordination.transition import follow as transition
from fhircm.fhir.outcome import VersionConflict
from fhircm.fhir.validation import check
from fhircm.store.operations import Put

from .conftest import SCT, at

CODES = "https://fhircm.example/CodeSystem/coordination"
COORDINATOR = [{"coding": [{"system": SCT, "code": "768820003"}]}]
PHARMACIST = [{"coding": [{"system": SCT, "code": "46255001"}]}]


async def admit(world, **members):
    await world.lakeside.patient(**members)
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00")
    await world.react()


async def discharge(world, end="2026-03-02T08:30:00-06:00", **members):
    id = await world.lakeside.stay(start="2026-02-27T09:00:00-06:00", end=end, **members)
    await world.react()
    return id


async def tasks(world):
    """The parent, and its steps by code."""
    found = {task["code"]["coding"][0]["code"]: task for task in await world.find("Task")}
    return found.pop("transition-of-care", None), found


async def test_a_discharge_home_opens_the_three_steps(world):
    await admit(world)
    assert await world.find("Task") == []
    encounter = await discharge(world)
    whole, steps = await tasks(world)
    assert whole["status"] == "in-progress"
    assert whole["focus"]["reference"] == whole["encounter"]["reference"] == f"Encounter/{encounter}"
    assert {code: task["restriction"]["period"]["end"] for code, task in steps.items()} == {
        "contact": "2026-03-04T23:59:59-06:00",
        "follow-up-visit": "2026-03-16T23:59:59-05:00",  # not a high risk: 14 days
        "medication-reconciliation": "2026-03-16T23:59:59-05:00",
    }
    assert all(task["partOf"] == [{"reference": f"Task/{whole['id']}"}] and task["status"] == "ready" for task in steps.values())
    assert all(task["owner"]["display"] == "Lakeside" for task in steps.values()), (
        "nobody has the role: the house that discharged"
    )
    assert steps["contact"]["performerType"][0]["text"] == "Care coordinator"
    assert steps["contact"]["code"]["text"] == "Contact the patient"
    (risk,) = await world.find("RiskAssessment")
    assert risk["prediction"][0]["qualitativeRisk"]["text"] == "low"
    assert risk["prediction"][0]["extension"][0]["valueInteger"] == 3


async def test_a_high_risk_is_seen_within_seven_days(world):
    await world.lakeside.patient()
    condition = {"code": {"coding": [{"system": SCT, "code": "84114007"}]}, "subject": world.lakeside.ref("Patient/p1")}
    await world.lakeside.put("Condition/c1", **condition)
    emergency = {
        "hospitalization": {
            "admitSource": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/admit-source", "code": "emd"}]}
        }
    }
    for number in range(3):
        await world.lakeside.stay(
            f"ed{number}", start=f"2026-01-0{number + 1}T09:00:00-06:00", end=f"2026-01-0{number + 1}T12:00:00-06:00", cls="EMER"
        )
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00", **emergency)
    await world.react()
    emergency["hospitalization"]["dischargeDisposition"] = {
        "coding": [{"system": "http://www.nubc.org/patient-discharge", "code": "06"}]
    }
    await discharge(world, home=None, **emergency)
    _, steps = await tasks(world)
    assert steps["follow-up-visit"]["restriction"]["period"]["end"] == "2026-03-09T23:59:59-05:00"
    assert steps["medication-reconciliation"]["restriction"]["period"]["end"] == "2026-03-09T23:59:59-05:00"
    (risk,) = await world.find("RiskAssessment")
    assert (
        "L 3 (3 days), A 3 (admission emergent), C 2 (comorbidity 2: congestive heart failure), E 3"
        in risk["prediction"][0]["rationale"]
    )
    assert len(risk["basis"]) == 5


async def test_each_step_goes_to_who_has_the_role(world):
    await admit(world)
    for id, name in (("n1", "Nora Nurse"), ("n2", "Gone Nurse"), ("ph", "Phil Pharmacist")):
        await world.lakeside.put(f"Practitioner/{id}", name=[{"text": name}])
    participants = [
        {"role": COORDINATOR, "member": world.lakeside.ref("Practitioner/n2"), "period": {"end": "2026-01-01"}},
        {"role": COORDINATOR, "member": world.lakeside.ref("Practitioner/n1")},
    ]
    await world.lakeside.put("CareTeam/t1", status="active", subject=world.lakeside.ref("Patient/p1"), participant=participants)
    role = {"practitioner": world.lakeside.ref("Practitioner/ph"), "organization": world.lakeside.ref("Organization/lakeside")}
    await world.lakeside.put("PractitionerRole/r1", **role, code=PHARMACIST, active=True)
    await discharge(world)
    whole, steps = await tasks(world)
    assert whole["owner"]["display"] == steps["contact"]["owner"]["display"] == "Nora Nurse"
    assert steps["medication-reconciliation"]["owner"]["reference"].startswith("PractitionerRole/")
    assert steps["medication-reconciliation"]["owner"]["display"].startswith("Phil Pharmacist")


async def test_the_care_team_of_the_other_record_counts_too(world):
    await admit(world)
    other = await world.riverbend.patient("r1")
    await world.riverbend.put("Practitioner/n1", name=[{"family": "Nurse", "given": ["Nora"]}])
    participants = [{"role": COORDINATOR, "member": world.riverbend.ref("Practitioner/n1")}]
    await world.riverbend.put("CareTeam/t1", status="active", subject=world.riverbend.ref("Patient/r1"), participant=participants)
    await world.link(world.lakeside.id("Patient/p1"), other)
    await discharge(world)
    _, steps = await tasks(world)
    assert steps["contact"]["owner"]["display"] == "Nora Nurse"


@pytest.mark.parametrize(
    "members",
    [
        {"home": None},  # nobody knows where to
        {"cls": "AMB"},
        {"status": "cancelled"},
        {"status": "entered-in-error"},
    ],
)
async def test_what_is_no_discharge_home_opens_nothing(world, members):
    await admit(world)
    await discharge(world, **members)
    assert await world.find("Task") == []


async def test_of_the_history_in_a_first_pull_only_what_can_still_be_met_is_opened(world):
    """The clock stands at Monday, 2026-03-02, 09:00 in Chicago."""
    await world.lakeside.patient()
    await world.lakeside.stay("years-ago", start="2019-05-01", end="2019-05-09")
    await world.lakeside.stay("long-ago", start="2026-01-10", end="2026-01-20")
    await world.lakeside.stay("visit-still-due", start="2026-02-16", end="2026-02-19T11:00:00-06:00")
    await world.react()
    whole, steps = await tasks(world)
    assert whole["focus"] == world.lakeside.ref("Encounter/visit-still-due")
    assert steps.keys() == {"follow-up-visit", "medication-reconciliation"}, "the call was due on the 23rd"


async def test_a_stay_that_the_hub_watched_opens_all_steps_even_when_seen_late(world):
    await admit(world)
    world.clock.advance(timedelta(days=6))
    await discharge(world)
    assert (await tasks(world))[1].keys() == {"contact", "follow-up-visit", "medication-reconciliation"}


async def test_a_discharge_beyond_the_window_opens_nothing_though_watched(world):
    await admit(world)
    world.clock.advance(timedelta(days=31))
    await discharge(world)
    assert await world.find("Task") == []


@pytest.mark.parametrize("end", ["9999-12-31T23:59:59-06:00", "9999-12-31", "2026-03-20T08:00:00-05:00", "2026-03"])
async def test_an_end_that_is_no_end_opens_nothing(world, end):
    await admit(world)
    await discharge(world, end=end)
    assert await world.find("Task") == []


async def test_a_replay_and_a_second_worker_make_nothing_twice(world):
    await admit(world)
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00", end="2026-03-02T08:30:00-06:00")
    (change,) = [one for one in (await world.store.changes((0, 0))).changes if one.type == "Encounter" and one.version == 2]
    first, second = [await transition.follow(world.context, change) for _ in range(2)]
    assert {one.resource.id for one in first} == {one.resource.id for one in second}
    await world.store.transact(first, origin="hub")
    with pytest.raises(VersionConflict):
        await world.store.transact(second, origin="hub")
    await world.react()
    before = await world.counts()
    world.clock.advance(timedelta(days=2))
    assert await world.again() == []
    assert await world.counts() == before
    assert before["RiskAssessment"] == 1


async def test_a_later_edit_of_the_stay_opens_nothing_new(world):
    await admit(world)
    await discharge(world)
    before = await world.find("Task")
    await discharge(world, length={"value": 3, "unit": "d", "system": "http://unitsofmeasure.org", "code": "d"})
    assert await world.find("Task") == before
    await discharge(world, end="2026-03-02T08:45:00-06:00")
    after = await world.find("Task")
    assert [(one["id"], one["restriction"]["period"]["end"]) for one in after] == [
        (one["id"], one["restriction"]["period"]["end"]) for one in before
    ]


async def close(world, task, status):
    for step in ["in-progress", "completed"] if status == "completed" else [status]:
        await world.edit("Task", task["id"], status=step)
    await world.react()


async def test_when_every_step_is_done_the_transition_is_completed(world):
    await admit(world)
    await discharge(world)
    whole, steps = await tasks(world)
    await close(world, steps["contact"], "completed")
    await close(world, steps["follow-up-visit"], "completed")
    assert (await tasks(world))[0]["status"] == "in-progress"
    world.clock.advance(timedelta(days=3))
    await close(world, steps["medication-reconciliation"], "cancelled")
    whole, _ = await tasks(world)
    assert whole["status"] == "completed"
    assert whole["executionPeriod"]["end"] == "2026-03-05T15:00:00Z"


async def test_a_clock_that_was_set_back_keeps_no_transition_open(world):
    await admit(world)
    await discharge(world)
    whole, steps = await tasks(world)
    world.clock.advance(timedelta(minutes=-10))
    for step in steps.values():
        await close(world, step, "completed")
    whole, _ = await tasks(world)
    assert whole["status"] == "completed"
    assert whole["executionPeriod"] == {"start": whole["authoredOn"], "end": whole["authoredOn"]}


async def test_a_transition_of_which_nothing_came_is_cancelled(world):
    await admit(world)
    await discharge(world)
    for step in (await tasks(world))[1].values():
        await close(world, step, "cancelled")
    assert (await tasks(world))[0]["status"] == "cancelled"


async def test_a_transition_on_hold_is_taken_up_and_completed(world):
    await admit(world)
    await discharge(world)
    whole, steps = await tasks(world)
    await close(world, whole, "on-hold")
    for step in steps.values():
        await close(world, step, "completed")
    states = [one["status"] for one in await world.versions("Task", whole["id"])]
    assert [state for state, _ in groupby(states)] == ["in-progress", "on-hold", "in-progress", "completed"]


async def test_a_readmission_calls_the_transition_off_but_not_what_is_done(world):
    await admit(world)
    await discharge(world)
    _, steps = await tasks(world)
    await close(world, steps["contact"], "completed")
    await world.lakeside.stay("e2", start="2026-03-03T04:00:00-06:00")
    await world.react()
    whole, steps = await tasks(world)
    assert (whole["status"], steps["contact"]["status"], steps["follow-up-visit"]["status"]) == (
        "cancelled",
        "completed",
        "cancelled",
    )
    assert whole["statusReason"]["text"] == "The patient is in hospital again"


async def test_a_readmission_at_the_other_house_counts_when_the_records_are_linked(world):
    await admit(world)
    await discharge(world)
    other = await world.riverbend.patient("p1")
    await world.riverbend.stay(start="2026-03-03T04:00:00-06:00")
    await world.react()
    assert (await tasks(world))[0]["status"] == "in-progress", "nobody knows that it is the same human"
    await world.link(world.lakeside.id("Patient/p1"), other)
    await world.riverbend.stay(start="2026-03-03T04:00:00-06:00", language="en")
    await world.react()
    assert (await tasks(world))[0]["status"] == "cancelled"


async def test_the_second_discharge_after_a_readmission_has_a_transition_of_its_own(world):
    await admit(world)
    await discharge(world)
    await world.lakeside.stay("e2", start="2026-03-03T04:00:00-06:00")
    await world.react()
    world.clock.advance(timedelta(days=3))
    await world.lakeside.stay("e2", start="2026-03-03T04:00:00-06:00", end="2026-03-05T08:00:00-06:00")
    await world.react()
    wholes = [task for task in await world.find("Task") if task["code"]["coding"][0]["code"] == "transition-of-care"]
    assert sorted(task["status"] for task in wholes) == ["cancelled", "in-progress"]


async def test_a_death_calls_the_transition_off(world):
    await admit(world)
    await discharge(world)
    await world.lakeside.patient(deceasedDateTime="2026-03-03T10:00:00-06:00")
    await world.react()
    whole, steps = await tasks(world)
    assert {task["status"] for task in (whole, *steps.values())} == {"cancelled"}


async def test_nobody_is_called_who_is_dead_or_in_hospital_again_when_the_discharge_is_seen(world):
    await world.lakeside.patient(deceasedBoolean=True)
    await discharge(world)
    assert await world.find("Task") == []
    await world.lakeside.stay("e2", start="2026-03-02T12:00:00-06:00")
    await world.lakeside.patient()
    await world.react()
    await discharge(world, language="en")
    whole, steps = await tasks(world)
    assert whole is None
    assert steps.keys() == {"hospital-admission", "admission-handover"}


async def test_a_discharge_that_is_taken_back_and_comes_again(world):
    await admit(world)
    await discharge(world)
    await admit(world)
    whole, _ = await tasks(world)
    assert whole["statusReason"]["text"] == "The discharge was taken back or led elsewhere"
    world.clock.advance(timedelta(days=1))
    await discharge(world, end="2026-03-03T08:30:00-06:00")
    wholes = [task for task in await world.find("Task") if task["code"]["coding"][0]["code"] == "transition-of-care"]
    assert sorted(task["status"] for task in wholes) == ["cancelled", "in-progress"]


async def test_what_is_written_names_its_profile_and_its_pathway(world):
    await admit(world)
    await discharge(world)
    for task in await world.find("Task"):
        assert task["meta"]["profile"] == ["https://fhircm.example/StructureDefinition/coordination-task"]
        assert task["instantiatesCanonical"] == "https://fhircm.example/PlanDefinition/transition-of-care|1.0.0"
        assert at(task["restriction"]["period"]["start"]) == at("2026-03-02T08:30:00-06:00")


async def test_a_discharging_house_outside_the_neighbourhood_uses_the_hubs_calendar(world):
    tree = {"resourceType": "Patient", "id": "x"}
    stay = {
        "resourceType": "Encounter",
        "id": "x",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"reference": "Patient/x"},
        "period": {"start": "2026-02-27", "end": "2026-03-02"},
        "hospitalization": {
            "dischargeDisposition": {
                "coding": [{"system": "http://terminology.hl7.org/CodeSystem/discharge-disposition", "code": "home"}]
            }
        },
    }
    await world.store.transact([Put(check(json.dumps(one).encode())) for one in (tree, stay)], origin="client:x")
    await world.react()
    _, steps = await tasks(world)
    assert steps["contact"]["owner"]["display"] == "Lakeside care coordination"
    assert steps["contact"]["restriction"]["period"]["end"] == "2026-03-04T23:59:59-06:00"
