"""Read how ADT messages become resources: adt.yaml of mappings/hl7v2, and what a partner's own changes in it.

https://build.fhir.org/ig/HL7/v2-to-fhir/segment_maps.html. A mistake is found when the file is read, and told with file, key and remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fhircm.exchange.concept_maps import ConceptMapWrong, Translator, load_concept_maps, translator
from fhircm.exchange.hl7v2_types import CONVERSIONS
from fhircm.exchange.maps import Maps, MapWrong
from fhircm.exchange.yaml_keys import Keys, YamlWrong, load
from fhircm.fhir.artefacts import folder as shipped_folder
from fhircm.fhir.definitions import definitions
from fhircm.fhir.schema import children

_FIELD = re.compile(r"[A-Z][A-Z0-9]{2}-\d{1,2}")
_EVENT = re.compile(r"[A-Z]\d\d")
_STATUSES = ("planned", "arrived", "triaged", "in-progress", "onleave", "finished", "cancelled", "unknown")


@dataclass(frozen=True, slots=True)
class Event:
    """What a trigger event means for an Encounter."""

    status: str | None = None
    begins: bool = False
    ends: bool = False
    cancels: tuple[str, ...] = ()
    patient_only: bool = False
    merges: bool = False


@dataclass(frozen=True, slots=True)
class ElementMap:
    """One element and the field that it comes from."""

    element: str  # with a dot for one inside another
    field: int
    kind: str
    key: tuple[str, ...] | None  # members that tell one of a list from another
    table: str
    translator: Translator | None
    template: Any
    instead_of: tuple[str, ...]
    repeats: bool


@dataclass(frozen=True, slots=True)
class ResourceMap:
    """A resource type and the segment that it comes from."""

    type: str
    segment: str
    elements: tuple[ElementMap, ...]
    refers: Mapping[str, str]
    fixed: Mapping[str, Any]
    known_by: tuple[int, ...]
    needs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Number:
    """The field with the number by which a record is known."""

    segment: str
    field: int
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdtMap:
    """The whole of it."""

    systems: Mapping[str, str]
    patient: Number
    visit: Number
    events: Mapping[str, Event]
    resources: tuple[ResourceMap, ...]
    maps: Maps  # the partner's rules, for what was made

    @property
    def segments(self) -> frozenset[str]:
        """The segments that are looked at."""
        return frozenset({"EVN", "MRG", "PID", "PV1", *(one.segment for one in self.resources)})


@lru_cache(maxsize=64)
def load_adt(folder: Path) -> AdtMap:
    """The map of a partner's folder. Raises MapWrong."""
    shared = folder.parent / "hl7v2"
    if not (shared / "adt.yaml").exists():  # a folder of partners of one's own
        shared = shipped_folder("mappings") / "hl7v2"
    try:
        terms = load_concept_maps([shared.parent, folder.parent, shared, folder])
        general = _read(load(shared / "adt.yaml"), terms, None)
        own = _read(load(folder / "adt.yaml"), terms, general) if (folder / "adt.yaml").exists() else general
    except (YamlWrong, ConceptMapWrong) as error:
        raise MapWrong(str(error)) from None
    return own


def _read(keys: Keys, terms: Any, general: AdtMap | None) -> AdtMap:
    systems = keys.keys("systems", "assigning authorities as identifier systems", {})
    known = {name: systems.text(name, "an identifier system") for name in list(systems.tree)}
    events = keys.keys("events", "a mapping of trigger events", {})
    found = {}
    for name in list(events.tree):
        if not isinstance(name, str) or not _EVENT.fullmatch(name):
            events.wrong(str(name), "must be a trigger event such as A01")
        found[name] = _event(events.keys(name, "what the event means"))
    resources = keys.each("resources", "a list of resource types with their segments", lambda one: _resource(one, terms), [])
    numbers = {
        one: _number(keys.keys(one, "field: the field of the number")) if one in keys.tree else None
        for one in ("patient", "visit")
    }
    keys.done()
    if general is None:
        if numbers["patient"] is None or numbers["visit"] is None:
            keys.wrong("patient", "and visit are missing: give the fields of the numbers")
        return AdtMap(known, numbers["patient"], numbers["visit"], found, resources, Maps())
    replaced = {(one.type, one.segment): one for one in (*general.resources, *resources)}
    return AdtMap(
        {**general.systems, **known},
        numbers["patient"] or general.patient,
        numbers["visit"] or general.visit,
        {**general.events, **found},
        tuple(replaced.values()),
        Maps(),
    )


def _event(keys: Keys) -> Event:
    status = keys.choice("status", _STATUSES, None)
    flags = {one: keys.take(one, bool, "true or false", False) for one in ("begins", "ends", "patient_only", "merges")}
    cancels = keys.take("cancels", list, "a list of trigger events", [])
    keys.done()
    return Event(status, cancels=tuple(str(one) for one in cancels), **flags)


def _number(keys: Keys) -> Number:
    segment, field = _field(keys, "field", keys.text("field", "a field such as PID-3", _FIELD))
    number = Number(segment, field, tuple(keys.take("types", list, "a list of identifier types (table 0203)", [])))
    keys.done()
    return number


def _field(keys: Keys, key: str, text: Any, segment: str | None = None) -> tuple[str, int]:
    if not isinstance(text, str) or not _FIELD.fullmatch(text) or (segment and text[:3] != segment):
        keys.wrong(key, f"must be a field such as {segment or 'PID'}-3")
    return text[:3], int(text[4:])


def _resource(keys: Keys, terms: Any) -> ResourceMap:
    type = keys.choice("type", sorted(definitions().resource_types))
    segment = keys.text("segment", "the name of a segment", re.compile("[A-Z][A-Z0-9]{2}"))
    elements = keys.each("elements", "a list of elements", lambda one: _element(one, type, segment, terms))
    refers = keys.take("refers", dict, "elements that refer to the Patient or the Encounter", {})
    for name, target in refers.items():
        if name not in children(type) or target not in ("Patient", "Encounter"):
            keys.wrong(f"refers.{name}", f"must be an element of {type}, and Patient or Encounter")
    listed = {
        one: [_field(keys, one, text, segment)[1] for text in keys.take(one, list, "a list of fields", [])]
        for one in ("known_by", "needs")
    }
    fixed = keys.take("fixed", dict, "elements that are always so", {})
    if type not in ("Patient", "Encounter") and not listed["known_by"]:
        keys.wrong("known_by", f"is missing: give the fields that tell one {type} of a patient from another")
    keys.done()
    return ResourceMap(type, segment, elements, refers, fixed, tuple(listed["known_by"]), tuple(listed["needs"]))


def _element(keys: Keys, type: str, segment: str, terms: Any) -> ElementMap:
    element = keys.text("element", f"an element of {type}")
    members, child = children(type), None
    for name in element.split("."):
        child = members.get(name)
        if child is None:
            keys.wrong("element", f"is none that {type} has in R4")
        members = children(child.type)
    _, field = _field(keys, "field", keys.text("field", "a field"), segment)
    kind = keys.choice("as", (*CONVERSIONS, "Coding"))
    key = keys.take("key", list, "a list of members", []) if "key" in keys.tree else None
    table = keys.text("table", 'the number of a table in quotes, such as "0001"', re.compile(r"\d{4}"), None) or ""
    url = keys.text("map", "the URL of a ConceptMap", default=None)
    found: Translator | None = None
    if url is not None:
        found = translator(terms, url, None, ("equal", "equivalent"))
        if found is None:
            keys.wrong("map", "leads to no ConceptMap: put one with this URL into concept-map/")
    template = keys.tree.pop("template", None)
    keys.known.append("template")
    instead_of: Sequence[Any] = keys.take("instead_of", list, "a list of elements", [])
    keys.done()
    repeats = child is not None and child.element.max != 1
    return ElementMap(
        element, field, kind, None if key is None else tuple(map(str, key)), table, found, template, tuple(instead_of), repeats
    )
