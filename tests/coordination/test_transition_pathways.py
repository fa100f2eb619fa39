"""Where a patient goes decides what must happen; attempts count, humans are not overruled, and a transition says how complete it is."""

from datetime import timedelta

from fhircm.coordination.codes import own, value_set
from fhircm.coordination.transition.stays import dispositions
from fhircm.coordination.transition.wholes import called_off
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures

from .conftest import SCT

NUBC = "http://www.nubc.org/patient-discharge"
ICD10 = "http://hl7.org/fhir/sid/icd-10-cm"
HOME = {"contact", "follow-up-visit", "medication-reconciliation"}
SUMMARY = {"discharge-summary", "summary-acknowledged"}


async def leave(world, code="01", **members):
    await world.lakeside.patient()
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00")
    await world.react()
    return await left(world, code, **members)


async def left(world, code="01", end="2026-03-02T08:30:00-06:00", **members):
    leaving = {"dischargeDisposition": {"coding": [{"system": NUBC, "code": code}]}}
    id = await world.lakeside.stay(start="2026-02-27T09:00:00-06:00", end=end, home=None, hospitalization=leaving, **members)
    await world.react()
    return id


async def transition(world, whole="transition-of-care"):
    """The one that was not called off, and its steps by code."""
    found = [one for one in await world.find("Task") if own(one["code"]) == whole and not called_off(one)]
    if not found:
        return None, {}
    (parent,) = found
    steps = [one for one in await world.find("Task", part_of=f"Task/{parent['id']}") if not called_off(one)]
    return parent, {own(one["code"]): one for one in steps}


def complete(whole):
    """How complete a transition says that it is: done, of how many, and what is missing."""
    (parts,) = [one["extension"] for one in whole["extension"] if one["url"].endswith("/completeness")]
    done, of, *missing = parts
    return done["valueInteger"], of["valueInteger"], {own(one["valueCodeableConcept"]) for one in missing}


async def do(world, task, *states):
    for state in states or ("in-progress", "completed"):
        await world.edit("Task", task["id"], status=state)
    await world.react()


BY_DISPOSITION = [
    ("01", HOME),
    ("07", HOME),  # against advice: at home, and in more need than others
    ("06", HOME | SUMMARY | {"home-health-start"}),
    ("03", SUMMARY | {"arrival", "medication-reconciliation", "contact"}),
    ("62", SUMMARY | {"arrival", "medication-reconciliation", "contact"}),
    ("02", SUMMARY | {"arrival"}),
    ("50", SUMMARY | {"hospice-start", "medication-reconciliation", "contact"}),
    ("20", set()),  # died
    ("70", set()),  # nobody knows what that is
]


async def test_the_disposition_chooses_the_pathway_and_a_correction_another(world):
    await leave(world)
    for code, steps in BY_DISPOSITION:
        await left(world, code)
        whole, found = await transition(world)
        assert found.keys() == steps, code
        assert (whole is not None) == bool(steps)
        if whole:
            assert complete(whole) == (0, len(steps), steps)


def test_home_is_what_it_was_before():
    """Every code of a discharge home is in exactly one of the dispositions that have the pathway home."""
    at_home = {code for code, one in dispositions().by_code.items() if one.name in ("home", "home-health", "ama")}
    assert value_set("home-discharge") <= at_home


async def test_what_was_ordered_adds_its_step_also_afterwards(world):
    stay = await leave(world)
    about = {"subject": world.lakeside.ref("Patient/p1"), "encounter": {"reference": f"Encounter/{stay}"}, "intent": "order"}
    await world.lakeside.put("DeviceRequest/w", status="active", codeCodeableConcept={"text": "Walker"}, **about)
    transport = {"coding": [{"system": SCT, "code": "715957006"}]}
    await world.lakeside.put("ServiceRequest/t", status="active", code=transport, **about)
    await world.react()
    whole, steps = await transition(world)
    assert steps.keys() == HOME | {"equipment", "transport"}
    assert complete(whole)[1] == 5
    await world.lakeside.put("ServiceRequest/t", status="revoked", code=transport, **about)
    await world.react()
    whole, steps = await transition(world)
    assert steps.keys() == HOME | {"equipment"}
    assert complete(whole)[1] == 4


async def test_a_transition_says_how_complete_it_is(world):
    await leave(world)
    _, steps = await transition(world)
    await do(world, steps["contact"])
    assert complete((await transition(world))[0]) == (1, 3, HOME - {"contact"})
    await do(world, steps["follow-up-visit"], "cancelled")
    assert complete((await transition(world))[0]) == (1, 2, {"medication-reconciliation"})
    await do(world, steps["medication-reconciliation"])
    whole, _ = await transition(world)
    assert (whole["status"], complete(whole)) == ("completed", (2, 2, set()))


# --- attempts ----------------------------------------------------------------------------------------------------------------


async def attempt(http, task, **said):  # noqa: F811
    kinds = {"reached": "valueBoolean", "sent": "valueDateTime", "medium": "valueCode", "note": "valueString"}
    parameters = [{"name": name, kinds[name]: value} for name, value in said.items()]
    answer = await http.post(
        f"/fhir/Task/{task['id']}/$record-contact", json={"resourceType": "Parameters", "parameter": parameters}
    )
    assert answer.status_code == 200, answer.text


async def contact(world):
    await world.react()
    return (await transition(world))[1]["contact"]


async def test_two_attempts_in_time_that_reach_nobody_are_enough(world, http):  # noqa: F811
    await leave(world)
    step = await contact(world)
    for _ in range(2):
        await attempt(http, step, reached=False, sent="2026-03-02T10:00:00-06:00", medium="PHONE", note="No answer")
    assert (await contact(world))["status"] == "ready", "the same time is the same attempt"
    await attempt(http, step, reached=False, sent="2026-03-05T10:00:00-06:00")
    assert (await contact(world))["status"] == "ready", "that was too late"
    await attempt(http, step, reached=False, sent="2026-03-04T10:00:00-06:00")
    step = await contact(world)
    assert step["status"] == "completed"
    assert step["statusReason"]["text"] == "2 attempts in time reached nobody, which is enough"
    assert len(step["output"]) == 3
    assert await world.again() == []


async def test_who_was_reached_is_reached_by_operation_or_by_a_plain_create(world, http):  # noqa: F811
    await leave(world)
    step = await contact(world)
    spoken = {"resourceType": "Communication", "status": "completed", "sent": "2026-03-02T08:45:00-06:00"}
    about = {"basedOn": [{"reference": f"Task/{step['id']}"}], "subject": step["for"]}
    assert (await http.post("/fhir/Communication", json=spoken | about)).status_code == 201
    step = await contact(world)
    assert (step["status"], step["executionPeriod"]["start"]) == ("completed", "2026-03-02T14:45:00Z")


# --- humans and corrections --------------------------------------------------------------------------------------------------


async def test_what_a_human_did_belongs_to_the_transition_that_comes_again(world):
    """A readmission that never was: the transition comes again, with what was done, and without what a human called off."""
    await leave(world)
    _, steps = await transition(world)
    await do(world, steps["contact"])
    await do(world, steps["follow-up-visit"], "cancelled")
    await world.lakeside.stay("e2", start="2026-03-02T12:00:00-06:00")
    await world.react()
    assert (await transition(world))[0] is None
    await world.lakeside.stay("e2", start="2026-03-02T12:00:00-06:00", status="entered-in-error")
    await world.react()
    whole, steps = await transition(world)
    assert whole["status"] == "in-progress"
    assert {code: one["status"] for code, one in steps.items()} == {
        "contact": "completed",
        "follow-up-visit": "cancelled",
        "medication-reconciliation": "ready",
    }
    assert complete(whole) == (1, 2, {"medication-reconciliation"})


async def test_a_transition_that_a_human_ended_does_not_come_again_by_a_correction(world):
    await leave(world)
    _, steps = await transition(world)
    for step in steps.values():
        await do(world, step, "cancelled")
    await left(world, end="2026-03-02T08:50:00-06:00")
    assert (await transition(world))[0]["status"] == "cancelled"
    assert len(await world.find("Task")) == 4


async def test_a_discharge_that_was_none_and_is_one_days_later_begins_anew_though_all_was_done(world):
    await leave(world)
    for step in (await transition(world))[1].values():
        await do(world, step)
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00")
    world.clock.advance(timedelta(days=4))
    await left(world, end="2026-03-06T08:30:00-06:00")
    wholes = [one for one in await world.find("Task") if own(one["code"]) == "transition-of-care"]
    assert sorted(one["status"] for one in wholes) == ["completed", "in-progress"]


async def test_a_corrected_date_moves_what_is_due_but_not_what_a_human_agreed(world):
    await leave(world)
    _, steps = await transition(world)
    period = {"start": "2026-03-02T08:30:00-06:00", "end": "2026-03-20T17:00:00-05:00"}
    await world.edit("Task", steps["follow-up-visit"]["id"], restriction={"period": period})
    await left(world, end="2026-02-28T08:30:00-06:00")
    _, steps = await transition(world)
    assert steps["contact"]["restriction"]["period"]["end"] == "2026-03-03T23:59:59-06:00"
    assert steps["follow-up-visit"]["restriction"]["period"]["end"] == "2026-03-20T17:00:00-05:00"


async def test_who_was_sent_to_a_facility_arrives_there(world):
    await leave(world, "03")
    other = await world.riverbend.patient("p1")
    await world.link(world.lakeside.id("Patient/p1"), other)
    stay = await world.riverbend.stay("snf", start="2026-03-02T12:00:00-06:00", cls="NONAC")
    await world.react()
    whole, steps = await transition(world)
    assert whole["status"] == "in-progress", "that is no readmission"
    assert steps["arrival"]["status"] == "completed"
    assert steps["arrival"]["output"][0]["valueReference"]["reference"] == f"Encounter/{stay}"
    await world.riverbend.stay("snf", start="2026-03-02T12:00:00-06:00", cls="NONAC", status="entered-in-error")
    await world.react()
    assert (await transition(world))[1]["arrival"]["status"] == "ready"


async def test_a_stay_whose_record_is_gone_or_was_none_calls_its_transition_off(world):
    await leave(world)
    await world.lakeside.stay(start="2026-02-27T09:00:00-06:00", end="2026-03-02T08:30:00-06:00", cls="AMB")
    await world.react()
    assert (await transition(world))[0] is None


async def test_an_admission_is_handed_over_while_it_is_fresh(world):
    await world.lakeside.patient()
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00")
    await world.react()
    _, steps = await transition(world, "hospital-admission")
    assert steps["admission-handover"]["restriction"]["period"]["end"] == "2026-03-03T23:59:59-06:00"
    world.clock.advance(timedelta(hours=3))
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", end="2026-03-02T11:00:00-06:00")
    await world.react()
    assert (await transition(world, "hospital-admission"))[0] is None
    assert (await transition(world))[0] is not None


async def test_a_transfer_within_the_house_moves_the_admission_along(world):
    await world.lakeside.patient()
    ward, icu = ({"location": {"display": name}} for name in ("Ward 3 West", "Intensive care"))
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", location=[ward])
    await world.react()
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", location=[{**ward, "status": "completed"}, icu])
    await world.react()
    whole, _ = await transition(world, "hospital-admission")
    assert [one["location"]["display"] for one in await world.versions("Task", whole["id"])] == ["Ward 3 West", "Intensive care"]


# --- emergency visits --------------------------------------------------------------------------------------------------------


async def test_an_emergency_visit_is_followed_up_when_the_measures_ask_for_it(world):
    await world.lakeside.patient()

    async def visited(reason=None, *conditions):
        for code in conditions:
            said = {"code": {"coding": [{"system": ICD10, "code": code}]}, "subject": world.lakeside.ref("Patient/p1")}
            await world.lakeside.put(f"Condition/{code}", **said)
        why = {"reasonCode": [{"coding": [{"system": ICD10, "code": reason}]}]} if reason else {}
        visit = {"start": "2026-03-02T02:00:00-06:00", "end": "2026-03-02T05:00:00-06:00", "cls": "EMER", **why}
        await world.lakeside.stay("ed", **visit)
        await world.react()
        return await transition(world, "emergency-follow-up")

    assert (await visited("S93.4"))[0] is None
    assert (await visited("F10.20"))[0] is not None
    assert (await visited("S93.4"))[0] is None, "it was for something else"
    assert (await visited("R45.851"))[0] is not None
    assert (await visited(None, "I50.9", "I50.2"))[0] is None, "one high-risk chronic condition, twice"
    _, steps = await visited("S93.4", "J44.1")
    assert steps["follow-up-visit"]["restriction"]["period"]["end"] == "2026-03-09T23:59:59-05:00"
    await world.lakeside.stay("e", start="2026-03-02T05:30:00-06:00")
    await world.react()
    assert (await transition(world, "emergency-follow-up"))[0] is None, "the patient was admitted"
