"""Code systems, value sets and concept maps, with HL7's own expansions as the oracle. https://hl7.org/fhir/R4/valueset.html"""

import gzip
import json
from collections import Counter
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.fhir.outcome import TooCostly
from fhircm.fhir.terminology import expansion
from fhircm.fhir.terminology.artefacts import CannotCompute, Canonical, canonical
from fhircm.fhir.terminology.code_system import compiled
from fhircm.fhir.terminology.expansion import expand
from fhircm.fhir.terminology.library import Library, Versions, Wanted
from fhircm.fhir.terminology.listing import nested

OF_HL7 = json.loads(gzip.decompress((Path(__file__).parent / "expansions.json.gz").read_bytes()))

# Where the expansions of HL7's publication of 2019 have other codes than the definitions that it published them with.
OTHER_CODES = {
    "http://hl7.org/fhir/ValueSet/detectedissue-category",  # children that v3 gives as a property, not by nesting, are left out
    "http://terminology.hl7.org/ValueSet/v3-ActPharmacySupplyType",  # the same
    "http://terminology.hl7.org/ValueSet/v3-ActCode",  # one code is left out
}
# Where a terminology server of 2019 knew better words for codes of SNOMED CT, LOINC and DICOM than the value set has, or another order.
OTHER_WORDS = 25


def code_system(concepts, url="urn:s", **more):
    return compiled(
        {"resourceType": "CodeSystem", "url": url, "status": "active", "content": "complete", "concept": concepts} | more,
        f"{url} {more}",
    )


def value_set(include, url="urn:v", **more):
    return compiled(
        {"resourceType": "ValueSet", "url": url, "status": "active", "compose": {"include": include} | more},
        f"{url} {include} {more}",
    )


def library(*artefacts):
    stored = {}
    for one in artefacts:
        stored.setdefault(Wanted(one.type, one.url), []).append(one)
    return Library(stored)


def codes(library, value_set, **options):
    return [code for _, code in expand(library, value_set, **options).members]


TREE = [
    {"code": "a", "display": "A", "concept": [{"code": "b", "concept": [{"code": "c"}]}, {"code": "d"}]},
    {
        "code": "e",
        "property": [
            {"code": "parent", "valueCode": "d"},
            {"code": "size", "valueInteger": 3},
            {"code": "kind", "valueCoding": {"code": "k"}},
        ],
    },
    {"code": "f", "property": [{"code": "child", "valueCode": "c"}, {"code": "lit", "valueBoolean": True}]},
]


def test_the_expansions_of_hl7():
    """Every one that HL7 gives as whole and that can be computed from what is built in has the same codes, words and order."""
    told, other = Counter(), set()
    for url, listed in OF_HL7.items():
        found = Library().find("ValueSet", Canonical(url))
        try:
            members = [] if found is None or listed is None else expand(Library(), found).members.values()
        except CannotCompute:
            told["not computable"] += 1
            continue
        if found is None or listed is None:
            told["not whole, or not HL7's"] += 1
            continue
        systems, rows = listed
        # A flat expansion of HL7 has no codes that only group others, and none that v2 or v3 call deprecated.
        shown = [
            one for one in members if not one.abstract and not (one.concept and "deprecated" in one.concept.values("status"))
        ]
        made = [(one.system, one.code, one.display) for one in shown]
        expected = [(systems[at], code, words) for at, code, words in rows]
        if {one[:2] for one in made} != {one[:2] for one in expected}:
            other.add(url)
        else:
            told["equal" if made == expected else "other words or order"] += 1
    assert other == OTHER_CODES
    assert told["other words or order"] == OTHER_WORDS
    assert told["equal"] == 465
    assert sum(told.values()) + len(other) == len(OF_HL7) == 553


@pytest.mark.parametrize(
    ("property", "op", "value", "expected"),
    [
        ("concept", "is-a", "a", "abcde"),
        ("concept", "is-a", "f", "cf"),
        ("concept", "is-a", "nobody", ""),
        ("concept", "descendent-of", "a", "bcde"),
        ("concept", "is-not-a", "b", "adef"),
        ("concept", "generalizes", "c", "abcf"),
        ("code", "=", "d", "d"),
        ("display", "=", "A", "a"),
        ("parent", "=", "d", "e"),
        ("child", "=", "c", "bf"),
        ("size", "=", "3", "e"),
        ("kind", "=", "k", "e"),
        ("lit", "=", "true", "f"),
        ("code", "in", "a, e", "ae"),
        ("code", "not-in", "a,e", "bcdf"),
        ("size", "exists", "true", "e"),
        ("size", "exists", "false", "abcdf"),
        ("code", "regex", "[a-c]", "abc"),
        ("code", "regex", "a|b", "ab"),
    ],
)
def test_filters(property, op, value, expected):
    include = [{"system": "urn:s", "filter": [{"property": property, "op": op, "value": value}]}]
    assert "".join(codes(library(code_system(json.loads(json.dumps(TREE)))), value_set(include))) == expected


@pytest.mark.parametrize(
    ("op", "value"), [("regex", "(a"), ("regex", "(?=a)b"), ("regex", r"(a)\1"), ("regex", "a{1,100000}"), ("near", "a")]
)
def test_filters_that_cannot_be_computed_are_refused(op, value):
    include = [{"system": "urn:s", "filter": [{"property": "code", "op": op, "value": value}]}]
    with pytest.raises(CannotCompute):
        codes(library(code_system([{"code": "a"}])), value_set(include))


def test_a_regular_expression_takes_linear_time():
    include = [{"system": "urn:s", "filter": [{"property": "code", "op": "regex", "value": "(a+)+b"}]}]
    assert codes(library(code_system([{"code": "a" * 5_000}])), value_set(include)) == []


@st.composite
def hierarchies(draw):
    """Code systems in which a concept may have several parents, or even stand above itself."""
    names = [str(at) for at in range(draw(st.integers(1, 8)))]
    parents = {name: draw(st.lists(st.sampled_from(names), max_size=3)) for name in names}
    return [{"code": name, "property": [{"code": "parent", "valueCode": one} for one in parents[name]]} for name in names]


@given(hierarchies(), st.integers(0, 7))
def test_filters_and_subsumption_agree(concepts, at):
    system = code_system(concepts)
    names = list(system.concepts)
    code = names[at % len(names)]

    def by(op):
        return set(
            codes(library(system), value_set([{"system": "urn:s", "filter": [{"property": "concept", "op": op, "value": code}]}]))
        )

    assert by("is-a") | by("is-not-a") == set(names)
    assert not by("is-a") & by("is-not-a")
    assert by("descendent-of") == by("is-a") - {code}
    assert by("generalizes") == {one for one in names if code in system.below(one)}
    assert {one for one in names if system.subsumes(code, one) in ("subsumes", "equivalent")} == by("is-a")


@given(hierarchies())
def test_a_nested_expansion_has_every_code_once(concepts):
    members = list(expand(library(code_system(concepts)), value_set([{"system": "urn:s"}])).members.values())
    trees = nested(members, [{"code": one.code} for one in members])
    seen = []
    while trees:
        one = trees.pop()
        seen.append(one["code"])
        trees += one.get("contains", [])
    assert sorted(seen) == sorted(one.code for one in members)


def test_includes_add_up_and_what_stands_in_one_must_all_hold():
    system = code_system([{"code": code} for code in "abcd"])
    small = value_set([{"system": "urn:s", "concept": [{"code": "a"}, {"code": "b"}]}], "urn:small")
    other = value_set(
        [{"system": "urn:s", "concept": [{"code": "b"}, {"code": "c"}]}, {"system": "urn:t", "concept": [{"code": "b"}]}],
        "urn:other",
    )
    known = library(system, small, other)
    assert codes(known, value_set([{"valueSet": ["urn:small"]}, {"valueSet": ["urn:other"]}])) == ["a", "b", "c", "b"]
    assert codes(known, value_set([{"valueSet": ["urn:small", "urn:other"]}])) == ["b"]
    assert codes(known, value_set([{"system": "urn:t", "valueSet": ["urn:other"]}])) == ["b"]
    assert codes(
        known, value_set([{"system": "urn:s", "concept": [{"code": "a"}, {"code": "c"}], "valueSet": ["urn:other"]}])
    ) == ["c"]
    assert codes(known, value_set([{"system": "urn:s"}], exclude=[{"valueSet": ["urn:small"]}])) == ["c", "d"]
    assert codes(known, value_set([{"system": "urn:s"}], exclude=[{"system": "urn:s", "concept": [{"code": "d"}]}])) == [
        "a",
        "b",
        "c",
    ]


def test_the_words_of_the_value_set_come_before_those_of_the_code_system():
    system = code_system([{"code": "a", "display": "Alpha"}, {"code": "b", "display": "Beta"}])
    include = [{"system": "urn:s", "concept": [{"code": "a", "display": "First"}, {"code": "b"}]}]
    assert [one.display for one in expand(library(system), value_set(include)).members.values()] == ["First", "Beta"]


def test_value_sets_that_include_each_other_are_refused():
    one, other = value_set([{"valueSet": ["urn:2"]}], "urn:1"), value_set([{"valueSet": ["urn:1"]}], "urn:2")
    with pytest.raises(CannotCompute, match="itself"):
        codes(library(one, other), one)
    chain = [value_set([{"valueSet": [f"urn:{at + 1}"]}], f"urn:{at}") for at in range(60)] + [value_set([], "urn:60")]
    with pytest.raises(CannotCompute, match="steps"):
        codes(library(*chain), chain[0])


def test_versions():
    old = code_system([{"code": "old"}], version="1.9")
    new = code_system([{"code": "new"}], version="1.10")
    draft = code_system([{"code": "draft"}], version="2", status="draft")
    known = library(old, draft, new)
    assert codes(known, value_set([{"system": "urn:s"}])) == ["new"]
    assert codes(known, value_set([{"system": "urn:s", "version": "2"}])) == ["draft"]
    assert codes(known, value_set([{"system": "urn:s"}]), versions=Versions(default={"urn:s": "1.9"})) == ["old"]
    assert codes(known, value_set([{"system": "urn:s", "version": "2"}]), versions=Versions(force={"urn:s": "1.9"})) == ["old"]
    assert codes(known, value_set([{"system": "urn:s"}]), versions=Versions(check={"urn:s": "1.9"})) == ["old"]
    assert codes(known, value_set([{"system": "urn:s|2"}])) == ["draft"]  # as US Core writes it
    with pytest.raises(CannotCompute):
        codes(known, value_set([{"system": "urn:s", "version": "3"}]))
    empty = code_system([], content="not-present", url="http://hl7.org/fhir/administrative-gender")
    gender = value_set([{"system": "http://hl7.org/fhir/administrative-gender"}])
    assert len(codes(library(empty), gender)) == 4
    assert canonical("urn:s|1", "2") == ("urn:s", "1")


def test_inactive_codes_stay_until_the_value_set_says_otherwise():
    system = code_system([{"code": "a", "property": [{"code": "inactive", "valueBoolean": True}]}, {"code": "b"}])
    assert codes(library(system), value_set([{"system": "urn:s"}])) == ["a", "b"]
    assert codes(library(system), value_set([{"system": "urn:s"}], inactive=False)) == ["b"]


def test_too_many_codes(monkeypatch):
    monkeypatch.setattr(expansion, "LIMIT", 2)
    system = code_system([{"code": code} for code in "abc"])
    with pytest.raises(TooCostly, match="2"):
        codes(library(system), value_set([{"system": "urn:s"}]))
    one = value_set([{"system": "urn:s", "concept": [{"code": "a"}]}], "urn:one")
    assert codes(library(one), value_set([{"valueSet": ["urn:one"]}] * 19)) == ["a"]
    with pytest.raises(TooCostly, match="twice"):
        codes(library(one), value_set([{"valueSet": ["urn:one"]}] * 20))


def test_many_children_of_one_parent_cost_no_more_than_few():
    """Each is looked up once, never compared with all that are there already."""
    below = [{"code": str(number), "property": [{"code": "parent", "valueCode": "top"}]} for number in range(30_000)]
    began = process_time()
    system = code_system([{"code": "top"}, *below])
    assert len(system.below("top")) == 30_001
    assert process_time() - began < 5  # of processor time; comparing them takes many times that


def test_a_concept_of_which_only_an_extension_is_there_is_passed_over():
    system = code_system([{"_code": {"extension": []}, "concept": [{"code": "a"}]}, {"code": "b"}])
    assert list(system.concepts) == ["b"]
