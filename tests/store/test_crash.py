"""SIGKILL in the middle of writing: what was answered is there, and nothing is there by halves."""

import asyncio
import random
import sys

from fhircm.fhir.query import parse_query
from fhircm.store.operations import START

WRITER = """
import asyncio, json, sys
from datetime import UTC, datetime
from fhircm.fhir.validation import check
from fhircm.store.database import open_database
from fhircm.store.resources import Put, SetState, Store

async def main():
    store = Store(await open_database(sys.argv[1]), clock=lambda: datetime.now(UTC))
    for n in range(int(sys.argv[2]), 10**6):
        trees = [
            {"resourceType": "Patient", "id": f"p{n}", "name": [{"family": f"Family{n}"}]},
            {"resourceType": "Condition", "id": f"c{n}", "subject": {"reference": f"Patient/p{n}"}},
        ]
        operations = [Put(check(json.dumps(tree).encode())) for tree in trees]
        await store.transact([*operations, SetState("written", str(n), {"n": n})], origin="test")
        print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_answered_is_whole_and_the_rest_is_not_there(store, database_url):
    chance = random.Random(5)
    answered = -1
    for _ in range(4):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, database_url, str(1000 * (answered // 1000 + 1)), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(chance.randrange(5, 60)):
            answered = int(await process.stdout.readline())
        process.kill()
        rest = (await process.stdout.read()).split()
        answered = int(rest[-1]) if rest else answered
        await process.wait()

        written = {int(key) for key in await store.states("written")}
        assert answered in written
        patients = {int(one.id[1:]) for one in (await store.search(parse_query("Patient", [("_count", "1000")]))).matches}
        conditions = {int(one.id[1:]) for one in (await store.search(parse_query("Condition", [("_count", "1000")]))).matches}
        assert patients == conditions == written
        changes = (await store.changes(START, limit=10_000)).changes
        assert len(changes) == 2 * len(written)
        newest = max(written)
        found = await store.search(parse_query("Condition", [("patient.family", f"Family{newest}")]))
        assert [one.id for one in found.matches] == [f"c{newest}"]


def test_a_commit_waits_for_the_disk(connect_durably, tmp_path):
    connection = connect_durably(tmp_path / "fhircm.db")
    (level,) = connection.execute("PRAGMA synchronous").fetchone()
    connection.close()
    assert level == 2, "FULL: a commit survives the loss of power"
