"""A job goes on where it stood, in any worker; a slice counts once; it ends when it is told to; what fails is told."""

import asyncio
from datetime import timedelta

import pytest

from fhircm.coordination.rules import RULES
from fhircm.fhir.outcome import Conflict, NotFound
from fhircm.fhir.validation import check_tree
from fhircm.jobs import job as jobs
from fhircm.jobs import running
from fhircm.jobs.job import JobFailed, Kind, Step, cancel, listed, start, timer_key, told
from fhircm.store.resources import CancelTimer, Delete, Put, RepeatTimer, SetState
from fhircm.store.timers import StaleClaim


@pytest.fixture
async def store(store):
    store.rules = RULES  # a job lives by the rules for Tasks
    return store


def counting(upto, raises=()):
    """A job that counts, and writes each number down."""
    errors = list(raises)

    async def slice(means, job):
        if errors and (error := errors.pop(0)):
            raise error
        n = job.state.get("n", 0) + 1
        fact = SetState("counted", f"{job.id}/{n:02}", {}, if_absent=True)
        return Step({"n": n}, n, upto, [fact], finished=n == upto)

    return {"reindex": Kind(slice, lambda id: [SetState("undone", id, {})])}


async def counted(store, id):
    return len(await store.states("counted", id))


async def status(store, id):
    return (await store.read("Task", id)).tree["status"]


async def test_a_job_is_a_task_and_tells_how_far_it_is(store, run):
    id = await start(store, "reindex", {}, client="app", inputs=[("type", "Patient")])
    task = (await store.read("Task", id)).tree
    assert (task["status"], task["requester"]["identifier"]["value"]) == ("ready", "app")
    assert await run(kinds=counting(30), slices=17) == 17
    (row,) = await listed(store)
    assert told(row)[:4] == [id, "reindex", "in-progress", "17 of 30"]
    assert (await store.read("Task", id)).tree["businessStatus"]["text"] == "15 of 30"
    await run(kinds=counting(30))
    task = await store.read("Task", id)
    assert (task.tree["status"], task.tree["businessStatus"]["text"]) == ("completed", "30 of 30")
    assert task.version == 12, "the start, every tenth of the way, and the end"
    assert await counted(store, id) == 30
    assert await store.timer(timer_key(id)) is None
    with pytest.raises(Conflict):
        await cancel(store, counting(30), id)


async def test_two_workers_do_no_slice_twice(store, other, run):
    ids = [await start(store, "reindex", {}) for _ in range(3)]
    kinds = counting(12)
    await asyncio.gather(*(run(at, kinds) for at in (store, other)))
    assert [await counted(store, id) for id in ids] == [12, 12, 12]
    assert {await status(store, id) for id in ids} == {"completed"}


async def test_a_slice_whose_claim_was_lost_counts_for_nothing(store, other, run, monkeypatch):
    async def silent(*_):  # as of a worker that hangs
        pass

    monkeypatch.setattr(running, "_hold", silent)
    id = await start(store, "reindex", {})
    kinds = counting(3)
    slow, go_on = asyncio.Event(), asyncio.Event()

    async def slice(means, job):
        slow.set()
        await go_on.wait()
        return await kinds["reindex"].slice(means, job)

    late = asyncio.create_task(
        running.run_jobs(jobs.Means(other, "http://hub.example/fhir", 1.0), {"reindex": Kind(slice)}, timedelta(0))
    )
    await slow.wait()
    await run(kinds=kinds)
    go_on.set()
    assert await late == 1
    assert await counted(store, id) == 3
    assert await status(store, id) == "completed"


async def test_a_slow_slice_keeps_its_claim(store, other, run):
    id = await start(store, "reindex", {})
    kinds = counting(1)

    async def slice(means, job):
        for _ in range(6):
            await asyncio.sleep(0.05)
            assert await running.run_jobs(jobs.Means(other, "", 1.0), kinds, timedelta(seconds=9)) == 0
        return await kinds["reindex"].slice(means, job)

    means = jobs.Means(store, "http://hub.example/fhir", 1.0)
    assert await running.run_jobs(means, {"reindex": Kind(slice)}, timedelta(seconds=0.2)) == 1
    assert await status(store, id) == "completed"


@pytest.mark.parametrize("way", ["cancel", "update", "delete"])
async def test_a_job_is_cancelled_at_any_time_and_cleared_up(store, run, way):
    id = await start(store, "reindex", {})
    kinds = counting(9)
    await run(kinds=kinds, slices=4)
    if way == "cancel":
        await cancel(store, kinds, id)
    elif way == "update":
        await store.transact([jobs.edit(await store.read("Task", id), status="cancelled")], origin="client:app")
    else:
        await store.transact([Delete("Task", id)], origin="client:app")
    await run(kinds=kinds)
    assert await counted(store, id) == 4
    assert list(await store.states("undone")) == [id]
    assert await store.timer(timer_key(id)) is None


async def test_a_slice_that_is_under_way_when_its_job_is_cancelled_commits_nothing(store, run):
    id = await start(store, "reindex", {})
    kinds = counting(9)

    async def slice(means, job):
        step = await kinds["reindex"].slice(means, job)
        await cancel(store, kinds, id)
        return step

    await run(kinds={"reindex": Kind(slice)})
    assert (await counted(store, id), await status(store, id)) == (0, "cancelled")


async def test_what_fails_is_tried_again_later_each_time_and_then_told(store, run, clock, caplog):
    id = await start(store, "reindex", {})
    kinds = counting(9, [None, *(ValueError("Marker-Family") for _ in range(running.ATTEMPTS))])
    waits = []
    while await status(store, id) != "failed":
        while not await run(kinds=kinds, slices=1):
            clock.advance(timedelta(seconds=1))
            waits.append(clock())
    assert len(waits) == 1 + 2 + 4 + 8
    task = (await store.read("Task", id)).tree
    assert task["statusReason"]["text"] == "ValueError"
    assert "Marker-Family" not in caplog.text
    assert list(await store.states("undone")) == [id]


async def test_one_that_cannot_succeed_is_told_at_once(store, run):
    id = await start(store, "reindex", {})
    await run(kinds=counting(9, [JobFailed("The disk is full")]))
    task = (await store.read("Task", id)).tree
    assert (task["status"], task["statusReason"]["text"]) == ("failed", "The disk is full")
    assert told((await listed(store))[0])[-1] == "The disk is full"


async def test_one_that_ends_its_worker_again_and_again_is_given_up(store, run):
    id = await start(store, "reindex", {})
    for _ in range(running.DEATHS):
        assert await store.claim_timers({"job:reindex"}, limit=1, lease=timedelta(0))
    await run(kinds=counting(9))
    assert await status(store, id) == "failed"


async def test_a_job_on_hold_waits(store, run, clock):
    id = await start(store, "reindex", {})
    kinds = counting(5)
    await run(kinds=kinds, slices=2)
    await store.transact([jobs.edit(await store.read("Task", id), status="on-hold")], origin="client:app")
    await run(kinds=kinds)
    assert await counted(store, id) == 2
    await store.transact([jobs.edit(await store.read("Task", id), status="in-progress")], origin="client:app")
    clock.advance(running.HELD)
    await run(kinds=kinds)
    assert await status(store, id) == "completed"


async def test_only_a_job_can_be_cancelled(store):
    task = {"resourceType": "Task", "id": "t", "status": "ready", "intent": "order"}
    await store.transact([Put(check_tree(task))], origin="test")
    for id in ("t", "nothing"):
        with pytest.raises(NotFound):
            await cancel(store, counting(1), id)


async def test_repeating_a_timer_that_is_not_there_is_refused(store, clock):
    await start(store, "reindex", {})
    (timer,) = await store.claim_timers({"job:reindex"}, limit=1, lease=timedelta(seconds=9))
    await store.transact([CancelTimer(timer.key)], origin="test")
    with pytest.raises(StaleClaim):
        await store.transact([RepeatTimer(timer, clock(), {})], origin="test")
