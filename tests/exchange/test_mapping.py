"""A partner's resource changes in its id, its references and its source, and in no other byte."""

import json
from datetime import UTC, datetime
from uuid import NAMESPACE_URL, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.exchange.mapping import Copied, Source, digest, hub_id, inbound, provenance, referred, same, source
from fhircm.exchange.pages import Received
from fhircm.fhir.outcome import Malformed
from fhircm.fhir.validation import check, check_tree

BASE = "https://ehr.example/fhir"
EVERYTHING = lambda _: True  # noqa: E731
NOTHING = lambda _: False  # noqa: E731


def received(body, type="Encounter", id="e1", version=None):
    return Received(type, id, body if isinstance(body, bytes) else json.dumps(body).encode(), version)


def test_the_id_is_the_agreed_one():
    assert hub_id(BASE, "Patient/1") == str(uuid5(uuid5(NAMESPACE_URL, BASE), "Patient/1"))
    assert hub_id(BASE, "Patient/1") != hub_id(BASE, "Encounter/1")
    assert hub_id(BASE, "Patient/1") != hub_id("https://other.example/fhir", "Patient/1")


def test_every_other_byte_stays():
    body = (
        b'{ "resourceType":"Encounter" ,"id":"e1",\n "meta":{"versionId":"9","lastUpdated":"2026-01-01T00:00:00Z","profile":["p"],'
        b'"source":"#abc"},"length":{"value":2.50,"unit":"d"},\t"class":{"code":"AMB","display":"caf\\u00e9 \xc3\xa9"},'
        b'"subject":{"reference":"Patient/p1","display":"x"},"status":"finished","status":"finished"}'
    )
    mapped = inbound(BASE, received(body, version="9"), EVERYTHING)
    expected = body.replace(b'"id":"e1"', f'"id":"{hub_id(BASE, "Encounter/e1")}"'.encode())
    expected = expected.replace(b"Patient/p1", f"Patient/{hub_id(BASE, 'Patient/p1')}".encode())
    before, after = body.index(b'{"versionId"'), body.index(b"},") + 1
    expected = expected.replace(body[before:after], b'{"profile":["p"],"source":"https://ehr.example/fhir/Encounter/e1"}')
    assert mapped == expected


@pytest.mark.parametrize(
    ("reference", "at_hub", "becomes"),
    [
        ("Patient/p1", True, "Patient/{}"),
        ("Patient/p1", False, f"{BASE}/Patient/p1"),
        (f"{BASE}/Patient/p1", True, "Patient/{}"),
        (f"{BASE}/Patient/p1", False, f"{BASE}/Patient/p1"),
        ("/Patient/p1", False, f"{BASE}/Patient/p1"),
        ("Patient/p1/_history/3", True, "Patient/{}"),
        ("Patient/p1/_history/3", False, f"{BASE}/Patient/p1/_history/3"),
        ("Patient?identifier=x|1", True, f"{BASE}/Patient?identifier=x|1"),
        ("Nonsense/p1", True, f"{BASE}/Nonsense/p1"),
        ("Patient/..", True, f"{BASE}/Patient/.."),
        ("#contained", True, "#contained"),
        ("urn:uuid:6c5d9ca9-54d7-42f5-bfae-a7c19cd217f2", True, "urn:uuid:6c5d9ca9-54d7-42f5-bfae-a7c19cd217f2"),
        ("https://elsewhere.example/fhir/Patient/p1", True, "https://elsewhere.example/fhir/Patient/p1"),
        ("https://ehr.example/fhir-other/Patient/p1", True, "https://ehr.example/fhir-other/Patient/p1"),
    ],
)
def test_references(reference, at_hub, becomes):
    body = {"resourceType": "Encounter", "id": "e1", "subject": {"reference": reference}}
    mapped = json.loads(inbound(BASE, received(body), lambda _: at_hub))
    assert mapped["subject"]["reference"] == becomes.format(hub_id(BASE, "Patient/p1"))


def test_ids_that_r4_would_not_allow_are_mapped_too():
    long = "e" + "Zy_.~" * 30
    body = {"resourceType": "Encounter", "id": long, "partOf": {"reference": f"Encounter/{long}"}}
    mapped = json.loads(inbound(BASE, received(body, id=long), EVERYTHING))
    assert mapped["id"] == mapped["partOf"]["reference"].removeprefix("Encounter/") == hub_id(BASE, f"Encounter/{long}")
    assert mapped["meta"]["source"] == f"{BASE}/Encounter/{long}"


def test_what_is_not_a_reference_is_left_alone():
    body = {
        "resourceType": "DocumentReference",
        "id": "d1",
        "extension": [{"url": "ombCategory", "valueString": '"reference": "Patient/p1"'}],
        "contained": [{"resourceType": "Patient", "id": "c", "link": [{"other": {"reference": "#c"}}]}],
        "content": [{"attachment": {"url": "Binary/b1"}}, {"attachment": {"url": "https://x.example/Binary/b1"}}],
    }
    mapped = json.loads(inbound(BASE, received(body, "DocumentReference", "d1"), EVERYTHING))
    assert mapped.pop("meta") == {"source": f"{BASE}/DocumentReference/d1"}
    urls = [one["attachment"]["url"] for one in mapped["content"]]
    assert urls == [f"{BASE}/Binary/b1", "https://x.example/Binary/b1"]
    assert mapped["extension"] == body["extension"]
    assert mapped["contained"] == body["contained"]


def test_all_that_is_referred_to_at_the_partner():
    body = {
        "resourceType": "Encounter",
        "id": "e1",
        "subject": {"reference": f"{BASE}/Patient/p1"},
        "participant": [{"individual": {"reference": "Practitioner/d1"}}, {"individual": {"reference": "#x"}}],
        "serviceProvider": {"reference": "https://elsewhere.example/Organization/o"},
    }
    assert referred(BASE, json.dumps(body).encode()) == {Source("Patient", "p1"), Source("Practitioner", "d1")}
    assert source(BASE, "Patient/p1/_history/2") == Source("Patient", "p1")
    assert referred(BASE, b'{"subject":{"reference":"Patient/\xff"}}') == set()


def test_bytes_that_are_no_text_are_told():
    with pytest.raises(Malformed, match="not UTF-8"):
        inbound(BASE, received(b'{"resourceType":"Encounter","id":"e1","x":"\xff"}'), NOTHING)


def test_a_strange_meta_does_not_break_it():
    mapped = json.loads(inbound(BASE, received({"resourceType": "Encounter", "id": "e1", "meta": "x"}), NOTHING))
    assert mapped["meta"] == {"source": f"{BASE}/Encounter/e1"}


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
trees = st.recursive(
    st.one_of(text, st.integers(-(10**6), 10**6), st.booleans(), st.decimals(-1000, 1000, places=2).map(float)),
    lambda deeper: st.one_of(
        st.lists(deeper, min_size=1, max_size=3),
        st.dictionaries(text.filter(lambda name: name != "url"), deeper, min_size=1, max_size=3),
    ),
    max_leaves=12,
)


@given(trees, st.integers(0, 3))
def test_a_second_mapping_of_the_same_bytes_is_the_same_and_the_rest_of_the_tree_survives(tree, indent):
    body = json.dumps({"resourceType": "Encounter", "id": "e1", "note": tree}, indent=indent or None).encode()
    mapped = inbound(BASE, received(body), NOTHING)
    assert digest(mapped) == digest(inbound(BASE, received(body), NOTHING))
    after = json.loads(mapped)

    def without_references(node):
        if isinstance(node, dict):
            return {name: None if name == "reference" else without_references(value) for name, value in node.items()}
        return [without_references(one) for one in node] if isinstance(node, list) else node

    assert without_references(after["note"]) == without_references(tree)


def test_same_looks_at_what_is_said():
    mapped = b'{"resourceType":"Encounter","id":"x","meta":{"source":"s"},"length":{"value":2.50}}'
    stored = b'{"resourceType":"Encounter", "id":"x","meta":{"source":"s","versionId":"3","lastUpdated":"2026-01-01T00:00:00Z"},"length":{"value":2.50}}'
    assert same(mapped, stored)
    assert not same(mapped, stored.replace(b'"s"', b'"t"'))
    assert not same(mapped, stored.replace(b'"x"', b'"y"'))


def test_a_provenance_is_valid_and_the_same_for_the_same_versions():
    copied = [
        Copied("Encounter/x/_history/2", f"{BASE}/Encounter/e1/_history/7"),
        Copied("Patient/y/_history/1", f"{BASE}/Patient/p1"),
    ]
    who = {"reference": "Organization/o", "display": "North Clinic"}
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    tree = provenance(who, copied, at)
    assert check_tree(tree).type == "Provenance"
    assert check(json.dumps(tree).encode())
    assert tree["id"] == provenance(who, copied, at.replace(year=2027))["id"]
    assert tree["id"] != provenance(who, copied[:1], at)["id"]
    assert [target["reference"] for target in tree["target"]] == ["Encounter/x/_history/2", "Patient/y/_history/1"]
    assert tree["entity"][0] == {"role": "source", "what": {"reference": f"{BASE}/Encounter/e1/_history/7"}}
