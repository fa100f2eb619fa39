"""Verbs over HTTP: an operation means what a plain update means, and the rules know who writes."""

import asyncio

import pytest

from fhircm.coordination.rules import RULES
from fhircm.fhir.outcome import Conflict
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import Actor, Put, SetState, WriteRule
from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures

TASK = {"resourceType": "Task", "status": "requested", "intent": "order", "description": "Call the patient"}
REASON = {"name": "reason", "valueCodeableConcept": {"text": "No capacity"}}


async def made(http, **members):  # noqa: F811
    return (await http.post("/fhir/Task", json={**TASK, **members})).json()["id"]


async def test_an_operation_means_what_an_update_means(http):  # noqa: F811
    by_operation, by_update = await made(http), await made(http)
    answer = await http.post(f"/fhir/Task/{by_operation}/$accept")
    assert (answer.status_code, answer.json()["status"]) == (200, "accepted")
    assert answer.headers["etag"] == 'W/"2"'
    await http.put(f"/fhir/Task/{by_update}", json={**TASK, "id": by_update, "status": "accepted"})
    for id in (by_operation, by_update):
        refused = await http.post(f"/fhir/Task/{id}/$decline", json={"resourceType": "Parameters", "parameter": [REASON]})
        assert refused.status_code == 422
        assert "Task.status may go from 'accepted' to:" in refused.json()["issue"][0]["diagnostics"]


async def test_a_version_that_is_named_must_be_current(http):  # noqa: F811
    id = await made(http)
    await http.put(f"/fhir/Task/{id}", json={**TASK, "id": id, "priority": "urgent"})
    stale = await http.post(f"/fhir/Task/{id}/$accept", headers={"If-Match": 'W/"1"'})
    assert stale.status_code == 412
    assert (await http.get(f"/fhir/Task/{id}")).json()["status"] == "requested"


async def test_a_fact_of_a_rule_is_held_by_one_of_many_writes_at_once(store):
    def one_at_work(write):
        if write.new["status"] == "in-progress":
            return [SetState("at-work", "all", {"id": write.new["id"]}, if_absent=True, otherwise="Somebody works already")]
        held = write.previous is not None and write.previous["status"] == "in-progress"
        return [SetState("at-work", "all", None)] if held else []

    seen = []
    store.rules = (*RULES, WriteRule(frozenset({"Task"}), seen.append, facts=one_at_work))

    async def start(number):
        task = check_tree({**TASK, "id": f"t{number}", "status": "in-progress"})
        try:
            await store.transact([Put(task)], origin="client:x", actor=Actor(frozenset({f"Practitioner/{number}"})))
        except Conflict as error:
            assert str(error) == "Somebody works already"
            return None
        return f"t{number}"

    winners = [one for one in await asyncio.gather(*(start(number) for number in range(16))) if one]
    assert len(winners) == 1
    assert {one.actor.known_as for one in seen} == {frozenset({f"Practitioner/{number}"}) for number in range(16)}
    with pytest.raises(Conflict):
        await store.transact([Put(check_tree({**TASK, "id": "later", "status": "in-progress"}))], origin="client:x")
    done = check_tree({**TASK, "id": winners[0], "status": "completed"})
    follower = check_tree({**TASK, "id": "after", "status": "in-progress"})
    await store.transact([Put(follower), Put(done)], origin="client:x")
    assert await store.state("at-work", "all") == {"id": "after"}
