"""A guide is loaded by one process, and others that run already answer by it: real processes over one database."""

import asyncio
from time import monotonic

import httpx
import pytest
from typer.testing import CliRunner

from fhircm.cli import app
from fhircm.demo.processes import Processes, free_port
from fhircm.fhir.guides import InForce, put_in_force
from fhircm.fhir.outcome import FhirError, NotFound
from tests.packages import BASE as GUIDE_BASE
from tests.packages import GUIDE, package, patient
from tests.rest.signing import BASE, assertion, form, register

JSON = {"Content-Type": "application/fhir+json"}
PROFILE = f"{GUIDE_BASE}/StructureDefinition/patient"


@pytest.fixture
def settings(database_url, tmp_path):
    return {
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
        "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
        "FHIRCM_PUBLIC_BASE_URL": BASE,
        "FHIRCM_PARTNERS": "[]",
        "FHIRCM_PORT": str(free_port()),
    }


@pytest.fixture
def fhircm(settings, monkeypatch, tmp_path):
    """A command of the command line in this process, which is another one than the hub's."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        done = CliRunner().invoke(app, [str(one) for one in arguments])
        error = done.exception if isinstance(done.exception, FhirError) else None
        return done.exit_code, done.stdout, done.stderr, error

    yield run
    put_in_force(InForce())


@pytest.fixture
async def hub(database_url, settings, tmp_path):
    """A process that serves, and a client that signed in there."""
    await register(database_url, "app", "system/*.cruds")
    processes = Processes(tmp_path / "logs", settings)
    url = f"http://127.0.0.1:{settings['FHIRCM_PORT']}"
    processes.start("serve", "fhircm.cli", "serve")
    try:
        await processes.answering("serve", f"{url}/health/ready")
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            token = (await http.post("/oauth/token", data=form(assertion()))).json()["access_token"]
            http.headers.update({"Authorization": f"Bearer {token}", **JSON})
            yield http
    finally:
        for process in processes.running.values():
            process.kill()
            process.wait()


async def until(http, holds):
    """Ask again and again until an answer is as it will be a moment after a change."""
    end = monotonic() + 60
    while not holds(answer := await http.get("/fhir/Patient?race=2106-3")):
        assert monotonic() < end, answer.text
    return answer


async def test_a_guide_that_one_process_loads_is_in_force_in_the_others(hub, fhircm, tmp_path):
    http = hub
    file = tmp_path / "guide.tgz"
    file.write_bytes(package(*GUIDE, dependencies={"another.guide": "1.0.0"}).getvalue())
    await http.post("/fhir/Patient", json=patient("x"))
    claiming = {"resourceType": "Patient", "meta": {"profile": [PROFILE]}}
    assert (await http.post("/fhir/Patient", json=claiming)).status_code == 201
    assert "not a search parameter" in (await http.get("/fhir/Patient?race=2106-3")).text

    status, told, warned, _ = await asyncio.to_thread(fhircm, "ig", "load", file)
    assert status == 0
    assert told.startswith("example.guide#1.0.0: 4 definitions stored, 0 unchanged; 2 profiles and extensions, 1 new")
    assert "another.guide#1.0.0" in warned
    listed = (await asyncio.to_thread(fhircm, "ig", "list"))[1]
    assert "example.guide#1.0.0" in listed
    assert "being indexed: Patient.race" in listed
    await until(http, lambda answer: "being indexed" in answer.text)
    refused = await http.post("/fhir/Patient", json=claiming)
    assert refused.status_code == 422
    assert PROFILE in refused.text

    while (await http.get("/fhir/Patient?race=2106-3")).status_code == 400:
        await asyncio.to_thread(fhircm, "work", "--until-idle")
    found = await until(http, lambda answer: answer.status_code == 200)
    assert len(found.json()["entry"]) == 1
    types = (await http.get("/fhir/metadata")).json()["rest"][0]["resource"]
    mine = next(one for one in types if one["type"] == "Patient")
    assert PROFILE in mine["supportedProfile"]
    assert any(one["name"] == "race" and one["definition"].startswith(GUIDE_BASE) for one in mine["searchParam"])

    assert isinstance((await asyncio.to_thread(fhircm, "ig", "remove", "another"))[3], NotFound)
    _, told, _, _ = await asyncio.to_thread(fhircm, "ig", "remove", "example.guide")
    assert told.strip() == "example.guide#1.0.0: out of force, 4 definitions deleted"
    await until(http, lambda answer: "not a search parameter" in answer.text)
    assert (await http.post("/fhir/Patient", json=claiming)).status_code == 201


def test_a_package_that_is_wrong_is_refused_with_the_member(fhircm, tmp_path):
    file = tmp_path / "guide.tgz"
    file.write_bytes(package({**GUIDE[0], "colour": 1}).getvalue())
    status, told, _, error = fhircm("ig", "load", file)
    assert (status, told) == (1, "")
    assert str(error).startswith("package/SearchParameter-0.json: SearchParameter has no element 'colour'")
    assert fhircm("ig", "list")[1].strip() == "No implementation guide is loaded"
