"""An export brings everything that changed, once, whatever the partner does and wherever the hub is ended in between."""

import asyncio
import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from fhircm.exchange import bulk_due
from fhircm.exchange.bulk_export import advance, cancel, kept
from fhircm.exchange.bulk_shape import Bulk, FilePlace
from fhircm.exchange.bulk_state import Phase
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.mapping import hub_id
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner, PullType
from fhircm.exchange.pull import pull
from fhircm.sandbox.bulk import Exports, routes
from fhircm.sandbox.chart import Chart, patient_of
from fhircm.store.database import open_database
from fhircm.store.operations import START
from fhircm.store.resources import Store

BASE = "https://ehr.example/fhir"
BY_PATIENT, SHARED = ("Condition", "Encounter"), ("Organization", "Practitioner")


def partner(bulk):
    pulled = [PullType(type, ((("patient", "{patient}"),),), False, False) for type in BY_PATIENT]
    pulled += [PullType(type, (), True, False) for type in SHARED]
    return Partner(
        name="north-clinic",
        folder=Path("north-clinic"),
        vendor="epic",
        base_url=BASE,
        client_id="fhircm",
        algorithm="ES384",
        scopes=("system/*.rs",),
        organization=Organization("north", "North Clinic", "1234567893"),
        time_zone="America/Chicago",
        calendar=Calendar("US", None, (), (5, 6)),
        group="panel",
        pull=tuple(pulled),
        limits=Limits(requests_per_second=100_000.0, attempts=1),
        bulk=bulk,
    )


def ref(target):
    return {"reference": target}


class Everybody:
    def allowed(self, authorization, letter, type):
        return True


class Ehr:
    """A sandbox in this process: its reads by plain dicts, its exports by the sandbox's own server. `faults` may answer in its place."""

    def __init__(self, patients=3, **rules):
        self.habits, self.base_url, self.sign_in = {"bulk": {"token": False, **rules}}, BASE, Everybody()
        resources = [
            {"resourceType": "Organization", "id": "north", "name": "North Clinic"},
            {"resourceType": "Practitioner", "id": "doc", "name": [{"family": "Doe"}]},
            {"resourceType": "Group", "id": "panel", "type": "person", "actual": True, "member": []},
        ]
        self.chart, self.faults, self.requests, self.now = Chart(resources), [], [], datetime.now(UTC)
        for number in range(patients):
            self.patient(f"p{number}")
        self.exports = Exports(self, lambda: self.now)
        self._asgi = httpx.ASGITransport(Starlette(routes=routes(self.exports, "/fhir")))

    def patient(self, id, joins=True):
        chart = self.chart
        self.write({"resourceType": "Patient", "generalPractitioner": [ref("Practitioner/doc")]}, id)
        self.write({"resourceType": "Condition", "code": {"text": "asthma"}, "subject": ref(f"Patient/{id}")}, f"{id}-c")
        for number in range(3):
            self.write(visit(id), f"{id}-e{number}")
        if joins:
            group = chart.get("Group", "panel")
            group["member"].append({"entity": ref(f"Patient/{id}")})

    def write(self, tree, id):
        stored = self.chart.write(tree, id)
        stored["meta"]["lastUpdated"] = getattr(self, "now", datetime.now(UTC)).isoformat()

    async def answer(self, request):
        self.requests.append(request)
        for fault in list(self.faults):
            answer = fault(request)
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer
        path = request.url.path.removeprefix("/fhir/").split("/")
        if "$export" in path or path[0].startswith("bulk-"):
            return await self._asgi.handle_async_request(request)
        found = self.chart.get(*path) if len(path) == 2 else None
        if len(path) == 1:
            found = {
                "resourceType": "Bundle",
                "entry": [{"resource": one} for one in self.chart.of_patient(path[0], request.url.params["patient"])],
            }
        return httpx.Response(200 if found else 404, json=found or {"resourceType": "OperationOutcome"})

    def client(self, bulk=None):
        async def at_once(_):
            await asyncio.sleep(0)

        return PartnerClient(partner(bulk or Bulk()), transport=httpx.MockTransport(self.answer), sleep=at_once)

    def asked(self, part):
        return [request for request in self.requests if part in request.url.path]


def visit(patient, **more):
    return {
        "resourceType": "Encounter",
        "status": "in-progress",
        "class": {"code": "AMB"},
        "subject": ref(f"Patient/{patient}"),
        **more,
    }


@pytest.fixture
def clock(clock):
    clock.now = datetime.now(UTC)
    return clock


class Hub:
    def __init__(self, store, clock, spool):
        self.store, self.clock, self.spool = store, clock, spool

    async def once(self, client):
        return await advance(self.store, client, client.partner.bulk, self.spool)

    async def one_export(self, client):
        """Ask for an export and see it through, and no further one."""
        await bulk_due_request(self.store)
        while True:
            step = await self.once(client)
            if step.finished:
                return step.finished
            self.clock.now = max(self.clock.now, step.due or self.clock.now)

    async def until_done(self, ehr, bulk=None, ask=True, longest=timedelta(hours=2)):
        """Go on, and let time pass to whenever the next thing is due, until nothing is under way."""
        async with ehr.client(bulk) as client:
            if ask:
                await self.store.transact([bulk_due.request(self.store, "north-clinic")], origin="hub")
            ended, end = [], self.clock.now + longest
            while self.clock.now < end:
                step = await self.once(client)
                if step.finished:
                    ended.append(step.finished)
                elif step.export is None and not step.did:
                    return ended
                elif not step.did and step.due:
                    self.clock.now = max(step.due, self.clock.now)
            raise AssertionError(f"not done: {await kept(self.store, 'north-clinic')}")


@pytest.fixture
def hub(store, clock, tmp_path):
    return Hub(store, clock, tmp_path / "spool")


async def copies(store):
    changes = (await store.changes(START, types=None, limit=100_000)).changes
    stored = await store.read_many({(change.type, change.id) for change in changes})
    return {key: one.tree for key, one in stored.items() if key[0] != "Provenance"}, len(changes)


async def assert_mirrors(store, ehr, without=()):
    trees, _ = await copies(store)
    expected = {
        (one["resourceType"], hub_id(BASE, f"{one['resourceType']}/{one['id']}"))
        for type in (*BY_PATIENT, *SHARED, "Patient")
        for one in ehr.chart.of_type(type)
        if one["id"] not in without
    }
    assert trees.keys() == expected
    for tree in trees.values():  # each in its own patient's record
        if tree["resourceType"] in BY_PATIENT:
            there = tree["meta"]["source"].removeprefix(f"{BASE}/").split("/")
            assert tree["subject"]["reference"] == f"Patient/{hub_id(BASE, 'Patient/' + patient_of(ehr.chart.get(*there)))}"


async def since_of(store, type="Encounter"):
    return (await bulk_due.standings(store, "north-clinic"))[type].since


@pytest.mark.parametrize(
    ("rules", "bulk"),
    [
        ({}, Bulk()),
        ({"methods": ["POST"], "lists": "repeated"}, Bulk(method="post", lists="repeated")),
        ({"lists": "repeated"}, Bulk(lists="repeated")),
        ({"levels": ["patient"], "pages": 3}, Bulk(level="patient")),
        ({"levels": ["system"], "ranges": False}, Bulk(level="system", output_format=None)),
    ],
)
async def test_every_dialect_brings_the_whole_panel_each_patient_in_his_own_record(hub, store, rules, bulk):
    ehr = Ehr(**rules)
    ehr.patient("stranger", joins=False)
    (figures,) = await hub.until_done(ehr, bulk)
    await assert_mirrors(store, ehr, without=("stranger", "stranger-c", "stranger-e0", "stranger-e1", "stranger-e2"))
    assert (figures["patients"], figures["resources"], figures["written"], figures["failed"]) == (3, 17, 17, {})
    assert not ehr.exports.running  # it was removed at the partner
    assert not list(hub.spool.rglob("*.ndjson"))  # and here


async def test_a_dialect_that_the_partner_does_not_speak_is_told_and_nothing_moves_on(hub, store):
    ehr = Ehr(lists="repeated")
    async with ehr.client() as client:
        await bulk_due_request(store)
        step = await hub.once(client)
    assert "in the other form" in step.finished["failed"]["Encounter"]
    assert await since_of(store) is None


async def bulk_due_request(store):
    await store.transact([bulk_due.request(store, "north-clinic")], origin="hub")


async def test_the_next_export_asks_for_what_changed_and_loses_nothing_written_meanwhile(hub, store, clock):
    ehr = Ehr()
    await hub.until_done(ehr)
    before = (await copies(store))[1]
    ehr.now = clock.now = clock.now + timedelta(hours=1)
    async with ehr.client(Bulk(overlap=timedelta())) as client:
        await bulk_due_request(store)
        while not ehr.exports.running:
            await hub.once(client)
        ehr.now += timedelta(seconds=1)  # written while the export runs: not in its files
        ehr.write(visit("p1", status="finished"), "p1-e1")
    (figures,) = await hub.until_done(ehr, Bulk(overlap=timedelta()), ask=False)
    assert figures["since"] is not None and figures["written"] == 0
    assert (await copies(store))[1] == before
    clock.advance(timedelta(hours=1))
    (figures,) = await hub.until_done(ehr, Bulk(overlap=timedelta()))
    assert (figures["resources"], figures["written"]) == (1, 1)
    tree = (await copies(store))[0]["Encounter", hub_id(BASE, "Encounter/p1-e1")]
    assert tree["status"] == "finished"
    assert "_since=" in str(ehr.exports.seen[-1])


async def test_where_since_is_not_honoured_it_is_not_sent_and_what_did_not_change_is_not_written(hub, store, clock):
    ehr, bulk = Ehr(since=False), Bulk(since=False)
    await hub.until_done(ehr, bulk)
    before = (await copies(store))[1]
    ehr.chart.delete("Encounter", "p2-e0")
    clock.advance(timedelta(hours=1))
    (figures,) = await hub.until_done(ehr, bulk)
    assert (figures["written"], figures["unchanged"], figures["gone"]) == (0, 16, 1)
    assert (await copies(store))[1] == before + 1, "the copy of what is gone says so"
    assert all("_since" not in url for _, url in ehr.exports.seen)
    row = await store.state("mirror:north-clinic", "Patient/p2")
    assert row["of"]["Encounter/p2-e0"] == "gone"


async def test_type_filters_make_up_for_since(hub, store, clock):
    ehr, bulk = Ehr(), Bulk(since=False, type_filters={"Encounter": ("date=ge{since}",)}, lists="repeated", overlap=timedelta())
    ehr.exports.rules["lists"] = "both"
    await hub.until_done(ehr, bulk)
    assert "_typeFilter" not in ehr.exports.seen[0][1]
    moment = await since_of(store)
    clock.advance(timedelta(hours=1))
    await hub.until_done(ehr, bulk)
    asked = [httpx.URL(url).params.get_list("_typeFilter") for _, url in ehr.exports.seen[1:]]
    assert [f"Encounter?date=ge{moment[:19]}Z"] in asked and [] in asked


async def test_deleted_resources_are_marked_as_gone(hub, store, clock):
    ehr = Ehr()
    await hub.until_done(ehr)
    clock.advance(timedelta(hours=1))
    ehr.now = clock.now
    ehr.chart.delete("Encounter", "p0-e1")
    ehr.chart.deleted = [(type, id, clock.now) for type, id, _ in ehr.chart.deleted]
    (figures,) = await hub.until_done(ehr)
    assert figures["gone"] == 1
    assert (await store.state("mirror:north-clinic", "Patient/p0"))["of"]["Encounter/p0-e1"] == "gone"
    assert not ehr.asked("/Encounter/p0-e1")


@pytest.mark.parametrize("way", ["full", "patient"])
async def test_who_joins_the_panel_comes_with_all_that_is_older(hub, store, clock, way):
    bulk = Bulk(new_members=way, method="post" if way == "patient" else "get")
    ehr = Ehr(methods=["GET", "POST"])
    ehr.patient("late", joins=False)
    await hub.until_done(ehr, bulk)
    clock.advance(timedelta(days=30))
    ehr.now = clock.now
    ehr.chart.get("Group", "panel")["member"].append({"entity": ref("Patient/late")})
    ended = await hub.until_done(ehr, bulk)
    await assert_mirrors(store, ehr)
    assert len(ended) == (2 if way == "patient" else 1)
    assert [one["since"] is None for one in ended] == ([True, False] if way == "patient" else [True])


async def test_six_hours_of_retry_after_are_waited_for_by_nobody(hub, store, clock):
    ehr = Ehr(retry_after=6 * 3600, polls=2)
    bulk = Bulk(poll_most=12 * 3600.0)
    async with ehr.client(bulk) as client:
        await bulk_due_request(store)
        begun = clock.now
        while (await hub.once(client)).did:
            pass
        step = await hub.once(client)
        assert (step.did, step.due, step.export.phase) == (False, begun + timedelta(hours=6), Phase.RUNNING)
        asked = len(ehr.requests)
        clock.advance(timedelta(hours=5, minutes=59))
        assert not (await hub.once(client)).did and len(ehr.requests) == asked
        clock.advance(timedelta(minutes=1))
        await hub.once(client)
        assert len(ehr.requests) == asked + 1
        step = await hub.once(client)
        assert step.export.progress == "in progress"
    capped = Bulk(poll_most=600.0)
    (figures,) = await hub.until_done(ehr, capped, ask=False, longest=timedelta(hours=7))
    assert figures["written"] == 17


async def test_one_at_a_time_waits_until_the_other_export_is_over(hub, store):
    ehr = Ehr(one_at_a_time=True)
    ehr.exports.running["other"] = None
    async with ehr.client() as client:
        await bulk_due_request(store)
        await hub.once(client)
        await hub.once(client)
    assert "one export at a time" in (await kept(store, "north-clinic")).progress
    del ehr.exports.running["other"]
    (figures,) = await hub.until_done(ehr, ask=False)
    assert figures["failed"] == {}


def when(part, *answers):
    """A fault that answers the first requests whose path has a part."""
    left = list(answers)
    return lambda request: left.pop(0) if left and part in request.url.path else None


async def test_errors_of_the_partner_are_outlived(hub, store):
    ehr = Ehr(polls=2)
    unavailable = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "transient"}]}
    ehr.faults = [
        when("$export", httpx.ConnectError("down"), httpx.Response(503)),
        when(
            "bulk-status",
            httpx.Response(429, headers={"Retry-After": "40"}),
            httpx.Response(500, json=unavailable),
            httpx.ReadTimeout(""),
        ),
        when("bulk-file", httpx.Response(503), httpx.ReadError("")),
    ]
    (figures,) = await hub.until_done(ehr)
    await assert_mirrors(store, ehr)
    assert figures["failed"] == {} and "answer to a kick-off was lost" in " ".join(figures["told"])


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404),
        httpx.Response(500, json={"resourceType": "OperationOutcome", "issue": [{"severity": "fatal", "code": "exception"}]}),
    ],
)
async def test_an_export_that_the_partner_loses_is_started_anew(hub, store, answer):
    ehr = Ehr()
    ehr.faults = [when("bulk-status", answer)]
    (figures,) = await hub.until_done(ehr)
    assert ehr.exports.begun == 2 and figures["failed"] == {}
    await assert_mirrors(store, ehr)


async def test_one_that_is_lost_again_and_again_is_given_up_and_a_human_is_told_in_the_end(hub, store, clock):
    ehr = Ehr()
    ehr.faults = [lambda request: httpx.Response(404) if "bulk-status" in request.url.path and request.method == "GET" else None]
    for _ in range(3):
        ended = await hub.until_done(ehr)
        clock.advance(timedelta(days=1))
    assert all("knows nothing" in one["failed"]["Encounter"] for one in ended)
    trees, _ = await copies(store)
    (task,) = [tree for (type, _), tree in trees.items() if type == "Task"]
    assert task["status"] == "ready" and "Encounter" in task["reasonCode"]["text"]
    ehr.faults.clear()
    clock.advance(timedelta(days=2))
    await hub.until_done(ehr)
    trees, _ = await copies(store)
    assert [tree["status"] for (type, _), tree in trees.items() if type == "Task"] == ["cancelled"]


async def test_a_type_that_did_not_come_keeps_its_since_and_is_asked_for_by_itself(hub, store, clock):
    ehr = Ehr()
    await hub.until_done(ehr)
    first = await since_of(store)
    clock.advance(timedelta(hours=1))
    ehr.now = clock.now
    ehr.write(visit("p0", status="finished"), "p0-e0")
    ehr.write({"resourceType": "Condition", "code": {"text": "flu"}, "subject": ref("Patient/p0")}, "p0-c")
    ehr.faults = [lambda request: httpx.Response(410) if request.url.path.endswith("Encounter.ndjson") else None]
    async with ehr.client() as client:
        figures = await hub.one_export(client)
    assert list(figures["failed"]) == ["Encounter"] and figures["written"] == 1
    assert await since_of(store) == first and await since_of(store, "Condition") > first
    ehr.faults.clear()
    clock.advance(timedelta(minutes=11))
    (figures,) = await hub.until_done(ehr, ask=False)
    assert (figures["types"], figures["written"]) == (["Encounter"], 1)
    assert await since_of(store) > first


async def test_what_the_partner_says_that_it_could_not_export_is_asked_for_again(hub, store):
    ehr = Ehr(error_types=["Condition"])
    async with ehr.client() as client:
        figures = await hub.one_export(client)
    assert list(figures["failed"]) == ["Condition"] and figures["written"] == 14
    assert await since_of(store, "Condition") is None and await since_of(store) is not None


class Sent(httpx.AsyncByteStream):
    def __init__(self, body):
        self.body = body

    async def __aiter__(self):
        yield self.body


def sent(body, headers=None, status=200):
    """An answer that is still to be read."""
    return httpx.Response(status, stream=Sent(body), headers=headers)


def served(ehr, name, change):
    """A fault: one file is served otherwise."""

    def fault(request):
        if request.url.path.endswith(name):
            export = next(iter(ehr.exports.running.values()))
            return change(export.files[name][2], request)
        return None

    return fault


async def test_a_file_that_breaks_off_goes_on_where_it_ended(hub, store):
    ehr, ranges = Ehr(), []

    def broken(body, request):
        ranges.append(request.headers.get("Range"))
        if len(ranges) == 1:
            return sent(body[:700], {"Content-Length": str(len(body)), "ETag": '"a"'})
        start = int(ranges[-1].removeprefix("bytes=").rstrip("-"))
        return sent(body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}", "ETag": '"a"'}, 206)

    ehr.faults = [served(ehr, "Encounter.ndjson", broken)]
    (figures,) = await hub.until_done(ehr)
    assert ranges == [None, "bytes=700-"] and figures["failed"] == {}
    await assert_mirrors(store, ehr)


async def test_a_file_that_is_whole_by_its_word_and_is_not_is_fetched_again_and_then_told(hub, store):
    ehr, times = Ehr(), []

    def short(body, request):
        times.append(1)
        return sent(body[:-40])

    ehr.faults = [served(ehr, "Encounter.ndjson", short)]
    async with ehr.client() as client:
        figures = await hub.one_export(client)
    assert len(times) == 2 and "breaks off in line 9" in figures["failed"]["Encounter"]
    assert figures["written"] == 16  # the lines before are in
    assert await since_of(store) is None


async def test_packed_files_are_unpacked(hub, store):
    ehr = Ehr()
    ehr.faults = [served(ehr, "Encounter.ndjson", lambda body, _: sent(gzip.compress(body)))]
    (figures,) = await hub.until_done(ehr)
    assert figures["written"] == 17


async def test_what_cannot_be_told_whose_it_is_goes_into_quarantine_and_stops_nobody(hub, store):
    ehr = Ehr()
    foreign = json.dumps({**visit("nobody-here"), "id": "x1"}).encode()
    added = b'{"resourceType": "Encounter"\n{"resourceType": "Encounter", "status": "planned"}\n' + foreign + b"\n"

    def more(body, request):
        return sent(body + added)

    ehr.faults = [served(ehr, "Encounter.ndjson", more)]
    async with ehr.client() as client:
        figures = await hub.one_export(client)
    assert (figures["held"], figures["written"]) == (3, 17)
    assert any("not in the panel" in one for one in figures["refusals"])
    held = await store.held("north-clinic", ["Encounter/x1 in an export"])
    assert held["Encounter/x1 in an export"].kind == "misplaced"
    trees, _ = await copies(store)
    assert ("Encounter", hub_id(BASE, "Encounter/x1")) not in trees


async def test_a_file_elsewhere_is_fetched_where_partner_yaml_says_so_and_without_the_token(hub, store):
    ehr, asked = Ehr(files="https://files.example/x", token=True), []

    class Token(httpx.Auth):
        def auth_flow(self, request):
            request.headers["Authorization"] = "Bearer secret"
            yield request

    def elsewhere(request):
        if request.url.host != "files.example":
            return None
        asked.append(request.headers.get("Authorization"))
        export = next(iter(ehr.exports.running.values()))
        return sent(export.files[request.url.path.rpartition("/")[2]][2])

    ehr.faults = [elsewhere]
    make = ehr.client

    def signed(bulk=None):
        client = make(bulk)
        client.auth = Token()
        return client

    ehr.client = signed
    async with ehr.client() as client:
        figures = await hub.one_export(client)
    assert (asked == [] and "does not name" in figures["failed"]["Encounter"]) or "None of the files" in figures["failed"][
        "Encounter"
    ]
    hub.clock.advance(timedelta(hours=1))
    (figures,) = await hub.until_done(ehr, Bulk(files=(FilePlace("https://files.example/x", False),)))
    assert figures["failed"] == {} and set(asked) == {None}
    await assert_mirrors(store, ehr)


class Ended(BaseException):
    """The process ends here."""


async def test_ended_at_any_request_and_any_commit_it_goes_on_and_nothing_is_lost_or_doubled(sqlite_url, clock, tmp_path):
    """The process ends before or after each request to the partner and each commit, in turn; the next one goes on."""
    point, reached = 0, True
    while reached:
        reached = False
        path = tmp_path / f"{point}.db"
        path.write_bytes(Path(sqlite_url.removeprefix("sqlite:///")).read_bytes())
        store = Store(await open_database(f"sqlite:///{path}"), clock=clock)
        hub, ehr, left = Hub(store, clock, tmp_path / f"spool{point}"), Ehr(patients=2), [point]

        def strike(left=left):
            left[0] -= 1
            if left[0] == -1:
                raise Ended

        answer, transact = ehr.answer, store.transact

        async def struck_answer(request, answer=answer, strike=strike):
            strike()
            got = await answer(request)
            strike()
            return got

        async def struck_transact(*arguments, transact=transact, strike=strike, **named):
            strike()
            got = await transact(*arguments, **named)
            strike()
            return got

        ehr.answer, store.transact = struck_answer, struck_transact
        try:
            await hub.until_done(ehr)
        except (Ended, BaseExceptionGroup):
            reached = True
        ehr.answer, store.transact = answer, transact
        async with store.database.writing() as connection:  # the leases of the dead have run out
            await connection.execute("DELETE FROM lease")
        await hub.until_done(ehr, ask=point < 2)
        await assert_mirrors(store, ehr)
        trees, _ = await copies(store)
        versions = {tree["meta"]["versionId"] for tree in trees.values()}
        assert versions == {"1"}, point
        assert await kept(store, "north-clinic") is None
        await store.close()
        point += 2
    assert point > 50


async def test_two_processes_do_not_export_twice(hub, store):
    ehr = Ehr()
    async with ehr.client() as one, ehr.client() as two:
        await bulk_due_request(store)
        for _ in range(60):
            steps = await asyncio.gather(hub.once(one), hub.once(two))
            hub.clock.advance(timedelta(seconds=30))
            if any(step.finished for step in steps):
                break
    assert ehr.exports.begun == 1
    await assert_mirrors(store, ehr)


async def test_a_pull_by_search_and_an_export_agree(hub, store):
    ehr = Ehr()
    async with ehr.client() as client:
        await pull(store, client)
    before = (await copies(store))[1]
    (figures,) = await hub.until_done(ehr)
    assert (figures["written"], (await copies(store))[1]) == (0, before)


async def test_cancelled_it_ends_at_the_partner_too(hub, store):
    ehr = Ehr(polls=100)
    async with ehr.client() as client:
        await bulk_due_request(store)
        while not ehr.exports.running:
            await hub.once(client)
        assert await cancel(store, client, hub.spool)
        assert not ehr.exports.running and await kept(store, "north-clinic") is None
        assert not await cancel(store, client, hub.spool)


async def test_by_itself_it_comes_again_when_its_time_is_there(hub, store, clock):
    ehr, bulk = Ehr(), Bulk(every=timedelta(days=7))
    await hub.until_done(ehr, bulk, ask=False)
    clock.advance(timedelta(days=6, hours=23))
    assert await hub.until_done(ehr, bulk, ask=False) == []
    clock.advance(timedelta(hours=2))
    assert len(await hub.until_done(ehr, bulk, ask=False)) == 1
