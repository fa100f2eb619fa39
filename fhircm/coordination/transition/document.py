"""The document of a transition of care: what who takes over must know of a patient, in 15 sections, each with entries or why there are none.

https://hl7.org/fhir/R4/documents.html, http://hl7.org/fhir/us/pacio-toc. The sections are data (profiles/document/transition-of-care.yaml).
What is in it is what its reader may see: the record is read through the reader's own door. Its identifier follows from what is in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from html import escape
from typing import Any
from urllib.parse import parse_qsl

from fhircm.coordination.build import instant, stable_id
from fhircm.coordination.codes import BASE
from fhircm.coordination.context import Record, any_of
from fhircm.coordination.people import linked, name_of, organization_of, patient_of
from fhircm.coordination.wording import text_of
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.outcome import Forbidden, Invalid
from fhircm.fhir.references import parse_reference, references
from fhircm.fhir.validation import check_tree
from fhircm.store.stored import Stored

Tree = dict[str, Any]
DOCUMENT = f"{BASE}/transition-document"  # system of the Bundle's identifier
_COMES_ALONG = frozenset(("Medication", "Practitioner", "PractitionerRole", "Organization", "Location", "Device"))
_VOID = "entered-in-error"
_CALLED = ("code", "medicationCodeableConcept", "vaccineCode", "type", "title", "description", "category", "class")


@dataclass(frozen=True, slots=True)
class Section:
    """One section: its title and code, the searches that fill it, and the reason when nothing is found."""

    title: str
    code: dict[str, str]
    sources: tuple[str, ...]
    empty: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What a document of a transition is made of."""

    profile: str
    type: dict[str, str]
    category: dict[str, str]
    language: str
    sections: tuple[Section, ...]


@cache
def layout() -> Layout:
    """profiles/document/transition-of-care.yaml."""
    tree = read_yaml(folder("profiles") / "document" / "transition-of-care.yaml")
    sections = tuple(Section(one["title"], one["code"], tuple(one["from"]), one["empty"]) for one in tree["sections"])
    return Layout(tree["profile"], tree["type"], tree["category"], tree["language"], sections)


async def document(record: Record, encounter: Stored, base_url: str, now: datetime) -> bytes:
    """The document Bundle for a stay. Raises Invalid when the Encounter names no patient of this server."""
    patient_id = patient_of(encounter.tree)
    patient = await record.get("Patient", patient_id) if patient_id else None
    if patient is None:
        raise Invalid("The Encounter has no Patient on this server as its subject", "Encounter.subject")
    patients = await linked(record, patient.id)
    house = await organization_of(record, encounter.tree.get("serviceProvider"))
    found = [(one, *await _found(record, one, patients, encounter)) for one in layout().sections]
    included = {_name(one): one for one in (patient, encounter, *([house] if house else []))}
    for _, entries, _ in found:
        included |= {_name(one): one for one in entries}
    included |= {_name(one): one for one in await _coming_along(record, included)}
    urls = {name: f"{base_url}/{name}" for name in included}
    key = stable_id("transition-document", *(f"{name}/{one.version}" for name, one in sorted(included.items())))
    at = instant(now)
    composition = await _composition(record, encounter, patient, house, found, urls, key, at)
    entries = [{"fullUrl": f"urn:uuid:{composition['id']}", "resource": composition}]
    entries += [{"fullUrl": urls[name], "resource": one.tree} for name, one in included.items()]
    whole = {
        "resourceType": "Bundle",
        "identifier": {"system": DOCUMENT, "value": key},
        "type": "document",
        "timestamp": at,
        "entry": entries,
    }
    return check_tree(whole, by_guides=False).body


def _name(one: Stored) -> str:
    return f"{one.type}/{one.id}"


async def _found(record: Record, section: Section, patients: list[str], encounter: Stored) -> tuple[list[Stored], str]:
    """The entries of a section, each once, and the reason when there are none."""
    since = str(encounter.tree.get("period", {}).get("start", ""))[:10]
    values = {"patients": any_of(f"Patient/{id}" for id in patients), "encounter": encounter.id, "since": since}
    found: dict[str, Stored] = {}
    for source in section.sources:
        type, _, query = source.partition("?")
        parameters = [(name, value.format_map(values)) for name, value in parse_qsl(query)]
        if ("date", "ge") in parameters:
            continue  # nobody knows when the stay began
        try:
            matches = await record.find(type, *parameters)
        except Forbidden:
            return [], "withheld"
        found |= {_name(one): one for one in matches if not _void(one.tree)}
    return list(found.values()), section.empty


def _void(tree: Tree) -> bool:
    codes = (one.get("code") for one in tree.get("verificationStatus", {}).get("coding", []))
    return tree.get("status") == _VOID or _VOID in codes


async def _coming_along(record: Record, included: dict[str, Stored]) -> list[Stored]:
    """Whom and what the entries name, one step far."""
    wanted: dict[tuple[str, str], None] = {}
    for one in included.values():
        for to in (parse_reference(reference.url) for reference in references(one.tree)):
            if to.kind == "local" and to.type in _COMES_ALONG and to.id and f"{to.type}/{to.id}" not in included:
                wanted[to.type, to.id] = None
    there = await record.store.read_many(wanted)
    return [there[key] for key in wanted if key in there]


async def _composition(
    record: Record,
    encounter: Stored,
    patient: Stored,
    house: Stored | None,
    found: Iterable[tuple[Section, list[Stored], str]],
    urls: dict[str, str],
    key: str,
    at: str,
) -> Tree:
    name = await name_of(record, patient) or "a patient"
    custodian = {"reference": urls[_name(house)]} if house else {"display": "The house of the stay is not on record"}
    doctors = (urls.get(one.get("individual", {}).get("reference", "")) for one in encounter.tree.get("participant", []))
    author = next((url for url in doctors if url and "/Practitioner" in url), None)
    return {
        "resourceType": "Composition",
        "id": stable_id("composition", key),
        "meta": {"profile": [layout().profile]},
        "language": layout().language,
        "identifier": {"system": DOCUMENT, "value": key},
        "status": "final",
        "type": {"coding": [layout().type]},
        "category": [{"coding": [layout().category]}],
        "subject": {"reference": urls[_name(patient)]},
        "encounter": {"reference": urls[_name(encounter)]},
        "date": at,
        "author": [{"reference": author} if author else custodian],
        "title": f"Transition of care: {name}",
        "custodian": custodian,
        "section": [_section(section, entries, why, urls) for section, entries, why in found],
    }


def _section(section: Section, entries: list[Stored], why: str, urls: dict[str, str]) -> Tree:
    members: Tree = {
        "title": section.title,
        "code": {"coding": [section.code]},
        "text": _narrative([one.tree for one in entries]),
    }
    if entries:
        return members | {"entry": [{"reference": urls[_name(one)]} for one in entries]}
    empty = {"system": "http://terminology.hl7.org/CodeSystem/list-empty-reason", "code": why}
    return members | {"emptyReason": {"coding": [empty]}}


def _narrative(trees: list[Tree]) -> dict[str, str]:
    lines = "".join(f"<li>{escape(_line(tree))}</li>" for tree in trees)
    inside = f"<ul>{lines}</ul>" if lines else "<p>Nothing on record</p>"
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{inside}</div>'}


def _line(tree: Tree) -> str:
    """A resource in a line: what it is, and its value or state."""
    what = next((text for name in _CALLED if (text := text_of(tree.get(name)))), tree["resourceType"])
    quantity = tree.get("valueQuantity", {})
    value = " ".join(str(quantity[name]) for name in ("value", "unit") if name in quantity)
    value = value or text_of(tree.get("valueCodeableConcept")) or text_of(tree.get("clinicalStatus")) or tree.get("status", "")
    doses = [
        one["text"] for one in tree.get("dosageInstruction", tree.get("dosage", [])) if isinstance(one, dict) and one.get("text")
    ]
    return ": ".join([what, ", ".join(filter(None, [value, *doses]))]).rstrip(": ")
