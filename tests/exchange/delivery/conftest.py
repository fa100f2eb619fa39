"""A hub that knows a hospital and a clinic, and both EHRs behind HTTP with faults to order."""

import copy
import json
from collections import Counter
from datetime import date
from pathlib import Path
from urllib.parse import parse_qsl

import httpx
import jsonpatch
import pytest
import yaml

from fhircm.coordination.rules import RULES
from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.news import CURSOR, News, read_to, skip
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner
from fhircm.exchange.push import push
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import START
from fhircm.store.resources import MoveCursor, Put

DELIVERY = "https://fhircm.example/delivery"
NPI = "http://hl7.org/fhir/sid/us-npi"
NPIS = {"lakeside": "1234567893", "riverbend": "1982736450"}
DELIVER = yaml.safe_load(
    """
hospital:
  referral-accepted: [[message, none]]
  referral-declined: [[message, letter]]
  referral-scheduled: [[message, none]]
  referral-interim-note: [[forward-output, none]]
  referral-closed: [[order-status], [forward-output], [message, letter]]
  referral-not-closed: [[message, letter]]
  transition-opened: [[message, letter, none]]
  message: [[message, letter]]
clinic:
  referral-sent: [[referral-task, referral-order, referral-document, letter], [message, none]]
  referral-cancel-requested: [[message, letter]]
  referral-cancelled: [[message, letter]]
  transition-opened: [[message, letter, none]]
  message: [[message, letter]]
"""
)


class Ehr:
    """An EHR behind HTTP: it keeps what it is sent, and fails as it is told to."""

    def __init__(self, name, base_url, organization, can, deliver, folder):
        self.name, self.base_url = name, base_url
        self.partner = Partner(
            name=name,
            folder=folder,
            vendor="test",
            base_url=base_url,
            client_id="fhircm",
            algorithm="ES384",
            scopes=("system/*.cruds",),
            organization=Organization(organization, f"The {name}", NPIS[organization]),
            time_zone="America/Chicago",
            calendar=Calendar("US", "IL", (date(2026, 12, 24),), (5, 6)),
            group="panel",
            pull=(),
            limits=Limits(requests_per_second=10_000, attempts=1, timeout=5),
            deliver=deliver,
        )
        self.kept = {}
        self.can = can
        self.conditional = set()  # types that are created with If-None-Exist
        self.faults = []  # (method, type, fault): the first that fits is used up
        self.log = []
        self.headers = []

    @property
    def capabilities(self):
        kinds = {
            type: {
                "interactions": interactions.split(),
                "search": ["patient", "identifier"],
                "more": ["conditionalCreate"] * (type in self.conditional),
            }
            for type, interactions in self.can.items()
        }
        return Capabilities("EHR", "4.0.1", None, (), (), kinds)

    def put(self, tree):
        versions = self.kept.setdefault((tree["resourceType"], tree["id"]), [])
        versions.append({**tree, "meta": {**tree.get("meta", {}), "versionId": str(len(versions) + 1)}})
        return versions[-1]

    def all(self, type):
        """The current resources of a type that the hub created."""
        mine = [versions[-1] for (kind, _), versions in self.kept.items() if kind == type]
        return [tree for tree in mine if any(one.get("system") == DELIVERY for one in tree.get("identifier", []))]

    def posts(self):
        return Counter(type for method, type in self.log if method == "POST")

    def fail(self, method, type, fault, times=1):
        self.faults += [(method, type, fault)] * times

    def answer(self, request):
        parts = request.url.path.removeprefix(httpx.URL(self.base_url).path).strip("/").split("/")
        type = parts[0]
        self.log.append((request.method, type))
        self.headers.append(dict(request.headers))
        fault = next((one for one in self.faults if one[0] == request.method and one[1] in (type, "*")), None)
        if fault:
            self.faults.remove(fault)
            return self.broken(request, parts, fault[2])
        return self.regular(request, parts)

    def broken(self, request, parts, fault):
        if fault == "down":
            raise httpx.ConnectError("refused")
        if fault == "lost":
            self.regular(request, parts)
            raise httpx.ReadTimeout("no answer")
        if fault == "late":
            raise httpx.ReadTimeout("no answer")
        if fault == "changed meanwhile":
            current = self.kept[parts[0], parts[1]][-1]
            self.put({**copy.deepcopy(current), "priority": "urgent"})
            return self.regular(request, parts)
        if fault == "html":
            return httpx.Response(200, html="<html><body>Maintenance</body></html>")
        if fault == "done, then html":
            self.regular(request, parts)
            return httpx.Response(200, html="<html><body>Thank you</body></html>")
        if isinstance(fault, tuple):
            return httpx.Response(fault[0], headers=fault[1])
        text = {
            "resourceType": "OperationOutcome",
            "issue": [{"severity": "error", "code": "invalid", "diagnostics": "element missing"}],
        }
        return httpx.Response(fault, json=text)

    def regular(self, request, parts):
        type = parts[0]
        if request.method == "POST":
            tree = json.loads(request.content)
            if (unless := request.headers.get("If-None-Exist")) and (same := self.identified(type, unless.rpartition("|")[2])):
                return httpx.Response(200, json=same, headers={"ETag": f'W/"{same["meta"]["versionId"]}"'})
            made = self.put({**tree, "id": f"{type.lower()}-{len(self.kept) + 1}"})
            return httpx.Response(201, json=made, headers={"ETag": f'W/"{made["meta"]["versionId"]}"'})
        if request.method == "GET" and len(parts) == 1:
            return self.search(type, dict(parse_qsl(request.url.query.decode())))
        versions = self.kept.get((type, parts[1]))
        if versions is None:
            return httpx.Response(
                404, json={"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "not-found"}]}
            )
        if request.method in ("PUT", "PATCH"):
            if request.headers.get("If-Match") != f'W/"{len(versions)}"':
                return self.broken(request, parts, 412)
            sent = json.loads(request.content)
            self.put(sent if request.method == "PUT" else jsonpatch.apply_patch(versions[-1], sent))
        return httpx.Response(200, json=versions[-1], headers={"ETag": f'W/"{len(versions)}"'})

    def identified(self, type, value):
        return next((one for one in self.all(type) if any(number["value"] == value for number in one["identifier"])), None)

    def search(self, type, asked):
        patient = asked.get("patient")
        found = [tree for (kind, _), versions in self.kept.items() if kind == type for tree in versions[-1:]]
        found = [
            tree for tree in found if not patient or (tree.get("subject") or tree.get("for"))["reference"] == f"Patient/{patient}"
        ]
        # This EHR ignores an identifier in a search, as some do: who asks must look for itself.
        return httpx.Response(
            200, json={"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": tree} for tree in found]}
        )


class World:
    """The hub's store with what was pulled from both, and the means to push."""

    def __init__(self, store, clock, hospital, clinic):
        self.store, self.clock, self.hospital, self.clinic = store, clock, hospital, clinic

    async def pulled(self, ehr, *trees):
        """Mirror resources of an EHR; references in them are written as they are at the hub already."""
        puts = []
        for tree in trees:
            source = f"{tree['resourceType']}/{tree['id']}"
            mirror = {**tree, "id": hub_id(ehr.base_url, source), "meta": {"source": f"{ehr.base_url}/{source}"}}
            puts.append(Put(check_tree(mirror)))
            ehr.put(tree)
        await self.store.transact(puts, origin=f"partner:{ehr.name}")

    async def write(self, *trees, origin="hub"):
        return await self.store.transact([Put(check_tree(tree)) for tree in trees], origin=origin)

    async def change(self, type, id, origin="client:clinic-app", **members):
        tree = (await self.store.read(type, id)).tree
        await self.write({**tree, **members}, origin=origin)

    async def read(self, type, id):
        return (await self.store.read(type, id)).tree

    async def push(self, ehr, **options):
        """As the worker does it: what the one reader does not tell of is never looked at."""
        kept = await self._waits(ehr)
        async with PartnerClient(ehr.partner, transport=httpx.MockTransport(ehr.answer)) as client:
            report = await push(
                self.store, ehr.partner, client, ehr.capabilities, self.clock, owner="Organization/hub", **options
            )
        if kept is not None and report.waiting_until is None:
            await read_to(self.store, ehr.name, f"push:{ehr.name}", kept)
        return report

    async def _waits(self, ehr):
        news, before = News(self.store, [self.hospital.partner, self.clinic.partner]), await self.store.cursor(CURSOR)
        batch = await self.store.changes(before, types=news.types, limit=1000)
        for change in batch.changes:
            if told := await news.tell(change):
                await self.store.transact([*told, MoveCursor(CURSOR, before, change.position)], origin="hub")
                before = change.position
        if batch.upto > before:
            await self.store.transact([MoveCursor(CURSOR, before, batch.upto)], origin="hub")
        kept, cursor = await skip(self.store, ehr.name, f"push:{ehr.name}"), await self.store.cursor(f"push:{ehr.name}")
        if kept is None and batch.upto > cursor > START:
            await self.store.transact([MoveCursor(f"push:{ehr.name}", cursor, batch.upto)], origin="hub")
        return kept

    async def tasks(self, code):
        changes = await self.store.changes((0, 0), types=frozenset({"Task"}), limit=1000)
        ids = dict.fromkeys(change.id for change in changes.changes)
        trees = [stored.tree for stored in (await self.store.read_many([("Task", id) for id in ids])).values()]
        return [tree for tree in trees if tree["code"]["coding"][0]["code"] == code]

    async def deliveries(self):
        """The Provenance resources that tell of deliveries."""
        changes = await self.store.changes((0, 0), types=frozenset({"Provenance"}), limit=1000)
        return [await self.read("Provenance", change.id) for change in changes.changes if change.version == 1]


def at(ehr, reference):
    """The reference at the hub of a resource of an EHR."""
    return f"{reference.partition('/')[0]}/{hub_id(ehr.base_url, reference)}"


def ref(reference, **more):
    return {"reference": reference, **more}


def organization(id, name, npi):
    return {"resourceType": "Organization", "id": id, "name": name, "identifier": [{"system": NPI, "value": npi}]}


@pytest.fixture
def hospital(tmp_path):
    can = {
        "ServiceRequest": "read search-type create update",
        "DocumentReference": "read search-type create update",
        "Communication": "read search-type create",
        "Task": "read search-type update",
    }
    return Ehr("hospital", "https://lakeside.test/api/FHIR/R4", "lakeside", can, DELIVER["hospital"], tmp_path / "hospital")


@pytest.fixture
def clinic(tmp_path):
    can = {
        "ServiceRequest": "read search-type",
        "DocumentReference": "read search-type create update",
        "Communication": "read search-type create patch",
    }
    return Ehr("clinic", "https://riverbend.test/r4/tenant", "riverbend", can, DELIVER["clinic"], tmp_path / "clinic")


@pytest.fixture
async def world(store, clock, hospital, clinic):
    store.rules = RULES
    made = World(store, clock, hospital, clinic)
    await made.write({"resourceType": "Organization", "id": "hub", "name": "Care coordination"})
    await made.pulled(
        hospital,
        organization("lakeside", "Lakeside Hospital", NPIS["lakeside"]),
        organization("riverbend-listed", "Riverbend Clinic", NPIS["riverbend"]),
        {"resourceType": "Practitioner", "id": "doc", "name": [{"family": "Ito", "given": ["Ken"]}]},
        {"resourceType": "Patient", "id": "p1", "name": [{"family": "Okafor", "given": ["Amara"]}], "birthDate": "1971-03-09"},
        {"resourceType": "Patient", "id": "p2", "name": [{"family": "Lund", "given": ["Nils"]}], "birthDate": "1950-01-05"},
    )
    await made.pulled(
        clinic,
        organization("riverbend", "Riverbend Clinic", NPIS["riverbend"]),
        {"resourceType": "Patient", "id": "c1", "name": [{"family": "Okafor", "given": ["Amara"]}], "birthDate": "1971-03-09"},
        {"resourceType": "Practitioner", "id": "heart", "name": [{"family": "Reyes", "given": ["Ana"]}]},
    )
    await made.pulled(
        hospital,
        {
            "resourceType": "PractitionerRole",
            "id": "role",
            "practitioner": ref(at(hospital, "Practitioner/doc")),
            "organization": ref(at(hospital, "Organization/lakeside")),
        },
        {
            "resourceType": "Condition",
            "id": "chf",
            "code": {"text": "Heart failure <NYHA II>"},
            "subject": ref(at(hospital, "Patient/p1")),
        },
    )
    await made.write(person(made, "p1", "c1"))
    return made


def person(world, hospital_id, clinic_id):
    links = [at(world.hospital, f"Patient/{hospital_id}"), at(world.clinic, f"Patient/{clinic_id}")]
    return {
        "resourceType": "Person",
        "id": f"person-{hospital_id}",
        "active": True,
        "link": [{"target": ref(link), "assurance": "level3"} for link in links],
    }


async def referral(world, id="referral-1", patient="p1", **members):
    """A referral from the hospital to the clinic as coordination writes it: the order's mirror and its Task."""
    hospital = world.hospital
    order = {
        "resourceType": "ServiceRequest",
        "id": f"order-{id}",
        "status": "active",
        "intent": "order",
        "priority": "urgent",
        "code": {"text": "Cardiology consultation"},
        "subject": ref(at(hospital, f"Patient/{patient}")),
        "requester": ref(at(hospital, "PractitionerRole/role")),
        "performer": [ref(at(hospital, "Organization/riverbend-listed"))],
        "reasonReference": [ref(at(hospital, "Condition/chf"))],
        "note": [{"text": "Weight up 3 kg & dyspnoea"}],
    }
    await world.pulled(hospital, order)
    focus = ref(at(hospital, f"ServiceRequest/order-{id}"))
    placer = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "PLAC"}]}
    task = {
        "resourceType": "Task",
        "id": id,
        "identifier": [{"type": placer, "system": "https://fhircm.example/referral", "value": id}],
        "status": "requested",
        "businessStatus": business("2.0"),
        "intent": "order",
        "code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]},
        "basedOn": [focus],
        "focus": focus,
        "for": ref(at(hospital, f"Patient/{patient}")),
        "requester": ref(at(hospital, "Organization/lakeside")),
        "owner": ref(at(hospital, "Organization/riverbend-listed")),
        **members,
    }
    await world.write(task)
    return task


def business(code):
    return {"coding": [{"system": "http://hl7.org/fhir/us/bser/CodeSystem/TaskBusinessStatusCS", "code": code}]}


async def consult_note(world, number="referral-1", id="note-1", **members):
    """A note of the clinic's, as it was pulled."""
    clinic = world.clinic
    note = {
        "resourceType": "DocumentReference",
        "id": id,
        "identifier": [{"system": "urn:riverbend:notes", "value": id}],
        "status": "current",
        "type": {"coding": [{"system": "http://loinc.org", "code": "11488-4", "display": "Consult note"}]},
        "subject": ref(at(clinic, "Patient/c1")),
        "date": "2026-03-02T14:00:00Z",
        "author": [ref(at(clinic, "Practitioner/heart"))],
        "custodian": ref(at(clinic, "Organization/riverbend")),
        "content": [{"attachment": {"contentType": "text/plain", "data": "U3RhYmxlLg=="}}],
        "context": {
            "encounter": [ref(f"{clinic.base_url}/Encounter/e9")],
            "related": [{"identifier": {"system": "https://fhircm.example/referral", "value": number}}],
        },
        **members,
    }
    await world.pulled(clinic, note)
    return ref(at(clinic, f"DocumentReference/{id}"))


async def closed(world, number="referral-1", **note):
    """The referral completed with the clinic's note."""
    report = await consult_note(world, number, **note)
    output = [{"type": {"text": "Consult note"}, "valueReference": report}]
    await world.change("Task", number, status="accepted", businessStatus=business("3.0"))
    await world.change("Task", number, origin="hub", status="completed", businessStatus=business("7.0"), output=output)


@pytest.fixture
def act():
    """The builders of this file, for the tests beside it."""
    from types import SimpleNamespace

    return SimpleNamespace(
        at=at,
        ref=ref,
        person=person,
        referral=referral,
        business=business,
        consult_note=consult_note,
        closed=closed,
        path=Path(__file__),
    )
