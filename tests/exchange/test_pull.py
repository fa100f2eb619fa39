"""A pull copies a panel exactly, once, whatever the partner does and wherever the hub is killed."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic
from uuid import uuid4

import httpx
import pytest

from fhircm.exchange import mirror as mirror_room
from fhircm.exchange.client import PartnerClient, PartnerRefused, PartnerUnavailable, SignInRefused
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner, PullType
from fhircm.exchange.pull import PullRunning, pull
from fhircm.fhir.guides import Artefact, Guide, InForce, put_in_force
from fhircm.fhir.outcome import IllegalTransition, Invalid
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.operations import START, WriteRule
from fhircm.store.resources import Delete, Put, Store

BASE = "https://ehr.example/fhir"
BY_PATIENT = ("Encounter", "Condition", "CareTeam", "Task")
BY_REFERENCE = ("Organization", "Practitioner", "PractitionerRole", "Location")


def partner(*, last_updated=(), **limits):
    pull_types = [PullType(type, ((("patient", "{patient}"),),), False, type in last_updated) for type in BY_PATIENT]
    pull_types.append(PullType("ServiceRequest", ((("patient", "{patient}"),),), True, False))
    pull_types += [PullType(type, (), True, False) for type in BY_REFERENCE]
    return Partner(
        name="north-clinic",
        folder=Path("north-clinic"),
        vendor="epic",
        base_url=BASE,
        client_id="fhircm",
        algorithm="ES384",
        scopes=("system/*.rs",),
        organization=Organization("north", "North Clinic", "1234567893"),
        time_zone="America/Chicago",
        calendar=Calendar("US", None, (), (5, 6)),
        group="panel",
        pull=tuple(pull_types),
        limits=Limits(**{"requests_per_second": 100_000.0, "page_size": 3, "attempts": 2, **limits}),
    )


class Ehr:
    """A partner's FHIR API over plain dicts; `faults` are functions that may answer a request in its place."""

    def __init__(self, patients=3):
        self.resources, self.hidden, self.faults = {}, set(), []
        self.requests = []
        self.date = datetime(2026, 3, 2, 15, 0, tzinfo=UTC)
        self.put("Organization", "north", name="North Clinic", identifier=[{"system": "x", "value": "1"}])
        self.put("Practitioner", "doc", name=[{"family": "Doe"}])
        self.put("PractitionerRole", "role", practitioner=ref("Practitioner/doc"), organization=ref("Organization/north"))
        self.patients = [f"p{number}" for number in range(patients)]
        for id in self.patients:
            self.patient(id)

    def patient(self, id):
        self.put("Patient", id, generalPractitioner=[ref("PractitionerRole/role")], gender="female")
        condition = {"code": {"text": "asthma"}, "subject": ref(f"Patient/{id}"), "encounter": ref(f"Encounter/{id}-e0")}
        self.put("Condition", f"{id}-c", **condition)
        for number in range(4):
            self.put("Encounter", f"{id}-e{number}", **encounter(id, diagnosis=[{"condition": ref(f"Condition/{id}-c")}]))
        self.put(
            "Task", f"{id}-t", status="requested", intent="order", **{"for": ref(f"Patient/{id}")}, focus=ref(f"Condition/{id}-c")
        )

    def put(self, type, id, **more):
        version = int(self.resources[type, id]["meta"]["versionId"]) + 1 if (type, id) in self.resources else 1
        meta = {"versionId": str(version), "lastUpdated": self.date.isoformat()}
        self.resources[type, id] = {"resourceType": type, "id": id, "meta": meta, **more}

    def change(self, type, id, **more):
        kept = {name: value for name, value in self.resources[type, id].items() if name not in ("resourceType", "id", "meta")}
        self.put(type, id, **{**kept, **more})

    def client(self, **limits):
        async def at_once(_):
            await asyncio.sleep(0)

        return PartnerClient(partner(**limits), transport=httpx.MockTransport(self.answer), sleep=at_once)

    async def answer(self, request):
        self.requests.append(request)
        for fault in self.faults:
            answer = fault(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer
        return self.honest(request)

    def honest(self, request):
        headers = {"Date": format_datetime(self.date, usegmt=True)}
        path = request.url.path.removeprefix("/fhir/")
        if path == "Group/panel":
            members = [{"entity": ref(f"Patient/{id}")} for id in self.patients]
            return httpx.Response(200, json={"resourceType": "Group", "id": "panel", "member": members}, headers=headers)
        type, _, id = path.partition("/")
        if id:
            found = self.resources.get((type, id))
            return httpx.Response(200 if found else 404, json=found or {"resourceType": "OperationOutcome"}, headers=headers)
        return httpx.Response(200, json=self.page(type, request.url.params), headers=headers)

    def page(self, type, params):
        mine = f"Patient/{params['patient']}"
        found = [one for (kind, id), one in self.resources.items() if kind == type and (kind, id) not in self.hidden]
        found = [one for one in found if mine in (one.get(name, {}).get("reference") for name in ("subject", "for"))]
        if since := params.get("_lastUpdated"):
            found = [one for one in found if one["meta"]["lastUpdated"] >= since.removeprefix("ge").replace("Z", "+00:00")]
        start, size = int(params.get("page", 0)), int(params["_count"])
        entries = [{"resource": one} for one in found[start : start + size]]
        outcome = {"resourceType": "OperationOutcome", "issue": []}
        bundle = {"resourceType": "Bundle", "entry": [*entries, {"resource": outcome, "search": {"mode": "outcome"}}]}
        if start + size < len(found):
            following = httpx.URL(f"{BASE}/{type}", params={**params, "page": str(start + size)})
            bundle["link"] = [{"relation": "next", "url": str(following)}]
        return bundle


def ref(target):
    return {"reference": target}


def encounter(patient, **more):
    return {"status": "in-progress", "class": {"code": "AMB"}, "subject": ref(f"Patient/{patient}"), **more}


def at(*answers, when):
    """A fault that answers the first requests for which `when` holds, the last answer again and again if it is a tuple's only."""
    left = list(answers)

    def fault(request):
        if left and when(request):
            return left.pop(0)
        return None

    return fault


def always(answer, when=lambda request: True):
    return lambda request: answer if when(request) else None


def is_search(type, patient=None):
    return lambda request: request.url.path == f"/fhir/{type}" and patient in (None, request.url.params.get("patient"))


async def everything(store):
    """What is at the hub: the tree of each current resource, and how many versions there are of all."""
    changes = (await store.changes(START, types=None, limit=100_000)).changes
    stored = await store.read_many({(change.type, change.id) for change in changes})
    return {key: one.tree for key, one in stored.items()}, len(changes)


def of(trees, type):
    return {tree["meta"]["source"].removeprefix(f"{BASE}/"): tree for (kind, _), tree in trees.items() if kind == type}


def mapped(resource, absolute=()):
    """What a resource of the partner must look like at the hub, by another way than the code's."""

    def walk(node):
        if isinstance(node, dict):
            return {name: target(value) if name == "reference" else walk(value) for name, value in node.items()}
        return [walk(one) for one in node] if isinstance(node, list) else node

    def target(reference):
        if reference in absolute:
            return f"{BASE}/{reference}"
        return f"{reference.split('/')[0]}/{hub_id(BASE, reference)}"

    here = f"{resource['resourceType']}/{resource['id']}"
    return {**walk(resource), "id": hub_id(BASE, here), "meta": {"source": f"{BASE}/{here}"}}


def plain(tree):
    meta = {name: value for name, value in tree["meta"].items() if name not in ("versionId", "lastUpdated")}
    return {**tree, "meta": meta}


async def assert_mirrors(store, ehr, absolute=(), without=()):
    trees, _ = await everything(store)
    copies = {key: plain(tree) for key, tree in trees.items() if key[0] != "Provenance"}
    expected = [mapped(one, absolute) for key, one in ehr.resources.items() if key not in without]
    assert copies == {(one["resourceType"], one["id"]): one for one in expected}
    return trees


async def test_a_panel_is_copied_and_nothing_is_altered_beyond_what_must_be(store):
    ehr, told = Ehr(), []
    async with ehr.client() as client:
        report = await pull(store, client, progress=lambda done, total: told.append((done, total)))
    await assert_mirrors(store, ehr)
    assert (report.patients, report.resources, report.written, report.unchanged) == (3, 24, 24, 0)
    assert (report.refused, report.failed, report.gone) == ([], [], 0)
    assert report.pages == 3 * (2 + 4)
    assert report.requests == len(ehr.requests) == 1 + 3 + report.pages + 3
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert "3 patients, 24 resources: 24 written, 0 unchanged; 18 pages" in report.summary()


async def test_every_version_that_was_copied_has_its_provenance(store):
    ehr = Ehr()
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("Encounter", "p1-e2", status="finished")
        await pull(store, client)
    trees, _ = await everything(store)
    told = {}
    for tree in (tree for (type, _), tree in trees.items() if type == "Provenance"):
        assert tree["agent"][0]["who"]["reference"] == f"Organization/{hub_id(BASE, 'Organization/north')}"
        for target, entity in zip(tree["target"], tree["entity"], strict=True):
            assert target["reference"] not in told
            told[target["reference"]] = entity["what"]["reference"]
    expected = {}
    for (type, id), one in ehr.resources.items():
        for version in range(1, int(one["meta"]["versionId"]) + 1):
            expected[f"{type}/{hub_id(BASE, f'{type}/{id}')}/_history/{version}"] = f"{BASE}/{type}/{id}/_history/{version}"
    assert told == expected


async def test_a_second_pull_of_what_did_not_change_writes_nothing(store):
    ehr = Ehr()
    async with ehr.client() as client:
        await pull(store, client)
        _, before = await everything(store)
        for one in ehr.resources.values():  # new versions there, with the same content
            one["meta"] = {"versionId": "77", "lastUpdated": "2026-03-03T00:00:00Z"}
        report = await pull(store, client)
    assert (await everything(store))[1] == before
    assert (report.written, report.unchanged, report.resources) == (0, 24, 24)


async def test_what_changed_is_written_and_nothing_else(store):
    ehr = Ehr()
    async with ehr.client() as client:
        await pull(store, client)
        known, before = await everything(store)
        ehr.change("Encounter", "p2-e0", status="finished")
        ehr.change("Practitioner", "doc", name=[{"family": "Roe"}])
        ehr.patient("p3")
        ehr.patients.append("p3")
        report = await pull(store, client)
    trees = await assert_mirrors(store, ehr)
    assert report.written == 2 + 7
    told = [tree for key, tree in trees.items() if key[0] == "Provenance" and key not in known]
    written = Counter(target["reference"] for one in told for target in one["target"])
    # the doctor comes with whichever patient is read first, so with a Provenance of p2, of p3 or of nobody else
    assert len(written) == written.total() == report.written
    assert len(told) in (2, 3)
    assert (await everything(store))[1] == before + report.written + len(told)
    assert (
        of({k: t for k, t in trees.items() if k[0] != "Provenance"}, "Encounter")["Encounter/p2-e0"]["meta"]["versionId"] == "2"
    )


async def test_another_order_of_bytes_alone_is_no_new_version(store):
    ehr = Ehr(1)
    async with ehr.client() as client:
        await pull(store, client)
        for key, one in ehr.resources.items():
            ehr.resources[key] = dict(reversed(one.items()))
        assert (await pull(store, client)).written == 0
        assert (await pull(store, client)).written == 0


async def test_a_lost_memory_doubles_nothing(store):
    ehr = Ehr()
    async with ehr.client() as client:
        await pull(store, client)
        async with store.database.writing() as connection:
            await connection.execute("DELETE FROM state")
        assert (await pull(store, client)).written == 0


async def test_what_the_partner_does_not_give_is_referred_to_at_the_partner(store):
    ehr = Ehr(1)
    ehr.put("Encounter", "x", **encounter("p0", serviceProvider=ref("Organization/nobody"), account=[ref("Account/1")]))
    async with ehr.client() as client:
        report = await pull(store, client)
        await assert_mirrors(store, ehr, {"Organization/nobody", "Account/1"})
        assert report.refused == report.failed == []
        assert (await pull(store, client)).written == 0
        ehr.put("Organization", "nobody", name="Somebody after all")
        assert (await pull(store, client)).written == 2
        await assert_mirrors(store, ehr, {"Account/1"})


async def test_what_is_found_by_reference_alone_is_read_by_id(store):
    ehr = Ehr(1)
    ehr.put("ServiceRequest", "order", status="active", intent="order", subject=ref("Patient/p0"))
    ehr.change("Task", "p0-t", focus=ref("ServiceRequest/order"))
    ehr.hidden.add(("ServiceRequest", "order"))
    async with ehr.client() as client:
        await pull(store, client)
    await assert_mirrors(store, ehr)


async def test_nobody_outside_the_panel_is_copied(store):
    ehr = Ehr(2)
    ehr.patient("stranger")
    ehr.put("ServiceRequest", "theirs", status="active", intent="order", subject=ref("Patient/stranger"))
    ehr.change("Task", "p0-t", focus=ref("ServiceRequest/theirs"))
    ehr.put("Encounter", "together", **encounter("p0", diagnosis=[{"condition": ref("Condition/stranger-c")}]))
    ehr.change("Patient", "p1", link=[{"other": ref("Patient/stranger"), "type": "seealso"}])
    async with ehr.client() as client:
        await pull(store, client)
    trees, _ = await everything(store)
    assert not [tree for tree in trees.values() if "stranger" in tree["meta"].get("source", "")]
    assert of({k: t for k, t in trees.items() if k[0] != "Provenance"}, "Task")["Task/p0-t"]["focus"] == ref(
        f"{BASE}/ServiceRequest/theirs"
    )


async def test_patients_of_the_panel_may_refer_to_one_another(store):
    ehr = Ehr(4)
    ehr.change("Patient", "p0", link=[{"other": ref("Patient/p3"), "type": "seealso"}])
    ehr.change("Patient", "p3", link=[{"other": ref("Patient/p0"), "type": "seealso"}])
    async with ehr.client(concurrency=1) as client:
        assert (await pull(store, client)).written == 4 * 7 + 3
        await assert_mirrors(store, ehr)
        assert (await pull(store, client)).written == 0


async def test_a_reference_to_another_patients_record_is_mended_within_the_pull(store):
    """The mother's encounter comes after the child's, which refers to it: the reference is local in the end."""
    ehr = Ehr(2)
    ehr.change("Encounter", "p0-e1", partOf=ref("Encounter/p1-e0"))
    async with ehr.client(concurrency=1) as client:
        await pull(store, client)
        await assert_mirrors(store, ehr)
        assert (await pull(store, client)).written == 0


async def test_what_a_partner_claims_of_a_record_and_does_not_keep_is_no_reason_to_refuse_it(store):
    url = "https://guide.example/StructureDefinition/named"
    rules = [{"id": "Patient", "path": "Patient"}, {"id": "Patient.name", "path": "Patient.name", "min": 1}]
    definition = {"resourceType": "StructureDefinition", "url": url, "type": "Patient", "differential": {"element": rules}}
    artefact = Artefact("StructureDefinition", url, "1", json.dumps(definition).encode(), "Patient")
    claimed = InForce("test", (Guide("guide", "1", (artefact,)),))
    ehr = Ehr(1)
    ehr.resources["Patient", "p0"]["meta"]["profile"] = [url]
    await store.guides.follow()
    put_in_force(claimed)
    try:
        with pytest.raises(Invalid):
            check_tree({"resourceType": "Patient", "meta": {"profile": [url]}})
        store.guides._read_at = monotonic() + 60
        report = await pull(store, ehr.client())
    finally:
        put_in_force(InForce())
    assert report.refused == []
    copy = await store.read("Patient", hub_id(BASE, "Patient/p0"))
    assert copy.tree["meta"]["profile"] == [url]


async def test_an_invalid_resource_is_told_and_does_not_stop_the_rest(store):
    ehr = Ehr(2)
    ehr.put("Condition", "p0-c", code={"text": "secret"}, subject=ref("Patient/p0"), colour="red")
    ehr.put("Encounter", "bad", status="strange", **{"class": {"code": "AMB"}}, subject=ref("Patient/p1"))
    async with ehr.client() as client:
        report = await pull(store, client)
        without = {("Condition", "p0-c"), ("Encounter", "bad")}
        await assert_mirrors(store, ehr, {"Condition/p0-c"}, without)
        told = {refusal.what: str(refusal) for refusal in report.refused}
        assert told.keys() == {"Condition/p0-c", "Encounter/bad"}
        assert "colour" in told["Condition/p0-c"]
        assert "Encounter.status" in told["Encounter/bad"]
        assert "secret" not in str(told)
        again = await pull(store, client)
        assert (again.written, len(again.refused)) == (0, 2)
        ehr.put("Condition", "p0-c", code={"text": "mended"}, subject=ref("Patient/p0"))
        report = await pull(store, client)
        await assert_mirrors(store, ehr, without={("Encounter", "bad")})
        assert report.written == 1 + 5


async def test_a_resource_that_becomes_invalid_keeps_its_copy(store):
    ehr = Ehr(1)
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("Condition", "p0-c", colour="red")
        report = await pull(store, client)
    assert (report.written, len(report.refused)) == (0, 1)
    assert (await store.read("Condition", hub_id(BASE, "Condition/p0-c"))).version == 1


async def test_a_write_rule_refuses_one_resource_and_knows_the_partner(database_url, clock):
    seen = set()

    def rule(write):
        seen.add((write.new["resourceType"], write.origin))
        if write.new["status"] == "failed":
            raise IllegalTransition("not so", "Task.status")

    store = Store(await open_database(database_url), clock=clock, rules=[WriteRule(frozenset({"Task"}), rule)])
    ehr = Ehr(2)
    ehr.change("Task", "p0-t", status="failed")
    async with ehr.client() as client:
        report = await pull(store, client)
    await assert_mirrors(store, ehr, without={("Task", "p0-t")})
    assert [str(one) for one in report.refused] == ["Task/p0-t: Task.status: not so"]
    assert seen == {("Task", "partner:north-clinic")}
    await store.close()


async def test_bytes_that_are_no_fhir_are_told(store):
    ehr = Ehr(1)

    def odd(request):
        if not is_search("CareTeam")(request):
            return None
        return httpx.Response(
            200,
            content=b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"CareTeam","id":"a","x":"\xff"}},'
            b'{"resource":{"resourceType":"CareTeam"}},{"resource":{"resourceType":"CareTeam","id":"b","id":"c"}},'
            b'{"resource":{"resourceType":"Observation","id":"o"}},{"resource":{"resourceType":"CareTeam","id":"d"}}]}',
        )

    ehr.faults.append(odd)
    async with ehr.client() as client:
        report = await pull(store, client)
    ehr.put("CareTeam", "d")
    await assert_mirrors(store, ehr)
    told = {one.what: str(one) for one in report.refused}
    begins = sha256(b'{"resourceType":"CareTeam"}').hexdigest()[:8]
    nameless = f"CareTeam/? {begins} in Patient/p0"
    assert told.keys() == {"CareTeam/a", "CareTeam/c", nameless}
    assert "not UTF-8" in told["CareTeam/a"]
    assert "stands twice" in told["CareTeam/c"]
    assert "no type or no id" in told[nameless]


async def test_what_a_search_shows_no_more_is_asked_for_by_id(store):
    ehr = Ehr(1)
    ehr.put("CareTeam", "team", status="active", subject=ref("Patient/p0"))
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("CareTeam", "team", status="inactive")
        ehr.hidden.add(("CareTeam", "team"))
        copy = mapped(ehr.resources["Encounter", "p0-e3"])
        del ehr.resources["Encounter", "p0-e3"]
        report = await pull(store, client)
        assert (report.written, report.gone) == (1, 1)
        team = (await store.read("CareTeam", hub_id(BASE, "CareTeam/team"))).tree
        assert team["status"] == "inactive"
        gone = await store.read("Encounter", hub_id(BASE, "Encounter/p0-e3"))
        assert (gone.version, [tag["code"] for tag in gone.tree["meta"]["tag"]]) == (2, ["gone-at-source"])
        assert {**plain(gone.tree), "meta": {"source": f"{BASE}/Encounter/p0-e3"}} == copy
        again = await pull(store, client)
        assert (again.written, again.gone) == (0, 0)
        ehr.put("Encounter", "p0-e3", **encounter("p0", status="finished"))
        assert (await pull(store, client)).written == 1
        assert "tag" not in (await store.read("Encounter", hub_id(BASE, "Encounter/p0-e3"))).tree["meta"]


async def test_a_copy_that_was_deleted_at_the_hub_comes_back_as_its_next_version(store):
    ehr = Ehr(1)
    ehr.put("CareTeam", "team", status="active", subject=ref("Patient/p0"))
    id = hub_id(BASE, "CareTeam/team")
    async with ehr.client() as client:
        await pull(store, client)
        provenances = [key[1] for key in (await everything(store))[0] if key[0] == "Provenance"]
        await store.transact([*(Delete("Provenance", one) for one in provenances), Delete("CareTeam", id)], origin="hub")
        ehr.change("CareTeam", "team", status="inactive")
        await pull(store, client)
    assert (await store.read("CareTeam", id)).version == 3
    [told] = [tree for key, tree in (await everything(store))[0].items() if key[0] == "Provenance"]
    assert told["target"] == [ref(f"CareTeam/{id}/_history/3")]


async def test_only_changes_are_asked_for_where_the_partner_can_tell_them(store):
    ehr = Ehr(2)
    async with ehr.client(last_updated=("Encounter",)) as client:
        await pull(store, client)
        ehr.requests.clear()
        ehr.date += timedelta(hours=2)
        ehr.change("Encounter", "p1-e3", status="finished")
        report = await pull(store, client)
        asked = {request.url.params.get("_lastUpdated") for request in ehr.requests if request.url.path == "/fhir/Encounter"}
        assert asked == {"ge2026-03-02T14:50:00Z"}  # ten minutes before the first, by the partner's clock
        assert report.written == 1
        await assert_mirrors(store, ehr)
        ehr.patient("p2")
        ehr.patients.append("p2")  # new in the panel: read in full
        assert (await pull(store, client)).written == 7
        await assert_mirrors(store, ehr)
        ehr.requests.clear()
        ehr.date += timedelta(days=2)  # believed for a day
        del ehr.resources["Encounter", "p0-e2"]
        assert (await pull(store, client)).gone == 1
        assert not [request for request in ehr.requests if "_lastUpdated" in request.url.params]


async def test_a_failed_search_moves_no_mark(store):
    ehr = Ehr(1)
    async with ehr.client(last_updated=("Encounter",)) as client:
        await pull(store, client)
        ehr.date += timedelta(hours=2)
        ehr.change("Encounter", "p0-e3", status="finished")
        ehr.change("Task", "p0-t", status="accepted")
        ehr.faults = [always(httpx.Response(500), is_search("Encounter"))]
        assert (await pull(store, client)).failed
        ehr.faults = []
        ehr.date += timedelta(hours=2)
        assert (await pull(store, client)).written == 1
        await assert_mirrors(store, ehr)


FAULTS = {
    "down": httpx.ConnectError("refused"),
    "slow": httpx.ReadTimeout("slow"),
    "cut off": httpx.RemoteProtocolError("gone"),
    "429": httpx.Response(429, headers={"Retry-After": "1"}),
    "500": httpx.Response(500, text="Internal error for John Smith"),
    "503": httpx.Response(503),
    "HTML": httpx.Response(200, text="<html>Maintenance</html>"),
    "truncated": httpx.Response(200, content=b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Enc'),
    "another": httpx.Response(200, json={"resourceType": "Observation", "id": "o"}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_passing_fault_is_not_even_noticed(store, fault):
    ehr = Ehr()
    ehr.faults.append(at(FAULTS[fault], when=is_search("Encounter", "p1")))
    ehr.faults.append(at(FAULTS[fault], when=lambda request: request.url.path == "/fhir/Practitioner/doc"))
    async with ehr.client() as client:
        report = await pull(store, client)
    assert (report.written, report.failed) == (24, [])
    await assert_mirrors(store, ehr)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "429"])
async def test_a_lasting_fault_of_one_search_leaves_only_that_for_the_next_pull(store, fault):
    ehr = Ehr()
    ehr.faults.append(always(FAULTS[fault], is_search("Encounter", "p1")))
    async with ehr.client() as client:
        report = await pull(store, client)
        assert (report.patients, report.written) == (3, 20)
        assert [one.split(":")[0] for one in report.failed] == ["Encounter of Patient/p1"]
        assert "Smith" not in str(report.failed)
        ehr.faults.clear()
        assert (await pull(store, client)).written == 4 + 1  # and the Condition, whose Encounter is here now
        await assert_mirrors(store, ehr)


async def test_a_type_that_fails_for_everybody_is_given_up_and_the_others_are_copied(store):
    ehr = Ehr(8)
    ehr.faults.append(always(FAULTS["HTML"], is_search("Encounter")))
    async with ehr.client(concurrency=1) as client:
        report = await pull(store, client)
        assert report.written == 3 + 8 * 3
        assert len([request for request in ehr.requests if request.url.path == "/fhir/Encounter"]) == 3 * 2
        assert len(report.failed) == 8
        ehr.faults.clear()
        await pull(store, client)
        await assert_mirrors(store, ehr)


async def test_a_type_that_is_refused_is_told_once_and_the_others_are_copied(store):
    ehr = Ehr(5)
    ehr.faults.append(
        always(
            httpx.Response(403, json={"resourceType": "OperationOutcome", "issue": [{"code": "forbidden"}]}), is_search("Task")
        )
    )
    async with ehr.client() as client:
        report = await pull(store, client)
    assert [one.what for one in report.refused] == ["Task, by search"]
    assert report.failed == []
    await assert_mirrors(store, ehr, without={("Task", f"p{number}-t") for number in range(5)})


async def test_a_member_that_is_not_there_is_told(store):
    ehr = Ehr(2)
    ehr.patients.append("ghost")
    async with ehr.client() as client:
        report = await pull(store, client)
    assert [one.what for one in report.refused] == ["Patient/ghost"]
    await assert_mirrors(store, ehr)


@pytest.mark.parametrize("fault", ["down", "slow", "500", "HTML"])
async def test_a_partner_that_goes_down_stops_the_pull_which_goes_on_later_without_loss(store, fault):
    ehr = Ehr(12)
    served = []

    def breaks_down(request):
        served.append(request)
        return FAULTS[fault] if len(served) > 40 else None

    ehr.faults.append(breaks_down)
    async with ehr.client(concurrency=2) as client:
        with pytest.raises((PartnerUnavailable, Exception)) as told:
            await pull(store, client)
        assert type(told.value).__name__ in ("PartnerUnavailable", "PartnerAnswerBroken")
        trees, _ = await everything(store)
        done = len([key for key in trees if key[0] == "Patient"])
        assert 0 < done < 12
        ehr.faults.clear()
        report = await pull(store, client)
        assert 0 < report.resumed <= done
        assert report.resumed + report.patients == 12
        await assert_mirrors(store, ehr)
        assert (await pull(store, client)).resumed == 0


async def test_a_partner_that_asks_for_hours_is_left_alone_at_once(store):
    ehr = Ehr(5)
    ehr.faults.append(always(httpx.Response(429, headers={"Retry-After": "7200"}), is_search("Encounter", "p0")))
    async with ehr.client(concurrency=1) as client:
        with pytest.raises(PartnerUnavailable) as told:
            await pull(store, client)
    assert told.value.retry_after == 7200
    assert len([request for request in ehr.requests if request.url.path == "/fhir/Encounter"]) == 1


async def test_a_sign_in_that_is_refused_stops_at_once(store):
    ehr = Ehr(5)
    ehr.faults.append(always(httpx.Response(401), is_search("Encounter")))
    async with ehr.client(concurrency=1) as client:
        with pytest.raises(SignInRefused):
            await pull(store, client)
    assert len([request for request in ehr.requests if request.url.path == "/fhir/Encounter"]) == 1


async def test_a_panel_that_is_refused_is_told(store):
    ehr = Ehr(1)
    ehr.faults.append(always(httpx.Response(403), lambda request: request.url.path == "/fhir/Group/panel"))
    async with ehr.client() as client:
        with pytest.raises(PartnerRefused, match="403 to GET /fhir/Group/panel"):
            await pull(store, client)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [1, 2, 4, 7])
async def test_killed_after_any_transaction_it_goes_on_and_doubles_nothing(database_url, clock, after):
    ehr = Ehr(6)
    ehr.change("Encounter", "p0-e1", partOf=ref("Encounter/p5-e0"))
    store = Store(await open_database(database_url), clock=clock)
    real, count = store.transact, 0

    async def transact(operations, *, origin):
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        return await real(operations, origin=origin)

    store.transact = transact
    async with ehr.client(concurrency=2) as client:
        with pytest.raises(Killed):
            await pull(store, client)
    del store.transact
    async with ehr.client(concurrency=2) as client:
        report = await pull(store, client)
        assert report.resumed == min(after, 6) - 1  # p0 refers to what came last, so it is looked at again
        await assert_mirrors(store, ehr)
        assert (await pull(store, client)).written == 0
    _, versions = await everything(store)
    mended = 1 if (await store.read("Encounter", hub_id(BASE, "Encounter/p0-e1"))).version == 2 else 0
    provenances = [key for key in (await everything(store))[0] if key[0] == "Provenance"]
    assert versions == 6 * 7 + 3 + mended + len(provenances)
    await store.close()


async def test_cancelled_in_the_middle_of_a_page_it_goes_on(store):
    ehr, waiting = Ehr(4), asyncio.Event()

    async def hang(request):
        if is_search("Encounter", "p2")(request) and "page" in request.url.params:
            waiting.set()
            await asyncio.Event().wait()

    ehr.faults.append(hang)
    async with ehr.client(concurrency=1) as client:
        work = asyncio.create_task(pull(store, client))
        await waiting.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        ehr.faults.clear()
        report = await pull(store, client)  # and the lease was given back
        assert report.resumed == 2
        await assert_mirrors(store, ehr)


async def test_an_old_interruption_or_another_panel_starts_over(store, clock):
    for change in (lambda ehr: clock.advance(timedelta(days=2)), lambda ehr: ehr.patients.append("p9")):
        ehr = Ehr(4)
        ehr.patient("p9")
        ehr.faults.append(always(httpx.Response(429, headers={"Retry-After": "7200"}), is_search("Task", "p2")))
        async with ehr.client(concurrency=1) as client:
            with pytest.raises(PartnerUnavailable):
                await pull(store, client)
            ehr.faults.clear()
            change(ehr)
            assert (await pull(store, client)).resumed == 0


async def test_one_pull_of_a_partner_at_a_time(store):
    ehr, waiting, go = Ehr(1), asyncio.Event(), asyncio.Event()

    async def hang(request):
        waiting.set()
        await go.wait()

    ehr.faults.append(hang)
    async with ehr.client() as first, ehr.client() as second:
        work = asyncio.create_task(pull(store, first))
        await waiting.wait()
        with pytest.raises(PullRunning, match="north-clinic is being pulled already"):
            await pull(store, second)
        go.set()
        assert (await work).written == 10
        assert (await pull(store, second)).written == 0


async def test_a_pull_that_lost_its_lease_ends(store):
    ehr, waiting = Ehr(1), asyncio.Event()

    async def hang(request):
        waiting.set()
        await asyncio.Event().wait()

    ehr.faults.append(hang)
    async with ehr.client() as client:
        work = asyncio.create_task(pull(store, client, lease_seconds=0.2))
        await waiting.wait()
        async with store.database.writing() as connection:
            await connection.execute("DELETE FROM lease")
        assert await store.lease("pull:north-clinic", str(uuid4()), 60)
        with pytest.raises(PullRunning, match="took it over"):
            await work


async def test_a_write_of_somebody_else_between_reading_and_writing_is_not_overwritten_unseen(store):
    """The copy was changed at the hub meanwhile: the write is decided again on what is there now."""
    ehr = Ehr(1)
    async with ehr.client() as client:
        await pull(store, client)
        ehr.change("Task", "p0-t", status="accepted")
        real, id = store.transact, hub_id(BASE, "Task/p0-t")
        raced = []

        async def transact(operations, *, origin):
            if not raced and any(isinstance(one, Put) for one in operations):
                raced.append(True)
                tree = (await store.read("Task", id)).tree
                await real([Put(check_tree({**tree, "description": "by the hub"}))], origin="hub")
            return await real(operations, origin=origin)

        store.transact = transact
        report = await pull(store, client)
        del store.transact
    assert report.failed == []
    assert [one.version for one in await store.history("Task", id)] == [3, 2, 1]
    assert (await store.read("Task", id)).tree["status"] == "accepted"


async def test_a_large_record_is_written_in_several_transactions_in_which_nothing_refers_forward(store, monkeypatch):
    monkeypatch.setattr(mirror_room, "BATCH", 5)
    ehr = Ehr(1)
    for number in range(12):  # a chain, and with the Condition a circle
        ehr.put("Encounter", f"n{number}", **encounter("p0", partOf=ref(f"Encounter/n{number + 1}")))
    ehr.put("Encounter", "n12", **encounter("p0"))
    sizes, real = [], store.transact

    async def transact(operations, *, origin):
        sizes.append(len([one for one in operations if isinstance(one, Put)]))
        return await real(operations, origin=origin)

    store.transact = transact
    async with ehr.client() as client:
        report = await pull(store, client)
        assert report.written == 10 + 13
        await assert_mirrors(store, ehr)
        assert (await pull(store, client)).written == 0
    assert max(sizes) <= 5 + 1
    assert len([size for size in sizes if size]) >= 5


async def test_the_copies_can_be_searched(store):
    ehr = Ehr(2)
    async with ehr.client() as client:
        await pull(store, client)
    page = await store.search(parse_query("Encounter", [("patient", f"Patient/{hub_id(BASE, 'Patient/p1')}")]))
    assert len(page.matches) == 4
