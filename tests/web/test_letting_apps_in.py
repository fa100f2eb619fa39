"""An app asks for access: the person signs in, chooses a patient where one is needed, and decides."""

import re
from html import unescape
from time import time as now
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from fhircm.access.audit import audit_event
from fhircm.fhir.validation import check_tree
from fhircm.store.credentials import Credentials
from fhircm.store.resources import Put

from .conftest import APP, BASE, Browser, login, quick


def shown(page):
    """The text of a page without its marks."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page.text)))


def answered(answer):
    """What an app is told."""
    assert answer.status_code == 303, answer.text
    parts = urlsplit(answer.headers["location"])
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == "https://app.example/back"
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


async def everybody_s(hub, *names):
    """These people see every patient."""
    logins = hub.state.parts.logins
    for name in names:
        await logins.set_roles((await logins.by_username(name)).id, ["custodian"])


@pytest.fixture
async def everything(hub):
    await everybody_s(hub, "cleo")


async def chosen(browser, path, patient="ada"):
    answer = await browser.send_form(f"{path}/patient", {"patient": patient}, await browser.get(path))
    assert answer.headers["location"] == path
    return await browser.get(path)


async def test_from_the_app_through_sign_in_and_choice_and_consent_back_with_a_code(everything, browser, ask, grants):
    path = await ask()
    answer = await browser.get(path)
    assert answer.headers["location"] == f"/signin?next={path.replace('/', '%2F')}"
    page = await browser.get(answer.headers["location"])
    assert "Growth charts" in page.text
    answer = await browser.send_form("/signin", {"username": "cleo", "password": "three calm herons", "next": path}, page)
    assert answer.headers["location"] == path
    consent = await chosen(browser, path)
    told = shown(consent)
    assert "Give Growth charts access?" in told
    assert "Published by Riverbend Clinic" in told
    assert "You go on to app.example" in told
    assert "For Ada Abbott born 17 May 1948 · female · MRN-1" in told
    assert "See measurements and test results" in told
    fields = {"decision": "allow", "scope": ["patient/Observation.rs"]}
    code = answered(await browser.send_form(f"{path}/decision", fields, consent))
    assert code["state"] == "state-of-the-app"
    assert code["iss"] == BASE
    used = await grants.use_code(code["code"], 0)
    assert used.grant.context["patient"] == "ada"
    assert used.grant.context["user"] == "Practitioner/cleo"
    assert set(used.grant.scope.split()) == {"launch/patient", "patient/Observation.rs", "openid"}
    assert (await browser.get(path)).status_code == 410  # decided once


async def test_what_was_agreed_to_is_not_asked_again_until_it_is_taken_back(everything, browser, ask, parts):
    await browser.sign_in()
    scope = "user/Observation.rs user/Patient.rs openid"
    first = await ask(scope)
    fields = {"decision": "allow", "scope": ["user/Observation.rs", "user/Patient.rs"]}
    answered(await browser.send_form(f"{first}/decision", fields, await browser.get(first)))
    assert "code" in answered(await browser.get(await ask(scope)))
    assert "code" in answered(await browser.get(await ask("user/Patient.rs")))
    more = await browser.get(await ask(scope + " user/Condition.rs"))
    assert (more.status_code, "See health problems" in more.text) == (200, True)
    again = await browser.get(await ask(scope, prompt="consent"))
    assert again.status_code == 200
    account = await browser.get("/account")
    assert "Growth charts" in account.text
    answer = await browser.send_form("/account/apps", {"client": "growth"}, account)
    assert answer.headers["location"] == "/account?done=app"
    assert "There are none" in (await browser.get("/account")).text
    assert (await browser.get(await ask(scope))).status_code == 200


async def test_a_permission_that_was_unticked_is_not_granted_and_asked_for_again(everything, browser, ask, grants):
    await browser.sign_in()
    scope = "user/Observation.rs user/Patient.rs offline_access openid"
    path = await ask(scope)
    page = await browser.get(path)
    assert page.text.count('type="checkbox"') == 3  # who signed in is always told
    code = answered(await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "user/Patient.rs"}, page))
    assert (await grants.use_code(code["code"], 0)).grant.scope == "user/Patient.rs openid"
    assert (await browser.get(await ask(scope))).status_code == 200


async def test_nothing_is_granted_that_was_not_asked_for(everything, browser, ask, grants):
    await browser.sign_in()
    path = await ask("user/Patient.rs openid")
    fields = {"decision": "allow", "scope": ["user/Patient.rs", "user/*.cruds", "system/*.cruds", "offline_access"]}
    code = answered(await browser.send_form(f"{path}/decision", fields, await browser.get(path)))
    assert (await grants.use_code(code["code"], 0)).grant.scope == "user/Patient.rs openid"


async def test_to_untick_everything_is_told_and_granted_to_nobody(everything, browser, ask):
    await browser.sign_in()
    path = await ask("user/Patient.rs openid")
    answer = await browser.send_form(f"{path}/decision", {"decision": "allow"}, await browser.get(path))
    assert answer.status_code == 422
    assert 'id="error-scope"' in answer.text
    assert 'aria-describedby="error-scope"' in answer.text
    assert " checked" not in answer.text


async def test_an_app_that_is_not_let_in_is_told_so(everything, browser, ask):
    await browser.sign_in()
    path = await ask("user/Patient.rs")
    told = answered(await browser.send_form(f"{path}/decision", {"decision": "refuse"}, await browser.get(path)))
    assert told["error"] == "access_denied"
    assert "code" not in told


@pytest.mark.parametrize(
    ("signed_in", "scope", "error"),
    [
        (False, "user/Patient.rs", "login_required"),
        (True, "launch/patient patient/Patient.rs", "interaction_required"),
        (True, "user/Patient.rs", "consent_required"),
    ],
)
async def test_an_app_that_forbids_pages_is_answered_without_any(everything, browser, ask, signed_in, scope, error):
    if signed_in:
        await browser.sign_in()
    assert answered(await browser.get(await ask(scope, prompt="none")))["error"] == error


async def test_an_app_that_asks_for_a_fresh_sign_in_gets_one(everything, browser, ask, time):
    time.now -= 10
    await browser.sign_in()
    time.now += 10
    path = await ask("user/Patient.rs", prompt="login")
    to = (await browser.get(path)).headers["location"]
    assert to.startswith("/signin")
    time.now = now() + 1
    page = await browser.get(to)
    assert page.status_code == 200  # not passed over, though somebody is signed in
    await browser.send_form("/signin", {"username": "cleo", "password": "three calm herons", "next": path}, page)
    assert "Give Growth charts access?" in shown(await browser.get(path))


def care_team(status="active"):
    return {
        "resourceType": "CareTeam",
        "id": "team",
        "status": status,
        "subject": {"reference": "Patient/ada"},
        "participant": [{"member": {"reference": "Practitioner/cleo"}}],
    }


async def test_only_patients_whom_the_person_may_see_are_found_and_can_be_chosen(hub, browser, ask):
    await browser.sign_in()
    path = await ask()
    assert "There is no patient whom you may see" in (await browser.get(path)).text
    await hub.state.store.transact([Put(check_tree(care_team()))], origin="test")
    page = await browser.get(path)
    assert "Ada Abbott" in page.text
    assert "Bo Berg" not in page.text
    found = await browser.send_form(f"{path}/search", {"name": "Berg"}, page)
    nobody = await browser.send_form(f"{path}/search", {"name": "Nobody at all"}, page)
    assert found.text.replace('value="Berg"', "") == nobody.text.replace('value="Nobody at all"', "")
    refused = [await browser.send_form(f"{path}/patient", {"patient": id}, page) for id in ("bo", "nobody", "../ada", "")]
    assert {(answer.status_code, answer.text) for answer in refused} == {(404, refused[0].text)}
    assert "Choose a patient" in (await browser.get(path)).text
    assert "Ada Abbott" in (await chosen(browser, path)).text


async def test_a_patient_whom_the_person_may_not_see_any_more_is_not_handed_out(hub, browser, ask):
    await hub.state.store.transact([Put(check_tree(care_team()))], origin="test")
    await browser.sign_in()
    path = await ask()
    consent = await chosen(browser, path)
    await hub.state.store.transact([Put(check_tree(care_team("inactive")))], origin="test")
    fields = {"decision": "allow", "scope": "patient/Observation.rs"}
    assert (await browser.send_form(f"{path}/decision", fields, consent)).status_code == 404


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"name": "abb"}, ["Ada Abbott"]),
        ({"birthdate": "1948-05-17"}, ["Ada Abbott", "Cy Carver, Jr."]),
        ({"name": "cy", "birthdate": "1948-05-17"}, ["Cy Carver, Jr."]),
        ({"name": "Carver, Jr."}, ["Cy Carver, Jr."]),
        ({"identifier": "MRN-2"}, ["Bo Berg"]),
        ({"identifier": "urn:mrn|MRN-2"}, ["Bo Berg"]),
        ({"name": "zz"}, []),
        ({"name": "a,b"}, []),
    ],
)
async def test_patients_are_found_by_name_birth_date_and_number(everything, browser, ask, asked, found):
    await browser.sign_in()
    path = await ask()
    page = await browser.send_form(f"{path}/search", asked, await browser.get(path))
    assert page.status_code == 200
    assert [
        unescape(name) for name in re.findall(r'<strong class="wrap">([^<]+)</strong> <span class="facts', page.text)
    ] == found
    assert page.request.url.query == b""
    assert ("Nobody whom you may see" in page.text) == (not found)


async def test_a_birth_date_that_is_none_is_told_at_its_field(everything, browser, ask):
    await browser.sign_in()
    path = await ask()
    page = await browser.send_form(f"{path}/search", {"birthdate": "yesterday"}, await browser.get(path))
    assert page.status_code == 422
    assert 'aria-describedby="error-birthdate"' in page.text
    assert 'value="yesterday"' in page.text


async def test_long_lists_of_patients_are_paged_without_a_name_in_an_address(hub, everything, browser, ask):
    many = [
        {"resourceType": "Patient", "id": f"p{n:02}", "name": [{"family": f"Xylander{n:02}"}], "birthDate": "1960-01-01"}
        for n in range(23)
    ]
    await hub.state.store.transact([Put(check_tree(tree)) for tree in many], origin="test")
    await browser.sign_in()
    path = await ask()
    page = await browser.send_form(f"{path}/search", {"name": "Xylander"}, await browser.get(path))
    names = []
    for _ in range(3):
        names += re.findall(r"Xylander\d\d", "".join(re.findall(r"<strong class=\"wrap\">[^<]+</strong> <span", page.text)))
        onward = re.search(r'name="page" value="([^"]+)"', page.text)
        if onward:
            page = await browser.send_form(f"{path}/search", {"name": "Xylander", "page": onward[1]}, page)
    assert names == [f"Xylander{n:02}" for n in range(23)]
    made_up = await browser.send_form(f"{path}/search", {"name": "Xylander", "page": "bm90IG91cnM="}, page)
    assert made_up.status_code == 400


async def test_a_patient_is_asked_about_the_own_record_only(browser, ask, grants):
    await browser.sign_in("ada")
    path = await ask()
    page = await browser.get(path)
    assert "In your own health record" in page.text
    fields = {"decision": "allow", "scope": "patient/Observation.rs"}
    code = answered(await browser.send_form(f"{path}/decision", fields, page))
    assert (await grants.use_code(code["code"], 0)).grant.context["patient"] == "ada"


async def test_a_role_without_patients_is_told_so(hub, browser, ask):
    await hub.state.parts.logins.set_roles((await hub.state.parts.logins.by_username("cleo")).id, ["administrator"])
    await browser.sign_in()
    page = await browser.get(await ask())
    assert (page.status_code, "You may not choose patients" in page.text) == (403, True)


async def test_an_app_that_was_opened_for_somebody_else_is_not_let_in(hub, everything, browser, ask):
    parts = hub.state.parts
    launches = hub.state.authorization.launches
    custos = await parts.logins.by_username("custos")
    launch = await launches.create("growth", custos.id, {"patient": "bo"})
    await browser.sign_in()
    path = await ask("launch patient/Patient.rs", launch=launch)
    page = await browser.get(path)
    assert (page.status_code, "Opened for somebody else" in page.text) == (403, True)
    forged = await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "patient/Patient.rs"}, page)
    assert forged.status_code == 403


async def test_a_launch_with_a_patient_asks_for_no_other(hub, everything, browser, ask, grants):
    cleo = await hub.state.parts.logins.by_username("cleo")
    launch = await hub.state.authorization.launches.create("growth", cleo.id, {"patient": "bo"})
    await browser.sign_in()
    path = await ask("launch patient/Patient.rs", launch=launch)
    page = await browser.get(path)
    assert "Bo Berg" in page.text
    assert "Choose another patient" not in page.text
    await browser.send_form(f"{path}/patient", {"patient": "ada"}, page)
    code = answered(await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "patient/Patient.rs"}, page))
    assert (await grants.use_code(code["code"], 0)).grant.context["patient"] == "bo"


async def test_another_patient_can_be_chosen_before_deciding(everything, browser, ask):
    await browser.sign_in()
    path = await ask()
    consent = await chosen(browser, path)
    answer = await browser.send_form(f"{path}/decision", {"decision": "other"}, consent)
    assert "Choose a patient" in (await browser.get(answer.headers["location"])).text


async def test_a_visit_of_the_patient_is_chosen_where_the_app_needs_one(hub, everything, browser, ask, grants):
    visits = [
        {
            "resourceType": "Encounter",
            "id": id,
            "status": "finished",
            "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP", "display": "inpatient"},
            "subject": {"reference": f"Patient/{patient}"},
            "period": {"start": "2026-01-05", "end": "2026-01-09"},
        }
        for id, patient in (("stay", "ada"), ("other", "bo"))
    ]
    await hub.state.store.transact([Put(check_tree(tree)) for tree in visits], origin="test")
    await browser.sign_in()
    path = await ask("launch/patient launch/encounter patient/Encounter.rs")
    page = await chosen(browser, path)
    assert "Choose a visit" in page.text
    assert "5 January 2026 to 9 January 2026" in page.text
    assert 'value="other"' not in page.text
    assert (await browser.send_form(f"{path}/encounter", {"encounter": "other"}, page)).status_code == 400
    await browser.send_form(f"{path}/encounter", {"encounter": "stay"}, page)
    fields = {"decision": "allow", "scope": "patient/Encounter.rs"}
    code = answered(await browser.send_form(f"{path}/decision", fields, await browser.get(path)))
    context = (await grants.use_code(code["code"], 0)).grant.context
    assert (context["patient"], context["encounter"]) == ("ada", "stay")


HOSTILE = '"><script>alert(1)</script>{{7*7}}<img src=x onerror=alert(1)>'


async def test_the_name_of_an_app_is_text_and_nothing_else(hub, everything, browser, ask):
    registration = APP | {"client_name": HOSTILE, "organization": None}
    await Credentials(hub.state.store.database).add_client("hostile", registration)
    path = await ask("user/Patient.rs", client="hostile")
    first = await browser.get((await browser.get(path)).headers["location"])
    await browser.sign_in()
    consent = await browser.get(path)
    fields = {"decision": "allow", "scope": "user/Patient.rs"}
    answered(await browser.send_form(f"{path}/decision", fields, consent))
    for page in (first, consent, await browser.get("/account")):
        assert page.status_code == 200
        assert "<script" not in page.text
        assert "<img" not in page.text
        assert HOSTILE in unescape(page.text)
    assert "Its publisher is not known to Riverbend Care" in shown(consent)


async def test_an_app_of_which_anybody_can_pose_as_is_asked_about_each_time(hub, everything, browser, ask):
    registration = APP | {"redirect_uris": ["com.example.growth:/back"]}
    await Credentials(hub.state.store.database).add_client("native", registration)
    await browser.sign_in()
    scope = "user/Patient.rs"
    path = await ask(scope, client="native", redirect_uri="com.example.growth:/back")
    page = await browser.get(path)
    assert "form-action 'self' com.example.growth:;" in page.headers["content-security-policy"]
    answer = await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": scope}, page)
    assert answer.headers["location"].startswith("com.example.growth:/back?code=")
    again = await browser.get(await ask(scope, client="native", redirect_uri="com.example.growth:/back"))
    assert again.status_code == 200


async def test_forms_may_lead_to_the_app_that_asks_and_nowhere_else(everything, browser, ask):
    path = await ask("user/Patient.rs")
    page = await browser.get((await browser.get(path)).headers["location"])
    assert "form-action 'self' https://app.example;" in page.headers["content-security-policy"]
    plain = await browser.get("/signin")
    assert "form-action 'self';" in plain.headers["content-security-policy"]


async def test_the_request_of_another_person_s_session_is_not_decided_by_a_forged_form(hub, everything, browser, ask):
    await browser.sign_in()
    path = await ask("user/Patient.rs")
    async with Browser(hub) as attacker:
        await attacker.sign_in("ada")
        page = await attacker.get("/account")
        forged = await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "user/Patient.rs"}, page)
        assert forged.status_code == 403


async def test_a_form_that_was_sent_after_the_session_ended_leads_to_sign_in_and_back(everything, browser, ask, time):
    await browser.sign_in()
    path = await ask("user/Patient.rs")
    page = await browser.get(path)
    time.now += 31 * 60
    answer = await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "user/Patient.rs"}, page)
    assert answer.headers["location"] == f"/signin?next={path.replace('/', '%2F')}"


async def test_what_an_app_may_do_ends_in_the_moment_it_is_taken_back(hub, everything, browser, ask, grants):
    await browser.sign_in()
    path = await ask("user/Patient.rs")
    code = answered(
        await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "user/Patient.rs"}, await browser.get(path))
    )
    used = await grants.use_code(code["code"], 0)
    token = await hub.state.parts.bearer.issue("growth", "user/Patient.rs", grant_id=used.grant.id)
    headers = {"Authorization": f"Bearer {token}"}
    assert (await browser.get("/fhir/Patient/ada", headers=headers)).status_code == 200
    await browser.send_form("/account/apps", {"client": "growth"}, await browser.get("/account"))
    assert (await browser.get("/fhir/Patient/ada", headers=headers)).status_code == 401


async def test_nobody_takes_back_what_somebody_else_allowed(hub, everything, browser, ask, grants):
    await hub.state.parts.logins.add(login("dora"), await quick().hash("three calm herons"))
    await browser.sign_in()
    path = await ask("user/Patient.rs")
    answered(
        await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "user/Patient.rs"}, await browser.get(path))
    )
    async with Browser(hub) as other:
        await other.sign_in("dora")
        await other.send_form("/account/apps", {"client": "growth"}, await other.get("/account"))
    assert "Growth charts" in (await browser.get("/account")).text


@pytest.mark.parametrize(
    ("scope", "sentence"),
    [
        ("patient/*.rs", "See everything that is recorded"),
        ("patient/*.read", "See everything that is recorded"),
        ("patient/Observation.cruds", "See, add, change and delete measurements and test results"),
        ("patient/Task.cu", "Add and change tasks of coordination"),
        ("patient/Goal.write", "Add, change and delete goals of care"),
        (
            "patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory",
            "See measurements and test results (only laboratory results)",
        ),
        ("patient/Observation.rs?category=laboratory,vital-signs", "(only laboratory results or vital signs"),
        ("patient/Condition.rs?code=http://snomed.info/sct|38341003", "(only those whose code is 38341003)"),
    ],
)
def test_each_scope_is_a_sentence(scope, sentence):
    from fhircm.web.scope_words import told

    (one,) = told([scope], "1 May 2027").patient
    assert sentence in one.sentence
    assert one.scope == scope


def test_how_long_an_app_goes_on_is_told_with_its_day():
    from fhircm.web.scope_words import told

    words = told(["offline_access", "openid", "fhirUser", "unknown"], "1 May 2027")
    assert [one.sentence for one in words.lasting] == [
        "Go on working when you are not there, until 1 May 2027 or until you take it back"
    ]
    assert len(words.always) == 2


def test_every_resource_type_has_words():
    import yaml

    from fhircm.fhir.artefacts import folder
    from fhircm.fhir.definitions import definitions

    words = yaml.safe_load((folder("profiles") / "scope-words" / "en.yaml").read_text())
    patients = {type for type in definitions().resource_types if type in words["things"]}
    assert set(words["things"]) <= set(definitions().resource_types)
    assert set(words["narrowed"]) <= set(words["things"])
    assert len(patients) >= 90


async def test_logs_and_addresses_tell_nothing_of_patients_passwords_and_codes(hub, everything, browser, ask, caplog):
    caplog.set_level("DEBUG")
    visited = []

    async def seen(request):
        visited.append(str(request.url))

    browser.event_hooks["request"].append(seen)
    path = await ask()
    page = await browser.get((await browser.get(path)).headers["location"])
    await browser.send_form("/signin", {"username": "cleo", "password": "not my password", "next": path}, page)
    await browser.send_form("/signin", {"username": "cleo", "password": "three calm herons", "next": path}, page)
    page = await browser.send_form(f"{path}/search", {"name": "Abbott", "birthdate": "1948-05-17"}, await browser.get(path))
    assert "Ada Abbott" in page.text
    consent = await chosen(browser, path)
    code = answered(
        await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "patient/Observation.rs"}, consent)
    )
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("fhircm"))
    for secret in ("Abbott", "1948", "MRN-1", "three calm herons", "not my password", code["code"], browser.cookies["fhircm"]):
        assert secret not in ours
        assert secret not in "\n".join(visited)


async def test_what_happens_on_the_pages_is_written_down_with_whom_it_showed(hub, everything, browser, ask):
    events = []
    hub.state.journal = SimpleNamespace(record=events.append)
    cleo = await hub.state.parts.logins.by_username("cleo")
    path = await ask()
    await browser.sign_in("a password typed into the wrong field", "x")
    for password in ("not my password", "three calm herons"):
        await browser.sign_in(password=password, onward=path)
    consent = await chosen(browser, path)
    answered(await browser.send_form(f"{path}/decision", {"decision": "allow", "scope": "patient/Observation.rs"}, consent))
    await browser.send_form("/account/apps", {"client": "growth"}, await browser.get("/account"))
    await browser.send_form("/signout", {}, await browser.get("/account"))
    told = [(one.code, one.status, one.login) for one in events]
    assert told[:3] == [("!login", 401, None), ("!login", 401, cleo.id), ("!login", 200, cleo.id)]
    (listed,) = [one for one in events if one.code == "search-type"]
    assert {"Patient/ada/1", "Patient/bo/1", "Patient/cy/1"} == set(listed.touched)
    assert (listed.user, listed.target) == ("Practitioner/cleo", "Patient")
    assert [one.touched for one in events if one.code == "read"] == [("Patient/ada/1",)] * 3  # chosen, shown, handed over
    (consented,) = [one for one in events if one.code == "!consent"]
    assert (consented.client, consented.touched) == ("growth", ("Patient/ada",))
    assert [code for code, _, _ in told[-2:]] == ["!revoke", "!logout"]
    assert "wrong field" not in repr(events)
    for one in events:
        assert check_tree(audit_event(one, ["ada"] if one.touched else [], f"{BASE}/fhir")).type == "AuditEvent"


async def test_nothing_is_shown_that_cannot_be_written_down(hub, everything, browser, ask):
    from fhircm.access.audit_journal import AuditUnavailable

    await browser.sign_in()
    path = await ask()

    def full(event):
        raise AuditUnavailable("The journal is full")

    hub.state.journal = SimpleNamespace(record=full)
    page = await browser.get(path)
    assert (page.status_code, "Ada Abbott" in page.text) == (503, False)
