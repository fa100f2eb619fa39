"""Two records of a partner become one: all that named the one that was given up goes on with the survivor, and comes back when the merge does."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from fhircm.coordination.rules import RULES
from fhircm.exchange import merge
from fhircm.exchange.case import patient_at
from fhircm.exchange.identity import link_person
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import FinishTimer, MoveCursor, Put
from tests.exchange.test_identity import decision

BASE, OTHER = "https://lakeside.test/R4", "https://riverbend.test/r4"
MINUTE = timedelta(minutes=1)


def at(id, base=BASE):
    return hub_id(base, f"Patient/{id}")


def ref(id, base=BASE):
    return {"reference": f"Patient/{at(id, base)}"}


def patient(id, base=BASE, into=None, **members):
    link = {"link": [{"other": into if isinstance(into, dict) else ref(into), "type": "replaced-by"}]} if into else {}
    known = {"name": [{"family": "Smith", "given": ["Mary"]}], "birthDate": "1960-05-05", "gender": "female"}
    return {"resourceType": "Patient", "id": at(id, base), "meta": {"source": f"{base}/Patient/{id}"}, **known, **link, **members}


class Hub:
    """A store with the reactions that a merge sets going."""

    def __init__(self, store):
        self.store = store

    async def put(self, *trees, origin="partner:lakeside"):
        await self.store.transact([Put(check_tree(tree)) for tree in trees], origin=origin)

    async def react(self, *, steps=1000):
        """Everything that is to be done, or so many steps of it: then the process dies."""
        for name, function, types in (("merge", merge.follow, merge.types()), ("identity", link_person, "Patient Task")):
            before = await self.store.cursor(name)
            for change in (await self.store.changes(before, types=frozenset(types.split()), limit=1000)).changes:
                operations = await function(self.store, change, owner="Organization/hub")
                await self.store.transact([*operations, MoveCursor(name, before, change.position)], origin="hub")
                before = change.position
        while steps and (timers := await self.store.claim_timers({merge.KIND}, limit=1, lease=MINUTE)):
            operations = await merge.carry_on(SimpleNamespace(store=self.store, organization="hub"), timers[0])
            await self.store.transact([*operations, FinishTimer(timers[0])], origin="hub")
            steps -= 1

    async def settle(self):
        for _ in range(4):
            await self.react()

    async def found(self, type, id, parameter="patient", base=BASE):
        page = await self.store.search(parse_query(type, [(parameter, f"Patient/{at(id, base)}"), ("_count", "1000")]))
        return sorted(stored.id for stored in page.matches)

    async def tasks(self, code):
        page = await self.store.search(parse_query("Task", [("code", code), ("status", "ready"), ("_count", "100")]))
        return [stored.tree for stored in page.matches]


def observation(id, of, source=True):
    meta = {"meta": {"source": f"{BASE}/Observation/{id}"}} if source else {}
    return {"resourceType": "Observation", "id": id, **meta, "status": "final", "code": {"text": "Weight"}, "subject": ref(of)}


def task(id, of, **members):
    return {"resourceType": "Task", "id": id, "status": "requested", "intent": "order", "for": ref(of), **members}


def consent(id, of, type):
    scope = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]}
    category = [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}]
    policy = [{"uri": "urn:policy"}]
    return {"resourceType": "Consent", "id": id, "status": "active", "scope": scope, "category": category, "policy": policy, "patient": ref(of), "provision": {"type": type}}  # fmt: skip


@pytest.fixture
async def hub(store):
    store.rules = RULES
    await store.transact([Put(check_tree({"resourceType": "Organization", "id": "hub", "name": "Coordination"}))], origin="hub")
    return Hub(store)


async def test_everything_goes_on_with_the_survivor_and_comes_back(hub):
    await hub.put(patient("a"), patient("b"), observation("seen", "a"), observation("own", "b"))
    await hub.put(
        task("open", "a"),
        {"resourceType": "Group", "id": "panel", "type": "person", "actual": True, "member": [{"entity": ref("a")}]},
        origin="hub",
    )
    before = (await hub.store.read("Observation", "seen")).tree
    await hub.put(patient("a", into="b"))
    await hub.settle()
    assert await hub.found("Observation", "b") == ["own", "seen"]
    assert await hub.found("Task", "b") == ["open"]
    assert await hub.found("Group", "b", "member") == ["panel"]
    assert await hub.found("Observation", "a") == []
    moved = (await hub.store.read("Observation", "seen")).tree
    assert moved["subject"]["extension"] == [{"url": merge.ORIGINAL, "valueString": f"Patient/{at('a')}"}]
    assert (await hub.store.read("Task", "open")).tree["status"] == "requested", "it goes on, and is not doubled"

    await hub.put(patient("a"))
    await hub.settle()
    assert {**(await hub.store.read("Observation", "seen")).tree, "meta": before["meta"]} == before
    assert (await hub.found("Observation", "b"), await hub.found("Task", "a")) == (["own"], ["open"])
    (told,) = await hub.tasks(merge.REVIEW)
    assert "taken back" in told["reasonCode"]["text"]


async def test_what_the_partner_still_writes_of_the_old_record_follows(hub):
    await hub.put(patient("a", into="b"), patient("b"))
    await hub.settle()
    await hub.put(observation("late", "a"))
    await hub.settle()
    assert await hub.found("Observation", "b") == ["late"]
    changes = (await hub.store.changes((0, 0), types=frozenset({"Observation"}), limit=10)).changes
    await hub.settle()
    assert len((await hub.store.changes((0, 0), types=frozenset({"Observation"}), limit=10)).changes) == len(changes), "and rests"


@pytest.mark.parametrize("order", [("ab", "bc"), ("bc", "ab")])
async def test_a_chain_leads_to_its_end_and_each_link_can_be_taken_back(hub, order):
    await hub.put(*map(patient, "abc"), *(observation(f"of-{id}", id) for id in "abc"))
    for old, new in order:
        await hub.put(patient(old, into=new))
        await hub.settle()
    assert await hub.found("Observation", "c") == ["of-a", "of-b", "of-c"]
    await hub.put(patient("b"))
    await hub.settle()
    assert (await hub.found("Observation", "b"), await hub.found("Observation", "c")) == (["of-a", "of-b"], ["of-c"])


@pytest.mark.parametrize(
    "trees",
    [
        pytest.param([patient("a", into="b"), patient("b", into="a")], id="a circle"),
        pytest.param([patient("a", into=ref("x", OTHER)), patient("x", OTHER)], id="into another partner's"),
        pytest.param([patient("a", into={"reference": f"{BASE}/Patient/never"})], id="into nowhere"),
    ],
)
async def test_what_cannot_be_followed_is_left_and_told(hub, trees):
    await hub.put(*map(patient, "ab"), patient("x", OTHER), observation("seen", "a"))
    await hub.put(*trees)
    await hub.settle()
    assert await hub.found("Observation", "a") == ["seen"]
    assert "Nothing was moved" in (await hub.tasks(merge.REVIEW))[0]["reasonCode"]["text"]


async def test_a_survivor_that_comes_later_takes_over_then(hub):
    await hub.put(patient("a", into={"reference": f"{BASE}/Patient/b"}), observation("seen", "a"))
    await hub.settle()
    await hub.put(patient("b"))
    await hub.settle()
    assert await hub.found("Observation", "b") == ["seen"]
    assert await hub.tasks(merge.REVIEW) == []


async def test_a_long_record_is_moved_in_steps_that_a_killed_process_does_not_lose(hub, monkeypatch):
    monkeypatch.setattr(merge, "AT_ONCE", 4)
    await hub.put(patient("a"), patient("b"), *(observation(f"o{n}", "a") for n in range(10)))
    await hub.settle()
    await hub.put(patient("a", into="b"))
    await hub.react(steps=1)
    assert len(await hub.found("Observation", "b")) == 4
    await hub.settle()
    assert len(await hub.found("Observation", "b")) == 10


async def test_consents_that_say_different_things_are_told_and_the_stricter_holds(hub):
    await hub.put(patient("a"), patient("b"))
    await hub.put(consent("no", "a", "deny"), consent("yes", "b", "permit"))
    await hub.put(patient("a", into="b"))
    await hub.settle()
    assert await hub.found("Consent", "b") == ["no", "yes"]
    (told,) = await hub.tasks("consent-conflict")
    assert "each denial counts" in told["reasonCode"]["text"]


async def test_a_human_s_word_about_the_old_record_goes_for_the_survivor(hub):
    await hub.put(patient("a"), patient("b", birthDate="1961-06-06"))
    await hub.put(patient("x", OTHER), origin="partner:riverbend")
    await hub.settle()
    (question,) = await hub.tasks("possible-match")
    for members in ({"status": "in-progress"}, {"status": "completed", "output": [decision("same")]}):
        await hub.put({**(await hub.store.read("Task", question["id"])).tree, **members}, origin="client:console")
    await hub.settle()
    assert len(await hub.found("Person", "a")) == 1
    await hub.put(patient("a", into="b"))
    await hub.settle()
    await hub.put(patient("x", OTHER, active=True), origin="partner:riverbend")
    await hub.settle()
    assert await hub.found("Person", "a") == []
    assert await hub.found("Person", "b") == await hub.found("Person", "x", base=OTHER) != []


async def test_a_merge_that_shows_only_in_a_search_is_noted(hub):
    class Partner:
        base_url = BASE

    await hub.put(patient("a"), patient("b"), observation("seen", "a"))
    assert await merge.replaced(hub.store, Partner, "a", "unknown") == []
    await hub.store.transact(await merge.replaced(hub.store, Partner, "a", "b"), origin="partner:lakeside")
    assert await merge.replaced(hub.store, Partner, "a", "b") == []
    await hub.settle()
    assert await hub.found("Observation", "b") == ["seen"]
    gone = (await hub.store.read("Patient", at("a"))).tree
    assert (gone["active"], await patient_at(hub.store, gone, Partner)) == (False, "b")
