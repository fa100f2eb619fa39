"""A reader of the change log misses nothing and sees nothing twice, whoever writes at the same time."""

import asyncio

import pytest

from fhircm.fhir.outcome import NotFound
from fhircm.store.changes import AFTER, CursorMoved
from fhircm.store.figures import Figures
from fhircm.store.operations import START
from fhircm.store.resources import MoveCursor, Position, Put
from tests.store.conftest import condition, patient


async def test_what_is_read_while_many_write_is_everything_once(store, other):
    seen, writing = [], True

    async def read():
        at = START
        while True:
            last = not writing
            batch = await store.changes(at, limit=7)
            seen.extend((one.id, one.version) for one in batch.changes)
            assert batch.upto >= at
            at = batch.upto
            if last and not batch.changes:
                return
            await asyncio.sleep(0)

    async def write(n):
        for version in range(5):
            ids = [f"p{n}", f"q{n}"] if version % 2 else [f"p{n}"]
            await (store, other)[n % 2].transact([Put(patient(id, f"V{version}")) for id in ids], origin="test")

    reader = asyncio.create_task(read())
    await asyncio.gather(*(write(n) for n in range(12)))
    writing = False
    await reader
    assert len(seen) == len(set(seen)) == 12 * 7
    for n in range(12):
        assert [version for id, version in seen if id == f"p{n}"] == [1, 2, 3, 4, 5]


async def test_a_transaction_in_flight_holds_back_what_was_written_after_it(store, other):
    """A number that was given out first may be committed last; a reader must not pass over it. SQLite has one writer at a time."""
    on_postgresql = store.database.dialect == "postgresql"
    transaction = "pg_current_xact_id()::text::bigint" if on_postgresql else "0"
    async with other.database.writing() as connection:
        await connection.execute(
            "INSERT INTO change (tx, type, id, version, method, origin, at)"
            f" VALUES ({transaction}, 'Patient', 'early', 1, 'create', 'test', 0)"
        )
        late = asyncio.create_task(store.transact([Put(patient("late"))], origin="test"))
        if on_postgresql:
            await late
        assert (await store.changes(START)).changes == []
    await late
    assert [one.id for one in (await store.changes(START)).changes] == ["early", "late"]


async def test_types_are_chosen_and_the_others_passed_over(store):
    await store.transact([Put(patient("p")), Put(condition("c", "p"))], origin="test")
    batch = await store.changes(START, types=frozenset({"Condition"}))
    assert [one.id for one in batch.changes] == ["c"]
    await store.transact([Put(patient("q"))], origin="test")
    rest = await store.changes(batch.upto, types=frozenset({"Condition"}))
    assert rest.changes == []
    assert rest.upto > batch.upto


async def test_of_two_who_move_a_cursor_one_is_told_and_nothing_of_it_is_done(store, other):
    await store.transact([MoveCursor("c", START, Position(0, 3))], origin="test")
    for before in (START, Position(0, 2)):
        with pytest.raises(CursorMoved):
            await other.transact([Put(patient("p")), MoveCursor("c", before, Position(0, 9))], origin="test")
    with pytest.raises(NotFound):
        await store.read("Patient", "p")
    await other.transact([MoveCursor("c", Position(0, 3), Position(0, 4))], origin="test")
    assert await store.cursor("c") == Position(0, 4)


async def test_who_waits_is_woken_by_a_write_of_another(store, other):
    waiting = asyncio.create_task(store.wait(30))
    for n in range(200):  # the first may come before it listens
        await asyncio.sleep(0.02)
        await other.transact([Put(patient("p", f"V{n}"))], origin="test")
        if waiting.done():
            break
    assert waiting.done()


async def test_who_asked_what_was_heard_before_they_looked_misses_no_change_however_many_wait(store, other):
    heard = await store.heard()
    await other.transact([Put(patient("p"))], origin="test")  # between the look and the wait
    async with asyncio.timeout(10):
        await asyncio.gather(store.wait(60, heard), store.wait(60, heard))
        await store.wait(60, heard)  # and who comes late, when the others have been woken
    assert await store.heard() != heard


async def test_who_waits_without_a_change_waits_until_the_time_is_over(store):
    heard = await store.heard()
    await store.wait(0.01, heard)
    assert await store.heard() == heard


async def test_who_reads_on_does_not_go_through_what_was_read(store):
    """Each change wakes every reader: none may cost more because the hub is old. SQLite counts the steps that it takes."""
    if store.database.dialect == "postgresql":
        sql = AFTER["postgresql"]
        async with store.database.reading() as connection:
            await connection.execute("SET LOCAL enable_seqscan = off")
            plan = await connection.fetch(f"EXPLAIN SELECT at FROM change WHERE {sql.format(1, 2)} ORDER BY tx, number LIMIT 9")
        told = "\n".join(row[0] for row in plan)
        assert "Index Cond: (ROW(tx, number) > ROW(" in told, told
        return

    async def steps():
        count, upto = 0, await Figures(store.database).head()
        await store.transact([MoveCursor("reader", await store.cursor("reader"), upto)], origin="test")

        def tick():
            nonlocal count
            count += 1

        async with store.database.reading() as connection:
            connection.raw.set_progress_handler(tick, 10)
        read = await store.changes(upto, types=frozenset({"Task"}))
        assert read.changes == []
        assert (await Figures(store.database).behind(["reader"]))["reader"].changes == 0
        return count

    async def write(rows):
        async with store.database.writing() as connection:
            row = ("Patient", "p", 1, "create", "test", 0)
            await connection.executemany(
                "INSERT INTO change (tx, type, id, version, method, origin, at) VALUES (0, $1, $2, $3, $4, $5, $6)", [row] * rows
            )

    await write(300)
    young = await steps()
    await write(30_000)
    assert await steps() < 2 * young
