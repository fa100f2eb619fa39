"""Every search parameter of every type finds random resources by their values, and not by others; on both databases."""

import re
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import component_key, search_values, searchable
from fhircm.fhir.query import parse_query
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST
from fhircm.fhir.references import parse_reference
from fhircm.fhir.validation import check_tree
from fhircm.fhir.values import Amount, Span, Target, Text, Token, Uri
from fhircm.store.resources import Put
from tests.fhir.resources import Maker

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EACH = 5  # resources of each type
SPECIMENS = {"token": Token, "reference": Target, "string": Text, "date": Span, "number": Amount, "quantity": Amount, "uri": Uri}
WRONG = {
    "token": "no-such-code",
    "reference": "https://nowhere.example/Patient/none",
    "string": "qqqqq",
    "number": "98765.4321",
    "quantity": "98765.4321",
    "uri": "http://nowhere.example/",
}


def written(text):
    return re.sub(r"([,|$\\])", r"\\\1", text)


def moment(micros):
    return (EPOCH + timedelta(microseconds=micros)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def token(row, extractor):
    """Values that find the row, without and with what qualifies them."""
    if row.code:
        yield "", written(row.code)
    if row.system or not row.code:
        yield "", f"{written(row.system)}|{written(row.code)}"
    elif not row.system:
        yield "", f"|{written(row.code)}"


def reference(row, extractor):
    if row.target_type and (not extractor.targets or row.target_type in extractor.targets):
        yield "", f"{row.target_type}/{row.target_id}"
        yield "", row.target_id
        if extractor.targets:
            yield row.target_type, row.target_id
    elif not row.target_type and parse_reference(row.target_id).kind in ("absolute", "canonical", "urn"):
        yield "", written(row.target_id)


def string(row, extractor):
    yield "", written(row.exact)
    yield "", written(row.exact[:3])
    yield "exact", written(row.exact)
    yield "contains", written(row.exact[1:]) if row.normalised[1:].strip() else written(row.exact)


def date(row, extractor):
    if row.low != EARLIEST:
        yield "", f"ge{moment(row.low)}"
        yield "", f"sa{moment(row.low - 10**6)}"
    if row.high != LATEST:
        yield "", f"le{moment(row.high)}"
        yield "", f"eb{moment(row.high + 10**6)}"


def number(row, extractor):
    if row.low == row.high:
        yield "", repr(row.low)
        yield "", f"ap{row.low!r}"
    if row.high != BOUNDLESS:
        yield "", f"ge{row.high!r}"
    if row.low != -BOUNDLESS:
        yield "", f"le{row.low!r}"


def quantity(row, extractor):
    yield from number(row, extractor)
    if row.low == row.high and row.code:
        yield "", f"{row.low!r}|{written(row.system)}|{written(row.code)}"
        yield "", f"{row.low!r}||{written(row.code)}"
    if row.unit:
        yield "", f"ge{row.high!r}||{written(row.unit)}" if row.high != BOUNDLESS else f"gt0||{written(row.unit)}"


def uri(row, extractor):
    yield "", written(row.uri)
    yield "below", written(row.uri.rpartition("/")[0])
    yield "above", f"{written(row.uri)}/x"


def questions(kind, row, extractor):
    return list(globals()[kind](row, extractor))


def others(kind, rows, extractor):
    """A value that none of the rows has."""
    if kind == "date":
        low, high = min(row.low for row in rows), max(row.high for row in rows)
        return [("", f"{prefix}{moment(at)}") for prefix, at in (("lt", low), ("gt", high)) if EARLIEST < at < LATEST]
    if kind in ("number", "quantity"):
        low, high = min(row.low for row in rows), max(row.high for row in rows)
        if abs(low) == BOUNDLESS or high == BOUNDLESS:
            return []
        return [("", f"lt{low!r}"), ("", f"gt{high!r}"), ("", repr(high + 12345.0))]
    if extractor.types == {"boolean"}:
        return [("", flag) for flag in ("true", "false") if all(row.code != flag for row in rows)]
    return [("", WRONG[kind])]


def of_parameter(code, extractor, tree, values):
    """What finds the resource by this parameter, and what does not."""
    kind = extractor.definition.type
    if kind == "special":
        at = tree["position"]
        return [("", f"{at['latitude']}|{at['longitude']}|1|m")], [("", f"{-at['latitude']}|{at['longitude'] / 2 + 90}|1|m")]
    if kind == "composite":
        return of_composite(code, extractor, values)
    rows = [value for value in values[code] if type(value) is SPECIMENS[kind]]
    good = [one for row in rows for one in questions(kind, row, extractor)]
    good += [("text", written(row.exact)) for row in values[code] if kind == "token" and type(row) is Text]
    good += [("of-type", "|".join(map(written, (row.system, *row.code.split("|", 1))))) for row in values[f"{code}:of-type"]]
    good += [
        ("identifier", f"{written(row.system)}|{written(row.code)}")
        for row in values[code]
        if kind == "reference" and type(row) is Token
    ]
    return good, others(kind, rows, extractor) if rows else []


def of_composite(code, extractor, values):
    keys = [component_key(code, number) for number in range(len(extractor.components))]
    parts, wrong = [], []
    for key, component in zip(keys, extractor.components, strict=True):
        kind = component.definition.type
        rows = [SPECIMENS[kind](*(getattr(row, name) for name in SPECIMENS[kind]._fields)) for row in values[key]]
        first = [row for row, whole in zip(rows, values[key], strict=True) if whole.at == 0]
        plain = [value for row in first for modifier, value in questions(kind, row, component) if not modifier]
        if kind == "date":
            plain = [value for value in plain if value[0] in "gs"] or plain
        parts.append(plain)
        wrong.append([value for _, value in others(kind, rows, component)])
    if not all(parts):
        return [], []
    good = "$".join(listed[0] for listed in parts)
    bad = ["$".join(listed[0] for listed in (*parts[:at], wrong[at], *parts[at + 1 :])) for at in range(len(parts)) if wrong[at]]
    return [("", good)], [("", one) for one in bad]


def by_parameter(tree):
    listed = defaultdict(list)
    for value in search_values(tree):
        listed[value.parameter].append(value)
    return listed


def named(code, modifier, value):
    return f"{code}:{modifier}" if modifier else code, value


async def ids(store, type, *asked):
    return {one.id for one in (await store.search(replace(parse_query(type, asked), count=1000))).matches}


async def test_every_parameter_finds_by_every_kind_of_value_and_by_no_other(store):
    chance = Random(store.database.dialect)
    names = {type: [f"r{number}" for number in range(EACH)] for type in sorted(definitions().resource_types)}
    maker = Maker(chance, names)
    checked = {(type, id): check_tree(maker.resource(type, id)) for type, listed in names.items() for id in listed}
    await store.transact([Put(one) for one in checked.values()], origin="test")
    asked: set[tuple[str, str]] = set()
    for (type, id), one in checked.items():
        values, together = by_parameter(one.tree), []
        for code, extractor in searchable(type).extractors.items():
            if not values[code] or not extractor.sources:
                continue
            good, bad = of_parameter(code, extractor, one.tree, values)
            if not good:
                continue
            together.append(named(code, *chance.choice(good)))
            if (type, code) in asked:
                continue
            asked.add((type, code))
            together.append((f"{code}:missing", "false"))
            if code.startswith("_") and type > "C":
                continue  # what all types have in common is asked alone of some
            assert id in await ids(store, type, together[-2]), (type, id, together[-2])
            for modifier, value in chance.sample(bad, min(chance.randrange(2), len(bad))):
                assert id not in await ids(store, type, named(code, modifier, value)), (type, id, code, value)
        assert id in await ids(store, type, *together[:12], ("_id", id)), (type, id, together)
    possible = {(type, code) for type in names for code, one in searchable(type).extractors.items() if one.sources}
    assert len(asked) > 0.9 * len(possible), sorted(possible - asked)
