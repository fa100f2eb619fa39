"""Pages show one moment: whatever is written between them, each match of the first moment comes once, in its place, as it was."""

import random
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from fhircm.fhir.outcome import Malformed
from fhircm.fhir.query import Cursor, parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store import search_past
from fhircm.store.resources import Delete, Put
from fhircm.store.search_past import PagesOutdated

GENDERS = ("male", "female", "other", "unknown")
SEARCHES = [
    "",
    "_sort=birthdate",
    "_sort=-birthdate,family",
    "_sort=family,-_id",
    "_sort=-_lastUpdated",
    "_sort=gender",
    "gender=male,female&_sort=birthdate",
    "gender:not=male",
    "birthdate=ge2000&_sort=-birthdate",
    "organization.name=Here&_sort=birthdate",
    "_has:Condition:patient:code=a&_sort=family",
    "family:missing=false&active=true",
    "_id:not=p1",
    '_filter=not (gender eq male) and (family sw "b" or organization.name eq Here)&_sort=birthdate',
    "_filter=organization[name eq Here].name pr false or birthdate lt 2000",
]


def patient(id, chance):
    tree = {"resourceType": "Patient", "id": id, "gender": chance.choice(GENDERS), "active": chance.random() < 0.6}
    if chance.random() < 0.8:
        tree["birthDate"] = f"{chance.randrange(1990, 2010)}-0{chance.randrange(1, 10)}-11"
    if chance.random() < 0.8:
        tree["name"] = [{"family": chance.choice(["Å", "Baker", "Cole", "baker", "Dee"])}]
    if chance.random() < 0.7:
        tree["managingOrganization"] = {"reference": f"Organization/{chance.choice(['here', 'there'])}"}
    return Put(check_tree(tree))


async def write(store, chance, ids, count):
    """Updates, deletions and new ones."""
    for _ in range(count):
        id = chance.choice(ids)
        if chance.random() < 0.2:
            ids.append(id := f"p{len(ids)}")
        if chance.random() < 0.2 and not id.startswith("c"):
            present = await store.read_many([("Patient", id)])
            await store.transact([Delete("Patient", id)] if present else [patient(id, chance)], origin="test")
        else:
            await store.transact([patient(id, chance)], origin="test")


@pytest.fixture
async def people(store, clock):
    chance = random.Random(3)
    for name in ("here", "there"):
        tree = {"resourceType": "Organization", "id": name, "name": name.title()}
        await store.transact([Put(check_tree(tree))], origin="test")
    ids = [f"p{n}" for n in range(40)]
    kept = [f"c{n}" for n in range(10)]  # never deleted, for they have a condition
    await store.transact([patient(id, chance) for id in (*ids, *kept)], origin="test")
    codes = [{"resourceType": "Condition", "id": id, "subject": {"reference": f"Patient/{id}"}, "code": {"coding": [{"code": "ab"[n % 2]}]}} for n, id in enumerate(kept)]  # fmt: skip
    await store.transact([Put(check_tree(tree)) for tree in codes], origin="test")
    return ids + kept


@pytest.mark.parametrize("asked", SEARCHES)
async def test_every_match_of_the_first_moment_comes_once_in_its_place_as_it_was(store, people, asked):
    chance = random.Random(len(asked))
    given = parse_qsl(asked)
    whole = (await store.search(parse_query("Patient", [*given, ("_count", "1000")]))).matches
    query = parse_query("Patient", [*given, ("_count", "4")])
    seen, cursor = [], None
    while True:
        page = await store.search(replace(query, cursor=cursor))
        seen += page.matches
        if page.next is None:
            break
        cursor = Cursor.from_json(page.next.as_json())
        await write(store, chance, people, 8)
    assert [(one.id, one.version, one.body) for one in seen] == [(one.id, one.version, one.body) for one in whole]
    assert len(whole) > 4


async def test_a_write_that_is_in_flight_at_the_first_page_is_on_no_page(store, other, people):
    """On SQLite one writes at a time; on PostgreSQL such a write has an older number than what the first page saw."""
    from fhircm.store.transaction import write_resources

    query = parse_query("Patient", [("_count", "4")])
    whole = (await store.search(replace(query, count=1000))).matches
    async with other.database.writing() as connection:
        late = [patient("late", random.Random(1)), patient("p3", random.Random(2))]
        await write_resources(
            connection, other.database.dialect, late, origin="test", now=other.clock(), rules=(), confirm=other.guides.confirm
        )
        page = await store.search(query)
    seen = page.matches
    while page.next:
        page = await store.search(replace(query, cursor=page.next))
        seen += page.matches
    assert [(one.id, one.version) for one in seen] == [(one.id, one.version) for one in whole]


async def test_when_too_much_has_changed_the_search_is_to_be_asked_anew(store, people, monkeypatch):
    monkeypatch.setattr(search_past, "CHANGED_LIMIT", 3)
    query = parse_query("Patient", [("_count", "4")])
    page = await store.search(query)
    await store.transact([patient(f"new{n}", random.Random(n)) for n in range(4)], origin="test")
    with pytest.raises(PagesOutdated):
        await store.search(replace(query, cursor=page.next))


@pytest.mark.parametrize("snapshot", ["", "x", "1; DROP TABLE change", "1:"])
async def test_a_cursor_of_another_search_or_moment_is_refused(store, people, snapshot):
    query = parse_query("Patient", [("_sort", "birthdate")])
    for cursor in (Cursor((1,), snapshot), Cursor(("a", 1), snapshot), Cursor((1, 2, 3), snapshot)):
        with pytest.raises(Malformed):
            await store.search(replace(query, cursor=cursor))
