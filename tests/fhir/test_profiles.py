"""The profiles that the hub promises: one that fits, and each of its rules broken."""

import copy
import json

import pytest

from fhircm.fhir.artefacts import folder
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.validation import check_tree

BASE = "https://fhircm.example/StructureDefinition"
X = {"display": "x"}
ASSESS_PLAN = {"coding": [{"system": "http://hl7.org/fhir/us/core/CodeSystem/careplan-category", "code": "assess-plan"}]}
FULFILL = {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]}
FITTING = {
    "care-plan": {"resourceType": "CarePlan", "status": "active", "intent": "plan", "category": [ASSESS_PLAN], "subject": X},
    "care-team": {
        "resourceType": "CareTeam",
        "status": "active",
        "subject": X,
        "participant": [{"role": [{"text": "nurse"}], "member": X}],
    },
    "goal": {"resourceType": "Goal", "lifecycleStatus": "active", "description": {"text": "a"}, "subject": X},
    "service-request": {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "code": {"text": "a"},
        "subject": X,
        "authoredOn": "2026-01-01",
        "requester": X,
    },
    "coordination-task": {
        "resourceType": "Task",
        "status": "ready",
        "intent": "order",
        "code": {"text": "a"},
        "for": X,
        "authoredOn": "2026-01-01",
    },
    "referral-task": {
        "resourceType": "Task",
        "status": "rejected",
        "statusReason": {"text": "full"},
        "intent": "order",
        "code": FULFILL,
        "focus": X,
        "for": X,
        "authoredOn": "2026-01-01",
        "requester": X,
    },
}


def claiming(name, tree):
    return {**copy.deepcopy(tree), "meta": {"profile": [f"{BASE}/{name}"]}}


def refusals(tree):
    with pytest.raises(Invalid) as caught:
        check_tree(tree)
    return [issue.expression for issue in caught.value.issues]


def rules(name):
    return json.loads((folder("profiles") / "structure" / f"{name}.json").read_text())["differential"]["element"]


def test_every_profile_is_tried():
    assert {path.stem for path in (folder("profiles") / "structure").glob("*.json")} == FITTING.keys()


@pytest.mark.parametrize("name", FITTING)
def test_one_that_fits_is_taken_and_each_rule_is_kept(name):
    tree = claiming(name, FITTING[name])
    check_tree(tree)
    required = [one["path"].split(".")[1:] for one in rules(name) if one.get("min")]
    assert required
    for first, *rest in required:
        broken = copy.deepcopy(tree)
        holder = broken
        if rest:
            holder = broken[first][0] if isinstance(broken[first], list) else broken[first]
        holder.pop(rest[0] if rest else first, None)
        if not holder:
            continue  # FHIR itself forbids an empty element
        assert any(path and path.startswith(f"{tree['resourceType']}.{first}") for path in refusals(broken)), (first, rest)
    check_tree({key: value for key, value in tree.items() if key != "meta"})


@pytest.mark.parametrize(
    ("name", "members", "path"),
    [
        ("care-plan", {"category": [{"text": "another"}]}, "CarePlan.category"),
        ("care-plan", {"category": [ASSESS_PLAN, ASSESS_PLAN]}, "CarePlan.category"),
        ("referral-task", {"intent": "plan"}, "Task.intent"),
        ("referral-task", {"code": {"text": "another"}}, "Task.code"),
        ("referral-task", {"status": "received"}, "Task.status"),
        ("referral-task", {"statusReason": {"coding": [{"code": "a"}]}}, "Task.statusReason.text"),
        ("goal", {"resourceType": "Patient"}, "Patient.meta.profile"),
    ],
)
def test_patterns_fixed_values_slices_and_bindings_are_kept(name, members, path):
    tree = claiming(name, FITTING[name]) | members
    if tree["resourceType"] == "Patient":
        tree = {"resourceType": "Patient", "meta": tree["meta"]}
    assert path in refusals(tree)


def test_a_profile_that_is_not_known_is_no_reason_to_refuse():
    assert check_tree({"resourceType": "Patient", "meta": {"profile": ["https://elsewhere.example/profile"]}})
