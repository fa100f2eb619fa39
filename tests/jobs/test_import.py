"""An import takes what is good, in any order and once, tells each line that is not, and goes on where it stood."""

import asyncio
import gzip
import json
import random
import zlib
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.coordination.rules import RULES
from fhircm.exchange.source_address import Allowed
from fhircm.exchange.sources import Sources
from fhircm.fhir.references import references
from fhircm.jobs import JOBS, bulk_import, exported, import_progress
from fhircm.jobs.bulk_import import Input, start_import
from fhircm.jobs.import_progress import Imports, held_lines
from fhircm.jobs.job import JobFailed, Means, cancel, job_of, timer_key
from fhircm.jobs.running import run_jobs
from tests.exchange.files import File, served

LEASE = timedelta(seconds=15)


def resource(type, id, **more):
    return {"resourceType": type, "id": id, **more}


def patient(id="p1", **more):
    return resource("Patient", id, **more)


def condition(id, patient="p1", **more):
    return resource("Condition", id, subject={"reference": f"Patient/{patient}"}, **more)


def encounter(id, patient="p1", conditions=(), **more):
    diagnosis = {"diagnosis": [{"condition": {"reference": f"Condition/{one}"}} for one in conditions]} if conditions else {}
    subject = {"reference": f"Patient/{patient}"}
    return resource("Encounter", id, status="finished", subject=subject, **{"class": {"code": "AMB"}}, **diagnosis, **more)


def ndjson(*lines):
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"


class Importer:
    """Imports slice by slice, in this process or in one that takes over."""

    def __init__(self, store, clock, files):
        self.store, self.clock, self.files = store, clock, files
        self.slices = 0
        self.taken_over()

    def taken_over(self):
        """What was open and read ahead is not there, as in another process."""
        self.imports = Imports(Sources(Allowed((self.files.base,), private=True)), 20_000, True)

    async def start(self, files, source=None, etag=""):
        for name, body in files.items():
            self.files.files[name] = body if isinstance(body, File) else File(body)
        inputs = [Input(name.partition("-")[0], self.files.url(name), etag) for name in files]
        return await start_import(self.store, "app", inputs, source=source, request="http://hub.example/fhir/$import")

    async def slice(self):
        self.slices += 1
        return await run_jobs(Means(self.store, "http://hub.example/fhir", 1.0, imports=self.imports), JOBS, LEASE)

    async def run(self, id, before=None):
        """To the end, however long the job waits in between."""
        while timer := await self.store.timer(timer_key(id)):
            self.clock.advance(max(timedelta(), timer.due - self.clock()))
            if before:
                await before(job_of(timer))
            await self.slice()

    async def result(self, id):
        """What became of each file, by its name, and the errors by file and line."""
        known = await exported.status(self.store, "app", id)
        counts, told = {}, {}
        for one in known.inputs:
            name = one["url"].rpartition("/")[2]
            counts[name] = (one["imported"], one["unchanged"], one["rejected"])
            for number in one["errors"]:
                parts = [await self.store.job_part(id, number, part) for part in range(known.files[number]["parts"])]
                text = b"".join(zlib.decompressobj(-15).decompress(part) for part in parts).decode()
                for outcome in map(json.loads, text.splitlines()):
                    line, _, why = outcome["issue"][0]["diagnostics"].partition(": ")
                    told[name, int(line.split()[1])] = (line.partition(" (")[2].rstrip(")"), why)
        assert {name: count for name, (_, _, count) in counts.items() if count} == {
            name: sum(of == name for of, _ in told) for name in {of for of, _ in told}
        }
        return counts, told

    async def imported(self, files, **how):
        id = await self.start(files, **how)
        await self.run(id)
        assert await self.store.state_keys(held_lines(id), 1) == []
        return await self.result(id)


@pytest.fixture
async def importer(store, clock):
    store.rules = RULES
    async with served() as files:
        opened = Importer(store, clock, files)
        yield opened
        await opened.imports.sources.close()


@pytest.fixture
def small(monkeypatch):
    """Slices of few lines, so that few lines show what many do."""
    monkeypatch.setattr(import_progress, "BATCH", 3)
    monkeypatch.setattr(bulk_import, "PAGE", 2)


async def test_each_line_that_cannot_be_taken_is_told_and_the_rest_goes_on(importer, store):
    lines = [
        patient("p1"),
        b'{"resourceType":"Patient","id":"p2"',
        patient("p3", colour="red"),
        patient("p4", gender="Secret"),
        condition("c1"),
        b"",
        {"resourceType": "Patient"},
        b'{"resourceType":"Patient","id":"' + b"x" * 30_000 + b'"}',
        patient("p5", managingOrganization={"reference": "Organization/nowhere"}),
        patient("p6"),
        patient("p6", active=True),
        b"\xff\xfe",
        patient("p7"),
    ]
    counts, told = await importer.imported({"Patient": ndjson(*lines)})
    assert counts == {"Patient": (3, 0, 9)}
    assert {line: what for (_, line), (what, _) in told.items()} == {
        2: "", 3: "Patient/p3", 4: "Patient/p4", 5: "Condition/c1", 7: "", 8: "", 9: "Patient/p5", 10: "Patient/p6", 12: "",
    }  # fmt: skip
    why = {line: text for (_, line), (_, text) in told.items()}
    assert "colour" in why[3]
    assert "Patient.gender" in why[4]
    assert "holds a Condition" in why[5]
    assert "20000 bytes" in why[8]
    assert "managingOrganization" in why[9]
    assert "line 11" in why[10]
    assert not any(secret in str(told) for secret in ("Secret", "red", "xxxx"))
    assert (await store.read("Patient", "p6")).tree["active"] is True


async def test_what_is_stored_already_makes_no_new_version(importer, store):
    one = resource("Observation", "o1", status="final", code={"text": "x"}, valueQuantity={"value": 1.5})
    body = ndjson(one).replace(b"1.5", b"1.50")
    files = {"Observation": body, "Patient": ndjson(patient("p1"), patient("p2"))}
    assert (await importer.imported(files))[0] == {"Observation": (1, 0, 0), "Patient": (2, 0, 0)}
    assert (await importer.imported(files))[0] == {"Observation": (0, 1, 0), "Patient": (0, 2, 0)}
    spaced = body.replace(b":", b" : ")
    assert (await importer.imported(files | {"Observation": spaced}))[0]["Observation"] == (0, 1, 0)
    digits = body.replace(b"1.50", b"1.5")
    assert (await importer.imported(files | {"Observation": digits}))[0]["Observation"] == (1, 0, 0)
    assert b"1.5}" in (await store.read("Observation", "o1")).body
    assert (await store.read("Observation", "o1")).version == 2
    changes = [change for change in (await store.changes((0, 0))).changes if change.type != "Task"]
    assert [(change.id, change.origin) for change in changes].count(("o1", "load")) == 2


async def test_ids_are_chosen_by_others_only_where_the_operator_says_so(importer, store):
    await importer.imported({"Patient": ndjson(patient("p1"))})
    importer.imports.may_create = False
    counts, told = await importer.imported({"Patient": ndjson(patient("p1", active=True), patient("p2"))})
    assert counts == {"Patient": (1, 0, 1)}
    assert "FHIRCM_UPDATE_CREATE" in told["Patient", 2][1]


async def test_where_data_come_from_is_kept_unless_they_say_so_themselves(importer, store):
    files = {"Patient": ndjson(patient("p1", meta={"tag": [{"code": "a"}]}), patient("p2", meta={"source": "urn:own"}))}
    for counts in ((2, 0, 0), (0, 2, 0)):
        assert (await importer.imported(files, source="https://ehr.example/fhir"))[0] == {"Patient": counts}
    meta = (await store.read("Patient", "p1")).tree["meta"]
    assert (meta["source"], meta["tag"], meta["versionId"]) == ("https://ehr.example/fhir", [{"code": "a"}], "1")
    assert (await store.read("Patient", "p2")).tree["meta"]["source"] == "urn:own"


async def test_states_of_a_workflow_are_taken_as_they_are_and_impossible_ones_told(importer, store):
    def task(id, status, **more):
        return resource("Task", id, status=status, intent="order", **more)

    counts, _ = await importer.imported({"Task": ndjson(task("t1", "completed"), task("t2", "draft"))})
    assert counts == {"Task": (2, 0, 0)}
    counts, told = await importer.imported({"Task": ndjson(task("t1", "draft"), task("t2", "requested"))})
    assert counts == {"Task": (1, 0, 1)}
    assert told["Task", 1][0] == "Task/t1"


# --- references


async def test_order_does_not_matter(importer, store, small):
    people = [patient(f"p{n}") for n in range(4)]
    conditions = [condition(f"c{n}", f"p{n % 4}", encounter={"reference": f"Encounter/e{n // 2}"}) for n in range(12)]
    encounters = [encounter(f"e{n}", f"p{(2 * n) % 4}", [f"c{2 * n}", f"c{2 * n + 1}"]) for n in range(6)]
    random.Random(1).shuffle(conditions)
    files = {"Condition": ndjson(*conditions), "Encounter": ndjson(*encounters), "Patient": ndjson(*people)}
    counts, _ = await importer.imported(files)
    assert counts == {"Condition": (12, 0, 0), "Encounter": (6, 0, 0), "Patient": (4, 0, 0)}
    assert (await importer.imported(files))[0] == {"Condition": (0, 12, 0), "Encounter": (0, 6, 0), "Patient": (0, 4, 0)}


async def test_large_lines_that_are_held_are_read_a_few_at_a_time(importer, small, monkeypatch):
    monkeypatch.setattr(bulk_import, "GROUP_BYTES", 900)
    monkeypatch.setattr(bulk_import, "_ASKED", 2)
    conditions = [condition(f"c{n}", evidence=[{"detail": [{"reference": "Observation/o"}]}]) for n in range(12)]
    addresses = [{"reference": f"Condition/{one['id']}"} for one in conditions]
    plan = resource("CarePlan", "a", status="active", intent="plan", subject={"reference": "Patient/p1"}, addresses=addresses)
    observation = resource("Observation", "o", status="final", code={"text": "x"}, subject={"reference": "Patient/p1"})
    files = {
        "Condition": ndjson(*conditions),
        "Observation": ndjson(observation),
        "CarePlan": ndjson(plan),
        "Patient": ndjson(patient()),
    }
    counts, _ = await importer.imported(files)
    assert counts == {"Condition": (12, 0, 0), "Observation": (1, 0, 0), "CarePlan": (1, 0, 0), "Patient": (1, 0, 0)}


async def test_what_leads_nowhere_is_told_and_what_depends_on_it(importer, store, small):
    conditions = [
        condition("c1", encounter={"reference": "Encounter/e1"}),
        condition("c2", encounter={"reference": "Encounter/e2"}),
        condition("c3", "nobody"),
        condition("c4", evidence=[{"detail": [{"reference": "Condition/c3"}]}]),
        condition("c5", asserter={"reference": "Patient/p1/_history/7"}),
        condition("c6", asserter={"reference": "Patient/p1/_history/1"}),
    ]
    files = {
        "Condition": ndjson(*conditions),
        "Encounter": ndjson(encounter("e2", conditions=["c2"]), encounter("e3", "p2")),
        "Patient": ndjson(patient(), patient("p2", gender="blue")),
    }
    counts, told = await importer.imported(files)
    assert counts == {"Condition": (2, 0, 4), "Encounter": (1, 0, 1), "Patient": (1, 0, 1)}
    assert sorted(what for what, _ in told.values()) == [
        "Condition/c1", "Condition/c3", "Condition/c4", "Condition/c5", "Encounter/e3", "Patient/p2",
    ]  # fmt: skip
    assert "Condition.encounter" in told["Condition", 1][1]


async def test_a_line_that_is_held_gives_way_to_a_later_one_of_the_same_id(importer, store, small):
    lines = [
        condition("c1", "p9"),
        *(condition(f"x{n}") for n in range(4)),
        condition("c1", recordedDate="2026"),
        condition("c1", "p9"),
    ]
    counts, told = await importer.imported({"Condition": ndjson(*lines[:-1]), "Patient": ndjson(patient())})
    assert counts["Condition"] == (5, 0, 1)
    assert told["Condition", 1][0] == "Condition/c1"
    assert "line 6" in told["Condition", 1][1]
    assert (await store.read("Condition", "c1")).tree["recordedDate"] == "2026"


async def test_what_is_said_twice_is_no_error(importer, store, small):
    """As in the exports of several patients that share an Organization, one behind the other."""
    held = [condition("c1", "p9"), condition("c2")]
    files = {"Condition": ndjson(*held, *held, *held[::-1]), "Patient": ndjson(patient(), patient(), patient("p9"))}
    counts, _ = await importer.imported(files)
    assert counts == {"Condition": (2, 4, 0), "Patient": (2, 1, 0)}
    assert (await store.read("Condition", "c1")).version == 1


async def test_long_chains_and_large_circles_are_written_as_far_as_they_can_be(importer, store, small, monkeypatch):
    monkeypatch.setattr(bulk_import, "GROUP", 10)
    monkeypatch.setattr(bulk_import, "WALKS", 20)

    def one(name, n, then):
        return condition(f"{name}{n}", evidence=[{"detail": [{"reference": f"Condition/{name}{then}"}]}])

    chain = [one("chain", n, n + 1) for n in range(60)] + [condition("chain60")]
    circle = [one("circle", n, (n + 1) % 9) for n in range(9)]
    counts, _ = await importer.imported({"Condition": ndjson(*chain, *circle), "Patient": ndjson(patient())})
    assert counts["Condition"] == (70, 0, 0)
    large = [one("large", n, (n + 1) % 40) for n in range(40)]
    counts, _ = await importer.imported({"Condition": ndjson(*large, condition("last"))})
    assert counts["Condition"] == (1, 0, 40)


IDS = [("Patient", n) for n in range(3)] + [("Condition", n) for n in range(4)] + [("Encounter", n) for n in range(4)]


@st.composite
def records(draw):
    """Resources that refer to one another at random, some to nowhere, in random order in files of random types."""
    lines = []
    for type, n in IDS:
        if draw(st.integers(0, 5)) == 0:
            continue  # it stays away
        about = draw(st.integers(0, 2))
        others = draw(st.lists(st.integers(0, 3), max_size=2))
        match type:
            case "Patient":
                lines.append(
                    patient(
                        f"p{n}",
                        link=[{"type": "seealso", "other": {"reference": f"Patient/p{one}"}} for one in others if one < 3]
                        or None,
                    )
                )
            case "Condition":
                lines.append(
                    condition(f"c{n}", f"p{about}", encounter={"reference": f"Encounter/e{others[0]}"} if others else None)
                )
            case "Encounter":
                lines.append(encounter(f"e{n}", f"p{about}", [f"c{one}" for one in others]))
    lines = [{name: value for name, value in line.items() if value} for line in lines]
    return draw(st.permutations(lines))


@given(records())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_exactly_what_can_be_whole_is_written(importer, store, small, lines):
    """Each example has a name space of its own; what must come in is worked out by a simpler rule: take away what leads nowhere."""
    mark = f"n{importer.slices}-"
    text = json.dumps(lines)
    for letter in "pce":
        for n in range(4):
            text = text.replace(f'"{letter}{n}"', f'"{mark}{letter}{n}"').replace(f'/{letter}{n}"', f'/{mark}{letter}{n}"')
    whole = {f"{line['resourceType']}/{line['id']}": line for line in json.loads(text)}
    while gone := [name for name, line in whole.items() if any(one.url not in whole for one in references(line))]:
        for name in gone:
            del whole[name]
    files = {}
    for line in json.loads(text):
        files.setdefault(f"{line['resourceType']}-{mark}", []).append(line)
    counts, told = await importer.imported({name: ndjson(*listed) for name, listed in files.items()})
    assert sum(imported for imported, _, _ in counts.values()) == len(whole)
    assert {what for what, _ in told.values()} == {
        f"{line['resourceType']}/{line['id']}" for line in json.loads(text)
    } - whole.keys()
    assert set(await store.heads([tuple(name.split("/")) for name in whole])) == {tuple(name.split("/")) for name in whole}


# --- going on


FILES = {
    "Encounter": ndjson(*(encounter(f"e{n}", f"p{n % 5}", [f"c{n}"]) for n in range(20))),
    "Condition": ndjson(*(condition(f"c{n}", f"p{n % 7}", encounter={"reference": f"Encounter/e{n}"}) for n in range(20))),
    "Patient": gzip.compress(ndjson(*(patient(f"p{n}") for n in range(5)))),
}
COUNTS = {"Encounter": (15, 0, 5), "Condition": (15, 0, 5), "Patient": (5, 0, 0)}


async def test_another_process_goes_on_where_a_slice_ended(importer, store, small):
    id = await importer.start(FILES)

    async def taken_over(job):
        importer.taken_over()

    await importer.run(id, taken_over)
    counts, _ = await importer.result(id)
    assert counts == COUNTS
    assert (await store.read("Encounter", "e0")).version == 1


async def test_two_workers_at_one_import_take_each_line_once(importer, store, other, small):
    second = Importer(other, importer.clock, importer.files)
    other.rules = store.rules
    id = await importer.start(FILES)

    async def work(one):
        while await store.timer(timer_key(id)):
            await one.slice()
            await asyncio.sleep(0)  # nothing else here waits while the other has the claim

    await asyncio.gather(work(importer), work(second))
    await second.imports.sources.close()
    assert importer.slices > 3
    assert second.slices > 3
    assert (await importer.result(id))[0] == COUNTS
    changes = (await store.changes((0, 0), limit=1000)).changes
    assert sorted(change.version for change in changes if change.origin == "load" and change.type != "Task") == [1] * 35


async def test_a_slice_that_did_not_commit_counts_for_nothing(importer, store, small, monkeypatch):
    id = await importer.start(FILES)
    transact, calls = store.transact, 0

    async def dying(operations, *, origin):
        nonlocal calls
        calls += 1
        if origin == "load" and calls % 3 == 0:
            raise RuntimeError("killed")
        return await transact(operations, origin=origin)

    monkeypatch.setattr(store, "transact", dying)
    await importer.run(id)
    assert (await importer.result(id))[0] == COUNTS
    changes = [
        change
        for change in (await store.changes((0, 0), limit=1000)).changes
        if change.origin == "load" and change.type != "Task"
    ]
    assert len(changes) == len({(change.type, change.id) for change in changes}) == 35


async def test_one_line_that_only_the_database_refuses_does_not_hold_up_the_others(importer, store, small):
    """A date that the schema lets through, and that no index can hold."""
    wrong = resource("Observation", "o2", status="final", code={"text": "x"}, effectiveDateTime="0000-01-01T00:00:00Z")
    fine = [resource("Observation", f"o{n}", status="final", code={"text": "x"}) for n in (1, 3, 4, 5)]
    counts, told = await importer.imported({"Observation": ndjson(fine[0], wrong, *fine[1:])})
    assert counts == {"Observation": (4, 0, 1)}
    assert told["Observation", 2][0] == "Observation/o2"


async def test_a_source_that_breaks_off_is_waited_for(importer, clock):
    body = ndjson(*(patient(f"p{n}", language="x" * 300) for n in range(600)))
    begun = clock()
    counts, _ = await importer.imported({"Patient": File(body, cuts=[0, 70_000, 0, 0, 100_000])})
    assert counts == {"Patient": (600, 0, 0)}
    assert clock() - begun >= timedelta(seconds=1 + 1 + 2 + 4)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (File(status=404), "Input 2 cannot be read at line 1: The source answered 404"),
        (File(status=503), "Input 2 cannot be read at line 1: The source answered 503"),
        (File(status=302, location="https://elsewhere.example/x"), "not allow"),
    ],
)
async def test_a_source_that_will_not_answer_ends_it_with_the_reason(importer, store, file, told):
    id = await importer.start({"Patient": ndjson(patient()), "Condition": file})
    await importer.run(id)
    with pytest.raises(JobFailed, match=told):
        await exported.status(store, "app", id)
    task = (await store.read("Task", id)).tree
    assert task["status"] == "failed"
    assert await store.state_keys(held_lines(id), 1) == []


async def test_a_source_that_changes_in_between_ends_it_with_the_reason(importer, store, small):
    id = await importer.start({"Patient": ndjson(*(patient(f"p{n}") for n in range(9)))})
    await importer.slice()
    importer.taken_over()
    importer.files.files["Patient"].body += ndjson(patient("p10"))
    await importer.run(id)
    with pytest.raises(JobFailed, match="Input 1 cannot be read at line 4: The file is another one"):
        await exported.status(store, "app", id)
    id = await importer.start({"Patient": ndjson(patient("p1"))}, etag='"another"')
    await importer.run(id)
    with pytest.raises(JobFailed, match="another one"):
        await exported.status(store, "app", id)


async def test_one_that_is_cancelled_leaves_nothing_waiting(importer, store, small):
    id = await importer.start(FILES)
    for _ in range(5):
        await importer.slice()
    assert await store.state_keys(held_lines(id), 1)
    await cancel(store, JOBS, id)
    assert await store.state_keys(held_lines(id), 1) == []
    assert not await importer.slice()


async def test_a_damaged_file_is_told_where_it_ends(importer, store):
    packed = gzip.compress(ndjson(*(patient(f"p{n}", language="en") for n in range(2000))))
    counts, told = await importer.imported({"Patient": packed[: len(packed) // 2]})
    imported, _, rejected = counts["Patient"]
    assert (imported > 100, rejected) == (True, 1)
    assert "damaged or cut off" in told["Patient", imported + 1][1]


async def test_the_task_tells_numbers_and_no_signature(importer, store):
    id = await importer.start({"Patient": ndjson(patient("p1"), b"{")})
    await importer.run(id)
    task = (await store.read("Task", id)).tree
    assert task["output"] == [
        {"type": {"text": "Patient imported"}, "valueInteger": 1},
        {"type": {"text": "Patient rejected"}, "valueInteger": 1},
    ]
    signed = await start_import(store, "app", [Input("Patient", "https://files.example/p?sig=Geheim")], source=None, request="x")
    assert b"Geheim" not in (await store.read("Task", signed)).body


async def test_a_line_that_takes_an_illegal_step_or_closes_a_cycle_is_told_and_the_rest_goes_on(importer, store):
    def task(id, status="completed", **more):
        return resource("Task", id, status=status, intent="order", **more)

    part_of = {one: {"partOf": [{"reference": f"Task/{one}"}]} for one in "xy"}
    await importer.imported({"Task": ndjson(task("t"), task("u", "requested"), task("x"))})
    lines = [task("t", "in-progress"), task("u", "completed"), task("x", **part_of["y"]), task("y", **part_of["x"]), task("z")]
    _, told = await importer.imported({"Task": ndjson(*lines)})
    assert "Task.status may go from 'completed' to: nothing" in told["Task", 1][1]
    assert (await store.read("Task", "u")).tree["status"] == "completed", "of a snapshot steps may be missing"
    whys = [why for (_, line), (_, why) in told.items() if line in (3, 4)]
    assert whys and all("leads back to this Task" in why for why in whys), told
    assert (await store.read("Task", "z")).version == 1
