"""What may be written: HL7's own examples and their mutations, the formats of the primitives, and hostile narrative."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.schema import children
from fhircm.fhir.validation import check, check_tree

EXAMPLES: dict[str, str] = json.loads(gzip.decompress((Path(__file__).parent / "examples.json.gz").read_bytes()))
# Examples that break the very definitions that they come with.
WRONG = {
    "DeviceMetric-example.json": "DeviceMetric.parent may refer to Device",
    "DeviceUseStatement-example.json": "DeviceUseStatement.reasonReference[0] may refer to",
    "MedicationRequest-medrx0301.json": "MedicationRequest.dispenseRequest.performer may refer to Organization",
    "Observation-clinical-gender.json": "Observation.performer[0] may refer to",
    "Questionnaire-qs1.json": "linkId is required",
}
COORDINATED = ("CarePlan", "CareTeam", "Goal", "Task", "ServiceRequest", "Encounter", "Patient", "Communication")


def refused(tree):
    with pytest.raises(Invalid) as caught:
        check_tree(tree)
    return caught.value.issues


def test_hl7s_examples_are_accepted_but_for_those_that_break_the_definitions():
    verdicts = {}
    for name, text in EXAMPLES.items():
        try:
            check(text.encode())
        except Invalid as error:
            verdicts[name] = error.issues[0].text
    assert len(EXAMPLES) > 700
    assert verdicts.keys() == WRONG.keys()
    assert all(verdicts[name].find(told) >= 0 for name, told in WRONG.items())


def test_fhir_resources_agrees_on_what_is_accepted():
    """A second opinion by code that shares nothing with ours."""
    from fhir.resources.R4B import get_fhir_model_class

    asked = [text for name, text in EXAMPLES.items() if name.partition("-")[0] in COORDINATED and name not in WRONG]
    assert len(asked) > 60
    for text in asked:
        get_fhir_model_class(json.loads(text)["resourceType"]).model_validate_json(text)


@cache
def some_example(type):
    name = min((one for one in EXAMPLES if one.startswith(f"{type}-") and one not in WRONG), key=lambda one: len(EXAMPLES[one]))
    return EXAMPLES[name]


def mutations(type, tree):
    """Each way to break one member of a resource: what it becomes, and the element that must be named."""
    for name, child in children(type).items():
        if name not in tree:
            continue
        value, path = tree[name], f"{type}.{name}"
        yield {**tree, name: None}, path
        yield {**tree, name: []}, path
        if child.element.max == 1:
            yield {**tree, name: [value]}, path
        if child.element.codes:
            yield {**tree, name: "no-such-code"}, path
        if child.element.min and not name.startswith("value"):
            without = {key: kept for key, kept in tree.items() if key not in (name, f"_{name}")}
            stem = child.element.path.removesuffix("[x]")
            yield without, path if stem == child.element.path else stem
        if child.is_primitive and child.element.max == 1:
            yield {**tree, name: {"a": 1}}, path
        elif child.element.max == 1:
            yield {**tree, name: "text"}, path
    yield {**tree, "colour": "red"}, type


@pytest.mark.parametrize("type", COORDINATED)
def test_every_mutation_of_a_member_is_refused_with_its_element(type):
    tree = json.loads(some_example(type))
    check_tree(tree)
    count = 0
    for broken, path in mutations(type, tree):
        assert any((issue.expression or "").startswith(path) for issue in refused(broken)), path
        count += 1
    assert count > 15


ACCEPTED = {
    "a birth date that is only extended": {"_birthDate": {"extension": [{"url": "urn:x", "valueString": "unknown"}]}},
    "a list of primitives with a gap": {"name": [{"given": ["A", None], "_given": [None, {"id": "x"}]}]},
    "a year": {"birthDate": "2015"},
    "a month": {"birthDate": "2015-02"},
    "a leap second": {"deceasedDateTime": "2016-12-31T23:59:60Z"},
    "an extended value in an extension": {
        "extension": [{"url": "urn:x", "valueString": "a", "_valueString": {"extension": [{"url": "urn:y", "valueCode": "b"}]}}]
    },
    "a code of a list that is open": {"maritalStatus": {"coding": [{"code": "own"}]}},
}
REFUSED = {
    "an id of 65 characters": ({"id": "a" * 65}, "Patient.id"),
    "an id with a space": ({"id": "a b"}, "Patient.id"),
    "a flag as text": ({"active": "true"}, "Patient.active"),
    "two values of a choice": ({"deceasedBoolean": True, "deceasedDateTime": "2020"}, "Patient.deceased"),
    "a day that is none": ({"birthDate": "2015-02-30"}, "Patient.birthDate"),
    "a time without a zone": ({"deceasedDateTime": "2015-02-03T10:00:00"}, "Patient.deceasedDateTime"),
    "an empty text": ({"name": [{"family": ""}]}, "Patient.name[0].family"),
    "bytes that are no base64": ({"photo": [{"contentType": "image/png", "data": "%%"}]}, "Patient.photo[0].data"),
    "a reference to the wrong type": ({"managingOrganization": {"reference": "Task/1"}}, "Patient.managingOrganization"),
    "a contained resource that nothing names": ({"contained": [{"resourceType": "Organization", "id": "o", "name": "A"}]}, "Patient.contained[0]"),
    "a contained resource that is not there": ({"managingOrganization": {"reference": "#o"}}, "Patient.managingOrganization"),
    "an unknown element deep inside": ({"contact": [{"name": {"nick": "A"}}]}, "Patient.contact[0].name"),
    "a number where text belongs": ({"name": [{"family": 1}]}, "Patient.name[0].family"),
    "a position of zero": ({"telecom": [{"system": "phone", "value": "1", "rank": 0}]}, "Patient.telecom[0].rank"),
}  # fmt: skip


@pytest.mark.parametrize("members", ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_specification_allows_is_taken(members):
    assert check_tree({"resourceType": "Patient", **members})


@pytest.mark.parametrize(("members", "path"), REFUSED.values(), ids=REFUSED)
def test_what_it_forbids_is_refused_where_it_stands_without_quoting_it(members, path):
    issues = refused({"resourceType": "Patient", **members})
    assert any((issue.expression or "").startswith(path) for issue in issues), issues
    assert not any("%%" in issue.text or "2015-02-30" in issue.text for issue in issues)


BROKEN_RULES = {
    "ext-1": ("Patient", {"extension": [{"url": "urn:x"}]}),
    "per-1": ("Patient", {"identifier": [{"value": "1", "period": {"start": "2020-02-01", "end": "2020-01-31"}}]}),
    "att-1": ("Patient", {"photo": [{"data": "AAAA"}]}),
    "qty-3": ("Observation", {"status": "final", "code": {"text": "a"}, "valueQuantity": {"value": 1, "code": "kg"}}),
    "cpt-2": ("Patient", {"telecom": [{"value": "1"}]}),
    "cpl-3": (
        "CarePlan",
        {
            "status": "active",
            "intent": "plan",
            "subject": {"display": "x"},
            "activity": [{"reference": {"display": "x"}, "detail": {"status": "unknown"}}],
        },
    ),
    "gol-1": (
        "Goal",
        {"lifecycleStatus": "active", "description": {"text": "a"}, "subject": {"display": "x"}, "target": [{"detailString": "a"}]},
    ),
    "ctm-1": (
        "CareTeam",
        {"participant": [{"member": {"reference": "Patient/1"}, "onBehalfOf": {"reference": "Organization/1"}}]},
    ),
    "pat-1": ("Patient", {"contact": [{"gender": "male"}]}),
    "inv-1": ("Task", {"status": "draft", "intent": "order", "authoredOn": "2020-02-01", "lastModified": "2020-01-01"}),
    "prr-1": ("ServiceRequest", {"status": "draft", "intent": "order", "subject": {"display": "x"}, "orderDetail": [{"text": "a"}]}),
    "org-1": ("Organization", {"active": True}),
    "org-2": ("Organization", {"name": "A", "address": [{"use": "home", "city": "B"}]}),
    "org-3": ("Organization", {"name": "A", "telecom": [{"use": "home", "system": "phone", "value": "1"}]}),
    "con-4": ("Condition", {"subject": {"display": "x"}, "abatementString": "a", "clinicalStatus": {"coding": [{"code": "active"}]}}),
    "con-5": (
        "Condition",
        {
            "subject": {"display": "x"},
            "clinicalStatus": {"coding": [{"code": "active"}]},
            "verificationStatus": {"coding": [{"code": "entered-in-error"}]},
        },
    ),
    "bdl-1": ("Bundle", {"type": "collection", "total": 1}),
    "bdl-5": ("Bundle", {"type": "collection", "entry": [{"fullUrl": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520"}]}),
}  # fmt: skip


@pytest.mark.parametrize(("key", "type", "members"), [(key, *case) for key, case in BROKEN_RULES.items()], ids=BROKEN_RULES)
def test_an_invariant_of_hl7s_is_kept(key, type, members):
    assert any(f"({key})" in issue.text for issue in refused({"resourceType": type, **members}))


HOSTILE = [
    "<div><script>1</script></div>",
    "<div><SCRIPT src='https://x.example/a.js'></SCRIPT></div>",
    "<div onclick='x()'>a</div>",
    "<div><a href='javascript:x()'>a</a></div>",
    "<div><a href=' java\nscript:x()'>a</a></div>",
    "<div><a href='&#106;avascript:x()'>a</a></div>",
    "<div><img src='x' onerror='y()'/></div>",
    "<div><svg onload='x()'></svg></div>",
    "<div><iframe src='https://x.example'></iframe></div>",
    "<div><form action='https://x.example'><input/></form></div>",
    "<div><object data='x'></object></div>",
    "<div><style>a{}</style></div>",
    "<div><a href='data:text/html;base64,AAAA'>a</a></div>",
    "<!DOCTYPE html><div>a</div>",
    "<?php 1 ?><div>a</div>",
    "<p>no div</p>",
    "text alone",
]


@pytest.mark.parametrize("div", HOSTILE)
def test_a_narrative_that_runs_loads_or_asks_is_refused(div):
    issues = refused({"resourceType": "Patient", "text": {"status": "generated", "div": div}})
    assert issues[0].expression == "Patient.text.div"


def test_a_narrative_with_formatting_is_taken():
    div = (
        '<div xmlns="http://www.w3.org/1999/xhtml"><h1>A</h1><table><tr><td style="color: red">b &amp; c</td></tr></table></div>'
    )
    assert check_tree({"resourceType": "Patient", "text": {"status": "generated", "div": div}})


def test_every_resource_type_has_a_validator():
    for type in definitions().resource_types:
        issues = refused({"resourceType": type, "no-such-element": 1})
        assert any("no-such-element" in issue.text for issue in issues), type
