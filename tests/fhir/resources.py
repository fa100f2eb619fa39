"""Random legal resources of any type, from the tables of the definitions."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

from fhircm.fhir.definitions import definitions
from fhircm.fhir.schema import Child, children

WORDS = ["Ana", "o'Brien", "Ålesund", "straße", "a,b", "x|y", "1$2", "back\\slash", "100%", "under_score", "山田", "Smith-Jones"]
SYSTEMS = ["http://loinc.org", "http://snomed.info/sct", "urn:oid:1.2.3", "http://example.org/a,b"]
CODES = ["active", "8480-6", "A1", "aBc", "x$y", "p|q", "r,s", "final"]
UNITS = ["mg", "g", "kg", "mm[Hg]", "mmol/L", "mg/dL", "Cel", "[degF]", "a", "mo", "10*3/uL", "%", "{score}", "bottle"]
NEVER = frozenset({"extension", "modifierExtension", "id"})
OF_RESOURCES = frozenset({"contained", "meta", "implicitRules", "language", "text"})


class Maker:
    """Makes resources; `ids` are those of all that exist, by type: local references lead to them."""

    def __init__(self, chance: Random, ids: dict[str, list[str]]) -> None:
        self.chance = chance
        self.ids = ids

    def resource(self, type: str, id: str) -> dict[str, Any]:
        """One resource; what FHIR leaves free is there or not by chance."""
        tree = {"resourceType": type, "id": id, **self.members(type, 0)}
        if self.chance.random() < 0.5:
            tree["meta"] = {
                "tag": [self.value(_child("Coding"), 3)],
                "source": self.uri(),
                "profile": [self.uri()],
                "security": [self.value(_child("Coding"), 3)],
            }
        return tree

    def members(self, type: str, depth: int) -> dict[str, Any]:
        names = self.chosen(type, depth)
        made = {name: self.element(type, name, children(type)[name], depth) for name in names}
        return LEGAL[type](made) if type in LEGAL else made

    def chosen(self, type: str, depth: int) -> list[str]:
        """Every element that must be there and some that may, one of each choice."""
        by_element: dict[str, list[str]] = {}
        for name, child in children(type).items():
            if name not in NEVER and name != "total" and not (depth == 0 and name in OF_RESOURCES):
                by_element.setdefault(child.element.path, []).append(name)
        share = (0.7, 0.5, 0.3, 0.2, 0.0)[min(depth, 4)]
        names = [
            self.chance.choice(names)
            for path, names in by_element.items()
            if definitions().elements[path].min or self.chance.random() < share
        ]
        plain = [
            name for options in by_element.values() for name in options if children(type)[name].type in {*PRIMITIVES, *OTHERS}
        ]
        return names or plain[:1] or next(iter(by_element.values()))

    def element(self, type: str, name: str, child: Child, depth: int) -> Any:
        if child.element.max == 1:
            return self.value(child, depth + 1)
        return [self.value(child, depth + 1) for _ in range(self.chance.choice([1, 1, 2]))]

    def value(self, child: Child, depth: int) -> Any:
        if child.type == "code" and child.element.codes:
            return self.chance.choice(sorted(child.element.codes))
        if child.is_primitive:
            return PRIMITIVES[child.type](self)
        return OTHERS[child.type](self, child) if child.type in OTHERS else self.members(child.type, depth)

    def pick(self, values: list[str]) -> str:
        return self.chance.choice(values)

    def moment(self) -> str:
        return f"{self.chance.randrange(1900, 2100)}-{self.chance.randrange(1, 13):02}-{self.chance.randrange(1, 29):02}T{self.chance.randrange(24):02}:30:00{self.pick(['Z', '.250Z', '+05:30', '-08:00'])}"

    def date(self) -> str:
        return self.moment()[: self.chance.choice([4, 7, 10])]

    def uri(self) -> str:
        return f"http://example.org/{self.chance.randrange(5)}/{self.pick(['a', 'b', 'c,d', 'e$f'])}"

    def words(self) -> str:
        return " ".join(self.chance.choices(WORDS, k=self.chance.choice([1, 2])))

    def number(self) -> Decimal:
        return Decimal(self.chance.randrange(-10000, 10000)).scaleb(self.chance.randrange(-4, 3))

    def quantity(self, child: Child) -> dict[str, Any]:
        unit = self.pick(UNITS)
        made: dict[str, Any] = {"value": self.number(), "unit": unit}
        if self.chance.random() < 0.8:
            made |= {"system": "http://unitsofmeasure.org", "code": unit}
        if child.type != "SimpleQuantity" and self.chance.random() < 0.1:
            made["comparator"] = self.pick(["<", "<=", ">=", ">"])
        return made

    def reference(self, child: Child) -> dict[str, Any]:
        targets = [type for type in (child.targets or self.ids) if type in self.ids] or list(self.ids)
        kind = self.chance.random()
        type = self.pick(sorted(targets))
        if kind < 0.7:
            return {"reference": f"{type}/{self.pick(self.ids[type])}"}
        if kind < 0.85:
            return {"reference": f"https://other.example/fhir/{type}/{self.chance.randrange(9)}", "display": "elsewhere"}
        return {"type": type, "identifier": {"system": self.pick(SYSTEMS), "value": self.pick(CODES)}}

    def period(self, _: Child) -> dict[str, Any]:
        start, end = sorted(self.date().ljust(10, "-")[:4] for _ in range(2))
        return self.chance.choice([{"start": start, "end": end}, {"start": start}, {"end": end}])

    def concept(self, _: Child) -> dict[str, Any]:
        codings = [self.coding(_) for _ in range(self.chance.choice([1, 1, 2]))]
        return {"coding": codings, "text": self.words()} if self.chance.random() < 0.5 else {"coding": codings}

    def coding(self, _: Any) -> dict[str, Any]:
        return {
            "system": self.pick(SYSTEMS),
            "code": self.pick(CODES),
            **({"display": self.words()} if self.chance.random() < 0.4 else {}),
        }

    def range(self, child: Child) -> dict[str, Any]:
        low = {"value": self.number(), "unit": "kg", "system": "http://unitsofmeasure.org", "code": "kg"}
        return {"low": low, "high": {**low, "value": low["value"] + self.chance.randrange(1, 50)}}


def _child(type: str) -> Child:
    return next(child for child in children("Meta").values() if child.type == type)


def _activity(made: dict[str, Any]) -> dict[str, Any]:
    if "detail" not in made:
        return {**made, "detail": {"status": "scheduled"}} if "reference" not in made else made
    return _without("detail" if len(made["detail"]) % 3 == 0 and "reference" in made else "reference")(made)


def _condition(made: dict[str, Any]) -> dict[str, Any]:
    return _without("abatement")(made) if "clinicalStatus" in made else made


def _without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda made: {name: value for name, value in made.items() if not name.startswith(names)}


def _organization(made: dict[str, Any]) -> dict[str, Any]:
    for one in (*made.get("address", ()), *made.get("telecom", ())):
        one.pop("use", None)
    return {"name": "An organization", **made}


LEGAL: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {  # what HL7's invariants demand beyond the tables
    "CarePlan.activity": _activity,
    "CareTeam.participant": lambda made: {"role": [{"text": "nurse"}], **_without("onBehalfOf")(made)},
    "Goal.target": lambda made: {"measure": {"text": "what is measured"}, **made},
    "Condition": _condition,
    "Task": _without("lastModified"),
    "ServiceRequest": _without("orderDetail"),
    "Organization": _organization,
    "Patient.contact": lambda made: {**made, "name": {"family": "Kin"}},
    "ContactPoint": lambda made: {**made, "system": "phone", "value": "555-1"} if "value" in made or len(made) < 2 else made,
    "Bundle.entry": lambda made: {"request": {"method": "GET", "url": "Patient"}, **made},
    "Attachment": lambda made: {"title": "A file", **_without("data")(made)},
    "Location.position": lambda made: {**made, "latitude": Decimal(int(made["latitude"]) % 180 - 90), "longitude": Decimal(int(made["longitude"]) % 360 - 180)},
}  # fmt: skip
PRIMITIVES: dict[str, Callable[[Maker], Any]] = {
    "boolean": lambda maker: maker.chance.random() < 0.5,
    "integer": lambda maker: maker.chance.randrange(-1000, 1000),
    "unsignedInt": lambda maker: maker.chance.randrange(1000),
    "positiveInt": lambda maker: maker.chance.randrange(1, 1000),
    "decimal": Maker.number,
    "string": Maker.words,
    "markdown": Maker.words,
    "uri": Maker.uri,
    "url": Maker.uri,
    "canonical": Maker.uri,
    "oid": lambda maker: f"urn:oid:1.2.{maker.chance.randrange(9)}",
    "uuid": lambda maker: f"urn:uuid:00000000-0000-0000-0000-{maker.chance.randrange(10**12):012}",
    "id": lambda maker: f"id-{maker.chance.randrange(99)}",
    "code": lambda maker: maker.pick(CODES),
    "date": Maker.date,
    "dateTime": lambda maker: maker.chance.choice([maker.date, maker.moment])(),
    "instant": Maker.moment,
    "time": lambda _: "10:30:00",
    "base64Binary": lambda _: "YWJj",
    "xhtml": lambda _: '<div xmlns="http://www.w3.org/1999/xhtml">text</div>',
}
OTHERS: dict[str, Callable[[Maker, Child], Any]] = {
    "Reference": Maker.reference,
    "Quantity": Maker.quantity,
    "SimpleQuantity": Maker.quantity,
    "Age": Maker.quantity,
    "Duration": Maker.quantity,
    "Count": Maker.quantity,
    "Distance": Maker.quantity,
    "Range": Maker.range,
    "Period": Maker.period,
    "CodeableConcept": Maker.concept,
    "Coding": Maker.coding,
    "Resource": lambda maker, _: {"resourceType": "Basic", "id": f"inner{maker.chance.randrange(9)}", "code": {"text": "inner"}},
    "Extension": lambda _maker, _: {"url": "http://example.org/x", "valueString": "x"},
}
