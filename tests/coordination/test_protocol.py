"""Pathways are read from PlanDefinitions: what they say happens, and what cannot be understood is refused."""

import copy
import json
from datetime import datetime

import pytest

from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import ProtocolWrong, load_pathways, read_pathways
from fhircm.fhir.artefacts import folder

CHICAGO = BusinessCalendar("America/Chicago", "US")
LEFT = datetime.fromisoformat("2026-11-24T23:30-06:00")  # two days before Thanksgiving


def plan(name="transition-of-care"):
    return json.loads((folder("profiles") / "plan-definition" / f"{name}.json").read_text())


NOTHING_ORDERED = dict.fromkeys(("equipment", "homehealth", "transport", "education"), "none")


def pathway(event, name="transition-of-care"):
    (found,) = [one for one in load_pathways() if one.event == event and (event == "referral" or one.url.endswith(f"/{name}"))]
    return found


@pytest.mark.parametrize(
    ("risk", "due"),
    [
        ("high", {"contact": "2026-11-27", "follow-up-visit": "2026-12-01", "medication-reconciliation": "2026-12-01"}),
        ("moderate", {"contact": "2026-11-27", "follow-up-visit": "2026-12-08", "medication-reconciliation": "2026-12-08"}),
        ("low", {"contact": "2026-11-27", "follow-up-visit": "2026-12-08", "medication-reconciliation": "2026-12-08"}),
    ],
)
def test_the_transition_of_care(risk, due):
    transition = pathway("discharge")
    variables = {"risk": risk, **NOTHING_ORDERED}
    steps = transition.applicable(variables)
    ends = {step.code["coding"][0]["code"]: transition.due(step, LEFT, CHICAGO, variables) for step in steps}
    assert {code: CHICAGO.written(end)[:10] for code, end in ends.items()} == due
    assert all(step.role and step.chain for step in steps)
    assert transition.canonical == "https://fhircm.example/PlanDefinition/transition-of-care|1.0.0"


@pytest.mark.parametrize("priority", ["routine", "urgent", "asap", "stat"])
def test_the_referral_has_each_step_once_for_every_priority(priority):
    steps = pathway("referral").applicable({"priority": priority})
    codes = [step.code["coding"][0]["code"] for step in steps]
    assert codes[:3] == ["respond-to-referral", "schedule-visit", "report-back"]
    assert len(codes) == len(set(codes))


def test_a_new_pathway_needs_no_code(tmp_path):
    new = {
        "resourceType": "PlanDefinition",
        "url": "https://example.org/PlanDefinition/flu",
        "version": "2",
        "status": "active",
        "action": [
            {
                "id": "flu",
                "title": "Flu season",
                "code": [{"text": "Flu season"}],
                "trigger": [{"type": "named-event", "name": "autumn"}],
                "action": [
                    {
                        "id": "call",
                        "title": "Call",
                        "code": [{"text": "Call"}],
                        "condition": [
                            {
                                "kind": "applicability",
                                "expression": {"language": "text/fhirpath", "expression": "%age in ('old' | 'very old')"},
                            }
                        ],
                        "timingDuration": {"value": 3, "unit": "d", "system": "http://unitsofmeasure.org", "code": "d"},
                    }
                ],
            }
        ],
    }
    (tmp_path / "flu.json").write_text(json.dumps(new))
    (flu,) = load_pathways(tmp_path)
    assert flu.event == "autumn"
    assert [step.id for step in flu.applicable({"age": "old"})] == ["call"]
    assert flu.applicable({"age": "young"}) == []
    assert flu.due(flu.steps[0], LEFT, CHICAGO, {"age": "old"}) == datetime.fromisoformat("2026-11-27T23:59:59-06:00")


def broken(change):
    tree = copy.deepcopy(plan())
    change(tree["action"][0]["action"][1])  # the visit when the risk is high
    return tree


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda action: action["condition"][0]["expression"].update(expression="%risk > 3"), "must be FHIRPath such as"),
        (lambda action: action["condition"][0]["expression"].update(language="text/cql"), "must be FHIRPath such as"),
        (lambda action: action["timingDuration"].update(code="wk"), "whole number of days"),
        (lambda action: action["timingDuration"].update(value=1.5), "whole number of days"),
        (lambda action: action.pop("code"), "code is missing"),
        (lambda action: action.pop("id"), "id is missing"),
        (lambda action: action.update(id="contact"), "two actions have one id"),
        (lambda action: action.update(relatedAction=[{"actionId": "nowhere", "relationship": "before-end"}]), "nowhere"),
        (lambda action: action["extension"][0]["extension"].pop(), "has no after"),
    ],
)
def test_what_cannot_be_understood_is_refused(change, text):
    with pytest.raises(ProtocolWrong, match=text):
        read_pathways(broken(change))


def test_a_plan_without_a_version_is_refused():
    with pytest.raises(ProtocolWrong, match="version"):
        read_pathways({**plan(), "version": None})


def test_a_condition_on_what_an_event_does_not_have_is_an_error():
    with pytest.raises(KeyError):
        pathway("discharge").applicable({"weather": "fine"})
