"""The command line as an operator meets it: what it prints, where it says an error is, and its exit status."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from tests import commands

PATIENT = {"resourceType": "Patient", "id": "good", "name": [{"family": "Marker-Family"}]}


@pytest.fixture
def fhircm(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **settings):
        environment = {
            "FHIRCM_DATABASE_URL": database_url,
            "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
            "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
            **settings,
        }
        return commands.run(*arguments, **environment)

    return run


def test_a_load_reports_each_line_that_it_cannot_take_and_goes_on(fhircm, tmp_path):
    lines = [
        json.dumps(PATIENT),
        "{not json: Marker-Family",
        json.dumps({"resourceType": "Patient", "id": "p2", "colour": "Marker-Family"}),
        json.dumps({"resourceType": "Marker", "id": "p3"}),
        json.dumps(["Marker-Family"]),
        json.dumps({"resourceType": "Condition", "id": "c1", "subject": {"reference": "Patient/nowhere"}}),
        json.dumps({"resourceType": "Condition", "id": "c2", "subject": {"reference": "Patient/good"}}),
    ]
    file = tmp_path / "records.ndjson"
    file.write_text("\n".join(lines))
    done = fhircm("load", file)
    assert done.returncode == 1
    assert done.stdout.strip() == "7 lines: 2 resources loaded, 0 unchanged, 5 rejected"
    told = done.stderr.splitlines()
    assert [line.split()[1].rstrip(":") for line in told] == ["2", "3", "4", "5", "6"]
    assert "Patient.colour" in told[1] or "'colour'" in told[1]
    assert "Condition.subject" in told[4]
    assert "Marker-Family" not in done.stderr + done.stdout
    again = fhircm("load", file)
    assert again.stdout.strip() == "7 lines: 0 resources loaded, 2 unchanged, 5 rejected"


def test_a_file_that_is_cut_off_in_its_compression(fhircm, tmp_path):
    file = tmp_path / "records.ndjson.gz"
    file.write_bytes(gzip.compress(b"\n".join(json.dumps(PATIENT | {"id": f"p{n}"}).encode() for n in range(5000)))[:-4000])
    done = fhircm("load", file)
    assert done.returncode == 1
    lines, loaded, rejected = map(
        int, re.match(r"(\d+) lines: (\d+) resources loaded, 0 unchanged, (\d+) rejected", done.stdout).groups()
    )
    assert (lines, rejected) == (loaded + 1, 1)
    assert done.stderr.strip() == f"line {lines}: the file is damaged or cut off here; nothing behind it was read"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["timeline", "nobody"], 1, "Patient/nobody is not known"),
        (["plan", "nobody"], 1, "Patient/nobody is not known"),
        (["partner", "check", "elsewhere"], 1, "lakeside-hospital"),
        (["load", "nowhere.ndjson"], 2, "does not exist"),
        (["client", "add", "app", "--scope", "system/*.rs"], 2, "--jwks-url"),
        (["client", "add", "app", "--scope", "everything", "--jwks-url", "https://app.example/jwks"], 1, "system/Type.cruds"),
        (["replay", "push:lakeside-hospital", "nothing"], 1, "Nothing waits"),
        (["replay", "referral", "Task/a/_history/1"], 1, "Nothing waits"),
        (["replay", "nowhere", "nothing"], 1, "push:PARTNER"),
        (["reindex", "Nothing"], 1, "'Nothing' is not a resource type"),
        (["jobs", "--cancel", "nothing"], 1, "Task/nothing is no job"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_a_wrong_call_is_told_in_plain_words(fhircm, arguments, status, words):
    done = fhircm(*arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_partner_that_does_not_answer_is_told_with_what_to_do(fhircm):
    nobody = json.dumps({"lakeside-hospital": "http://127.0.0.1:9/R4"})
    done = fhircm("partner", "check", "lakeside-hospital", FHIRCM_PARTNER_BASE_URLS=nobody)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stdout
    assert "fix" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_database_that_does_not_answer_is_told(fhircm):
    done = fhircm("migrate", FHIRCM_DATABASE_URL="postgresql://nobody@127.0.0.1:9/none")
    assert done.returncode == 1
    assert "PostgreSQL cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def _ready(url):
    end = monotonic() + 30
    while monotonic() < end:
        try:
            if httpx.get(url).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        sleep(0.05)  # it is starting: another process may hold the database for its migration
    return False


def _children(pid):
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in listed if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_several_processes_answer_on_one_port_and_end_together(database_url, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_PORT": str(port),
        "FHIRCM_PROCESSES": "2",
        "FHIRCM_AUDIT_DIR": str(tmp_path / "audit"),
    }
    command = [sys.executable, "-m", "fhircm.cli", "serve"]
    with subprocess.Popen(command, env={**os.environ, **settings}, cwd=tmp_path, stderr=subprocess.DEVNULL) as hub:
        try:
            assert _ready(f"http://127.0.0.1:{port}/health/ready")
            workers = _children(hub.pid)
            assert len(workers) == 2
            assert httpx.get(f"http://127.0.0.1:{port}/fhir/metadata").json()["resourceType"] == "CapabilityStatement"
        finally:
            hub.terminate()
        hub.wait(30)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_help_names_every_command(fhircm):
    told = " ".join(fhircm("--help").stdout.split())
    for name in (
        "serve",
        "work",
        "migrate",
        "pull",
        "load",
        "timeline",
        "plan",
        "replay",
        "reindex",
        "jobs",
        "sandbox",
        "demo",
        "partner",
        "client",
        "grant",
        "keys",
    ):
        assert f" {name} " in told
    assert "Start with: fhircm demo" in told


def test_a_job_is_started_listed_and_cancelled(fhircm):
    started = fhircm("reindex", "Patient")
    id = re.search(r"Task/([0-9a-f-]{36})", started.stdout)[1]
    assert fhircm("jobs").stdout.split()[:4] == [id, "reindex", "ready", "0"]
    assert fhircm("jobs", "--cancel", id).stdout.split()[:3] == [id, "reindex", "cancelled"]
