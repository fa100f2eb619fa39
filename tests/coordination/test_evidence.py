"""From any state of a referral, with any evidence: every step is legal, there is an end, and it is where the evidence points."""

import json
from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.evidence import REPLY, aim, next_step, task_code
from fhircm.coordination.referral_record import Evidence
from fhircm.coordination.task_states import business, enforce, machine
from fhircm.store.operations import Write
from fhircm.store.stored import Stored

TABLE = machine("Task", "referral")
NOW = datetime(2026, 3, 2, tzinfo=UTC)


def stored(tree):
    return Stored(tree["resourceType"], tree["id"], 1, NOW, False, json.dumps(tree).encode(), "create")


def visit(status, missed, number):
    reason = [{"coding": [{"system": "http://snomed.info/sct", "code": "281399006"}]}] if missed else []
    return stored({"resourceType": "Encounter", "id": f"v{number}", "status": status, "reasonCode": reason})


def report(doc_status, number):
    return stored({"resourceType": "DocumentReference", "id": f"n{number}", "docStatus": doc_status})


def appointment(status, number):
    return stored({"resourceType": "Appointment", "id": f"a{number}", "status": status})


def reply(status, code):
    said = {"businessStatus": business().concept(code)} if code else {}
    return stored({"resourceType": "Task", "id": "theirs", "status": status, "intent": "order", **said})


booked = st.sampled_from(
    ["proposed", "pending", "booked", "arrived", "checked-in", "fulfilled", "cancelled", "noshow", "waitlist"]
)
answers = st.tuples(st.sampled_from(sorted(machine("Task").next)), st.sampled_from([None, *sorted(business().text)]))
states = st.sampled_from(["planned", "arrived", "triaged", "in-progress", "onleave", "finished", "cancelled"])
evidence = st.builds(
    lambda visits, appointments, reports, answered, order, capacity: Evidence(
        {"resourceType": "ServiceRequest", "status": order},
        (
            *(visit(status, missed, number) for number, (status, missed) in enumerate(visits)),
            *(appointment(status, number) for number, status in enumerate(appointments)),
        ),
        tuple(report(one, number) for number, one in enumerate(reports)),
        tuple(reply(*one) for one in answered),
        capacity=capacity,
    ),
    st.lists(st.tuples(states, st.booleans()), max_size=3),
    st.lists(booked, max_size=2),
    st.lists(st.sampled_from(["preliminary", "final", "amended"]), max_size=2),
    st.lists(answers, max_size=1),
    st.sampled_from(["active", "on-hold", "completed", "revoked", "entered-in-error"]),
    st.sampled_from([None, "capacity", "no-capacity", "waitlist"]),
)
tasks = st.builds(
    lambda status, code: {
        "resourceType": "Task",
        "status": status,
        "code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]},
        "focus": {"reference": "ServiceRequest/1"},
        **({"businessStatus": business().concept(code)} if code else {}),
    },
    st.sampled_from(sorted(set(TABLE.next) - {"draft"})),
    st.sampled_from([None, *sorted(business().text)]),
)
triggers = st.sampled_from(["Task", "Encounter", "Appointment", "DocumentReference", "ServiceRequest", "Person", REPLY])


def walk(task, found, because_of):
    """All steps until nothing is to be done; the first has the cause given, the others follow from it."""
    steps = [task]
    while (members := next_step(steps[-1], found, because_of, "2026-03-02T00:00:00Z")) is not None:
        tree = {**steps[-1], **members}
        steps.append({name: value for name, value in tree.items() if value is not None})
        because_of = "Task"
        assert len(steps) < 8, "it goes on for ever"
    return steps


@given(tasks, evidence, triggers)
def test_every_step_is_legal_and_there_is_an_end(task, found, because_of):
    steps = walk(task, found, because_of)
    for before, after in pairwise(steps):
        enforce(Write(before, after, "hub"))
        assert before != after


@given(tasks, evidence, triggers)
def test_a_final_report_or_a_withdrawal_always_ends_an_open_referral(task, found, because_of):
    goal = aim(found)
    end = walk(task, found, because_of)[-1]
    if task["status"] in TABLE.terminal:
        assert end["status"] == task["status"], "what has ended stays as it ended"
    elif goal is not None and goal.status in TABLE.terminal:
        late = goal.status == "rejected" and task["status"] != "requested"
        assert end["status"] == ("failed" if late else goal.status), "once it was accepted, it can only fail"
    if end["status"] == "completed":
        assert {one["valueReference"]["reference"] for one in end.get("output", [])} == {
            f"DocumentReference/{one.id}" for one in found.reports
        }


@given(evidence)
def test_a_new_referral_goes_where_the_evidence_points(found):
    task = {"resourceType": "Task", "status": "requested", "businessStatus": business().concept("2.0")}
    task |= {"code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}}
    task |= {"focus": {"reference": "ServiceRequest/1"}}
    end = walk(task, found, "Task")[-1]
    goal = aim(found)
    assert end["status"] == (goal.status if goal else "requested")
    if goal is None or goal.business:  # nothing goes with 'failed'
        assert task_code(end) == (goal.business if goal else "2.0")


@given(tasks, evidence)
def test_people_who_hold_a_referral_keep_it_there(task, found):
    """An edit of a Task that is on hold moves nothing, unless the referral is over."""
    goal = aim(found)
    if task["status"] == "on-hold" and (goal is None or goal[0] not in TABLE.terminal):
        assert {one["status"] for one in walk(task, found, "Task")} == {"on-hold"}
