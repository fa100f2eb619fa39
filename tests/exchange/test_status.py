"""How a partner is doing is told from what is kept, in words and with what to do."""

from datetime import timedelta

import pytest

from fhircm.exchange import breaker, dead_letters, pull
from fhircm.exchange.due import Due
from fhircm.exchange.news import due
from fhircm.exchange.status import PULLED, Verdict, rendered, status
from fhircm.store.resources import Hold, SetState
from tests.exchange.test_pull import Ehr, partner

NORTH = "north-clinic"


async def pulled(store, **row):
    now = store.clock().isoformat()
    facts = {"at": now, "success": now, **row}
    await store.transact([SetState(PULLED, NORTH, facts), due(NORTH, store.clock() + timedelta(minutes=5))], origin="hub")


async def test_one_that_was_never_pulled_is_told_with_what_to_do(store):
    found = await status(store, partner())
    assert (found.verdict, found.last_success) == (Verdict.ATTENTION, None)
    assert "fhircm partner check north-clinic" in rendered(found)


async def test_one_that_is_well_has_nothing_to_do(store):
    async with Ehr(2).client() as client:
        await pull.pull(store, client)
    await pulled(store)
    found = await status(store, partner())
    assert (found.verdict, found.concerns, found.queue) == (Verdict.WELL, [], 0)
    assert {one.type for one in found.types} >= {"Patient", "Encounter", "Condition"}
    assert rendered(found).startswith("north-clinic (epic): well\n")


async def test_a_pull_that_failed_is_down_until_one_succeeds(store):
    await pulled(store, why="north-clinic answered 503 to GET /fhir/Group/panel", success=None)
    found = await status(store, partner())
    assert found.verdict is Verdict.DOWN
    assert "and never did: north-clinic answered 503" in rendered(found)
    await pulled(store)
    assert (await status(store, partner())).verdict is Verdict.WELL


async def test_a_round_that_is_overdue_says_that_nobody_works(store, clock):
    await pulled(store)
    clock.advance(timedelta(hours=1))
    found = await status(store, partner())
    assert found.verdict is Verdict.DOWN
    assert "`fhircm work` running" in rendered(found)


@pytest.mark.parametrize(("kind", "verdict"), [("refused", Verdict.ATTENTION), ("withheld", Verdict.WAITING)])
async def test_dead_letters_are_counted_by_kind(store, kind, verdict):
    await pulled(store)
    await store.transact([SetState(dead_letters.parked(NORTH), "Task/1/x/1", {"why": kind})], origin="hub")
    found = await status(store, partner())
    assert (found.verdict, found.letters) == (verdict, {kind: 1})
    assert f"fhircm dead-letters list north-clinic --kind {kind}" in rendered(found)


async def test_an_open_breaker_a_long_queue_and_quarantine_are_told(store, clock):
    begun = clock().isoformat()
    row = {"failures": 3, "trips": 1, "since": begun, "until": (clock() + timedelta(hours=3)).isoformat(), "why": "503", "of": []}
    waiting = Due("1:Task/1", "Patient/1", "Task", "1", 1, "referral-sent", begun).put(NORTH)
    held = Hold(NORTH, "Task/9 in Patient/1", "misplaced", "d", "It is about somebody else", b"{}", "Patient/1")
    await store.transact([SetState(breaker.namespace(NORTH), breaker.WHOLE, row), waiting, held], origin="hub")
    clock.advance(timedelta(hours=2))
    await pulled(store)
    found = await status(store, partner())
    assert (found.verdict, found.queue, found.held) == (Verdict.DOWN, 1, {"misplaced": 1})
    told = rendered(found)
    assert "Nothing is sent to it until" in told
    assert "1 deliveries wait, the oldest since" in told
    assert "came in the record of a patient whom it is not about" in told
