"""A timer fires once when it is due, whoever claims it, and survives those who fall silent."""

from datetime import timedelta

import pytest

from fhircm.store import timers as timing
from fhircm.store.resources import CancelTimer, FinishTimer, SetState, SetTimer
from fhircm.store.timers import StaleClaim

HOUR = timedelta(hours=1)


async def claim(store, lease=HOUR, limit=10):
    return await store.claim_timers({"due"}, limit=limit, lease=lease)


@pytest.fixture
async def timer(store, clock):
    await store.transact([SetTimer("t", "due", clock() + HOUR, {"task": "1"})], origin="test")


async def test_it_is_claimed_when_it_is_due_and_by_one(store, other, clock, timer):
    assert await claim(store) == []
    clock.advance(HOUR)
    assert [one.key for one in await claim(store)] == ["t"]
    assert await claim(other) == []
    assert await store.claim_timers({"another"}, limit=10, lease=HOUR) == []


async def test_one_whose_claim_ran_out_can_finish_nothing(store, other, clock, timer):
    clock.advance(HOUR)
    (first,) = await claim(store, lease=timedelta())
    (second,) = await claim(other)
    assert (first.payload, second.attempts) == ({"task": "1"}, 2)
    with pytest.raises(StaleClaim):
        await store.transact([SetState("done", "by", {"first": True}), FinishTimer(first)], origin="test")
    assert await store.state("done", "by") is None
    await other.transact([SetState("done", "by", {"second": True}), FinishTimer(second)], origin="test")
    assert await store.state("done", "by") == {"second": True}
    assert await claim(store) == []


async def test_one_that_is_set_anew_replaces_and_makes_the_claim_stale(store, clock, timer):
    clock.advance(HOUR)
    (claimed,) = await claim(store)
    await store.transact([SetTimer("t", "due", clock() + HOUR, {"task": "2"})], origin="test")
    with pytest.raises(StaleClaim):
        await store.transact([FinishTimer(claimed)], origin="test")
    assert await claim(store) == []
    clock.advance(HOUR)
    assert [(one.payload, one.attempts) for one in await claim(store)] == [({"task": "2"}, 1)]


async def test_one_that_is_given_back_is_due_again(store, clock, timer):
    clock.advance(HOUR)
    (claimed,) = await claim(store)
    await store.retry_timer(claimed, clock() + HOUR)
    assert await claim(store) == []
    clock.advance(HOUR)
    (again,) = await claim(store)
    assert again.attempts == 2
    with pytest.raises(StaleClaim):
        await store.retry_timer(claimed, clock())


async def test_one_that_is_cancelled_never_fires(store, clock, timer):
    await store.transact([CancelTimer("t")], origin="test")
    clock.advance(HOUR)
    assert await claim(store) == []


async def test_the_longest_due_come_first(store, clock):
    timers = [SetTimer(f"t{n}", "due", clock() - n * HOUR, {}) for n in range(5)]
    await store.transact(timers, origin="test")
    assert [one.key for one in await claim(store, limit=3)] == ["t4", "t3", "t2"]
    assert [one.key for one in await claim(store, limit=3)] == ["t1", "t0"]


async def test_a_lease_is_held_by_one_until_it_is_given_back_or_runs_out(store, other):
    assert await store.lease("partner", "a", 60)
    assert not await other.lease("partner", "b", 60)
    assert await store.lease("partner", "a", 60), "its holder may renew it"
    await other.release("partner", "b")
    assert not await other.lease("partner", "b", 60), "only its holder can give it back"
    await store.release("partner", "a")
    assert await other.lease("partner", "b", 0)
    assert await store.lease("partner", "a", 60), "it had run out"


class Heard:
    """A connection that only hears what it is asked."""

    def __init__(self):
        self.asked = []

    async def fetchval(self, sql, *arguments):
        self.asked.append((sql, arguments))

    async def fetch(self, sql, *arguments):
        self.asked.append((sql, arguments))
        return []


async def explained(connection, dialect, sql, arguments):
    """How a database carries out a statement, whatever the values are."""
    if dialect == "sqlite":
        return await connection.fetch(f"EXPLAIN QUERY PLAN {sql}", *arguments)
    await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE asked AS {sql}")
    values = ", ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in arguments)
    rows = await connection.fetch(f"EXPLAIN EXECUTE asked ({values})")
    await connection.execute("DEALLOCATE asked")
    return rows


async def test_what_is_due_is_found_by_the_index_among_many_that_are_not(store, clock):
    """PostgreSQL plans for any moment once it has met a statement a few times, and takes a third of the timers to be due."""
    heard, dialect = Heard(), store.database.dialect
    await timing.any_due(heard, ["due"], clock(), 0.0)
    await timing.next_due(heard, ["due"], 0.0)
    await timing.claim_timers(heard, dialect, ["due"], clock(), 0.0, 10, HOUR)
    numbers = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)"
    async with store.database.writing() as connection:
        await connection.execute(
            f"{numbers} INSERT INTO timer (key, kind, due, payload) SELECT 't' || n, 'due', n, '{{}}' FROM n"
        )
        await connection.execute("ANALYZE timer")
        for sql, arguments in heard.asked:
            rows = await explained(connection, dialect, sql, arguments)
            plan = "\n".join(str(tuple(dict(row).values())) for row in rows)
            assert "timer_due" in plan, plan
            assert "Seq Scan" not in plan, plan
