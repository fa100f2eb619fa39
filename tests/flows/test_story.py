"""The main job as a user gets it: real processes, real HTTP, on both databases."""

import pytest

from fhircm.demo import steps
from fhircm.demo.story import CLINIC, HOSPITAL, Story
from tests.flows.outcome import assert_nothing_is_doubled, assert_the_story_is_whole


@pytest.fixture
async def story(tmp_path, database_url, launched_by_python, monkeypatch):
    telling = Story(tmp_path, database_url, humans=16)
    if database_url.startswith("sqlite"):  # once, every process is started as for a user
        monkeypatch.setattr(telling.processes, "launch", launched_by_python)
    await telling.open()
    yield telling
    telling.close()


async def counted(story):
    return {
        type: (await story.read(f"{type}?_summary=count"))["total"] for type in ("Patient", "Encounter", "Provenance", "Task")
    }


async def test_a_discharge_and_a_referral_until_each_loop_is_closed(story):
    for name in (HOSPITAL, CLINIC):
        assert await story.command("partner", "check", name) == 0
    assert await story.command("pull") == 0
    first = await counted(story)
    assert await story.command("pull") == 0
    assert await counted(story) == first, "a second pull of unchanged data writes nothing"
    story.start_worker()

    transition = await steps.discharge(story)
    due = sorted(task["restriction"]["period"]["end"] for task in transition.tasks)
    assert len(transition.tasks) == 3
    assert all(task["owner"].get("reference") for task in transition.tasks)

    referral = await steps.refer(story)
    assert "DocumentReference" in referral.delivered, "the clinic can be given neither Task nor ServiceRequest"
    await steps.accept(story, referral)
    await steps.book(story, referral)
    closed = await steps.report(story, referral)
    assert {"ServiceRequest", "DocumentReference", "Communication"} <= set(closed.delivered)
    task = await story.read(referral.task)
    assert task["output"][0]["valueReference"]["reference"].startswith("DocumentReference/")

    reasons = await steps.refer_a_stranger(story)
    assert len(reasons) == 1

    escalated = await steps.let_the_deadline_pass(story, transition)
    assert escalated.before != escalated.after
    assert escalated.messages == 1
    assert due[0] < due[-1]

    await assert_nothing_is_doubled(story)
    await assert_the_story_is_whole(story)
    told = await story.find(f"Provenance?patient={referral.patient}&_sort=recorded")
    assert {"Task", "ServiceRequest"} <= {target["reference"].split("/")[0] for one in told for target in one["target"]}
