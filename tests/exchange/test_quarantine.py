"""What a partner sends that breaks the rules is kept with its reason, stops nothing, reaches nobody else's record, and can come in later."""

import json
from datetime import timedelta

import httpx
import pytest

from fhircm.coordination.rules import RULES
from fhircm.exchange.holding import Busy
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.pull import pull
from fhircm.exchange.release import release
from fhircm.fhir.outcome import IllegalTransition, NotFound
from fhircm.store.database import open_database
from fhircm.store.operations import WriteRule
from fhircm.store.resources import LetGo, Store
from tests.exchange.test_pull import BASE, Ehr, partner, ref

NORTH = "north-clinic"


async def names(store, kind=None):
    return [one.name for one in await store.held_page(NORTH, kind)]


async def once(ehr, store):
    async with ehr.client() as client:
        return await pull(store, client)


def in_search(type, patient, resource):
    """A fault: a search of one patient's resources answers with this one besides."""

    def answer(request):
        if request.url.path.endswith(f"/{type}") and request.url.params.get("patient") == patient:
            return httpx.Response(200, json={"resourceType": "Bundle", "entry": [{"resource": resource}]})
        return None

    return answer


async def test_what_cannot_be_taken_is_kept_as_it_came_and_comes_in_when_it_is_mended(store, clock):
    ehr = Ehr(1)
    ehr.change("Condition", "p0-c", colour="red")
    await once(ehr, store)
    (held,) = await store.held_page(NORTH)
    assert (held.name, held.kind, held.batch, held.times) == ("Condition/p0-c", "invalid", "Patient/p0", 1)
    assert "colour" in held.reason
    assert json.loads(await store.held_body(NORTH, held.name)) == ehr.resources["Condition", "p0-c"]
    clock.advance(timedelta(hours=1))
    await once(ehr, store)
    assert (await store.held_page(NORTH))[0] == held  # an unchanged one writes nothing
    ehr.put("Condition", "p0-c", code={"text": "asthma"}, subject=ref("Patient/p0"))
    report = await once(ehr, store)
    assert (await names(store), report.refused) == ([], [])
    assert (await store.read("Condition", hub_id(BASE, "Condition/p0-c"))).version == 1


async def test_what_is_gone_at_the_partner_is_no_longer_kept(store):
    ehr = Ehr(1)
    ehr.change("Condition", "p0-c", colour="red")
    ehr.change("Organization", "north", colour="red")
    await once(ehr, store)
    assert await names(store) == ["Condition/p0-c", "Organization/north"]
    del ehr.resources["Condition", "p0-c"]
    ehr.put("Organization", "north", name="North Clinic")
    await once(ehr, store)
    assert await names(store) == []


async def test_it_is_tried_again_when_a_rule_was_mended_without_asking_the_partner(database_url, clock):
    strict = [True]

    def rule(write):
        if strict[0]:
            raise IllegalTransition("not so", "Task.status")

    store = Store(await open_database(database_url), clock=clock, rules=[WriteRule(frozenset({"Task"}), rule)])
    ehr = Ehr(2)
    await once(ehr, store)
    assert await names(store) == ["Task/p0-t", "Task/p1-t"]
    again = await release(store, partner(), ["Task/p0-t"])
    assert [(one.name, one.reason) for one in again] == [("Task/p0-t", "Task.status: not so")]
    strict[0] = False
    asked = len(ehr.requests)
    await release(store, partner(), ["Task/p0-t"])
    assert (len(ehr.requests), await names(store)) == (asked, ["Task/p1-t"])
    assert (await store.read("Task", hub_id(BASE, "Task/p0-t"))).version == 1
    with pytest.raises(NotFound):
        await release(store, partner(), ["Task/p0-t"])
    await once(ehr, store)
    assert await names(store) == []
    await store.close()


async def test_a_partners_chain_that_comes_back_is_kept_and_stops_nothing(store):
    store.rules = RULES
    ehr = Ehr(1)
    for one, other in ("xy", "yx"):
        ehr.put("Task", one, status="requested", intent="order", **{"for": ref("Patient/p0")}, partOf=[ref(f"Task/{other}")])
    await once(ehr, store)
    (held,) = await store.held_page(NORTH)
    assert "Task.partOf leads back to this Task" in held.reason
    other = {"Task/x": "y", "Task/y": "x"}[held.name]
    kept = (await store.read("Task", hub_id(BASE, f"Task/{other}"))).tree
    assert kept["partOf"] == [{"reference": f"{BASE}/{held.name}"}], "it leads to the partner, where the hub has nothing"
    assert (await store.read("Condition", hub_id(BASE, "Condition/p0-c"))).version == 1
    ehr.put("Task", held.name[-1], status="requested", intent="order", **{"for": ref("Patient/p0")})
    await once(ehr, store)
    assert await names(store) == []
    assert (await store.read("Task", hub_id(BASE, held.name))).version == 1


async def test_a_release_waits_for_no_pull_and_disturbs_none(store):
    ehr = Ehr(1)
    ehr.change("Condition", "p0-c", colour="red")
    await once(ehr, store)
    assert await store.lease(f"pull:{NORTH}", "a pull", 60)
    with pytest.raises(Busy):
        await release(store, partner(), ["Condition/p0-c"])
    await store.release(f"pull:{NORTH}", "a pull")
    assert (await release(store, partner(), ["Condition/p0-c"]))[0].reason is not None


@pytest.mark.parametrize("other", ["p1", "stranger"])
async def test_what_is_about_somebody_else_reaches_nobodys_record(store, other):
    ehr = Ehr(2)
    wrong = {"resourceType": "Condition", "id": "x", "code": {"text": "secret"}, "subject": ref(f"Patient/{other}")}
    ehr.faults.append(in_search("Condition", "p0", wrong))
    report = await once(ehr, store)
    assert await names(store) == ["Condition/x in Patient/p0"]
    assert (await store.held_page(NORTH, "misplaced"))[0].batch == "Patient/p0"
    assert ("Condition", hub_id(BASE, "Condition/x")) not in await store.read_many([("Condition", hub_id(BASE, "Condition/x"))])
    assert "secret" not in "".join(map(str, report.refused))
    assert (await release(store, partner(), ["Condition/x in Patient/p0"]))[0].reason is not None
    ehr.faults.clear()
    if other == "p1":  # where it belongs, it is taken
        ehr.put("Condition", "x", code={"text": "secret"}, subject=ref("Patient/p1"))
    await once(ehr, store)
    assert await names(store) == []
    found = await store.read_many([("Condition", hub_id(BASE, "Condition/x"))])
    assert len(found) == (1 if other == "p1" else 0)


async def test_another_patients_own_record_in_the_place_of_this_ones_is_not_taken(store):
    ehr = Ehr(2)

    def swapped(request):
        if request.url.path.endswith("/Patient/p0"):
            return httpx.Response(200, json=ehr.resources["Patient", "p1"])
        return None

    ehr.faults.append(swapped)
    await once(ehr, store)
    assert ("Patient", hub_id(BASE, "Patient/p0")) not in await store.read_many([("Patient", hub_id(BASE, "Patient/p0"))])
    ehr.faults.clear()
    await once(ehr, store)
    assert await names(store) == []
    assert (await store.read("Patient", hub_id(BASE, "Patient/p0"))).version == 1


async def test_what_a_patient_had_before_a_merge_is_in_its_place(store):
    ehr = Ehr(2)
    ehr.change("Patient", "p0", link=[{"other": ref("Patient/p1"), "type": "replaces"}])
    moved = {"resourceType": "Condition", "id": "x", "code": {"text": "a"}, "subject": ref("Patient/p1")}
    ehr.faults.append(in_search("Condition", "p0", moved))
    await once(ehr, store)
    assert await names(store) == []
    assert (await store.read("Condition", hub_id(BASE, "Condition/x"))).version == 1


async def test_a_version_that_goes_back_waits_for_a_human_and_nothing_is_overwritten(store):
    ehr = Ehr(1)
    for _ in range(3):
        ehr.change("Condition", "p0-c", code={"text": "asthma"})
    await once(ehr, store)
    ehr.resources["Condition", "p0-c"] |= {"code": {"text": "older"}, "meta": {"versionId": "2"}}
    report = await once(ehr, store)
    assert (await names(store, "went-back"), report.written) == (["Condition/p0-c"], 0)
    copy = await store.read("Condition", hub_id(BASE, "Condition/p0-c"))
    assert (copy.version, copy.tree["code"]["text"]) == (1, "asthma")
    (tried,) = await release(store, partner(), ["Condition/p0-c"], trusted=True)
    copy = await store.read("Condition", hub_id(BASE, "Condition/p0-c"))
    assert (tried.reason, copy.version, copy.tree["code"]["text"]) == (None, 2, "older")
    assert (await once(ehr, store)).refused == []


@pytest.mark.parametrize(("ahead", "taken"), [(timedelta(minutes=5), True), (timedelta(days=1), False)])
async def test_a_time_in_the_future_is_taken_as_far_as_clocks_differ(store, clock, ahead, taken):
    ehr = Ehr(1)
    ehr.date = clock()
    ehr.resources["Condition", "p0-c"]["meta"]["lastUpdated"] = (clock() + ahead).isoformat()
    await once(ehr, store)
    assert (await names(store, "future") == []) is taken
    clock.advance(timedelta(days=2))
    await once(ehr, store)
    assert await names(store) == []


async def test_a_partner_whose_clock_is_ahead_is_measured_by_its_own(store, clock):
    ehr = Ehr(1)
    ehr.date = clock() + timedelta(hours=3)
    ehr.change("Condition", "p0-c", code={"text": "new"})
    await once(ehr, store)
    assert await names(store) == []


async def test_what_has_no_name_is_kept_until_it_comes_no_more_or_is_given_up(store):
    ehr = Ehr(1)
    ehr.faults.append(in_search("CareTeam", "p0", {"resourceType": "CareTeam", "name": "who"}))
    await once(ehr, store)
    (held,) = await store.held_page(NORTH, "nameless")
    await store.transact([LetGo(NORTH, held.name)], origin="hub")
    await once(ehr, store)
    assert await names(store) == [held.name]
    assert (await release(store, partner(), [held.name]))[0].reason == held.reason
    ehr.faults.clear()
    await once(ehr, store)
    assert await names(store) == []
