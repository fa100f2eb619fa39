"""No open loop without an owner and a next due time: what comes without gets both, and the check finds what breaks the rule."""

import json
from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fhircm.coordination import escalation, open_loops
from fhircm.coordination.task_times import ESCALATED
from fhircm.fhir.validation import check
from fhircm.metrics import Metrics
from fhircm.store.operations import CancelTimer, FinishTimer, MoveCursor, Put, SetTimer
from tests import commands

from .conftest import SCT
from .test_escalation import CODES, pass_to
from .test_escalation import opened as opened
from .test_referral import Referral


async def put(world, type="Task", id="t", **members):
    """A direct write beneath the rules and the reactions; None takes a member away."""
    rules, world.store.rules = world.store.rules, ()
    base = {"status": "requested", "intent": "order"} if type in ("Task", "ServiceRequest") else {}
    there = await world.context.get(type, id)
    tree = {**base, **(there.tree if there else {}), **members, "resourceType": type, "id": id}
    body = json.dumps({name: value for name, value in tree.items() if value is not None}).encode()
    await world.store.transact([Put(check(body))], origin="client:x")
    world.store.rules = rules


async def unseen(world):
    """What was written so far is not seen by the reaction that would make it right: as if it was lost."""
    before = await world.store.cursor(escalation.REACTION)
    upto = (await world.store.changes(before, types=frozenset({"Task"}), limit=1000)).upto
    await world.store.transact([MoveCursor(escalation.REACTION, before, upto)], origin="test")


async def sweep(world):
    """One whole round of the standing check."""
    await open_loops.begin(world.store)
    for _ in range(100):
        world.clock.now = max(world.clock.now, (await world.store.timer(open_loops.KIND)).due)
        (timer,) = await world.store.claim_timers({open_loops.KIND}, limit=1, lease=timedelta(seconds=30))
        operations = await open_loops.check(world.context, timer)
        await world.store.transact([FinishTimer(timer), *operations], origin="hub")
        figures = await world.store.state(open_loops.NAMESPACE, open_loops.ROUND)
        if figures and figures["at"] == world.clock.now.isoformat():
            return figures
    raise AssertionError("the round does not end")


async def told(world):
    found = await world.find("Task", code=f"{CODES}|open-loop")
    return sorted((one["focus"]["reference"], one["reasonCode"]["text"].partition(": ")[2]) for one in found)


def said(type_and_id, *codes):
    return sorted((type_and_id, open_loops.WRONG[code]) for code in codes)


async def test_what_comes_without_gets_an_owner_a_due_time_and_a_timer(world):
    await put(world, status="ready")
    await world.react()
    task = (await world.store.read("Task", "t")).tree
    assert task["owner"]["display"] == "Lakeside care coordination"
    assert task["restriction"]["period"]["end"] == "2026-03-09T23:59:59-05:00", "five business days"
    assert (await world.store.timer(escalation.key("t"))).due.isoformat() == "2026-03-06T14:00:00+00:00", "a reminder, at eight"
    assert await sweep(world) == {"at": world.clock.now.isoformat(), "loops": 1, "wrong": {}}


async def test_a_task_that_begins_later_has_its_time_from_then(world):
    await put(world, restriction={"period": {"start": "2026-04-06"}})
    await world.react()
    task = (await world.store.read("Task", "t")).tree
    assert task["restriction"]["period"] == {"start": "2026-04-06", "end": "2026-04-13T23:59:59-05:00"}


async def test_one_that_went_up_to_the_end_under_earlier_rules_comes_back(world):
    level = [{"url": ESCALATED, "extension": [{"url": "level", "valueInteger": 3}]}]
    await put(world, extension=level, **{**OWNED, "restriction": {"period": {"end": "2026-03-01T12:00:00Z"}}})
    await world.react()
    await pass_to(world, 3)
    assert (await world.store.timer(escalation.key("t"))).due > world.clock.now


async def test_a_role_or_an_open_referral_needs_no_owner(world):
    role = [{"text": "Social worker"}]
    await put(world, id="queue", performerType=role)
    patient = {"reference": f"Patient/{await world.lakeside.patient()}"}
    await put(world, "ServiceRequest", "s", status="draft", subject=patient)
    fulfil = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
    await put(world, id="open", code=fulfil, focus={"reference": "ServiceRequest/s"}, **{"for": patient})
    await world.react()
    listed = {loop.name: (loop.owner, loop.wrong) for loop in await open_loops.everything(world.context)}
    assert listed == {"Task/queue": ("any Social worker", ()), "Task/open": ("any that may take it", ())}


async def test_partners_mirrors_and_jobs_are_not_the_hubs_loops(world):
    await world.lakeside.put("Task/t", status="requested", intent="order")
    job = {"coding": [{"system": "https://fhircm.example/CodeSystem/job", "code": "export"}]}
    await put(world, id="job", code=job)
    await world.react()
    assert (await world.store.read("Task", "job")).version == 1
    assert (await sweep(world))["loops"] == 0


OWNED = {"owner": {"display": "Nora"}, "restriction": {"period": {"end": "2026-03-30T12:00:00Z"}}}


@pytest.mark.parametrize(
    ("members", "timer", "codes"),
    [
        ({**OWNED, "owner": None}, timedelta(1), ["no-owner"]),
        ({**OWNED, "restriction": None}, timedelta(1), ["no-due-time"]),
        (OWNED, None, ["no-timer"]),
        ({**OWNED, "restriction": {"period": {"end": "2026-03-01T12:00:00Z"}}}, None, ["no-timer"]),
        (OWNED, -timedelta(1), ["timer-late"]),
        ({}, None, ["no-owner", "no-due-time", "no-timer"]),
        (OWNED, timedelta(1), []),
    ],
)
async def test_a_task_that_breaks_the_rule_is_found_told_once_and_mended(world, members, timer, codes):
    await put(world, **members)
    if timer:
        await world.store.transact(
            [SetTimer(escalation.key("t"), "deadline", world.clock() + timer, {"task": "t"})], origin="test"
        )
    assert ((await sweep(world))["wrong"], await told(world)) == ({}, []), "it has a few minutes"
    await unseen(world)
    world.clock.now += open_loops.GRACE
    assert (await sweep(world))["wrong"] == dict.fromkeys(codes, 1)
    assert await told(world) == said("Task/t", *codes)
    (human,) = (await world.find("Task", code=f"{CODES}|open-loop"))[:1] or [None]
    assert human is None or (human["owner"]["display"], human["status"]) == ("Lakeside care coordination", "ready")
    await world.react()
    await world.timers()
    await world.react()
    assert (await sweep(world))["wrong"] == {}, "it is mended"
    assert await told(world) == said("Task/t", *codes)


async def test_what_the_reaction_has_not_seen_yet_is_not_wrong(world):
    await put(world)
    world.clock.now += timedelta(days=1)
    assert (await sweep(world))["wrong"] == {}, "the worker was away, and catches up"


async def test_timers_that_are_late_because_nobody_worked_tell_nothing(world):
    await put(world, **OWNED)
    await unseen(world)
    await open_loops.begin(world.store)
    due = world.clock.now + timedelta(hours=1)
    await world.store.transact([SetTimer(escalation.key("t"), "deadline", due, {"task": "t"})], origin="test")
    world.clock.now += timedelta(days=1)
    assert (await sweep(world))["wrong"] == {}
    assert (await sweep(world))["wrong"] == {"timer-late": 1}, "a round later it was nobody's absence"


async def test_steps_of_what_is_closed_and_what_is_open_without_steps(opened):
    (whole,) = await opened.find("Task", code=f"{CODES}|transition-of-care")
    steps = await opened.find("Task", part_of=f"Task/{whole['id']}")
    assert (await sweep(opened))["wrong"] == {}
    await put(opened, id=whole["id"], status="completed")
    await unseen(opened)
    opened.clock.now += open_loops.GRACE
    assert (await sweep(opened))["wrong"] == {"whole-closed": len(steps)}
    await opened.react("deadlines")
    await put(opened, id=whole["id"], status="in-progress")
    for step in steps:
        await put(opened, id=step["id"], status="completed")
    await unseen(opened)
    opened.clock.now += open_loops.GRACE
    assert (await sweep(opened))["wrong"] == {"steps-closed": 1}
    assert said(f"Task/{whole['id']}", "steps-closed")[0] in await told(opened)


async def test_an_order_whose_tasks_have_all_ended_is_lost_unless_somebody_has_it(world):
    referral = Referral(world)
    await referral.patients()
    await referral.order()
    assert (await sweep(world))["wrong"] == {}
    await put(world, id=referral.id, status="rejected")
    await unseen(world)
    world.clock.now += open_loops.GRACE
    assert (await sweep(world))["wrong"] == {"order-lost": 1}
    order = f"ServiceRequest/{referral.hospital.id('ServiceRequest/s1')}"
    assert await told(world) == said(order, "order-lost")
    await put(world, id="human", focus={"reference": f"Task/{referral.id}"}, **OWNED)
    await world.react()
    assert (await sweep(world))["wrong"] == {}, "a human has it"
    await put(world, id="human", status="cancelled")
    await put(world, id=referral.id, status="completed")
    assert (await sweep(world))["wrong"] == {}, "a result is there"


async def test_an_order_of_the_hub_that_nobody_takes_up_is_found_and_a_partners_is_its_own(world):
    category = [{"coding": [{"system": SCT, "code": "3457005"}]}]
    patient = await world.lakeside.patient()
    about = {"status": "active", "subject": {"reference": f"Patient/{patient}"}, "category": category}
    await put(world, "ServiceRequest", "s", **about)
    await world.lakeside.put("ServiceRequest/old", intent="order", **about)
    more = [f"a-long-id-as-there-are-{n:041}" for n in range(50)]
    for id in more:
        await put(world, "ServiceRequest", id, **about)
    await unseen(world)
    world.clock.now += open_loops.GRACE
    assert (await sweep(world))["wrong"] == {"order-unanswered": 51}
    assert said("ServiceRequest/s", "order-unanswered")[0] in await told(world)


async def test_a_round_goes_on_where_it_was_and_its_pages_are_of_one_size(world, monkeypatch):
    monkeypatch.setattr(open_loops, "PAGE", 2)
    for n in range(5):
        await put(world, id=f"t{n}", **OWNED)
    await world.store.transact([CancelTimer(open_loops.KIND)], origin="test")
    await open_loops.begin(world.store)
    first = await world.store.timer(open_loops.KIND)
    await open_loops.begin(world.store)
    assert await world.store.timer(open_loops.KIND) == first, "one check, however many workers start"
    await unseen(world)
    assert (await sweep(world))["loops"] == 5
    assert (await sweep(world))["wrong"] == {"no-timer": 5}


async def test_pages_after_a_round_find_what_came_since(opened):
    await sweep(opened)
    await put(opened, id="later")
    await pass_to(opened, 3)
    assert (await sweep(opened))["wrong"] == {}


async def test_metrics_tell_the_last_whole_round(world):
    async def told():
        text = (await Metrics(world.store, [], "x").made()).decode()
        families = [one for one in text_string_to_metric_families(text) if one.name.startswith("fhircm_open_loops")]
        return {(sample.name, *sample.labels.values()): sample.value for one in families for sample in one.samples}

    assert await told() == {}
    await put(world, **OWNED)
    await unseen(world)
    world.clock.now += open_loops.GRACE
    await sweep(world)
    figures = await told()
    assert (figures["fhircm_open_loops",], figures["fhircm_open_loops_wrong", "no-timer"]) == (1, 1)
    assert figures["fhircm_open_loops_wrong", "no-owner"] == 0
    assert figures["fhircm_open_loops_checked_timestamp_seconds",] == world.clock.now.timestamp()


async def test_the_command_lists_what_is_open_and_fails_when_anything_is_wrong(world, database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"FHIRCM_DATABASE_URL": database_url, "FHIRCM_AUDIT": "false", "FHIRCM_KEYS_DIR": str(tmp_path / "keys")}
    world.clock.now = world.clock.now.replace(year=2020)
    due = {"period": {"end": "2120-03-30T12:00:00Z"}}
    await put(world, id="good", **{**OWNED, "status": "accepted", "restriction": due})
    await world.react()
    done = commands.run("loops", **settings)
    assert (done.returncode, done.stderr.strip()) == (0, "1 open, 0 wrong")
    assert done.stdout.split("\t")[:4] == ["Task/good", "accepted", "Nora", "2120-03-29T08:00-05:00"]
    await put(world, id="bad", **{**OWNED, "owner": None})
    await unseen(world)
    done = commands.run("loops", "--wrong", **settings)
    assert (done.returncode, done.stderr.strip()) == (1, "2 open, 1 wrong")
    assert done.stdout.startswith("Task/bad\trequested\tnobody\t-\tnobody has it")
