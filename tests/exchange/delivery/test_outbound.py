"""What a change means and how it is said: occasions from files, letters that any system can read, references that lead somewhere."""

import base64
import json
from string import Formatter
from xml.etree import ElementTree

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fhircm.exchange.attachments import fetch_from, held
from fhircm.exchange.case import Unfit
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.letter import attachment
from fhircm.exchange.outbound import WAYS, check_deliver, codes, occasions, occurring
from fhircm.exchange.partners import load_partners
from fhircm.exchange.repoint import repoint
from fhircm.exchange.ways import WAYS as BUILT
from fhircm.exchange.ways import adapt
from fhircm.fhir.artefacts import folder
from fhircm.fhir.definitions import definitions
from fhircm.fhir.validation import check_tree

STATUSES = ["draft", "requested", "accepted", "rejected", "in-progress", "on-hold", "completed", "failed", "cancelled"]
BUSINESS = [None, "2.0", "3.0", "5.1.1", "5.1.2", "5.1.3", "5.2", "6.0", "7.0"]


def task(status, business=None, code="fulfill"):
    tree = {"resourceType": "Task", "id": "t", "status": status, "intent": "order", "code": {"coding": [{"code": code}]}}
    return {**tree, **({"businessStatus": {"coding": [{"code": business}]}} if business else {})}


def names(new, old=None):
    return [one.name for one in occurring(new, old, [name for name, occasion in occasions().items() if not occasion.every])]


# --- occasions ---------------------------------------------------------------------------------------------------------------


def test_every_occasion_is_whole():
    words = {"number", "requester", "performer", "order", "priority", "reason", "status_reason", "outcome", "topic", "message"}
    words |= {"when", "discharged_by", "discharged_on", "coordinator"}
    elements = definitions().elements
    for occasion in occasions().values():
        assert occasion.to in ("performer", "requester", "addressee", "elsewhere", "known")
        assert occasion.every == bool(occasion.ladder)
        for condition in (occasion.when, occasion.still, occasion.not_from):
            assert all(f"{occasion.resource}.{element}" in elements for element in condition)
        if "status" in occasion.when:
            known = elements[f"{occasion.resource}.status"].codes
            assert known is None or set(occasion.when["status"]) | set(occasion.still.get("status", ())) <= known
        named = {name for sentence in (occasion.title, *occasion.text) for _, name, _, _ in Formatter().parse(sentence) if name}
        assert named <= words
        assert occasion.after is None or occasion.after in occasions()
        assert {"system", "code", "display"} <= occasion.note.keys()


def test_every_way_that_may_be_named_is_built():
    assert set(BUILT) | {"none", "portal-task"} == set(WAYS)
    for way in BUILT.values():
        assert way.needs("CarePlan")[0] in definitions().resource_types


def test_default_stands_for_the_ladder_of_the_occasion():
    assert check_deliver({"care-plan-changed": "default"})["care-plan-changed"][0][-1] == "portal-task"


@pytest.mark.parametrize("partner", load_partners(), ids=lambda partner: partner.name)
def test_what_the_shipped_partners_want_can_be_followed(partner):
    deliver = check_deliver(partner.deliver)
    assert deliver.keys() == partner.deliver.keys()
    habits = folder("mappings") / partner.name / "outbound.yaml"
    if habits.exists():
        for type, own in yaml.safe_load(habits.read_text()).items():
            assert type in definitions().resource_types
            assert own.keys() <= {"absent", "always", "leave-out", "find"}


@pytest.mark.parametrize(
    ("deliver", "said"),
    [
        ([], "must map occasions"),
        ({"birthday": [["letter"]]}, "deliver.birthday is no occasion"),
        ({"referral-sent": ["letter"]}, "must be a list of lists"),
        ({"referral-sent": [[]]}, "must be a list of lists"),
        ({"referral-sent": [["letter", "fax"]]}, r"deliver.referral-sent\[0\]: fax is no way"),
        ({"referral-sent": [["none", "letter"]]}, "never reached"),
    ],
)
def test_a_mistake_in_deliver_is_told_in_plain_words(deliver, said):
    with pytest.raises(ValueError, match=said):
        check_deliver(deliver)


def test_default_stands_for_the_ladder_of_an_occasion_that_has_one():
    assert check_deliver({"goal-changed": "default"}) == {
        "goal-changed": [["native-update", "native-patch", "native-create", "none"]]
    }
    with pytest.raises(ValueError, match="has no default"):
        check_deliver({"message": "default"})


def test_an_occasion_is_there_when_a_version_begins_to_fulfil_it():
    assert names(task("requested")) == ["referral-sent"]
    assert names(task("requested"), task("requested")) == []
    assert names(task("accepted"), task("requested")) == ["referral-accepted"]
    assert names(task("completed"), task("in-progress")) == ["referral-closed"]
    assert names(task("in-progress", "5.1.1"), task("in-progress", "5.1.2")) == ["referral-scheduled"]
    assert names(task("requested", code="undelivered")) == []


def test_a_performer_who_confirmed_a_cancellation_is_not_told_of_it():
    assert names(task("cancelled"), task("in-progress", "5.2")) == ["referral-not-closed"]
    assert names(task("cancelled"), task("in-progress", "5.1.1")) == ["referral-cancelled", "referral-not-closed"]


@given(st.lists(st.tuples(st.sampled_from(STATUSES), st.sampled_from(BUSINESS)), min_size=1, max_size=12))
def test_looking_at_every_version_tells_each_occasion_once_for_each_time_it_began(steps):
    versions = [task(*step) for step in steps]
    told = [name for old, new in zip([None, *versions], versions, strict=False) for name in names(new, old)]
    for name in ("referral-sent", "referral-accepted", "referral-closed"):
        status = occasions()[name].when["status"]
        states = [version["status"] in status for version in versions]
        assert told.count(name) == sum(now and not before for before, now in zip([False, *states], states, strict=False))


@pytest.mark.parametrize(
    ("value", "found"),
    [("done", {"done"}), ({"coding": [{"code": "a"}, {"system": "x"}]}, {"a"}), ([{"code": "a"}, {"coding": [{"code": "b"}]}], {"a", "b"}), (None, set())],
)  # fmt: skip
def test_codes_are_found_in_every_shape(value, found):
    assert codes(value) == found


# --- letters -----------------------------------------------------------------------------------------------------------------


async def test_a_letter_is_well_formed_and_escapes_what_people_typed(world, act):
    await act.referral(world)
    await world.push(world.clinic)
    (document,) = world.clinic.all("DocumentReference")
    attached = document["content"][0]["attachment"]
    page = base64.b64decode(attached["data"]).decode()
    assert (attached["contentType"], attached["size"]) == ("text/html", len(page.encode()))
    root = ElementTree.fromstring(page)
    text = " ".join(root.itertext())
    for told in ("Amara Okafor", "1971-03-09", "referral-1", "Lakeside Hospital", "Riverbend Clinic", "Cardiology consultation"):
        assert told in text
    assert "Heart failure <NYHA II>" in text
    assert "Weight up 3 kg & dyspnoea" in text
    assert not any(tag in page for tag in ("<script", "<style", "<link", "href=", "src="))
    check_tree({**document, "id": "as-sent"})


async def test_who_takes_documents_alone_gets_what_a_referral_carries_as_a_document(world, act):
    hospital, patient = world.hospital, {"reference": act.at(world.hospital, "Patient/p1")}
    paper = {"resourceType": "DocumentReference", "status": "current", "subject": patient}
    kept = [{"attachment": {"contentType": "application/pdf", "title": "Echo", "url": "https://elsewhere.test/Binary/1"}}]
    closed = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "PSY"}]}
    echo = {**paper, "id": "echo", "description": "Echocardiogram", "content": kept}
    note = {**paper, "id": "note", "description": "Psychotherapy", "content": kept, "meta": closed}
    await world.write(echo, note)
    condition = act.at(hospital, "Condition/chf")
    carried = [
        {"type": {"text": "x"}, "valueReference": {"reference": one}}
        for one in (condition, "DocumentReference/echo", "DocumentReference/note")
    ]
    await act.referral(world, input=carried)
    await world.push(world.clinic)
    (document,) = world.clinic.all("DocumentReference")
    letter, package = (base64.b64decode(one["attachment"]["data"]).decode() for one in document["content"])
    assert "<h2>Comes along</h2><ul><li>Heart failure &lt;NYHA II&gt;</li><li>Echocardiogram</li></ul>" in letter
    assert document["content"][1]["attachment"]["contentType"] == "application/fhir+json"
    bundle = json.loads(package)
    check_tree(bundle)
    assert [one["resource"]["resourceType"] for one in bundle["entry"]] == [
        "Composition",
        "Patient",
        "ServiceRequest",
        "Condition",
        "DocumentReference",
    ]
    assert bundle["entry"][4]["resource"]["content"] == [{"attachment": {"contentType": "application/pdf", "title": "Echo"}}]
    assert "Psychotherapy" not in letter + package
    assert {one["resource"]["subject"]["reference"] for one in bundle["entry"][2:]} == {f"{world.clinic.base_url}/Patient/c1"}


def test_the_same_letter_is_the_same_attachment():
    assert attachment("<p>a</p>", "t", "2026-03-02T15:00:00Z") == attachment("<p>a</p>", "t", "2026-03-02T15:00:00Z")


# --- references --------------------------------------------------------------------------------------------------------------


async def test_references_lead_to_what_the_partner_has_or_become_names(world, act):
    clinic = world.clinic
    tree = {
        "resourceType": "DocumentReference",
        "subject": act.ref(act.at(clinic, "Patient/c1"), display="Okafor"),
        "author": [act.ref(act.at(clinic, "Practitioner/heart")), act.ref("Practitioner/nobody")],
        "custodian": act.ref(act.at(clinic, "Organization/riverbend")),
        "context": {
            "encounter": [act.ref(f"{clinic.base_url}/Encounter/e9")],
            "related": [
                act.ref(f"{world.hospital.base_url}/ServiceRequest/5"),
                act.ref("#c"),
                {"identifier": {"value": "7"}},
                act.ref(act.at(world.hospital, "Patient/p2")),
            ],
        },
    }
    assert await repoint(world.store, world.hospital.partner, tree) == {
        "resourceType": "DocumentReference",
        "subject": {"display": "Okafor", "reference": "Patient/p1"},
        "author": [{"type": "Practitioner", "display": "Ana Reyes"}],
        "custodian": {"reference": "Organization/riverbend-listed"},  # the hospital's own entry for the clinic, by NPI
        "context": {
            "related": [{"reference": "ServiceRequest/5"}, {"identifier": {"value": "7"}}, {"reference": "Patient/p2"}],
        },
    }


async def test_a_patient_of_others_is_never_named(world, act):
    tree = {"resourceType": "Communication", "subject": act.ref(act.at(world.hospital, "Patient/p2"))}
    assert await repoint(world.store, world.clinic.partner, tree) == {"resourceType": "Communication"}


# --- habits of a partner -----------------------------------------------------------------------------------------------------


def test_a_partner_gets_resources_as_it_wants_them(clinic):
    clinic.partner.folder.mkdir()
    (clinic.partner.folder / "outbound.yaml").write_text(
        """
        Communication:
          absent: {priority: routine, category: [{text: "for {organization}"}]}
          always: {status: completed}
          leave-out: [topic]
        """
    )
    tree = {"resourceType": "Communication", "status": "in-progress", "priority": "asap", "topic": {"text": "{organization}"}}
    assert adapt(clinic.partner, tree) == {
        "resourceType": "Communication",
        "status": "completed",
        "priority": "asap",
        "category": [{"text": "for riverbend"}],
    }
    assert adapt(clinic.partner, {"resourceType": "Task"}) == {"resourceType": "Task"}


# --- attachments -------------------------------------------------------------------------------------------------------------


async def test_content_is_fetched_from_the_partner_that_has_it(clinic, hospital):
    clinic.put({"resourceType": "Binary", "id": "b1", "contentType": "text/plain", "data": "U3RhYmxlLg=="})
    url = f"{clinic.base_url}/Binary/b1"
    async with (
        PartnerClient(hospital.partner, transport=httpx.MockTransport(hospital.answer)) as one,
        PartnerClient(clinic.partner, transport=httpx.MockTransport(clinic.answer)) as other,
    ):
        fetch = fetch_from([one, other])
        assert await fetch(url) == b"Stable."
        assert await held({"contentType": "text/plain", "url": url}, fetch) == {
            "contentType": "text/plain",
            "data": "U3RhYmxlLg==",
            "size": 7,
        }
        clinic.fail("GET", "Binary", "down")
        for address in (url, "https://elsewhere.test/Binary/b1"):
            with pytest.raises(Unfit, match="could not be fetched"):
                await held({"url": address}, fetch)
    assert hospital.log == []


async def test_an_attachment_that_holds_its_bytes_is_left_alone():
    assert await held({"data": "YQ=="}, None) == {"data": "YQ=="}
    with pytest.raises(Unfit):
        await held({"url": "https://elsewhere.test/Binary/1"}, None)
