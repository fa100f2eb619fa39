"""What a data steward does at the command line: look at the queue, ask for the evidence, decide, and take it back."""

import pytest

from fhircm.exchange.identity import link_person
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import MoveCursor, Put
from tests import commands

MARY = {
    "resourceType": "Patient",
    "name": [{"family": "Smith", "given": ["Mary"]}],
    "birthDate": "1971-03-09",
    "gender": "female",
}


@pytest.fixture
def fhircm(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        environment = {
            "FHIRCM_DATABASE_URL": database_url,
            "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
            "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
        }
        done = commands.run(*arguments, **environment)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


async def react(store):
    before = await store.cursor("identity")
    while batch := (await store.changes(before, types=frozenset({"Patient", "Task"}), limit=500)).changes:
        for change in batch:
            operations = await link_person(store, change)
            await store.transact([*operations, MoveCursor("identity", before, change.position)], origin="hub")
            before = change.position


async def people(store):
    page = await store.search(parse_query("Person", []))
    return [len(stored.tree["link"]) for stored in page.matches if stored.tree["active"]]


async def test_a_steward_decides_and_takes_it_back(fhircm, store):
    trees = [{**MARY, "id": id, "meta": {"source": f"https://{id}.test/Patient/1"}} for id in ("north", "south")]
    await store.transact([Put(check_tree(tree)) for tree in trees], origin="partner:any")
    await react(store)
    (line,) = fhircm("identity", "review").splitlines()
    task, bits, one, other, why = line.split("\t")
    assert ({one, other}, why) == (
        {"north", "south"},
        "The same: birth-date, family, gender, given. Not surely: nothing else is known",
    )
    told = fhircm("identity", "explain", "north", "Patient/south")
    assert f"{bits} bits of evidence; by the records alone it asks a human" in told
    assert "  birth-date: same" in told
    assert told.rstrip().endswith("They are not linked")
    assert not any(value in told for value in ("Smith", "Mary", "1971"))

    assert task in fhircm("identity", "link", "north", "south")
    await react(store)
    assert await people(store) == [2]
    assert fhircm("identity", "review") == "Nothing waits for a decision\n"
    assert "A human said that they are one person\nThey are linked" in fhircm("identity", "explain", "north", "south")

    fhircm("identity", "unlink", "north", "south")
    await react(store)
    assert await people(store) == []


async def test_what_cannot_be_decided_is_said(fhircm, store):
    trees = [{**MARY, "id": id, "meta": {"source": f"https://north.test/Patient/{id}"}} for id in ("a", "b")]
    await store.transact([Put(check_tree(tree)) for tree in trees], origin="partner:any")
    assert "merged there" in fhircm("identity", "link", "a", "b", status=1)
    assert "Patient/nobody is not known" in fhircm("identity", "explain", "a", "nobody", status=1)
    assert "Name two records" in fhircm("identity", "unlink", "a", "Patient/a", status=1)
