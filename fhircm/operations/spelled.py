"""The value of an operation's parameter as people type it, by its FHIR type: what the command line takes, and tells how to write.

https://hl7.org/fhir/R4/datatypes.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Invalid, Malformed
from fhircm.fhir.ucum import UCUM

Tree = dict[str, Any]
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?)\s*(\S.*)?")


class Spelling(NamedTuple):
    """How a type is written, an example, and what reads it."""

    how: str
    example: str
    read: Callable[[str], Any]


def _flag(text: str) -> bool:
    return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]


def _concept(text: str) -> Tree:
    system, bar, code = text.partition("|")
    if not bar:
        return {"text": text}
    code, _, words = code.partition("|")
    return {"coding": [_coding(f"{system}|{code}")], **({"text": words} if words else {})}


def _coding(text: str) -> Tree:
    system, bar, code = text.partition("|")
    if not bar or not code:
        raise ValueError
    return {"system": system, "code": code} if system else {"code": code}


def _period(text: str) -> Tree:
    start, bar, end = text.partition("/")
    if not bar or not (start or end):
        raise ValueError
    return {name: at for name, at in (("start", start), ("end", end)) if at}


def _quantity(text: str) -> Tree:
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError
    unit = {"unit": found[2], "system": UCUM, "code": found[2]} if found[2] else {}
    return {"value": Decimal(found[1]), **unit}


def _identifier(text: str) -> Tree:
    system, bar, value = text.partition("|")
    return {"system": system, "value": value} if bar else {"value": text}


_QUANTITIES = Spelling("a number and a UCUM unit", "30 min", _quantity)
_SPELLINGS = {
    "boolean": Spelling("true or false", "true", _flag),
    "integer": Spelling("a whole number", "3", int),
    "positiveInt": Spelling("a whole number", "3", int),
    "unsignedInt": Spelling("a whole number", "3", int),
    "decimal": Spelling("a number", "1.5", Decimal),
    "date": Spelling("a day", "2026-03-02", str),
    "dateTime": Spelling("a day, or a time with its zone", "2026-03-02T15:00:00-06:00", str),
    "instant": Spelling("a time with its zone", "2026-03-02T15:00:00Z", str),
    "code": Spelling("a code", "CODE", str),
    **dict.fromkeys(("uri", "url", "canonical"), Spelling("a URL", "http://example.org/one", str)),
    "CodeableConcept": Spelling("system|code, or plain words", "Off duty", _concept),
    "Coding": Spelling("system|code", "http://loinc.org|8302-2", _coding),
    "Reference": Spelling("Type/id", "Practitioner/123", lambda text: {"reference": text}),
    "Period": Spelling("start/end, either may be left out", "2026-03-02/2026-03-09", _period),
    "Identifier": Spelling("system|value", "http://hl7.org/fhir/sid/us-npi|1234567893", _identifier),
    **dict.fromkeys(("Quantity", "Duration", "Age", "Distance", "Count", "SimpleQuantity"), _QUANTITIES),
}
_WORDS = Spelling("text", "plain words", str)


def spelling(type: str) -> Spelling:
    """How values of a type are written."""
    if type in _SPELLINGS:
        return _SPELLINGS[type]
    if type in definitions().primitives:
        return _WORDS
    return Spelling("JSON, or @ and the name of a file that holds it", "@file.json", lambda text: json.parse(text.encode()))


def read(name: str, type: str, text: str) -> Any:
    """The value that a text spells; what begins with { is JSON, whatever the type. Raises Invalid, naming how it is written."""
    known = spelling(type)
    try:
        if text.lstrip().startswith("{"):
            return json.parse(text.encode())
        return known.read(text)
    except (KeyError, ValueError, InvalidOperation, Malformed):
        raise Invalid(f"{name} is a {type or 'group'}: {known.how}, for example {name}='{known.example}'", name) from None
