"""Composite values, quantities in comparable units and places, found over the store's search on both databases."""

import math
import operator
import random
from dataclasses import replace
from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.fhir.query import Cursor, parse_query
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put

UCUM = "http://unitsofmeasure.org"


def coded(code, system="http://loinc.org"):
    return {"coding": [{"system": system, "code": code}]}


def quantity(value, code, **more):
    return {"value": value, "system": UCUM, "code": code, "unit": code, **more}


def observation(id, code, **members):
    return {"resourceType": "Observation", "id": id, "status": "final", "code": coded(code), **members}


def pressure(id, systolic, diastolic, **members):
    parts = [
        {"code": coded(code), "valueQuantity": quantity(value, "mm[Hg]")}
        for code, value in (("8480-6", systolic), ("8462-4", diastolic))
    ]
    return observation(id, "85354-9", component=parts, **members)


async def kept(store, *trees):
    await store.transact([Put(check_tree(tree)) for tree in trees], origin="test")


async def found(store, type, *asked):
    page = await store.search(parse_query(type, asked))
    return {one.id for one in page.matches}


async def test_a_composite_matches_within_one_element_only(store):
    high, low = pressure("high", 150, 80), pressure("low", 120, 95)
    weight = observation("weight", "29463-7", valueQuantity=quantity(95, "kg"))
    await kept(store, high, low, weight)

    async def ask(code, value):
        return await found(store, "Observation", (code, value))

    assert await ask("component-code-value-quantity", "8480-6$gt140") == {"high"}
    assert await ask("component-code-value-quantity", "8480-6$lt140") == {"low"}
    assert await ask("component-code-value-quantity", "http://loinc.org|8462-4$ge90,8480-6$ge150") == {"high", "low"}
    assert await ask("component-code-value-quantity", "http://other.org|8462-4$ge90") == set()
    assert await ask("component-code-value-quantity", f"8480-6$150|{UCUM}|mm[Hg]") == {"high"}
    assert await ask("component-code-value-quantity", f"8480-6$15|{UCUM}|cm[Hg]") == {"high"}
    assert await ask("component-code-value-quantity", "8480-6$95") == set(), "the code of one component with the value of another"
    assert await ask("combo-code-value-quantity", "29463-7$gt90,8462-4$gt90") == {"weight", "low"}
    assert await ask("code-value-quantity", "29463-7$gt90") == {"weight"}
    assert await ask("code-value-quantity", "85354-9$gt90") == set()
    assert await ask("component-code-value-quantity:missing", "true") == {"weight"}
    assert await ask("component-code-value-quantity:missing", "false") == {"high", "low"}
    both = (("component-code-value-quantity", "8480-6$gt100"), ("component-code-value-quantity", "8462-4$gt90"))
    assert await found(store, "Observation", *both) == {"low"}
    many = ",".join(f"8480-6${n}" for n in range(150, 200))
    most = ",".join(["x$1"] * 480 + ["8480-6$150"])
    for listed in (many, most):
        assert await ask("component-code-value-quantity", listed) == {"high"}
        assert await found(store, "Observation", ("component-code-value-quantity", listed), ("code", "85354-9")) == {"high"}


async def test_each_kind_of_component(store):
    await kept(
        store,
        observation("concept", "a", valueCodeableConcept=coded("x$y", "http://s")),
        observation("word", "a", valueString="Some, words"),
        observation("day", "a", valueDateTime="2024-05-17"),
        observation("span", "a", valuePeriod={"start": "2024-05-01", "end": "2024-05-20"}),
        *({"resourceType": "DocumentReference", "id": id, "status": "current", "content": [{"attachment": {"url": "http://x"}}]} for id in ("old", "x")),
        {"resourceType": "DocumentReference", "id": "new", "status": "current", "content": [{"attachment": {"url": "http://x"}}],
         "relatesTo": [{"code": "replaces", "target": {"reference": "DocumentReference/old"}}, {"code": "signs", "target": {"reference": "DocumentReference/x"}}]},
        {"resourceType": "Group", "id": "g", "type": "person", "actual": False, "characteristic": [
            {"code": coded("sex"), "valueCodeableConcept": coded("f"), "exclude": False}, {"code": coded("smokes"), "valueBoolean": True, "exclude": False}]},
        {"resourceType": "MolecularSequence", "id": "m", "coordinateSystem": 0, "referenceSeq": {"chromosome": coded("1"), "windowStart": 10, "windowEnd": 20},
         "variant": [{"start": 3, "end": 5}, {"start": 13, "end": 15}]},
        {"resourceType": "PlanDefinition", "id": "p", "status": "active", "useContext": [{"code": {"code": "age"}, "valueRange": {"low": quantity(60, "mo"), "high": quantity(120, "mo")}},
          {"code": {"code": "focus"}, "valueCodeableConcept": coded("asthma")}]},
    )  # fmt: skip

    async def ask(type, code, value):
        return await found(store, type, (code, value))

    assert await ask("Observation", "code-value-concept", r"a$http://s|x\$y") == {"concept"}
    assert await ask("Observation", "code-value-string", r"a$some\, w") == {"word"}
    assert await ask("Observation", "code-value-date", "a$2024-05-17") == {"day"}
    assert await ask("Observation", "code-value-date", "a$2024-05") == {"day", "span"}
    assert await ask("Observation", "code-value-date", "a$sa2024-04,b$2024") == {"day", "span"}
    assert await ask("DocumentReference", "relationship", "DocumentReference/old$replaces") == {"new"}
    assert await ask("DocumentReference", "relationship", "x$replaces") == set()
    assert await ask("Group", "characteristic-value", "sex$f") == {"g"}
    assert await ask("Group", "characteristic-value", "smokes$true") == {"g"}
    assert await ask("Group", "characteristic-value", "smokes$f") == set()
    assert await ask("MolecularSequence", "chromosome-variant-coordinate", "1$lt5$gt4") == {"m"}
    assert await ask("MolecularSequence", "chromosome-variant-coordinate", "1$lt5$gt14") == set()
    assert await ask("MolecularSequence", "chromosome-window-coordinate", "1$10$20") == {"m"}
    assert await ask("PlanDefinition", "context-type-value", "focus$asthma") == {"p"}
    assert await ask("PlanDefinition", "context-type-value", "age$asthma") == set()
    assert await ask("PlanDefinition", "context-type-quantity", f"age$ge5|{UCUM}|a") == {"p"}


async def test_composites_beyond_references_and_on_later_pages(store):
    subject = {"subject": {"reference": "Patient/p"}}
    await kept(
        store,
        {"resourceType": "Patient", "id": "p"},
        {"resourceType": "Patient", "id": "q"},
        *(pressure(f"o{n}", 140 + n, 80, **subject) for n in range(5)),
        {
            "resourceType": "DiagnosticReport",
            "id": "r",
            "status": "final",
            "code": coded("r"),
            "result": [{"reference": "Observation/o4"}],
        },
    )
    assert await found(store, "Patient", ("_has:Observation:patient:component-code-value-quantity", "8480-6$gt143")) == {"p"}
    assert await found(store, "Patient", ("_has:Observation:patient:component-code-value-quantity", "8480-6$gt144")) == set()
    chain = "result.component-code-value-quantity"
    assert await found(store, "DiagnosticReport", (chain, "8480-6$gt143")) == {"r"}
    assert await found(store, "DiagnosticReport", (chain, "8480-6$gt143"), ("_id", "r")) == {"r"}
    asked = [("component-code-value-quantity", "8480-6$gt140"), ("_count", "2")]
    first = await store.search(parse_query("Observation", asked))
    await kept(store, pressure("o2", 1, 1), pressure("o9", 200, 1))
    rest = await store.search(replace(parse_query("Observation", [asked[0]]), cursor=Cursor.from_json(first.next.as_json())))
    assert [one.id for one in (*first.matches, *rest.matches)] == ["o4", "o3", "o2", "o1"]


QUANTITIES = [  # what is stored, what is asked with {} for the system, whether it matches
    ((0.0054, "g"), "5.4|{}|mg", True),
    ((5.4, "mg"), "0.0054|{}|g", True),
    ((5.35, "mg"), "5.4|{}|mg", True),
    ((0.00535, "g"), "5.4|{}|mg", True),
    ((0.00545, "g"), "5.4|{}|mg", False),
    ((5.4, "mg"), "gt5399|{}|ug", True),
    ((5.4, "mg"), "gt5400|{}|ug", False),
    ((90, "mg/dL"), "0.9|{}|g/L", True),
    ((90, "mg/dL"), "ge5|{}|mmol/L", False),
    ((37.0, "Cel"), "98.6|{}|[degF]", True),
    ((98.6, "[degF]"), "gt36.9|{}|Cel", True),
    ((98.6, "[degF]"), "lt37.0|{}|Cel", False),
    ((60, "/min"), "1|{}|Hz", True),
    ((72, "{beats}/min"), "72|{}|/min", True),
    ((7, "10*3/uL"), "7|{}|10*9/L", True),
    ((50, "%"), "0.50|{}|1", True),
    ((5, "meq/L"), "5|{}|mmol/L", False),
    ((150, "[lb_av]"), "68.0|{}|kg", True),
    ((5, "m[IU]/L"), "5|{}|u[IU]/mL", True),
    ((3, "{pills}/wibble"), "3|{}|{pills}/wibble", True),
    ((3, "wibble"), "3|{}|wobble", False),
    ((5.4, "mg"), "5.4", True),
    ((5.4, "mg"), "0.0054", False),
    ((5.4, "mg"), "5.4||mg", True),
    ((5.4, "mg"), "0.0054||g", False),
    ((5.4, "mg"), "9,5.4|{}|g,0.0054|{}|g", True),
    ((5.4, "mg"), "ne5.4|{}|mg", False),
    ((5.4, "mg"), "ap7|{}|mg", False),
    ((5.4, "mg"), "ap0.0059|{}|g", True),
]


async def test_quantities_in_comparable_units(store):
    await kept(store, *(observation(f"o{n}", "a", valueQuantity=quantity(*one)) for n, (one, _, _) in enumerate(QUANTITIES)))
    for number, (one, asked, matches) in enumerate(QUANTITIES):
        value = asked.replace("{}", UCUM)
        ids = await found(store, "Observation", ("value-quantity", value), ("_id", f"o{number}"))
        assert ids == ({f"o{number}"} if matches else set()), (one, asked)
        assert (f"o{number}" in await found(store, "Observation", ("value-quantity", value), ("_count", "100"))) is matches, (
            one,
            asked,
        )


async def test_an_open_end_stays_open_in_other_units(store):
    await kept(store, observation("less", "a", valueQuantity=quantity(5, "mg", comparator="<")))
    assert await found(store, "Observation", ("value-quantity", f"lt0.001|{UCUM}|g")) == {"less"}
    assert await found(store, "Observation", ("value-quantity", f"gt0.01|{UCUM}|g")) == set()


AMOUNTS = st.tuples(st.sampled_from(["1", "2", "2.0", "2.5", "3", "1000", "2000"]), st.sampled_from(["mg", "g", "ug"]))
COMPONENTS = st.lists(st.tuples(st.sampled_from("abc"), AMOUNTS), max_size=3)
ASKED = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["", "eq", "ne", "gt", "lt", "ge", "le"]), AMOUNTS), min_size=1, max_size=2
)
GRAMS = {"mg": Decimal("0.001"), "g": Decimal(1), "ug": Decimal("0.000001")}
HOLDS = {"gt": operator.gt, "lt": operator.lt, "ge": operator.ge, "le": operator.le}


def passes(prefix, kept_as, asked):
    """Whether an amount passes by the prefix: the number counts as it is written, the range of its digits for equality."""
    value, number = (Decimal(one) * GRAMS[code] for one, code in (kept_as, asked))
    if prefix in HOLDS:
        return HOLDS[prefix](value, number)
    half = Decimal(5).scaleb(Decimal(asked[0]).as_tuple().exponent - 1) * GRAMS[asked[1]]
    return (number - half <= value < number + half) is (prefix != "ne")


async def test_composites_mean_what_a_model_of_them_means(store):
    cases = []

    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(st.lists(COMPONENTS, min_size=60, max_size=60), st.lists(ASKED, min_size=4, max_size=4))
    def collect(components, asked):
        cases.append((components, asked))

    collect()
    richest = max((components for components, _ in cases), key=lambda components: sum(map(len, components)))
    model = {f"o{number}": parts for number, parts in enumerate(richest)}
    await kept(
        store,
        *(
            observation(id, "panel", **({"component": [{"code": coded(code), "valueQuantity": quantity(float(value), unit)} for code, (value, unit) in parts]} if parts else {}))
            for id, parts in model.items()
        ),
    )  # fmt: skip
    for alternatives in (one for _, asked in cases for one in asked):
        value = ",".join(f"{code}${prefix}{number}|{UCUM}|{unit}" for code, prefix, (number, unit) in alternatives)
        expected = {
            id
            for id, parts in model.items()
            if any(
                code == wanted and passes(prefix, amount, number)
                for code, amount in parts
                for wanted, prefix, number in alternatives
            )
        }
        for also in ((), (("status", "final"),), (("_id", ",".join(model)),)):
            found_now = await found(store, "Observation", ("component-code-value-quantity", value), *also, ("_count", "100"))
            assert found_now == expected, value


# --- places


def distance(one, other):
    """Metres over the great circle by the haversine: another way than the store's."""
    (a, b), (c, d) = (map(math.radians, place) for place in (one, other))
    h = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(min(1, math.sqrt(h)))


async def test_places_within_a_distance_wherever_on_earth(store):
    chance = random.Random(5)
    around = [(0, 0), (51.5, -0.1), (-17, 179.99), (-17, -179.99), (89.99, 10), (-90, 0), (0, 180)]
    places = {f"l{n}": (chance.uniform(-90, 90), chance.uniform(-180, 180)) for n in range(60)}
    for n in range(140):
        latitude, longitude = chance.choice(around)
        spread = chance.choice([0.0001, 0.01, 1, 5])
        places[f"n{n}"] = (
            max(-90, min(90, latitude + chance.uniform(-spread, spread))),
            (longitude + chance.uniform(-spread, spread) + 540) % 360 - 180,
        )
    await kept(
        store,
        *({"resourceType": "Location", "id": id, "position": {"latitude": a, "longitude": b}} for id, (a, b) in places.items()),
        {"resourceType": "Location", "id": "nowhere"},
    )
    seen = 0
    for latitude, longitude in [*around, *(list(places.values())[:10])]:
        for metres in (10, 1000, 50_000, 3_000_000, 30_000_000):
            page = parse_query("Location", [("near", f"{latitude:.12f}|{longitude:.12f}|{metres}|m"), ("_count", "1000")])
            ids = {one.id for one in (await store.search(page)).matches}
            assert ids == {id for id, place in places.items() if distance(place, (latitude, longitude)) <= metres}, (
                latitude,
                longitude,
                metres,
            )
            seen += len(ids)
    assert seen > 2000


async def test_near_in_several_words(store):
    await kept(
        store,
        {"resourceType": "Location", "id": "here", "status": "active", "position": {"latitude": 42.2565, "longitude": -83.69481}},
        {"resourceType": "Location", "id": "far", "status": "active", "position": {"latitude": 43.2565, "longitude": -83.69481}},
        {"resourceType": "Location", "id": "nowhere"},
        {"resourceType": "PractitionerRole", "id": "role", "location": [{"reference": "Location/here"}]},
    )
    assert await found(store, "Location", ("near", "42.3|-83.7")) == {"here"}
    assert await found(store, "Location", ("near", "42.3|-83.7|5|km")) == {"here"}
    assert await found(store, "Location", ("near", "42.3|-83.7|4")) == set()
    assert await found(store, "Location", ("near", "42.3|-83.7|70|[mi_us],0|0"), ("status", "active")) == {"here", "far"}
    assert await found(store, "Location", ("near", "42.3|-83.7|70|mi"), ("_id", "far")) == {"far"}
    assert await found(store, "Location", ("near:missing", "true")) == {"nowhere"}
    assert await found(store, "PractitionerRole", ("location.near", "42.3|-83.7|5|km")) == {"role"}
