"""One plan out of what two partners say: what is recognised, who is right, what is asked, and what happens when people part."""

import json
from datetime import timedelta

import pytest

from fhircm.coordination.longitudinal import follow
from fhircm.coordination.longitudinal.plan import CONFLICT, PATIENT, SOURCE
from fhircm.fhir.care_relationship import relationships
from fhircm.fhir.validation import check
from fhircm.reactions import REACTIONS
from fhircm.store.operations import FinishTimer, MoveCursor, Put, SetState, SetTimer

SCT, ICD, NPI = "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10-cm", "http://hl7.org/fhir/sid/us-npi"
CLINICAL = "http://terminology.hl7.org/CodeSystem/condition-clinical"
TYPES = frozenset(REACTIONS["longitudinal"][0].split())


def coded(code, text=None, system=SCT):
    return {"coding": [{"system": system, "code": code}], **({"text": text} if text else {})}


def url_of(extensions, url):
    return [one for one in extensions if one["url"] == url]


class Told:
    """A clinic and a hospital that both know Ada."""

    def __init__(self, world):
        self.world, self.store, self.context = world, world.store, world.context
        self.a, self.b = world.lakeside, world.riverbend

    async def condition(self, place, id="c1", code="44054006", status="active", **more):
        members = {
            "clinicalStatus": coded(status, system=CLINICAL),
            "code": coded(code),
            "subject": place.ref("Patient/p1"),
            **more,
        }
        return f"Condition/{await place.put(f'Condition/{id}', **members)}"

    async def goal(self, place, id="g1", code="289169006", status="active", **more):
        members = {
            "lifecycleStatus": status,
            "description": coded(code, "Weight loss"),
            "subject": place.ref("Patient/p1"),
            **more,
        }
        return f"Goal/{await place.put(f'Goal/{id}', **members)}"

    async def plan(self, place, id="cp1", **more):
        members = {"status": "active", "intent": "plan", "subject": place.ref("Patient/p1"), **more}
        return f"CarePlan/{await place.put(f'CarePlan/{id}', **members)}"

    async def team(self, place, id="ct1", *participants):
        members = {"status": "active", "subject": place.ref("Patient/p1"), "participant": list(participants)}
        return f"CareTeam/{await place.put(f'CareTeam/{id}', **members)}"

    async def link(self):
        self.pa, self.pb = await self.a.patient(), await self.b.patient()
        await self.world.link(self.pa, self.pb)

    async def remake(self, patient=None):
        """Make the plan anew; returns how many resources that wrote."""
        operations = await follow.made_anew(self.context, patient or self.pa)
        await self.store.transact(operations, origin="hub")
        return len(operations)

    async def care_plan(self, patient=None):
        found = await self.world.find("CarePlan", patient=f"Patient/{patient or self.pa}", category="longitudinal")
        return found[0] if found else None

    async def current(self):
        return await follow.current(self.context, self.pa)

    async def react(self):
        """The reaction over what is new, then the timers that are due two seconds later; returns how often a plan was made."""
        before = await self.store.cursor("longitudinal")
        while changes := (await self.store.changes(before, types=TYPES, limit=500)).changes:
            for change in changes:
                operations = await follow.mark(self.context, change)
                await self.store.transact([*operations, MoveCursor("longitudinal", before, change.position)], origin="hub")
                before = change.position
        self.world.clock.advance(timedelta(seconds=3))
        claimed = await self.store.claim_timers({follow.KIND}, limit=50, lease=timedelta(seconds=30))
        for timer in claimed:
            await self.store.transact([*await follow.remake(self.context, timer), FinishTimer(timer)], origin="hub")
        return len(claimed)


@pytest.fixture
async def told(world):
    return Told(world)


async def test_one_plan_is_found_from_each_record_and_points_to_what_all_partners_say(told):
    await told.link()
    condition_a, condition_b = await told.condition(told.a), await told.condition(told.b)
    only_b = await told.condition(told.b, "c2", "38341003")
    goal_a = await told.goal(told.a, code="1", description={"text": "Walk daily"})
    order = f"ServiceRequest/{await told.b.put('ServiceRequest/s1', status='active', intent='order', code=coded('183519002'), subject=told.b.ref('Patient/p1'))}"
    plan_a = await told.plan(told.a)
    plan_b = await told.plan(
        told.b, activity=[{"reference": told.b.ref("ServiceRequest/s1")}, {"detail": {"status": "in-progress"}}]
    )
    await told.remake()
    of_a, of_b = await told.care_plan(told.pa), await told.care_plan(told.pb)
    assert of_a["identifier"] == of_b["identifier"]
    assert [of_a["subject"]["reference"], of_b["subject"]["reference"]] == [f"Patient/{told.pa}", f"Patient/{told.pb}"]
    assert of_b["addresses"] == of_a["addresses"]
    pointed = {one["reference"] for one in of_a["addresses"]}
    behind = {e["valueReference"]["reference"] for one in of_a["addresses"] for e in one.get("extension", [])}
    assert pointed | behind == {condition_a, condition_b, only_b}
    assert len(of_a["addresses"]) == 2
    assert of_a["goal"] == [{"reference": goal_a}]
    assert of_a["activity"][0]["reference"] == {"reference": order}
    (inline,) = url_of(of_a["activity"][1]["extension"], SOURCE)
    assert inline["valueReference"]["reference"] == plan_b
    assert inline["valueReference"]["extension"][0]["valueString"] == "CarePlan.activity[1]"
    assert {one["reference"] for one in of_a["supportingInfo"]} == {plan_a, plan_b}


async def test_the_plan_points_and_does_not_tell_and_names_no_other_record(told):
    await told.link()
    await told.condition(told.a, code="371422002", note=[{"text": "secret words"}])
    await told.goal(told.b)
    await told.remake()
    text = json.dumps(await told.care_plan(told.pa))
    assert told.pb not in text
    for word in ("371422002", "secret", "Weight", "289169006"):
        assert word not in text


async def test_nothing_is_written_when_nothing_changed_and_partners_bytes_stay(told):
    await told.link()
    ids = [await told.condition(told.a), await told.goal(told.a, target=[{"dueDate": "2026-08-01"}]), await told.goal(told.b)]
    pairs = [tuple(one.split("/")) for one in ids]
    before = {pair: one.body for pair, one in (await told.store.read_many(pairs)).items()}
    assert await told.remake() > 0
    assert await told.remake() == 0
    assert await told.remake(told.pb) == 0
    assert {pair: one.body for pair, one in (await told.store.read_many(pairs)).items()} == before


async def test_a_goal_of_two_partners_is_one_goal_with_its_sources(told):
    await told.link()
    target = {"measure": coded("4548-4", system="http://loinc.org")}
    mine = await told.goal(told.a, target=[{**target, "detailQuantity": {"value": 7.5, "comparator": "<", "unit": "%"}}])
    theirs = await told.goal(told.b, target=[{**target, "detailQuantity": {"value": 7.0, "comparator": "<", "unit": "%"}}])
    await told.remake()
    plan = await told.care_plan()
    (goal,) = [one for one in await told.world.find("Goal") if f"Goal/{one['id']}" == plan["goal"][0]["reference"]]
    assert {one["valueReference"]["reference"] for one in url_of(goal["extension"], SOURCE)} == {mine, theirs}
    assert float(goal["target"][0]["detailQuantity"]["value"]) == 7.0
    assert {one["valueReference"]["reference"] for one in url_of(goal["extension"], PATIENT)} == {
        f"Patient/{told.pa}",
        f"Patient/{told.pb}",
    }
    (conflict,) = url_of(plan["extension"], CONFLICT)
    parts = {one["url"]: one for one in conflict["extension"]}
    assert (parts["element"]["valueString"], parts["rule"]["valueCode"]) == ("Goal.target", "strictest")
    assert (parts["chosen"]["valueReference"]["reference"], parts["source"]["valueReference"]["reference"]) == (theirs, mine)
    assert "strictest" in plan["note"][0]["text"] and "7" not in plan["note"][0]["text"]
    assert await told.remake() == 0


async def test_what_no_rule_can_tell_is_asked_once_decided_and_asked_again_when_a_value_changes(told):
    await told.link()
    mine, theirs = await told.goal(told.a), await told.goal(told.b, status="on-hold")
    await told.remake()
    (task,) = await told.world.find("Task", code="reconcile-care-plan")
    assert {one["valueReference"]["reference"] for one in task["input"]} == {mine, theirs}
    assert task["focus"]["reference"] == f"CarePlan/{(await told.care_plan(min(told.pa, told.pb)))['id']}"
    assert await told.remake() == 0
    chosen = {"type": {"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "chosen"}]}}
    await told.world.edit("Task", task["id"], status="in-progress")
    await told.world.edit("Task", task["id"], status="completed", output=[{**chosen, "valueReference": {"reference": theirs}}])
    await told.react()
    plan = await told.care_plan()
    goal = await told.store.read(*plan["goal"][0]["reference"].split("/"))
    assert goal.tree["lifecycleStatus"] == "on-hold"
    assert "a human chose" in plan["note"][0]["text"]
    await told.goal(told.a, status="proposed")
    await told.remake()
    assert sorted(one["status"] for one in await told.world.find("Task", code="reconcile-care-plan")) == ["completed", "ready"]
    await told.goal(told.a, status="on-hold")
    await told.remake()
    assert sorted(one["status"] for one in await told.world.find("Task", code="reconcile-care-plan")) == [
        "cancelled",
        "completed",
    ]
    await told.goal(told.a, status="proposed")  # it differs again
    await told.remake()
    assert sorted(one["status"] for one in await told.world.find("Task", code="reconcile-care-plan")) == [
        "cancelled",
        "completed",
        "ready",
    ]


async def test_keep_both_is_an_answer_and_an_output_that_was_not_compared_is_none(told):
    await told.link()
    await told.goal(told.a), await told.goal(told.b, status="on-hold")
    await told.remake()
    (task,) = await told.world.find("Task", code="reconcile-care-plan")
    chosen = {"type": {"coding": [{"system": "https://fhircm.example/CodeSystem/coordination", "code": "chosen"}]}}
    wrong = {**chosen, "valueReference": {"reference": f"Patient/{told.pa}"}}
    await told.world.edit("Task", task["id"], status="in-progress")
    await told.world.edit("Task", task["id"], status="completed", output=[wrong])
    await told.remake()
    again = next(one for one in await told.world.find("Task", code="reconcile-care-plan") if one["status"] == "ready")
    await told.world.edit("Task", again["id"], status="in-progress")
    await told.world.edit("Task", again["id"], status="completed", output=[{**chosen, "valueCode": "keep-both"}])
    await told.remake()
    assert all(one["status"] == "completed" for one in await told.world.find("Task", code="reconcile-care-plan"))
    assert "keep both" in (await told.care_plan())["note"][0]["text"]


async def test_one_professional_is_one_member_by_npi_and_the_derived_team_opens_no_record(told):
    await told.link()
    for place, id in ((told.a, "d1"), (told.b, "x9")):
        await place.put(f"Practitioner/{id}", identifier=[{"system": NPI, "value": "1111111112"}], name=[{"family": "Reyes"}])
    await told.b.put("PractitionerRole/r1", practitioner=told.b.ref("Practitioner/x9"))
    doctor = coded("446050000", "Primary care provider")
    await told.team(
        told.a,
        "ct1",
        {"role": [doctor], "member": told.a.ref("Practitioner/d1"), "period": {"start": "2024-01-01", "end": "2026-01-01"}},
    )
    await told.team(
        told.b,
        "ct1",
        {"role": [doctor], "member": told.b.ref("PractitionerRole/r1"), "period": {"start": "2023-05-01"}},
        {"role": [coded("17561000", "Cardiologist")], "member": told.b.ref("Practitioner/x9")},
        {"member": told.b.ref("Patient/p1")},
    )
    await told.team(told.a, "ct2", {"role": [coded("116154003")], "member": told.a.ref("Patient/p1")})
    await told.remake()
    (team,) = await told.world.find("CareTeam", patient=f"Patient/{told.pa}", category="longitudinal")
    people = [one["member"]["reference"].partition("/")[0] for one in team["participant"]]
    assert sorted(people) == ["Patient", "Patient", "Practitioner", "Practitioner"]  # one entry for each role
    assert len({one["member"]["reference"] for one in team["participant"]}) == 2
    assert next(one for one in team["participant"] if one["role"] == [doctor])["period"] == {"start": "2023-05-01"}
    assert {"text": "Role not stated"} in [one["role"][0] for one in team["participant"]]
    stored = await told.store.read("CareTeam", team["id"])
    assert relationships(stored.tree) == []
    bare = {name: value for name, value in stored.tree.items() if name != "identifier"}
    assert relationships(bare) != []  # what a partner says in the same words does open it


async def test_what_is_closed_by_a_label_is_pointed_to_and_never_told(told):
    await told.link()
    label = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "SUD"}]}
    closed = {"lifecycleStatus": "active", "description": coded("289169006", "Weight loss"), "subject": told.a.ref("Patient/p1")}
    id = told.a.id("Goal/g1")
    tree = {"resourceType": "Goal", "id": id, "meta": {**label, "source": f"{told.a.base}/Goal/g1"}, **closed}
    await told.store.transact([Put(check(json.dumps(tree).encode()))], origin="partner:lakeside")
    open_one = await told.goal(told.b, target=[{"dueDate": "2026-09-01"}])
    await told.remake()
    assert {one["reference"] for one in (await told.care_plan())["goal"]} == {f"Goal/{id}", open_one}


async def test_what_the_hub_made_and_sent_is_no_input_when_it_comes_back(told):
    await told.link()
    kept = await told.goal(told.a)
    await told.remake()
    own = await told.care_plan()
    sent = [{"system": "https://fhircm.example/delivery", "value": "k/plan"}]
    back = await told.plan(told.b, "sent", identifier=sent, title="Longitudinal care plan")
    copy = await told.goal(told.b, "copy", identifier=sent)
    await told.plan(told.b, "derived", identifier=own["identifier"])
    await told.remake()
    plan = await told.care_plan()
    assert plan["goal"] == [{"reference": kept}]
    assert back not in json.dumps(plan)
    assert {one.reference: one.reason for one in (await told.current()).left} == {
        back: "the hub sent it",
        copy: "the hub sent it",
    }


async def test_what_a_partner_withdrew_or_has_no_more_drops_out(told):
    await told.link()
    await told.plan(told.a), await told.goal(told.a), await told.goal(told.b, "g2", "1", description={"text": "Other"})
    await told.remake()
    assert len((await told.care_plan())["goal"]) == 2
    await told.plan(told.a, status="entered-in-error")
    await told.store.transact(
        [SetState("mirror:riverbend", "Patient/p1", {"of": {"Goal/g2": "gone"}})], origin="partner:riverbend"
    )
    assert await told.remake() == 2  # the plan at each record; no team, no merged goal
    plan = await told.care_plan()
    assert "supportingInfo" not in plan and len(plan["goal"]) == 1
    await told.goal(told.a, status="entered-in-error")
    await told.remake()
    assert (await told.care_plan())["status"] == "revoked"


async def test_unlinking_splits_and_linking_again_joins_under_the_same_ids(told):
    await told.link()
    mine = await told.goal(told.a, target=[{"dueDate": "2026-09-01"}])
    theirs = await told.goal(told.b, note=[{"text": "of the other"}])
    await told.team(told.b, "ct1", {"role": [coded("1")], "member": told.b.ref("Organization/riverbend")})
    await told.react()
    together = await told.care_plan(told.pa), await told.care_plan(told.pb)
    assert together[0]["goal"] == together[1]["goal"]
    id = together[0]["goal"][0]["reference"]
    (person,) = await told.world.find("Person")
    await told.world.edit("Person", person["id"], "hub", link=[{"target": {"reference": f"Patient/{told.pa}"}}])
    await told.react()
    apart = await told.care_plan(told.pa), await told.care_plan(told.pb)
    assert [one["goal"] for one in apart] == [[{"reference": mine}], [{"reference": theirs}]]
    assert "careTeam" not in apart[0] and "careTeam" in apart[1]
    for one in await told.world.find("CareTeam", category="longitudinal"):
        assert one["subject"]["reference"] == f"Patient/{told.pb}"
    retired = (await told.store.read(*id.split("/"))).tree
    assert retired["lifecycleStatus"] == "entered-in-error" and "extension" not in retired and "target" not in retired
    (team,) = await told.world.find("CareTeam", patient=f"Patient/{told.pa}")
    assert team["status"] == "inactive" and "participant" not in team
    await told.world.edit("Person", person["id"], "hub", link=person["link"])
    await told.react()
    for before, after in zip(together, [await told.care_plan(told.pa), await told.care_plan(told.pb)], strict=True):
        assert {**before, "meta": None} == {**after, "meta": None}


async def test_many_changes_make_one_plan_and_none_is_lost(told):
    await told.link()
    for number in range(12):
        await told.condition(told.a, f"c{number}", f"10000{number}")
    assert await told.react() == 2  # a timer for each record, however many changes
    plan = await told.care_plan()
    assert len(plan["addresses"]) == 12
    assert plan["meta"]["versionId"] == "1"
    assert await told.react() == 0  # what the hub wrote is no news
    (one,) = (await told.store.changes((0, 0), types=frozenset({"Condition"}), limit=1)).changes
    (marked,) = await follow.mark(told.context, one)
    assert isinstance(marked, SetTimer)
    await told.store.transact([marked], origin="hub")
    assert await follow.mark(told.context, one) == []  # nobody has begun with it


async def test_what_comes_back_of_a_goal_that_a_partner_was_given_stays_as_it_came(told):
    await told.link()
    await told.goal(told.a)
    await told.goal(told.b)
    await told.remake()
    (ours,) = [one for one in await told.world.find("Goal", patient=f"Patient/{told.pa}") if follow.is_derived(one)]
    delivery = {"system": "https://fhircm.example/delivery", "value": f"Goal/{ours['id']}/native"}
    back = await told.goal(told.b, "back", identifier=[delivery, *ours["identifier"]])
    assert await told.remake() == 0
    kept = await told.store.read("Goal", back.removeprefix("Goal/"))
    assert (kept.version, kept.tree["lifecycleStatus"]) == (1, "active")
