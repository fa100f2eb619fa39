"""Search values: the official expressions against an independent FHIRPath engine, and what each kind of value becomes."""

import gzip
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise, product
from pathlib import Path

import fhirpathpy
import pytest
from fhirpathpy.models import models
from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir import json as fhir_json
from fhircm.fhir.definitions import definitions, param_key
from fhircm.fhir.expressions import NotCompilable, compile_expression
from fhircm.fhir.extract import OWN_COLUMNS, component_key, search_values, searchable
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST, clip, date_range, normalise, number_range
from fhircm.fhir.values import Amount, Span, Target, Text, Token, Uri, canonical_key

EXAMPLES: dict[str, str] = json.loads(gzip.decompress((Path(__file__).parent / "examples.json.gz").read_bytes()))


def canonical(value):
    return json.dumps(value, sort_keys=True, default=str)


def for_the_oracle(expression: str, type: str) -> str:
    """The parts of the expression for one type, in the words that fhirpathpy understands.

    It has no resolve() without a server, takes `as` for single values only, and does not know that a CarePlan is a Resource.
    """
    parts = re.split(r"\s\|\s", expression)
    own = [part for part in parts if re.match(rf"\(*({type}|Resource|DomainResource)\b", part) or not re.match(r"\(*[A-Z]", part)]
    text = re.sub(r"\b(Domain)?Resource\.", f"{type}.", " | ".join(own))
    text = re.sub(r"\(([\w.]+) as (\w+)\)", r"\1.ofType(\2)", text)
    text = re.sub(r"\.as\((\w+)\)", r".ofType(\1)", text)
    return re.sub(r"resolve\(\) is (\w+)", r"reference.startsWith('\1/') or reference.contains('/\1/') or type = '\1'", text)


def test_every_expression_yields_on_every_example_what_fhirpath_says():
    compiled: dict = {}
    compared = 0
    for name, text in EXAMPLES.items():
        tree = json.loads(text, parse_float=Decimal)
        for code, extractor in searchable(tree["resourceType"]).extractors.items():
            key = tree["resourceType"], code
            if code in OWN_COLUMNS:
                continue
            if key not in compiled:
                expression = extractor.definition.expression
                oracle = fhirpathpy.compile(for_the_oracle(expression, key[0]), models["r4"])
                compiled[key] = compile_expression(expression, key[0]), oracle
            branches, oracle = compiled[key]
            ours = {canonical(value) for branch in branches for value in branch.get(tree)}
            assert ours == {canonical(value) for value in oracle(tree)}, (name, code)
            compared += 1
    assert compared > 5000


def test_what_cannot_be_searched_is_listed_here_with_the_reason():
    refused = {
        (code, definitions().search_parameters[type][code].type, reason)
        for type in definitions().resource_types
        for code, reason in searchable(type).refused.items()
    }
    assert refused == {("_filter", "special", "its definition has no expression")}


def test_element_types_that_no_parameter_can_compare_are_listed_here():
    unread = {
        (f"{type}.{code}", branch.type)
        for type in definitions().resource_types
        for code, extractor in searchable(type).extractors.items()
        if code not in OWN_COLUMNS and extractor.definition.type not in ("composite", "special")
        for branch in compile_expression(extractor.definition.expression, type)
        if branch.type not in extractor.types
    }
    assert unread == {
        ("CarePlan.activity-date", "string"),  # a schedule in words
        ("Consent.source-reference", "Attachment"),  # the other choice of source[x], which refers to nothing
        ("Immunization.date", "string"),  # a date in words
        ("Observation.combo-value-quantity", "SampledData"),
        ("Observation.component-value-quantity", "SampledData"),
        ("Observation.value-quantity", "SampledData"),
        ("Procedure.date", "Age"),
        ("Procedure.date", "Range"),
        ("Procedure.date", "string"),
    }


def keys_of(code, extractor):
    """All parameters under which rows of a search parameter may stand."""
    yield code
    if "Identifier" in extractor.types:
        yield f"{code}:of-type"
    if extractor.definition.type in ("quantity", "number"):
        yield canonical_key(code)
    for number, component in enumerate(extractor.components):
        if number:
            yield from keys_of(component_key(code, number), component)


def test_the_keys_of_parameters_and_of_their_other_rows_do_not_collide():
    keys = [
        (type, name)
        for type in definitions().resource_types
        for code, extractor in searchable(type).extractors.items()
        for name in keys_of(code, extractor)
    ]
    numbers = {param_key(*key) for key in keys}
    assert len(numbers) == len(keys)
    assert 0 not in numbers  # the number of the rows for any reference


@pytest.mark.parametrize(
    "expression",
    [
        "Patient.nothing",
        "Patient.name.",
        "Patient.name.trace('x')",
        "Patient.name.given + 'x'",
        "Patient.name = Patient.id",
        "'x'",
    ],
)
def test_an_expression_that_is_not_understood_is_refused(expression):
    with pytest.raises(NotCompilable):
        compile_expression(expression, "Patient")


def test_extensions_can_be_searched():
    tree = {
        "resourceType": "Patient",
        "extension": [{"url": "http://x/race", "valueCode": "a"}, {"url": "http://y", "valueCode": "b"}],
    }
    (branch,) = compile_expression("Patient.extension('http://x/race').value.as(code)", "Patient")
    assert (branch.type, branch.get(tree)) == ("code", ["a"])


@pytest.mark.parametrize("last", ["value", "valueDateTime", "value.ofType(dateTime)"])
def test_a_choice_may_be_named_by_its_member_as_guides_do(last):
    extension = [{"url": "http://x", "valueDateTime": "2026-01-01"}, {"url": "http://y", "valueDateTime": "2027-01-01"}]
    branches = compile_expression(f"Condition.extension.where(url = 'http://x').{last}", "Condition")
    found = [
        (branch.type, value) for branch in branches for value in branch.get({"resourceType": "Condition", "extension": extension})
    ]
    assert found == [("dateTime", "2026-01-01")]
    with pytest.raises(NotCompilable):
        compile_expression("Condition.extension.valueNonsense", "Condition")


def values(tree, code):
    return [value for value in search_values(tree) if value.parameter == code]


def test_codes_lose_their_case_and_keep_their_words():
    concept = {
        "coding": [{"system": "http://s", "code": "Abc", "display": "Some Words"}, {"system": "http://t"}],
        "text": "Ärger",
    }
    assert values({"resourceType": "Condition", "code": concept}, "code") == [
        Token("code", "abc", "http://s"),
        Text("code", "some words", "some words", "Some Words"),
        Token("code", "", "http://t"),
        Text("code", "arger", "arger", "Ärger"),
    ]


def test_identifiers_keep_their_case_and_can_be_found_by_type():
    kind = {"coding": [{"system": "http://v2", "code": "MR"}], "text": "Medical record"}
    found = search_values({"resourceType": "Patient", "identifier": [{"system": "http://s", "value": "A1", "type": kind}]})
    assert Token("identifier", "A1", "http://s") in found
    assert Token("identifier:of-type", "MR|A1", "http://v2") in found
    assert Text("identifier", "medical record", "medical record", "Medical record") in found


def test_flags_contacts_and_what_is_computed():
    tree = {
        "resourceType": "Patient",
        "active": True,
        "deceasedDateTime": "2024-01-01",
        "telecom": [{"system": "email", "use": "home", "value": "Eve@Example.org"}, {"system": "phone", "value": "555"}],
    }
    assert values(tree, "active") == [Token("active", "true", "")]
    assert values(tree, "deceased") == [Token("deceased", "true", "")]
    assert values({"resourceType": "Patient", "deceasedBoolean": False}, "deceased") == [Token("deceased", "false", "")]
    assert values({"resourceType": "Patient"}, "deceased") == [Token("deceased", "false", "")]
    assert values(tree, "email") == [Token("email", "eve@example.org", "home")]
    assert values(tree, "phone") == [Token("phone", "555", "")]


def test_references_local_absolute_canonical_and_by_identifier():
    tree = {
        "resourceType": "CarePlan",
        "subject": {"reference": "Patient/1/_history/2", "identifier": {"system": "http://s", "value": "X"}},
        "careTeam": [{"reference": "https://other.example/CareTeam/7"}, {"display": "somebody"}, {"reference": "#t"}],
        "instantiatesCanonical": ["http://example.org/plan|1.0"],
    }
    assert values(tree, "subject") == [Target("subject", "1", "Patient"), Token("subject", "X", "http://s")]
    assert values(tree, "patient") == [Target("patient", "1", "Patient"), Token("patient", "X", "http://s")]
    assert values(tree, "care-team") == [
        Target("care-team", "https://other.example/CareTeam/7", ""),
        Target("care-team", "", ""),
        Target("care-team", "#t", ""),
    ]
    assert values(tree, "instantiates-canonical") == [
        Target("instantiates-canonical", "http://example.org/plan|1.0", ""),
        Target("instantiates-canonical", "http://example.org/plan", ""),
    ]
    assert values(tree, "*") == [], "a version stays, whatever becomes of the resource"
    assert values({**tree, "subject": {"reference": "Patient/1"}}, "*") == [Target("*", "1", "Patient")]


def test_a_reference_is_a_patients_only_when_it_leads_to_one():
    assert values({"resourceType": "CarePlan", "subject": {"reference": "Group/1"}}, "patient") == []
    by_type = {"resourceType": "CarePlan", "subject": {"type": "Patient", "identifier": {"value": "X"}}}
    assert values(by_type, "patient") == [Token("patient", "X", "")]


def test_names_and_addresses_are_found_by_each_part():
    tree = {
        "resourceType": "Patient",
        "name": [{"family": "O'Brien-Smith", "given": ["Zoë", "Ann"], "text": "Dr.  Zoë O'Brien"}],
        "address": [{"line": ["1 Main St."], "city": "Łódź", "postalCode": "90-001"}],
    }
    assert [value.normalised for value in values(tree, "name")] == ["obrien smith", "zoe", "ann", "dr zoe obrien"]
    assert [value.normalised for value in values(tree, "family")] == ["obrien smith"]
    assert [value.exact for value in values(tree, "given")] == ["Zoë", "Ann"]
    assert [value.normalised for value in values(tree, "address")] == ["1 main st", "łodz", "90 001"]


def micros(*parts):
    return int((datetime(*parts, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def test_dates_periods_and_timings_become_spans():
    goal = {"resourceType": "Goal", "startDate": "2024-02"}
    assert values(goal, "start-date") == [Span("start-date", micros(2024, 2, 1), micros(2024, 3, 1))]
    plan = {"resourceType": "CarePlan", "period": {"start": "2024", "end": "2024-06-30"}}
    assert values(plan, "date") == [Span("date", micros(2024, 1, 1), micros(2024, 7, 1))]
    assert values({**plan, "period": {"end": "2024"}}, "date") == [Span("date", EARLIEST, micros(2025, 1, 1))]
    assert values({**plan, "period": {"start": "2024"}}, "date") == [Span("date", micros(2024, 1, 1), LATEST)]
    timing = {"event": ["2024-01-02", "2024-01-01"], "repeat": {"boundsPeriod": {"start": "2024-01-02", "end": "2024-03-01"}}}
    detail = {"resourceType": "CarePlan", "activity": [{"detail": {"scheduledTiming": timing}}]}
    assert values(detail, "activity-date") == [Span("activity-date", micros(2024, 1, 1), micros(2024, 3, 2))]


def test_numbers_and_quantities_become_amounts():
    quantity = {"value": Decimal("5.40"), "system": "http://unitsofmeasure.org", "code": "mg", "unit": "milligram"}
    observation = {"resourceType": "Observation", "valueQuantity": quantity}
    row = ("http://unitsofmeasure.org", "mg", "milligram")
    assert values(observation, "value-quantity") == [Amount("value-quantity", 5.4, 5.4, *row)]
    grams = Amount("value-quantity:canonical", 0.0054, 0.0054, "http://unitsofmeasure.org", "g", "")
    assert values(observation, "value-quantity:canonical") == [grams]
    less = {**observation, "valueQuantity": {**quantity, "comparator": "<"}}
    assert values(less, "value-quantity") == [Amount("value-quantity", -BOUNDLESS, 5.4, *row)]
    assert values(less, "value-quantity:canonical") == [grams._replace(low=-BOUNDLESS)]
    condition = {"resourceType": "Condition", "onsetRange": {"low": {"value": 3, "unit": "a"}, "high": {"value": 5, "unit": "a"}}}
    assert values(condition, "onset-age") == [Amount("onset-age", 3.0, 5.0, "", "", "a")]
    risk = {"resourceType": "RiskAssessment", "prediction": [{"probabilityDecimal": Decimal("0.5")}]}
    assert values(risk, "probability") == [Amount("probability", 0.5, 0.5, "", "", "")]
    invoice = {"resourceType": "Invoice", "totalNet": {"value": 10, "currency": "EUR"}}
    assert values(invoice, "totalnet") == [Amount("totalnet", 10.0, 10.0, "urn:iso:std:iso:4217", "EUR", "EUR")]


def test_a_value_beyond_any_number_of_the_base_unit_is_kept_as_written():
    for number in ("1e308", "1e999999999", "-1e999999999"):
        quantity = {"value": Decimal(number), "system": "http://unitsofmeasure.org", "code": "Yg"}
        rows = search_values({"resourceType": "Observation", "valueQuantity": quantity})
        assert {row.parameter for row in rows} == {"value-quantity", "combo-value-quantity"}


def test_places_become_points_on_a_sphere():
    place = {"resourceType": "Location", "position": {"latitude": 90, "longitude": 17}}
    ((parameter, x, y, z),) = values(place, "near")
    assert (parameter, round(x, 12), round(y, 12), z) == ("near", 0, 0, 1.0)
    assert values({"resourceType": "Location", "position": {"latitude": 91, "longitude": 0}}, "near") == []


def test_uris_and_what_is_too_long_for_an_index():
    plan = {"resourceType": "CarePlan", "instantiatesUri": ["http://example.org/" + "x" * 300]}
    (value,) = values(plan, "instantiates-uri")
    assert isinstance(value, Uri)
    assert len(value.uri) <= 200
    assert clip("x" * 201) != clip("x" * 202)
    assert clip("x" * 200) == "x" * 200


def test_nothing_is_listed_twice():
    concept = {"coding": [{"code": "a"}, {"code": "A"}]}
    assert values({"resourceType": "Condition", "code": concept}, "code") == [Token("code", "a", "")]


def test_a_value_that_cannot_be_read_is_refused_without_showing_it():
    with pytest.raises(Invalid) as caught:
        search_values({"resourceType": "Patient", "birthDate": "2024-02-30"})
    assert "birthdate" in str(caught.value)
    assert "2024-02-30" not in str(caught.value)


def test_all_examples_can_be_written_down():
    found = sum(bool(search_values(fhir_json.loads(text.encode()))) for text in EXAMPLES.values())
    assert found > len(EXAMPLES) - 20, "a few types have no search parameters beside their own columns"


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("2024", (2024, 1, 1), (2025, 1, 1)),
        ("2024-02", (2024, 2, 1), (2024, 3, 1)),
        ("2024-12", (2024, 12, 1), (2025, 1, 1)),
        ("2024-02-29", (2024, 2, 29), (2024, 3, 1)),
        ("2024-02-29T10:30", (2024, 2, 29, 10, 30), (2024, 2, 29, 10, 31)),
        ("2024-02-29T10:30:05Z", (2024, 2, 29, 10, 30, 5), (2024, 2, 29, 10, 30, 6)),
        ("2024-02-29T10:30:05.25+02:00", (2024, 2, 29, 8, 30, 5, 250000), (2024, 2, 29, 8, 30, 5, 260000)),
        ("2024-12-31T23:30:00-05:00", (2025, 1, 1, 4, 30), (2025, 1, 1, 4, 30, 1)),
        ("2016-12-31T23:59:60Z", (2017, 1, 1), (2017, 1, 1, 0, 0, 1)),
    ],
)
def test_a_date_is_the_time_that_it_leaves_open(text, low, high):
    assert date_range(text) == (micros(*low), micros(*high))


@pytest.mark.parametrize(
    "text", ["", "foo", "24", "2024-13", "2023-02-29", "2024-02-29T25:00", "2024-01-01T10:00:00+15:00", "2024-1-1", "٢٠٢٤"]
)
def test_what_is_not_a_date_is_refused(text):
    with pytest.raises(ValueError, match=r"not a|must be|out of range"):
        date_range(text)


def test_the_last_year_of_the_calendar_has_an_end():
    assert date_range("9999-12")[1] == date_range("9999")[1] == date_range("9999-12-31")[1]


@given(st.datetimes(timezones=st.just(UTC)))
def test_each_precision_lies_within_the_coarser_one(at):
    texts = [at.isoformat()[:size].ljust(4, "0") for size in (4, 7, 10, 16, 19)]
    ranges = [date_range(text) for text in texts]
    for outer, inner in pairwise(ranges):
        assert outer[0] <= inner[0] < inner[1] <= outer[1]


def test_numbers_stand_for_what_their_digits_leave_open():
    assert number_range(Decimal("5.4")) == (Decimal("5.35"), Decimal("5.45"))
    assert number_range(Decimal("5.40")) == (Decimal("5.395"), Decimal("5.405"))
    assert number_range(Decimal("100")) == (Decimal("99.5"), Decimal("100.5"))


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Müller", "muller"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("O\u2019Brien", "obrien"),
        ("van  der\tBerg", "van der berg"),
        ("Smith-Jones, Jr.", "smith jones jr"),
        ("---", "---"),
        ("山田", "山田"),
    ],
)
def test_text_is_folded(text, folded):
    assert normalise(text) == folded


def test_all_pairs_of_case_and_accents_fold_alike():
    for first, second in product(["Zoë", "zoë", "ZOË", "Zoe"], repeat=2):
        assert normalise(first) == normalise(second)
