"""Full text finds what a plain reading of the words finds, the same on both databases, and what is gone is found no more."""

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.fhir.query import parse_query, parse_types
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.operations import Narrowing
from fhircm.store.resources import Delete, Put, Store

WORDS = ["bone", "bones", "liver", "Zoë", "x-ray", "été", "東京", "5"]


@pytest.fixture
async def store(database_url, clock):
    opened = Store(await open_database(database_url), clock=clock, full_text=True)
    yield opened
    await opened.close()


def basic(id, narrative=(), texts=(), patient=None):
    tree = {"resourceType": "Basic", "id": id, "code": {"coding": [{"display": one} for one in texts] or [{"code": "0"}]}}
    if narrative:
        tree["text"] = {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{" ".join(narrative)}</div>'}
    if patient:
        tree["subject"] = {"reference": f"Patient/{patient}"}
    return Put(check_tree(tree))


async def found(store, asked, type="Basic", within=None, **options):
    query = parse_query(type, [*asked.items(), ("_count", "1000")], full_text=True)
    return {one.id for one in (await store.search(query, within, **options)).matches}


# --- the model: a text is a list of words, a query a tree

LEAF = st.one_of(
    st.tuples(st.just("word"), st.sampled_from([*WORDS, "none"])),
    st.tuples(st.just("start"), st.sampled_from(["bo", "bone", "zo", "li"])),
    st.tuples(st.just("phrase"), st.lists(st.sampled_from(WORDS), min_size=2, max_size=2)),
)
QUERIES = st.recursive(
    LEAF,
    lambda inner: (
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)) | st.tuples(st.just("not"), inner)
    ),
    max_leaves=5,
)


def written(node):
    match node:
        case ("word", word):
            return word.upper()
        case ("start", start):
            return f"{start}*"
        case ("phrase", words):
            return f'"{" ".join(words)}"'
        case ("not", inner):
            return f"-({written(inner)})"
        case ("and", parts):
            return " ".join(f"({written(part)})" for part in parts)
        case ("or", parts):
            return " OR ".join(f"({written(part)})" for part in parts)


def plain(words):
    folded = " ".join(words).casefold().translate(str.maketrans("ëé-", "ee "))
    return folded.split()


def holds(node, texts):
    """Whether texts, each a list of words, fulfil a query."""
    every = [word for text in texts for word in text]
    match node:
        case ("word", "x-ray"):
            return holds(("phrase", ["x", "ray"]), texts)
        case ("word", word):
            return plain([word])[0] in every
        case ("start", start):
            return any(word.startswith(start) for word in every)
        case ("phrase", words):
            asked = plain(words)
            return any(text[at : at + len(asked)] == asked for text in texts for at in range(len(text)))
        case ("not", inner):
            return not holds(inner, texts)
        case ("and", parts):
            return all(holds(part, texts) for part in parts)
        case ("or", parts):
            return any(holds(part, texts) for part in parts)


async def test_any_words_find_what_their_model_finds(store):
    chance = random.Random(3)
    narratives, contents, writes = {}, {}, []
    for n in range(60):
        narrative = [chance.choice(WORDS) for _ in range(chance.randrange(6))]
        texts = [" ".join(chance.choices(WORDS, k=2)) for _ in range(chance.randrange(3))]
        writes.append(basic(f"b{n}", narrative, texts))
        narratives[f"b{n}"] = [plain(narrative)]
        contents[f"b{n}"] = [plain(narrative), *(plain([one]) for one in texts)]
    await store.transact(writes, origin="test")
    queries = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(QUERIES)
    def collect(node):
        queries.append(node)

    collect()
    sizes = set()
    for node in queries:
        for parameter, model in (("_text", narratives), ("_content", contents)):
            expected = {id for id, texts in model.items() if holds(node, texts)}
            assert await found(store, {parameter: written(node)}) == expected, written(node)
            sizes.add(len(expected))
    assert len(sizes) > 20


async def intact(store):
    """The index on SQLite holds exactly what the table holds."""
    if store.database.dialect == "sqlite":
        async with store.database.writing() as connection:
            await connection.execute("INSERT INTO search_text_index (search_text_index, rank) VALUES ('integrity-check', 1)")


async def test_what_is_replaced_or_deleted_is_found_no_more(store):
    await store.transact([basic("a", ["bone"]), basic("b", ["bone"])], origin="test")
    await store.transact([basic("a", ["liver"])], origin="test")
    assert await found(store, {"_text": "bone"}) == {"b"}
    assert await found(store, {"_text": "liver"}) == {"a"}
    await store.transact([Delete("Basic", "b")], origin="test")
    assert await found(store, {"_content": "bone"}) == set()
    await intact(store)
    async with store.database.reading() as connection:
        assert await connection.fetchval("SELECT COUNT(*) FROM search_text") == 2


async def test_a_write_that_fails_leaves_no_words(store):
    with pytest.raises(Exception, match="does not exist"):
        await store.transact([basic("a", ["bone"]), basic("b", patient="nobody")], origin="test")
    assert await found(store, {"_text": "bone"}) == set()
    await intact(store)


async def test_without_the_setting_nothing_is_kept(database_url, clock):
    off = Store(await open_database(database_url), clock=clock)
    await off.transact([basic("a", ["bone"])], origin="test")
    async with off.database.reading() as connection:
        assert await connection.fetchval("SELECT COUNT(*) FROM search_text") == 0
    on = Store(off.database, clock=clock, full_text=True)
    await on.transact([basic("a", ["bone"])], origin="test")
    assert await found(on, {"_text": "bone"}) == {"a"}
    await off.transact([basic("a", ["bone"])], origin="test")
    assert await found(on, {"_text": "bone"}) == set()
    await off.close()


async def test_words_go_with_types_chains_and_what_a_caller_may_see(store):
    patient = Put(check_tree({"resourceType": "Patient", "id": "p", "name": [{"text": "bone"}]}))
    await store.transact([patient, basic("a", ["bone"], patient="p"), basic("b", ["bone"])], origin="test")
    assert await found(store, {"_content": "bone"}, "Patient") == {"p"}
    assert await found(store, {"_text": "bone"}, "Patient") == set()
    assert await found(store, {"patient._content": "bone"}) == {"a"}
    assert await found(store, {"_has:Basic:patient:_text": "bone"}, "Patient") == {"p"}
    assert await found(store, {"patient._content": "bone"}, within=Narrowing({"Basic": ()})) == set()
    both = parse_types(["Basic", "Patient"], [("_content", "bone"), ("_total", "accurate")], full_text=True)
    page = await store.search(replace(both, count=2))
    assert ({one.id for one in page.matches}, page.total) == ({"a", "b"}, 3)
    rest = await store.search(replace(both, count=2, cursor=page.next))
    assert [one.id for one in rest.matches] == ["p"]


async def test_pages_of_words_show_one_moment(store):
    await store.transact([basic(f"b{n}", ["bone"], ["left knee"] if n % 2 else []) for n in range(8)], origin="test")
    for asked in ({"_text": "bone"}, {"_content": 'bone -"left knee"'}, {"_text": "bo*", "_sort": "-_id"}):
        query = parse_query("Basic", [*asked.items(), ("_count", "3")], full_text=True)
        whole = [(one.id, one.body) for one in (await store.search(replace(query, count=100))).matches]
        seen, cursor, number = [], None, 0
        while True:
            page = await store.search(replace(query, cursor=cursor))
            seen += [(one.id, one.body) for one in page.matches]
            if (cursor := page.next) is None:
                break
            number += 1
            await store.transact([basic("b1", ["liver"]), Delete("Basic", "b2"), basic(f"new{number}", ["bone"])], origin="test")
        assert seen == whole
        await store.transact([basic("b1", ["bone"], ["left knee"]), basic("b2", ["bone"])], origin="test")
