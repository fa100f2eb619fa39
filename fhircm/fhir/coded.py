"""The codes in coded elements, whatever their data type. https://hl7.org/fhir/R4/datatypes.html#Coding"""

from __future__ import annotations

from typing import Any


def codes(value: Any) -> set[str]:
    """The codes in a code, Coding or CodeableConcept, or a list of them."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, list):
        return {code for one in value for code in codes(one)}
    if isinstance(value, dict):
        own = {value["code"]} if isinstance(value.get("code"), str) else set()
        return own | codes(value.get("coding", []))
    return set()
