"""Terminology of the store, as several processes see it. https://hl7.org/fhir/R4/terminology-service.html"""

import json

from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir.query import parse_query
from fhircm.fhir.terminology.library import Wanted
from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.resources import Delete, Put, Store
from fhircm.store.terminology import Kept


def put(type, id, **members):
    return Put(check(json.dumps({"resourceType": type, "id": id, "status": "active", **members}).encode(), type))


def numbers(*codes):
    return put("CodeSystem", "s", url="urn:s", content="complete", concept=[{"code": code} for code in codes])


async def found(store):
    page = await store.search(parse_query("Observation", [("code:in", "urn:v")]))
    return sorted(one.id for one in page.matches)


async def test_a_change_by_another_process_is_seen(store, database_url, clock):
    """Each has compiled what it found; the next question finds what the other wrote in between."""
    observations = [
        Put(
            check(
                json.dumps(
                    {
                        "resourceType": "Observation",
                        "id": code,
                        "status": "final",
                        "code": {"coding": [{"system": "urn:s", "code": code}]},
                    }
                ).encode(),
                "Observation",
            )
        )
        for code in "ab"
    ]
    await store.transact(
        [numbers("a"), put("ValueSet", "v", url="urn:v", compose={"include": [{"system": "urn:s"}]}), *observations],
        origin="test",
    )
    other = Store(await open_database(database_url), clock=clock)
    try:
        assert await found(other) == await found(store) == ["a"]
        await store.transact([numbers("b")], origin="test")
        assert await found(other) == ["b"]
        await other.transact([numbers("a", "b")], origin="test")
        assert await found(store) == ["a", "b"]
        await store.transact([Delete("CodeSystem", "s")], origin="test")
        await other.transact([numbers("a")], origin="test")
        assert await found(store) == await found(other) == ["a"]
    finally:
        await other.close()


async def test_what_was_compiled_is_kept_for_its_version(store):
    await store.transact([numbers("a")], origin="test")
    wanted = [Wanted("CodeSystem", "urn:s")]
    first, again = [(await store.library(wanted, None)).code_system("urn:s") for _ in range(2)]
    assert first is again
    await store.transact([numbers("b")], origin="test")
    assert list((await store.library(wanted, None)).code_system("urn:s").concepts) == ["b"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 7)), max_size=30))
def test_what_is_kept_never_weighs_more_than_it_may(entries):
    kept = Kept(10)
    for key, weight in entries:
        kept.keep(key, (key, weight), weight)
        assert kept.weight == sum(weight for _, weight in kept.entries.values()) <= 10
        assert kept.get(key) == (key, weight)
