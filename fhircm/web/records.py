"""A few words by which a person tells one patient, or one visit, from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

Tree = Mapping[str, Any]
_GENDERS = {"male": "male", "female": "female", "other": "other gender"}


@dataclass(frozen=True, slots=True)
class Line:
    """A resource in a list."""

    id: str
    title: str
    facts: list[str]


def patient_line(tree: Tree) -> Line:
    """https://hl7.org/fhir/R4/patient.html"""
    facts = [f"born {day(tree['birthDate'])}" if tree.get("birthDate") else "", _GENDERS.get(str(tree.get("gender")), "")]
    if tree.get("deceasedBoolean") or tree.get("deceasedDateTime"):
        facts.append("has died")
    facts += [_identifier(one) for one in (tree.get("identifier") or [])[:2]]
    places = [one.get("city") for one in tree.get("address") or [] if one.get("use") != "old"]
    return Line(tree["id"], name_of(tree), [fact for fact in (*facts, *places[:1]) if fact])


def name_of(tree: Tree) -> str:
    """What a person is called: the usual or official name before others. https://hl7.org/fhir/R4/datatypes.html#HumanName"""
    names = [one for one in tree.get("name") or [] if one.get("use") not in ("old", "maiden")]
    rank = {"official": 0, "usual": 1}
    for name in sorted(names, key=lambda one: rank.get(one.get("use"), 2)):
        given, family = " ".join(name.get("given") or []), name.get("family") or ""
        if text := name.get("text") or f"{given} {family}".strip():
            return str(text)
    return "No name"


def encounter_line(tree: Tree) -> Line:
    """https://hl7.org/fhir/R4/encounter.html"""
    kinds = [_concept(one) for one in tree.get("type") or []]
    title = next((kind for kind in kinds if kind), None) or (tree.get("class") or {}).get("display") or "Visit"
    period = tree.get("period") or {}
    start, end = day(str(period.get("start", ""))), day(str(period.get("end", "")))
    when = f"{start} to {end}" if end and end != start else start
    where = (tree.get("serviceProvider") or {}).get("display")
    return Line(tree["id"], title, [fact for fact in (when, where, str(tree.get("status", ""))) if fact])


def _identifier(one: Tree) -> str:
    value = one.get("value")
    label = _concept(one.get("type") or {})
    return f"{label} {value}".strip() if value else ""


def _concept(concept: Tree) -> str:
    displays = [one.get("display") or one.get("code") for one in concept.get("coding") or []]
    return str(concept.get("text") or next((display for display in displays if display), ""))


def day(text: str) -> str:
    """The day of a date or time as people write it; a year or a month stays as it is. https://hl7.org/fhir/R4/datatypes.html#date"""
    try:
        return f"{date.fromisoformat(text[:10]):%-d %B %Y}"
    except ValueError:
        return text
