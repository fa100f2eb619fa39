"""What a profile of a guide may say, and that each of it is kept. https://hl7.org/fhir/R4/profiling.html"""

import copy
import json

import pytest

from fhircm.fhir import profiles
from fhircm.fhir.guides import Artefact, Guide, InForce, precedence, put_in_force
from tests.packages import BASE, CORE, RACE, RACE_EXTENSION, patient, profile, value_set

OBSERVATION = {"resourceType": "Observation", "status": "final", "code": {"text": "a"}}


@pytest.fixture(autouse=True)
def no_guides():
    yield
    put_in_force(InForce())


def artefact(tree, version="1.0.0"):
    constrains = tree["type"] if tree["resourceType"] == "StructureDefinition" else ""
    return Artefact(tree["resourceType"], tree["url"], version, json.dumps({**tree, "version": version}).encode(), constrains)


def in_force(*trees):
    put_in_force(InForce("test", (Guide("test", "1.0.0", tuple(artefact(tree) for tree in trees)),)))


def found(tree, name="it"):
    claiming = {**copy.deepcopy(tree), "meta": {"profile": [f"{BASE}/StructureDefinition/{name}"]}}
    return [(issue.severity, issue.code, issue.expression) for issue in profiles.broken(claiming)]


def errors(tree, name="it"):
    return [place for severity, _, place in found(tree, name) if severity == "error"]


def with_component(*components):
    return {**OBSERVATION, "component": [{"code": {"text": "a"}, **one} for one in components]}


def coded(*codes):
    return {"coding": [{"system": "urn:s", "code": code} for code in codes]}


@pytest.mark.parametrize(
    ("rules", "good", "bad", "place"),
    [
        ([("Observation.subject", {"min": 1})], {"subject": {"display": "x"}}, {}, "Observation.subject"),
        ([("Observation.note", {"max": "1"})], {"note": [{"text": "a"}]}, {"note": [{"text": "a"}] * 2}, "Observation.note"),
        ([("Observation.note", {"max": "0"})], {}, {"note": [{"text": "a"}]}, "Observation.note"),
        ([("Observation.status", {"fixedCode": "final"})], {}, {"status": "amended"}, "Observation.status"),
        (
            [("Observation.code", {"patternCodeableConcept": coded("a")})],
            {"code": {**coded("b", "a"), "text": "x"}},
            {"code": coded("b")},
            "Observation.code",
        ),
        (
            [("Observation.value[x]", {"type": [{"code": "Quantity"}]})],
            {"valueQuantity": {"value": 1}},
            {"valueString": "a"},
            "Observation.value",
        ),
        (
            [("Observation.value[x]", {"min": 1}), ("Observation.value[x].system", {"min": 1})],
            {"valueQuantity": {"value": 1, "system": "urn:s"}},
            {"valueQuantity": {"value": 1}},
            "Observation.value.system",
        ),
        (
            [("Observation.subject", {"type": [{"code": "Reference", "targetProfile": [f"{CORE}/Patient"]}]})],
            {"subject": {"reference": "Patient/a"}},
            {"subject": {"reference": "Group/a"}},
            "Observation.subject",
        ),
        (
            [("Observation.interpretation", {"binding": {"strength": "required", "valueSet": f"{BASE}/ValueSet/codes"}})],
            {"interpretation": [coded("x", "a")]},
            {"interpretation": [coded("a"), coded("x")]},
            "Observation.interpretation[1]",
        ),
        (
            [
                (
                    "Observation.value[x]",
                    {
                        "binding": {
                            "strength": "required",
                            "valueSet": f"{CORE.replace('StructureDefinition', 'ValueSet')}/administrative-gender",
                        }
                    },
                )
            ],
            {"valueCodeableConcept": {"coding": [{"system": "http://hl7.org/fhir/administrative-gender", "code": "male"}]}},
            {"valueCodeableConcept": {"coding": [{"system": "urn:s", "code": "male"}]}},
            "Observation.value",
        ),
        (
            [
                (
                    "Observation",
                    {
                        "constraint": [
                            {
                                "key": "o-1",
                                "severity": "error",
                                "human": "h",
                                "expression": "value.exists() or dataAbsentReason.exists()",
                            }
                        ]
                    },
                )
            ],
            {"valueString": "a"},
            {},
            "Observation",
        ),
        (
            [
                (
                    "Observation.effective[x]",
                    {
                        "constraint": [
                            {
                                "key": "o-2",
                                "severity": "error",
                                "human": "h",
                                "expression": "$this is dateTime implies $this.toString().length() >= 10",
                            }
                        ]
                    },
                )
            ],
            {"effectiveDateTime": "2026-01-01"},
            {"effectiveDateTime": "2026-01"},
            "Observation.effective",
        ),
        (
            [("Observation.component.value[x]", {"min": 1})],
            with_component({"valueString": "a"}, {"valueInteger": 1}),
            with_component({"valueString": "a"}, {}),
            "Observation.component[1].value",
        ),
        (
            [("Observation.status.extension", {"min": 1})],
            {"_status": {"extension": [{"url": "urn:e", "valueString": "a"}]}},
            {},
            "Observation.status.extension",
        ),
    ],
)
def test_each_kind_of_rule_is_kept(rules, good, bad, place):
    in_force(profile("it", "Observation", *rules), value_set("codes", "urn:s", "a", "b"))
    assert errors({**OBSERVATION, **good}) == []
    assert errors({**OBSERVATION, **bad}) == [place]


SLICED = ("Observation.category", {"slicing": {"discriminator": [{"type": "pattern", "path": "$this"}], "rules": "open"}})


@pytest.mark.parametrize(
    ("discriminator", "path", "slices", "mine", "other"),
    [
        ("pattern", "$this", [("Observation.category:a", {"patternCodeableConcept": coded("a")})], coded("a", "x"), coded("x")),
        (
            "value",
            "$this",
            [("Observation.category:a", {"binding": {"strength": "required", "valueSet": f"{BASE}/ValueSet/codes"}})],
            coded("b"),
            coded("x"),
        ),
        (
            "value",
            "coding.code",
            [("Observation.category:a", {}), ("Observation.category:a.coding.code", {"fixedCode": "a"})],
            coded("a"),
            coded("x"),
        ),
        (
            "exists",
            "text",
            [("Observation.category:a", {}), ("Observation.category:a.text", {"min": 1})],
            {"text": "t"},
            coded("x"),
        ),
        (
            "exists",
            "text",
            [("Observation.category:a", {}), ("Observation.category:a.text", {"max": "0"})],
            coded("x"),
            {"text": "t"},
        ),
    ],
)
def test_slices_are_told_apart(discriminator, path, slices, mine, other):
    (first, members), *rest = slices
    slicing = {"slicing": {"discriminator": [{"type": discriminator, "path": path}], "rules": "closed"}}
    rules = [("Observation.category", slicing), (first, {**members, "min": 1, "max": "1"}), *rest]
    in_force(profile("it", "Observation", *rules), value_set("codes", "urn:s", "a", "b"))
    assert errors({**OBSERVATION, "category": [mine]}) == []
    assert errors({**OBSERVATION, "category": [mine, mine]}) == ["Observation.category"]
    assert errors({**OBSERVATION, "category": [other, mine]}) == ["Observation.category[0]"]
    assert errors({**OBSERVATION, "category": [other]}) == ["Observation.category[0]", "Observation.category"]


def test_slices_by_type_of_a_value_and_of_what_is_referred_to():
    by_type = {"slicing": {"discriminator": [{"type": "type", "path": "$this"}], "rules": "open"}}
    in_force(
        profile(
            "it",
            "Observation",
            ("Observation.value[x]", by_type),
            ("Observation.value[x]:valueQuantity", {"type": [{"code": "Quantity"}]}),
            ("Observation.value[x]:valueQuantity.unit", {"min": 1}),
            ("Observation.performer", {"slicing": {"discriminator": [{"type": "type", "path": "resolve()"}], "rules": "open"}}),
            (
                "Observation.performer:person",
                {"max": "1", "type": [{"code": "Reference", "targetProfile": [f"{CORE}/Practitioner"]}]},
            ),
        )
    )
    people = [{"reference": "Practitioner/a"}, {"reference": "Organization/b"}, {"reference": "Practitioner/c"}]
    assert errors({**OBSERVATION, "valueQuantity": {"value": 1}}) == ["Observation.value.unit"]
    assert errors({**OBSERVATION, "valueString": "a", "performer": people[:2]}) == []
    assert errors({**OBSERVATION, "performer": people}) == ["Observation.performer"]


def test_extensions_are_held_to_their_own_profile():
    race = ("Patient.extension:race", {"min": 1, "max": "1", "type": [{"code": "Extension", "profile": [RACE]}]})
    in_force(profile("it", "Patient", race), RACE_EXTENSION, value_set("race", "urn:race", "2106-3"))
    assert errors(patient("a")) == []
    assert errors(patient("a", code="none")) == ["Patient.extension[0].value"]
    assert errors({"resourceType": "Patient"}) == ["Patient.extension"]
    twice = patient("a")
    twice["extension"] = [{"url": "urn:other", "valueString": "a"}, *twice["extension"] * 2]
    assert errors(twice) == ["Patient.extension"]
    assert set(errors({"resourceType": "Patient", "extension": [{"url": RACE, "valueString": "a"}]})) == {
        "Patient.extension[0].value"
    }


def test_a_profile_on_a_profile_asks_what_both_ask():
    base = profile("base", "Observation", ("Observation.subject", {"min": 1}))
    more = {"baseDefinition": f"{BASE}/StructureDefinition/base"}
    in_force(base, profile("it", "Observation", ("Observation.note", {"min": 1}), **more))
    assert errors(OBSERVATION) == ["Observation.subject", "Observation.note"]
    in_force(profile("it", "Observation", ("Observation.note", {"min": 1}), **more))
    assert found(OBSERVATION) == [("information", "informational", "Observation"), ("error", "required", "Observation.note")]


def test_a_snapshot_says_what_r4_says_too_and_only_the_rest_is_checked():
    elements = [
        ("Observation", {}),
        ("Observation.status", {"min": 1, "max": "1"}),
        ("Observation.subject", {"min": 1, "max": "1"}),
    ]
    tree = profile("it", "Observation", *elements[1:])
    tree["snapshot"] = {"element": tree.pop("differential")["element"]}
    in_force(tree)
    assert list(profiles.profile_of(tree["url"]).root.children) == ["subject"]
    assert errors(OBSERVATION) == ["Observation.subject"]


def test_a_differential_without_ids_tells_its_slices_by_their_order():
    tree = profile(
        "it",
        "Observation",
        SLICED,
        ("Observation.category:a", {"min": 1, "patternCodeableConcept": coded("a")}),
        ("Observation.category:a.text", {"min": 1}),
        ("Observation.method", {"min": 1}),
    )
    for element in tree["differential"]["element"]:
        del element["id"]
    in_force(tree)
    assert errors({**OBSERVATION, "category": [coded("x"), coded("a")]}) == ["Observation.category[1].text", "Observation.method"]


@pytest.mark.parametrize(
    ("expression", "members", "severities"),
    [
        ("note", {"note": [{"text": "a"}]}, []),
        ("note", {}, ["error"]),
        ("note", {"note": [{"text": "a"}, {"text": "b"}]}, ["information"]),
        ("note.exists()", {}, ["error"]),
        ("%resource.note.text = 'a'", {"note": [{"text": "a"}]}, []),
    ],
)
def test_what_an_invariant_comes_to(expression, members, severities):
    constraint = {"constraint": [{"key": "o-1", "severity": "error", "human": "h", "expression": expression}]}
    in_force(profile("it", "Observation", ("Observation", constraint)))
    assert [severity for severity, _, _ in found({**OBSERVATION, **members})] == severities


@pytest.mark.parametrize(
    ("rules", "members"),
    [
        ([("Observation.method", {"binding": {"strength": "required", "valueSet": "urn:unknown"}})], {"method": coded("a")}),
        (
            [("Observation", {"constraint": [{"key": "o-1", "severity": "error", "human": "h", "expression": "memberOf('a')"}]})],
            {},
        ),
        ([("Observation", {"constraint": [{"key": "o-1", "severity": "error", "human": "h", "expression": "((("}]})], {}),
        ([("Observation.subject", {"type": [{"code": "Reference", "profile": ["urn:unknown"]}]})], {"subject": {"display": "x"}}),
        (
            [
                (
                    "Observation.note",
                    {"slicing": {"discriminator": [{"type": "value", "path": "text.lower()"}], "rules": "open"}},
                ),
                ("Observation.note:a", {"min": 1}),
            ],
            {"note": [{"text": "a"}]},
        ),
    ],
)
def test_what_cannot_be_checked_is_told_and_never_passed_over(rules, members):
    in_force(profile("it", "Observation", *rules))
    assert [(severity, code) for severity, code, _ in found({**OBSERVATION, **members})] == [("information", "informational")]


def test_an_extensible_binding_warns():
    binding = {"binding": {"strength": "extensible", "valueSet": f"{BASE}/ValueSet/codes"}}
    in_force(profile("it", "Observation", ("Observation.method", binding)), value_set("codes", "urn:s", "a"))
    assert found({**OBSERVATION, "method": coded("x")}) == [("warning", "code-invalid", "Observation.method")]
    assert found({**OBSERVATION, "method": {"text": "none of them"}}) == []


def test_a_profile_that_names_itself_comes_to_an_end():
    itself = {"type": [{"code": "Extension", "profile": [f"{BASE}/StructureDefinition/loop"]}]}
    loop = profile("loop", "Extension", ("Extension.url", {"fixedUri": "urn:loop"}), ("Extension.extension", itself))
    in_force(profile("it", "Patient", ("Patient.extension", itself)), loop)
    nested = {"url": "urn:loop"}
    for _ in range(30):
        nested = {"url": "urn:loop", "extension": [nested]}
    assert errors({"resourceType": "Patient", "extension": [nested]}) == []
    deepest = nested
    while "extension" in deepest:
        deepest = deepest["extension"][0]
    deepest["url"] = "urn:other"
    assert errors({"resourceType": "Patient", "extension": [nested]}) == ["Patient" + ".extension[0]" * 31 + ".url"]
    more = {"baseDefinition": f"{BASE}/StructureDefinition/it"}
    in_force(profile("it", "Patient", ("Patient.name", {"min": 1}), **more))
    assert errors({"resourceType": "Patient"}) == ["Patient.name"]


def test_versions_stand_in_the_order_of_their_numbers():
    versions = ["2.0.0", "10.0.0", "1.10.0", "2.0.0-ballot", "1.2.0"]
    assert sorted(versions, key=precedence) == ["1.2.0", "1.10.0", "2.0.0-ballot", "2.0.0", "10.0.0"]
