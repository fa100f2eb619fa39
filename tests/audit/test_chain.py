"""The chain: what was tampered with is found, at the right place; and what was written once is there once, whoever was killed."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fhircm.access import audit_drain
from fhircm.access.audit import audit_event
from fhircm.access.audit_drain import Drain
from fhircm.access.audit_journal import Event, Journal, backlog
from fhircm.access.disclosures import bundle, disclosures
from fhircm.fhir import json
from fhircm.fhir.systems import SERVER
from fhircm.fhir.validation import check
from fhircm.store.audit import Broken, chain, head, length, link, strays, verified
from fhircm.store.database import DatabaseUnavailable, open_database
from fhircm.store.resources import Put, Store

BASE = "http://hub.example/fhir"
LIMIT = 10**9


def event(number, **more):
    about = {"code": "read", "status": 200, "client": "app", "target": f"Patient/p{number}", "touched": (f"Patient/p{number}/1",)}
    return Event(1_772_463_600_000_000 + number * 1_000_000, **(about | more))


def journal_of(folder, numbers):
    journal = Journal(folder, LIMIT)
    for number in numbers:
        journal.record(event(number))
    journal.close_segment()


async def broken(store, first=1):
    async for step in verified(store, first):
        if isinstance(step, Broken):
            return step.number, step.why
    return None


async def links(store):
    async with store.database.reading() as connection:
        rows = await connection.fetch("SELECT number, id, recorded, hash FROM audit_link ORDER BY number")
    return [tuple(row) if isinstance(row, tuple) else tuple(row.values() if hasattr(row, "values") else row) for row in rows]


async def told(store):
    """What the events in the chain are about, in its order."""
    async with store.database.reading() as connection:
        rows = await connection.fetch(
            "SELECT v.body FROM audit_link l JOIN resource r ON r.type = 'AuditEvent' AND r.id = l.id"
            " JOIN version v ON v.resource_key = r.key AND v.version = 1 ORDER BY l.number"
        )
    return [json.loads(bytes(row["body"]))["entity"][0]["what"]["reference"] for row in rows]


async def execute(store, sql, *arguments):
    async with store.database.writing() as connection:
        await connection.execute(sql, *arguments)


@pytest.fixture
async def chained(store, tmp_path):
    """A store with a chain of ten."""
    journal_of(tmp_path / "audit", range(1, 11))
    assert await Drain(store, tmp_path / "audit", BASE).drain() == 10
    return store


_OF = "(SELECT key FROM resource WHERE type = 'AuditEvent' AND id = (SELECT id FROM audit_link WHERE number = {}))"


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        ([], None),
        ([f"UPDATE version SET body = CAST('{{}}' AS {{blob}}) WHERE resource_key = {_OF.format(4)}"], (4, "it was changed, put in, or moved")),
        ([f"DELETE FROM version WHERE resource_key = {_OF.format(5)}"], (5, "its AuditEvent was removed")),
        ([f"DELETE FROM resource WHERE key = {_OF.format(6)}"], (6, "its AuditEvent was removed")),
        (["DELETE FROM audit_link WHERE number = 7"], (7, "it was removed")),
        (["DELETE FROM audit_link WHERE number = 1"], (1, "it was removed")),
        ([f"UPDATE resource SET version = 2 WHERE key = {_OF.format(3)}"], (3, "its AuditEvent was given another version")),
        ([f"UPDATE resource SET last_updated = 5 WHERE key = {_OF.format(3)}"], (3, "the time of its AuditEvent was changed")),
        (["UPDATE audit_link SET recorded = recorded + 1 WHERE number = 8"], (8, "it was changed, put in, or moved")),
        (["UPDATE audit_link SET number = -1 WHERE number = 2", "UPDATE audit_link SET number = 2 WHERE number = 3", "UPDATE audit_link SET number = 3 WHERE number = -1"], (2, "it was changed, put in, or moved")),
        (["UPDATE audit_link SET number = -number WHERE number > 4", "UPDATE audit_link SET number = 1 - number WHERE number < 0", "INSERT INTO audit_link (number, id, recorded, hash) SELECT 5, 'x', recorded, hash FROM audit_link WHERE number = 4"], (5, "its AuditEvent was removed")),
    ],
)  # fmt: skip
async def test_tampering_is_found_where_it_happened(chained, statements, found):
    blob = "bytea" if chained.database.dialect == "postgresql" else "blob"
    for statement in statements:
        await execute(chained, statement.replace("{blob}", blob))
    assert await broken(chained) == found


async def test_an_end_that_was_cut_off_is_known_by_a_head_that_was_kept(chained):
    kept = await head(chained)
    assert await link(chained, kept.number) == kept.hash
    await execute(chained, "DELETE FROM audit_link WHERE number > 8")
    assert await broken(chained) is None
    assert await link(chained, kept.number) is None


async def test_an_event_that_was_put_in_beside_the_chain_is_found(chained):
    assert await strays(chained, SERVER) == []
    await execute(chained, "DELETE FROM audit_link WHERE number = 10")
    assert len(await strays(chained, SERVER)) == 1


async def test_verifying_may_begin_at_a_day(chained, clock, tmp_path):
    clock.advance(timedelta(days=1))
    journal_of(tmp_path / "audit", range(11, 14))
    await Drain(chained, tmp_path / "audit", BASE).drain()
    assert await length(chained, clock() - timedelta(hours=1)) == (11, 13)
    await execute(chained, "UPDATE audit_link SET recorded = recorded + 1 WHERE number = 2")
    assert await broken(chained, 11) is None
    assert await broken(chained) == (2, "it was changed, put in, or moved")


async def test_a_segment_that_was_written_before_is_not_written_again(chained, tmp_path):
    journal_of(tmp_path / "again", range(1, 4))
    (segment,) = (tmp_path / "again").glob("*.closed")
    kept = segment.read_bytes()
    drain = Drain(chained, tmp_path / "again", BASE)
    assert await drain.drain() == 3
    segment.write_bytes(kept)  # as if the process had ended between the commit and the removal
    assert await drain.drain() == 0
    assert not segment.exists()
    assert (await head(chained)).number == 13


async def test_the_rows_of_an_event_are_those_that_its_resource_has(store):
    drain = Drain(store, None, BASE)
    full = Drain(store, None, BASE)
    full.store = type("", (), {"full_text": True})()
    shapes = [
        event(1),
        event(
            2, user="Practitioner/d", login="ann", organization="Organization/o", roles=("nurse",), purpose="TREAT", address="::1"
        ),
        event(3, code="search-type", target="Goal", query="patient=p&x=1", touched=(), request="Some-Id"),
        event(4, code="$everything", status=403, touched=()),
        event(5, code="create", touched=("Goal/g/1",), target="Goal"),
        event(6, code="delete", touched=("Goal/g/2",), target="Goal/g"),
        event(7, code="transaction", touched=("Goal/g/2", "Task/t/1"), target=None),
        event(8, code="!login", target="ann", touched=(), login="ann"),
        event(9, code="!revoke", target="a grant", touched=()),
        event(10, code="export-file", job="j", touched=(), target=None),
        event(11, code="read", status=404, client=None, touched=(), target="Goal/nowhere"),
    ]
    for one in shapes:
        for patients in ((), ("a",), ("a", "b-2")):
            tree = audit_event(one, patients, BASE)
            entry, slow = drain.entry(3, "id-1", one, patients), full.entry(3, "id-1", one, patients)
            assert json.loads(entry.body) == {**tree, "id": "id-1"}
            listed = {table: sorted(map(repr, rows)) for table, rows in entry.rows.by_table.items() if rows}
            whole = {t: sorted(map(repr, rows)) for t, rows in slow.rows.by_table.items() if rows and t != "search_text"}
            assert listed == whole, one


async def test_the_files_of_an_export_tell_of_all_its_patients_in_several_events_when_they_are_many(store, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_drain, "PATIENTS", 2)
    for id in "abcde":
        await execute(store, "INSERT INTO job_target (job, type, id) VALUES ('j', 'Patient', $1)", id)
    journal = Journal(tmp_path, LIMIT)
    journal.record(Event(1, "export-file", 200, client="app", query="type=Goal&file=0", job="j"))
    journal.record(Event(2_000_000, "export-file", 200, client="app", query="type=Goal&file=0", job="of-all"))
    journal.close_segment()
    await Drain(store, tmp_path, BASE).drain()
    assert (await head(store)).number == 4
    for id in "abcde":
        listed = await disclosures(store, id, None, None)
        assert [one.what for one in listed] == [
            "export-file Task/j, type=Goal&file=0",
            "export-file Task/of-all, type=Goal&file=0, of everybody",
        ]
    assert await broken(store) is None


async def test_a_disclosure_names_people_and_organisations(store, tmp_path):
    for tree in (
        {"resourceType": "Practitioner", "id": "d", "name": [{"prefix": ["Dr."], "given": ["Ann"], "family": "Ober"}]},
        {"resourceType": "Organization", "id": "o", "name": "Lakeside Hospital"},
    ):
        await store.transact([Put(check(json.dumps(tree)))], origin="test")
    journal = Journal(tmp_path, LIMIT)
    journal.record(
        event(1, user="Practitioner/d", login="ann", organization="Organization/o", purpose="TREAT", address="192.0.2.1")
    )
    journal.record(event(1, user="Practitioner/gone", client="app", status=403))
    journal.close_segment()
    await Drain(store, tmp_path, BASE).drain()
    (one,) = await disclosures(store, "p1", None, None)
    assert (one.who, one.app, one.organization, one.purpose) == ("Dr. Ann Ober", "app", "Lakeside Hospital", "TREAT")
    assert (one.what, one.address) == ("read Patient/p1", "192.0.2.1")


async def test_a_disclosure_tells_nobody_of_other_patients(store, tmp_path):
    journal = Journal(tmp_path, LIMIT)
    seen = ("Patient/p1/1", "Patient/p2/1")
    journal.record(event(1, code="search-type", target="Patient", query="_id=p1,p2&name=Other", touched=seen))
    journal.record(event(1, code="transaction", target=None, touched=(*seen, "Organization/o/1")))
    journal.close_segment()
    await Drain(store, tmp_path, BASE).drain()
    listed = await disclosures(store, "p1", None, None)
    assert [one.what for one in listed] == ["search-type Patient?_id&name", "transaction"]
    told_to_them = json.dumps(bundle(listed)).decode()
    assert "Patient/p1" in told_to_them and "p2" not in told_to_them and "Other" not in told_to_them


# --- the journal -----------------------------------------------------------------------------------------------------------------


def test_a_line_that_the_disk_lost_a_part_of_is_kept_aside(tmp_path):
    journal_of(tmp_path, range(3))
    (segment,) = tmp_path.glob("*.closed")
    segment.write_bytes(segment.read_bytes()[:-20])
    with audit_drain.next_segment(tmp_path) as found:
        assert [one.target for _, one in found.events] == ["Patient/p0", "Patient/p1"]
        found.done()
    assert len(backlog(tmp_path).broken) == 1


def test_a_segment_of_a_living_process_is_left_alone_and_read_once_it_is_dead(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from fhircm.access.audit_journal import Event, Journal\n"
        f"journal = Journal(Path({str(tmp_path)!r}), 10**9); journal.record(Event(1, 'read', 200)); print('x', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    audit_drain.adopt(tmp_path)
    assert len(list(tmp_path.glob("*.open"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    audit_drain.adopt(tmp_path)
    with audit_drain.next_segment(tmp_path) as found:
        assert len(found.events) == 1


def test_a_journal_keeps_no_file_open_but_the_one_it_writes(tmp_path):
    def held():
        return sum(one.resolve().is_relative_to(tmp_path) for one in Path("/proc/self/fd").iterdir())

    journal = Journal(tmp_path, LIMIT)
    for number in range(5000):
        journal.record(event(number, request="x" * 100))
    assert len(list(tmp_path.glob("*.closed"))) >= 3
    journal.sync()
    assert held() == 1
    journal.close_segment()
    journal.sync()
    assert held() == 0


def test_two_who_drain_never_read_the_same_segment_at_once(tmp_path):
    journal_of(tmp_path, range(2))
    journal_of(tmp_path, range(2))
    with (
        audit_drain.next_segment(tmp_path) as one,
        audit_drain.next_segment(tmp_path) as other,
        audit_drain.next_segment(tmp_path) as none,
    ):
        assert one.path != other.path
        assert none is None


async def test_an_event_that_cannot_be_written_does_not_hold_up_the_others(store, tmp_path, monkeypatch):
    journal_of(tmp_path, range(1, 6))
    whole = Drain.entry

    def entry(self, place, id, event, patients):
        if event.target == "Patient/p3":
            raise ValueError("a poison")
        return whole(self, place, id, event, patients)

    monkeypatch.setattr(Drain, "entry", entry)
    assert await Drain(store, tmp_path, BASE).drain() == 4
    (name,) = backlog(tmp_path).broken
    assert b"Patient/p3" in (tmp_path / name).read_bytes()
    assert (backlog(tmp_path).files, await broken(store)) == (0, None)


async def test_while_the_database_is_down_everything_waits(store, tmp_path, monkeypatch):
    journal_of(tmp_path / "audit", range(1, 301))
    calls = []

    async def sometimes(*arguments):
        calls.append(1)
        if len(calls) in (1, 3):
            raise DatabaseUnavailable("down")
        return await chain(*arguments)

    monkeypatch.setattr(audit_drain, "chain", sometimes)
    drain = Drain(store, tmp_path / "audit", BASE)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await drain.drain()
        assert backlog(tmp_path / "audit").files == 1
    await drain.drain()
    assert backlog(tmp_path / "audit").files == 0
    assert await told(store) == [f"Patient/p{number}" for number in range(1, 301)]
    assert await broken(store) is None


def test_the_drain_rests_beside_requests_and_the_less_the_more_waits(tmp_path):
    journal = Journal(tmp_path, 80_000)
    drain, rests = Drain(None, tmp_path, BASE), []
    for _ in range(4):
        rests.append(drain._rest(journal))
        for number in range(60):
            journal.record(event(number))
    assert rests[0] == audit_drain.REST
    assert rests == sorted(rests, reverse=True) and rests[-1] == 0


# --- processes -------------------------------------------------------------------------------------------------------------------

_DRAIN = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from fhircm.access.audit_drain import Drain
from fhircm.store.database import open_database
from fhircm.store.resources import Put, Store
import fhircm.access.audit_drain as module
module.BATCH = 20
async def main():
    store = Store(await open_database(sys.argv[1]), clock=lambda: datetime.now(UTC))
    print("ready", flush=True)
    await Drain(store, Path(sys.argv[2]), "http://hub.example/fhir").drain()
    await store.close()
asyncio.run(main())
"""


def draining(url, folder):
    process = subprocess.Popen([sys.executable, "-c", _DRAIN, url, str(folder)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def end(process):
    process.stdout.close()
    return process.wait(60)


@pytest.fixture
async def real(database_url):
    opened = Store(await open_database(database_url), clock=lambda: datetime.now(UTC))
    yield opened
    await opened.close()


async def test_two_processes_make_one_unbroken_chain(real, database_url, tmp_path):
    for at in range(6):
        journal_of(tmp_path, range(at * 100, at * 100 + 100))
    both = [draining(database_url, tmp_path) for _ in range(2)]
    assert [await asyncio.to_thread(end, one) for one in both] == [0, 0]
    assert await broken(real) is None
    assert sorted(await told(real)) == sorted(f"Patient/p{number}" for number in range(600))


async def test_a_drain_that_is_killed_neither_loses_nor_doubles(real, database_url, tmp_path):
    for at in range(4):
        journal_of(tmp_path, range(at * 500, at * 500 + 500))
    between = 0
    for _ in range(3):
        process = draining(database_url, tmp_path)
        while (await head(real)).number <= between and process.poll() is None:  # it is at work
            await asyncio.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        end(process)
        between = (await head(real)).number
    assert await asyncio.to_thread(end, draining(database_url, tmp_path)) == 0
    assert between < 2000
    assert await broken(real) is None
    assert sorted(await told(real)) == sorted(f"Patient/p{number}" for number in range(2000))
    assert backlog(tmp_path).files == 0
