"""SIGKILL in the middle of an import of a large file: the next worker goes on, each line counts once, and memory stays flat."""

import asyncio
import base64
import json
import os
import random
from pathlib import Path
from time import monotonic

import pytest

from fhircm.demo.processes import Processes
from fhircm.jobs import exported
from fhircm.jobs.bulk_import import Input, start_import
from fhircm.jobs.job import timer_key
from tests.exchange.files import File, served
from tests.faults.stubborn import PATIENCE

LINES = 1200
PHOTO = 30_000  # bytes, once they are text
MEMORY = 16 * 1024 * 1024  # less than the rest of the file that is read while it is measured, and nothing is made of it yet


@pytest.fixture
def worker(database_url, tmp_path):
    """Starts a worker that may import from this machine."""
    (tmp_path / "mappings").mkdir()
    environment = os.environ | {
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_LEASE": "PT0.5S",
        "FHIRCM_MAPPINGS_DIR": str(tmp_path / "mappings"),
        "FHIRCM_UPDATE_CREATE": "true",
        "FHIRCM_ALLOW_PRIVATE_JWKS": "true",
        "FHIRCM_IMPORT_SOURCES": '["http://127.0.0.1"]',
        "FHIRCM_LOG_LEVEL": "ERROR",
    }
    running = []

    def start(base):
        environment["FHIRCM_IMPORT_SOURCES"] = json.dumps([base])
        running.append(Processes.launch("fhircm.cli", "work", environment=environment, folder=tmp_path))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def large_file():
    """36 MB of Patients with photographs that do not compress."""
    photo = base64.b64encode(random.Random(1).randbytes(PHOTO * 3 // 4)).decode()
    lines = [
        json.dumps(
            {"resourceType": "Patient", "id": f"p{n}", "photo": [{"contentType": "image/png", "data": photo[n:] + photo[:n]}]}
        )
        for n in range(LINES)
    ]
    return "\n".join(lines).encode()


async def gone_on(store, id, done):
    """Wait until more than `done` lines are in."""
    end = monotonic() + PATIENCE
    while monotonic() < end:
        timer = await store.timer(timer_key(id))
        assert timer is not None, "it was done before anybody was killed"
        if timer.payload["done"] > done:
            return timer.payload["done"]
        await asyncio.sleep(0.005)
    raise AssertionError("no worker did anything")


def memory(process, name):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


async def test_each_line_counts_once_and_memory_stays_flat(store, worker):
    async with served() as files:
        files.files["photographed"] = File(large_file())
        id = await start_import(store, "app", [Input("Patient", files.url("photographed"))], source=None, request="x")
        process = worker(files.base)
        done = await gone_on(store, id, 0)
        process.kill()
        process.wait()
        process = worker(files.base)
        for _ in range(2):
            done = await gone_on(store, id, done)
        peaks = [memory(process, "VmHWM")]
        while await store.timer(timer_key(id)):
            peaks.append(memory(process, "VmHWM"))
            await asyncio.sleep(0.02)
        ranges = [wanted for _, wanted in files.asked]
    known = await exported.status(store, "app", id)
    assert [(one["imported"], one["unchanged"], one["rejected"]) for one in known.inputs] == [(LINES, 0, 0)]
    heads = await store.heads([("Patient", f"p{n}") for n in range(LINES)])
    assert [head.version for head in heads.values()] == [1] * LINES
    assert len(ranges) == 2
    assert ranges[1] is not None, "what was read is not read again"
    if store.database.dialect == "postgresql":  # SQLite keeps a cache of 64 MB, which a file of this size does not fill
        assert (LINES - done) * PHOTO > MEMORY
        assert peaks[-1] - peaks[0] < MEMORY
