"""How a partner is doing is told from what is kept, in words and with what to do."""

import json
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

from fhircm.exchange import breaker, bulk_due, dead_letters, pull
from fhircm.exchange.bulk_state import Export, Phase, keep
from fhircm.exchange.channels import HEARD, Channels
from fhircm.exchange.due import Due
from fhircm.exchange.freshness import freshness
from fhircm.exchange.looks import Looks
from fhircm.exchange.news import due
from fhircm.exchange.notifications import rows_at
from fhircm.exchange.plan import Look
from fhircm.exchange.status import PULLED, Verdict, rendered, status, statuses
from fhircm.exchange.status_json import as_json
from fhircm.exchange.subscription_rows import Row
from fhircm.metrics import Metrics
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
    assert "1 delivery in line, the oldest since" in told
    assert "came in the record of a patient whom it is not about" in told


async def test_of_many_each_is_told_what_is_its_own(store):
    await pulled(store)
    others = [replace(partner(), name=f"other-{number}") for number in range(150)]
    await store.transact(
        [
            SetState(dead_letters.parked("other-7"), "Task/1/x/1", {"why": "refused"}),
            Hold("other-120", "Task/9", "invalid", "d", "It has no status", b"{}", ""),
        ],
        origin="hub",
    )
    found = await statuses(store, [*others, partner()])
    assert [one.partner for one in found] == [*(one.name for one in others), NORTH]
    assert [(one.partner, dict(one.letters), one.held) for one in found if one.letters or one.held] == [
        ("other-7", {"refused": 1}, {}),
        ("other-120", {}, {"invalid": 1}),
    ]
    assert [one.partner for one in found if one.last_success] == [NORTH]
    assert found[-1] == await status(store, partner())


async def test_scripts_find_the_same_names_every_time(store, clock):
    ehr = Ehr(1)
    async with ehr.client() as client:
        await pull.pull(store, client)
        ehr.change("Encounter", "p0-e0", status="cancelled")
        await pull.pull(store, client)
    await pulled(store)
    told = json.loads(json.dumps(as_json(await status(store, partner()))))
    assert (told["partner"], told["verdict"], told["at"]) == (NORTH, "well", clock().isoformat())
    assert (told["queue"], told["budget"]) == (
        {"length": 0, "oldest": None},
        {"requests_per_hour": None, "requests_left": None},
    )
    assert list(told) == [
        "partner", "vendor", "verdict", "at", "last_success", "last_attempt", "last_full", "next_run", "freshness_seconds", "lag_seconds",
        "queue", "dead_letters", "quarantine", "budget", "breakers", "subscriptions", "bulk_export", "last_message", "concerns",
        "types",
    ]  # fmt: skip
    encounter = next(one for one in told["types"] if one["type"] == "Encounter")
    assert list(encounter) == [
        "type", "patients", "never_looked_at", "late", "promise_seconds", "newest_seconds", "median_seconds", "oldest_seconds", "missing",
        "changes", "requests", "bytes", "seconds", "waited_seconds", "lag_seconds", "lag_95_seconds", "last_updated",
    ]  # fmt: skip
    assert (encounter["patients"], encounter["late"], encounter["changes"]) == (1, 0, {"hash": 1})


async def test_the_looks_are_told_from_a_short_row_as_from_all_of_them(store, clock):
    asked = partner()
    looks = Looks(asked, {}, [f"p{number}" for number in range(100)])
    begun = store.clock().timestamp()
    for number in range(90):
        looks.note(f"p{number}", "Encounter", Look(begun - 60.0 * number, begun - 8000.0 * number))
    await store.transact(looks.facts(), origin="test")
    for hours in (0, 30, 200):
        clock.advance(timedelta(hours=hours))
        exact = {one.type: one for one in await freshness(store, asked)}
        short = {one.type: one for one in (await status(store, asked)).types}
        step = exact["Encounter"].promise / 32
        late = (
            sum(store.clock().timestamp() - begun + 8000 * number > exact["Encounter"].promise + step for number in range(90))
            + 10
        )
        assert late <= short["Encounter"].late <= exact["Encounter"].late
        assert {type: replace(one, late=0) for type, one in short.items()} == {
            type: replace(one, late=0) for type, one in exact.items()
        }
    assert (short["Encounter"].never, short["Encounter"].late, short["Condition"].late) == (10, 100, 100)


async def test_what_comes_by_itself_or_in_bulk_is_told_with_what_does_not_work(store):
    async with Ehr(2).client() as client:
        await pull.pull(store, client)
    await pulled(store)
    assert (await status(store, partner())).channels == Channels()
    now = store.clock()
    row = Row(topic="t", types=["Task"], patient=None, sealed="", door="")
    rows = {
        "a": row,
        "b": replace(row, state="active"),
        "c": replace(row, state="refused", why="no"),
        "d": replace(row, state="error"),
    }
    export = Export("e", ["Patient"], None, None, None, now.isoformat(), now.isoformat(), phase=Phase.RUNNING, progress="40 %")
    last = {"finished": (now - timedelta(days=1)).isoformat(), "failed": {"Goal": "it answered 500"}}
    facts = [SetState(rows_at(NORTH), key, asdict(one)) for key, one in rows.items()]
    facts += [SetState(bulk_due.namespace(NORTH), bulk_due.LAST, last), keep(NORTH, export)]
    await store.transact([*facts, SetState(HEARD, NORTH, {"at": now.isoformat()})], origin="hub")
    found = await status(store, partner())
    assert [one.text for one in found.concerns] == [
        "2 of 4 Subscriptions at it bring nothing",
        "Goal did not come with the last bulk export: it answered 500",
    ]
    for line in (
        "Subscriptions: 1 active, 1 asked, 1 error, 1 refused",
        "Bulk export: running at the partner (40 %), begun 2026-03-02 15:00:00 UTC",
        "Last bulk export: 2026-03-01 15:00:00 UTC",
        "Last HL7 v2 message: 2026-03-02 15:00:00 UTC",
    ):
        assert f"\n  {line}\n" in rendered(found)
    told = as_json(found)
    assert told["subscriptions"] == {"active": 1, "asked": 1, "error": 1, "refused": 1}
    assert (told["bulk_export"]["phase"], told["bulk_export"]["last_failed"]) == (
        "running at the partner",
        {"Goal": "it answered 500"},
    )
    assert told["last_message"] == now.isoformat()
    text = (await Metrics(store, [partner()], "x" * 32).made()).decode()
    assert 'fhircm_partner_subscriptions{partner="north-clinic",state="refused"} 1.0' in text
    assert 'fhircm_partner_bulk_export_failed_types{partner="north-clinic"} 1.0' in text
    assert f'fhircm_partner_last_message_timestamp_seconds{{partner="north-clinic"}} {now.timestamp():.1f}'[:60] in text
