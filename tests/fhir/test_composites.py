"""Composite parameters: the rows of every example against an independent FHIRPath engine."""

import json
import re
from decimal import Decimal
from functools import cache

import fhirpathpy
import pytest
from fhirpathpy.models import models

from fhircm.fhir.definitions import definitions
from fhircm.fhir.expressions import compile_expression
from fhircm.fhir.extract import component_key, search_values, searchable
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST, date_range, normalise
from fhircm.fhir.values import COMPONENT_CONVERTERS, Component

from .test_extract import EXAMPLES


def composites(type):
    return {code: one.definition for code, one in searchable(type).extractors.items() if one.components}


def ours(tree):
    """By composite parameter: the rows of each element, as what they are compared by."""
    found = {}
    for row in search_values(tree):
        if isinstance(row, Component) and not row.parameter.endswith(":canonical"):
            compared = [part for part in row[2:] if part is not None]
            elements = found.setdefault(row.parameter.partition("$")[0], {})
            elements.setdefault(row.at, set()).add((row.parameter, *compared))
    return {code: list(elements.values()) for code, elements in found.items()}


@cache
def compiled(expression):
    return fhirpathpy.compile(expression, models["r4"])


def theirs(parameter, type, tree):
    """What fhirpathpy finds of all components in each element that the composite stands on."""
    members = {one.url: one.type for one in definitions().search_parameters[type].values()}
    components = [(members[url], expression) for url, expression in parameter.components]
    if parameter.code == "relationship":  # HL7 exchanged the two expressions
        components = [(kind, other) for (kind, _), (_, other) in zip(components, reversed(components), strict=True)]
    for path in parameter.expression.split(" | "):
        if path.partition(".")[0] == type:
            for at in range(len(compiled(path)(tree))):
                found = [
                    {
                        (component_key(parameter.code, number), *row)
                        for row in rows(kind, asked(f"{path}[{at}]", expression, type, tree))
                    }
                    for number, (kind, expression) in enumerate(components)
                ]
                if all(found):
                    yield set().union(*found)


def asked(element, expression, type, tree):
    """The values of a component, in words that fhirpathpy understands."""
    words = re.sub(r"\bas\((\w+)\)", r"ofType(\1)", expression).replace("DateTime", "dateTime")
    parts = [one.replace("%resource", type) if one.startswith("%") else f"{element}.{one}" for one in words.split(" | ")]
    return compiled(" | ".join(parts))(tree)


def rows(kind, values):
    for value in values:
        yield from globals()[f"{kind}_rows"](value)


def token_rows(value):
    if isinstance(value, dict):
        codings = value.get("coding", [value])
        return [
            (one.get("code", "").casefold(), one.get("system", "")) for one in codings if "code" in one and "value" not in one
        ]
    return [("true" if value is True else "false" if value is False else value, "")]


def reference_rows(value):
    type, id = value["reference"].split("/")
    return [(id, type)]


def string_rows(value):
    return [(normalise(value)[:100], normalise(value), value)]


def date_rows(value):
    if isinstance(value, str):
        return [date_range(value)]
    start, end = value.get("start"), value.get("end")
    return [(date_range(start)[0] if start else EARLIEST, date_range(end)[1] if end else LATEST)]


def quantity_rows(value):
    low, high = value.get("low", value), value.get("high", value)
    if value.get("low") and not value.get("high"):
        high = {}
    if value.get("high") and not value.get("low"):
        low = {}
    unit = [(low.get(name) or high.get(name) or "") for name in ("system", "code", "unit")]
    ends = float(low.get("value", -BOUNDLESS)), float(high.get("value", BOUNDLESS))
    sign = low.get("comparator", " ")[0]
    yield unit[1], unit[0], -BOUNDLESS if sign == "<" else ends[0], BOUNDLESS if sign == ">" else ends[1], unit[2]


def number_rows(value):
    return [("", "", float(value), float(value), "")]


def test_every_composite_ties_on_every_example_what_fhirpath_finds_in_one_element():
    compared = 0
    for name, text in EXAMPLES.items():
        tree = json.loads(text, parse_float=Decimal)
        found = ours(tree)
        for code, parameter in composites(tree["resourceType"]).items():
            expected = list(theirs(parameter, tree["resourceType"], tree))
            assert found.get(code, []) == expected, (name, code)
            compared += len(expected)
    assert compared > 150


def test_components_of_an_element_without_all_of_them_are_no_value():
    tree = {"resourceType": "Observation", "code": {"coding": [{"code": "a"}]}, "component": [{"valueQuantity": {"value": 1}}]}
    assert ours(tree) == {}


def test_element_types_that_no_component_can_compare_are_listed_here():
    unread = set()
    for type in definitions().resource_types:
        members = {one.url: one.type for one in definitions().search_parameters[type].values()}
        for code, parameter in composites(type).items():
            if code == "relationship":  # HL7 exchanged the two expressions
                continue
            for url, expression in parameter.components:
                for element in compile_expression(parameter.expression, type):
                    branches = [] if "%" in expression else compile_expression(expression, type, element)
                    unread |= {
                        (f"{type}.{code}", one.type) for one in branches if one.type not in COMPONENT_CONVERTERS[members[url]]
                    }
    assert unread == {("Group.characteristic-value", kind) for kind in ("Quantity", "Range", "Reference")}  # it is a token to HL7


def test_what_would_be_kept_again_with_every_element_is_limited():
    chromosome = {"coding": [{"code": str(number)} for number in range(21)]}
    tree = {"resourceType": "MolecularSequence", "referenceSeq": {"chromosome": chromosome}, "variant": [{"start": 1, "end": 2}]}
    with pytest.raises(Invalid, match="20 codes"):
        search_values(tree)


def test_all_composites_of_hl7_can_be_searched():
    every = [
        (type, code)
        for type, listed in definitions().search_parameters.items()
        for code, one in listed.items()
        if one.type == "composite"
    ]
    assert len(every) == 72
    assert all(code in searchable(type).extractors for type, code in every)
