"""A real `fhircm serve`, killed under load: every request that was answered has its event, once. And `fhircm audit` as an operator meets it."""

import asyncio
import csv
import json
import os
import secrets
import signal
import socket
import time
from collections import Counter

import asyncpg
import httpx
import pytest
from typer.testing import CliRunner

from fhircm.cli import app
from fhircm.demo.processes import Processes
from fhircm.store.credentials import Credentials, TokenRecord
from fhircm.store.database import open_database


@pytest.fixture
def environment(database_url, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **os.environ,
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
        "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
        "FHIRCM_PORT": str(port),
        "FHIRCM_PUBLIC_BASE_URL": f"http://127.0.0.1:{port}",
    }


@pytest.fixture
def fhircm(environment):
    """The command line in this process, for each start of another costs seconds."""

    async def run(*arguments):
        return await asyncio.to_thread(CliRunner().invoke, app, list(map(str, arguments)), env=environment)

    return run


@pytest.fixture
async def authorization(database_url):
    text, database = secrets.token_urlsafe(32), await open_database(database_url)
    await Credentials(database).add_client("app", {"scope": "system/*.cruds", "roles": ["custodian"]})
    await Credentials(database).save_token(text, TokenRecord("app", "system/*.cruds", int(time.time()) + 3600), int(time.time()))
    await database.close()
    return {"Authorization": f"Bearer {text}"}


class Serving:
    """`fhircm serve`, started, killed, and started again."""

    def __init__(self, environment, folder):
        self.environment, self.folder = environment, folder
        self.url = environment["FHIRCM_PUBLIC_BASE_URL"]

    async def start(self):
        with (self.folder / "serve.log").open("ab") as lines:
            self.process = Processes.launch("fhircm.cli", "serve", environment=self.environment, output=lines, folder=self.folder)
        async with httpx.AsyncClient() as http:
            for _ in range(600):
                try:
                    if (await http.get(f"{self.url}/health/ready")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError((self.folder / "serve.log").read_text())

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
async def serving(environment, tmp_path):
    found = Serving(environment, tmp_path)
    await found.start()
    yield found
    found.kill()


async def events(database_url):
    if database_url.startswith("sqlite"):
        database = await open_database(database_url)
        async with database.reading() as connection:
            rows = await connection.fetch(
                "SELECT v.body FROM resource r JOIN version v ON v.resource_key = r.key WHERE type = 'AuditEvent'"
            )
        await database.close()
    else:
        connection = await asyncpg.connect(database_url)
        rows = await connection.fetch(
            "SELECT v.body FROM resource r JOIN version v ON v.resource_key = r.key WHERE type = 'AuditEvent'"
        )
        await connection.close()
    return [json.loads(bytes(row["body"])) for row in rows]


def request_id(event):
    return next(
        (one["what"]["identifier"]["value"] for one in event.get("entity", []) if "identifier" in one.get("what", {})), None
    )


async def test_every_answered_request_has_its_event_once_when_the_hub_is_killed_under_load(
    serving, authorization, database_url, fhircm
):
    answered, numbers = [], iter(range(10**6))
    stop = asyncio.Event()
    ids = []

    async def client(http):
        while not stop.is_set():
            name = f"r{next(numbers)}"
            headers = authorization | {"X-Request-Id": name}
            try:
                if len(ids) < 20:
                    answer = await http.post("/fhir/Patient", json={"resourceType": "Patient"}, headers=headers)
                    ids.append(answer.json()["id"])
                else:
                    answer = await http.get(f"/fhir/Patient/{ids[int(name[1:]) % 20]}", headers=headers)
                assert answer.status_code in (200, 201)
                answered.append(name)
            except httpx.TransportError:
                await asyncio.sleep(0.02)

    async with httpx.AsyncClient(base_url=serving.url, timeout=10) as http:
        clients = [asyncio.create_task(client(http)) for _ in range(6)]
        for _ in range(3):
            before = len(answered)
            while len(answered) < before + 300:
                await asyncio.sleep(0.01)
                assert not any(one.done() for one in clients)
            serving.kill()
            await serving.start()
        stop.set()
        await asyncio.gather(*clients)
    serving.kill()
    done = await fhircm("audit", "verify")
    assert done.exit_code == 0, done.stderr
    recorded = Counter(filter(None, map(request_id, await events(database_url))))
    assert len(answered) >= 900
    assert set(answered) <= recorded.keys()
    assert set(recorded.values()) == {1}
    await serving.start()


async def test_the_commands_of_an_operator(serving, authorization, database_url, fhircm, tmp_path):
    async with httpx.AsyncClient(base_url=serving.url, headers=authorization) as http:
        made = (await http.post("/fhir/Patient", json={"resourceType": "Patient", "name": [{"family": "Ober"}]})).json()
        await http.get(f"/fhir/Patient/{made['id']}")
        await http.get("/fhir/Patient?family=Ober")
        await http.get("/fhir/Patient?family=Nobody")
        await http.get(f"/fhir/Goal?patient={made['id']}")
    serving.kill()
    whole = await fhircm("audit", "verify")
    assert (whole.exit_code, whole.stdout) == (0, "5 entries are whole, from 1 to 5\n"), whole.stderr
    assert "5 entries are in the chain\n0 files of 0 bytes wait" in (await fhircm("audit", "status")).stdout

    told = (await fhircm("audit", "disclosures", made["id"])).stdout.splitlines()
    assert told[0] == f"Patient/{made['id']}: 4 times something of the record was shown, written or asked for"
    assert [line.partition(": ")[2] for line in told[2:]] == [
        f"create Patient/{made['id']}  [127.0.0.1]",
        f"read Patient/{made['id']}  [127.0.0.1]",
        "search-type Patient?family=Ober  [127.0.0.1]",
        f"search-type Goal?patient={made['id']}  [127.0.0.1]",
    ]
    rows = list(csv.DictReader((await fhircm("audit", "disclosures", made["id"], "--format", "csv")).stdout.splitlines()))
    assert [(row["app"], row["what"].split()[0]) for row in rows] == [
        ("app", "create"),
        ("app", "read"),
        *[("app", "search-type")] * 2,
    ]
    bundle = json.loads((await fhircm("audit", "disclosures", made["id"], "--format", "fhir")).stdout)
    assert {one["resource"]["resourceType"] for one in bundle["entry"]} == {"AuditEvent"} and len(bundle["entry"]) == 4
    assert (await fhircm("audit", "disclosures", made["id"], "--until", "2020-01-01")).stdout.startswith(
        f"Patient/{made['id']}: 0 times"
    )
    assert (await fhircm("audit", "disclosures", "nobody")).exit_code == 1

    kept = (await fhircm("audit", "head")).stdout.strip()
    assert (await fhircm("audit", "verify", "--expect", kept)).exit_code == 0
    assert (await fhircm("audit", "verify", "--expect", kept[:-6] + "AAAAAA")).exit_code == 1
    database = await open_database(database_url)
    async with database.writing() as connection:
        await connection.execute(
            "DELETE FROM version WHERE resource_key = (SELECT key FROM resource WHERE type = 'AuditEvent' ORDER BY key DESC LIMIT 1)"
        )
        await connection.execute(
            "DELETE FROM resource WHERE key = (SELECT key FROM resource WHERE type = 'AuditEvent' ORDER BY key DESC LIMIT 1)"
        )
        await connection.execute("DELETE FROM audit_link WHERE number = (SELECT MAX(number) FROM audit_link)")
    await database.close()
    assert (await fhircm("audit", "verify")).exit_code == 0
    cut = await fhircm("audit", "verify", "--expect", kept)
    assert cut.exit_code == 1 and "The end was cut off: entry 10" in cut.stderr, "with what the commands left"
    database = await open_database(database_url)
    async with database.writing() as connection:
        await connection.execute("UPDATE audit_link SET hash = (SELECT hash FROM audit_link WHERE number = 1) WHERE number = 2")
    await database.close()
    changed = await fhircm("audit", "verify")
    assert changed.exit_code == 1 and changed.stderr.startswith("The chain breaks at entry 2 (AuditEvent/")
    await serving.start()
