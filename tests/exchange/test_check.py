"""`partner check` tells in plain words what works, what cannot, and what to fix."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import respx

from fhircm.exchange.backend_auth import BackendAuth
from fhircm.exchange.check import Level, check
from fhircm.exchange.client import PartnerClient, connect
from fhircm.exchange.credentials import Credentials, client_at
from fhircm.exchange.launch import Registration
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner, PullType
from fhircm.exchange.roster import Membership
from fhircm.exchange.schedule import Schedule, Window

BASE = "https://ehr.example/fhir"
PULL = (
    PullType("Encounter", ((("patient", "{patient}"),),), False, True),
    PullType("CarePlan", ((("patient", "{patient}"), ("category", "assess-plan")),), False, False),
    PullType("Practitioner", (), True, False),
    PullType("Location", (), True, False),
    PullType("PractitionerRole", (), True, False),
)


def partner(**changes):
    partner = Partner(
        name="north-clinic",
        folder=Path("mappings/north-clinic"),
        vendor="epic",
        base_url=BASE,
        client_id="fhircm",
        algorithm="ES384",
        scopes=("system/Encounter.rs", "system/CarePlan.rs"),
        organization=Organization("o1", "North Clinic", "1234567893"),
        time_zone="America/Chicago",
        calendar=Calendar("US", None, (), (5, 6)),
        group="panel",
        pull=PULL,
        limits=Limits(attempts=1, requests_per_second=10_000),
    )
    return replace(partner, **changes)


def capable(type, *interactions, search=()):
    return {
        "type": type,
        "interaction": [{"code": code} for code in interactions],
        "searchParam": [{"name": name} for name in search],
    }


def bundle(*resources):
    return {"resourceType": "Bundle", "entry": [{"resource": one} for one in resources]}


class Ehr:
    """A partner that does everything well; a test changes what it must not."""

    honest = True  # about _lastUpdated

    def __init__(self):
        encounter = {
            "resourceType": "Encounter",
            "id": "e1",
            "participant": [{"individual": {"reference": "Practitioner/d1"}}],
            "subject": {"reference": "Patient/p1"},
        }
        resources = [
            capable("Encounter", "read", "search-type", search=["patient", "_lastUpdated"]),
            capable("CarePlan", "read", "search-type", search=["patient", "category"]),
            capable("Practitioner", "read"),
            capable("Location", "read"),
            capable("DocumentReference", "create", "update"),
            capable("Communication", "create"),
        ]
        statement = {
            "resourceType": "CapabilityStatement",
            "fhirVersion": "4.0.1",
            "rest": [{"mode": "server", "resource": resources}],
        }
        self.answers = {
            "/.well-known/smart-configuration": {
                "token_endpoint": f"{BASE}/token",
                "grant_types_supported": ["client_credentials"],
            },
            "/metadata": {**statement, "software": {"name": "Ehr"}},
            "/token": {
                "access_token": "t",
                "token_type": "bearer",
                "scope": "system/Encounter.rs system/CarePlan.rs system/*.cruds",
            },
            "/Group/panel": {
                "resourceType": "Group",
                "id": "panel",
                "member": [{"entity": {"reference": f"Patient/p{number}"}} for number in (1, 2)],
            },
            "/Patient/p1": {"resourceType": "Patient", "id": "p1"},
            "/Encounter": bundle(encounter),
            "/CarePlan": bundle(),
            "/Practitioner/d1": {"resourceType": "Practitioner", "id": "d1"},
        }

    def answer(self, request):
        if request.url.params.get("_lastUpdated", "").startswith("ge2999") and self.honest:
            return httpx.Response(200, json=bundle())
        answer = self.answers.get(request.url.path.removeprefix("/fhir"), httpx.Response(404))
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    async def check(self, tmp_path, store=None, **changes):
        who = partner(**changes)
        there = httpx.MockTransport(self.answer)
        auth = BackendAuth(BASE, client_at(who, tmp_path), who.scopes, transport=there)
        async with PartnerClient(who, auth, transport=there) as client:
            return await check(client, store, "https://hub.example")

    async def check_by_connecting(self, tmp_path, **changes):
        """As the command does: partner.yaml alone says how to sign in."""
        self.requests = []
        with respx.mock(assert_all_called=False) as mocked:
            mocked.route().mock(side_effect=lambda request: self.requests.append(request) or self.answer(request))
            async with connect(partner(**changes), tmp_path) as client:
                return await check(client, None, "https://hub.example")


def found(report, level):
    return [finding.text for finding in report.findings if finding.level is level]


def remedy(report, text):
    [finding] = [finding for finding in report.findings if text in finding.text]
    assert finding.level is Level.FIX
    return finding.remedy


async def test_a_partner_that_is_well(tmp_path):
    report = await Ehr().check(tmp_path)
    assert report.ok
    assert found(report, Level.OK) == [
        f"Reachable at {BASE}: Ehr, FHIR 4.0.1",
        "Signed in with ES384 as fhircm",
        "Panel Group/panel: 2 patients",
        "Patient: read by id",
        "Encounter: search works (1 on the first page for the first patient)",
        "CarePlan: search works (0 on the first page for the first patient)",
        "Practitioner: read by id",
        "Location: not tried, the first patient's record refers to none",
        "_lastUpdated is honest: Encounter",
        "_count is honoured",
        "Resources carry no meta.lastUpdated",
        "A search parameter that it does not know is passed over: a misspelt one finds too much",
        "Takes back: Communication (create); DocumentReference (create, update)",
    ]
    cannot = found(report, Level.CANNOT)
    assert cannot[0] == "PractitionerRole: the partner does not have it"
    assert cannot[1].startswith("Takes no CarePlan, CareTeam, Goal, Task, ServiceRequest: it gets")
    assert cannot[2] == "Offers no Subscription: changes are noticed by pulling"


async def test_the_report_is_readable(tmp_path):
    ehr = Ehr()
    ehr.answers["/CarePlan"] = httpx.Response(403, json={"resourceType": "OperationOutcome", "issue": [{"code": "forbidden"}]})
    text = (await ehr.check(tmp_path)).render()
    lines = text.splitlines()
    assert lines[0] == "north-clinic"
    assert "  ok      Panel Group/panel: 2 patients" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("  fix     CarePlan cannot be searched"))
    assert lines[at + 1].strip().startswith("-> Ask the partner to grant the client id fhircm access to CarePlan")
    assert lines[-1] == "  1 to fix"


async def test_a_partner_that_is_down(tmp_path):
    ehr = Ehr()
    ehr.answers["/.well-known/smart-configuration"] = httpx.ConnectError("no")
    report = await ehr.check(tmp_path)
    assert not report.ok
    assert "FHIRCM_PARTNER_BASE_URLS" in remedy(report, "Not reachable")
    assert len(report.findings) == 1


async def test_an_address_that_is_no_fhir_api(tmp_path):
    ehr = Ehr()
    ehr.answers["/.well-known/smart-configuration"] = ehr.answers["/metadata"] = httpx.Response(404, text="<html>")
    report = await ehr.check(tmp_path)
    assert "base_url in mappings/north-clinic/partner.yaml" in remedy(report, "Discovery does not work")


async def test_a_test_server_without_sign_in(tmp_path):
    """It is told that anybody reads there, and nothing claims a sign-in; one that wants a token all the same is a thing to fix."""
    ehr = Ehr()
    ehr.answers["/.well-known/smart-configuration"] = httpx.Response(404)
    open_to_all = {"credentials": Credentials(method="none")}
    report = await ehr.check_by_connecting(tmp_path, **open_to_all)
    assert report.ok
    assert not any("Authorization" in request.headers for request in ehr.requests)
    assert not list(tmp_path.iterdir())  # no key is made
    [advice] = found(report, Level.ADVICE)
    assert "no sign-in, whoever reaches it reads everything" in advice
    assert not any("Signed in" in text for text in found(report, Level.OK))
    ehr.answers["/Group/panel"] = httpx.Response(401)
    report = await ehr.check_by_connecting(tmp_path, **open_to_all)
    assert "say how in credentials" in remedy(report, "Sign-in does not work")


async def test_an_algorithm_that_the_partner_does_not_verify(tmp_path):
    ehr = Ehr()
    ehr.answers["/.well-known/smart-configuration"]["token_endpoint_auth_signing_alg_values_supported"] = ["RS384"]
    report = await ehr.check(tmp_path)
    assert "algorithm in mappings/north-clinic/partner.yaml" in remedy(report, "not with ES384")


async def test_a_sign_in_that_is_refused(tmp_path):
    ehr = Ehr()
    ehr.answers["/token"] = httpx.Response(400, json={"error": "invalid_client"})
    report = await ehr.check(tmp_path)
    how = remedy(report, "Sign-in does not work")
    assert "https://hub.example/.well-known/jwks.json" in how
    assert "fhircm" in how
    assert not any("Panel" in text for text in found(report, Level.OK))


async def test_scopes_that_were_not_granted(tmp_path):
    ehr = Ehr()
    ehr.answers["/token"]["scope"] = "system/Encounter.rs"
    report = await ehr.check(tmp_path)
    assert "Asked for and not granted: system/CarePlan.rs" in found(report, Level.CANNOT)


@pytest.mark.parametrize(
    ("path", "answer", "text", "how"),
    [
        ("/Group/panel", httpx.Response(404), "The panel cannot be read", "panel.group is panel"),
        ("/Group/panel", httpx.Response(200, text="<html>"), "The panel cannot be read", "ask the partner"),
        ("/Group/panel", {"resourceType": "Group", "id": "panel"}, "has no patients", "fill the panel"),
        ("/Patient/p1", httpx.Response(403), "Patient cannot be read", "grant the client id"),
        ("/Encounter", httpx.Response(400), "Encounter cannot be searched", "See pull, type Encounter"),
        ("/Encounter", httpx.Response(200, text="<html>"), "Encounter cannot be searched", "not FHIR"),
        ("/Encounter", httpx.Response(500), "Encounter cannot be searched", "Try again"),
    ],
)
async def test_each_trouble_has_a_remedy(tmp_path, path, answer, text, how):
    ehr = Ehr()
    ehr.answers[path] = answer
    report = await ehr.check(tmp_path)
    assert not report.ok
    assert how in remedy(report, text)


async def test_searches_that_are_not_declared_are_told(tmp_path):
    ehr = Ehr()
    ehr.answers["/metadata"]["rest"][0]["resource"][0] = capable("Encounter", "read", "search-type", search=["patient"])
    ehr.answers["/metadata"]["rest"][0]["resource"][1] = capable("CarePlan", "read", search=["patient"])
    report = await ehr.check(tmp_path)
    cannot = found(report, Level.CANNOT)
    assert "Encounter: search by _lastUpdated is not declared and may be ignored" in cannot
    assert "CarePlan: search by category is not declared and may be ignored" in cannot
    assert "CarePlan: the partner does not say that it can be searched" in cannot
    assert report.ok


async def test_what_changed_since_is_told(tmp_path, store):
    ehr = Ehr()
    assert not found(await ehr.check(tmp_path, store), Level.CHANGED)
    del ehr.answers["/metadata"]["rest"][0]["resource"][-1]
    assert found(await ehr.check(tmp_path, store), Level.CHANGED) == ["Communication is gone"]
    assert not found(await ehr.check(tmp_path, store), Level.CHANGED)


async def test_a_last_updated_that_is_passed_over_is_told(tmp_path):
    ehr = Ehr()
    ehr.honest = False
    report = await ehr.check(tmp_path)
    assert "pull, type Encounter, last_updated to false" in remedy(report, "Encounter: _lastUpdated is passed over")


async def test_habits_that_are_handled_need_no_fixing(tmp_path):
    ehr = Ehr()
    ehr.answers["/Encounter"] = {
        **bundle({"resourceType": "Encounter", "id": "e1"}, {"resourceType": "Encounter", "id": "e2"}),
        "link": [{"relation": "next", "url": "http://inside.example/fhir?_getpages=1"}],
    }
    report = await ehr.check(tmp_path, rebase_links=True)
    assert report.ok
    assert "_count is not honoured: a page of one Encounter has 2" in found(report, Level.OK)
    assert "Links to the next page name another address than base_url; they are taken at base_url" in found(report, Level.OK)
    report = await ehr.check(tmp_path)
    assert "next_link to rebased" in remedy(report, "Links to the next page name another address")


async def test_what_the_granted_scopes_do_not_reach_is_told_by_type(tmp_path, store):
    ehr = Ehr()
    ehr.answers["/token"]["scope"] = "system/Encounter.rs system/Practitioner.read system/Communication.write"
    report = await ehr.check(tmp_path, store)
    cannot = found(report, Level.CANNOT)
    assert (
        "Not within the granted scopes, and so not asked for: CarePlan (search); Location (read); PractitionerRole (read)"
        in cannot
    )
    assert "It takes more than the granted scopes reach: DocumentReference (create, update)" in cannot
    assert "Takes back: Communication (create)" in found(report, Level.OK)
    assert not any(text.startswith("CarePlan: search works") for text in found(report, Level.OK))
    ehr.answers["/token"]["scope"] += " system/CarePlan.rs"
    assert found(await ehr.check(tmp_path, store), Level.CHANGED) == ["granted: system/CarePlan.rs is new"]


async def test_another_shape_is_advised_for_what_presents_itself_as_its_vendor(tmp_path):
    ehr = Ehr()
    ehr.answers["/metadata"]["software"] = {"name": "Oracle Health Millennium", "version": "2026.1"}
    report = await ehr.check(tmp_path)
    [advice] = [finding for finding in report.findings if finding.level is Level.ADVICE]
    assert "It presents itself as Oracle Health Millennium 2026.1" in advice.text
    assert advice.remedy.startswith("Set shape to oracle")
    assert report.ok
    assert not found(await ehr.check(tmp_path, shape="oracle"), Level.ADVICE)


async def test_lines_of_a_roster_that_name_nobody_are_told_by_number(tmp_path):
    ehr = Ehr()
    roster = tmp_path / "roster.csv"
    roster.write_text("id,system,value\np1,,\n,urn:mrn,7\n,urn:mrn,8\n")
    known = {"resourceType": "Patient", "id": "p2", "identifier": [{"system": "urn:mrn", "value": "8"}]}
    ehr.answers["/Patient"] = bundle(known)
    report = await ehr.check(tmp_path, group="", panel=Membership(roster=roster))
    assert f"Panel roster {roster}: 2 patients" in found(report, Level.OK)
    assert "nobody is guessed" in remedy(report, "Panel: line 3 of the roster: finds nobody at the partner")
    roster.unlink()
    report = await ehr.check(tmp_path, group="", panel=Membership(roster=roster))
    assert "beside partner.yaml" in remedy(report, f"{roster} cannot be read")


async def test_the_schedule_is_told(tmp_path):
    always = Window(frozenset(range(7)), timedelta(), timedelta(days=1))
    report = await Ehr().check(tmp_path, schedule=Schedule("America/Chicago", timedelta(minutes=5), timedelta(days=7)))
    assert found(report, Level.OK)[0].startswith("Schedule: changes every 5 min, everything every 7 days; next 20")
    today = Window(frozenset({datetime.now(UTC).weekday()}), always.start, always.end)
    report = await Ehr().check(tmp_path, schedule=Schedule("UTC", maintenance=(today,)))
    assert found(report, Level.CANNOT)[0].startswith(
        "It is maintained now, so what follows may fail; nothing is asked of it until"
    )


async def test_how_the_hub_is_registered_for_launches_is_told(tmp_path):
    report = await Ehr().check(tmp_path, launch=Registration("the-app"))
    told = "May launch the hub as the-app: registered there with https://hub.example/launch and"
    assert f"{told} https://hub.example/launch/callback/north-clinic" in found(report, Level.OK)
