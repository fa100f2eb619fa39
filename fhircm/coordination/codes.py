"""The hub's own codes and identifiers, and the value sets of profiles/value-set/ that say what counts as what.

https://hl7.org/fhir/R4/valueset.html. Only value sets that list their codes one by one are used here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from fhircm.fhir.artefacts import folder
from fhircm.fhir.systems import COORDINATION, HUB

BASE = HUB.rstrip("/")
CLIENT = f"{BASE}/client"  # system of the identifier of a SMART client
NPI = "http://hl7.org/fhir/sid/us-npi"
FULFILL = ("http://hl7.org/fhir/CodeSystem/task-code", "fulfill")
PLACER = ("http://terminology.hl7.org/CodeSystem/v2-0203", "PLAC")
FILLER = ("http://terminology.hl7.org/CodeSystem/v2-0203", "FILL")


def codings(*elements: Any) -> Iterator[tuple[str, str]]:
    """(system, code) of everything in these elements: a Coding, a CodeableConcept, lists of either, or nothing."""
    for element in elements:
        if isinstance(element, list):
            yield from codings(*element)
        elif isinstance(element, dict):
            yield from codings(*element.get("coding", []))
            if "code" in element and "coding" not in element:
                yield element.get("system", ""), element["code"]


@cache
def value_set(name: str) -> frozenset[tuple[str, str]]:
    """All (system, code) of profiles/value-set/<name>.json."""
    tree = json.loads((folder("profiles") / "value-set" / f"{name}.json").read_bytes())
    return frozenset(
        (include["system"], concept["code"]) for include in tree["compose"]["include"] for concept in include["concept"]
    )


def member(name: str, *elements: Any) -> bool:
    """Whether any coding of these elements is in the value set."""
    return not value_set(name).isdisjoint(codings(*elements))


@cache
def displays() -> dict[str, str]:
    """The display of each code of the hub's own code system."""
    tree = json.loads((folder("profiles") / "code-system" / "coordination.json").read_bytes())
    return {concept["code"]: concept["display"] for concept in tree["concept"]}


def own(element: Any) -> str | None:
    """The code of the hub's own system in a CodeableConcept, if it bears one."""
    return next((code for system, code in codings(element) if system == COORDINATION), None)


def identifiers(tree: dict[str, Any], system: str) -> list[str]:
    """The values of a resource's identifiers of one system."""
    return [one["value"] for one in tree.get("identifier", []) if one.get("system") == system and one.get("value")]
