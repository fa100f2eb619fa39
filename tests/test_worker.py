"""The worker: what fails is parked and told, holds back nobody, and is done again when a human asks; two workers do nothing twice."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count
from uuid import NAMESPACE_URL, uuid5

import pytest

from fhircm import worker as working
from fhircm.fhir.outcome import Conflict, NotFound
from fhircm.fhir.validation import check_tree
from fhircm.reactions import Reaction, TimerHandler
from fhircm.store.database import open_database
from fhircm.store.resources import Put, SetState, SetTimer, Store
from fhircm.worker import Worker, parked_at


def basic(id, text="x"):
    return Put(check_tree({"resourceType": "Basic", "id": id, "code": {"text": text}}))


def task_id(where, what):
    return str(uuid5(NAMESPACE_URL, f"{where} {what}"))


def task_of(where, what, error):
    return basic(task_id(where, what), f"{where} failed at {what}")


async def unpark(where, what):
    return [basic(task_id(where, what), "done")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(working, "RETRY", 0.0)


@pytest.fixture
def made(store):
    """A worker over reactions: name to function of a change."""

    def make(at=store, timers=(), **functions):
        reactions = [Reaction(name, frozenset({"Patient"}), function) for name, function in functions.items()]
        return Worker(at, reactions, timers, task_of, unpark)

    return make


async def patients(store, *ids):
    for id in ids:
        await store.transact([Put(check_tree({"resourceType": "Patient", "id": id}))], origin="test")


def seen_by(name, broken=()):
    async def function(change):
        if change.id in broken:
            raise ValueError("Marker-Family")
        return [SetState(f"seen:{name}", f"{change.id}/{change.version}", {})]

    return function


async def test_what_fails_is_parked_and_told_and_everything_else_goes_on(store, made, caplog):
    await patients(store, "a", "b", "c")
    worker = made(good=seen_by("good"), bad=seen_by("bad", broken={"b"}))
    await worker.run_until_idle()
    assert list(await store.states("seen:good")) == ["a/1", "b/1", "c/1"]
    assert list(await store.states("seen:bad")) == ["a/1", "c/1"]
    assert await store.states(parked_at("bad")) == {"Patient/b/_history/1": {"reason": "ValueError"}}
    assert (await store.read("Basic", task_id("bad", "Patient/b/_history/1"))).tree["code"][
        "text"
    ] == "bad failed at Patient/b/_history/1"
    assert "Marker-Family" not in caplog.text


async def test_what_was_parked_is_done_again_once(store, made, other):
    await patients(store, "a")
    broken = {"a"}
    worker = made(bad=seen_by("bad", broken))
    await worker.run_until_idle()
    with pytest.raises(ValueError, match="Marker"):
        await worker.replay("bad", "Patient/a/_history/1")
    assert await store.states(parked_at("bad")), "what fails again goes on waiting"
    broken.clear()
    outcomes = await asyncio.gather(
        *(made(at, bad=seen_by("bad")).replay("bad", "Patient/a/_history/1") for at in (store, other)), return_exceptions=True
    )
    assert sum(one is None for one in outcomes) == 1
    assert {type(one) for one in outcomes} <= {type(None), Conflict, NotFound}
    assert list(await store.states("seen:bad")) == ["a/1"]
    assert await store.states(parked_at("bad")) == {}
    told = await store.read("Basic", task_id("bad", "Patient/a/_history/1"))
    assert (told.version, told.tree["code"]["text"]) == (2, "done")
    with pytest.raises(NotFound):
        await worker.replay("bad", "Patient/a/_history/1")


async def test_a_timer_that_fails_is_parked_each_time_it_was_due_and_done_again(store, made, clock):
    broken = True

    async def ring(timer):
        if broken:
            raise ValueError
        return [SetState("rung", timer.payload["n"], {"due": timer.due.isoformat()})]

    worker = made(timers=[TimerHandler("bell", ring)])
    for n in ("first", "second"):  # under one key
        await store.transact([SetTimer("t", "bell", clock(), {"n": n})], origin="test")
        for _ in range(working.ATTEMPTS):
            await worker.run_timers()
        clock.advance(timedelta(hours=1))
    assert await store.claim_timers({"bell"}, limit=9, lease=timedelta(0)) == []
    waiting = await store.states(parked_at("bell"))
    assert [row["payload"]["n"] for row in waiting.values()] == ["first", "second"]
    broken = False
    for what in waiting:
        await worker.replay("bell", what)
    assert {n: row["due"] for n, row in (await store.states("rung")).items()} == {
        "first": "2026-03-02T15:00:00+00:00",
        "second": "2026-03-02T16:00:00+00:00",
    }
    assert await store.states(parked_at("bell")) == {}


@pytest.fixture
async def other(database_url, clock):
    opened = Store(await open_database(database_url), clock=clock)
    yield opened
    await opened.close()


async def test_two_workers_react_to_each_change_once_and_in_order(store, other, made):
    """What a reaction writes and its cursor commit together, so the order of its writes is the order of the changes."""
    await patients(store, *(f"p{n:02}" for n in range(30)))

    async def number(change):
        await asyncio.sleep(0)
        return [basic(f"of-{change.id}")]

    await asyncio.gather(*(made(at, numbered=number).run_until_idle() for at in (store, other)))
    following = count(31)
    for n in range(30):
        of = await store.change("Basic", f"of-p{n:02}", 1)
        assert (of.version, of.position.number) == (1, next(following)) or store.database.dialect == "postgresql"
    with pytest.raises(NotFound):
        await store.change("Basic", "of-p00", 2)


async def test_one_whose_partner_is_stuck_delays_no_other(store, made):
    stuck, done = asyncio.Event(), asyncio.Event()

    async def waits():
        stuck.set()
        await asyncio.Event().wait()

    async def works():
        await stuck.wait()
        done.set()
        await asyncio.sleep(3600)

    worker = made(good=seen_by("good"))
    worker.partners = {"down": waits, "up": works}
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(done.wait(), 30)
    await patients(store, "late")
    while "late/1" not in await store.states("seen:good"):
        await store.wait(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def at_work(worker):
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_reactions_that_are_woken_together_read_where_they_stand_and_what_came_once(store, made, monkeypatch):
    """A hub has a dozen reactions: to read the same for each of them took longer than to react."""
    reads, names = [], [f"r{number}" for number in range(8)]
    monkeypatch.setattr(working, "IDLE", 60.0)

    def noting(name, method):
        async def read(*arguments, **options):
            reads.append(name)
            return await method(*arguments, **options)

        return read

    for name in ("cursors", "changes"):
        monkeypatch.setattr(store, name, noting(name, getattr(store, name)))

    async def until(count):
        async with asyncio.timeout(30):
            while [len(await store.states(f"seen:{name}")) for name in names] != [count] * 8:
                await asyncio.sleep(0.01)

    async def quiet():
        """Until nothing more is read."""
        known = -1
        while known != len(reads):
            known = len(reads)
            await asyncio.sleep(0.5)

    async with at_work(made(**{name: seen_by(name) for name in names})):
        await patients(store, "a")
        await until(1)
        await quiet()
        reads.clear()
        await store.transact([basic("nobody-reacts-to-this")], origin="test")
        async with asyncio.timeout(30):
            while not reads:
                await asyncio.sleep(0.01)
        await quiet()
        assert reads == ["cursors", "changes"]
        await patients(store, "b")
        await until(2)


async def test_a_change_behind_a_transaction_that_had_not_ended_is_reacted_to_as_soon_as_it_has(store, other, made, monkeypatch):
    """PostgreSQL: nobody is told when a transaction ends that wrote no resource, and the next change may be an hour away."""
    if store.database.dialect == "sqlite":
        return  # has one writer at a time: nothing is ever held up
    monkeypatch.setattr(working, "IDLE", 60.0)
    held_up = asyncio.Event()

    async def changes(*arguments, _changes=store.changes, **options):
        found = await _changes(*arguments, **options)
        if found.held_up:
            held_up.set()
        return found

    monkeypatch.setattr(store, "changes", changes)
    async with at_work(made(good=seen_by("good"))):
        async with other.database.writing() as connection:
            await connection.fetchval("SELECT pg_current_xact_id()")
            await patients(store, "a")
            await asyncio.wait_for(held_up.wait(), 30)
            assert await store.states("seen:good") == {}
        async with asyncio.timeout(30):
            while not await store.states("seen:good"):
                await asyncio.sleep(0.005)
