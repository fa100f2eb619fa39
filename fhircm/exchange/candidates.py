"""Whom a Patient could be: the searches, each served by an index, that find everybody worth comparing with.

https://hl7.org/fhir/R4/patient.html#search. Called blocking where records are linked: never the whole panel.
"""

from __future__ import annotations

import re
from typing import Any

from fhircm.exchange.features import Features, tables

BLOCK = 200  # candidates of one search; more share a birth date only in a hub of some millions
Parameters = list[tuple[str, str]]


def blocks(tree: dict[str, Any], this: Features) -> list[Parameters]:
    """The searches for who shares a birth date, a number of their own, or both names with the year of birth or the town.

    Each finds a number that does not grow with the hub: whoever merely has a common name is not looked at.
    """
    found = [[("birthdate", this.birth_date)]] if this.birth_date else []
    for system, value in sorted(this.personal):
        found += [_identifier(system, form) for form in written(system, value)]
    for family, given in _names(tree):
        if family and given:
            names = [("family", escape(family)), ("given", escape(given))]
            years = [[("birthdate", this.birth_date[:4])]] if this.birth_date else []
            found += [[*names, *more] for more in (*years, *([("address-postalcode", area)] for area in sorted(this.areas)[:3]))]
    return found


def wider_blocks(tree: dict[str, Any], this: Features) -> list[Parameters]:
    """The same and more, for one question that somebody asks: any number, a phone, an address of mail, half a name with a birth date."""
    found = blocks(tree, this)
    found += [[("family", escape(family)), ("given", escape(given))] for family, given in _names(tree) if family and given]
    found += [_identifier(system, value) for system, value in _numbers(tree)]
    if this.birth_date:  # so that the right one is not behind the first of many who were born that day
        halves = [(part, text) for names in _names(tree) for part, text in zip(("family", "given"), names, strict=True) if text]
        found += [[("birthdate", this.birth_date), (part, escape(text))] for part, text in halves]
    points = [point for point in tree.get("telecom", []) if point.get("system") in ("phone", "email") and point.get("value")]
    found += [[(point["system"], escape(point["value"]))] for point in points[:6]]
    return [list(block) for block in dict.fromkeys(map(tuple, found))]


def written(system: str, value: str) -> list[str]:
    """A number as it is folded, and in the other forms that desks write it in."""
    shape = tables()["identifiers"]["shapes"].get(system, {})
    if not re.fullmatch(shape.get("valid", ".*"), value):
        return [value]
    value = value.upper()
    forms = ("".join(value[slice(*part)] if isinstance(part, list) else part for part in form) for form in shape.get("forms", ()))
    return list(dict.fromkeys([value, *forms]))


def _identifier(system: str, value: str) -> Parameters:
    return [("identifier", f"{escape(system)}|{escape(value)}")]


def _numbers(tree: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted({(n["system"], n["value"]) for n in tree.get("identifier", []) if n.get("system") and n.get("value")})


def _names(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Family and first given name of the first names."""
    names = [(name.get("family", ""), next(filter(None, name.get("given", [])), "")) for name in tree.get("name", [])]
    return [name for name in names if any(name)][:3]


def escape(value: str) -> str:
    """https://hl7.org/fhir/R4/search.html#escaping"""
    for character in "\\,|$":
        value = value.replace(character, "\\" + character)
    return value
