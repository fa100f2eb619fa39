"""Bulk Data export over HTTP: what is in the files, who may have them, and what is refused."""

import gzip
import json
import zlib
from datetime import timedelta

import pytest

from fhircm.access.bearer import Bearer
from fhircm.exchange import bulk
from fhircm.fhir.validation import check
from fhircm.jobs import JOBS, export_files
from fhircm.jobs.exported import expire
from fhircm.jobs.job import JobFailed, Means
from fhircm.jobs.running import run_jobs
from fhircm.store.credentials import Credentials
from fhircm.store.principals import Principals
from fhircm.store.resources import FinishTimer, Put

from .signing import BASE, register, signed_in

FHIR = f"{BASE}/fhir"
LEASE = timedelta(seconds=15)


@pytest.fixture
def work(store):
    """The worker: slices until none is due, or so many."""

    async def go(slices=10_000, seconds=1.0):
        done = 0
        while done < slices and await run_jobs(Means(store, FHIR, seconds), JOBS, LEASE):
            done += 1
        return done

    return go


@pytest.fixture
def start(http):
    """Kick off; returns the path of the status."""

    async def go(path="$export", parameters=None, **more):
        sent = {"Prefer": "respond-async", **more.pop("headers", {})}
        if parameters is None:
            answer = await http.get(f"/fhir/{path}", headers=sent, **more)
        else:
            body = {"resourceType": "Parameters", "parameter": parameters}
            answer = await http.post(f"/fhir/{path}", json=body, headers=sent | {"Content-Type": "application/fhir+json"}, **more)
        assert answer.status_code == 202, answer.text
        return answer.headers["Content-Location"]

    return go


@pytest.fixture
def fetched(http):
    """The manifest of an export that is done, and what its files hold: {(kind, type): [resource]}."""

    async def go(status):
        answer = await http.get(status)
        assert answer.status_code == 200, answer.text
        manifest = answer.json()
        found = {}
        for kind in ("output", "deleted", "error"):
            for file in manifest.get(kind, []):
                body = await http.get(file["url"])
                assert body.status_code == 200
                assert body.headers["content-type"] == "application/fhir+ndjson"
                lines = body.text.split("\n")
                assert lines.pop() == ""
                assert len(lines) == file["count"]
                found.setdefault((kind, file["type"]), []).extend(map(json.loads, lines))
        return manifest, found

    return go


@pytest.fixture
def exported(start, work, fetched):
    """From the kick-off to what the files hold: {type: [id]} of the output."""

    async def go(path="$export", parameters=None, **more):
        status = await start(path, parameters, **more)
        await work()
        _, found = await fetched(status)
        return {type: [one["id"] for one in listed] for (kind, type), listed in found.items() if kind == "output"}

    return go


def reference(to):
    return {"reference": to}


RECORDS = [
    {"resourceType": "Organization", "id": "above", "name": "Above"},
    {"resourceType": "Organization", "id": "clinic", "name": "Clinic", "partOf": reference("Organization/above")},
    {"resourceType": "Organization", "id": "elsewhere", "name": "Elsewhere"},
    {"resourceType": "Practitioner", "id": "doctor"},
    {"resourceType": "Practitioner", "id": "idle"},
    {"resourceType": "Patient", "id": "a", "managingOrganization": reference("Organization/clinic")},
    {"resourceType": "Patient", "id": "b"},
    {"resourceType": "Patient", "id": "c"},
    *(
        {
            "resourceType": "Condition",
            "id": f"c-{of}",
            "subject": reference(f"Patient/{of}"),
            "code": {"text": "x"},
            "clinicalStatus": {
                "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": status}]
            },
        }
        for of, status in (("a", "active"), ("b", "resolved"), ("c", "active"))
    ),
    {
        "resourceType": "Observation",
        "id": "o-a",
        "status": "final",
        "code": {"text": "x"},
        "subject": reference("Patient/a"),
        "performer": [reference("Practitioner/doctor")],
    },
    {"resourceType": "Observation", "id": "o-none", "status": "final", "code": {"text": "x"}},
    {
        "resourceType": "Provenance",
        "id": "p-a",
        "recorded": "2026-03-02T15:00:00Z",
        "target": [reference("Observation/o-a")],
        "agent": [{"who": reference("Organization/clinic")}],
    },
    {
        "resourceType": "Provenance",
        "id": "p-none",
        "recorded": "2026-03-02T15:00:00Z",
        "target": [reference("Observation/o-none")],
        "agent": [{"who": reference("Organization/clinic")}],
    },
    {"resourceType": "Group", "id": "inner", "type": "person", "actual": True, "member": [{"entity": reference("Patient/b")}]},
    {
        "resourceType": "Group",
        "id": "outer",
        "type": "person",
        "actual": True,
        "member": [
            {"entity": reference("Group/inner")},
            {"entity": reference("Group/outer2")},
            {"entity": reference("Patient/a")},
            {"entity": reference("Patient/c"), "inactive": True},
            {"entity": reference("Patient/c"), "period": {"end": "2026-02-01"}},
        ],
    },
    {
        "resourceType": "Group",
        "id": "outer2",
        "type": "person",
        "actual": True,
        "member": [{"entity": reference("Group/outer")}],
    },
]


@pytest.fixture
async def records(store, tmp_path, clock):
    file = tmp_path / "records.ndjson"
    file.write_text("\n".join(map(json.dumps, RECORDS)))
    report = await bulk.load(store, file)
    assert report.rejected == []
    clock.advance(timedelta(minutes=1))


async def change(http, type, id, **members):
    tree = (await http.get(f"/fhir/{type}/{id}")).json() | members
    answer = await http.put(f"/fhir/{type}/{id}", json=tree, headers={"Content-Type": "application/fhir+json"})
    assert answer.status_code == 200, answer.text


async def test_everything_is_exported_once_as_it_is_stored(http, records, start, work, fetched, clock):
    status = await start()
    waiting = await http.get(status)
    assert (waiting.status_code, waiting.headers["X-Progress"], waiting.headers["Retry-After"]) == (202, "0 resources", "1")
    await work()
    manifest, found = await fetched(status)
    assert manifest["transactionTime"] == "2026-03-02T15:01:00.000Z"
    assert (manifest["request"], manifest["requiresAccessToken"], manifest["error"]) == (f"{FHIR}/$export", True, [])
    assert "deleted" not in manifest
    exported = {(type, one["id"]) for (_, type), listed in found.items() for one in listed}
    assert exported >= {(one["resourceType"], one["id"]) for one in RECORDS}
    assert [type for type, _ in exported - {(one["resourceType"], one["id"]) for one in RECORDS}] == ["Task"]
    assert sum(map(len, found.values())) == len(exported)
    observation = next(one for one in found["output", "Observation"] if one["id"] == "o-a")
    assert observation == (await http.get("/fhir/Observation/o-a")).json()
    expires = (await http.get(status)).headers["Expires"]
    assert expires == "Tue, 03 Mar 2026 15:01:00 GMT"


@pytest.mark.parametrize("few", [200, 0])
async def test_patients_and_groups_come_with_what_belongs_to_them_and_what_that_refers_to(exported, records, monkeypatch, few):
    monkeypatch.setattr("fhircm.jobs.export.FEW", few)
    everyone = await exported("Patient/$export")
    assert sorted(everyone["Patient"]) == ["a", "b", "c"]
    assert everyone["Observation"] == ["o-a"]
    assert everyone["Provenance"] == ["p-a"], "of what belongs to a Patient, though it names none"
    assert sorted(everyone["Organization"]) == ["above", "clinic"]
    assert everyone["Practitioner"] == ["doctor"]
    group = await exported("Group/outer/$export")
    assert sorted(group["Patient"]) == ["a", "b"], "members, and those of the Group within; not who left"
    assert sorted(group["Condition"]) == ["c-a", "c-b"]
    assert sorted(group["Organization"]) == ["above", "clinic"]
    inner = await exported("Group/inner/$export")
    assert (inner["Patient"], inner["Condition"]) == (["b"], ["c-b"])
    assert not {"Observation", "Provenance", "Organization"} & inner.keys()
    named = [{"name": "patient", "valueReference": reference("Patient/a")}, {"name": "_type", "valueString": "Patient"}]
    named.append({"name": "_type", "valueString": "Condition"})
    assert await exported("Patient/$export", named) == {"Patient": ["a"], "Condition": ["c-a"]}
    assert await exported("Group/outer/$export", named) == {"Patient": ["a"], "Condition": ["c-a"]}


async def test_filters_narrow_a_type_and_several_are_alternatives(exported, records):
    some = await exported("$export?_type=Condition,Patient&_typeFilter=Condition%3Fclinical-status%3Dactive%26patient%3Da")
    assert some == {"Condition": ["c-a"], "Patient": ["a", "b", "c"]}
    either = "Condition%3Fclinical-status%3Dresolved,Condition%3F_id%3Dc-a,Condition%3Fpatient%3APatient._id%3Dc"
    assert (await exported(f"$export?_type=Condition&_typeFilter={either}"))["Condition"] == ["c-a", "c-b", "c-c"]
    below = "clinical-status:below=http://terminology.hl7.org/CodeSystem/condition-clinical|active"
    filters = [{"name": "_type", "valueString": "Condition"}, {"name": "_typeFilter", "valueString": f"Condition?{below}"}]
    assert (await exported("$export", filters))["Condition"] == ["c-a", "c-c"]
    again = [{"name": "_type", "valueString": "Condition"}]
    again += [{"name": "_typeFilter", "valueString": f"Condition?patient={id}"} for id in ("b", "c")]
    assert (await exported("$export", again))["Condition"] == ["c-b", "c-c"]


async def test_elements_are_chosen_and_the_rest_is_told_to_be_missing(start, work, fetched, records):
    status = await start("$export?_type=Patient,Condition&_elements=id,Condition.subject")
    await work()
    _, found = await fetched(status)
    (condition, *_), (patient, *_) = found["output", "Condition"], found["output", "Patient"]
    assert set(condition) == {"resourceType", "id", "meta", "subject", "clinicalStatus"}, "with what changes the meaning"
    assert set(patient) == {"resourceType", "id", "meta"}
    assert patient["meta"]["tag"][0]["code"] == "SUBSETTED"


async def test_what_changed_and_what_was_deleted_since(http, records, start, work, fetched, exported, clock):
    status = await start("Patient/$export")
    await work()
    before = (await fetched(status))[0]["transactionTime"]
    clock.advance(timedelta(minutes=1))
    await change(http, "Patient", "b", gender="female")
    for url in ("Condition/c-a", "Provenance/p-a", "Provenance/p-none", "Observation/o-none"):
        assert (await http.delete(f"/fhir/{url}")).status_code in (200, 204)
    for level, gone in (
        ("Patient/$export", ["Condition/c-a", "Provenance/p-a"]),
        ("Group/inner/$export", []),
        ("Group/outer/$export", ["Condition/c-a", "Provenance/p-a"]),
        ("$export", ["Condition/c-a", "Observation/o-none", "Provenance/p-a", "Provenance/p-none"]),
    ):
        status = await start(f"{level}?_since={before}&_type=Patient,Condition,Observation,Provenance")
        await work()
        _, found = await fetched(status)
        assert [one["id"] for one in found["output", "Patient"]] == ["b"]
        assert set(found) - {("deleted", "Bundle")} == {("output", "Patient")}
        urls = [entry["request"] for bundle in found.get(("deleted", "Bundle"), []) for entry in bundle["entry"]]
        told = sorted(request["url"] for request in urls if request["method"] == "DELETE")
        assert told == gone
        assert all(bundle["type"] == "transaction" for bundle in found.get(("deleted", "Bundle"), []))
    assert await exported(f"$export?_type=Patient&_until={before}") == {"Patient": ["a", "c"]}
    assert await exported("$export?_type=Patient&_since=9999-12-31T23:59:60-14:00") == {}
    assert len((await exported("$export?_type=Patient&_since=0001-01-01T00:00:00+14:00"))["Patient"]) == 3


async def test_the_files_show_the_moment_of_the_start_whatever_happens_meanwhile(http, records, start, work, fetched, clock):
    """Also for filters and compartments: who was in them then is in, as they were."""
    plain = await start("$export?_type=Condition,Patient,Observation")
    active = await start("$export?_type=Condition&_typeFilter=Condition%3Fclinical-status%3Dactive")
    of_patient = [{"name": "patient", "valueReference": reference("Patient/a")}, {"name": "_type", "valueString": "Condition"}]
    member = await start("Patient/$export", of_patient)
    clock.advance(timedelta(seconds=1))
    resolved = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "resolved"}]}
    await change(http, "Condition", "c-a", clinicalStatus=resolved, subject=reference("Patient/b"))
    await http.delete("/fhir/Condition/c-c")
    await http.delete("/fhir/Observation/o-none")
    later = {"resourceType": "Condition", "subject": reference("Patient/a"), "code": {"text": "x"}}
    await http.post("/fhir/Condition", json=later, headers={"Content-Type": "application/fhir+json"})
    await work()
    _, found = await fetched(plain)
    assert [one["id"] for one in found["output", "Condition"]] == ["c-a", "c-b", "c-c"]
    assert [one["id"] for one in found["output", "Observation"]] == ["o-a", "o-none"]
    assert found["output", "Condition"][0]["meta"]["versionId"] == "1"
    _, found = await fetched(active)
    assert [one["id"] for one in found["output", "Condition"]] == ["c-a", "c-c"]
    _, found = await fetched(member)
    assert [one["id"] for one in found["output", "Condition"]] == ["c-a"]


async def test_only_the_client_that_started_it_sees_it(http, anonymous, database_url, records, start, work):
    status = await start("$export?_type=Patient")
    await register(database_url, "other", "system/*.cruds")
    mine = http.headers["Authorization"]
    foreign = {"Authorization": f"Bearer {await signed_in(anonymous, 'other')}"}
    assert (await http.get(status, headers=foreign)).status_code == 404
    assert (await http.delete(status, headers=foreign)).status_code == 404
    await work()
    url = (await http.get(status)).json()["output"][0]["url"]
    for address in (status, url):
        assert (await http.get(address, headers=foreign)).status_code == 404
        assert (await http.get(address, headers={"Authorization": "Bearer nothing"})).status_code == 401
    assert (await http.delete(status, headers=foreign)).status_code == 404
    narrow = {"Authorization": f"Bearer {await signed_in(anonymous, scope='system/Condition.rs')}"}
    assert (await http.get(url, headers=narrow)).status_code == 403
    assert (await http.get(url, headers={"Authorization": mine})).status_code == 200
    for nowhere in (
        f"{FHIR}/$export-status/nothing",
        f"{FHIR}/$export-status/%00",
        f"{url[:-1]}%C2%B2",
        f"{url}{'0' * 5000}",
        f"{url[:-1]}7",
        f"{url[:-1]}x",
    ):
        answer = await http.get(nowhere)
        assert (answer.status_code, answer.json()["resourceType"]) == (404, "OperationOutcome")


async def test_scopes_say_which_types_are_exported(anonymous, database_url, records, work):
    await register(database_url, "some", "system/Patient.rs system/Condition.r system/Observation.s system/Group.rs")
    mine = {
        "Authorization": f"Bearer {await signed_in(anonymous, 'some', 'system/Patient.rs system/Condition.r system/Group.rs')}"
    }
    refused = await anonymous.get("/fhir/$export?_type=Patient,Condition", headers=mine)
    assert refused.status_code == 403
    assert "system/Condition.s" in refused.text
    status = (await anonymous.get("/fhir/$export", headers=mine)).headers["Content-Location"]
    await work()
    assert [file["type"] for file in (await anonymous.get(status, headers=mine)).json()["output"]] == ["Group", "Patient"]
    await register(database_url, "none", "system/Patient.r")
    none = {"Authorization": f"Bearer {await signed_in(anonymous, 'none', 'system/Patient.r')}"}
    assert (await anonymous.get("/fhir/$export", headers=none)).status_code == 403
    assert (await anonymous.get("/fhir/Group/outer/$export", headers=none)).status_code == 403


async def test_an_export_is_cancelled_or_removed_by_its_client(http, records, start, work, store):
    async def rows():
        async with store.database.reading() as connection:
            return [await connection.fetchval(f"SELECT COUNT(*) FROM {table}") for table in ("job_part", "job_target")]

    status = await start("Group/outer/$export")
    await work(slices=2, seconds=0.0)
    assert await rows() != [0, 0]
    assert (await http.delete(status)).status_code == 202
    assert (await http.get(status)).status_code == 404
    assert (await http.delete(status)).status_code == 404
    await work()
    assert await rows() == [0, 0]
    done = await start("$export?_type=Patient")
    await work()
    url = (await http.get(done)).json()["output"][0]["url"]
    assert (await http.delete(done)).status_code == 202
    for gone in (done, url):
        assert (await http.get(gone)).status_code == 404
    assert await rows() == [0, 0]
    cancelled = await start("$export?_type=Patient")
    id = cancelled.rpartition("/")[2]
    await change(http, "Task", id, status="cancelled")
    assert (await http.get(cancelled)).status_code == 404


async def test_files_are_removed_when_their_time_is_over(http, records, start, work, store, clock):
    status = await start("$export?_type=Patient")
    await work()
    clock.advance(timedelta(hours=23))
    assert await store.claim_timers({"export-files"}, limit=9, lease=LEASE) == []
    clock.advance(timedelta(hours=1))
    (timer,) = await store.claim_timers({"export-files"}, limit=9, lease=LEASE)
    await store.transact([*await expire(None, timer), FinishTimer(timer)], origin="hub")
    token = await Bearer(Credentials(store.database), Principals(store.database)).issue("app", "system/*.cruds")
    assert (await http.get(status, headers={"Authorization": f"Bearer {token}"})).status_code == 404
    async with store.database.reading() as connection:
        assert await connection.fetchval("SELECT COUNT(*) FROM job_part") == 0


async def test_a_client_with_many_exports_under_way_is_asked_to_wait(http, records, start, work, monkeypatch):
    monkeypatch.setattr("fhircm.jobs.export.UNDER_WAY", 2)
    for _ in range(2):
        await start("$export?_type=Patient")
    refused = await http.get("/fhir/$export?_type=Patient")
    assert (refused.status_code, refused.json()["issue"][0]["code"]) == (429, "throttled")
    assert int(refused.headers["Retry-After"]) > 0
    await work()
    await start("$export?_type=Patient")


async def test_a_batch_starts_an_export_and_cannot_hold_what_is_no_resource(http, records, work, fetched):
    async def asked(url):
        entry = {"request": {"method": "GET", "url": url.removeprefix(f"{FHIR}/")}}
        batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
        answer = await http.post("/fhir", json=batch, headers={"Content-Type": "application/fhir+json"})
        return answer.json()["entry"][0]["response"]

    started = await asked("$export?_type=Patient")
    assert started["status"].startswith("202")
    await work()
    manifest, _ = await fetched(started["location"])
    for url in (started["location"], manifest["output"][0]["url"]):
        assert (await asked(url))["status"].startswith("400")


async def test_one_that_failed_says_why(http, records, start, work, monkeypatch):
    status = await start("$export?_type=Patient")

    async def broken(*_):
        raise JobFailed("The disk is full")

    monkeypatch.setattr("fhircm.jobs.export._settled", broken)
    await work()
    answer = await http.get(status)
    assert answer.status_code == 500
    assert answer.json()["issue"][0]["diagnostics"] == "The disk is full"


REFUSED = [
    ("$export?_outputFormat=text/csv", 400, "ndjson"),
    ("$export?organizeOutputBy=Patient", 400, "organizeOutputBy"),
    ("$export?_type=Nothing", 400, "Nothing"),
    ("$export?_since=yesterday", 422, "_since"),
    ("$export?_since=2026-01-01&_since=2026-01-02", 422, "_since"),
    ("$export?_type=Patient&_elements=Patient.colour", 400, "colour"),
    ("$export?_type=Patient&_typeFilter=Condition%3Fcode%3Dx", 400, "_typeFilter"),
    ("$export?_type=Patient&_typeFilter=Patient%3Fcolour%3Dred", 400, "colour"),
    ("$export?_type=Patient&_typeFilter=Patient%3Fbirthdate%3Dsoon", 400, "birthdate"),
    ("$export?_type=Patient&_typeFilter=Patient%3F_sort%3Dname", 400, "_sort"),
    ("$export?includeAssociatedData=LatestProvenanceResources", 400, "includeAssociatedData"),
    ("$export?patient=Patient/a", 400, "patient"),
    ("Patient/$export?patient=Patient/a", 400, "POST"),
    ("Patient/$export?_type=StructureDefinition", 400, "system level"),
    ("Patient/$export?_type=Organization", 400, "_type"),
    ("Patient/a/$export", 404, "$export"),
    ("Group/$export", 404, "$export"),
    ("Observation/$export", 404, "$export"),
    ("Group/nothing/$export", 404, "Group/nothing"),
]


async def test_what_is_not_understood_is_refused(http):
    for path, status, words in REFUSED:
        answer = await http.get(f"/fhir/{path}", headers={"Prefer": "respond-async"})
        assert (path, answer.status_code, answer.json()["resourceType"]) == (path, status, "OperationOutcome")
        assert words in answer.text


async def test_a_lenient_client_is_told_what_was_passed_over(records, start, work, fetched):
    asked = "_type=Patient,Nothing&organizeOutputBy=Patient&includeAssociatedData=x&_typeFilter=Patient%3Fcolour%3Dred"
    status = await start(f"$export?{asked}", headers={"Prefer": "respond-async, handling=lenient"})
    await work()
    manifest, found = await fetched(status)
    assert len(found["output", "Patient"]) == 3
    told = " ".join(one["issue"][0]["diagnostics"] for one in found["error", "OperationOutcome"])
    for word in ("organizeOutputBy", "Nothing", "includeAssociatedData", "colour"):
        assert word in told
    assert manifest["request"].endswith(asked)


async def test_patients_who_are_not_there_are_refused(http, records):
    for level in ("Patient", "Group/inner"):
        for who in ("Patient/nobody", "Practitioner/doctor", "nonsense"):
            body = {"resourceType": "Parameters", "parameter": [{"name": "patient", "valueReference": reference(who)}]}
            answer = await http.post(f"/fhir/{level}/$export", json=body, headers={"Content-Type": "application/fhir+json"})
            assert answer.status_code in (400, 422), (level, who)


async def test_files_come_compressed_or_plain_and_in_parts_of_bounded_size(
    http, store, start, work, monkeypatch, tmp_path, clock
):
    """Ten thousand resources in small parts and files: each once, on one line, whatever the layout it came in."""
    monkeypatch.setattr(export_files, "PART", 20_000)
    monkeypatch.setattr(export_files, "FULL", 200_000)
    monkeypatch.setattr(export_files, "FILE", 500_000)
    monkeypatch.setattr("fhircm.store.export.BYTES", 100_000)
    file = tmp_path / "many.ndjson"
    file.write_text(
        "\n".join(json.dumps({"resourceType": "Basic", "id": f"b{n}", "code": {"text": "x" * 40}}) for n in range(10_000))
    )
    await bulk.load(store, file)
    laid_out = '{\n  "resourceType": "Basic",\r\n  "id": "laid-out",\n  "code": {"text": "a\\nb"},  "extension": [\n{"url": "http://x.example", "valueDecimal": 1.50}\n]}'
    await store.transact([Put(check(laid_out.encode()))], origin="test")
    status = await start("$export?_type=Basic")
    assert await work() > 5, "no slice writes it all"
    ids = []
    for file in (await http.get(status)).json()["output"]:
        async with http.stream("GET", file["url"], headers={"Accept-Encoding": "gzip"}) as answer:
            packed = b"".join([part async for part in answer.aiter_raw()])
            assert answer.headers["content-encoding"] == "gzip"
        plain = await http.get(file["url"], headers={"Accept-Encoding": "identity", "Accept": "application/fhir+ndjson"})
        assert "content-encoding" not in plain.headers
        assert gzip.decompress(packed) == plain.content == zlib.decompressobj(31).decompress(packed)
        lines = plain.content.splitlines()
        assert len(lines) == file["count"]
        ids += [json.loads(line)["id"] for line in lines]
        assert len(plain.content) < 500_000 + 1000
    assert sorted(ids) == sorted(["laid-out", *(f"b{n}" for n in range(10_000))])
    assert b'"valueDecimal":1.50' in plain.content
    async with store.database.reading() as connection:
        assert await connection.fetchval("SELECT MAX(length(body)) FROM job_part") < 20_000


async def test_metadata_names_the_three_exports(http):
    rest = (await http.get("/fhir/metadata")).json()["rest"][0]
    at = {
        one["type"]: [call["definition"].rpartition("/")[2] for call in one.get("operation", []) if call["name"] == "export"]
        for one in rest["resource"]
    }
    assert {type: urls for type, urls in at.items() if urls} == {"Patient": ["patient-export"], "Group": ["group-export"]}
    assert "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export" in [one["definition"] for one in rest["operation"]]
