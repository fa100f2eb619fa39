"""Order per patient, breakers, consents and dead letters: what waits, for whom, and why."""

import asyncio
from dataclasses import replace
from datetime import date, timedelta

import pytest

from fhircm.exchange import breaker
from fhircm.exchange.dead_letters import discard, letters, parked, replay
from fhircm.exchange.due import Standing, queue, standing
from fhircm.exchange.granted import allows
from fhircm.fhir.outcome import Invalid, NotFound

MESSAGES = {"message": [["message", "letter"]]}


async def known(world, act, *numbers):
    """Patients h<n> of the hospital who are c<n> at the clinic."""
    for number in numbers:
        await world.pulled(world.hospital, {"resourceType": "Patient", "id": f"h{number}", "name": [{"family": f"H{number}"}]})
        await world.pulled(world.clinic, {"resourceType": "Patient", "id": f"c{number}", "name": [{"family": f"H{number}"}]})
        await world.write(act.person(world, f"h{number}", f"c{number}"))


async def message(world, act, patient, text, **members):
    tree = {
        "resourceType": "Communication",
        "id": f"{patient}-{text}",
        "status": "completed",
        "subject": act.ref(act.at(world.hospital, f"Patient/{patient}")),
        "topic": {"text": text},
        "recipient": [act.ref(act.at(world.clinic, "Organization/riverbend"))],
        "payload": [{"contentString": text}],
        **members,
    }
    await world.write(tree)


def told(world, patient):
    """What the clinic has of a patient, in the order in which it came."""
    mine = [tree for tree in world.clinic.all("Communication") if tree["subject"]["reference"] == f"Patient/{patient}"]
    return [tree["topic"]["text"] for tree in mine]


@pytest.fixture
def clinic(clinic):
    clinic.partner = replace(clinic.partner, deliver=MESSAGES)
    return clinic


async def test_what_waits_keeps_back_the_same_patient_and_nobody_else(world, act):
    await known(world, act, 11, 12)
    await message(world, act, "h11", "first")
    await message(world, act, "h11", "second")
    await message(world, act, "h12", "other")
    world.clinic.fail("POST", "Communication", 500)
    slow = replace(world.clinic.partner, limits=replace(world.clinic.partner.limits, concurrency=1))
    world.clinic.partner = slow
    report = await world.push(world.clinic)
    assert (told(world, "c11"), told(world, "c12")) == ([], ["other"])
    assert report.waiting_until == world.clock() + timedelta(seconds=1)
    assert await standing(world.store, "clinic") == Standing(2, 1, world.clock().isoformat())
    before = len(world.clinic.log)
    await world.push(world.clinic)
    assert len(world.clinic.log) == before, "it waits"
    world.clock.advance(timedelta(seconds=2))
    await world.push(world.clinic)
    assert told(world, "c11") == ["first", "second"]
    assert await world.store.states(queue("clinic")) == {}


async def test_both_records_of_a_human_have_one_lane(world, act):
    await known(world, act, 11)
    await message(world, act, "h11", "first")
    await message(world, act, "h11", "second", id="other", subject=act.ref(act.at(world.clinic, "Patient/c11")))
    world.clinic.fail("POST", "Communication", 500)
    await world.push(world.clinic)
    assert told(world, "c11") == []


async def test_patients_are_told_side_by_side_within_the_limit(world, act):
    await known(world, act, *range(11, 19))
    for number in range(11, 19):
        await message(world, act, f"h{number}", "news")
    most = now = 0
    answer = world.clinic.answer

    async def slow(request):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return answer(request)

    world.clinic.answer = slow
    await world.push(world.clinic)
    assert sum(len(told(world, f"c{number}")) for number in range(11, 19)) == 8
    assert 1 < most <= world.clinic.partner.limits.concurrency


async def test_a_partner_that_is_down_is_probed_by_one_request(world, act):
    await known(world, act, *range(11, 19))
    for number in range(11, 19):
        await message(world, act, f"h{number}", "news")
    world.clinic.fail("POST", "*", "down", 100)
    await world.push(world.clinic)
    (whole,) = await breaker.state(world.store, "clinic")
    assert (whole.what, whole.until) == ("*", world.clock() + timedelta(seconds=5))
    before = len(world.clinic.log)
    for wait in (10, 20, 40):
        world.clock.advance(timedelta(seconds=wait + 1))
        await world.push(world.clinic)
        before += 1
        assert len(world.clinic.log) == before, "one probe, and no more"
        assert (await breaker.state(world.store, "clinic"))[0].until == world.clock() + timedelta(seconds=wait)
    world.clinic.faults.clear()
    world.clock.advance(timedelta(minutes=6))
    await world.push(world.clinic)
    assert await breaker.state(world.store, "clinic") == []
    assert sum(len(told(world, f"c{number}")) for number in range(11, 19)) == 8


async def test_one_type_that_always_fails_opens_only_its_own_breaker(world, act):
    world.clinic.partner = replace(world.clinic.partner, deliver={"message": [["message"], ["letter"]]})
    await known(world, act, *range(11, 19))
    for number in range(11, 19):
        await message(world, act, f"h{number}", "news")
    world.clinic.fail("POST", "Communication", 500, 100)
    await world.push(world.clinic)
    assert {one.what for one in await breaker.state(world.store, "clinic") if one.until} == {"Communication create"}
    refused = world.clinic.posts()["Communication"]
    assert refused < 8
    world.clock.advance(timedelta(seconds=4))
    await world.push(world.clinic)
    assert world.clinic.posts()["Communication"] == refused, "nothing of it is sent while its breaker is open"


async def test_breakers_outlive_the_process_and_a_clock_that_was_set_back(world):
    breakers = breaker.Breakers(world.store, "x", breaker.Policy(failures=2), world.clock)
    for _ in range(2):
        await breakers.failed("Task create", breaker.PartnerUnavailable("down"))
    other = breaker.Breakers(world.store, "x", breaker.Policy(), world.clock)
    await other.load()
    assert other.wait() is not None and not other.half_open
    world.clock.advance(timedelta(days=-1))
    assert other.wait() is None and other.half_open
    await other.answered("Task create")
    assert await breaker.state(world.store, "x") == []


def consent(act, world, *, permit=False, organization=None, id="consent", **provision):
    actor = [{"role": {"text": "r"}, "reference": act.ref(organization)}] if organization else None
    inside = {"type": "permit" if permit else "deny", **({"actor": actor} if actor else {}), **provision}
    return {
        "resourceType": "Consent",
        "id": id,
        "status": "active",
        "scope": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]},
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": act.ref(act.at(world.hospital, "Patient/h11")),
        "policyRule": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "OPTIN"}]},
        "provision": inside,
    }


@pytest.mark.parametrize("whose", ["Organization/riverbend", None, "hospital"])
async def test_a_consent_keeps_news_from_the_partner_that_it_names(world, act, whose):
    await known(world, act, 11)
    there = whose and act.at(
        world.hospital if whose == "hospital" else world.clinic, "Organization/lakeside" if whose == "hospital" else whose
    )
    await world.write(consent(act, world, organization=there))
    await message(world, act, "h11", "news")
    report = await world.push(world.clinic)
    if whose == "hospital":
        assert told(world, "c11") == ["news"]
        return
    assert told(world, "c11") == [] and report.undelivered == []
    ((key, row),) = (await letters(world.store, "clinic", "withheld")).items()
    assert report.withheld == [key] and "consent" in row["reason"]
    assert await world.tasks("undelivered") == [], "it is the patient's will, and no failure"
    await world.write({**consent(act, world, organization=there), "status": "inactive"})
    await world.push(world.clinic)
    assert told(world, "c11") == ["news"]
    assert await letters(world.store, "clinic") == {}


async def test_an_exception_lifts_a_denial(world, act):
    await known(world, act, 11)
    clinic = act.at(world.clinic, "Organization/riverbend")
    lifted = [{"type": "permit", "actor": [{"role": {"text": "r"}, "reference": act.ref(clinic)}]}]
    await world.write(consent(act, world, provision=lifted))
    await message(world, act, "h11", "news")
    await world.push(world.clinic)
    assert told(world, "c11") == ["news"]


async def test_a_dead_letter_tells_why_and_when_and_can_be_let_go(world, act):
    await known(world, act, 11)
    await message(world, act, "h11", "news")
    world.clinic.fail("POST", "*", "down", 2)
    start = world.clock()
    for _ in range(2):
        await world.push(world.clinic, attempts=2)
        world.clock.advance(timedelta(minutes=6))
    ((key, row),) = (await letters(world.store, "clinic")).items()
    assert (row["why"], row["attempts"], row["version"]) == ("unavailable", 2, 1)
    assert row["first"].startswith(f"{start:%Y-%m-%dT%H:%M}") and row["last"] > row["first"]
    (task,) = await world.tasks("undelivered")
    with pytest.raises(Invalid):
        await discard(world.store, "clinic", key, " ", {"display": "Ana"})
    await discard(world.store, "clinic", key, "Told by telephone", {"display": "Ana"})
    assert await world.store.states(parked("clinic")) == {}
    assert (await world.read("Task", task["id"]))["status"] == "cancelled"
    changes = (await world.store.changes((0, 0), types=frozenset({"Provenance"}), limit=1000)).changes
    kept = [await world.read("Provenance", change.id) for change in changes]
    assert any("Told by telephone" in one["activity"]["text"] for one in kept)
    with pytest.raises(NotFound):
        await replay(world.store, "clinic", key)
    await world.push(world.clinic)
    assert told(world, "c11") == []


async def test_a_replay_comes_before_what_is_newer(world, act):
    await known(world, act, 11)
    await message(world, act, "h11", "first")
    world.clinic.can = {}
    await world.push(world.clinic)
    await message(world, act, "h11", "second")
    world.clinic.can = {"Communication": "read search-type create"}
    (key,) = await letters(world.store, "clinic")
    await replay(world.store, "clinic", key)
    await world.push(world.clinic)
    assert told(world, "c11") == ["first", "second"]


async def test_two_workers_at_once_deliver_once(world, act):
    await known(world, act, 11)
    await message(world, act, "h11", "news")
    await asyncio.gather(world.push(world.clinic), world.push(world.clinic), return_exceptions=True)
    world.clock.advance(timedelta(minutes=6))
    await world.push(world.clinic)
    assert told(world, "c11") == ["news"]


@pytest.mark.parametrize(
    ("scopes", "create", "patch"),
    [
        ("system/*.cruds", True, True),
        ("system/Task.write", True, True),
        ("system/Task.*", True, True),
        ("system/Task.crs", True, False),
        ("system/Task.u", False, True),
        ("system/Task.read system/Goal.write", False, False),
        ("patient/Task.write launch", False, False),
    ],
)
def test_scopes_of_both_versions_are_understood(scopes, create, patch):
    assert allows(scopes.split(), "Task", "create") == create
    assert allows(scopes.split(), "Task", "patch") == patch


async def test_news_of_a_merged_record_reaches_whoever_knows_the_one_in_its_place(world, act):
    world.hospital.partner = replace(world.hospital.partner, deliver={"care-plan-changed": [["message"]]})
    await world.push(world.hospital)
    double, kept = (act.at(world.clinic, f"Patient/{id}") for id in ("c1-double", "c1"))
    link = [{"type": "replaced-by", "other": act.ref(kept)}]
    await world.pulled(world.clinic, {"resourceType": "Patient", "id": "c1-double", "active": False, "link": link})
    plan = {"resourceType": "CarePlan", "id": "plan", "status": "revoked", "intent": "plan", "subject": act.ref(double)}
    await world.write({**plan, "category": [{"coding": [{"code": "longitudinal"}]}]})
    world.clock.advance(timedelta(seconds=11))
    await world.push(world.hospital)
    assert [one["subject"]["reference"] for one in world.hospital.all("Communication")] == ["Patient/p1"]


async def test_a_message_whose_answer_was_lost_is_found_on_a_partner_with_the_date_of_another_day(world, act):
    await known(world, act, 11)
    find = {"received": "ge{day}", "patient": "{patient}"}
    world.clinic.partner = replace(world.clinic.partner, outbound={"Communication": {"find": find}})
    asked, search = [], world.clinic.search
    world.clinic.search = lambda type, parameters: asked.append(parameters) or search(type, parameters)
    await message(world, act, "h11", "news")
    world.clinic.fail("POST", "Communication", "lost")
    await world.push(world.clinic)
    world.clock.advance(timedelta(seconds=30))
    await world.push(world.clinic)
    ((made,),) = [world.clinic.all("Communication")]
    assert asked[0]["received"] == f"ge{date.fromisoformat(made['sent'][:10]) - timedelta(days=1)}"
