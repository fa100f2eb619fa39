"""An EHR that is down, slow, throttling or broken delays nobody but itself, and misses nothing once it is well again."""

import re
from datetime import UTC, datetime

import httpx
import pytest

from fhircm.demo import steps
from fhircm.demo.story import CLINIC, HOSPITAL
from fhircm.store.database import open_database
from fhircm.store.resources import Store
from tests.faults.stubborn import ENVIRONMENT, Stubborn
from tests.flows.outcome import assert_nothing_is_doubled

ALWAYS = 10**9
# What the clinic does to every request, and whether a letter can reach it all the same.
TROUBLES = {
    "throttled": ({"action": "429", "seconds": 1}, False),
    "failing": ({"action": "500"}, False),
    "answering in HTML": ({"action": "html"}, False),
    "cutting its JSON": ({"action": "truncate"}, True),
    "slow": ({"action": "delay", "seconds": 0.5}, True),
    "losing its answers": ({"action": "lose"}, True),
}


@pytest.fixture
async def unattended(tmp_path, database_url):
    telling = Stubborn(tmp_path, database_url, humans=30, environment=ENVIRONMENT)
    await telling.open()
    yield telling
    telling.close()


@pytest.fixture
def story(unattended):
    unattended.start_worker()
    return unattended


async def trouble(story, party, **fault):
    async with httpx.AsyncClient() as http:
        if fault:
            await http.post(f"{story.doors[party]}/staff/faults", json={"method": "*", "path": "", "times": ALWAYS, **fault})
        else:
            await http.delete(f"{story.doors[party]}/staff/faults")


async def ordered(story, key):
    """A referral of the hospital's to the clinic: its Task at the hub, and its number."""
    order = await story.staff(HOSPITAL, "order-referral", key=key, known_at_clinic=True)
    focus = story.at_hub(HOSPITAL, order["service_request"])
    task = (await story.until(f"the referral {key}", lambda: story.find(f"Task?focus={focus}")))[0]
    return task, next(one["value"] for one in task["identifier"] if one["system"].endswith("/referral"))


async def letters(story, number, party=CLINIC, type="DocumentReference"):
    return [one for one in await story.received(party) if number in one["identifiers"] and one["type"] == type]


async def accept_while_the_clinic_is_in_trouble(story, task, number):
    await story.accepted(steps.Referral(f"Task/{task['id']}", "", "", number, []))
    await story.until("the news to the hospital", lambda: letters(story, number, HOSPITAL, "Communication"))


async def test_it_delays_only_itself(story):
    known, number = await ordered(story, "first")
    await story.until("the first letter", lambda: letters(story, number))
    for name, (fault, arrives) in TROUBLES.items():
        await trouble(story, CLINIC, **fault)
        await accept_while_the_clinic_is_in_trouble(story, known, number)
        known, number = await ordered(story, name)
        if not arrives:
            assert await letters(story, number) == [], name
        await trouble(story, CLINIC)
        await story.until(f"the letter after the clinic was {name}", lambda number=number: letters(story, number))

    await assert_nothing_is_doubled(story)
    story.processes.kill(CLINIC)
    await accept_while_the_clinic_is_in_trouble(story, known, number)
    known, number = await ordered(story, "down")
    story.start_sandbox(CLINIC, "oracle")
    await story.processes.answering(CLINIC, f"{story.bases[CLINIC]}/metadata")
    await story.until("the letter after the clinic was down", lambda: letters(story, number))

    await trouble(story, CLINIC, action="expire-tokens")
    known, number = await ordered(story, "expired")
    await story.until("the letter after the token had expired", lambda: letters(story, number))

    await assert_nothing_is_doubled(story)
    assert await story.find("Task?code=undelivered") == [], "nothing was given up on"


async def test_who_turns_out_to_know_a_patient_hears_of_the_discharge_that_was_noticed_before(unattended):
    story = unattended
    await trouble(story, CLINIC, method="GET", path="/Patient", action="500")
    story.start_worker()  # it comes to know what the clinic can take, and not yet whom it knows
    await steps.discharge(story)
    await story.until("the clinic's turn", lambda: passed(story, f"push:{CLINIC}"))
    assert await story.received(CLINIC) == []
    await trouble(story, CLINIC)
    await story.news(CLINIC, 1)


async def passed(story, cursor):
    """Whether a cursor stands behind all that has been opened for a discharge."""
    database = await open_database(story.database_url)
    try:
        async with database.reading() as connection:
            opened = await connection.fetchval("SELECT MAX(number) FROM change WHERE type = 'Task'") or 0
        return (await Store(database, clock=lambda: datetime.now(UTC)).cursor(cursor)).number >= opened > 0
    finally:
        await database.close()


async def test_a_pull_that_was_cut_off_goes_on_where_it_was(tmp_path, database_url):
    story = Stubborn(tmp_path, database_url, humans=30, environment=ENVIRONMENT)
    try:
        await story.open()
        for nth in (30, 60, 90):
            await story.until("the lease of the one before to end", lambda: nobody_pulls(story))
            process = story.processes.start("pull", "fhircm.cli", "pull", HOSPITAL)
            await trouble(story, HOSPITAL, method="GET", action="kill:before", nth=nth, times=1, pid=process.pid)
            await story.until("the pull to be cut off", lambda process=process: poll(process))
            assert process.returncode == -9
            await trouble(story, HOSPITAL)
        await story.until("the lease of the one before to end", lambda: nobody_pulls(story))
        process = story.processes.start("pull", "fhircm.cli", "pull", HOSPITAL)
        await story.until("the rest of the pull", lambda: poll(process))
        assert process.returncode == 0
        log = (tmp_path / "logs/pull.log").read_text()
        patients = int(re.findall(r"(\d+) patients", log)[0])
        assert len(await story.find("Patient?_count=500")) == 25
        assert 0 < patients < 25, "those who had been stored before it was cut off were not asked for again"
        versions = {
            one["meta"]["versionId"]
            for type in ("Patient", "Encounter", "Goal")
            for one in await story.find(f"{type}?_count=500")
        }
        assert versions == {"1"}, "nothing was written twice"
    finally:
        story.close()


async def nobody_pulls(story):
    database = await open_database(story.database_url)
    try:
        store = Store(database, clock=lambda: datetime.now(UTC))
        free = await store.lease(f"pull:{HOSPITAL}", "test", 60)
        await store.release(f"pull:{HOSPITAL}", "test")
        return free
    finally:
        await database.close()


async def poll(process):
    return process.poll() is not None
