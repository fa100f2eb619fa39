"""A Person stands over the records of one human, whatever the order in which they came, and never over two humans."""

from itertools import permutations

import pytest

from fhircm.coordination.rules import RULES
from fhircm.exchange.features import features
from fhircm.exchange.identity import link_person
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import MoveCursor, Put

HOSPITAL, CLINIC, PAYER = "https://lakeside.test/R4", "https://riverbend.test/r4", "https://payer.test/fhir"
SSN = "http://hl7.org/fhir/sid/us-ssn"
HOME = {"line": ["418 North Maple Street"], "city": "Lakeside", "postalCode": "60611"}
COMMON = {"family": "Smith", "given": "Mary"}  # so that a birth date beside it is not enough
AWAY = {"line": ["9 Harbor Road"], "city": "Portland", "postalCode": "97202"}


def patient(base, id, family="Okafor", given="Amara", born="1971-03-09", ssn=None, home=HOME, **members):
    """A Patient as it was pulled."""
    tree = {
        "resourceType": "Patient",
        "id": hub_id(base, f"Patient/{id}"),
        "meta": {"source": f"{base}/Patient/{id}"},
        "name": [{"family": family, "given": given.split()}],
        "gender": "female",
        "birthDate": born,
        "address": [home],
        **members,
    }
    if ssn:
        tree["identifier"] = [{"system": SSN, "value": ssn}]
    return tree


class Hub:
    """A store and the reaction that links, run as the worker runs it."""

    def __init__(self, store):
        self.store = store

    async def pull(self, *trees):
        for tree in trees:
            base = tree["meta"]["source"].split("/Patient/")[0]
            await self.store.transact([Put(check_tree(tree))], origin=f"partner:{base}")

    async def react(self):
        """Read every change that was not read yet; returns how many writes that caused."""
        before = await self.store.cursor("link_person")
        batch = await self.store.changes(before, types=frozenset({"Patient", "Task"}), limit=1000)
        wrote = 0
        for change in batch.changes:
            operations = await link_person(self.store, change, owner="Organization/hub")
            wrote += len(
                await self.store.transact([*operations, MoveCursor("link_person", before, change.position)], origin="hub")
            )
            before = change.position
        return wrote

    async def see(self, *trees):
        await self.pull(*trees)
        wrote = await self.react()
        while await self.react():  # what the reaction itself wrote
            pass
        return wrote

    async def all(self, type):
        page = await self.store.search(parse_query(type, [("_count", "1000")]))
        return [stored.tree for stored in page.matches]

    async def people(self):
        """Who is linked to whom, as sets of sources."""
        people = set()
        for person in await self.all("Person"):
            if person["active"]:
                ids = [link["target"]["reference"].removeprefix("Patient/") for link in person["link"]]
                found = await self.store.read_many([("Patient", id) for id in ids])
                people.add(frozenset(stored.tree["meta"]["source"] for stored in found.values()))
        return people

    async def questions(self, code="possible-match"):
        tasks = [task for task in await self.all("Task") if task["code"]["coding"][0]["code"] == code]
        return sorted((task for task in tasks if task["status"] == "ready"), key=lambda task: task["id"])

    async def answer(self, said):
        """A human takes up the one question and completes it."""
        (task,) = await self.questions()
        for members in ({"status": "in-progress"}, {"status": "completed", "output": [decision(said)]}):
            task = {**(await self.store.read("Task", task["id"])).tree, **members}
            await self.store.transact([Put(check_tree(task))], origin="client:console")
        await self.react()


def decision(said):
    system = "https://fhircm.example/CodeSystem/coordination"
    return {"type": {"coding": [{"system": system, "code": "match-decision"}]}, "valueCode": said}


def sources(*pairs):
    return frozenset(f"{base}/Patient/{id}" for base, id in pairs)


@pytest.fixture
async def hub(store):
    store.rules = RULES
    await store.transact([Put(check_tree({"resourceType": "Organization", "id": "hub", "name": "Coordination"}))], origin="hub")
    return Hub(store)


async def test_one_human_at_two_partners_gets_one_person(hub):
    await hub.see(patient(HOSPITAL, "1"), patient(CLINIC, "a"))
    (person,) = await hub.all("Person")
    assert await hub.people() == {sources((HOSPITAL, "1"), (CLINIC, "a"))}
    assert {link["assurance"] for link in person["link"]} == {"level3"}
    assert person["name"] == [{"family": "Okafor", "given": ["Amara"]}]
    assert await hub.questions() == []


async def test_every_order_makes_the_same_person(hub):
    """Also when the records come one by one, so that a Person grows and two are joined."""
    three = [
        patient(HOSPITAL, "1", ssn="412-88-1930"),
        patient(CLINIC, "a", ssn="412881930"),
        patient(PAYER, "x", ssn="412-88-1930"),
    ]
    seen = set()
    for number, order in enumerate(permutations(three)):
        for tree in order:
            await hub.see(tree)
        people = [person for person in await hub.all("Person") if person["active"]]
        seen.add((len(people), people[0]["id"], len(people[0]["link"])))
        changed = [
            patient(tree["meta"]["source"].split("/Patient/")[0], "1ax"[place], f"Zed{number}{place}", "Q")
            for place, tree in enumerate(three)
        ]
        await hub.see(*changed)
        assert await hub.people() == set()
    assert len(seen) == 1
    assert next(iter(seen))[0::2] == (1, 3)


async def test_two_workers_and_a_replay_write_nothing_new(hub):
    await hub.see(patient(HOSPITAL, "1"), patient(CLINIC, "a"), patient(PAYER, "x", home=AWAY))
    batch = await hub.store.changes((0, 0), types=frozenset({"Patient"}), limit=100)
    for change in batch.changes:
        assert await link_person(hub.store, change, owner="Organization/hub") == []


async def test_two_that_react_at_once_cannot_both_write(hub):
    from fhircm.fhir.outcome import VersionConflict

    await hub.pull(patient(HOSPITAL, "1"), patient(CLINIC, "a"))
    first, second = (await hub.store.changes((0, 0), types=frozenset({"Patient"}), limit=10)).changes
    mine, theirs = [await link_person(hub.store, change) for change in (first, second)]
    await hub.store.transact(mine, origin="hub")
    with pytest.raises(VersionConflict):
        await hub.store.transact(theirs, origin="hub")
    assert await link_person(hub.store, second) == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(patient(CLINIC, "a", given="Chioma"), id="twin"),
        pytest.param(patient(CLINIC, "a", born="1941-03-09"), id="parent of the same name"),
        pytest.param(patient(CLINIC, "a", family="Lund", home=AWAY), id="stranger born the same day"),
    ],
)
async def test_two_humans_are_neither_linked_nor_asked_about(hub, other):
    await hub.see(patient(HOSPITAL, "1"), other)
    assert await hub.all("Person") == []
    assert await hub.questions() == []


async def test_records_of_one_partner_are_never_linked_to_each_other(hub):
    await hub.see(patient(HOSPITAL, "1"), patient(HOSPITAL, "2"))
    assert await hub.all("Person") == []


async def test_an_uncertain_pair_is_asked_about_once(hub):
    await hub.see(patient(HOSPITAL, "1", **COMMON), patient(CLINIC, "a", home=AWAY, **COMMON))
    assert await hub.people() == set()
    (task,) = await hub.questions()
    assert {task["for"]["reference"], task["focus"]["reference"]} == {
        f"Patient/{hub_id(HOSPITAL, 'Patient/1')}",
        f"Patient/{hub_id(CLINIC, 'Patient/a')}",
    }
    assert task["owner"] == {"reference": "Organization/hub"}
    assert "address (differs)" in task["reasonCode"]["text"]
    assert not any(value in task["reasonCode"]["text"] for value in ("Smith", "1971", "Maple"))
    assert await hub.see(patient(CLINIC, "a", home={**AWAY, "line": ["10 Harbor Road"]}, **COMMON)) == 0


async def test_a_human_says_that_they_are_the_same(hub):
    await hub.see(patient(HOSPITAL, "1", **COMMON), patient(CLINIC, "a", home=AWAY, **COMMON))
    await hub.answer("same")
    assert await hub.people() == {sources((HOSPITAL, "1"), (CLINIC, "a"))}
    await hub.see(patient(CLINIC, "a", home=AWAY, **COMMON, telecom=[{"system": "phone", "value": "503-555-0111"}]))
    assert await hub.people() == {sources((HOSPITAL, "1"), (CLINIC, "a"))}
    assert await hub.questions() == []


async def test_a_human_says_that_they_are_different(hub):
    await hub.see(patient(HOSPITAL, "1", **COMMON), patient(CLINIC, "a", home=AWAY, **COMMON))
    await hub.answer("different")
    await hub.see(patient(CLINIC, "a", **COMMON))  # even when all agrees later
    assert await hub.people() == set()
    assert await hub.questions() == []


async def test_a_question_that_settles_itself_is_taken_back(hub):
    await hub.see(patient(HOSPITAL, "1", **COMMON), patient(CLINIC, "a", home=AWAY, **COMMON))
    (before,) = await hub.questions()
    await hub.see(patient(CLINIC, "a", **COMMON))
    assert await hub.people() == {sources((HOSPITAL, "1"), (CLINIC, "a"))}
    assert await hub.questions() == []
    await hub.see(patient(CLINIC, "a", home=AWAY, **COMMON))
    (again,) = await hub.questions()
    assert again["id"] != before["id"]
    await hub.see(patient(CLINIC, "a", family="Bianchi", given="Rosa"))
    assert await hub.questions() == []


async def test_two_candidates_at_one_partner_are_left_to_a_human(hub):
    """María at the clinic may be María Elena or María Luisa of the hospital, whichever came first."""
    await hub.see(patient(HOSPITAL, "1", given="María Elena"), patient(CLINIC, "a", given="María"))
    assert len(await hub.people()) == 1
    await hub.see(patient(HOSPITAL, "2", given="María Luisa"))
    assert await hub.people() == set()
    assert len(await hub.questions()) == 2
    assert all("another record of the same partner" in task["reasonCode"]["text"] for task in await hub.questions())
    (told,) = await hub.questions("match-withdrawn")
    assert "no longer taken for one person" in told["reasonCode"]["text"]
    await hub.see(patient(CLINIC, "a", given="María Luisa"))
    assert await hub.people() == {sources((HOSPITAL, "2"), (CLINIC, "a"))}
    assert await hub.questions() == []


async def test_links_that_contradict_each_other_are_none(hub):
    """Two partners agree with a third and not with each other."""
    middle = patient(CLINIC, "a", telecom=[{"system": "phone", "value": "312-555-0101"}])
    await hub.see(patient(HOSPITAL, "1", gender="female"), middle, patient(PAYER, "x", gender="male"))
    middle.pop("gender")
    await hub.see(middle)
    assert await hub.people() == set()


async def test_a_record_that_changes_is_unlinked_and_a_human_told(hub):
    await hub.see(patient(HOSPITAL, "1"), patient(CLINIC, "a"))
    (person,) = await hub.all("Person")
    await hub.see(patient(CLINIC, "a", family="Bianchi", given="Rosa"))
    assert await hub.people() == set()
    retired = (await hub.store.read("Person", person["id"])).tree
    assert (retired["active"], retired.get("link")) == (False, None)
    assert len(await hub.questions("match-withdrawn")) == 1
    await hub.see(patient(CLINIC, "a"))
    assert [one["id"] for one in await hub.all("Person") if one["active"]] == [person["id"]]


async def test_a_record_that_was_merged_away_is_unlinked(hub):
    await hub.see(patient(HOSPITAL, "1"), patient(CLINIC, "a"))
    other = {"reference": f"Patient/{hub_id(HOSPITAL, 'Patient/2')}"}
    await hub.pull(patient(HOSPITAL, "2", given="Amara"))
    await hub.see(patient(HOSPITAL, "1", link=[{"other": other, "type": "replaced-by"}]))
    assert await hub.people() == {sources((HOSPITAL, "2"), (CLINIC, "a"))}


async def test_a_panel_costs_no_comparison_of_all_with_all(hub, monkeypatch):
    """Each Patient is compared with those that share a birth date, a number or both names; the others are never loaded."""
    many = [patient(HOSPITAL, str(n), f"Name{n:03d}", f"G{n:03d}", f"1950-{n % 12 + 1:02d}-{n // 12 + 1:02d}") for n in range(60)]
    await hub.see(*many)
    loaded = []
    monkeypatch.setattr("fhircm.exchange.identity.features", lambda tree: loaded.append(tree["id"]) or features(tree))
    await hub.see(patient(CLINIC, "7", "Name007", "G007", "1950-08-01"))
    assert len(await hub.people()) == 1
    assert len(set(loaded)) == 2


async def test_a_question_tells_the_levels_and_goes_before_others_when_it_is_nearly_sure(hub):
    await hub.see(patient(HOSPITAL, "1", **COMMON), patient(CLINIC, "a", home=AWAY, **COMMON))
    (task,) = await hub.questions()
    told = [entry["valueString"] for entry in task["input"]]
    assert {"address: differs", "birth-date: same", "family: same", "gender: same", "given: same"} == set(told[1:])
    assert task["priority"] == "routine"
    await hub.see(patient(HOSPITAL, "1"), patient(CLINIC, "a", gender="male"))
    (task,) = await hub.questions()
    assert "gender: forbids" in [entry["valueString"] for entry in task["input"]]
    assert task["priority"] == "urgent"


async def test_an_answer_is_asked_about_again_when_something_new_speaks_against_it(hub):
    """And until that is answered, the old word stands; when it goes away, so does the question."""
    await hub.see(patient(HOSPITAL, "1", ssn="412-88-1930", **COMMON), patient(CLINIC, "a", home=AWAY, ssn=None, **COMMON))
    await hub.answer("same")
    both = {sources((HOSPITAL, "1"), (CLINIC, "a"))}
    await hub.see(patient(CLINIC, "a", home=AWAY, ssn="536-90-4812", **COMMON))
    assert await hub.people() == both
    (again,) = await hub.questions()
    assert "speaks against it: personal-id: forbids" in again["reasonCode"]["text"]
    await hub.see(patient(CLINIC, "a", home=AWAY, **COMMON))
    assert await hub.questions() == []
    await hub.see(patient(CLINIC, "a", home=AWAY, ssn="536-90-4812", **COMMON))
    await hub.answer("different")
    assert await hub.people() == set()
    await hub.see(patient(CLINIC, "a", ssn="536-90-4812", **COMMON))
    assert (await hub.people(), await hub.questions()) == (set(), [])
