"""SIGKILL at any point of the story: started again, it finishes, with nothing lost, nothing doubled, and nothing sent twice.

The EHR itself pulls the trigger: told the worker's process id, it kills it when a request arrives, before or after it has
acted on it. So every point at which the hub and a partner could disagree is met exactly, without a line of code in the product.
"""

import pytest

from tests.faults.stubborn import ENVIRONMENT, POINTS, AtChanges, AtRequests, Stubborn, struck, told
from tests.flows.outcome import assert_nothing_is_doubled, assert_the_story_is_whole


@pytest.fixture
async def story(tmp_path, database_url):
    telling = Stubborn(tmp_path, database_url, humans=16, environment=ENVIRONMENT)
    await telling.open()
    telling.start_worker()
    yield telling
    telling.close()


async def test_the_worker_killed_before_and_after_each_kind_of_request(story):
    killer = AtRequests(story, POINTS)
    await killer.arm()
    async with struck(story, killer):
        await told(story)
    assert not any(killer.left.values()), "every point was met"
    await assert_nothing_is_doubled(story)
    await assert_the_story_is_whole(story)


async def test_the_hub_and_the_worker_killed_every_so_many_changes(story):
    killer = AtChanges(story, seed=11)
    async with struck(story, killer):
        await told(story)
    assert min(killer.killed.values()) > 0
    await assert_nothing_is_doubled(story)
    await assert_the_story_is_whole(story)
