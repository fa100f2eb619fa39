"""Those who care for a patient elsewhere are told what happens in hospital: once, in time, with what the rule asks for, and with consent."""

from datetime import timedelta

from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put

from .conftest import SCT

DOCTOR = [{"coding": [{"system": SCT, "code": "446050000"}]}]
ATTENDING = {
    "participant": [
        {
            "type": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "ATND"}]}],
            "individual": {"display": "Dr Jane Doe"},
        }
    ]
}


async def known_at_the_clinic(world):
    """The patient has a doctor at Riverbend, and one at the hospital itself."""
    await world.lakeside.patient(birthDate="1941-05-06")
    other = await world.riverbend.patient("p1")
    for place in (world.lakeside, world.riverbend):
        await place.put("Practitioner/d", name=[{"text": f"Doctor of {place.name}"}])
        member = {"role": DOCTOR, "member": place.ref("Practitioner/d")}
        await place.put("CareTeam/t", status="active", subject=place.ref("Patient/p1"), participant=[member])
    await world.link(world.lakeside.id("Patient/p1"), other)


async def told(world):
    await world.react()
    return sorted(await world.find("Communication"), key=lambda one: (one["sent"], len(one.get("inResponseTo", []))))


async def test_the_doctor_elsewhere_is_told_with_what_the_rule_asks_for(world):
    await known_at_the_clinic(world)
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", status="planned")
    code = {"coding": [{"system": SCT, "code": "84114007"}], "text": "Heart failure"}
    await world.lakeside.put(
        "Condition/c", code=code, subject=world.lakeside.ref("Patient/p1"), encounter=world.lakeside.ref("Encounter/e1")
    )
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", **ATTENDING)
    (notice,) = await told(world)
    assert [one["display"] for one in notice["recipient"]] == ["Doctor of riverbend"]
    assert notice["sender"]["display"] == "Lakeside"
    assert notice["payload"][0]["contentString"] == (
        "Ada Okafor, born 1941-05-06, was admitted to Lakeside on 2026-03-02 at 07:00. "
        "Treating practitioner: Dr Jane Doe. Diagnosis: Heart failure."
    )
    assert notice["topic"]["text"] == "Admitted to hospital"
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", end="2026-03-02T08:30:00-06:00", **ATTENDING)
    _, notice = await told(world)
    assert "was discharged from Lakeside on 2026-03-02 at 08:30" in notice["payload"][0]["contentString"]
    assert notice["payload"][0]["contentString"].endswith("Goes to: Home.")
    assert await world.again() == []
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", end="2026-03-02T08:35:00-06:00", **ATTENDING)
    assert len(await told(world)) == 2, "five minutes are no news"


async def test_who_was_told_is_told_what_was_corrected_and_cancelled(world):
    await known_at_the_clinic(world)
    stay = {"start": "2026-03-02T05:00:00-06:00"}
    await world.lakeside.stay(**stay)
    await world.lakeside.stay(**stay, end="2026-03-02T08:30:00-06:00")
    await told(world)
    world.clock.advance(timedelta(minutes=5))
    await world.lakeside.stay(**stay, end="2026-03-02T08:30:00-06:00", home=False)
    *_, corrected = await told(world)
    assert corrected["payload"][0]["contentString"].startswith("This corrects what was told before.")
    assert corrected["topic"]["text"] == "Transferred"
    world.clock.advance(timedelta(minutes=5))
    await world.lakeside.stay(**stay)
    *_, cancelled = await told(world)
    assert cancelled["topic"]["text"] == "Cancelled: Transferred"
    assert cancelled["inResponseTo"] == [{"reference": f"Communication/{corrected['id']}"}]
    world.clock.advance(timedelta(minutes=5))
    await world.lakeside.stay(**stay, status="cancelled")
    *_, cancelled = await told(world)
    assert cancelled["topic"]["text"] == "Cancelled: Admitted to hospital"
    assert cancelled["payload"][0]["contentString"] == (
        "Please disregard what was told before: it was a mistake. It was: "
        "Ada Okafor, born 1941-05-06, was admitted to Lakeside on 2026-03-02 at 05:00."
    )
    assert len(await told(world)) == 5
    assert await world.again() == []


async def test_of_whom_little_is_known_is_told_all_the_same(world):
    await world.riverbend.put("Practitioner/d", name=[{"text": "Doctor of riverbend"}])
    doctor = world.riverbend.ref("Practitioner/d")
    stay = {
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"reference": "Patient/nameless"},
        "period": {"start": "2026-03-02T07:00:00-06:00"},
        **ATTENDING,
    }
    trees = [
        {"resourceType": "Patient", "id": "nameless", "generalPractitioner": [doctor]},
        {"resourceType": "Encounter", "id": "somewhere", **stay},
    ]
    await world.store.transact([Put(check_tree(tree)) for tree in trees], origin="client:clinic-app")
    (notice,) = await told(world)
    assert notice["payload"][0]["contentString"] == (
        "A patient whose name is not known, born on a day that is not known, was admitted to a hospital on 2026-03-02 at 07:00."
        " Treating practitioner: Dr Jane Doe."
    )


async def test_what_tells_nobody(world):
    await known_at_the_clinic(world)
    await world.lakeside.stay("history", start="2026-02-20", end="2026-02-27")
    await world.lakeside.stay("days-ago", start="2026-02-25T07:00:00-06:00")
    await world.lakeside.stay("to-come", start="2026-03-02T07:00:00-06:00", status="planned")
    await world.lakeside.stay("visit", start="2026-03-02T07:00:00-06:00", cls="AMB")
    assert await told(world) == []


async def test_an_emergency_visit_that_becomes_an_admission(world):
    await known_at_the_clinic(world)
    await world.lakeside.stay("ed", start="2026-03-02T05:00:00-06:00", cls="EMER")
    assert [one["topic"]["text"] for one in await told(world)] == ["In the emergency department"]
    await world.lakeside.stay("ed", start="2026-03-02T05:00:00-06:00", cls="IMP")
    assert {one["topic"]["text"] for one in await told(world)} == {"In the emergency department", "Admitted to hospital"}


def denied(world, **provision):
    return world.lakeside.put(
        "Consent/c",
        status="active",
        scope={"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]},
        category=[{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        patient=world.lakeside.ref("Patient/p1"),
        dateTime="2026-01-01",
        policyRule={"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        provision={"type": "permit", "provision": [{"type": "deny", **provision}]},
    )


async def test_nobody_is_told_whom_the_patient_excludes(world):
    await known_at_the_clinic(world)
    role = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType", "code": "IRCP"}]}
    await denied(world, actor=[{"role": role, "reference": world.riverbend.ref("Practitioner/d")}])
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00")
    assert await told(world) == []


async def test_a_diagnosis_that_is_kept_back_is_not_told(world):
    await known_at_the_clinic(world)
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00", status="planned")
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    await world.lakeside.put(
        "Condition/c",
        meta={"security": [label], "source": f"{world.lakeside.base}/Condition/c"},
        code={"text": "Alcohol dependence"},
        subject=world.lakeside.ref("Patient/p1"),
        encounter=world.lakeside.ref("Encounter/e1"),
    )
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00")
    (notice,) = await told(world)
    assert "Alcohol" not in str(notice)
    assert len(notice["about"]) == 1


async def test_where_the_patient_goes_is_told_too(world):
    await known_at_the_clinic(world)
    await world.lakeside.put("Organization/snf", name="Sunny Home")
    await world.lakeside.stay(start="2026-03-02T05:00:00-06:00")
    code = {"coding": [{"system": "http://www.nubc.org/patient-discharge", "code": "03"}]}
    leaving = {"dischargeDisposition": code, "destination": world.lakeside.ref("Organization/snf")}
    await world.lakeside.stay(
        start="2026-03-02T05:00:00-06:00", end="2026-03-02T08:30:00-06:00", home=None, hospitalization=leaving
    )
    names = {one["recipient"][0]["display"] for one in await told(world) if one["topic"]["text"] == "Discharged"}
    assert names == {"Doctor of riverbend", "Sunny Home"}


async def test_a_stay_that_comes_before_those_who_care_for_the_patient_is_told_when_they_are_known(world):
    """Neither the order in which records arrive, nor when two of them are linked, decides who is told."""
    await world.lakeside.patient(birthDate="1941-05-06")
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00")
    assert await told(world) == []
    await known_at_the_clinic(world)
    (notice,) = await told(world)
    assert [one["display"] for one in notice["recipient"]] == ["Doctor of riverbend"]
    assert await world.again() == []


async def test_who_comes_to_care_for_the_patient_later_is_not_told_of_what_is_no_news(world):
    await world.lakeside.patient(birthDate="1941-05-06")
    await world.lakeside.stay(start="2026-03-02T07:00:00-06:00")
    assert await told(world) == []
    world.clock.advance(timedelta(hours=25))
    await known_at_the_clinic(world)
    assert await told(world) == []
    assert await world.again() == []
