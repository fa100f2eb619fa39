"""Queries: every parameter understood or refused."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir.conditions import (
    AllOf,
    AmountTest,
    AnyOf,
    Chained,
    Combined,
    IdTest,
    Linked,
    Matches,
    Missing,
    Not,
    SpanTest,
    TargetTest,
    TextTest,
    TokenTest,
    Unlike,
    UriTest,
)
from fhircm.fhir.outcome import Malformed, NotSupported
from fhircm.fhir.query import Cursor, Include, InvalidValue, Sort, in_compartment, parse_query
from fhircm.fhir.ranges import date_range

BASE = "https://hub.example/fhir"


def condition(type, name, value):
    (found,) = parse_query(type, [(name, value)], base_url=BASE).conditions
    return found


def asked(type, name, value):
    return condition(type, name, value).tests


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("active", TokenTest(("active",), None)),
        ("|active", TokenTest(("active",), "")),
    ],
)
def test_codes_without_a_system(value, expected):
    assert asked("CarePlan", "status", value) == (expected,)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("734163000", (TokenTest(("734163000",), None),)),
        ("http://snomed.info/sct|734163000", (TokenTest(("734163000",), "http://snomed.info/sct"),)),
        ("http://snomed.info/sct|", (TokenTest(None, "http://snomed.info/sct"),)),
        ("Assess-Plan", (TokenTest(("assess-plan",), None),)),
        ("a,b", (TokenTest(("a",), None), TokenTest(("b",), None))),
        (r"a\,b", (TokenTest(("a,b",), None),)),
        (r"http://s|a\|b", (TokenTest(("a|b",), "http://s"),)),
        (r"a\\,b", (TokenTest(("a\\",), None), TokenTest(("b",), None))),
    ],
)
def test_concepts(value, expected):
    assert asked("CarePlan", "category", value) == expected


def test_identifiers_keep_their_case():
    assert asked("Patient", "identifier", "http://s|A1") == (TokenTest(("A1",), "http://s"),)
    assert condition("Patient", "identifier:of-type", "http://v2|MR|A1") == Matches(
        "Patient", "identifier:of-type", (TokenTest(("MR|A1",), "http://v2"),)
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", TargetTest("7", ("Patient",))),
        ("Patient/7", TargetTest("7", ("Patient",))),
        (f"{BASE}/Patient/7", TargetTest("7", ("Patient",))),
        ("https://other.example/fhir/Patient/7", TargetTest("https://other.example/fhir/Patient/7", ("",))),
        ("urn:uuid:1", TargetTest("urn:uuid:1", ("",))),
    ],
)
def test_references(value, expected):
    assert asked("CarePlan", "patient", value) == (expected,)


def test_references_to_one_of_several_types():
    assert asked("CarePlan", "subject", "7") == (TargetTest("7", None),)
    assert asked("CarePlan", "subject:Group", "7") == (TargetTest("7", ("Group",)),)
    assert asked("CarePlan", "subject:identifier", "http://s|X") == (TokenTest(("X",), "http://s"),)
    assert asked("CarePlan", "instantiates-canonical", "http://x|1") == (TargetTest("http://x|1", ("",)),)


def test_strings():
    assert asked("Patient", "name", "Ève ") == (TextTest("eve", "start"),)
    assert asked("Patient", "name:contains", "EV") == (TextTest("ev", "contains"),)
    assert asked("Patient", "name:exact", "Eve,Ann") == (TextTest("Eve", "exact"), TextTest("Ann", "exact"))
    assert condition("CarePlan", "category:text", "Asthma") == Matches("CarePlan", "category", (TextTest("asthma", "start"),))


def test_dates():
    low, high = date_range("2024-05")
    for prefix in ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb"):
        assert asked("CarePlan", "date", f"{prefix}2024-05") == (SpanTest(prefix, low, high),)
    assert asked("CarePlan", "date", "2024-05") == (SpanTest("eq", low, high),)
    (about,) = asked("CarePlan", "date", "ap2024-05")
    assert about.low < low
    assert about.high > high


def test_numbers_and_quantities():
    assert asked("RiskAssessment", "probability", "gt0.8") == (AmountTest("gt", 0.8, 0.75, 0.85, None, ""),)
    assert asked("Observation", "value-quantity", "5.40|http://unitsofmeasure.org|mg") == (
        AmountTest("eq", 0.0054, 0.005395, 0.005405, "http://unitsofmeasure.org", "g", canonical=True),
    )
    assert asked("Observation", "value-quantity", "5.40|http://unitsofmeasure.org|pills") == (
        AmountTest("eq", 5.4, 5.395, 5.405, "http://unitsofmeasure.org", "pills"),
    )
    assert asked("Observation", "value-quantity", "le5||mg") == (AmountTest("le", 5.0, 4.5, 5.5, "", "mg"),)
    assert asked("Observation", "value-quantity", "ap100") == (AmountTest("ap", 100.0, 90.0, 110.0, None, ""),)


def test_composites():
    assert condition("Observation", "code-value-quantity", r"http://s|a\$b$gt5,c$6|http://unitsofmeasure.org|mg") == Combined(
        "Observation",
        "code-value-quantity",
        (
            (
                ("code-value-quantity", TokenTest(("a$b",), "http://s")),
                ("code-value-quantity$1", AmountTest("gt", 5.0, 4.5, 5.5, None, "")),
            ),
            (
                ("code-value-quantity", TokenTest(("c",), None)),
                (
                    "code-value-quantity$1:canonical",
                    AmountTest("eq", 0.006, 0.0055, 0.0065, "http://unitsofmeasure.org", "g", canonical=True),
                ),
            ),
        ),
    )
    (both,) = condition("DocumentReference", "relationship", "DocumentReference/1$replaces").alternatives
    assert [test for _, test in both] == [TargetTest("1", ("DocumentReference",)), TokenTest(("replaces",), None)]


def test_quantities_with_and_without_a_unit_are_looked_for_in_different_rows():
    found = condition("Observation", "value-quantity", "5|http://unitsofmeasure.org|mg,5,6||mg")
    assert [(one.parameter, len(one.tests)) for one in found.conditions] == [
        ("value-quantity:canonical", 1),
        ("value-quantity", 2),
    ]


def test_places():
    (here,) = asked("Location", "near", "0|90")
    assert (round(here.x, 12), round(here.y, 12), here.z) == (0, 1, 0)
    assert here.chord == asked("Location", "near", "0|90|50|km")[0].chord == asked("Location", "near", "0|90|50000|m")[0].chord
    assert asked("Location", "near", "0|90|31.25|mi")[0].chord == asked("Location", "near", "0|90|31.25|[mi_i]")[0].chord


def test_uris():
    assert asked("CarePlan", "instantiates-uri", "http://a/b") == (UriTest(("http://a/b",)),)
    assert asked("CarePlan", "instantiates-uri:below", "http://a/b") == (UriTest(("http://a/b",), "http://a/b/"),)
    (above,) = asked("CarePlan", "instantiates-uri:above", "http://a/b/c")
    assert set(above.uris) == {"http://a/b/c", "http://a/b", "http://a", "http://a/b/c/", "http://a/b/", "http://a/"}


def test_ids_and_what_is_missing_or_not():
    assert condition("Patient", "_id", "a,b") == Matches("Patient", "_id", (IdTest("a"), IdTest("b")))
    assert condition("Patient", "gender:not", "male").negated
    assert condition("Patient", "gender:missing", "true") == Missing("Patient", "gender", True)
    assert condition("Patient", "gender:missing", "false") == Missing("Patient", "gender", False)


def test_the_same_parameter_twice_is_two_conditions():
    query = parse_query("CarePlan", [("date", "ge2024"), ("date", "lt2025")])
    assert [found.tests[0].prefix for found in query.conditions] == ["ge", "lt"]


def test_chains_and_reverse_chains():
    number = Matches("Patient", "identifier", (TokenTest(("1",), "http://s"),))
    assert condition("CarePlan", "patient.identifier", "http://s|1") == Chained("CarePlan", "patient", (("Patient", number),))
    assert condition("CarePlan", "subject:Patient.identifier", "http://s|1") == Chained(
        "CarePlan", "subject", (("Patient", number),)
    )
    either = condition("CarePlan", "subject.identifier", "x")
    assert {type for type, _ in either.targets} == {"Group", "Patient"}
    only_patients = condition("CarePlan", "subject.birthdate", "2024")
    assert {type for type, _ in only_patients.targets} == {"Patient"}
    code = Matches("Observation", "code", (TokenTest(("1234-5",), None),))
    assert condition("Patient", "_has:Observation:patient:code", "1234-5") == Linked("Patient", "Observation", "patient", code)
    nested = condition("CarePlan", "patient.organization.name", "acme")
    assert nested.targets[0][1].targets[0][1] == Matches("Organization", "name", (TextTest("acme", "start"),))


def test_controls():
    query = parse_query(
        "Task",
        [
            ("_count", "5"),
            ("_sort", "-_lastUpdated,status"),
            ("_total", "accurate"),
            ("_include", "Task:focus:ServiceRequest"),
            ("_include:iterate", "ServiceRequest:requester"),
            ("_include", "*"),
            ("_revinclude", "Provenance:target"),
            ("_format", "json"),
        ],
    )
    assert query.count == 5
    assert query.sort == (Sort("_lastUpdated", True), Sort("status", False))
    assert query.total
    assert query.includes == (
        Include("Task", "focus", "ServiceRequest", False),
        Include("ServiceRequest", "requester", None, True),
        Include("Task", "*", None, False),
    )
    assert query.revincludes == (Include("Provenance", "target", None, False),)
    assert ("_format", "json") not in query.used
    assert len(query.used) == 7


def test_counts():
    assert parse_query("Task", []).count == 50
    assert parse_query("Task", [("_count", "99999")], max_count=200).count == 200
    assert parse_query("Task", [("_count", "0")]).count_only
    assert parse_query("Task", [("_summary", "count")]).count_only


@pytest.mark.parametrize(
    ("type", "name", "value", "told"),
    [
        ("Patient", "nickname", "x", "'nickname' is not a search parameter of Patient. There are: _id, _lastUpdated"),
        ("Patient", "name:fuzzy", "x", "exact, contains, missing"),
        ("Patient", "_text", "x", "_text"),
        ("Patient", "_contained", "true", "_contained"),
        ("Patient", "_id:missing", "true", "_id"),
        ("Patient", "_lastUpdated:missing", "true", "_lastUpdated"),
        ("Patient", "_sort", "shoe", "_sort"),
        ("Observation", "_sort", "code-value-quantity", "composite"),
        ("Observation", "code-value-quantity:not", "a$1", "missing"),
        ("Location", "_sort", "near", "special"),
        ("Patient", "_sort:asc", "name", "_sort"),
        ("Patient", "_include", "Patient:shoe", "shoe"),
        ("Patient", "_include", "Task:focus", "_include"),
        ("Patient", "_include", "Patient:name", "name"),
        ("Patient", "_include:recurse", "Patient:organization", "_include"),
        ("Patient", "_revinclude", "Observation:code", "code"),
        ("Organization", "_revinclude", "Observation:encounter", "encounter"),
        ("Patient", "identifier:in", "http://v", "in"),
        ("CarePlan", "subject:Practitioner", "7", "Practitioner"),
        ("CarePlan", "subject.shoe", "7", "shoe"),
        ("CarePlan", "status.shoe", "7", "status"),
        ("CarePlan", "subject:Practitioner.name", "7", "Practitioner"),
        ("CarePlan", "part-of.part-of.part-of.part-of.status", "active", "links"),
        ("CarePlan", "instantiates-canonical.title", "7", "instantiates-canonical"),
        ("Patient", "_has:Observation:code:status", "x", "code"),
        ("Patient", "_has:Organization:partof:name", "x", "Patient"),
        ("Patient", "", "x", "''"),
        ("Human", "name", "x", "Human"),
    ],
)
def test_what_is_unknown_or_not_there_is_refused(type, name, value, told):
    with pytest.raises(NotSupported) as caught:
        parse_query(type, [(name, value)])
    assert told in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("type", "name", "value"),
    [
        ("Observation", "code-value-quantity", "a"),
        ("Observation", "code-value-quantity", "a$1$2"),
        ("Observation", "code-value-quantity", "a$"),
        ("Observation", "code-value-quantity", "a$b"),
        ("Observation", "code-value-quantity", r"a\$1"),
        ("Observation", "code-value-quantity", "a$1,b"),
        ("Observation", "code-value-date", "a$2024-02-30"),
        ("DocumentReference", "relationship", "Patient/1$replaces"),
        ("MolecularSequence", "chromosome-window-coordinate", "1$2"),
        ("Location", "near", "1"),
        ("Location", "near", "1|"),
        ("Location", "near", "91|0"),
        ("Location", "near", "0|-181"),
        ("Location", "near", "1|2|3|mg"),
        ("Location", "near", "1|2|-3|km"),
        ("Location", "near", "1|2|km"),
        ("Location", "near", "1|2|3|km|4"),
        ("Location", "near", "1|2|9e99|Ym99/m98"),
        ("CarePlan", "date", "foo"),
        ("CarePlan", "date", "xx2024"),
        ("CarePlan", "date", "ge"),
        ("CarePlan", "date", "2024-02-30"),
        ("CarePlan", "date", ""),
        ("CarePlan", "date", "2024,"),
        ("CarePlan", "status", "http://hl7.org/fhir/request-status|active"),
        ("CarePlan", "category", "a|b|c"),
        ("CarePlan", "category", "|"),
        ("CarePlan", "category", "a\x00b"),
        ("CarePlan", "category", "x" * 5000),
        ("CarePlan", "category", ",".join("abcdefghij" * 60)),
        ("CarePlan", "category:missing", "maybe"),
        ("CarePlan", "patient", "Group/7"),
        ("CarePlan", "patient", "a b"),
        ("CarePlan", "patient", "#p"),
        ("CarePlan", "patient", "Patient/7/_history/2"),
        ("Patient", "active", "yes"),
        ("Patient", "identifier:of-type", "a|b"),
        ("Patient", "name", " "),
        ("Patient", "_has:Observation:code", "x"),
        ("Patient", "_has:Human:patient:code", "x"),
        ("Patient", "_count", "-1"),
        ("Patient", "_count", "many"),
        ("Patient", "_count", "٣"),
        ("Patient", "_total", "yes"),
        ("Patient", "_summary", "yes"),
        ("Patient", "_include", "organization"),
        ("Patient", "_include", "Human:organization"),
        ("Patient", "_include", "Patient:organization:Human"),
        ("Observation", "value-quantity", "5|mg"),
        ("Observation", "value-quantity", "five"),
        ("Observation", "value-quantity", "1e999"),
        ("RiskAssessment", "probability", "NaN"),
    ],
)
def test_a_value_that_cannot_be_read_is_an_error_that_does_not_show_it(type, name, value):
    with pytest.raises(InvalidValue) as caught:
        parse_query(type, [(name, value)])
    assert caught.value.status == 400
    assert caught.value.issues[0].code == "value"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["_count", "_sort", "_total", "_summary"])
def test_what_can_be_said_once_cannot_be_said_twice(name):
    value = {"_count": "1", "_sort": "name", "_total": "none", "_summary": "count"}[name]
    with pytest.raises(InvalidValue):
        parse_query("Patient", [(name, value), (name, value)])


def test_a_lenient_search_tells_what_it_ignored():
    query = parse_query("Patient", [("shoe", "43"), ("name", "eve"), ("name:fuzzy", "x")], lenient=True)
    assert [name for name, _ in query.ignored] == ["shoe", "name:fuzzy"]
    assert query.used == (("name", "eve"),)
    with pytest.raises(InvalidValue):
        parse_query("Patient", [("birthdate", "foo")], lenient=True)


def test_compartments():
    found = in_compartment("Patient", ("1", "2"), "CarePlan")
    tests = (TargetTest("1", ("Patient",)), TargetTest("2", ("Patient",)))
    assert found == AnyOf((Matches("CarePlan", "patient", tests), Matches("CarePlan", "performer", tests)))
    own = in_compartment("Patient", ("1",), "Patient")
    assert Matches("Patient", "_id", (IdTest("1"),)) in own.conditions
    assert in_compartment("Patient", ("1",), "Organization") is None
    assert in_compartment("Patient", (), "CarePlan") == AnyOf(())


def test_cursors_survive_a_token():
    cursor = Cursor((1.5, "a", 7), "9:10:", 11)
    assert Cursor.from_json(json.loads(json.dumps(cursor.as_json()))) == cursor


@pytest.mark.parametrize("tree", [None, [], {}, {"a": 1, "s": "1", "t": 1}, {"a": [None], "s": "1", "t": 1},
                                  {"a": [2**70], "s": "1", "t": 1}, {"a": [True], "s": "1", "t": 1},
                                  {"a": [1], "s": 1, "t": 1}, {"a": [1], "s": "1", "t": "x"}])  # fmt: skip
def test_what_is_not_a_cursor_is_refused(tree):
    with pytest.raises(Malformed):
        Cursor.from_json(tree)


def filtered(type, text):
    return condition(type, "_filter", text)


@pytest.mark.parametrize(
    ("text", "parameter", "test"),
    [
        ('family eq "Ève \\"B\\""', "family", TextTest("eve b", "equal")),
        ("family ne eve", "family", Unlike(TextTest("eve", "equal"))),
        ("family ew eve,ann", "family", TextTest("eve ann", "end")),
        ("birthdate po 2024-05", "birthdate", SpanTest("po", *date_range("2024-05"))),
        ("birthdate GE 2024", "birthdate", SpanTest("ge", *date_range("2024"))),
        ("gender ne male", "gender", Unlike(TokenTest(("male",), None))),
        ("language eq snomed|a,b", "language", TokenTest(("a,b",), "http://snomed.info/sct")),
        ("organization re Organization/7", "organization", TargetTest("7", ("Organization",))),
        ('_profile eq "http://a/b,c"', "_profile", UriTest(("http://a/b,c",))),
        ("_id ne 7", "_id", Unlike(IdTest("7"))),
        ("_lastUpdated co 2024-05-01T10:00:00Z", "_lastUpdated", SpanTest("co", *date_range("2024-05-01T10:00:00Z"))),
    ],
)
def test_a_filter_of_one_test(text, parameter, test):
    assert filtered("Patient", text) == Matches("Patient", parameter, (test,))


def test_a_filter_of_quantities():
    ucum = "http://unitsofmeasure.org"
    grams = AmountTest("sa", 0.0054, 0.00535, 0.00545, ucum, "g", canonical=True)
    assert filtered("Observation", "value-quantity sa 5.4|ucum|mg").tests == (grams,)


def test_filters_are_joined_and_chained():
    gender, name = filtered("Patient", "gender eq male"), filtered("Patient", "name sw a")
    assert filtered("Patient", "gender eq male and name sw a") == AllOf((gender, name))
    female = replace(gender, negated=True)
    assert filtered("Patient", "not(gender eq male)or name sw a") == AnyOf((female, name))
    assert filtered("Patient", "not (gender eq male or not (name sw a))") == AllOf((female, name))
    assert filtered("Patient", "gender pr false") == Missing("Patient", "gender", True)
    chained = Chained("CarePlan", "patient", (("Patient", gender),))
    assert filtered("CarePlan", "patient.gender eq male") == chained
    assert filtered("CarePlan", "not (patient.gender eq male)") == Not(chained)
    both = Chained("CarePlan", "patient", (("Patient", AllOf((gender, name))),))
    assert filtered("CarePlan", "patient[gender eq male].name sw a") == both
    assert filtered("CarePlan", "(patient[(gender eq male)].name sw a)") == both


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 1),
        ("   ", 4),
        ("name", 5),
        ("name eq", 8),
        ("name eq ", 9),
        ('name eq "Secret', 9),
        ('name eq "Secret\\x"', 9),
        ('name eq "\\ud800"', 9),
        ('name eq "Secret"Secret', 17),
        ("name is Secret", 6),
        ("name eq Secret Secret", 16),
        ("(name eq Secret", 16),
        ("name eq Secret)", 15),
        ("name eq Secret and", 19),
        ("not name eq Secret", 5),
        ("organization[name eq Secret] eq Secret", 29),
        ("organization[name eq Secret.name eq Secret", 34),
        ("birthdate eq Secret", 14),
        ("birthdate eq ge2024", 14),
        ("birthdate pr Secret", 14),
        ("name eq Secret and active eq Secret", 30),
        ('name eq "\\u0000"', 9),
        ('name eq " "', 9),
        (f"name eq {'Secret' * 400}", 9),
        ("(" * 20 + "name eq Secret" + ")" * 20, 9),
        ("organization.name eq a and organization.birthdate eq Secret", 41),
    ],
)
def test_a_filter_that_cannot_be_read_tells_where_and_shows_no_value(text, place):
    with pytest.raises((InvalidValue, NotSupported)) as caught:
        filtered("Patient", text)
    assert f"at character {place}" in str(caught.value)
    assert "Secret" not in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("type", "text", "told"),
    [
        ("Patient", "colour eq red", "'colour' is not a search parameter of Patient"),
        ("Patient", "gender co m", "which has no 'co'; it has: eq, in, ne, ni, pr, sb, ss"),
        ("Patient", "identifier in http://v", "no modifier ':in'"),
        ("Patient", "name in http://v", "which has no 'in'"),
        ("Patient", "organization ne Organization/1", "it has: eq, pr, re"),
        ("Observation", "related[type eq comp].target pr false", "'related' in 'related.target'"),
        ("Group", "characteristic[code eq a].value eq b", "'characteristic' in 'characteristic.value' does not hold references"),
        ("CarePlan", "part-of.part-of.part-of.part-of.status eq active", "3 links"),
        ("Patient", "_filter eq a", "_filter"),
        ("Patient", "_has eq a", "_has"),
    ],
)
def test_a_filter_that_has_no_meaning_is_refused(type, text, told):
    with pytest.raises(NotSupported) as caught:
        filtered(type, text)
    assert told in str(caught.value)
    assert "at character" in str(caught.value)


def test_filters_have_limits():
    for text in ("name eq a or " * 101 + "name eq a", "name eq " + "a" * 8000, "name eq a or (" * 13 + "name eq a" + ")" * 13):
        with pytest.raises(InvalidValue):
            filtered("Patient", text)
    with pytest.raises(NotSupported):
        condition("Patient", "_filter:not", "name eq a")


PIECES = [
    "name",
    "birthdate",
    "eq",
    "pr",
    "co",
    "true",
    "2020",
    '"a b"',
    '"',
    "\\",
    "(",
    ")",
    "[",
    "]",
    ".",
    "not",
    "and",
    "or",
    ",",
]
PIECES += ["organization", " ", "é", "\u2028", "-", "*", "|", "a"]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25))
def test_whatever_is_written_is_understood_or_refused(pieces):
    for name in ("_filter", "_text"):
        for between in ("", " "):
            with suppress(InvalidValue, NotSupported):
                parse_query("Patient", [(name, between.join(pieces))], full_text=True)
