"""The tables of states: complete, as the specifications have them, and enforced on every write."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.task_states import RULE, business, enforce, machine, machine_of
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import IllegalTransition
from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.operations import Put, Write
from fhircm.store.resources import Store

TABLES = [machine("Task"), machine("Task", "referral"), machine("ServiceRequest")]
CODES = {table.element: sorted(definitions().elements[table.element].codes) for table in TABLES}
REFERRAL = {
    "code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]},
    "focus": {"reference": "ServiceRequest/1"},
    "statusReason": {"text": "because"},
}


def resource(table, status, code=None, **members):
    tree = {"resourceType": table.element.split(".")[0], "status": status, **(REFERRAL if table is TABLES[1] else {}), **members}
    if code:
        tree["businessStatus"] = business().concept(code)
    return tree


def is_legal(previous, new, origin="client:x"):
    try:
        enforce(Write(previous, new, origin))
    except IllegalTransition:
        return False
    return True


@pytest.mark.parametrize("table", TABLES, ids=["task", "referral", "order"])
def test_every_table_covers_the_codes_of_the_specification(table):
    left_out = {"received", "ready"} if table is TABLES[1] else set()
    assert set(table.next) == set(CODES[table.element]) - left_out
    assert {end for ends in table.next.values() for end in ends} | set(table.initial) | set(table.always) <= set(table.next)
    reachable = {end for start in table.initial for end in table.next if table.reaches(start, end)}
    assert reachable == set(table.next), "no state stands in the table in vain"


@pytest.mark.parametrize(
    ("table", "legal", "illegal"),
    [
        (
            machine("Task"),
            "draft>requested requested>received received>accepted accepted>ready ready>in-progress in-progress>on-hold"
            " on-hold>in-progress in-progress>completed in-progress>failed on-hold>failed requested>rejected"
            " ready>cancelled ready>completed completed>entered-in-error",
            "requested>completed on-hold>completed rejected>requested cancelled>in-progress completed>in-progress"
            " failed>completed accepted>requested draft>completed entered-in-error>requested",
        ),
        (
            machine("Task", "referral"),
            "draft>requested requested>accepted requested>rejected requested>cancelled accepted>completed accepted>on-hold"
            " on-hold>completed in-progress>failed in-progress>on-hold rejected>entered-in-error",
            "requested>in-progress requested>completed accepted>rejected rejected>accepted completed>in-progress"
            " cancelled>requested",
        ),
        (
            machine("ServiceRequest"),
            "draft>active active>on-hold on-hold>active active>completed active>revoked unknown>active"
            " draft>revoked active>entered-in-error",
            "draft>completed completed>active revoked>active entered-in-error>active active>draft",
        ),
    ],
    ids=["task", "referral", "order"],
)
def test_steps_as_the_specifications_draw_them(table, legal, illegal):
    for steps, expected in ((legal, True), (illegal, False)):
        for start, _, end in (step.partition(">") for step in steps.split()):
            assert is_legal(resource(table, start), resource(table, end)) is expected, f"{start} > {end}"


@pytest.mark.parametrize("table", TABLES, ids=["task", "referral", "order"])
@pytest.mark.parametrize("origin", ["hub", "client:x"])
def test_every_pair_of_states_follows_the_table(table, origin):
    for start in table.next:
        for end in CODES[table.element]:
            allowed = start == end or end in table.next[start] or end == "entered-in-error"
            assert is_legal(resource(table, start), resource(table, end), origin) is allowed, f"{start} > {end}"
    for status in CODES[table.element]:
        assert is_legal(None, resource(table, status), origin) is (status in table.initial)


def test_the_text_names_the_states_that_are_allowed():
    cases = [
        (
            resource(TABLES[1], "requested"),
            resource(TABLES[1], "completed"),
            "Task.status may go from 'requested' to: accepted, cancelled, rejected",
        ),
        (resource(TABLES[0], "completed"), resource(TABLES[0], "ready"), "Task.status may go from 'completed' to: nothing"),
        (None, resource(TABLES[0], "accepted"), "The status of a new Task may be: draft, in-progress, ready, requested"),
        (
            resource(TABLES[2], "completed"),
            resource(TABLES[2], "active"),
            "ServiceRequest.status may go from 'completed' to: nothing",
        ),
        (
            resource(TABLES[1], "in-progress", "5.2"),
            resource(TABLES[1], "in-progress", "5.1.1"),
            "Task.businessStatus may go from '5.2' to: 6.0, 7.0",
        ),
        (
            resource(TABLES[1], "requested", "2.0"),
            resource(TABLES[1], "requested", "3.0"),
            "While Task.status is 'requested', Task.businessStatus may be: 2.0",
        ),
    ]
    for previous, new, text in cases:
        with pytest.raises(IllegalTransition) as caught:
            enforce(Write(previous, new, "client:x"))
        assert text in str(caught.value)
        assert caught.value.status == 422
        assert caught.value.issues[0].expression in ("Task.status", "ServiceRequest.status", "Task.businessStatus")


def closure(table, start):
    """What can be reached, by brute force."""
    seen = {start}
    while more := {end for state in seen for end in table.next[state]} - seen:
        seen |= more
    return seen | set(table.always)


@given(st.sampled_from(TABLES), st.data())
def test_a_mirror_may_miss_states_but_not_go_back(table, choices):
    start, end = (choices.draw(st.sampled_from(sorted(table.next))) for _ in range(2))
    for origin in ("partner:lakeside", "load"):
        assert is_legal(resource(table, start), resource(table, end), origin) is (end in closure(table, start))
        assert is_legal(None, resource(table, end), origin)


@given(st.sampled_from(TABLES), st.data())
def test_a_way_is_legal_step_by_step(table, choices):
    start, end = (choices.draw(st.sampled_from(sorted(table.next))) for _ in range(2))
    way = table.path(start, end)
    assert (way is not None) is (end in closure(table, start) - (set(table.always) - {start}))
    for before, after in zip([start, *(way or [])], way or [], strict=False):
        assert is_legal(resource(table, before), resource(table, after))


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(machine("Task", "referral").next)), st.sampled_from([None, *sorted(business().text)])),
        min_size=1,
        max_size=12,
    )
)
def test_a_referral_that_takes_any_steps_is_never_where_it_may_not_be(steps):
    """Whatever is tried, what is accepted fits together: what is closed stays closed, a business status goes with its status."""
    current = resource(TABLES[1], "requested", "2.0")
    for status, code in steps:
        wanted = resource(TABLES[1], status, code or business().code(current))
        if is_legal(current, wanted):
            assert current["status"] not in TABLES[1].terminal or status in (current["status"], "entered-in-error")
            if code and code != business().code(current):
                assert code in business().of.get(status, (code,))
            current = wanted


def test_who_sets_the_status_alone_may_leave_the_business_status_behind_and_it_can_be_brought_in_line():
    accepted = resource(TABLES[1], "accepted", "2.0")
    assert is_legal(resource(TABLES[1], "requested", "2.0"), accepted)
    assert is_legal(accepted, resource(TABLES[1], "accepted", "3.0"))
    hurried = resource(TABLES[1], "in-progress", "2.0")
    assert is_legal(accepted, hurried)
    assert is_legal(hurried, resource(TABLES[1], "in-progress", "5.1"))
    assert is_legal(hurried, resource(TABLES[1], "completed", "7.0"))


def test_a_business_status_of_another_system_is_left_alone():
    own = {"coding": [{"system": "https://example.org/queue", "code": "5.2"}]}
    assert is_legal(resource(TABLES[1], "requested", businessStatus=own), resource(TABLES[1], "accepted", businessStatus=own))


def test_what_is_a_referral():
    task = {"resourceType": "Task", "status": "requested"}
    profile = {"meta": {"profile": ["https://fhircm.example/StructureDefinition/referral-task|1"]}}
    assert machine_of(task) == TABLES[0]
    assert machine_of(task | REFERRAL) == TABLES[1]
    assert machine_of(task | profile) == TABLES[1]
    assert machine_of(task | REFERRAL | {"focus": {"reference": "https://ehr.example/ServiceRequest/7"}}) == TABLES[1]
    assert machine_of(task | REFERRAL | {"meta": {"source": "https://ehr.example/Task/1"}}) == TABLES[0], "the partner's own"
    assert machine_of(task | {"code": REFERRAL["code"], "focus": {"reference": "MedicationRequest/1"}}) == TABLES[0]
    assert machine_of(task, task | REFERRAL) == TABLES[1], "a referral cannot be edited into something else"


async def test_an_illegal_step_changes_nothing(database_url, clock):
    store = Store(await open_database(database_url), clock=clock, rules=[RULE])
    body = {"resourceType": "Task", "id": "t", "status": "ready", "intent": "order"}
    await store.transact([Put(check(json.dumps(body).encode()))], origin="client:x")
    other = {**body, "id": "u"}
    with pytest.raises(IllegalTransition, match="in-progress"):
        both = [check(json.dumps(tree).encode()) for tree in (other, {**body, "status": "failed"})]
        await store.transact([Put(one) for one in both], origin="client:x")
    assert (await store.read("Task", "t")).version == 1
    assert await store.read_many([("Task", "u")]) == {}
    assert len((await store.changes((0, 0))).changes) == 1
    await store.close()
