"""A map changes what its rules say, keeps every other byte, reports what it does not know, and tells its mistakes when it is read."""

import json
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhircm.exchange import map_cases
from fhircm.exchange.map_rules import MappingFailed, Notes
from fhircm.exchange.maps import MapWrong, load_maps
from fhircm.exchange.pages import Received
from fhircm.exchange.partners import load_partners
from fhircm.fhir import json as fhir_json

LOCAL, STANDARD = "urn:oid:1.2.3", "http://loinc.org"
CONCEPTS = {
    "resourceType": "ConceptMap",
    "url": "https://maps.example/notes",
    "status": "active",
    "group": [
        {
            "source": LOCAL,
            "target": STANDARD,
            "element": [
                {"code": "a", "target": [{"code": "1-1", "equivalence": "equivalent"}]},
                {"code": "b", "target": [{"code": "2-2", "equivalence": "equal"}]},
                {"code": "vague", "target": [{"code": "3-3", "equivalence": "wider"}]},
                {"code": "none", "target": [{"equivalence": "unmatched"}]},
            ],
        },
        {
            "source": "urn:gender",
            "target": "http://hl7.org/fhir/administrative-gender",
            "element": [{"code": "F", "target": [{"code": "female", "equivalence": "equal"}]}],
        },
    ],
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "mappings" / "north-clinic"
    (place / "concept-map").mkdir(parents=True)
    (place / "concept-map" / "notes.json").write_text(json.dumps(CONCEPTS))
    return place


def written(folder, name, text):
    (folder / name).write_text(textwrap.dedent(text))
    return load_maps([folder])


def inbound(maps, body, notes=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    tree = json.loads(body)
    return maps.inbound(Received(tree["resourceType"], tree["id"], body), notes or Notes()).body


def note(*codes):
    codings = [{"system": LOCAL if len(code) < 3 or "-" not in code else STANDARD, "code": code} for code in codes]
    return {"resourceType": "DocumentReference", "id": "d1", "type": {"coding": codings}}


NOTES = 'DocumentReference: [{translate: {path: DocumentReference.type, map: "https://maps.example/notes"}}]'


def test_the_shipped_maps_pass_their_cases():
    ran = [(one.name, case, map_cases.wrong(one.maps, case)) for one in load_partners() for case in map_cases.cases(one.folder)]
    assert {name for name, _, _ in ran} >= {"lakeside-hospital", "riverbend-clinic"}
    assert [(name, case.name, why) for name, case, why in ran if why] == []


def test_what_no_rule_is_for_is_the_very_same(folder):
    maps = written(folder, "inbound.yaml", NOTES)
    for tree in ({"resourceType": "Goal", "id": "g"}, {"resourceType": "DocumentReference", "id": "d", "type": {"text": "x"}}):
        received = Received(tree["resourceType"], tree["id"], json.dumps(tree).encode())
        assert maps.inbound(received, Notes()) is received


def test_a_translation_stands_beside_the_local_code(folder):
    maps, notes = written(folder, "inbound.yaml", NOTES), Notes()
    mapped = json.loads(inbound(maps, note("a"), notes))
    assert mapped["type"]["coding"] == [{"system": LOCAL, "code": "a"}, {"system": STANDARD, "code": "1-1"}]
    assert not notes.unmapped
    for code in ("zz", "vague", "none"):  # not in the map, not equivalent enough, and expressly nothing
        assert json.loads(inbound(maps, note(code) | {"type": {"coding": [{"system": LOCAL, "code": code}]}}, notes))["type"][
            "coding"
        ] == [{"system": LOCAL, "code": code}]
    assert sorted(one.code for one in notes.unmapped) == ["none", "vague", "zz"]


def test_other_equivalences_when_the_rule_takes_them(folder):
    maps = written(folder, "inbound.yaml", NOTES.replace('notes"', 'notes", equivalence: [wider]'))
    tree = note("a") | {"type": {"coding": [{"system": LOCAL, "code": "vague"}]}}
    assert json.loads(inbound(maps, tree))["type"]["coding"][1]["code"] == "3-3"


def test_a_code_with_room_for_one_keeps_the_local_one_in_an_extension(folder):
    maps = written(
        folder,
        "both.yaml",
        'Patient: [{translate: {path: Patient.gender, map: "https://maps.example/notes", system: "urn:gender"}}]',
    )
    mapped = json.loads(inbound(maps, {"resourceType": "Patient", "id": "p", "gender": "F", "_gender": {"id": "x"}}))
    assert mapped["gender"] == "female"
    assert mapped["_gender"]["extension"][0]["valueCodeableConcept"]["coding"] == [{"system": "urn:gender", "code": "F"}]
    assert maps.outbound(mapped, Notes()) == {"resourceType": "Patient", "id": "p", "gender": "F", "_gender": {"id": "x"}}


def test_element_rules_are_those_of_fhirpath_patch(folder):
    maps = written(
        folder,
        "inbound.yaml",
        """
        Patient:
          - {when: active.empty(), add: {path: Patient, name: active, value: true}}
          - {add: {path: Patient, name: maritalStatus, valueCodeableConcept: {text: {}}}, when: "false"}
          - {insert: {path: Patient.name, index: 0, value: {family: {}}}, when: "false"}
          - {replace: {path: Patient.birthDate, value: {expression: "birthDate.toString().substring(0, 10)"}}, when: birthDate.exists()}
          - {move: {path: Patient.name, source: 1, destination: 0}, when: name.count() = 2}
          - {delete: {path: Patient.photo}}
          - {add: {path: Patient, name: extension, value: {url: "urn:x", valueString: {}}}, when: "false"}
        """.replace("{text: {}}", "{text: none}")
        .replace("{family: {}}", "{family: x}")
        .replace("valueString: {}", "valueString: x"),
    )
    tree = {
        "resourceType": "Patient",
        "id": "p",
        "birthDate": "2020-01-02",
        "name": [{"family": "A"}, {"family": "B"}],
        "photo": [{"url": "x"}],
    }
    assert json.loads(inbound(maps, tree)) == {
        "resourceType": "Patient",
        "id": "p",
        "birthDate": "2020-01-02",
        "name": [{"family": "B"}, {"family": "A"}],
        "active": True,
    }


def test_an_extension_becomes_an_element_and_back(folder):
    maps = written(folder, "both.yaml", 'Encounter: [{extension: {path: Encounter, url: "urn:priority", element: priority}}]')
    tree = {
        "resourceType": "Encounter",
        "id": "e",
        "extension": [{"url": "urn:priority", "valueCodeableConcept": {"text": "urgent"}}],
    }
    mapped = json.loads(inbound(maps, tree))
    assert mapped == {"resourceType": "Encounter", "id": "e", "priority": {"text": "urgent"}}
    assert maps.outbound(mapped, Notes()) == tree


def test_a_rule_that_fails_names_itself_and_tells_nothing_of_the_patient(folder):
    maps = written(folder, "inbound.yaml", "Patient: [{rule: short, replace: {path: Patient.birthDate, value: '1'}}]")
    with pytest.raises(
        MappingFailed, match=r"north-clinic/inbound.yaml: Patient\[0\] 'short': the path leads to no elements"
    ) as failed:
        inbound(maps, {"resourceType": "Patient", "id": "p", "name": [{"family": "Secret"}]})
    assert failed.value.status == 422 and "Secret" not in str(failed.value.issues)


def test_a_resource_that_is_not_built_as_it_should_fails_with_its_rule(folder):
    maps = written(folder, "inbound.yaml", NOTES)
    body = json.dumps({"resourceType": "DocumentReference", "id": "d", "type": {"coding": LOCAL}}).encode()
    with pytest.raises(MappingFailed):
        inbound(maps, body)


def test_what_is_no_json_is_left_to_who_refuses_it(folder):
    maps = written(folder, "inbound.yaml", NOTES)
    received = Received("DocumentReference", "d", b'{"type": "' + LOCAL.encode())
    assert maps.inbound(received, Notes()) is received


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("inbound.yaml", "Pateint: []", "Pateint must be an R4 resource type"),
        ("inbound.yaml", "Patient: [{when: 'name.where('}]", r"Patient\[0\].when must be FHIRPath"),
        (
            "inbound.yaml",
            "Patient: [{when: 'foo()', delete: {path: Patient.name}}]",
            r"when must be FHIRPath, with functions that there are",
        ),
        (
            "inbound.yaml",
            "Patient: [{delete: {path: Patient.nam}}]",
            r"Patient\[0\].delete.path names Patient.nam, which R4 does not have",
        ),
        ("inbound.yaml", "Patient: [{delete: {path: 'Patient.name['}}]", r"cannot be used as a path"),
        ("inbound.yaml", "Patient: [{}]", "must do one thing"),
        ("inbound.yaml", "Patient: [{delete: {path: Patient.name}, add: {}}]", "must do one thing"),
        ("inbound.yaml", "Patient: [{delete: {path: Patient.name, value: 1}}]", "value is not a key that fhircm knows here"),
        ("inbound.yaml", "Patient: [{add: {path: Patient, name: active}}]", "value is missing"),
        ("inbound.yaml", "Patient: [{add: {path: Patient, name: active, valueFlag: true}}]", "has no type of R4 in its name"),
        ("inbound.yaml", "Patient: [{add: {path: Patient, name: birthDate, value: 2020-01-01}}]", "put dates in quotes"),
        ("inbound.yaml", "Patient: [{translate: {path: Patient.gender, map: 'urn:x'}}]", "leads to no ConceptMap"),
        ("inbound.yaml", "Patient: [{translate: {path: Patient.gender}}]", "map is missing"),
        (
            "inbound.yaml",
            "Patient: [{translate: {path: Patient.gender, to: 'http://loinc.org', equivalence: [close]}}]",
            "must be one of",
        ),
        ("both.yaml", "Patient: [{delete: {path: Patient.name}}]", "goes one way only"),
        ("both.yaml", "'*': [{identifier-system: {a: c, b: c}}]", "has c twice"),
        ("both.yaml", "'*': [{translate: {path: type}}]", "needs a resource type"),
        ("both.yaml", "'*': [{profile: {}}]", "does nothing"),
        ("outbound.yaml", "Patient: {rules: [{profil: {}}]}", "must do one thing"),
        ("concept-map/bad.json", '{"resourceType": "ConceptMap", "url": "x"}', "ConceptMap"),
        ("concept-map/bad.json", "{", "bad.json"),
    ],
)
def test_a_mistake_is_found_when_the_file_is_read(folder, file, text, told):
    with pytest.raises(MapWrong, match=told):
        written(folder, file, text)


def test_a_changed_file_is_read_anew_and_has_another_fingerprint(folder):
    before = written(folder, "inbound.yaml", NOTES).fingerprint
    assert before and load_maps([folder]).fingerprint == before
    changed = {**CONCEPTS, "version": "2"}
    (folder / "concept-map" / "notes.json").write_text(json.dumps(changed))
    assert load_maps([folder]).fingerprint != before


def test_a_general_map_comes_before_the_partners_on_the_way_in_and_after_it_on_the_way_out(folder):
    shape = folder.parent / "shape" / "some"
    shape.mkdir(parents=True)
    (shape / "both.yaml").write_text("'*': [{identifier-system: {'urn:a': 'urn:b'}}]")
    (folder / "both.yaml").write_text("'*': [{identifier-system: {'urn:b': 'urn:c'}}]")
    maps = load_maps([shape, folder])
    tree = {"resourceType": "Patient", "id": "p", "identifier": [{"system": "urn:a", "value": "1"}]}
    mapped = json.loads(inbound(maps, tree))
    assert mapped["identifier"][0]["system"] == "urn:c"
    assert maps.outbound(mapped, Notes()) == tree


# --- properties --------------------------------------------------------------------------------------------------------------

_BOTH = """
'*':
  - {identifier-system: {"urn:mrn": "https://hub.example/mrn", "urn:ssn": "https://hub.example/ssn"}}
  - {extension: {"urn:ext": "https://hub.example/ext"}}
  - {code-system: {"urn:oid:2.16.840.1.113883.6.96": "http://snomed.info/sct"}}
Patient:
  - {profile: {add: ["https://hub.example/patient"]}}
  - {translate: {path: Patient.maritalStatus, map: "https://maps.example/notes"}}
"""
_systems = st.sampled_from(["https://hub.example/mrn", "https://hub.example/ssn", "urn:other"])
_hub = st.fixed_dictionaries(
    {
        "resourceType": st.just("Patient"),
        "id": st.just("p"),
        "meta": st.just({"profile": ["https://hub.example/patient"]}),
        "identifier": st.lists(st.fixed_dictionaries({"system": _systems, "value": st.text(min_size=1)}), min_size=1, max_size=4),
        "extension": st.lists(
            st.fixed_dictionaries(
                {"url": st.sampled_from(["https://hub.example/ext", "urn:2"]), "valueString": st.text(min_size=1)}
            ),
            min_size=1,
            max_size=3,
        ),
        "maritalStatus": st.sampled_from(
            [
                {"coding": [{"system": LOCAL, "code": "a"}, {"system": STANDARD, "code": "1-1"}]},
                {"coding": [{"system": LOCAL, "code": "unknown"}]},
                {"coding": [{"system": STANDARD, "code": "9-9"}], "text": "x"},
                {"coding": [{"system": "http://snomed.info/sct", "code": "1"}]},
            ]
        ),
    }
)


@given(_hub)
def test_what_goes_out_comes_back_as_it_was(tmp_path_factory, tree):
    maps = _both(tmp_path_factory)
    out = maps.outbound(tree, Notes())
    assert json.loads(inbound(maps, json.dumps(out).encode())) == tree


_BOTH_MAPS = []


def _both(factory):
    if not _BOTH_MAPS:
        place = factory.mktemp("maps") / "mappings" / "north-clinic"
        (place / "concept-map").mkdir(parents=True)
        (place / "concept-map" / "notes.json").write_text(json.dumps(CONCEPTS))
        (place / "both.yaml").write_text(_BOTH)
        _BOTH_MAPS.append(load_maps([place]))
    return _BOTH_MAPS[0]


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.decimals(-1000, 1000, places=3).map(str).map(lambda text: f"\0{text}")
    | st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1, max_size=3), inner, max_size=4),
    max_leaves=12,
)


def _spaced(value, spaces):
    """JSON with white space drawn anywhere, and decimals with all their digits."""
    pad = next(spaces)
    if isinstance(value, dict):
        return "{" + pad + ",".join(f'{pad}"{name}"{pad}:{pad}{_spaced(one, spaces)}' for name, one in value.items()) + pad + "}"
    if isinstance(value, list):
        return "[" + pad + f"{pad},{pad}".join(_spaced(one, spaces) for one in value) + pad + "]"
    return value[1:] if isinstance(value, str) and value.startswith("\0") else json.dumps(value)


def _endless(drawn):
    while True:
        yield from drawn


@settings(max_examples=60)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), _json, max_size=5),
    _json,
    st.lists(st.sampled_from(["", " ", "\n", "\t "]), min_size=1),
    st.data(),
)
def test_a_body_says_what_it_should_and_keeps_the_bytes_of_everything_else(tree, other, spaces, data):
    body = _spaced(tree, _endless(spaces)).encode()
    changed = fhir_json.loads(body)
    wanted = fhir_json.loads(_spaced(other, _endless([""])).encode())
    name = data.draw(st.sampled_from([*changed, "new"]))
    changed[name] = wanted
    made = fhir_json.amended(body, changed)
    assert fhir_json.canonical(fhir_json.loads(made)) == fhir_json.canonical(changed)  # members keep the places that they had
    for kept in changed.keys() - {name}:  # each with its own white space and digits
        text = _spaced({kept: tree[kept]}, _endless([""]))
        assert fhir_json.dumps(fhir_json.loads(made)[kept]) == fhir_json.dumps(fhir_json.loads(text.encode())[kept])
    assert fhir_json.amended(body, fhir_json.loads(body)) == body
    start = body.find(b'"')
    if name == "new" and tree:
        assert made.startswith(body[: start + 1])
        assert body.rstrip()[:-1].rstrip() in made
