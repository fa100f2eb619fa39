"""A partner's notifications become hints, each once; one that is lost, late, doubled or forged loses, doubles and forges nothing."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from fhircm.access.sealing import Seal
from fhircm.exchange import subscriptions
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.notifications import HEADER, LIMIT, told_at
from fhircm.exchange.pull import pull
from fhircm.exchange.subscription_shape import Subscriptions, Topic, read
from fhircm.exchange.yaml_keys import Keys, YamlWrong
from fhircm.fhir.outcome import FhirError
from fhircm.rest.errors import answer_to
from fhircm.rest.notify import Notifier, add_routes
from fhircm.sandbox import subscriptions as sandbox

from . import test_bulk_export as bulk
from .test_bulk_export import BASE, partner, ref, visit

HUB = "https://hub.example/notify/north-clinic"
FEED = "http://hl7.org/fhir/us/core/SubscriptionTopic/patient-data-feed"
BY_PATIENT = Topic(FEED, ("Encounter?patient=Patient/{patient}",), "id-only", ("Encounter",))
PANEL = Topic("https://ehr.example/SubscriptionTopic/Encounter.any", (), "id-only", ("Encounter",))


class World:
    """A hub that can be notified, an EHR that notifies it, and the clock of both."""

    def __init__(self, store, clock, keys_dir, shape, **rules):
        self.store, self.clock, self.shape, self.seal = store, clock, shape, Seal.open(keys_dir)
        self.ehr = bulk.Ehr(patients=2)
        self.ehr.habits["subscriptions"] = rules
        self.app = FastAPI()
        self.app.add_exception_handler(FhirError, lambda request, error: answer_to(error))
        self.app.state.store = store
        add_routes(self.app, {"north-clinic": Notifier(BASE, shape)}, keys_dir)
        self.hub = httpx.AsyncClient(transport=httpx.ASGITransport(self.app, raise_app_exceptions=True))
        self.sent, self.answers = [], []
        self.server = sandbox.Subscriptions(self.ehr, self.send, clock)
        self._asgi = httpx.ASGITransport(Starlette(routes=sandbox.routes(self.server, "/fhir")))
        self.lost_answers = 0

    async def send(self, method, url, headers, body):
        self.sent.append((method, url, headers, body))
        answer = await self.hub.request(method, url, headers=headers, content=body)
        self.answers.append(answer.status_code)
        return answer.status_code

    async def answer(self, request):
        if "/Subscription" not in request.url.path:
            return await self.ehr.answer(request)
        got = await self._asgi.handle_async_request(request)
        if self.lost_answers and request.method == "POST":
            self.lost_answers -= 1
            raise httpx.ReadTimeout("")
        return got

    async def keep(self, *, later=timedelta(), patients=("p0", "p1")):
        self.clock.advance(later)
        async with PartnerClient(partner(None), transport=httpx.MockTransport(self.answer)) as client:
            return await subscriptions.keep(self.store, client, self.shape, HUB, self.seal, patients)

    async def pulled(self):
        async with self.ehr.client() as client:
            await pull(self.store, client)

    async def change(self, patient="p0", id=None):
        self.ehr.write(visit(patient), id or f"{patient}-e0")
        await self.server.changed(self.ehr.chart.get("Encounter", id or f"{patient}-e0"))

    async def hints(self, *, take=True):
        """What is hinted at, and forgotten then."""
        found = await self.store.states("hint:north-clinic")
        if take:
            for key in found:
                await self.store.transact([subscriptions.SetState("hint:north-clinic", key, None)], origin="test")
        return sorted(found)

    async def rows(self):
        return await subscriptions.kept(self.store, "north-clinic")


@pytest.fixture
def clock(clock):
    clock.now = datetime.now(UTC)
    return clock


@pytest.fixture
def world(store, clock, tmp_path):
    def make(*topics, **rules):
        shape = rules.pop("shape", Subscriptions(topics or (BY_PATIENT,)))
        return World(store, clock, tmp_path / "keys", shape, **rules)

    return make


async def test_each_patient_has_a_subscription_that_is_active_after_its_handshake(world):
    here = world()
    await here.keep()
    rows = await here.rows()
    assert [row.patient for row in rows.values()] == ["p0", "p1"] and {row.state for row in rows.values()} == {"active"}
    for one in here.server.present.values():
        filters = [each["valueString"] for each in one.tree["_criteria"]["extension"]]
        assert filters in (["Encounter?patient=Patient/p0"], ["Encounter?patient=Patient/p1"])
        assert one.tree["channel"]["_payload"]["extension"][0]["valueCode"] == "id-only"
    assert await here.hints() == ["p0/Encounter", "p1/Encounter"]  # what changed before they were there
    assert await here.keep() == 0


async def test_an_event_becomes_a_hint_at_the_patient_and_never_more_than_one(world):
    here = world()
    await here.keep()
    await here.hints()
    await here.change("p1")
    assert await here.hints() == ["p1/Encounter"]
    event = here.sent[-1]
    for _ in range(3):
        assert await here.send(*event) == 200
    assert await here.hints() == []
    await here.keep(later=timedelta(minutes=2))  # it is reckoned, and the row of the event is gone
    assert await here.send(*event) == 200
    assert await here.hints() == []


async def test_of_a_topic_of_the_whole_panel_the_hub_looks_whose_the_resource_is(world):
    here = world(PANEL)
    await here.pulled()
    await here.keep()
    await here.hints()
    await here.change("p1")  # the hub has a copy
    assert await here.hints() == ["p1/Encounter"]
    await here.change("p0", "p0-new")  # it has none: it reads it
    here.ehr.patient("stranger", joins=False)
    await here.change("stranger", "s-new")
    assert await here.hints() == []
    await here.keep()
    assert await here.hints() == ["p0/Encounter"]


@pytest.mark.parametrize("payload", ["empty", "full-resource"])
async def test_other_payloads(world, payload):
    here = world(Topic(FEED, BY_PATIENT.filters, payload, ("Encounter",)))
    await here.keep()
    await here.hints()
    await here.change("p0")
    assert await here.hints() == ["p0/Encounter"]
    assert ("resourceType" in json.loads(here.sent[-1][3])["entry"][-1]["resource"]) and here.answers[-1] == 200


async def test_lost_notifications_are_noticed_and_made_up_for_by_events(world):
    here = world()
    await here.keep()
    await here.hints()
    await here.change("p0")
    here.server.lose = 2
    await here.change("p0", "p0-e1")
    await here.change("p0", "p0-e2")
    await here.hints()
    await here.change("p0", "p0-e0")  # number 4: 2 and 3 are missing
    await here.hints()
    await here.keep(later=timedelta(seconds=59))
    assert await here.hints() == []  # they may still come
    await here.keep(later=timedelta(seconds=2))
    await here.keep(later=timedelta(seconds=61))
    assert await here.hints() == ["p0/Encounter"]
    assert [row.upto for row in (await here.rows()).values() if row.patient == "p0"] == [4]


async def test_reordered_notifications_are_no_gap(world):
    here = world()
    await here.keep()
    deliver, held = here.server.send, []

    async def hold(*sent):
        held.append(sent)
        return 200

    here.server.send = hold
    for id in ("p0-e0", "p0-e1", "p0-e2"):
        await here.change("p0", id)
    here.server.send = deliver
    for sent in reversed(held):
        assert await deliver(*sent) == 200
    await here.hints()
    for _ in range(3):
        await here.keep(later=timedelta(seconds=61))
    assert await here.hints() == []
    assert {row.upto for row in (await here.rows()).values()} == {3, 0}


async def test_the_last_one_that_was_lost_is_noticed_by_a_heartbeat_or_by_asking(world):
    here = world()
    await here.keep()
    await here.hints()
    here.server.lose = 1
    await here.change("p0")
    await here.server.heartbeat()
    await here.keep(later=timedelta(minutes=2))
    assert await here.hints() == ["p0/Encounter"]
    here.server.lose = 1
    await here.change("p1")
    await here.keep(later=timedelta(minutes=11))  # no heartbeat came: it is asked
    assert await here.hints() == ["p1/Encounter"]


async def test_without_the_operation_events_all_that_it_is_about_is_looked_at(world):
    here = world(shape=Subscriptions((BY_PATIENT,), events=False), events=False)
    await here.keep()
    await here.hints()
    here.server.lose = 1
    await here.change("p0")
    await here.keep(later=timedelta(minutes=16))
    assert await here.hints() == ["p0/Encounter"]


@pytest.mark.parametrize("state", ["error", "off"])
async def test_one_that_is_off_is_set_going_again_and_what_it_missed_is_looked_for(world, state):
    here = world()
    await here.keep()
    await here.hints()
    one = next(one for one in here.server.present.values() if "p0" in str(one.tree))
    one.tree["status"] = state
    await here.change("p0")  # it is counted, and not sent
    await here.keep(later=timedelta(minutes=16))
    assert await here.hints() == ["p0/Encounter"]
    assert one.tree["status"] == "active"
    await here.change("p0")
    assert await here.hints() == ["p0/Encounter"]


async def test_it_is_renewed_before_its_end_and_made_anew_when_it_is_gone(world):
    here = world(shape=Subscriptions((BY_PATIENT,), life=timedelta(days=8)))
    await here.keep()
    first = {row.id for row in (await here.rows()).values()}
    await here.keep(later=timedelta(days=7))
    rows = (await here.rows()).values()
    assert {row.id for row in rows} == first
    assert {one.tree["end"][:10] for one in here.server.present.values()} == {
        (here.clock.now + timedelta(days=8)).isoformat()[:10]
    }
    here.server.present.clear()
    await here.hints()
    await here.keep(later=timedelta(minutes=16))
    rows = (await here.rows()).values()
    assert not {row.id for row in rows} & first and len(here.server.present) == 2
    assert await here.hints() == ["p0/Encounter", "p1/Encounter"]


async def test_who_leaves_the_panel_is_heard_of_no_more(world):
    here = world()
    await here.keep()
    await here.change("p1")
    event = here.sent[-1]
    await here.keep(patients=("p0",), later=timedelta(minutes=2))
    assert [row.patient for row in (await here.rows()).values()] == ["p0"]
    assert len(here.server.present) == 1
    assert await here.send(*event) == 404


async def test_after_a_lost_answer_there_is_one_and_orphans_are_removed(world):
    here = world(PANEL)
    here.lost_answers = 1
    await here.keep()
    assert len(here.server.present) == 1 and [row.id for row in (await here.rows()).values()] == [None]
    orphan = {"resourceType": "Subscription", "id": "old", "channel": {"endpoint": f"{HUB}/of-a-hub-that-was"}}
    here.server.present["old"] = type(next(iter(here.server.present.values())))(orphan)
    foreign = {"resourceType": "Subscription", "id": "other", "channel": {"endpoint": "https://else.example"}}
    here.server.present["other"] = type(next(iter(here.server.present.values())))(foreign)
    await here.keep(later=timedelta(minutes=2))
    (row,) = (await here.rows()).values()
    assert sorted(here.server.present) == sorted([row.id, "other"])


async def test_a_topic_that_the_partner_does_not_have_is_told_and_tried_again_later(world):
    here = world(topics=["another"])
    await here.keep()
    rows = await here.rows()
    assert {row.state for row in rows.values()} == {"refused"} and all("no such topic" in row.why for row in rows.values())
    assert await here.keep() == 0


async def test_athena_signs_and_numbers_within_a_notification(world):
    here = world(
        shape=Subscriptions((PANEL,), proof="signature", running_numbers=False, status=False, events=False, heartbeat=None),
        style="athena",
        status=False,
    )
    await here.pulled()
    await here.keep()
    await here.hints()
    await here.change("p0")
    await here.change("p1")
    assert await here.hints() == ["p0/Encounter", "p1/Encounter"]
    method, url, headers, body = here.sent[-1]
    assert await here.send(method, url, headers, body) == 200
    assert await here.hints() == []  # the event's own id says that it was told
    assert await here.send(method, url, headers, body + b" ") == 403
    assert await here.send(method, url, {}, body) == 403
    assert await here.send(method, url, {"X-Hub-Signature": "sha1=00"}, body) == 403


async def test_plain_r4_sends_nothing_or_a_payload_that_is_not_believed(world):
    here = world(
        Topic("Encounter?status=in-progress", (), "none", ("Encounter",)),
        style="plain",
        shape=Subscriptions(
            (Topic("Encounter?status=in-progress", (), "none", ("Encounter",)),), status=False, events=False, heartbeat=None
        ),
        status=False,
    )
    await here.keep()
    await here.hints()
    await here.change("p0")
    waking = await here.store.timer("partner:north-clinic subscriptions")
    assert waking is not None  # whose it is is looked for at once, not at the next look at the Subscriptions
    assert waking.due == here.clock()
    here.clock.advance(timedelta(seconds=1))
    await here.keep()
    assert (await here.store.timer("partner:north-clinic")).due == here.clock()  # and so is what changed
    assert await here.hints() == ["p0/Encounter", "p1/Encounter"]  # it says that something changed, and not what
    _, url, headers, _ = here.sent[-1]
    await here.pulled()
    lie = json.dumps({**visit("p0"), "id": "p1-e0", "subject": ref("Patient/p0")}).encode()
    assert await here.send("PUT", f"{url}/Encounter/p1-e0", headers, lie) == 200
    assert await here.hints() == ["p1/Encounter"]  # whose it is was known before


async def test_what_is_not_proved_or_not_known_is_refused_and_leaves_nothing(world, store):
    here = world()
    await here.keep()
    await here.change("p0")
    await here.hints()
    method, url, headers, body = here.sent[-1]
    told = await store.states(told_at("north-clinic"))
    assert await here.send(method, url[:-1], headers, body) == 404
    assert await here.send(method, url.replace("north-clinic", "south-clinic"), headers, body) == 404
    assert await here.send(method, url, {**headers, HEADER: "guessed"}, body) == 403
    assert await here.send(method, url, {}, body) == 403
    assert await here.send(method, url, headers, b"{") == 400
    assert await here.send(method, url, headers, b'{"resourceType": "Bundle", "entry": []}') == 400
    assert await here.send(method, url, headers, b" " * (LIMIT + 1)) == 413
    another = body.replace(next(row.id for row in (await here.rows()).values() if row.patient == "p0").encode(), b"another")
    assert await here.send(method, url, headers, another) == 404
    assert await store.states(told_at("north-clinic")) == told and await here.hints() == []


async def test_a_reference_elsewhere_is_no_hint_at_another_patient(world):
    here = world(PANEL)
    await here.keep()
    await here.change("p0")
    await here.hints()
    await here.keep()
    await here.hints()
    method, url, headers, body = here.sent[-1]
    elsewhere = body.replace(b"Encounter/p0-e0", b"https://else.example/fhir/Patient/p1").replace(b'"1"', b'"2"')
    assert await here.send(method, url, headers, elsewhere) == 200
    assert await here.hints() == []


async def test_two_processes_that_are_told_at_once_hint_once_each(world):
    here = world()
    await here.keep()
    await here.hints()
    await here.change("p0")
    event = here.sent[-1]
    assert set(await asyncio.gather(*(here.send(*event) for _ in range(8)))) == {200}
    assert await here.hints() == ["p0/Encounter"]


def test_the_section_is_read_and_its_mistakes_are_told(tmp_path):
    tree = {
        "topics": [{"criteria": FEED, "filters": ["Encounter?patient=Patient/{patient}"], "types": ["Encounter"]}],
        "heartbeat": 0,
    }
    section = read(Keys(tmp_path / "partner.yaml", "subscriptions", tree))
    assert section.topics == (BY_PATIENT,) and section.heartbeat is None
    for wrong in (
        {"topics": [{"criteria": FEED, "filters": ["{who}"]}]},
        {"topics": [{"criteria": FEED, "types": ["Visit"]}]},
        {"topics": [], "proof": "trust"},
    ):
        with pytest.raises(YamlWrong, match=r"partner\.yaml: subscriptions"):
            read(Keys(tmp_path / "partner.yaml", "subscriptions", wrong))
