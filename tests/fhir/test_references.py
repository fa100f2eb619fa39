"""References: taken apart, and found wherever they stand."""

import pytest

from fhircm.fhir.references import parse_reference, references


@pytest.mark.parametrize(
    ("text", "kind", "type", "id", "version"),
    [
        ("Patient/17", "local", "Patient", "17", None),
        ("Patient/17/_history/3", "local", "Patient", "17", "3"),
        ("https://hub.example/fhir/Patient/17", "local", "Patient", "17", None),
        ("https://hub.example/fhir/Patient/17/_history/3", "local", "Patient", "17", "3"),
        ("https://other.example/r4/Patient/17", "absolute", "Patient", "17", None),
        ("https://other.example/Patients/17", "absolute", None, None, None),
        ("https://hub.example/fhirish/Patient/17", "absolute", "Patient", "17", None),
        ("http://example.org/PlanDefinition/a|1.0", "canonical", None, None, None),
        ("urn:uuid:7d4b3d5c-54e5-4d2e-9d2a-0d7e5e0c3b11", "urn", None, None, None),
        ("#practitioner", "contained", None, None, None),
        ("Patient?identifier=http://x|1", "conditional", "Patient", None, None),
        ("Human/17", "unknown", None, None, None),
        ("Patient/a b", "unknown", None, None, None),
        ("Patient/" + "x" * 65, "unknown", None, None, None),
        ("", "unknown", None, None, None),
    ],
)
def test_a_reference_is_taken_apart(text, kind, type, id, version):
    reference = parse_reference(text, "https://hub.example/fhir")
    assert (reference.kind, reference.type, reference.id, reference.version) == (kind, type, id, version)
    assert reference.url == text


def test_every_reference_of_a_resource_is_found_with_its_path():
    tree = {
        "resourceType": "CarePlan",
        "subject": {"reference": "Patient/1", "display": "Eve"},
        "contained": [{"resourceType": "Goal", "id": "g", "subject": {"reference": "Patient/2"}}],
        "goal": [{"reference": "#g"}, {"display": "no reference"}],
        "activity": [{"detail": {"performer": [{"reference": "Practitioner/3"}]}}, {"reference": {"reference": "Task/4"}}],
        "extension": [{"url": "http://x", "valueReference": {"reference": "Group/5"}}],
    }
    assert [(found.path, found.url) for found in references(tree)] == [
        ("CarePlan.subject", "Patient/1"),
        ("CarePlan.contained[0].subject", "Patient/2"),
        ("CarePlan.goal[0]", "#g"),
        ("CarePlan.activity[0].detail.performer[0]", "Practitioner/3"),
        ("CarePlan.activity[1].reference", "Task/4"),
        ("CarePlan.extension[0].valueReference", "Group/5"),
    ]


def test_plain_uris_that_are_named_reference_are_not_references():
    issue = {"resourceType": "DetectedIssue", "status": "final", "reference": "Patient/1"}
    immunization = {"resourceType": "Immunization", "education": [{"reference": "Patient/1"}]}
    measure = {"resourceType": "Measure", "group": [{"population": [{"criteria": {"language": "x", "reference": "Patient/1"}}]}]}
    assert not [found for tree in (issue, immunization, measure) for found in references(tree)]


def test_what_a_bundle_holds_has_references_of_its_own():
    bundle = {"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Task", "focus": {"reference": "Patient/1"}}}]}
    assert list(references(bundle)) == []
