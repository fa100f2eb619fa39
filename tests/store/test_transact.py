"""Everything in one transaction happens or nothing does: versions, changes, search, timers, cursors and facts."""

from datetime import timedelta

import pytest

from fhircm.fhir.outcome import Conflict, Gone, Invalid, NotFound, VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.store.operations import START
from fhircm.store.resources import CancelTimer, Delete, MoveCursor, Position, Put, SetState, SetTimer
from fhircm.store.timers import StaleClaim
from tests.store.conftest import condition, patient


async def everything(store):
    """All that a reader can see."""
    found = await store.search(parse_query("Patient", [("_count", "1000")]))
    changes = await store.changes(START)
    return (
        sorted((one.id, one.version, one.body) for one in found.matches),
        [(one.id, one.version, one.method) for one in changes.changes],
        await store.state("facts", "a"),
        await store.cursor("c"),
        await store.claim_timers({"kind"}, limit=9, lease=timedelta(seconds=0)),
    )


FAILING = {
    "a version that is not current": (Put(patient("p"), if_version=7), VersionConflict),
    "a create of what exists": (Put(patient("p"), if_version=0), VersionConflict),
    "a reference to nowhere": (Put(condition("c", "nobody")), Invalid),
    "a delete of nothing": (Delete("Patient", "nobody"), NotFound),
    "a delete of what is referred to": (Delete("Patient", "held"), Conflict),
    "a fact that is there already": (SetState("facts", "taken", {"b": 1}, if_absent=True), Conflict),
}


@pytest.mark.parametrize(("operation", "error"), FAILING.values(), ids=FAILING)
async def test_one_that_fails_takes_all_with_it(store, put, operation, error):
    await put("p")
    await put("held")
    await store.transact([Put(condition("c1", "held")), SetState("facts", "taken", {"a": 1})], origin="test")
    before = await everything(store)
    others = [
        Put(patient("new")),
        SetTimer("t", "kind", store.clock(), {}),
        SetState("facts", "a", {"x": 1}),
        MoveCursor("c", START, Position(0, 5)),
    ]
    with pytest.raises(error):
        await store.transact([*others, operation], origin="test")
    assert await everything(store) == before
    with pytest.raises(error):
        await store.transact([operation, *others], origin="test")
    assert await everything(store) == before


async def test_all_of_it_is_there_at_once(store):
    (stored,) = await store.transact(
        [
            Put(patient("p")),
            SetTimer("t", "kind", store.clock(), {"n": 1}),
            SetState("facts", "a", {"x": 1}),
            MoveCursor("c", START, Position(0, 5)),
        ],
        origin="client:x",
    )
    patients, changes, fact, cursor, timers = await everything(store)
    assert patients == [("p", 1, stored.body)]
    assert changes == [("p", 1, "create")]
    assert fact == {"x": 1}
    assert cursor == Position(0, 5)
    assert [(one.key, one.payload) for one in timers] == [("t", {"n": 1})]
    assert (await store.changes(START)).changes[0].origin == "client:x"


async def test_versions_count_up_and_each_stays_as_it_was(store, put, clock):
    first = await put("p", "One")
    clock.advance(timedelta(hours=1))
    second = await put("p", "Two", if_version=1)
    (gone,) = await store.transact([Delete("Patient", "p", if_version=2)], origin="test")
    again = await put("p", "Three", if_version=0)
    assert [one.version for one in (first, second, gone, again)] == [1, 2, 3, 4]
    assert [(one.version, one.method) for one in await store.history("Patient", "p")] == [
        (4, "create"),
        (3, "delete"),
        (2, "update"),
        (1, "create"),
    ]
    assert (await store.vread("Patient", "p", 1)).body == first.body
    assert (await store.read("Patient", "p")).tree["name"] == [{"family": "Three"}]
    assert second.last_updated - first.last_updated == timedelta(hours=1)
    with pytest.raises(Gone):
        await store.vread("Patient", "p", 3)
    with pytest.raises(NotFound):
        await store.vread("Patient", "p", 5)


async def test_what_is_deleted_is_gone_and_not_found_by_search(store, put):
    await put("p")
    await store.transact([Delete("Patient", "p")], origin="test")
    with pytest.raises(Gone):
        await store.read("Patient", "p")
    assert (await store.search(parse_query("Patient", [("family", "Test")]))).matches == []
    (again,) = await store.transact([Delete("Patient", "p")], origin="test")
    assert again.version == 2, "deleting what is deleted writes nothing"


async def test_resources_that_refer_to_one_another_come_and_go_together(store):
    await store.transact([Put(condition("c", "p")), Put(patient("p"))], origin="test")
    with pytest.raises(Conflict):
        await store.transact([Delete("Patient", "p")], origin="test")
    await store.transact([Delete("Patient", "p"), Delete("Condition", "c")], origin="test")
    assert await store.read_many([("Patient", "p"), ("Condition", "c")]) == {}


async def test_a_resource_may_stand_once(store):
    with pytest.raises(ValueError, match="twice"):
        await store.transact([Put(patient("p")), Delete("Patient", "p")], origin="test")


async def test_a_finished_timer_cannot_be_finished_again(store):
    from fhircm.store.resources import FinishTimer

    await store.transact([SetTimer("t", "kind", store.clock(), {})], origin="test")
    (timer,) = await store.claim_timers({"kind"}, limit=1, lease=timedelta(seconds=60))
    await store.transact([FinishTimer(timer)], origin="test")
    with pytest.raises(StaleClaim):
        await store.transact([FinishTimer(timer), Put(patient("p"))], origin="test")
    with pytest.raises(NotFound):
        await store.read("Patient", "p")
    await store.transact([CancelTimer("t")], origin="test")


async def test_facts_by_namespace_and_prefix(store):
    await store.transact([SetState("a", key, {"k": key}) for key in ("x/1", "x/2", "y")], origin="test")
    await store.transact([SetState("b", "x/3", {})], origin="test")
    assert list(await store.states("a", "x/")) == ["x/1", "x/2"]
    assert list(await store.states("a")) == ["x/1", "x/2", "y"]
    await store.transact([SetState("a", "x/1", None)], origin="test")
    assert list(await store.states("a", "x/")) == ["x/2"]
