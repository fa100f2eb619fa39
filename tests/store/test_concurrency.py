"""Thirty-two at once, over two stores and over two processes: one winner, no lost update, no deadlock that anybody notices."""

import asyncio
import sys

import pytest

from fhircm.fhir.outcome import VersionConflict
from fhircm.store.resources import Put, SetState
from tests.store.conftest import condition, patient

MANY = 32


async def race(stores, attempt):
    """Outcomes of so many attempts at once: what was stored, or the error."""
    return await asyncio.gather(*(attempt(stores[n % 2], n) for n in range(MANY)), return_exceptions=True)


@pytest.mark.parametrize("version", [0, 1])
async def test_one_writer_wins_and_thirty_one_learn_of_it(store, other, put, version):
    if version:
        await put("p")
    outcomes = await race(
        (store, other), lambda at, n: at.transact([Put(patient("p", f"N{n}"), if_version=version)], origin=f"client:{n}")
    )
    won = [one for one in outcomes if not isinstance(one, Exception)]
    assert len(won) == 1
    assert {type(one) for one in outcomes if isinstance(one, Exception)} == {VersionConflict}
    assert (await store.read("Patient", "p")).body == won[0][0].body
    assert len(await store.history("Patient", "p")) == version + 1


async def test_transactions_over_the_same_resources_in_opposite_order_all_finish(store, other, put):
    for id in ("a", "b", "c"):
        await put(id)

    async def both(at, n):
        pair = ["a", "b", "c"] if n % 2 else ["c", "b", "a"]
        facts = [SetState("facts", id, {"by": n}) for id in pair]
        return await at.transact([*(Put(patient(id, f"N{n}")) for id in pair), *facts], origin="test")

    outcomes = await race((store, other), both)
    assert [one for one in outcomes if isinstance(one, Exception)] == []
    last = {(await store.read("Patient", id)).tree["name"][0]["family"] for id in ("a", "b", "c")}
    assert len(last) == 1, "all three are from the same transaction"
    assert [one.version for one in await store.history("Patient", "a")] == list(range(MANY + 1, 0, -1))


async def test_a_delete_and_a_reference_to_it_never_both_succeed(store, other, put):
    from fhircm.store.resources import Delete

    for n in range(8):
        await put(f"p{n}")
        outcomes = await asyncio.gather(
            store.transact([Delete("Patient", f"p{n}")], origin="test"),
            other.transact([Put(condition(f"c{n}", f"p{n}"))], origin="test"),
            return_exceptions=True,
        )
        assert sum(isinstance(one, Exception) for one in outcomes) == 1, n


COUNT = """
import asyncio, json, sys
from datetime import UTC, datetime
from fhircm.fhir.outcome import VersionConflict
from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.resources import Put, Store

async def main():
    store = Store(await open_database(sys.argv[1]), clock=lambda: datetime.now(UTC))
    for _ in range(40):
        while True:
            found = await store.read("Basic", "counter")
            number = int(found.tree["code"]["text"]) + 1
            tree = {"resourceType": "Basic", "id": "counter", "code": {"text": str(number)}}
            try:
                await store.transact([Put(check(json.dumps(tree).encode()), if_version=found.version)], origin="test")
                break
            except VersionConflict:
                pass
    await store.close()

asyncio.run(main())
"""


async def test_two_processes_lose_no_update(store, database_url):
    from fhircm.fhir.validation import check

    start = check(b'{"resourceType": "Basic", "id": "counter", "code": {"text": "0"}}')
    await store.transact([Put(start)], origin="test")
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", COUNT, database_url) for _ in range(2)]
    assert [await process.wait() for process in processes] == [0, 0]
    counted = await store.read("Basic", "counter")
    assert (counted.tree["code"]["text"], counted.version) == ("80", 81)
