"""A planned round looks where a change is likely, keeps to its budget, loses no hint, and believes nobody who was found to be dishonest."""

import random
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from fhircm.exchange import hints
from fhircm.exchange.client import PartnerClient, PartnerUnavailable
from fhircm.exchange.freshness import freshness, rendered
from fhircm.exchange.looks import namespace
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.plan import HINTED, LIKELY, NEVER, URGENT, Budget
from fhircm.exchange.pull import changes, pull, reconcile
from fhircm.exchange.schedule import Schedule
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put
from tests.exchange.test_pull import BASE, Ehr, always, assert_mirrors, at, encounter, everything, is_search, partner, ref

HOUR = timedelta(hours=1)


class Budgeted(Ehr):
    """The partner of test_pull, asked within a budget; its clock and the hub's go together."""

    def __init__(self, clock, patients=3, per_hour=None, across=(), full=timedelta(days=7), **limits):
        super().__init__(patients)
        self.clock = clock
        made = partner(**limits)
        types = tuple(replace(one, across=one.type in across) for one in made.pull)
        self.partner = replace(made, pull=types, budget=Budget(per_hour), schedule=Schedule(full=full))

    def client(self, **_):
        async def at_once(_):
            return None

        return PartnerClient(self.partner, transport=httpx.MockTransport(self.answer), sleep=at_once)

    def later(self, by):
        self.date += by
        self.clock.advance(by)

    def page(self, type, params):
        if "patient" in params:
            return super().page(type, params)
        since = params["_lastUpdated"].removeprefix("ge").replace("Z", "+00:00")
        found = [one for (kind, _), one in self.resources.items() if kind == type and one["meta"]["lastUpdated"] >= since]
        return {"resourceType": "Bundle", "entry": [{"resource": one} for one in found]}

    def asked(self):
        asked = [(request.url.path.removeprefix("/fhir/"), request.url.params.get("patient")) for request in self.requests]
        self.requests.clear()
        return asked


async def of_type(store, partner, type):
    return next(one for one in await freshness(store, partner) if one.type == type)


async def test_a_first_round_reads_everything_and_the_next_keeps_to_its_budget(store, clock):
    ehr = Budgeted(clock, patients=4, per_hour=40)
    async with ehr.client() as client:
        report = await changes(store, client)
        assert report.looks[NEVER] > 0
        assert report.requests <= 40 + 12  # pages and shared resources come on top, and are paid for later
        total = report.requests
        for _ in range(20):
            ehr.later(HOUR)
            total += (await changes(store, client)).requests
        assert total <= 21 * 40
    await assert_mirrors(store, ehr)


async def test_a_round_that_finds_nothing_writes_no_resource_and_few_facts(store, clock):
    ehr = Budgeted(clock, patients=30)
    async with ehr.client() as client:
        await pull(store, client)
        before = (await everything(store))[1]
        ehr.later(HOUR)
        ehr.requests.clear()
        real, written = store.transact, []

        async def transact(operations, *, origin):
            written.extend(operations)
            return await real(operations, origin=origin)

        store.transact = transact
        report = await changes(store, client)
        del store.transact
    assert (report.written, (await everything(store))[1]) == (0, before)
    assert [(type(one).__name__, one.namespace) for one in written] == [
        ("SetState", "looks:north-clinic"),
        ("SetState", "looked"),
        ("SetState", "freshness"),
    ]
    assert len(written) == 3  # the looks at 30 patients, the same in short, and the ledger
    assert len(await store.states(namespace("north-clinic"))) == 1


async def test_a_hint_is_followed_once_and_one_that_comes_meanwhile_is_kept(store, clock):
    ehr = Budgeted(clock, patients=6, per_hour=3000)
    async with ehr.client() as client:
        await pull(store, client)
        ehr.later(HOUR)
        ehr.partner = replace(ehr.partner, budget=Budget(4))
        ehr.change("Task", "p4-t", status="accepted")
    async with ehr.client() as client:
        for _ in range(3):  # said three times, it stands once
            await hints.hint(store, "north-clinic", "p4", ["Task"], "subscription")
        assert [(one.patient, one.type) for one in await hints.waiting(store, "north-clinic")] == [("p4", "Task")]
        await hints.hint(store, "north-clinic", "nobody", [], "adt")

        async def again(request):
            if is_search("Task", "p4")(request) and not said:
                said.append(True)
                await hints.hint(store, "north-clinic", "p4", ["Task"], "adt")

        said = []
        ehr.faults.append(again)
        ehr.requests.clear()
        report = await changes(store, client)
        assert (report.written, report.looks[HINTED]) == (1, 1)
        assert ("Task", "p4") in ehr.asked()
        [left] = await hints.waiting(store, "north-clinic")
        assert (left.patient, left.means) == ("p4", "adt")
        ehr.later(HOUR)
        assert (await changes(store, client)).looks[HINTED] == 1
        assert await hints.waiting(store, "north-clinic") == []
    assert (await of_type(store, ehr.partner, "Task")).found == {"subscription": 1}


async def test_a_hint_survives_a_search_that_fails(store, clock):
    ehr = Budgeted(clock, patients=2)
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("Task", "p1-t", status="accepted")
        await hints.hint(store, "north-clinic", "p1", [], "push")
        ehr.faults = [always(httpx.Response(500), is_search("Task", "p1"))]
        await changes(store, client)
        assert len(await hints.waiting(store, "north-clinic")) == 1
        assert (await of_type(store, ehr.partner, "Task")).missing == {"failed": 1}
        ehr.faults = []
        await changes(store, client)
        assert await hints.waiting(store, "north-clinic") == []
        assert (await of_type(store, ehr.partner, "Task")).missing == {}
    await assert_mirrors(store, ehr)


async def test_patients_with_an_open_loop_come_first(store, clock):
    ehr = Budgeted(clock, patients=8, concurrency=1)
    for id in ehr.patients:
        if id != "p5":
            ehr.change("Task", f"{id}-t", status="completed")
        for number in range(4):
            ehr.change("Encounter", f"{id}-e{number}", status="finished")
    async with ehr.client() as client:
        await pull(store, client)
    other = {"resourceType": "Patient", "id": "elsewhere"}
    links = [{"target": ref("Patient/elsewhere")}, {"target": ref(f"Patient/{hub_id(BASE, 'Patient/p2')}")}]
    person = {"resourceType": "Person", "id": "p2", "active": True, "link": links}
    order = {
        "resourceType": "ServiceRequest",
        "id": "o",
        "status": "active",
        "intent": "order",
        "subject": ref("Patient/elsewhere"),
    }
    await store.transact([Put(check_tree(one)) for one in (other, person, order)], origin="hub")
    ehr.later(HOUR)
    ehr.partner = replace(ehr.partner, budget=Budget(12))
    async with ehr.client() as client:
        ehr.requests.clear()
        report = await changes(store, client)
    asked = ehr.asked()
    assert report.looks[URGENT] == 2 * 3
    assert {patient for path, patient in asked[1:7]} == {"p5", "p2"}


async def test_one_search_tells_whose_resources_changed(store, clock):
    ehr = Budgeted(clock, patients=10, across=("Encounter",))
    ehr.partner = replace(ehr.partner, pull=tuple(replace(one, last_updated=one.type == "Encounter") for one in ehr.partner.pull))
    async with ehr.client() as client:
        await pull(store, client)
        ehr.later(HOUR)
        ehr.requests.clear()
        ehr.change("Encounter", "p7-e1", status="finished")
        client.partner = replace(ehr.partner, budget=Budget(5))
        report = await changes(store, client)
        assert report.written == 1
        assert ehr.asked()[1:3] == [("Encounter", None), ("Encounter", "p7")]
        ehr.later(HOUR)
        ehr.faults = [
            at(
                httpx.Response(500),
                httpx.Response(500),
                when=lambda request: is_search("Encounter")(request) and "patient" not in request.url.params,
            )
        ]
        ehr.change("Encounter", "p3-e1", status="finished")
        await changes(store, client)  # it broke off, so the mark stays
        ehr.later(HOUR)
        await changes(store, client)
    await assert_mirrors(store, ehr)
    assert (await of_type(store, ehr.partner, "Encounter")).found == {"last-updated": 2}


async def test_a_dishonest_last_updated_is_found_out_and_believed_again_after_clean_reconciliations(store, clock):
    ehr = Budgeted(clock, patients=3)
    ehr.partner = replace(ehr.partner, pull=tuple(replace(one, last_updated=one.type == "Encounter") for one in ehr.partner.pull))
    async with ehr.client() as client:
        await pull(store, client)
        ehr.later(2 * HOUR)
        for id in ("p0-e0", "p1-e0"):  # changed now, and says that it was changed days ago
            ehr.change("Encounter", id, status="finished")
            ehr.resources["Encounter", id]["meta"]["lastUpdated"] = "2026-02-01T00:00:00+00:00"
        assert (await pull(store, client)).written == 0
        ehr.later(2 * HOUR)
        report = await reconcile(store, client)
        assert (report.written, report.missed) == (2, {"Encounter": 2})
        assert "_lastUpdated of Encounter had not told of 2 changes" in report.findings()
        ehr.requests.clear()
        await pull(store, client)
        assert not [one for one in ehr.requests if "_lastUpdated" in one.url.params]
        assert (await of_type(store, ehr.partner, "Encounter")).distrusted
        for _ in range(3):
            ehr.later(HOUR)
            await reconcile(store, client)
        await pull(store, client)
        assert [one for one in ehr.requests if "_lastUpdated" in one.url.params]
        assert not (await of_type(store, ehr.partner, "Encounter")).distrusted


@pytest.mark.parametrize("ahead", [timedelta(hours=3), timedelta(hours=-3)])
async def test_a_partners_clock_that_is_wrong_or_jumps_hides_no_change(store, clock, ahead):
    ehr = Budgeted(clock, patients=2)
    ehr.partner = replace(ehr.partner, pull=tuple(replace(one, last_updated=one.type == "Encounter") for one in ehr.partner.pull))
    true = ehr.date
    async with ehr.client() as client:
        await pull(store, client)
        ehr.date = true + ahead  # what answers says another time than what stores
        clock.advance(HOUR)
        await pull(store, client)
        ehr.date = true + HOUR  # it is set right
        ehr.change("Encounter", "p1-e0", status="finished")
        clock.advance(HOUR)
        ehr.date = true + 2 * HOUR + ahead
        await pull(store, client)
    await assert_mirrors(store, ehr)


async def test_last_updated_that_is_refused_from_one_day_to_the_next_costs_a_search_and_loses_nothing(store, clock):
    ehr = Budgeted(clock, patients=2)
    ehr.partner = replace(ehr.partner, pull=tuple(replace(one, last_updated=one.type == "Encounter") for one in ehr.partner.pull))
    async with ehr.client() as client:
        await pull(store, client)
        ehr.later(HOUR)
        ehr.faults = [always(httpx.Response(400), lambda request: "_lastUpdated" in request.url.params)]
        ehr.change("Encounter", "p1-e0", status="finished")
        report = await pull(store, client)
        assert report.written == 1
        assert (report.failed, [one.what for one in report.refused]) == ([], ["Encounter, by _lastUpdated"])
    await assert_mirrors(store, ehr)
    assert (await of_type(store, ehr.partner, "Encounter")).distrusted


async def test_pages_that_break_off_are_taken_and_nothing_is_claimed_for_the_rest(store, clock):
    ehr = Budgeted(clock, patients=1)
    second = lambda request: is_search("Encounter")(request) and "page" in request.url.params  # noqa: E731
    ehr.faults = [always(httpx.Response(500), second)]
    async with ehr.client() as client:
        report = await pull(store, client)
        assert len(report.failed) == 1
        await assert_mirrors(store, ehr, without={("Encounter", "p0-e3")})
        one = await of_type(store, ehr.partner, "Encounter")
        assert (one.never, one.late, one.missing) == (1, 1, {"failed": 1})
        circle = httpx.URL(f"{BASE}/Encounter", params={"patient": "p0", "_count": "3"})
        link = [{"relation": "next", "url": str(circle)}]
        ehr.faults = [always(httpx.Response(200, json={"resourceType": "Bundle", "link": link}), second)]
        assert "circle" in (await pull(store, client)).failed[0]
        assert (await of_type(store, ehr.partner, "Encounter")).never == 1
        ehr.faults = []
        await pull(store, client)
    await assert_mirrors(store, ehr)


async def test_a_partner_that_stops_in_the_middle_keeps_what_was_looked_at_and_paid_for(store, clock):
    ehr = Budgeted(clock, patients=10, per_hour=1000, concurrency=1)
    tasks = []

    def tired(request):
        tasks.extend([request] if is_search("Task")(request) else [])
        return httpx.Response(429, headers={"Retry-After": "7200"}) if len(tasks) > 5 else None

    ehr.faults = [tired]
    async with ehr.client() as client:
        with pytest.raises(PartnerUnavailable):
            await changes(store, client)
        spent = len(ehr.asked())
        ehr.faults = []
        report = await changes(store, client)
        assert (report.looks[NEVER], report.looks[LIKELY]) == (5 * 6, 5 * 6)
        assert ehr.asked() and spent
    assert (await store.state("freshness", "north-clinic"))["budget"]["left"] == 1000 - spent - report.requests
    await assert_mirrors(store, ehr)


async def test_what_disappears_all_at_once_is_not_believed(store, clock):
    ehr = Budgeted(clock, patients=12, concurrency=1)
    async with ehr.client() as client:
        await pull(store, client)
        for key in [key for key in ehr.resources if key[0] == "Encounter"]:
            del ehr.resources[key]
        report = await reconcile(store, client)
    assert 0 < report.gone <= 20
    assert len(report.failed) > 5
    trees, _ = await everything(store)
    assert sum(bool(tree["meta"].get("tag")) for tree in trees.values()) == report.gone


async def test_an_open_task_that_hangs_on_what_is_gone_is_told_of_until_it_comes_back(store, clock):
    ehr = Budgeted(clock, patients=1)
    order = {"status": "active", "intent": "order", "subject": ref("Patient/p0")}
    ehr.put("ServiceRequest", "o", **order)
    async with ehr.client() as client:
        await pull(store, client)
        focus = ref(f"ServiceRequest/{hub_id(BASE, 'ServiceRequest/o')}")
        task = {"resourceType": "Task", "id": "loop", "status": "requested", "intent": "order", "focus": focus}
        await store.transact([Put(check_tree(task))], origin="hub")
        del ehr.resources["ServiceRequest", "o"]
        await reconcile(store, client)
        [told] = [
            one for one in (await everything(store))[0].values() if one.get("code", {}).get("text", "").startswith("Look into")
        ]
        assert (told["status"], told["focus"]) == ("ready", ref("Task/loop"))
        ehr.put("ServiceRequest", "o", **order)
        await reconcile(store, client)
        assert (await store.read("Task", told["id"])).tree["status"] == "cancelled"


async def test_merges_and_gaps_are_found(store, clock):
    ehr = Budgeted(clock, patients=4)
    ehr.change("Patient", "p1", identifier=[{"system": "urn:mrn", "value": "77"}])
    ehr.change("Encounter", "p3-e0", serviceProvider=ref("Organization/nowhere"))
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("Patient", "p0", link=[{"other": ref("Patient/p2"), "type": "replaced-by"}])
        del ehr.resources["Patient", "p1"]

        def by_identifier(request):
            if request.url.params.get("identifier") == "urn:mrn|77":
                found = {"resourceType": "Patient", "id": "p3", "identifier": [{"system": "urn:mrn", "value": "77"}]}
                return httpx.Response(200, json={"resourceType": "Bundle", "entry": [{"resource": found}]})
            return None

        ehr.faults = [by_identifier]
        report = await reconcile(store, client)
    assert report.merged == {"p0": "p2", "p1": "p3"}
    for old, new in report.merged.items():
        (link,) = (await store.read("Patient", hub_id(BASE, f"Patient/{old}"))).tree["link"]
        assert (link["type"], link["other"]["reference"]) == ("replaced-by", f"Patient/{hub_id(BASE, f'Patient/{new}')}")
    assert report.gaps == ["Organization/nowhere"]
    one = await of_type(store, ehr.partner, "Patient")
    assert one.missing == {"unreadable": 1}
    assert (await of_type(store, ehr.partner, "Organization")).missing == {"gap": 1}
    text = rendered(ehr.partner, await freshness(store, ehr.partner))
    assert "Organization: read by reference; 1 gap" in text


async def test_random_changes_under_a_budget_converge_and_cost_a_part_of_reading_everything(store, clock):
    draw = random.Random(11)
    ehr = Budgeted(clock, patients=20, per_hour=60, full=timedelta(hours=40))
    async with ehr.client() as client:
        await pull(store, client)
        ehr.requests.clear()
        for _ in range(30):
            ehr.later(HOUR)
            busy = f"p{draw.choice([3, 5, 8])}"  # few patients make most of the changes
            ehr.change("Encounter", f"{busy}-e{draw.randrange(4)}", status="finished", length={"value": draw.randrange(10**6)})
            if draw.random() < 0.2:
                ehr.put("Encounter", f"new{draw.random()}", **encounter(f"p{draw.randrange(20)}"))
            await changes(store, client)
        spent = len(ehr.requests)
        for _ in range(45):  # quiet
            ehr.later(HOUR)
            await changes(store, client)
    await assert_mirrors(store, ehr)
    assert spent <= 31 * 60
    assert spent < 30 * (1 + 20 * 7) / 2  # half of what reading everything each time would have cost, without its pages


async def test_changes_in_what_is_shared_are_found_by_the_reconciliation(store, clock):
    ehr = Budgeted(clock, patients=2)
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("Practitioner", "doc", name=[{"family": "Roe"}])
        assert (await changes(store, client)).written == 0
        assert (await reconcile(store, client)).written == 1
    await assert_mirrors(store, ehr)
