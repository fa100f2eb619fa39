"""The tables of every protocol: complete, as the guides have them, who takes which step, and the page that tells of them."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.coordination.state_tables import TYPES, protocols
from fhircm.coordination.task_states import enforce, is_open, is_referral, protocol_of
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError, IllegalTransition, NotTheirStep
from fhircm.store.operations import Actor, Write

ROOT = Path(__file__).parent.parent.parent
ALL = [one for type in sorted(TYPES) for one in protocols(type).values()]
TASKS = list(protocols("Task").values())
IDS = [f"{one.type}-{one.name}" for one in ALL]
REQUESTER, PERFORMER, STRANGER = "Organization/asks", "Organization/does", "Organization/looks-on"
ACTORS = {
    "requester": Actor(frozenset({REQUESTER})),
    "performer": Actor(frozenset({PERFORMER})),
    "stranger": Actor(frozenset({STRANGER})),
    "custodian": Actor(frozenset(), everyone=True),
    "hub": None,
}
# Codes that a guide leaves out.
LEFT_OUT = {
    "bser": {"requested", "ready", "on-hold", "failed"},
    "gravity": {"received", "ready"},
    "physical-activity": {"ready"},
    "referral": {"received", "ready"},
    "sdoh-patient": {"draft", "requested", "received", "accepted", "rejected"},
    "cdex": {"draft", "received", "ready", "cancelled", "entered-in-error"},
}
FILLED = {
    "statusReason": {"text": "because"},
    "output": [{"type": {"text": "report"}, "valueString": "done"}],
    "input": [{"type": {"text": "query"}, "valueString": "Observation"}],
    "for": {"reference": "Patient/p"},
    "focus": {"reference": "ServiceRequest/s"},
    "authoredOn": "2026-01-01",
    "priority": "routine",
    "start": "2026-01-05T09:00:00Z",
    "end": "2026-01-05T09:30:00Z",
}
PARTIES = {"requester": {"reference": REQUESTER}, "owner": {"reference": PERFORMER}}


def resource(protocol, status, code=None, **members):
    """One under a protocol in a state, with all that it needs there."""
    tree = {"resourceType": protocol.type, "id": "t", "status": status}
    if protocol.type in ("Task", "ServiceRequest"):
        tree |= {name: PARTIES[name] for name in ("requester", "owner") if protocol.type == "Task" or name == "requester"}
    if protocol.profiles:
        tree["meta"] = {"profile": [sorted(protocol.profiles)[0]]}
    tree |= {name: FILLED[name] for name in protocol.needs.get(status, ()) if name in FILLED}
    if protocol.business:
        fitting = protocol.business.of.get(status, ())
        code = code or (fitting[0] if fitting else None)
        if code:
            tree["businessStatus"] = protocol.business.concept(code)
    return {**tree, **members}


def verdict(previous, new, actor=None, origin="client:x"):
    """None when the write is taken, else the error."""
    try:
        enforce(Write(previous, new, origin, actor))
    except FhirError as error:
        return error
    return None


# --- the tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ALL, ids=IDS)
def test_every_table_covers_the_codes_that_there_are(protocol):
    machine, element = protocol.machine, f"{protocol.type}.status"
    codes = set(definitions().elements[element].codes)
    assert set(machine.next) == codes - LEFT_OUT.get(protocol.name, set())
    named = {end for ends in machine.next.values() for end in ends} | set(machine.initial) | set(machine.always)
    assert named <= set(machine.next)
    assert {end for start in machine.initial for end in machine.next if machine.reaches(start, end)} == set(machine.next)
    assert set(protocol.needs) | set(protocol.forbids) <= set(machine.next)
    assert {one.who for one in protocol.steps} <= {"requester", "performer", "either", "concerned", "anyone"}
    assert protocol.cancellation in ("either", "ask")
    elements = {name for names in (*protocol.needs.values(), *protocol.forbids.values()) for name in names}
    assert all(f"{protocol.type}.{name}" in definitions().elements for name in elements)
    if business := protocol.business:
        assert set(business.machine.next) == set(business.text)
        assert {code for codes in business.of.values() for code in codes} == set(business.text)
        assert set(business.of) <= set(machine.next)


# Who takes a step: R requester, P performer, E either. What is not listed here is refused.
STEPS = {
    "gravity": {
        "R": "draft>requested draft>cancelled",
        "P": "requested>accepted requested>rejected accepted>in-progress accepted>on-hold accepted>completed accepted>failed"
        " in-progress>on-hold on-hold>in-progress in-progress>completed in-progress>failed on-hold>completed on-hold>failed",
        "E": "requested>cancelled accepted>cancelled in-progress>cancelled on-hold>cancelled",
    },
    "cdex": {
        "R": "",
        "P": "requested>accepted requested>rejected requested>in-progress requested>on-hold requested>failed requested>completed"
        " accepted>in-progress accepted>on-hold accepted>failed accepted>completed in-progress>on-hold in-progress>failed"
        " in-progress>completed on-hold>in-progress on-hold>failed on-hold>completed"
        " rejected>accepted rejected>in-progress failed>in-progress failed>completed completed>in-progress completed>failed",
        "E": "",
    },
    "sdoh-patient": {
        "R": "",
        "P": "ready>in-progress ready>completed ready>failed in-progress>completed on-hold>completed",
        "E": "ready>cancelled in-progress>on-hold in-progress>failed in-progress>cancelled on-hold>in-progress on-hold>failed"
        " on-hold>cancelled",
    },
    "cow": {
        "R": "draft>requested draft>ready draft>cancelled requested>cancelled received>cancelled accepted>cancelled ready>cancelled",
        "P": "requested>received requested>accepted requested>rejected received>accepted received>rejected accepted>ready"
        " accepted>in-progress accepted>on-hold accepted>failed ready>in-progress ready>failed ready>rejected in-progress>on-hold"
        " in-progress>completed in-progress>failed in-progress>cancelled on-hold>in-progress on-hold>failed on-hold>cancelled",
        "E": "",
    },
}


@pytest.mark.parametrize("name", STEPS)
def test_who_takes_which_step_as_the_guide_has_it(name):
    protocol = protocols("Task")[name]
    listed = {step: who for who, steps in STEPS[name].items() for step in steps.split()}
    sides = {"R": {"requester"}, "P": {"performer"}, "E": {"requester", "performer"}}
    for start in protocol.machine.next:
        for end in set(protocol.machine.next) - {start, *protocol.machine.always}:
            may = {who for who in ACTORS if verdict(resource(protocol, start), resource(protocol, end), ACTORS[who]) is None}
            who = listed.get(f"{start}>{end}")
            assert may == (sides[who] | {"custodian", "hub"} if who else set()), f"{start} > {end}"


# Status and business status of BSeR and 360X, DOMAIN: I the initiator, R the recipient.
HARMONISED = """
received 2.0 > accepted 3.0 R; received 2.0 > rejected 4.0 R; received 2.0 > in-progress 5.2 I
accepted 3.0 > rejected 4.0 R; accepted 3.0 > in-progress 5.1.1 R; accepted 3.0 > in-progress 5.2 I
accepted 3.0 > in-progress 5.1.4 R; accepted 3.0 > completed 7.0 R; accepted 3.0 > in-progress 5.1 R
in-progress 5.1 > in-progress 5.1.1 R; in-progress 5.1 > in-progress 5.1.4 R; in-progress 5.1 > in-progress 5.2 I
in-progress 5.1 > rejected 4.0 R; in-progress 5.1 > completed 7.0 R
in-progress 5.1.1 > rejected 4.0 R; in-progress 5.1.1 > in-progress 5.1.2 R; in-progress 5.1.1 > in-progress 5.1.3 R
in-progress 5.1.1 > in-progress 5.2 I; in-progress 5.1.1 > in-progress 5.1.4 R; in-progress 5.1.1 > completed 7.0 R
in-progress 5.1.2 > rejected 4.0 R; in-progress 5.1.2 > in-progress 5.1.1 R; in-progress 5.1.2 > in-progress 5.1.3 R
in-progress 5.1.2 > in-progress 5.2 I
in-progress 5.1.3 > in-progress 5.1.1 R; in-progress 5.1.3 > in-progress 5.2 I
in-progress 5.2 > cancelled 6.0 R; in-progress 5.2 > completed 7.0 R
in-progress 5.1.4 > rejected 4.0 R; in-progress 5.1.4 > in-progress 5.1.1 R; in-progress 5.1.4 > in-progress 5.1.3 R
in-progress 5.1.4 > in-progress 5.2 I; in-progress 5.1.4 > completed 7.0 R
"""


def test_the_harmonised_machine_is_that_of_its_drawing_and_the_initiator_only_asks_to_cancel():
    bser = protocols("Task")["bser"]
    drawn = {}
    for line in HARMONISED.replace("\n", ";").split(";"):
        if line.strip():
            before, after = line.split(">")
            *end, who = after.split()
            drawn[(*before.split(), *end)] = {"I": "requester", "R": "performer"}[who]
    places = [(status, code) for status, codes in bser.business.of.items() for code in codes]
    for start in places:
        for end in places:
            if start == end:
                continue
            pair = resource(bser, *start), resource(bser, *end)
            may = {who for who in ("requester", "performer", "stranger") if verdict(*pair, ACTORS[who]) is None}
            assert may == ({drawn[*start, *end]} if (*start, *end) in drawn else set()), f"{start} > {end}"
    alone = resource(bser, "received"), {**resource(bser, "accepted"), "businessStatus": bser.business.concept("2.0")}
    assert "businessStatus may be: 3.0" in str(verdict(*alone, ACTORS["performer"])), "the business status leads"
    told = str(verdict(resource(bser, "accepted"), resource(bser, "cancelled"), ACTORS["requester"]))
    assert "Task.status may go from 'accepted' to: completed, in-progress, rejected" in told
    assert bser.cancellation == "ask"
    assert protocols("Task")["gravity"].cancellation == "either"


@pytest.mark.parametrize("protocol", ALL, ids=IDS)
def test_every_element_that_a_state_needs_or_forbids_is_asked_for_on_entry(protocol):
    for start, end, _ in protocol.steps:
        previous = resource(protocol, start) if start else None
        if verdict(previous, resource(protocol, end)) is not None:
            continue  # the business status goes another way
        for name in set(protocol.needs.get(end, ())) - {"businessStatus"}:
            new = {key: value for key, value in resource(protocol, end).items() if key != name}
            error = verdict(previous, new)
            assert isinstance(error, IllegalTransition), f"{start} > {end} without {name}"
            assert f"{protocol.type}.{name} is missing: while {protocol.type}.status is '{end}'" in str(error)
            assert error.issues[0].expression == f"{protocol.type}.{name}"
        for name in protocol.forbids.get(end, ()):
            error = verdict(previous, resource(protocol, end, **{name: FILLED.get(name, {"text": "x"})}))
            assert f"{protocol.type}.{name} does not belong here" in str(error)


def test_a_state_keeps_what_it_needs_and_what_was_missing_before_may_stay_missing():
    gravity = protocols("Task")["gravity"]
    rejected = resource(gravity, "rejected")
    bare = {key: value for key, value in rejected.items() if key != "statusReason"}
    assert "statusReason is missing" in str(verdict(rejected, bare))
    assert verdict(bare, {**bare, "description": "of old"}) is None
    activity = protocols("Task")["physical-activity"]
    said = resource(activity, "accepted", statusReason={"text": "old"})
    assert verdict(said, {**said, "description": "kept"}) is None
    assert "does not belong here" in str(verdict(resource(activity, "accepted"), said))


@given(st.sampled_from(ALL), st.data())
def test_whoever_walks_at_random_never_leaves_the_table(protocol, choices):
    """Any status by anybody, again and again: what is taken is a step of the table, by one who may take it; the rest changes nothing."""
    start = choices.draw(st.sampled_from(protocol.machine.initial))
    current = resource(protocol, start)
    codes = list(definitions().elements[f"{protocol.type}.status"].codes)
    for _ in range(12):
        who = choices.draw(st.sampled_from(sorted(ACTORS)))
        end = choices.draw(st.sampled_from([*protocol.machine.next.get(current["status"], ()), *codes]))
        business = protocol.business
        code = choices.draw(st.sampled_from([None, *business.text])) if business else None
        wanted = resource(protocol, end, code)
        error = verdict(current, wanted, ACTORS[who])
        step = (current["status"], end)
        if error is None:
            assert step[0] == step[1] or end in protocol.machine.next[step[0]] or end in protocol.machine.always
            taker = protocol.machine.who(*step)
            others = {"requester": {"performer", "stranger"}, "performer": {"requester", "stranger"}, "anyone": set()}
            if step[0] != step[1] and protocol.type in ("Task", "ServiceRequest"):
                assert who not in others.get(taker, {"stranger"})
            current = wanted
        elif isinstance(error, NotTheirStep):
            assert who not in ("custodian", "hub")
            assert "you are" in str(error)
        else:
            assert isinstance(error, IllegalTransition)


# --- which one a Task is under -----------------------------------------------------------------------------------------------


def test_a_task_is_under_what_it_claims_and_stays_there():
    profiles = {name: sorted(one.profiles)[0] for name, one in protocols("Task").items() if one.profiles}
    fulfils = {
        "code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]},
        "focus": {"reference": "ServiceRequest/s"},
    }
    plain = {"resourceType": "Task", "status": "requested"}
    for name, profile in profiles.items():
        claims = {**plain, "meta": {"profile": [f"{profile}|1.0.0"]}}
        assert protocol_of(claims).name == name
        assert protocol_of({**claims, **fulfils}).name == name, "what it says goes before how it looks"
        assert protocol_of({**plain, "meta": {"profile": [profiles["cdex"]]}}, claims).name == name, "it does not change over"
        assert protocol_of(plain, claims).name == name, "nor get out of it"
        assert protocol_of(claims, plain).name == name
        assert protocol_of({**claims, "meta": {**claims["meta"], "source": "https://ehr.example/Task/1"}}).name == name
        assert is_referral(claims) is (name not in ("cdex", "sdoh-patient"))
    assert protocol_of(plain).name == "base"
    assert protocol_of(plain | fulfils).name == "referral"
    assert is_open({"resourceType": "Task", "status": "received"})


def test_a_plain_task_in_a_state_that_a_protocol_does_not_have_cannot_be_put_under_it():
    gravity, base = protocols("Task")["gravity"], protocols("Task")["base"]
    ready = resource(base, "ready")
    assert "Task.status may go from 'ready' to: nothing" in str(
        verdict(ready, {**resource(gravity, "requested"), "status": "ready"})
    )


def test_a_partner_that_does_not_keep_to_what_it_claims_is_mirrored_all_the_same():
    gravity = protocols("Task")["gravity"]
    source = {"meta": {**resource(gravity, "requested")["meta"], "source": "https://ehr.example/Task/1"}}
    before = resource(gravity, "requested", **source)
    assert verdict(before, resource(gravity, "received", **source), origin="partner:lakeside") is None
    assert verdict(before, resource(gravity, "rejected", **source, statusReason=None), origin="partner:lakeside") is None
    ended = resource(gravity, "completed", **source)
    assert verdict(ended, resource(gravity, "requested", **source), origin="partner:lakeside") is not None
    for type in ("Encounter", "Appointment", "EpisodeOfCare"):
        base = protocols(type)["base"]
        for end in base.machine.next:
            assert verdict(resource(base, "cancelled"), resource(base, end), origin="partner:lakeside") is None, (type, end)


def test_the_page_is_what_the_tables_say():
    loader = importlib.machinery.SourceFileLoader("state_machines", str(ROOT / "scripts/state-machines"))
    program = importlib.util.module_from_spec(importlib.util.spec_from_loader("state_machines", loader))
    loader.exec_module(program)
    said = (ROOT / "docs/reference/state-machines.md").read_text()
    assert said == program.page(), "run scripts/state-machines"
