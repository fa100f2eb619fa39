"""FHIRPath Patch: each operation, each way of a path, and what may not be. https://hl7.org/fhir/R4/fhirpatch.html"""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhircm.fhir.fhirpath_patch import fhirpath_patched, read_fhirpath_patch
from fhircm.fhir.outcome import FhirError, Invalid

BIRTH = "http://hl7.org/fhir/StructureDefinition/patient-birthTime"
PATIENT = {
    "resourceType": "Patient",
    "id": "a",
    "contained": [{"resourceType": "Organization", "id": "o", "name": "O"}],
    "extension": [{"url": "http://e/1", "valueString": "x"}, {"url": "http://e/2", "valueString": "y"}],
    "identifier": [{"use": "official", "system": "s", "value": "1"}, {"use": "old", "system": "s", "value": "2"}, {"value": "3"}],
    "active": True,
    "name": [{"use": "official", "family": "Chalmers", "given": ["Peter", "James"]}, {"text": "Jim"}],
    "birthDate": "1974-12-25",
    "_birthDate": {"extension": [{"url": BIRTH, "valueDateTime": "1974-12-25T14:35:45-05:00"}]},
    "deceasedBoolean": False,
    "contact": [{"name": {"text": "a name"}, "gender": "male", "address": {"text": "x"}}],
    "managingOrganization": {"reference": "#o"},
}


def operation(type, path, /, **parts):
    """An operation; a part is value=("date", "1930-01-01"), or name, index, source or destination as they are."""
    listed = [{"name": "type", "valueCode": type}, {"name": "path", "valueString": path}]
    for name, value in parts.items():
        if isinstance(value, tuple):
            kind, inner = value
            listed.append({"name": name, f"value{kind[0].upper()}{kind[1:]}": inner})
        elif isinstance(value, list):
            listed.append({"name": name, "part": value})
        else:
            listed.append({"name": name, "valueString" if isinstance(value, str) else "valueInteger": value})
    return {"name": "operation", "part": listed}


def patched(*operations, of=PATIENT):
    read = read_fhirpath_patch(
        json.dumps({"resourceType": "Parameters", **({"parameter": list(operations)} if operations else {})}).encode()
    )
    results = [fhirpath_patched(copy.deepcopy(of), read).tree for _ in range(2)]
    assert results[0] == results[1], "a patch can be done again"
    return results[0]


def changed(**members):
    return {name: value for name, value in (PATIENT | members).items() if value is not None}


PHONE = {"system": "phone", "value": "5"}
MARRIED = {"text": "married"}
NAMES = [{"family": "New"}, *PATIENT["name"]]
DONE = {
    "add a primitive": (operation("add", "Patient", name="gender", value=("code", "male")), changed(gender="male")),
    "add a complex element": (operation("add", "Patient", name="maritalStatus", value=("CodeableConcept", MARRIED)), changed(maritalStatus=MARRIED)),
    "add to a list": (operation("add", "Patient", name="identifier", value=("Identifier", {"value": "4"})), changed(identifier=[*PATIENT["identifier"], {"value": "4"}])),
    "add begins a list": (operation("add", "Patient", name="telecom", value=("ContactPoint", PHONE)), changed(telecom=[PHONE])),
    "add inside": (operation("add", "Patient.contact[0]", name="telecom", value=("ContactPoint", PHONE)), changed(contact=[PATIENT["contact"][0] | {"telecom": [PHONE]}])),
    "add to what is found": (operation("add", "Patient.name.where(use = 'official')", name="suffix", value=("string", "Jr")), changed(name=[PATIENT["name"][0] | {"suffix": ["Jr"]}, PATIENT["name"][1]])),
    "add a choice": (operation("add", "Patient", name="multipleBirth", value=("integer", 2)), changed(multipleBirthInteger=2)),
    "add to a primitive": (operation("add", "Patient.active", name="extension", value=[{"name": "url", "valueUri": "http://e/3"}, {"name": "value", "valueString": "z"}]), changed(_active={"extension": [{"url": "http://e/3", "valueString": "z"}]})),
    "add to a primitive of a list": (operation("add", "Patient.name[0].given[1]", name="id", value=("string", "g")), changed(name=[PATIENT["name"][0] | {"_given": [None, {"id": "g"}]}, PATIENT["name"][1]])),
    "add an anonymous element": (operation("add", "Patient", name="contact", value=[{"name": "name", "valueHumanName": {"text": "b"}}, {"name": "telecom", "valueContactPoint": PHONE}, {"name": "telecom", "valueContactPoint": PHONE | {"value": "2"}}]), changed(contact=[*PATIENT["contact"], {"name": {"text": "b"}, "telecom": [PHONE, PHONE | {"value": "2"}]}])),
    "add a narrative by its parts": (operation("add", "Patient", name="text", value=[{"name": "status", "valueCode": "generated"}, {"name": "div", "valueString": '<div xmlns="http://www.w3.org/1999/xhtml">a</div>'}]), changed(text={"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">a</div>'})),
    "insert first": (operation("insert", "Patient.name", index=0, value=("HumanName", {"family": "New"})), changed(name=NAMES)),
    "insert last": (operation("insert", "Patient.name", index=2, value=("HumanName", {"family": "New"})), changed(name=[*PATIENT["name"], {"family": "New"}])),
    "insert a primitive": (operation("insert", "Patient.name[0].given", index=1, value=("string", "J")), changed(name=[PATIENT["name"][0] | {"given": ["Peter", "J", "James"]}, PATIENT["name"][1]])),
    "delete a primitive with what belongs to it": (operation("delete", "Patient.birthDate"), changed(birthDate=None, _birthDate=None)),
    "delete what belongs to a primitive": (operation("delete", f"Patient.birthDate.extension('{BIRTH}')"), changed(_birthDate=None)),
    "delete in a list": (operation("delete", "Patient.identifier[1]"), changed(identifier=[PATIENT["identifier"][0], PATIENT["identifier"][2]])),
    "delete what a condition finds": (operation("delete", "Patient.identifier.where(system = 's' and value = '2')"), changed(identifier=[PATIENT["identifier"][0], PATIENT["identifier"][2]])),
    "delete leaves nothing empty": (operation("delete", "Patient.contact[0].name.text"), changed(contact=[{"gender": "male", "address": {"text": "x"}}])),
    "delete the last of a list": (operation("delete", "Patient.contact[0]"), changed(contact=None)),
    "delete nothing": (operation("delete", "Patient.photo"), PATIENT),
    "delete nothing deep": (operation("delete", "Patient.name[7].given.first()"), PATIENT),
    "delete a choice": (operation("delete", "Patient.deceased"), changed(deceasedBoolean=None)),
    "delete by type": (operation("delete", "Patient.deceased.ofType(boolean)"), changed(deceasedBoolean=None)),
    "delete another type": (operation("delete", "Patient.deceased.ofType(dateTime)"), PATIENT),
    "delete an extension": (operation("delete", "Patient.extension('http://e/1')"), changed(extension=PATIENT["extension"][1:])),
    "replace a primitive": (operation("replace", "Patient.birthDate", value=("date", "1930-01-01")), changed(birthDate="1930-01-01", _birthDate=None)),
    "replace in a list": (operation("replace", "Patient.name.first().given.last()", value=("string", "Jo")), changed(name=[PATIENT["name"][0] | {"given": ["Peter", "Jo"]}, PATIENT["name"][1]])),
    "replace a choice by another type": (operation("replace", "Patient.deceased", value=("dateTime", "2020-01-01")), changed(deceasedBoolean=None, deceasedDateTime="2020-01-01")),
    "replace without the type in front": (operation("replace", "contact[0].gender", value=("code", "female")), changed(contact=[PATIENT["contact"][0] | {"gender": "female"}])),
    "replace what an extension says": (operation("replace", "Patient.extension.where(url = 'http://e/2').value", value=("boolean", True)), changed(extension=[PATIENT["extension"][0], {"url": "http://e/2", "valueBoolean": True}])),
    "replace in what is contained": (operation("replace", "Patient.managingOrganization.resolve().name", value=("string", "P")), changed(contained=[PATIENT["contained"][0] | {"name": "P"}])),
    "replace what lacks something": (operation("replace", "Patient.identifier.where(use.exists().not()).value", value=("string", "9")), changed(identifier=[*PATIENT["identifier"][:2], {"value": "9"}])),
    "replace by or": (operation("replace", "Patient.identifier.where(value = '2' or value = '9').value", value=("string", "8")), changed(identifier=[PATIENT["identifier"][0], PATIENT["identifier"][1] | {"value": "8"}, PATIENT["identifier"][2]])),
    "replace by what is inside": (operation("replace", "Patient.name.where(given.exists($this = 'James')).family", value=("string", "N")), changed(name=[PATIENT["name"][0] | {"family": "N"}, PATIENT["name"][1]])),
    "move down": (operation("move", "Patient.identifier", source=0, destination=2), changed(identifier=[*PATIENT["identifier"][1:], PATIENT["identifier"][0]])),
    "move up": (operation("move", "Patient.identifier", source=2, destination=0), changed(identifier=[PATIENT["identifier"][2], *PATIENT["identifier"][:2]])),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), DONE.values(), ids=DONE)
def test_operations(change, expected):
    assert patched(change) == expected


def test_in_order_each_on_what_the_one_before_made_of_it():
    first = operation("add", "Patient", name="contact", value=[{"name": "gender", "valueCode": "female"}])
    second = operation("add", "Patient.contact[1]", name="name", value=("HumanName", {"text": "b"}))
    third = operation("add", "Patient.contact[1].name", name="given", value=("string", "c"))
    assert patched(first, second, third)["contact"][1] == {"gender": "female", "name": {"text": "b", "given": ["c"]}}
    assert patched() == PATIENT


REFUSED = {
    "add to nothing": (operation("add", "Patient.photo", name="title", value=("string", "x")), "no elements"),
    "add to several": (operation("add", "Patient.name", name="text", value=("string", "x")), "2 elements"),
    "add what is there": (operation("add", "Patient", name="birthDate", value=("date", "1930-01-01")), "there already"),
    "add another of a choice": (operation("add", "Patient", name="deceased", value=("dateTime", "2020-01-01")), "there already"),
    "add what there is not": (operation("add", "Patient", name="colour", value=("string", "red")), "colour"),
    "add the wrong type": (operation("add", "Patient", name="gender", value=("boolean", True)), "type code"),
    "add a type that the choice does not have": (operation("add", "Patient", name="multipleBirth", value=("string", "x")), "integer"),
    "add a JSON name": (operation("add", "Patient", name="multipleBirthInteger", value=("integer", 2)), "no element"),
    "add parts to a primitive": (operation("add", "Patient", name="gender", value=[{"name": "x", "valueString": "y"}]), "type code"),
    "add parts without value": (operation("add", "Patient", name="contact", value=[{"name": "gender"}]), "no value"),
    "insert into nothing": (operation("insert", "Patient.photo", index=0, value=("Attachment", {"title": "x"})), "no elements"),
    "insert too far": (operation("insert", "Patient.name", index=3, value=("HumanName", {"text": "x"})), "index"),
    "insert into no list": (operation("insert", "Patient.birthDate", index=0, value=("date", "1930-01-01")), "no list"),
    "insert behind a condition": (operation("insert", "Patient.name.where(use = 'official')", index=0, value=("HumanName", {"text": "x"})), "end with the name"),
    "delete several": (operation("delete", "Patient.identifier"), "3 elements"),
    "delete everything": (operation("delete", "Patient"), "as a whole"),
    "replace nothing": (operation("replace", "Patient.gender", value=("code", "male")), "no elements"),
    "replace by the wrong type": (operation("replace", "Patient.name[0]", value=("Period", {"start": "2020"})), "HumanName"),
    "replace everything": (operation("replace", "Patient", value=("string", "x")), "as a whole"),
    "move from nowhere": (operation("move", "Patient.name", source=2, destination=0), "source"),
    "move to nowhere": (operation("move", "Patient.name", source=0, destination=2), "destination"),
    "a path that is none": (operation("delete", "Patient..name"), "path"),
    "a path that does not end": (operation("delete", "Patient.name.where(use = "), "path"),
    "an unknown function": (operation("delete", "Patient.name.repeat(x)"), "repeat"),
    "an unknown element": (operation("delete", "Patient.colour"), "colour"),
    "a path that is a truth": (operation("delete", "Patient.name.exists()"), "no element"),
    "an empty path": (operation("delete", " "), "path"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_told_with_its_place(change, told):
    with pytest.raises(Invalid) as caught:
        patched(operation("delete", "Patient.photo"), change)
    (issue,) = caught.value.issues
    assert issue.expression == "Parameters.parameter[1]"
    assert told in issue.text


def test_it_never_leaves_the_resource():
    linked = PATIENT | {"link": [{"other": {"reference": "Patient/b"}, "type": "seealso"}]}
    with pytest.raises(Invalid, match="contained"):
        patched(operation("delete", "Patient.link.other.resolve().name"), of=linked)


def test_criteria_in_criteria_have_an_end():
    many = PATIENT | {"identifier": [{"value": str(number)} for number in range(1000)]}
    deep = "Patient.identifier.where(%resource.identifier.where(%resource.identifier.where(value = 'x').exists()).exists())"
    with pytest.raises(Invalid, match="too many"):
        patched(operation("delete", deep), of=many)
    assert len(patched(operation("delete", "Patient.identifier.where(value = '999')"), of=many)["identifier"]) == 999


def test_a_path_in_an_error_shows_no_text_of_it():
    with pytest.raises(Invalid) as caught:
        patched(operation("delete", "Patient.name.'Chalmers'"))
    assert "Chalmers" not in str(caught.value)


@pytest.mark.parametrize(
    "parameter",
    [
        {"name": "operation"},
        {"name": "change", "part": []},
        operation("jump", "Patient"),
        operation("add", "Patient", name="x"),
        operation("add", "Patient", value=("string", "x")),
        operation("delete", "Patient.name[0]", value=("string", "x")),
        operation("insert", "Patient.name", index="0", value=("HumanName", {"text": "x"})),
        operation("move", "Patient.name", source=-1, destination=0),
        {"name": "operation", "part": [*operation("delete", "Patient.active")["part"], {"name": "path", "valueString": "b"}]},
        {"name": "operation", "part": [{"name": "type", "valueCode": "delete"}, {"name": "path", "valueBoolean": True}]},
    ],
)
def test_an_operation_that_is_none(parameter):
    with pytest.raises(FhirError) as caught:
        patched(parameter)
    assert "Parameters.parameter" in str(caught.value.issues[0].expression)


def test_the_result_must_be_valid_and_keep_its_id():
    with pytest.raises(Invalid, match="gender"):
        patched(operation("add", "Patient", name="gender", value=("code", "blue")))
    with pytest.raises(Invalid, match="id"):
        patched(operation("replace", "Patient.id", value=("id", "b")))
    with pytest.raises(Invalid):
        patched(
            operation("delete", "Observation.status"),
            of={"resourceType": "Observation", "id": "o", "status": "final", "code": MARRIED},
        )


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            [
                "Patient",
                ".",
                "name",
                "[",
                "]",
                "0",
                "where",
                "(",
                ")",
                "=",
                "'a'",
                "and",
                "or",
                "exists",
                "use",
                "$this",
                "first",
                "as",
                "extension",
                "given",
                "%x",
                "!=",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_no_path_is_anything_but_done_or_refused(path):
    try:
        patched(operation("delete", path or "x"))
    except Invalid as error:
        assert error.issues


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_moves_are_those_of_a_list(moves):
    listed = [{"value": str(number)} for number in range(4)]
    operations = [operation("move", "Patient.identifier", source=source, destination=to) for source, to in moves]
    result = patched(*operations, of={"resourceType": "Patient", "id": "a", "identifier": list(listed)})
    for source, to in moves:
        listed.insert(to, listed.pop(source))
    assert result["identifier"] == listed
