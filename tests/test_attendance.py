"""Rounds at many partners: one at a time for each, oldest first, and what is slow, failing or dead delays nobody else."""

import asyncio
from collections import Counter
from datetime import timedelta

from fhircm.attendance import BUSY, Attendance, Turn
from fhircm.exchange.news import due
from fhircm.store.resources import SetTimer

MINUTE = timedelta(minutes=1)


class Rounds:
    """Rounds that are counted. Each is due again after a minute of the frozen clock."""

    def __init__(self, store, *names):
        self.store, self.counts, self.running, self.together = store, Counter(), Counter(), Counter()
        self.gates = {}
        self.names = names

    def of(self, name):
        async def go():
            self.counts[name] += 1
            self.running[name] += 1
            self.together[name] = max(self.together[name], self.running[name])
            try:
                if name in self.gates:
                    await self.gates[name].wait()
            finally:
                self.running[name] -= 1
            return Turn(1, self.store.clock() + MINUTE)

        return go

    def attendance(self, holder="one", at_once=32, lease=timedelta(seconds=15)):
        return Attendance(self.store, {name: self.of(name) for name in self.names}, holder, lease, at_once)


async def settled(*attendances):
    """Take rounds until none is due and none runs that can end."""
    while sum([await one.start() for one in attendances]) or any(
        not task.done() for one in attendances for task in one._running.values()
    ):
        await asyncio.sleep(0.002)


async def test_every_partner_has_its_turn_and_the_next_one_after_its_interval(store, clock):
    rounds = Rounds(store, *(f"p{number}" for number in range(40)))
    one, other = rounds.attendance("one", at_once=5), rounds.attendance("other", at_once=5)
    for attendance in (one, other):
        await attendance.plan()
    await settled(one, other)
    assert set(rounds.counts.values()) == {1} and len(rounds.counts) == 40
    clock.advance(MINUTE / 2)
    assert await one.start() == 0
    clock.advance(MINUTE)  # with what jitter adds
    await settled(one, other)
    assert set(rounds.counts.values()) == {2}
    assert set(rounds.together.values()) == {1}


async def test_a_slow_round_delays_nobody_and_is_not_begun_twice(store, clock):
    rounds = Rounds(store, "slow", "a", "b")
    rounds.gates["slow"] = asyncio.Event()
    one, other = rounds.attendance("one", at_once=2), rounds.attendance("other", at_once=2)
    await one.plan()
    for _ in range(3):
        await one.start()
        await other.start()
        await asyncio.sleep(0.05)
    assert rounds.counts == {"slow": 1, "a": 1, "b": 1}
    await store.transact([due("slow", store.clock())], origin="test")  # woken while it runs: the next one follows at once
    await other.start()
    await asyncio.sleep(0.05)
    assert (rounds.counts["slow"], rounds.together["slow"]) == (1, 1)
    rounds.gates.pop("slow").set()
    await asyncio.sleep(0.05)
    clock.advance(BUSY)
    await settled(one, other)
    assert (rounds.counts["slow"], rounds.together["slow"]) == (2, 1)


async def test_one_that_fails_is_tried_again_later_and_one_that_is_unknown_is_dropped(store, clock):
    rounds = Rounds(store, "a")
    attendance = rounds.attendance()
    real, failed = attendance.rounds["a"], []

    async def fails():
        if len(failed) < 2:
            failed.append(True)
            raise RuntimeError("John Smith")
        return await real()

    attendance.rounds = {"a": fails}
    await attendance.plan()
    await store.transact([SetTimer("partner:left", "partner", store.clock(), {"partner": "left"})], origin="test")
    for _ in range(3):
        await settled(attendance)
        clock.advance(timedelta(seconds=10))
    assert (len(failed), rounds.counts["a"]) == (2, 1)
    assert await store.timer("partner:left") is None


async def test_the_rounds_of_a_worker_that_died_are_taken_over(store, clock):
    rounds = Rounds(store, "a")
    rounds.gates["a"] = asyncio.Event()
    dead, alive = rounds.attendance("dead", lease=timedelta(milliseconds=150)), rounds.attendance("alive")
    await dead.plan()
    await dead.start()
    await asyncio.sleep(0.02)
    real, store.release = store.release, lambda *_: asyncio.sleep(0)  # it ends without a word: nothing is given back
    await dead.close()
    store.release = real
    del rounds.gates["a"]
    assert await alive.start() == 0
    for _ in range(100):
        await settled(alive)
        clock.advance(BUSY)
        await asyncio.sleep(0.02)
        if rounds.counts["a"] == 2:
            break
    assert rounds.counts["a"] == 2


async def test_a_worker_that_runs_hears_of_what_is_due(store):
    rounds = Rounds(store, "a")
    task = asyncio.create_task(rounds.attendance().run())
    for number in (1, 2):
        while rounds.counts["a"] < number:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert rounds.counts["a"] == number
        await store.transact([due("a", store.clock())], origin="test")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
