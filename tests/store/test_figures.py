"""Figures of what is kept are those that one would count, on both databases."""

from datetime import timedelta

from fhircm.fhir.validation import check_tree
from fhircm.store.figures import Behind, Figures, Overdue
from fhircm.store.operations import START
from fhircm.store.resources import Hold, MoveCursor, Put, SetState, SetTimer


async def test_facts_of_many_namespaces_are_read_and_counted(store):
    facts = [
        SetState("letters:a", "1", {"why": "refused", "at": "2026-03-02"}),
        SetState("letters:a", "2", {"why": "refused", "at": "2026-03-01"}),
        SetState("letters:a", "3", {"why": "unsure", "at": "2026-03-03"}),
        SetState("letters:b", "1", {"why": "unsure", "at": "2026-02-01"}),
        SetState("letters:c", "1", {"why": "invalid", "at": "2026-01-01"}),
    ]
    await store.transact(facts, origin="test")
    figures, asked = Figures(store.database), [*(f"letters:{number}" for number in range(1000)), "letters:a", "letters:b"]
    assert (await figures.states(asked))["letters:b"] == {"1": {"why": "unsure", "at": "2026-02-01"}}
    assert await figures.tallied(asked, "why") == {"letters:a": {"refused": 2, "unsure": 1}, "letters:b": {"unsure": 1}}
    assert await figures.least(asked, "at") == {"letters:a": (3, "2026-03-01"), "letters:b": (1, "2026-02-01")}
    assert await figures.least([], "at") == {}


async def test_quarantine_is_counted_by_kind_and_type(store):
    names = [("Task/1", "invalid"), ("Task/2", "invalid"), ("Task/3 in Patient/1", "misplaced"), ("a search", "invalid")]
    await store.transact([Hold("a", name, kind, "d", "why", b"{}", "") for name, kind in names], origin="test")
    await store.transact([Hold("b", "Task/1", "invalid", "d", "why", b"{}", "")], origin="test")
    counted = {("invalid", "Task"): 2, ("misplaced", "Task"): 1, ("invalid", ""): 1}
    assert await Figures(store.database).held(["a", "nobody"]) == {"a": counted}


async def test_readers_behind_and_timers_overdue_are_told(store, clock):
    figures, begun = Figures(store.database), clock()
    assert (await figures.head(), await figures.behind(["r"]), await figures.overdue(begun)) == (
        START,
        {"r": Behind(0, None)},
        {},
    )
    for number in range(3):
        await store.transact(
            [Put(check_tree({"resourceType": "Basic", "id": str(number), "code": {"text": "x"}}))], origin="test"
        )
        clock.advance(timedelta(minutes=1))
    changes = (await store.changes(START)).changes
    assert await figures.head() == changes[-1].position
    await store.transact([MoveCursor("r", START, changes[0].position)], origin="test")
    behind = await figures.behind(["r", "new"])
    assert behind == {"r": Behind(2, begun + timedelta(minutes=1)), "new": Behind(3, begun)}
    timers = [("1", "a", begun), ("2", "a", begun + timedelta(hours=1)), ("3", "b", begun + timedelta(hours=1))]
    await store.transact([SetTimer(key, kind, at, {}) for key, kind, at in timers], origin="test")
    assert await figures.overdue(clock()) == {"a": Overdue(2, 1, begun), "b": Overdue(1, 0, None)}
    assert await figures.due(["3", "none"]) == {"3": begun + timedelta(hours=1)}
