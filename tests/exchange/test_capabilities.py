"""What a partner can do is read, kept, and compared with what it could do before."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fhircm.exchange.capabilities import Capabilities, discover, drift
from fhircm.exchange.client import PartnerAnswerBroken, PartnerClient, PartnerUnavailable
from fhircm.exchange.drift import followed, kept, refresh
from fhircm.exchange.granted import allows, understood
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner, PullType
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.operations import START
from fhircm.store.resources import Put, SetState

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


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_a_server_without_smart_is_read_by_its_statement(status):
    ehr = Ehr(**TASK)
    ehr.smart = httpx.Response(status, json={"resourceType": "OperationOutcome", "issue": []})
    async with ehr.client() as client:
        got = await discover(client)
    assert got.can("Task", "update")
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


# --- what is lost and found ----------------------------------------------------------------------------------------------------

PULLED = replace(
    partner(),
    pull=(
        PullType(
            "CarePlan",
            ((("patient", "{patient}"), ("category", "a")), (("patient", "{patient}"), ("category", "b"))),
            False,
            False,
        ),
        PullType("Encounter", ((("patient", "{patient}"),),), True, False, True),
        PullType("Location", (), True, False),
    ),
    deliver={"message": [["message"]]},
)
ALL = {
    "Patient": (["read"], []),
    "Group": (["read"], []),
    "CarePlan": (["read", "search-type"], ["patient", "category"]),
    "Encounter": (["read", "search-type"], ["patient"]),
    "Location": (["read"], []),
    "Communication": (["create"], []),
}


class Granting:
    granted = None


async def refreshed(store, ehr, auth=None, owner=None):
    client = PartnerClient(PULLED, transport=httpx.MockTransport(ehr.answer))
    async with client:
        client.auth = auth
        return await refresh(store, client, owner)


async def told(store):
    """The Tasks that tell a human, as status and reason."""
    found = await store.search(parse_query("Task", [("code", "partner-changed")]))
    return [(one.tree["status"], one.tree["reasonCode"]["text"]) for one in found.matches]


def pulled(snapshot):
    return {one.type: one for one in followed(PULLED, snapshot)[0].pull}


async def test_what_a_partner_stops_to_support_is_told_once_and_taken_back_when_it_returns(store):
    await store.transact([Put(check_tree({"resourceType": "Organization", "id": "hub", "name": "Hub"}))], origin="hub")
    ehr = Ehr(**ALL)
    await refreshed(store, ehr, owner="Organization/hub")
    ehr.metadata = statement(**{**ALL, "CarePlan": (["read"], []), "Communication": (["read"], [])})
    snapshot, _ = await refreshed(store, ehr, owner="Organization/hub")
    assert snapshot.lost == ("CarePlan search-type", "Communication create")
    [(status, reason)] = await told(store)
    assert status == "ready"
    assert "north-clinic does not support any more: search of CarePlan; create of Communication." in reason
    await refreshed(store, ehr, owner="Organization/hub")
    assert len(await told(store)) == 1
    ehr.metadata["software"]["version"] = "2027"  # mere text
    await refreshed(store, ehr, owner="Organization/hub")
    assert len(await told(store)) == 1
    ehr.metadata = statement(**{**ALL, "Communication": (["read"], [])})
    await refreshed(store, ehr, owner="Organization/hub")
    [(status, reason)] = await told(store)
    assert status == "ready"
    assert "CarePlan" not in reason
    ehr.metadata = statement(**ALL)
    snapshot, _ = await refreshed(store, ehr, owner="Organization/hub")
    assert [status for status, _ in await told(store)] == ["cancelled"]
    assert snapshot.lost == ()
    ehr.metadata = statement(**{**ALL, "CarePlan": (["read"], [])})
    await refreshed(store, ehr, owner="Organization/hub")
    assert sorted(status for status, _ in await told(store)) == ["cancelled", "ready"]


async def test_a_task_that_a_human_completed_is_not_opened_again_for_the_same_loss(store):
    await store.transact([Put(check_tree({"resourceType": "Organization", "id": "hub", "name": "Hub"}))], origin="hub")
    ehr = Ehr(**ALL)
    await refreshed(store, ehr, owner="Organization/hub")
    ehr.metadata = statement(**{**ALL, "CarePlan": (["read"], [])})
    await refreshed(store, ehr, owner="Organization/hub")
    [task] = (await store.search(parse_query("Task", [("code", "partner-changed")]))).matches
    await store.transact([Put(check_tree({**task.tree, "status": "completed"}), if_version=task.version)], origin="hub")
    ehr.metadata["software"]["version"] = "2027"
    await refreshed(store, ehr, owner="Organization/hub")
    assert [status for status, _ in await told(store)] == ["completed"]


async def test_what_is_lost_is_not_asked_for_and_what_returns_is(store):
    ehr = Ehr(**ALL)
    snapshot, _ = await refreshed(store, ehr)
    assert followed(PULLED, snapshot) == (PULLED, [])
    ehr.metadata = statement(**{**ALL, "CarePlan": (["read", "search-type"], ["patient"]), "Location": (["search-type"], [])})
    snapshot, _ = await refreshed(store, ehr)
    assert pulled(snapshot)["CarePlan"].searches == ((("patient", "{patient}"),),)
    assert "Location" not in pulled(snapshot)
    assert followed(PULLED, snapshot)[1] == ["CarePlan: is searched without category", "Location: is not read by id any more"]
    ehr.metadata = statement(**{**ALL, "CarePlan": (["read", "search-type"], ["category"])})
    snapshot, _ = await refreshed(store, ehr)
    assert "CarePlan" not in pulled(snapshot)
    ehr.metadata = statement(**ALL)
    snapshot, _ = await refreshed(store, ehr)
    assert followed(PULLED, snapshot) == (PULLED, [])


async def test_what_was_never_declared_is_asked_for_all_the_same(store):
    snapshot, _ = await refreshed(store, Ehr(**TASK))
    assert followed(PULLED, snapshot) == (PULLED, [])
    assert followed(PULLED, None) == (PULLED, [])


async def test_last_updated_is_used_as_soon_as_it_is_declared_and_no_longer(store):
    ehr = Ehr(**ALL)
    snapshot, _ = await refreshed(store, ehr)
    assert not pulled(snapshot)["Encounter"].last_updated
    ehr.metadata = statement(**{**ALL, "Encounter": (["read", "search-type"], ["patient", "_lastUpdated"])})
    snapshot, _ = await refreshed(store, ehr)
    assert pulled(snapshot)["Encounter"].last_updated
    ehr.metadata = statement(**ALL)
    snapshot, _ = await refreshed(store, ehr)
    assert snapshot.lost == ("Encounter ?_lastUpdated",)
    assert not pulled(snapshot)["Encounter"].last_updated
    assert pulled(snapshot)["Encounter"].searches


async def test_granted_scopes_are_part_of_what_can_be_done(store):
    auth = Granting()
    ehr = Ehr(**ALL)
    snapshot, _ = await refreshed(store, ehr, auth)
    assert snapshot.can("Communication", "create")
    auth.granted = ("system/*.rs", "system/Communication.write")
    snapshot, _ = await refreshed(store, ehr, auth)
    assert snapshot.can("Communication", "create")
    auth.granted = ("system/Encounter.read", "system/CarePlan.r", "system/Location.rs")
    snapshot, drifted = await refreshed(store, ehr, auth)
    assert "granted: system/Communication.write is gone" in drifted
    assert not snapshot.can("Communication", "create")
    assert snapshot.declares("Communication", "create")
    assert pulled(snapshot).keys() == {"Encounter", "Location"}
    assert "CarePlan search-type" in snapshot.lost
    auth.granted = None  # the partner is asked before the next sign-in: what was known stays known
    snapshot, _ = await refreshed(store, ehr, auth)
    assert not snapshot.can("Communication", "create")


async def test_what_was_declared_and_never_granted_is_not_lost_when_the_scopes_are_first_known(store):
    auth, ehr = Granting(), Ehr(**ALL)
    await refreshed(store, ehr, auth)
    auth.granted = ("system/Encounter.rs", "system/Location.rs")
    snapshot, _ = await refreshed(store, ehr, auth)
    assert "CarePlan search-type" not in snapshot.lost


async def test_a_snapshot_of_an_older_fhircm_still_loads_and_tells_no_false_news(store):
    old = {
        "software": "Ehr 2026",
        "fhir_version": "4.0.1",
        "token_endpoint": f"{BASE}/token",
        "algorithms": ["RS384", "ES384"],
        "grants": ["client_credentials"],
        "types": {type: {"interactions": sorted(codes), "search": sorted(names)} for type, (codes, names) in ALL.items()},
    }
    await store.transact([SetState("capability", "north-clinic", old)], origin="hub")
    ehr = Ehr(**ALL)
    ehr.metadata["rest"][1]["resource"][0].update(
        conditionalCreate=True, versioning="versioned", operation=[{"name": "everything"}]
    )
    ehr.metadata["rest"][1]["interaction"] = [{"code": "batch"}]
    snapshot, drifted = await refreshed(store, ehr)
    assert drifted == []
    assert snapshot.has("Patient", "conditionalCreate")
    assert snapshot.has("Patient", "versioning versioned")
    assert snapshot.has("Patient", "$everything")
    assert snapshot.system == ("batch",)
    ehr.metadata["rest"][1]["interaction"] = [{"code": "batch"}, {"code": "transaction"}]
    del ehr.metadata["rest"][1]["resource"][0]["conditionalCreate"]
    _, drifted = await refreshed(store, ehr)
    assert drifted == ["system: transaction is new", "Patient: conditionalCreate is gone"]


@pytest.mark.parametrize(
    ("scopes", "interaction", "allowed"),
    [
        (None, "delete", True),
        ((), "read", False),
        (("system/*.read",), "search-type", True),
        (("system/*.read",), "create", False),
        (("system/Task.cud",), "patch", True),
        (("system/Task.r",), "search-type", False),
        (("system/Task.rs?status=ready",), "search-type", True),
        (("user/Task.*",), "delete", True),
        (("patient/Task.rs", "openid", "system/Goal.cruds"), "read", False),
    ],
)
def test_scopes_of_both_forms_are_understood(scopes, interaction, allowed):
    assert allows(scopes, "Task", interaction) is allowed


def test_scopes_that_say_nothing_of_data_forbid_nothing():
    assert understood(["launch", "Patient.Read", "https://vendor.example/scope"]) is None
    assert understood(None) is None
    assert understood(["system/Goal.rs", "launch"]) == ("launch", "system/Goal.rs")
