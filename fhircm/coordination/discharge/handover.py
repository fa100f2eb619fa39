"""What who cares on needs to know at a discharge, in one Bundle, with what of it is missing; and sending it.

https://hl7.org/fhir/R4/bundle.html, https://hl7.org/fhir/R4/composition.html. What belongs in it is data: profiles/discharge/handover.yaml.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from html import escape
from typing import Any
from uuid import uuid4

from fhircm.coordination.acting import Act
from fhircm.coordination.build import concept, instant, new, reference, stable_id
from fhircm.coordination.context import Record
from fhircm.coordination.discharge.acts import UTC, open_planning
from fhircm.coordination.discharge.plan import Planning, begun, is_mandatory, planning
from fhircm.coordination.discharge.shown import date_of, signed
from fhircm.coordination.people import patients_value
from fhircm.coordination.task_states import is_open
from fhircm.coordination.wording import text_of
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.json import dumps
from fhircm.fhir.outcome import Conflict, Forbidden
from fhircm.store.operations import Put
from fhircm.store.resources import Stored

Tree = dict[str, Any]
CODE = "handover-package"
LOINC = "http://loinc.org"
_OVER = frozenset(("cancelled", "entered-in-error", "revoked", "stopped", "inactive"))
_WHICH = {"List": "code", "DocumentReference": "type"}


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the package and the searches that fill it."""

    title: str
    code: str
    needed: bool
    search: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class Package:
    """What was found, by section, and what is missing in words."""

    patient: Stored | None
    stay: Stored
    sections: list[tuple[Section, list[Stored]]] = field(default_factory=list)
    open: list[Stored] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@cache
def sections() -> tuple[Section, ...]:
    """The sections, in order."""
    tree = read_yaml(folder("profiles") / "discharge" / "handover.yaml")
    return tuple(Section(one["title"], one["code"], one.get("needed", False), tuple(one["search"])) for one in tree["sections"])


async def gathered(record: Record, stay: Stored) -> Package:
    """What there is for a stay that the record shows."""
    plan = await planning(record, stay, UTC)
    package = Package(await record.get("Patient", plan.patients[0]) if plan.patients else None, stay)
    for section in sections():
        found: list[Stored] = []
        for search in section.search:
            found += await _found(record, plan, search)
        package.sections.append((section, found))
        if section.needed and not found:
            package.missing.append(f"{section.title}: nothing is on record")
        package.missing += [f"{_title(one)}: not signed" for one in found if await _unsigned(record, one)]
    package.open = [one for one in plan.below if is_open(one.tree)]
    package.missing += [f"{one.tree['description']}: not done" for one in package.open if is_mandatory(one.tree)]
    return package


async def _found(record: Record, plan: Planning, search: Mapping[str, Any]) -> list[Stored]:
    type = search["type"]
    about = patients_value(list(plan.patients)) if search["by"] == "patient" else ("encounter", f"Encounter/{plan.stay.id}")
    filters = [(name, str(value)) for name, value in search.items() if name not in ("type", "by", "type-code", "since-admission")]
    if "type-code" in search:
        filters.append((_WHICH[type], search["type-code"]))
    try:
        found = await record.find(type, about, *filters)
    except Forbidden:
        return []  # then it is missing from what this caller can hand over
    start = begun(plan.stay.tree, UTC) if search.get("since-admission") else None
    at = {one.id: date_of(one.tree, UTC) for one in found}
    return [
        one
        for one in found
        if one.tree.get("status") not in _OVER and (start is None or (when := at[one.id]) is None or when >= start)
    ]


async def _unsigned(record: Record, one: Stored) -> bool:
    """Whether it is a notice that nobody signed."""
    codes = {code.get("code", "") for code in one.tree.get("type", {}).get("coding", [])}
    notice = any(code.startswith("notice-") and not code.endswith("-copy") for code in codes)
    return one.type == "DocumentReference" and notice and not await signed(record, one)


def _title(one: Stored) -> str:
    tree = one.tree
    return text_of(tree.get("description")) or text_of(tree.get("type")) or text_of(tree.get("code")) or one.type


# --- the Bundle --------------------------------------------------------------------------------------------------------------


def bundle(package: Package, at: datetime, base: str | None = None) -> Tree:
    """The package as a Bundle of the type collection, the Composition that lists it first."""
    resources = {(one.type, one.id): one for _, found in package.sections for one in found}
    resources |= {(one.type, one.id): one for one in package.open}
    about = [one for one in (package.patient, package.stay) if one is not None]
    entries = [_composition(package, at), *(one.tree for one in about), *(resources[key].tree for key in sorted(resources))]
    return {
        "resourceType": "Bundle",
        "type": "collection",
        "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{uuid4()}"},
        "timestamp": instant(at),
        "entry": [
            ({"fullUrl": f"{base}/{one['resourceType']}/{one['id']}"} if base else {}) | {"resource": one} for one in entries
        ],
    }


def _composition(package: Package, at: datetime) -> Tree:
    patient = reference(f"Patient/{package.patient.id}") if package.patient else None
    parts = [
        _section(section.title, {"coding": [{"system": LOINC, "code": section.code}]}, found)
        for section, found in package.sections
    ]
    parts.append(_section("Open at the hand-over", None, package.open))
    told = "".join(f"<li>{escape(one)}</li>" for one in package.missing)
    lacking = f"<ul>{told}</ul>" if told else "<p>Nothing is known to be missing</p>"
    parts.append({"title": "Missing", "text": _text(lacking)})
    return {
        "resourceType": "Composition",
        "id": stable_id("handover-package", package.stay.id, instant(at)),
        "status": "final",
        "type": concept(CODE),
        "category": [{"coding": [{"system": LOINC, "code": "18761-7", "display": "Transfer summary note"}]}],
        "encounter": reference(f"Encounter/{package.stay.id}"),
        "date": instant(at),
        "author": [package.stay.tree.get("serviceProvider") or {"display": "The hospital"}],
        "title": "Hand-over package",
        "section": parts,
    } | ({"subject": patient} if patient else {})


def _section(title: str, code: Tree | None, found: Sequence[Stored]) -> Tree:
    told = "".join(f"<li>{escape(_title(one))}</li>" for one in found)
    text = _text(f"<ul>{told}</ul>" if told else "<p>Nothing is on record</p>")
    empty = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/list-empty-reason", "code": "unavailable"}]}
    held: Tree = {"entry": [reference(f"{one.type}/{one.id}") for one in found]} if found else {"emptyReason": empty}
    return {"title": title} | ({"code": code} if code else {}) | {"text": text} | held


def _text(inner: str) -> Tree:
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{inner}</div>'}


# --- sending it --------------------------------------------------------------------------------------------------------------


async def send_handover(act: Act) -> list[Put]:
    """The package goes to who cares on (`to`): as a document of the stay, and a message that says so; what is missing is told."""
    plan, _ = await open_planning(act)
    package = await gathered(act, act.about)
    if package.patient is None:
        raise Conflict("The patient of this stay cannot be read, so there is nothing to hand over")
    at, document = act.store.now, str(uuid4())
    stay, patient = reference(f"Encounter/{act.about.id}"), reference(f"Patient/{plan.patients[0]}")
    missing = "; ".join(package.missing)
    words = act.one("message") or "The hand-over package of this stay"
    # The package itself is in the document, and so of the patient: a Bundle on its own would be of nobody.
    body = dumps(bundle(package, at))
    attachment = {
        "contentType": "application/fhir+json",
        "data": b64encode(body).decode(),
        "size": len(body),
        "creation": instant(at),
    }
    return [
        new(
            {
                "resourceType": "Communication",
                "id": str(uuid4()),
                "status": "in-progress",
                "category": [concept(CODE)],
                "topic": concept(CODE),
                "subject": patient,
                "encounter": stay,
                "sent": instant(at),
                "sender": act.about.tree.get("serviceProvider"),
                "recipient": list(act.said["to"]),
                "payload": [
                    {"contentString": f"{words}. Missing: {missing}" if missing else words},
                    {"contentReference": reference(f"DocumentReference/{document}")},
                ],
            }
        ),
        new(
            {
                "resourceType": "DocumentReference",
                "id": document,
                "status": "current",
                "docStatus": "final",
                "type": concept(CODE),
                "category": [{"coding": [{"system": LOINC, "code": "18761-7"}]}],
                "subject": patient,
                "date": instant(at),
                "description": f"Hand-over package. Missing: {missing}" if missing else "Hand-over package",
                "content": [{"attachment": attachment | {"title": "Hand-over package"}}],
                "context": {"encounter": [stay]},
            }
        ),
    ]
