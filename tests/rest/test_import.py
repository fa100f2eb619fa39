"""$import over HTTP: how it may be asked for, what is refused before anything is fetched, and who sees what became of it."""

import hashlib
import json
from datetime import timedelta

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.exchange.source_address import Allowed
from fhircm.exchange.sources import Sources
from fhircm.jobs import JOBS
from fhircm.jobs.import_progress import Imports
from fhircm.jobs.job import Means
from fhircm.jobs.running import run_jobs
from fhircm.rest.exchange import RestSettings
from tests.exchange.files import File, served

from .signing import BASE, register, signed_in

FHIR = f"{BASE}/fhir"
PATIENTS = b'{"resourceType":"Patient","id":"p1","active":true}\n{"resourceType":"Patient","id":"p2","gender":"Secret"}\n'
CONDITIONS = b'{"resourceType":"Condition","id":"c1","subject":{"reference":"Patient/p1"}}\n'


@pytest.fixture
async def files():
    async with served() as running:
        running.files |= {"patients": File(PATIENTS), "conditions": File(CONDITIONS)}
        yield running


@pytest.fixture
async def http(database_url, clock, tmp_path, files):
    for client, scope in (("app", "system/*.cruds"), ("other", "system/*.cruds"), ("reader", "system/*.rs")):
        await register(database_url, client, scope)
    await register(database_url, "people", "system/Patient.cu")
    rest = RestSettings(20_000, 2_000_000, True, 1, sources=Allowed((files.base,), private=True))
    app = create_app(AppConfig(database_url, BASE, tmp_path / "keys", rest, False, clock, []))
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
        http.headers["Authorization"] = f"Bearer {await signed_in(http)}"
        yield http


@pytest.fixture
def work(store, files):
    async def go(slices=100):
        sources = Sources(Allowed((files.base,), private=True))
        means = Means(store, FHIR, 1.0, imports=Imports(sources, 20_000, True))
        while slices and await run_jobs(means, JOBS, timedelta(seconds=15)):
            slices -= 1
        await sources.close()

    return go


@pytest.fixture
def ask(http):
    async def go(body, **headers):
        return await http.post("/fhir/$import", json=body, headers={"Prefer": "respond-async", **headers})

    return go


def file(type, url, **more):
    parts = [{"name": "type", "valueCode": type}, {"name": "url", "valueUri": url}]
    return {"name": "input", "part": [*parts, *({"name": name, "valueString": value} for name, value in more.items())]}


def parameters(*given):
    return {"resourceType": "Parameters", "parameter": list(given)}


def forms(files):
    """The proposal's plain JSON, and Parameters as servers that have the operation take them."""
    both = [("Condition", files.url("conditions")), ("Patient", files.url("patients"))]
    yield {
        "inputFormat": "application/fhir+ndjson",
        "inputSource": "https://other.example",
        "storageDetail": {"type": "https", "contentEncoding": ["gzip"]},
        "input": [{"type": type, "url": url} for type, url in both],
    }
    yield parameters(
        {"name": "inputFormat", "valueCode": "application/fhir+ndjson"},
        {"name": "inputSource", "valueUri": "https://other.example"},
        {"name": "storageDetail", "part": [{"name": "type", "valueCode": "https"}]},
        *(file(type, url) for type, url in both),
    )
    yield parameters(
        {"name": "inputFormat", "valueString": "application/fhir+ndjson"},
        {"name": "mode", "valueString": "IncrementalLoad"},
        {"name": "inputSource", "valueUri": "https://other.example"},
        {"name": "storageDetail", "part": [{"name": "type", "valueString": "azure-blob"}]},
        *(
            {"name": "input", "part": [{"name": "type", "valueString": type}, {"name": "url", "valueUri": url}]}
            for type, url in both
        ),
    )


@pytest.mark.parametrize("form", range(3))
async def test_from_the_request_to_the_manifest(http, ask, work, files, form):
    started = await ask(list(forms(files))[form])
    assert (started.status_code, started.content) == (202, b"")
    status = started.headers["content-location"]
    assert status.startswith(f"{FHIR}/$import-status/")
    waiting = await http.get(status)
    assert (waiting.status_code, waiting.headers["x-progress"], waiting.headers["retry-after"]) == (202, "0 resources", "1")
    await work()
    done = await http.get(status, headers={"Accept": "application/json"})
    assert (done.status_code, done.headers["content-type"]) == (200, "application/json")
    assert "expires" in done.headers
    manifest = done.json()
    assert manifest["request"] == f"{FHIR}/$import"
    assert manifest["requiresAccessToken"] is True
    assert manifest["output"] == [
        {
            "type": "Condition",
            "inputUrl": files.url("conditions"),
            "count": 1,
            "extension": {"imported": 1, "unchanged": 0, "rejected": 0},
        },
        {
            "type": "Patient",
            "inputUrl": files.url("patients"),
            "count": 1,
            "extension": {"imported": 1, "unchanged": 0, "rejected": 1},
        },
    ]
    (error,) = manifest["error"]
    assert (error["type"], error["inputUrl"], error["count"]) == ("OperationOutcome", files.url("patients"), 1)
    told = await http.get(error["url"])
    assert told.headers["content-type"] == "application/fhir+ndjson"
    (outcome,) = map(json.loads, told.text.splitlines())
    assert outcome["resourceType"] == "OperationOutcome"
    assert outcome["issue"][0]["diagnostics"].startswith("Line 2 (Patient/p2): Patient.gender must be one of")
    assert outcome["issue"][0]["expression"] == ["Patient.gender"]
    assert "Secret" not in told.text
    patient = (await http.get("/fhir/Patient/p1")).json()
    assert patient["meta"]["source"] == "https://other.example"
    assert (await http.get("/fhir/Condition?subject=Patient/p1")).json()["total"] == 1


async def test_only_the_client_that_started_it_sees_and_ends_it(http, ask, work, files):
    started = await ask(next(forms(files)))
    status = started.headers["content-location"]
    stranger = {"Authorization": f"Bearer {await signed_in(http, 'other')}"}
    for method in ("GET", "DELETE"):
        assert (await http.request(method, status, headers=stranger)).status_code == 404
    assert (await http.get(status, headers={"Authorization": ""})).status_code == 401
    await work()
    error = (await http.get(status)).json()["error"][0]["url"]
    assert (await http.get(error, headers=stranger)).status_code == 404
    assert (await http.delete(status)).status_code == 202
    for url in (status, error):
        assert (await http.get(url)).status_code == 404


async def test_one_that_is_cancelled_goes_no_further(http, ask, work, files):
    status = (await ask(next(forms(files)))).headers["content-location"]
    await work(slices=1)
    assert (await http.delete(status)).status_code == 202
    await work()
    assert (await http.get(status)).status_code == 404
    assert (await http.get("/fhir/Condition?_summary=count")).json()["total"] == 0
    assert (await http.get("/fhir/Task?code=import")).json()["entry"][0]["resource"]["status"] == "cancelled"


async def test_one_that_fails_says_why(http, ask, work, files):
    files.files["patients"] = File(status=410)
    status = (await ask(parameters(file("Patient", files.url("patients"))))).headers["content-location"]
    await work()
    failed = await http.get(status)
    assert failed.status_code == 500
    assert failed.json()["issue"][0]["diagnostics"] == "Input 1 cannot be read at line 1: The source answered 410"


async def test_a_file_may_be_asked_for_as_it_was(http, ask, work, files):
    for etag, status in (("another", 500), (hashlib.md5(PATIENTS).hexdigest(), 200)):
        given = file("Patient", files.url("patients"), etag=etag)
        started = await ask(parameters(given))
        await work()
        assert (await http.get(started.headers["content-location"])).status_code == status


REFUSED = {
    "no input": ({}, 422, "'input' is required"),
    "another format": ({"inputFormat": "text/csv", "input": [{"type": "Patient", "url": "URL"}]}, 400, "inputFormat"),
    "another store": ({"storageDetail": {"type": "ftp"}, "input": [{"type": "Patient", "url": "URL"}]}, 400, "storageDetail.type"),
    "another mode": ({"mode": "Replace", "input": [{"type": "Patient", "url": "URL"}]}, 400, "mode"),
    "no such type": ({"input": [{"type": "Patients", "url": "URL"}]}, 400, "input.type"),
    "no type": ({"input": [{"url": "URL"}]}, 422, "'type' is required"),
    "twice the same": ({"input": [{"type": "Patient", "url": "URL"}] * 2}, 422, "twice"),
    "no such parameter": ({"force": True, "input": [{"type": "Patient", "url": "URL"}]}, 400, "force"),
    "credentials": ({"storageDetail": {"type": "https", "credentialHttpBasic": "a:Secret"}, "input": [{"type": "Patient", "url": "URL"}]}, 400, "credentialHttpBasic"),
    "a flag for a URL": ({"input": [{"type": "Patient", "url": True}]}, 422, "valueUri"),
    "another address": ({"input": [{"type": "Patient", "url": "https://elsewhere.example/Secret"}]}, 403, "FHIRCM_IMPORT_SOURCES"),
    "no https": ({"input": [{"type": "Patient", "url": "http://elsewhere.example/Secret"}]}, 403, "https"),
    "a file of the server": ({"input": [{"type": "Patient", "url": "file:///etc/passwd"}]}, 403, "https"),
    "too many": ({"input": [{"type": "Patient", "url": f"URL{n}"} for n in range(1001)]}, 413, "larger"),
}  # fmt: skip


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_done_is_refused_at_once(http, ask, files, name):
    body, status, told = REFUSED[name]
    answer = await ask(json.loads(json.dumps(body).replace("URL", files.url("patients"))))
    assert (answer.status_code, answer.json()["resourceType"]) == (status, "OperationOutcome"), answer.text
    assert told in answer.text
    assert "Secret" not in answer.text
    assert files.asked == []


async def test_every_type_needs_the_right_to_create_and_to_update(http, ask, files):
    for client, scope, type, status in (
        ("people", "system/Patient.cu", "Patient", 202),
        ("people", "system/Patient.cu", "Condition", 403),
        ("reader", "system/*.rs", "Patient", 403),
        ("app", "system/Patient.c", "Patient", 403),
    ):
        token = {"Authorization": f"Bearer {await signed_in(http, client, scope)}"}
        answer = await ask({"input": [{"type": type, "url": files.url("patients")}]}, **token)
        assert answer.status_code == status, (client, type)


async def test_metadata_names_it_and_get_does_not_start_it(http):
    statement = (await http.get("/fhir/metadata")).json()
    listed = {one["name"] for one in statement["rest"][0]["operation"]}
    assert "import" in listed
    assert (await http.get("/fhir/$import?inputFormat=ndjson")).status_code == 405
