"""What a `_filter` finds is what a plain reading of the specification says of each resource, on both databases."""

import random
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.definitions import definitions
from fhircm.fhir.filter_syntax import DEPTH_LIMIT
from fhircm.fhir.outcome import NotSupported, TooCostly
from fhircm.fhir.query import parse_query, parse_types
from fhircm.fhir.validation import check_tree
from fhircm.store import search_sql
from fhircm.store.database import open_database
from fhircm.store.operations import Narrowing
from fhircm.store.resources import Put
from fhircm.store.search_sql import Builder

CODES = [("urn:a", "X"), ("urn:a", "y"), ("urn:b", "x")]
TEXTS = ["Ann", "anna", "Bo Ann", "bo", "Zoë"]
DATES = ["2019", "2020", "2020-02", "2020-02-29", "2020-12-31", "2021-03", "2021"]
NUMBERS = ["5", "5.0", "5.2", "7", "-1"]
PATIENTS = ["p1", "p2", "p3"]


# --- the resources, and the model of them: for each parameter the set of values


def observations(chance):
    """Observations with some of everything, each with its values."""
    for n in range(40):
        tree = {"resourceType": "Observation", "id": f"o{n}", "status": chance.choice(["final", "amended"])}
        codes = chance.sample(CODES, chance.randrange(1, 3))
        tree["code"] = {"coding": [{"system": system, "code": code} for system, code in codes]}
        if chance.random() < 0.7:
            tree["subject"] = {"reference": f"Patient/{chance.choice(PATIENTS)}"}
        kind = chance.choice(["none", "text", "quantity"])
        if kind == "text":
            tree["valueString"] = chance.choice(TEXTS)
        if kind == "quantity":
            tree["valueQuantity"] = {"value": float(chance.choice(NUMBERS)), "unit": "mg", "code": chance.choice(["mg", "g"])}
            tree["valueQuantity"]["system"] = "urn:u"
        if chance.random() < 0.4:
            tree["effectiveDateTime"] = chance.choice(DATES)
        elif chance.random() < 0.5:
            start, end = sorted(chance.sample(DATES[1:5], 2), key=lambda text: (span(text)[0], span(text)[1]))
            tree["effectivePeriod"] = {"start": start, "end": end}
        yield tree


def patients():
    yield {"resourceType": "Patient", "id": "p1", "gender": "male", "name": [{"family": "Ann", "given": ["Bo"]}]}
    yield {"resourceType": "Patient", "id": "p2", "gender": "female", "birthDate": "2020-02"}
    yield {"resourceType": "Patient", "id": "p3", "name": [{"family": "Zoë"}, {"given": ["anna"]}]}


def span(text):
    """A written date as days [low, high)."""
    parts = [int(part) for part in text.split("-")]
    if len(parts) == 1:
        return date(parts[0], 1, 1), date(parts[0] + 1, 1, 1)
    if len(parts) == 2:
        return date(*parts, 1), date(parts[0] + parts[1] // 12, parts[1] % 12 + 1, 1)
    return date(*parts), date(*parts) + timedelta(days=1)


def values(tree, name):
    """The set of values of a parameter."""
    match name:
        case "_id":
            return [(None, tree["id"])]
        case "status" | "gender":
            return [(None, tree[name])] if name in tree else []
        case "code":
            return [(one["system"], one["code"]) for one in tree["code"]["coding"]]
        case "value-string":
            return [tree["valueString"]] if "valueString" in tree else []
        case "name":
            return [part for one in tree.get("name", ()) for part in [one.get("family"), *one.get("given", ())] if part]
        case "value-quantity":
            return [tree["valueQuantity"]] if "valueQuantity" in tree else []
        case "birthdate":
            return [span(tree["birthDate"])] if "birthDate" in tree else []
        case "date":
            if "effectivePeriod" in tree:
                return [(span(tree["effectivePeriod"]["start"])[0], span(tree["effectivePeriod"]["end"])[1])]
            return [span(tree["effectiveDateTime"])] if "effectiveDateTime" in tree else []
        case "subject" | "patient":
            return [tree["subject"]["reference"]] if "subject" in tree else []
    raise KeyError(name)


def token(value, operator, asked):
    system, bar, code = asked.rpartition("|")
    same = (not bar or (value[0] or "") == system) and (not code or value[1].casefold() == code.casefold())
    return same == (operator == "eq")


def plain(text):
    return text.casefold().replace("ë", "e")


def string(value, operator, asked):
    value, asked = plain(value), plain(asked)
    match operator:
        case "eq":
            return value == asked
        case "ne":
            return value != asked
        case "co":
            return asked in value
        case "sw":
            return value.startswith(asked)
        case "ew":
            return value.endswith(asked)
    return {"gt": value > asked, "lt": value < asked, "ge": value >= asked, "le": value <= asked}[operator]


def when(value, operator, asked):
    (low, high), (from_, to) = value, span(asked)
    inside = from_ <= low and high <= to
    return {
        "eq": inside,
        "ne": not inside,
        "gt": high > to,
        "lt": low < from_,
        "ge": high > to or inside,
        "le": low < from_ or inside,
        "sa": low >= to,
        "eb": high <= from_,
        "co": low <= from_ and to <= high,
        "po": low < to and from_ < high,
    }[operator]


def quantity(value, operator, asked):
    number, *unit = asked.split("|")
    if unit and (value["system"], value["code"]) != tuple(unit):
        return False
    half = Fraction(1, 2) / 10 ** len(number.partition(".")[2])
    there, asked = Fraction(str(value["value"])), Fraction(number)
    equal = asked - half <= there < asked + half
    return {
        "eq": equal,
        "ne": not equal,
        "gt": there > asked,
        "sa": there > asked,
        "lt": there < asked,
        "eb": there < asked,
        "ge": there >= asked,
        "le": there <= asked,
        "ap": abs(there - asked) <= abs(asked) / 10,
    }[operator]


def reference(value, operator, asked):
    return value == asked


# For each parameter: how its values compare, the operators, and the values to compare with.
TESTS = {
    "_id": (token, ["eq", "ne"], ["o1", "o2", "nobody"]),
    "status": (token, ["eq", "ne"], ["final", "FINAL", "amended", "draft"]),
    "code": (token, ["eq", "ne"], ["x", "urn:a|x", "urn:b|x", "urn:a|", "z"]),
    "value-string": (string, ["eq", "ne", "co", "sw", "ew", "gt", "lt", "ge", "le"], ["ann", "BO", "bo ann", "zoe", "a", "%"]),
    "value-quantity": (
        quantity,
        ["eq", "ne", "gt", "lt", "ge", "le", "ap", "sa", "eb"],
        ["5", "5.0", "5.2", "7|urn:u|mg", "5.0|urn:u|g"],
    ),
    "date": (when, ["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "co", "po"], DATES),
    "subject": (reference, ["re", "eq"], ["Patient/p1", "Patient/p2"]),
}
OF_PATIENT = {
    "gender": (token, ["eq", "ne"], ["male", "female"]),
    "name": (string, ["eq", "ne", "co", "sw", "ew", "gt"], ["ann", "bo", "zoe"]),
    "birthdate": (when, ["eq", "ne", "ge"], ["2020", "2020-02"]),
}


def compared(of):
    def of_parameter(name):
        _, operators, asked = of[name]
        some = st.tuples(st.just(name), st.sampled_from(operators), st.sampled_from(asked))
        return some | st.tuples(st.just(name), st.just("pr"), st.sampled_from(["true", "false"]))

    return st.sampled_from(sorted(of)).flatmap(of_parameter)


def trees(leaves):
    def grown(inner):
        joined = st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3))
        return joined | st.tuples(st.just("not"), inner)

    return st.recursive(leaves, grown, max_leaves=6)


OF_PATIENTS = trees(compared(OF_PATIENT))
CHAINED = st.tuples(st.just("chain"), st.sampled_from(["subject", "patient"]), st.none() | OF_PATIENTS, compared(OF_PATIENT))
FILTERS = trees(compared(TESTS) | CHAINED)


def written(node):
    match node:
        case ("chain", name, inner, (last, operator, value)):
            bracket = f"[{written(inner)}]" if inner else ""
            return f'{name}{bracket}.{last} {operator} "{value}"'
        case ("not", inner):
            return f"not ({written(inner)})"
        case ("and" | "or" as word, parts):
            return f" {word} ".join(f"({written(part)})" for part in parts)
        case (name, operator, value):
            return f"{name} {operator} {value}" if " " not in value else f'{name} {operator} "{value}"'


def holds(node, tree, charts):
    match node:
        case ("chain", name, inner, last):
            there = [charts[one.removeprefix("Patient/")] for one in values(tree, name)]
            there = [one for one in there if inner is None or holds(inner, one, charts)]
            if last[1:] == ("pr", "false"):
                return not any(values(one, last[0]) for one in there)
            return any(holds(last, one, charts) for one in there)
        case ("not", inner):
            return not holds(inner, tree, charts)
        case ("and", parts):
            return all(holds(part, tree, charts) for part in parts)
        case ("or", parts):
            return any(holds(part, tree, charts) for part in parts)
        case (name, "pr", value):
            return bool(values(tree, name)) == (value == "true")
        case (name, operator, asked):
            compare = (TESTS | OF_PATIENT)[name][0]
            return any(compare(value, operator, asked) for value in values(tree, name))


@pytest.fixture
async def chart(store):
    listed = list(observations(random.Random(5)))
    people = list(patients())
    await store.transact([Put(check_tree(tree)) for tree in (*people, *listed)], origin="test")
    return listed, {tree["id"]: tree for tree in people}


async def found(store, type, *filters, within=None):
    query = parse_query(type, [("_count", "1000"), *(("_filter", one) for one in filters)])
    return {one.id for one in (await store.search(query, within)).matches}


async def test_any_filter_means_the_same_as_its_model(store, chart):
    listed, charts = chart
    collected = [
        (name, operator, value) for name, (_, operators, asked) in TESTS.items() for operator in operators for value in asked
    ]

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(FILTERS)
    def collect(node):
        collected.append(node)

    collect()
    sizes = set()
    for node in collected:
        expected = {tree["id"] for tree in listed if holds(node, tree, charts)}
        assert await found(store, "Observation", written(node)) == expected, written(node)
        sizes.add(len(expected))
    assert len(sizes) > 20  # neither all nor nothing


async def test_words_are_joined_from_left_to_right(store, chart):
    either = await found(store, "Observation", "_id eq o1 or _id eq o2 and _id eq o2")
    assert either == {"o2"}
    assert await found(store, "Observation", "_id eq o1 OR (_id eq o2 and _id eq o2)") == {"o1", "o2"}
    assert await found(store, "Observation", "_id eq o1 or _id eq o2", "_id eq o2 or _id eq o3") == {"o2"}


def deepest(core):
    """Filters of as many levels as there may be, with a core inside."""
    ends, negated, bracketed = core, core, core
    for level in range(DEPTH_LIMIT):
        ends = f"name co a {'and' if level % 2 else 'or'} ({ends})"
        negated = f"not ({negated})"
    for level in range(3):
        if level < DEPTH_LIMIT // 3:
            bracketed = f"name co a and link[name co b or name co d and ({bracketed})].name co d"
    yield from (ends, negated, bracketed)


async def test_the_largest_filters_reach_both_databases(store, chart):
    reached = 0
    for core in (
        "name co a",
        "link.link.link.name ew a",
        "organization.partof.name pr false",
        "link[name ew b and name eq c].name co d",
    ):
        for text in deepest(core):
            with suppress(InvalidValue, NotSupported):
                query = parse_query("Patient", [("_filter", text), ("_sort", "-birthdate,family")])
                both = replace(query, others=(("Patient", query.conditions), ("Patient", query.conditions)))
                await store.search(both, Narrowing(dict.fromkeys(definitions().resource_types, ())))
                reached += 1
    assert reached >= 6
    await found(store, "Observation", " or ".join(f"not (status ne x{n})" for n in range(100)))
    with pytest.raises(InvalidValue, match="more than 100"):
        await found(store, "Observation", " or ".join(f"status eq x{n}" for n in range(101)))


async def test_a_search_that_no_statement_can_hold_is_refused(store, chart, monkeypatch):
    monkeypatch.setattr(search_sql, "_ARGUMENTS_LIMIT", 100)
    asked = [("_filter", " or ".join(f"_tag eq urn:s|{n}" for n in range(20)))]
    assert (await store.search(parse_query("Patient", asked))).matches == []
    with pytest.raises(TooCostly, match="fewer"):
        await store.search(parse_types(["Observation", "Patient"], asked))


@pytest.mark.parametrize(
    ("asked", "table"),
    [
        ("code eq a and value-quantity gt 5", "search_quantity"),
        ("code eq a and value-string lt b", "search_string"),
        ("code eq a and value-quantity pr false", "search_quantity"),
    ],
)
async def test_the_rows_of_a_candidate_are_found_by_the_candidate(sqlite_url, asked, table):
    """SQLite has no figures to go by; left to itself it would walk through all quantities above five for each code."""
    database = await open_database(sqlite_url)
    builder = Builder("sqlite")
    sql = builder.keys("Observation", parse_query("Observation", [("_filter", asked)]).conditions)
    async with database.reading() as connection:
        steps = [row["detail"] for row in await connection.fetch(f"EXPLAIN QUERY PLAN {sql}", *builder.arguments)]
    await database.close()
    assert any(f"INDEX {table}_resource (resource_key=?)" in step for step in steps), steps


async def test_what_a_caller_may_not_see_is_not_there_for_a_filter_either(store, chart):
    listed, _ = chart
    blind = Narrowing({"Observation": ()})
    assert await found(store, "Observation", "subject.gender eq male")
    assert await found(store, "Observation", "subject.gender eq male", within=blind) == set()
    assert await found(store, "Observation", "subject[gender eq male].name co a or status eq x", within=blind) == set()
    everyone = {tree["id"] for tree in listed}
    assert await found(store, "Observation", "not (subject.gender eq male)", within=blind) == everyone
    assert await found(store, "Observation", "subject.gender pr false", within=blind) == everyone
