"""JSON as it came: what is not changed keeps every byte, and what is hostile is told with its place."""

import json as std_json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir import json
from fhircm.fhir.outcome import Malformed

NAMES = st.text(st.characters(min_codepoint=32, exclude_characters='"\\', exclude_categories=("Cs",)), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=12) | st.just("Patient/x")
TREES = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=10),
    max_size=6,
)
SPACES = st.sampled_from(["", " ", "\n  ", "\t"])


def written(tree, space):
    """The tree with white space in all the places where JSON may have it."""
    plain = std_json.dumps(tree, ensure_ascii=False, separators=(f"{space},{space}", f"{space}:{space}"))
    return f"{space}{plain}{space}".encode()


@given(TREES, SPACES, st.dictionaries(st.sampled_from(["id", "meta", "text"]), LEAVES, max_size=2))
def test_a_splice_sets_its_members_and_keeps_every_other_byte(tree, space, members):
    body = written(tree, space)
    spliced = json.splice(body, members)
    assert std_json.loads(spliced) == tree | members
    for name, value in tree.items():
        if name not in members:
            assert written({name: value}, space).strip()[1:-1].strip() in spliced
    assert json.splice(spliced, members) == spliced


@given(TREES, SPACES)
def test_rewriting_references_touches_nothing_else(tree, space):
    body = written({"resourceType": "X", "ref": {"reference": "Patient/x"}, **tree}, space)
    assert json.rewrite_references(body, lambda one: one) == body
    there = json.rewrite_references(body, lambda one: "Patient/yy" if one == "Patient/x" else one)
    assert json.rewrite_references(there, lambda one: "Patient/x" if one == "Patient/yy" else one) == body


@pytest.mark.parametrize("number", ["2.50", "0.10", "1E3", "-0.0", "1.000000000000000000001", "12345678901234567890.5"])
def test_a_decimal_keeps_its_digits(number):
    body = f'{{"resourceType":"X","value":{number}}}'.encode()
    assert json.parse(body)["value"] == Decimal(number)
    assert str(json.loads(body)["value"]) == str(Decimal(number))
    assert std_json.loads(json.dumps(json.loads(body)), parse_float=str)["value"] == str(Decimal(number))
    assert f'"value":{number}'.encode() in json.splice(body, {"id": "a"})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "line 1, column 1"),
        (b'{"a":1,\n "b":}', "line 2, column 6"),
        (b"\xff", "byte 0"),
        (b'"text"', "object"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":{"b":1,"b":2}}', "'b'"),
        (b'{"\\u0061":1}', "escapes"),
        (b'{"a":"\\u0000"}', "U+0000"),
        (b'{"a":["\\uDFFF"]}', "surrogate"),
        (b'{"a":' * 100_000, "nested"),
        (b'{"a":' + b"9" * 6000 + b"}", "JSON"),
    ],
)
def test_what_is_no_resource_is_told_with_its_place(body, told):
    with pytest.raises(Malformed, match=told.replace("+", r"\+")):
        json.parse(body)
