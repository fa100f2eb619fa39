"""What a partner can do is read, kept, and compared with what it could do before."""

from pathlib import Path

import httpx
import pytest

from fhircm.exchange.capabilities import Capabilities, discover, drift, kept, refresh
from fhircm.exchange.client import PartnerAnswerBroken, PartnerClient, PartnerUnavailable
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner
from fhircm.store.operations import START

BASE = "https://ehr.example/fhir"
SMART = {
    "token_endpoint": f"{BASE}/token",
    "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
    "grant_types_supported": ["client_credentials"],
}


def partner():
    return Partner(
        name="north-clinic",
        folder=Path("north-clinic"),
        vendor="epic",
        base_url=BASE,
        client_id="fhircm",
        algorithm="ES384",
        scopes=(),
        organization=Organization("o1", "North Clinic", "1234567893"),
        time_zone="America/Chicago",
        calendar=Calendar("US", None, (), (5, 6)),
        group="panel",
        pull=(),
        limits=Limits(attempts=1),
    )


def statement(**types):
    resources = [
        {"type": type, "interaction": [{"code": code} for code in codes], "searchParam": [{"name": name} for name in names]}
        for type, (codes, names) in types.items()
    ]
    software = {"name": "Ehr", "version": "2026"}
    rest = [{"mode": "client"}, {"mode": "server", "resource": resources}]
    return {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1", "software": software, "rest": rest}


class Ehr:
    def __init__(self, **types):
        self.smart, self.metadata, self.requests = SMART, statement(**types), []

    def client(self, auth=None):
        return PartnerClient(partner(), auth, transport=httpx.MockTransport(self.answer))

    def answer(self, request):
        self.requests.append(request)
        answer = self.metadata if request.url.path.endswith("/metadata") else self.smart
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


class NoToken(httpx.Auth):
    def auth_flow(self, request):
        raise AssertionError("discovery needs no token")


TASK = {"Task": (["read", "search-type", "update"], ["patient", "status"])}
PLAN = {"CarePlan": (["read"], [])}


async def test_what_is_said_is_read():
    ehr = Ehr(**TASK, **PLAN)
    async with ehr.client(NoToken()) as client:
        got = await discover(client)
    assert (got.software, got.fhir_version, got.token_endpoint) == ("Ehr 2026", "4.0.1", f"{BASE}/token")
    assert got.algorithms == ("RS384", "ES384")
    assert got.can("Task", "update")
    assert not got.can("Task", "create")
    assert not got.can("Subscription", "create")
    assert got.search_params("Task") == {"patient", "status"}
    assert got.search_params("Goal") == frozenset()
    assert {request.headers["Accept"] for request in ehr.requests} == {"application/json", "application/fhir+json"}


async def test_a_snapshot_is_kept_and_written_again_only_when_it_differs(store):
    ehr = Ehr(**TASK)
    assert await kept(store, "north-clinic") is None
    async with ehr.client() as client:
        first, told = await refresh(store, client)
        assert told == []
        assert await kept(store, "north-clinic") == first
        assert (await refresh(store, client))[1] == []
        ehr.metadata = statement(Task=(["read", "search-type"], ["patient", "code"]), **PLAN)
        second, told = await refresh(store, client)
    assert told == ["CarePlan is new", "Task: update is gone", "Task: search by status is gone", "Task: search by code is new"]
    assert await kept(store, "north-clinic") == second
    assert (await store.changes(START, types=None, limit=10)).changes == []


async def test_drift_of_the_sign_in_is_told():
    ehr = Ehr(**TASK)
    async with ehr.client() as client:
        before = await discover(client)
        ehr.smart = {**SMART, "token_endpoint": None, "token_endpoint_auth_signing_alg_values_supported": ["RS384"]}
        now = await discover(client)
    assert drift(before, now) == [
        f"token endpoint: {BASE}/token before, not told now",
        "algorithms: RS384, ES384 before, RS384 now",
    ]
    assert drift(now, Capabilities.from_json({**now.as_json(), "types": {}})) == ["Task is gone"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"resourceType": "CapabilityStatement"},
        {"resourceType": "CapabilityStatement", "rest": "x", "software": [], "fhirVersion": None},
        {
            "resourceType": "CapabilityStatement",
            "rest": [None, {"resource": [None, {"type": 7}, {"type": "Task", "interaction": [{}, 5]}]}],
        },
    ],
)
async def test_a_strange_statement_says_little_and_breaks_nothing(metadata):
    ehr = Ehr()
    ehr.metadata, ehr.smart = metadata, {"grant_types_supported": [1, "x"], "token_endpoint": 7}
    async with ehr.client() as client:
        got = await discover(client)
    assert not got.can("Task", "read")
    assert got.token_endpoint is None


@pytest.mark.parametrize("metadata", [{"resourceType": "Patient"}, [], httpx.Response(200, text="<CapabilityStatement/>")])
async def test_what_is_no_statement_is_told(metadata):
    ehr = Ehr()
    ehr.metadata = metadata
    async with ehr.client() as client:
        with pytest.raises(PartnerAnswerBroken):
            await discover(client)


async def test_a_partner_that_is_down_keeps_its_snapshot(store):
    ehr = Ehr(**TASK)
    async with ehr.client() as client:
        first, _ = await refresh(store, client)
        ehr.metadata = httpx.Response(503)
        with pytest.raises(PartnerUnavailable):
            await refresh(store, client)
    assert await kept(store, "north-clinic") == first
