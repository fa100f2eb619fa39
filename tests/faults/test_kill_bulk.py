"""SIGKILL while a partner's export runs there, and once its files are here: the next process goes on."""

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from time import monotonic

import httpx

from fhircm.demo.processes import Processes
from fhircm.exchange.bulk_export import kept
from fhircm.exchange.bulk_state import Phase
from fhircm.exchange.client_keys import public_jwks, signing_key
from fhircm.store.database import open_database
from fhircm.store.operations import START
from fhircm.store.resources import Store
from tests.faults.stubborn import PATIENCE

PARTNER, PORT = "lakeside-hospital", 19317


def start(command, **how):
    return subprocess.Popen(command, **how)


async def until(look, process):
    """Wait until something holds, or the process ends."""
    end = monotonic() + PATIENCE
    while monotonic() < end and process.poll() is None:
        if await look():
            return
        await asyncio.sleep(0.005)


async def test_a_process_that_is_killed_at_any_phase_of_an_export_is_preceded_by_one_that_goes_on(sqlite_url, tmp_path):
    signing_key(tmp_path / "keys", PARTNER, "RS384")
    (tmp_path / "jwks.json").write_text(json.dumps(public_jwks(tmp_path / "keys")))
    base = f"http://127.0.0.1:{PORT}/api/FHIR/R4"
    environment = os.environ | {
        "FHIRCM_DATABASE_URL": sqlite_url,
        "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
        "FHIRCM_SPOOL_DIR": str(tmp_path / "spool"),
        "FHIRCM_PARTNERS": json.dumps([PARTNER]),
        "FHIRCM_PARTNER_BASE_URLS": json.dumps({PARTNER: base}),
        "FHIRCM_LEASE": "PT1S",
    }
    ehr = [sys.executable, "-m", "fhircm.sandbox", "--vendor", "epic", "--port", str(PORT), "--humans", "40"]
    sandbox = start([*ehr, "--jwks-file", str(tmp_path / "jwks.json")], stdout=subprocess.PIPE, cwd=tmp_path)
    store = Store(await open_database(sqlite_url), clock=lambda: datetime.now(UTC))
    try:
        await asyncio.to_thread(sandbox.stdout.readline)
        async with httpx.AsyncClient(trust_env=False) as http:
            end = monotonic() + PATIENCE
            while monotonic() < end:
                try:
                    await http.get(f"{base}/metadata", headers={"Accept": "application/fhir+json"})
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        pull = [sys.executable, "-m", "fhircm.cli", "pull", PARTNER, "--bulk"]
        starts = set()
        for phase in (Phase.RUNNING, Phase.FETCHING):
            process = Processes.launch("fhircm.cli", "pull", PARTNER, "--bulk", environment=environment, folder=tmp_path)

            async def there(phase=phase):
                export = await kept(store, PARTNER)
                return export is not None and list(Phase).index(export.phase) >= list(Phase).index(phase)

            await until(there, process)
            starts.add((await kept(store, PARTNER)).id)
            process.kill()
            process.wait()
            await asyncio.sleep(1.1)  # its leases run out
        done = await asyncio.to_thread(subprocess.run, pull, env=environment, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(starts) == 1  # one and the same export
        changes = [
            one for one in (await store.changes(START, types=None, limit=100_000)).changes if one.origin == f"partner:{PARTNER}"
        ]
        copies = [(one.type, one.id) for one in changes if one.type != "Provenance"]
        assert len(copies) == len(set(copies)) > 300  # each once
        assert not any(tmp_path.glob("spool/*"))
    finally:
        sandbox.kill()
        sandbox.wait()
        sandbox.stdout.close()
        await store.close()
