"""What cannot be is refused with the reason and the place, over HTTP, and nothing of it is done."""

import asyncio

import pytest

from fhircm.coordination.plausible import check
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Put, Write
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures

FULFILL = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
TASK = {"resourceType": "Task", "status": "requested", "intent": "order", "authoredOn": "2025-01-10T09:00:00Z"}
ORDER = {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"display": "somebody"}}
VISIT = {"resourceType": "Encounter", "status": "in-progress", "class": {"code": "AMB"}}
BOOKING = {"resourceType": "Appointment", "status": "booked", "participant": [{"actor": {"display": "x"}, "status": "accepted"}]}
BOOKING |= {"start": "2025-02-01T09:00:00Z", "end": "2025-02-01T09:30:00Z"}
ROLE = "https://fhircm.example/role"


def due(end, **members):
    return {**TASK, "restriction": {"period": {"end": end}}, **members}


IMPOSSIBLE = [
    (due("2025-01-09"), "Task.restriction.period.end"),
    (due("2500-01-01"), "Task.restriction.period.end"),
    (due("0025-01-09"), "Task.restriction.period.end"),
    ({**TASK, "restriction": {"period": {"start": "2025-03-01", "end": "2025-02-01"}}}, "Task.restriction.period"),
    ({**TASK, "authoredOn": "2199-01-01"}, "Task.authoredOn"),
    ({**TASK, "lastModified": "2025-01-09T09:00:00Z"}, "Task"),
    ({**TASK, "executionPeriod": {"start": "2025-02-01", "end": "2025-01-31"}}, "Task.executionPeriod"),
    ({**TASK, "executionPeriod": {"start": "2199-01-01"}}, "Task.executionPeriod.start"),
    ({**ORDER, "authoredOn": "2199-01-01"}, "ServiceRequest.authoredOn"),
    ({**ORDER, "occurrenceDateTime": "2925-01-01"}, "ServiceRequest.occurrenceDateTime"),
    ({**VISIT, "period": {"start": "2025-01-02", "end": "2025-01-01"}}, "Encounter.period"),
    ({**VISIT, "period": {"start": "2199-01-02"}}, "Encounter.period.start"),
    ({**BOOKING, "end": "2025-02-01T08:00:00Z"}, "Appointment.end"),
    ({**BOOKING, "start": "2925-02-01T09:00:00Z", "end": "2925-02-01T10:00:00Z"}, "Appointment.start"),
    ({**TASK, "code": FULFILL}, "Task.focus"),
    ({**TASK, "performerType": [{"coding": [{"system": ROLE, "code": "wizard"}]}]}, "Task.performerType"),
]


@pytest.mark.parametrize("how", ["create", "bundle"])
async def test_what_cannot_be_is_refused_with_its_place(http, how):  # noqa: F811
    for tree, place in IMPOSSIBLE:
        if how == "create":
            answer = await http.post(f"/fhir/{tree['resourceType']}", json=tree)
        else:
            sound = {"resource": {**TASK, "description": "sound"}, "request": {"method": "POST", "url": "Task"}}
            wrong = {"resource": tree, "request": {"method": "POST", "url": tree["resourceType"]}}
            answer = await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": [sound, wrong]})
            place = place.replace(tree["resourceType"], "Bundle.entry[1].resource", 1)
        assert answer.status_code == 422, (tree, answer.text)
        assert place in [expression for one in answer.json()["issue"] for expression in one.get("expression", [])], answer.text
    for type in ("Task", "ServiceRequest", "Encounter", "Appointment"):
        assert (await http.get(f"/fhir/{type}?_summary=count")).json()["total"] == 0, "nothing half done"


async def test_what_can_be_is_taken(http):  # noqa: F811
    for tree in (
        due("2025-01-10"),
        due("2025", authoredOn="2025-01-10T09:00:00Z"),
        {**TASK, "executionPeriod": {"start": "2025-01-01", "end": "2025-01-01"}},
        {**VISIT, "status": "planned", "period": {"start": "2030-01-02"}},
        {**VISIT, "period": {"start": "1999-01-02"}},
        {**BOOKING, "start": "2031-02-01T09:00:00Z", "end": "2031-02-01T09:30:00Z"},
        {**TASK, "performerType": [{"coding": [{"system": ROLE, "code": "nurse"}, {"system": "urn:other", "code": "wizard"}]}]},
    ):
        answer = await http.post(f"/fhir/{tree['resourceType']}", json=tree)
        assert answer.status_code == 201, (tree, answer.text)


def test_what_was_said_before_may_stay_and_a_partner_says_of_its_own_what_it_says(clock):
    wrong = due("2025-01-09", code=FULFILL)
    check(Write(wrong, {**wrong, "description": "changed"}, "client:x", now=clock.now))
    check(Write(None, wrong, "partner:lakeside", now=clock.now))
    check(Write(None, due("2025-01-09"), "hub", now=clock.now))  # it learned late of what was due long ago
    with pytest.raises(Invalid) as caught:
        check(Write(None, wrong, "client:x", now=clock.now))
    assert {one.expression for one in caught.value.issues} == {"Task.restriction.period.end", "Task.focus"}


async def test_one_performer_is_asked_once_for_an_order_however_many_ask_at_once(world):
    order = {**ORDER, "id": "order"}
    owner = {"reference": f"Organization/{world.riverbend.id('Organization/riverbend')}"}
    other = {"reference": f"Organization/{world.lakeside.id('Organization/lakeside')}"}
    await world.store.transact([Put(check_tree(order))], origin="hub")

    def referral(id, **members):
        tree = {**TASK, "id": id, "code": FULFILL, "focus": {"reference": "ServiceRequest/order"}, "owner": owner, **members}
        return Put(check_tree(tree))

    async def ask(id, **members):
        try:
            await world.store.transact([referral(id, **members)], origin="client:x")
        except Conflict as error:
            assert "open referral Task for this order with this owner" in str(error)
            return None
        return id

    asked = [one for one in await asyncio.gather(*(ask(f"t{number}") for number in range(8))) if one]
    assert len(asked) == 1
    assert await ask("u", owner=other) == "u", "another performer is asked beside"
    assert await ask("u") is None, "nor given to who has it already"
    why = {"statusReason": {"text": "No capacity"}}
    assert await ask(asked[0], status="rejected", **why) == asked[0]
    assert await ask("again") == "again", "after a refusal it is asked anew"
    both = [referral("again", status="cancelled", **why), referral("anew")]
    await world.store.transact(both, origin="client:x")
