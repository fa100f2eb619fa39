"""Launched by an EHR into the hub's pages: who is let in, what they see, and what does not work for anybody else."""

import pytest
import respx

from fhircm.app import AuditConfig
from fhircm.exchange.mapping import hub_id
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put

from ..launching_ehr import LaunchingEhr, query
from .conftest import BASE, Browser, populate, running

COORDINATOR = "Organization/clinic"


@pytest.fixture
def database_url(request):
    """SQLite, unless a test names others: what is kept of a launch is kept as every sign-in is, which others try on both."""
    return request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")


@pytest.fixture
def network():
    with respx.mock(assert_all_called=False) as mocked:
        yield mocked


@pytest.fixture
def ehr(network):
    one = LaunchingEhr("north", BASE)
    one.mount(network)
    return one


@pytest.fixture
def other(network):
    one = LaunchingEhr("south", BASE)
    one.mount(network)
    return one


@pytest.fixture
def hub_of(database_url, clock, tmp_path, time):
    def started(*partners, **more):
        return running(database_url, clock, tmp_path, time, partners=partners, coordinator=COORDINATOR, **more)

    return started


@pytest.fixture
async def hub(hub_of, ehr, other):
    async with hub_of(ehr.partner(), other.partner(roles=frozenset())) as app:
        await populate(app.state.store)
        await copied(app.state.store, ehr, "p-7", "Lake", cared_for_by="p1")
        await copied(app.state.store, ehr, "p-8", "Marsh", cared_for_by="p1")
        await copied(app.state.store, ehr, "p-9", "Pond", cared_for_by="p2")
        yield app


@pytest.fixture
async def browser(hub):
    async with Browser(hub) as one:
        yield one


async def copied(store, ehr, id, family, cared_for_by):
    """What a pull left at the hub: a patient with a plan, a goal and a Task, and the practitioner of the care team."""
    patient, who = hub_id(ehr.base_url, f"Patient/{id}"), hub_id(ehr.base_url, f"Practitioner/{cared_for_by}")
    subject = {"reference": f"Patient/{patient}"}
    trees = [
        {"resourceType": "Practitioner", "id": who, "name": [{"text": "Dr. Wren Heron"}]},
        {"resourceType": "PractitionerRole", "id": f"role-{id}", "practitioner": {"reference": f"Practitioner/{who}"}},
        {"resourceType": "Patient", "id": patient, "name": [{"family": family, "given": ["Flo"]}], "birthDate": "1950-02-03"},
        {
            "resourceType": "CareTeam",
            "id": f"team-{id}",
            "status": "active",
            "subject": subject,
            "participant": [
                {"role": [{"text": "Primary care"}], "member": {"reference": f"Practitioner/{who}", "display": "Dr. Heron"}},
                {"role": [{"text": "Case manager"}], "member": {"reference": f"PractitionerRole/role-{id}"}},
            ],
        },
        {
            "resourceType": "CarePlan",
            "id": f"plan-{id}",
            "status": "active",
            "intent": "plan",
            "subject": subject,
            "title": "Home by May",
        },
        {
            "resourceType": "Goal",
            "id": f"goal-{id}",
            "lifecycleStatus": "active",
            "subject": subject,
            "description": {"text": "Walk a mile"},
        },
        {
            "resourceType": "Task",
            "id": f"task-{id}",
            "status": "ready",
            "intent": "order",
            "code": {"text": "Call the patient"},
            "for": subject,
            "owner": {"reference": f"Practitioner/{who}"},
            "restriction": {"period": {"end": "2027-01-04"}},
        },
    ]
    await store.transact([Put(check_tree(tree)) for tree in trees], origin="test")


async def away(browser, ehr, user="Practitioner/p1", patient="p-7", **context):
    """From the EHR to its authorization server: where the browser is sent back to."""
    launch = ehr.door.launch(user, patient, **context)
    leaving = await browser.get("/launch", params={"iss": ehr.base_url, "launch": launch})
    assert leaving.status_code == 303, leaving.text
    return await ehr.authorized(leaving.headers["location"])


async def through(browser, ehr, *who, **context):
    """The whole way, and the page where it ends."""
    back = await browser.get(await away(browser, ehr, *who, **context))
    return back if back.status_code != 303 else await browser.get(back.headers["location"])


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
async def test_a_launch_ends_on_the_page_of_the_patient_who_is_open_in_the_ehr(hub, browser, ehr):
    back = await browser.get(await away(browser, ehr))
    id = hub_id(ehr.base_url, "Patient/p-7")
    assert back.headers["location"] == f"/patients/{id}"
    page = await browser.get(back.headers["location"])
    for text in (
        "Flo Lake",
        "born 3 February 1950",
        "Call the patient",
        "Walk a mile",
        "Home by May",
        "Dr. Heron",
        "Primary care",
        "Case manager",
    ):
        assert text in page.text
    [login] = [one for one in await hub.state.parts.logins.all() if one.issuer == "partner:north"]
    assert (login.name, login.roles, login.username) == ("Dr. Wren Heron", {"clinician"}, None)
    assert login.fhir_user == f"Practitioner/{hub_id(ehr.base_url, 'Practitioner/p1')}"
    assert login.organization.startswith("Organization/")
    await through(browser, ehr)
    assert len([one for one in await hub.state.parts.logins.all() if one.issuer == "partner:north"]) == 1


async def test_a_session_from_a_launch_sees_the_patient_who_is_open_and_no_other(hub, browser, ehr):
    await through(browser, ehr)
    page = await browser.get(f"/patients/{hub_id(ehr.base_url, 'Patient/p-8')}")  # whom this clinician cares for, too
    assert page.status_code == 409
    assert "Marsh" not in page.text
    assert "Flo Marsh" not in (await browser.get("/worklist")).text
    assert "Flo Lake" in (await browser.get("/worklist")).text


@pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
async def test_the_next_launch_switches_to_its_patient_in_every_tab(hub, browser, ehr):
    first = (await browser.get(await away(browser, ehr))).headers["location"]
    session = browser.cookies["fhircm"]
    assert "Flo Marsh" in (await through(browser, ehr, "Practitioner/p1", "p-8")).text
    assert browser.cookies["fhircm"] != session
    stale = await browser.get(first)
    assert stale.status_code == 409
    assert "Flo Lake" not in stale.text
    async with Browser(hub) as thief:
        thief.cookies.set("fhircm", session)
        assert (await thief.get(first)).headers["location"].startswith("/signin")


async def test_two_launches_under_way_at_once_both_arrive(hub, browser, ehr):
    one = await away(browser, ehr)
    two = await away(browser, ehr, "Practitioner/p1", "p-8")
    assert (await browser.get(two)).headers["location"].endswith(hub_id(ehr.base_url, "Patient/p-8"))
    assert (await browser.get(one)).headers["location"].endswith(hub_id(ehr.base_url, "Patient/p-7"))
    assert not [name for name in browser.cookies if name.startswith("fhircm-launch")]


async def test_a_standalone_launch_begins_here(hub, browser, ehr):
    chooser = await browser.get("/launch")
    assert 'href="/launch?partner=north"' in chooser.text
    ehr.door.standalone = {"user": "Practitioner/p1"}
    leaving = await browser.get("/launch", params={"partner": "north"})
    back = await browser.get(await ehr.authorized(leaving.headers["location"]))
    assert back.headers["location"] == "/account"
    assert "Flo Marsh" in (await browser.get("/worklist")).text


async def test_the_page_does_not_name_the_patient_where_the_ehr_does(hub, browser, ehr):
    page = await through(browser, ehr, need_patient_banner=False)
    assert "Call the patient" in page.text
    assert "Flo Lake" not in page.text


@pytest.mark.parametrize(
    "asked",
    [
        {"iss": "https://evil.example/fhir", "launch": "x"},
        {"iss": "https://north.example/fhir/../evil", "launch": "x"},
        {"iss": "http://169.254.169.254/latest", "launch": "x"},
        {"iss": "https://north.example", "launch": "x"},
        {"partner": "nobody"},
    ],
)
async def test_an_ehr_that_is_not_known_is_told_so_and_never_asked_anything(hub, browser, ehr, network, asked):
    page = await browser.get("/launch", params=asked)
    assert page.status_code == 400
    assert "This EHR is not known here" in page.text
    assert not network.calls
    assert not ehr.asked


async def test_a_launch_without_its_context_is_told(hub, browser, ehr):
    assert "not complete" in (await browser.get("/launch", params={"iss": ehr.base_url})).text
    assert "not complete" in (await browser.get("/launch", params={"iss": ehr.base_url, "launch": "x" * 5000})).text


async def test_an_answer_is_good_once_in_the_browser_that_asked(hub, browser, ehr):
    answer = await away(browser, ehr)
    async with Browser(hub) as victim:
        page = await victim.get(answer)  # somebody else's sign-in, put under the victim's feet
        assert "begun elsewhere" in page.text
        assert (await victim.get("/account")).status_code == 303
    assert (await browser.get(answer)).status_code == 303
    assert "begun elsewhere" in (await browser.get(answer)).text


async def test_a_launch_that_took_too_long_must_be_begun_again(hub, browser, ehr, time):
    answer = await away(browser, ehr)
    time.now += 601
    assert "too long ago" in (await browser.get(answer)).text


async def test_an_answer_of_one_partner_is_not_taken_for_that_of_another(hub, browser, ehr, other):
    answer = await away(browser, ehr)
    mixed = answer.replace("/launch/callback/north", "/launch/callback/south")
    assert "begun elsewhere" in (await browser.get(mixed)).text
    # A partner that says it is the other one in its answer, with a code that it was given.
    answer = await away(browser, other)
    page = await browser.get(answer.replace("https%3A%2F%2Fsouth.example", "https%3A%2F%2Fnorth.example"))
    assert page.status_code == 401
    assert (await browser.get("/account")).status_code == 303


@pytest.mark.parametrize("lie", [{"nonce": "x"}, {"exp": 1}, {"aud": "another"}, {"iss": "https://south.example"}])
async def test_a_word_that_cannot_be_believed_signs_nobody_in(hub, browser, ehr, lie):
    ehr.lie = lie
    page = await through(browser, ehr)
    assert page.status_code == 401
    assert "did not let you in" in page.text
    assert (await browser.get("/account")).status_code == 303
    assert not [one for one in await hub.state.parts.logins.all() if one.issuer]


async def test_a_code_that_was_taken_elsewhere_is_worth_nothing(hub, browser, ehr):
    stolen = query(await away(browser, ehr))["code"]
    async with Browser(hub) as thief:
        mine = await away(thief, ehr, "Practitioner/p2", "p-9")
        page = await thief.get(mine.replace(query(mine)["code"], stolen))
        assert page.status_code == 401


async def test_where_no_role_is_given_an_administrator_must_and_is_named_who(hub, browser, other):
    page = await through(browser, other, "Practitioner/x", "p-1")
    assert page.status_code == 403
    assert "nobody gave you a role yet" in page.text
    [login] = [one for one in await hub.state.parts.logins.all() if one.issuer == "partner:south"]
    assert login.id in page.text
    assert (await browser.get("/account")).status_code == 303
    await hub.state.parts.logins.set_roles(login.id, ["nurse"])
    assert (await through(browser, other, "Practitioner/x", "p-1")).status_code == 404  # in, though the patient is not here
    await hub.state.parts.logins.set_roles(login.id, [])
    assert (await through(browser, other, "Practitioner/x", "p-1")).status_code == 403
    await hub.state.parts.logins.set_disabled(login.id, True)
    assert "may not sign in here" in (await through(browser, other, "Practitioner/x", "p-1")).text


async def test_who_is_no_practitioner_of_the_ehr_is_not_let_in(hub, browser, ehr):
    ehr.lie = {"fhirUser": "Patient/p-7"}
    page = await through(browser, ehr)
    assert page.status_code == 403
    assert "which practitioner you are" in page.text


async def test_a_patient_whom_the_person_may_not_see_stays_closed(hub, browser, ehr):
    page = await through(browser, ehr, "Practitioner/p1", "p-9")
    assert page.status_code == 404
    assert "This record is closed to you" in page.text
    assert "/emergency" in page.text
    assert "Pond" not in page.text


async def test_a_patient_who_is_not_copied_can_be_asked_for(hub, browser, ehr):
    page = await through(browser, ehr, "Practitioner/p1", "p-404")
    assert page.status_code == 404
    assert "This patient is not here yet" in page.text
    done = await browser.send_form("/launch/ask", {}, page)
    assert "The record is asked for" in done.text
    found = (await hub.state.store.search(parse_query("Task", [("owner", COORDINATOR)]))).matches
    assert ["Patient/p-404" in one.tree["reasonCode"]["text"] for one in found] == [True]


async def test_nothing_can_be_asked_for_without_a_launch(hub, browser):
    await browser.sign_in("cleo")
    assert "nothing to ask for" in (await browser.send_form("/launch/ask", {}, await browser.get("/account"))).text


async def test_a_launch_ends_the_session_before_it_and_a_link_to_one_does_not(hub, browser, ehr):
    await browser.sign_in("cleo")
    before = browser.cookies["fhircm"]
    answer = await away(browser, ehr)
    assert (await browser.get("/account")).status_code == 200  # somebody's link began a launch: nothing is lost
    await browser.get(answer)
    assert "Dr. Wren Heron" in (await browser.get("/account")).text
    async with Browser(hub) as again:
        again.cookies.set("fhircm", before)
        assert (await again.get("/account")).status_code == 303


async def test_an_ehr_that_does_not_answer_is_told(hub, browser, ehr):
    answer = await away(browser, ehr)
    ehr.down = True
    page = await browser.get(answer)
    assert page.status_code == 503
    assert "does not answer" in page.text
    async with Browser(hub) as later:
        assert "did not let you in" not in (await later.get("/launch", params={"partner": "south"})).text


async def test_the_cookie_of_a_launch_is_out_of_reach_of_scripts_and_other_sites(hub_of, ehr):
    async with hub_of(ehr.partner()) as app, Browser(app) as browser:
        leaving = await browser.get("/launch", params={"iss": ehr.base_url, "launch": ehr.door.launch("Practitioner/p1")})
        [cookie] = [value for value in leaving.headers.get_list("set-cookie") if "fhircm-launch" in value]
        for part in ("HttpOnly", "SameSite=lax", "Max-Age=600", "Path=/"):
            assert part in cookie
        assert leaving.headers["x-frame-options"] == "DENY"


async def test_a_patient_page_without_a_launch_follows_the_care_relationship(hub, browser, ehr):
    await browser.sign_in("cleo")
    page = await browser.get(f"/patients/{hub_id(ehr.base_url, 'Patient/p-7')}")
    assert page.status_code == 404
    assert "Lake" not in page.text
    async with Browser(hub) as custodian:
        await custodian.sign_in("custos")
        assert "Flo Lake" in (await custodian.get(f"/patients/{hub_id(ehr.base_url, 'Patient/p-7')}")).text


async def test_who_was_launched_for_whom_is_in_the_audit_and_no_token_is_anywhere(hub_of, ehr, tmp_path, caplog):
    caplog.set_level("DEBUG")
    async with hub_of(ehr.partner(), audit=AuditConfig(tmp_path / "audit", 10_000_000)) as app, Browser(app) as browser:
        await populate(app.state.store)
        await copied(app.state.store, ehr, "p-7", "Lake", cared_for_by="p1")
        answer = await away(browser, ehr)
        await browser.get((await browser.get(answer)).headers["location"])
        ehr.lie = {"nonce": "x"}
        await through(browser, ehr)
        app.state.journal.sync()
        told = "".join(path.read_text() for path in (tmp_path / "audit").rglob("*") if path.is_file())
    assert told.count("launch from north") == 2  # let in, and not let in
    assert hub_id(ehr.base_url, "Patient/p-7") in told
    secrets = [query(answer)["code"], query(answer)["state"], *ehr.door.sign_in._tokens]
    assert len(secrets) >= 3
    for secret in secrets:
        assert secret not in told
        assert not [line for line in caplog.messages if secret in line and "callback" not in line]
