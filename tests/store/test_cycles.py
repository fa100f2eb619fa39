"""No chain comes back to where it began: alone, in one transaction, through other types, and of two transactions at once."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.coordination.rules import RULES
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.validation import check_tree
from fhircm.store import cycles
from fhircm.store.database import open_database
from fhircm.store.operations import Put
from fhircm.store.resources import Store


def task(id, *, part_of=(), based_on=()):
    tree = {"resourceType": "Task", "id": id, "status": "requested", "intent": "order"}
    if part_of:
        tree["partOf"] = [{"reference": f"Task/{one}"} for one in part_of]
    if based_on:
        tree["basedOn"] = [{"reference": one} for one in based_on]
    return tree


def order(id, **chains):
    tree = {"resourceType": "ServiceRequest", "id": id, "status": "active", "intent": "order", "subject": {"display": "somebody"}}
    return tree | {name: [{"reference": f"ServiceRequest/{one}"} for one in to] for name, to in chains.items()}


@pytest.fixture
async def network(store):
    store.rules = RULES

    async def write(*trees):
        await store.transact([Put(check_tree(tree)) for tree in trees], origin="client:x")

    return write


async def test_a_chain_that_comes_back_is_refused_and_nothing_of_it_is_written(network, store):
    await network(task("a"))
    await network(task("b", part_of=["a"]), task("c", part_of=["b"]), order("o1"), order("o2", basedOn=["o1"]))
    for place, trees in {
        "Task.partOf": [task("x", part_of=["x"])],
        "Task.partOf ": [task("a", part_of=["c"])],
        "Task.partOf  ": [task("x", part_of=["y"]), task("y", part_of=["x"])],
        "Task.partOf   ": [task("n", part_of=["c"]), task("a", part_of=["n"])],
        "Task.basedOn": [task("a", based_on=["Task/c"])],
        "ServiceRequest.basedOn": [order("o1", basedOn=["o2"])],
        "ServiceRequest.replaces": [order("o1", replaces=["o2"])],
    }.items():
        before = (await store.changes((0, 0))).changes
        with pytest.raises(Invalid, match="leads back to this") as caught:
            await network(order("beside"), *trees)
        assert caught.value.status == 422
        assert {one.expression for one in caught.value.issues} == {place.strip()}
        assert (await store.changes((0, 0))).changes == before
    await network(task("a", part_of=["d"]), task("d"))
    await network(task("c", part_of=["a"]), task("b"))
    await network(task("b", part_of=["c"]))  # the other way round, as b is no part of anything any more


@pytest.mark.parametrize("origin", ["partner:lakeside", "load", "hub"])
async def test_it_holds_for_mirrors_loads_and_the_hub_itself(network, store, origin):
    await network(task("a"))
    await network(task("b", part_of=["a"]))
    with pytest.raises(Invalid, match=r"Task\.partOf leads back"):
        await store.transact([Put(check_tree(task("a", part_of=["b"])))], origin=origin)


async def test_two_at_once_that_would_close_a_cycle_together(database_url, clock):
    """Each alone is sound; whichever comes second is refused, by two processes too."""
    stores = [Store(await open_database(database_url), clock=clock, rules=RULES) for _ in range(2)]
    pairs = 24
    await stores[0].transact([Put(check_tree(task(f"{end}{n}"))) for n in range(pairs) for end in "ab"], origin="client:x")

    async def close(store, of, by):
        try:
            await store.transact([Put(check_tree(task(of, part_of=[by])))], origin="client:x")
        except Invalid:
            return 0
        return 1

    ways = [(stores[turn], f"{of}{n}", f"{by}{n}") for n in range(pairs) for turn, (of, by) in enumerate(("ab", "ba"))]
    assert sum(await asyncio.gather(*(close(*way) for way in ways))) == pairs
    for one in stores:
        await one.close()


async def test_a_chain_has_an_end(network, monkeypatch):
    monkeypatch.setattr(cycles, "LONGEST", 5)
    await network(*(task(f"t{n}", part_of=[f"t{n - 1}"] if n else []) for n in range(8)))
    await network(task("low"))
    with pytest.raises(Invalid, match="more than 5 resources"):
        await network(task("low", part_of=["t7"]))
    await network(task("low", part_of=["t3"]))


async def test_what_adds_nothing_to_a_chain_asks_for_nothing(network, monkeypatch):
    async def never(*_):
        raise AssertionError("a look at the chains")

    await network(task("a"))
    await network(task("b", part_of=["a"]))
    monkeypatch.setattr(
        cycles, "require_none", lambda connection, found, chains: never() if cycles.needs_a_look(found) else idle()
    )

    async def idle():
        pass

    await network({**task("b", part_of=["a"]), "description": "the same chain"})
    await network(task("new", part_of=["b"]), task("newer", part_of=["new"]))
    await network(task("b"))
    with pytest.raises(AssertionError, match="a look"):
        await network(task("b", part_of=["a"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=3), min_size=1, max_size=8))
def test_whatever_is_written_there_is_never_a_cycle_and_what_is_sound_is_taken(rounds):
    """In memory, as the store does it for what is new: against a search by brute force."""
    for edges in rounds:
        found = {}
        for start, end in edges:
            identity = ("Task", str(start))
            to = found[identity].to if identity in found else frozenset()
            found[identity] = cycles.Grown("partOf", to | {("Task", str(end))}, False)
        reach = {(start, end) for start, one in found.items() for end in one.to}
        while more := {(a, d) for a, b in reach for c, d in reach if b == c} - reach:
            reach |= more
        if any(a == b for a, b in reach):
            with pytest.raises(Invalid):
                cycles.require_none_within(found)
        else:
            cycles.require_none_within(found)
