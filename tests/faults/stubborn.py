"""The story under fire: parties that try again, as real ones do, and those who end and start the hub's processes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from random import Random
from time import monotonic

import httpx

from fhircm.demo import steps
from fhircm.demo.processes import DidNotStart
from fhircm.demo.story import CLINIC, HOSPITAL, Story
from fhircm.exchange.trust import trust
from fhircm.fhir.outcome import FhirError
from fhircm.store.database import open_database

# A worker that was killed leaves its lease behind: short ones keep the tests short.
ENVIRONMENT = {"FHIRCM_LEASE": "PT1S", "FHIRCM_PULL_INTERVAL": "PT1S"}
PATIENCE = (
    240  # seconds. Nothing waits so long for its own sake: a loaded machine starts a process in ten seconds instead of one.
)


class Stubborn(Story):
    """A telling in which the worker does all the pulling, and in which everybody asks again until the hub answers."""

    async def command(self, *arguments, quiet=False):
        return 0 if arguments[0] == "pull" else await super().command(*arguments, quiet=quiet)

    async def until(self, what, look, seconds=PATIENCE):
        return await super().until(what, look, seconds)

    async def token(self, client):
        return await self.answered(lambda: super(Stubborn, self).token(client))

    async def read(self, path, client="reader"):
        return await self.answered(lambda: super(Stubborn, self).read(path, client))

    async def answered(self, ask):
        """What somebody gets who asks until there is an answer."""
        end = monotonic() + PATIENCE
        while monotonic() < end:
            try:
                return await ask()
            except (httpx.TransportError, FhirError):
                await asyncio.sleep(0.1)
        return await ask()

    async def accepted(self, referral):
        """The clinic accepts. When the answer is lost its app looks first whether it was heard."""

        async def accept():
            if (await self.read(referral.task))["status"] == "requested":
                await steps.accept(self, referral)

        await self.answered(accept)

    async def news(self, party, count):
        """Wait until a party has had so many messages: what is overtaken by the next step would not be told at all."""

        async def had():
            return sum(one["type"] == "Communication" for one in await self.received(party)) >= count

        await self.until(f"message {count} to {party}", had)


async def told(story):
    """The whole story, by the steps that `fhircm demo` takes."""
    transition = await steps.discharge(story)
    referral = await steps.refer(story)
    await story.news(CLINIC, 3)  # the discharge, whom to expect, the referral
    await story.accepted(referral)
    await story.news(HOSPITAL, 1)
    await steps.book(story, referral)
    await story.news(HOSPITAL, 2)
    await steps.report(story, referral)
    assert len(await steps.refer_a_stranger(story)) == 1
    assert (await steps.let_the_deadline_pass(story, transition)).messages == 1


class AtRequests:
    """Ends the worker when a request of it reaches an EHR, before or after the EHR has acted on it; starts it again for the next."""

    def __init__(self, story, points):
        self.story, self.left = story, {party: list(of_party) for party, of_party in points.items()}
        self.turn = asyncio.Lock()

    async def arm(self):
        """Tell each EHR at which requests of the running worker it shall strike."""
        pid = self.story.processes.running["worker"].pid
        async with httpx.AsyncClient(timeout=30, verify=trust()) as http:
            for party, points in self.left.items():
                url = f"{self.story.doors[party]}/staff/faults"
                await http.delete(url)
                for method, path, action in points:
                    await http.post(url, json={"method": method, "path": path, "action": action, "pid": pid})

    async def _struck(self):
        """Take away the points at which it happened."""
        async with httpx.AsyncClient(timeout=30, verify=trust()) as http:
            for party, points in self.left.items():
                faults = (await http.get(f"{self.story.doors[party]}/staff/faults")).json()
                points[:] = [point for point, fault in zip(points, faults, strict=True) if not fault["seen"]]

    async def run(self):
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(0.05)
            async with self.turn:
                if self.story.processes.running["worker"].poll() is not None:
                    before = sum(map(len, self.left.values()))
                    await self._struck()
                    assert sum(map(len, self.left.values())) < before, "the worker ended by itself"
                    self.story.start_worker()
                    await self.arm()


class AtChanges:
    """Ends the hub or the worker whenever so many more changes have been committed, and starts it again."""

    def __init__(self, story, seed):
        self.story, self.random = story, Random(seed)
        self.turn = asyncio.Lock()
        self.killed = {"hub": 0, "worker": 0}

    async def run(self):
        """Watch until cancelled."""
        database = await open_database(self.story.database_url)
        try:
            following = 0
            while True:
                await asyncio.sleep(0.01)
                async with self.turn, database.reading() as connection:
                    number = await connection.fetchval("SELECT MAX(number) FROM change") or 0
                if number >= following:
                    following = number + self.random.randrange(4, 60)
                    async with self.turn:
                        await self._strike(self.random.choice(["worker", "worker", "hub"]))
        finally:
            await database.close()

    async def _strike(self, name):
        self.story.processes.kill(name)
        self.killed[name] += 1
        if name == "worker":
            self.story.start_worker()
            return
        try:
            await self.story.start_hub()
        except DidNotStart as error:
            raise AssertionError(error) from None


@asynccontextmanager
async def struck(story, killer):
    """While this lasts, `killer` does its work; moving the clock, which restarts both processes in order, is left alone."""
    move = story.move_clock

    async def move_clock(by):
        async with killer.turn:
            await move(by)
            if hasattr(killer, "arm"):
                await killer.arm()

    story.move_clock = move_clock
    task = asyncio.create_task(killer.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


POINTS = {
    HOSPITAL: [
        ("GET", "/Group", "kill:before"),
        ("GET", "/Encounter", "kill:after"),
        ("GET", "/CarePlan", "kill:before"),
        ("GET", "/PractitionerRole", "kill:after"),
        ("POST", "/Communication", "kill:before"),
        ("POST", "/Communication", "kill:after"),
        ("PUT", "/ServiceRequest", "kill:before"),
        ("PUT", "/ServiceRequest", "kill:after"),
        ("POST", "/DocumentReference", "kill:before"),
        ("POST", "/DocumentReference", "kill:after"),
    ],
    CLINIC: [
        ("GET", "/Patient", "kill:after"),
        ("GET", "/CareTeam", "kill:before"),
        ("POST", "/DocumentReference", "kill:before"),
        ("POST", "/DocumentReference", "kill:after"),
        ("POST", "/Communication", "kill:before"),
        ("POST", "/Communication", "kill:after"),
    ],
}
