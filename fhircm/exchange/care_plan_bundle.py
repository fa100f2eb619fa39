"""A care plan as a FHIR document: a Composition with its sections, and every resource that they list.

https://hl7.org/fhir/R4/documents.html. Within the Bundle references lead to its own entries; what is not in it leads to what the partner has
itself, by its full address, or is named.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from fhircm.exchange.case import Case, Unfit
from fhircm.exchange.disclosure import without_withheld
from fhircm.exchange.human import stable_id
from fhircm.exchange.repoint import rewrite, target
from fhircm.fhir.outcome import Invalid, Malformed
from fhircm.fhir.references import references
from fhircm.fhir.systems import DELIVERY
from fhircm.fhir.validation import check_tree

if TYPE_CHECKING:
    from fhircm.exchange.care_plan import Plan, Section

LOINC = "http://loinc.org"
_LEFT_OUT = ("meta", "text", "contained", "implicitRules")
_TOLD_OF_PATIENT = ("name", "gender", "birthDate")  # numbers that others gave the patient are nobody's business
_PLAN = ("18776-5", "Plan of care note")
_DISPLAYS = {
    "11450-4": "Problem list - Reported",
    "61146-7": "Goals Narrative",
    "62387-6": "Interventions Provided",
    "85847-2": "Patient Care team information",
}


async def bundle(case: Case, plan: Plan, key: str, at: str) -> bytes:
    """The document. Raises Unfit when it would not be valid."""
    listed = [tree for section in plan.sections for tree in section.trees]
    included = {f"{tree['resourceType']}/{tree['id']}": tree for tree in [case.tree, *listed, *plan.people.values()]}
    urls = {name: f"urn:uuid:{stable_id(key, name)}" for name in included}
    patient_url = f"{case.partner.base_url}/Patient/{case.need_patient()}"
    composition = _composition(case, plan, at, patient_url, urls)
    entries = [{"fullUrl": f"urn:uuid:{composition['id']}", "resource": composition}]
    entries.append({"fullUrl": patient_url, "resource": patient_entry(case)})
    for name, tree in included.items():
        entries.append({"fullUrl": urls[name], "resource": await copied(case, tree, urls, patient_url)})
    whole = {
        "resourceType": "Bundle",
        "id": stable_id(key, "document"),
        "identifier": {"system": DELIVERY, "value": key},
        "type": "document",
        "timestamp": at,
        "entry": entries,
    }
    try:
        return check_tree(whole).body
    except (Invalid, Malformed) as error:
        raise Unfit(f"its document would not be valid: {error}", "invalid") from None


def _composition(case: Case, plan: Plan, at: str, patient_url: str, urls: dict[str, str]) -> dict[str, Any]:
    author = urls.get(case.tree.get("author", {}).get("reference", ""))
    own = f"CarePlan/{case.tree['id']}"
    return {
        "resourceType": "Composition",
        "id": stable_id(own, "composition", str(case.stored.version)),
        "status": "final",
        "type": {"coding": [dict(case.occasion.note)]},
        "subject": {"reference": patient_url},
        "date": at,
        "author": [{"reference": author} if author else {"display": case.words.get("coordinator") or "Care coordination"}],
        "title": plan.title,
        "section": [_section(one, urls) for one in plan.sections]
        + [
            {
                "title": "Plan of care",
                "code": {"coding": [{"system": LOINC, "code": _PLAN[0], "display": _PLAN[1]}]},
                "text": _narrative([(plan.title, [str(case.tree.get("status", ""))])]),
                "entry": [{"reference": urls[own]}],
            }
        ],
    }


def _section(section: Section, urls: dict[str, str]) -> dict[str, Any]:
    entries = [{"reference": urls[f"{tree['resourceType']}/{tree['id']}"]} for tree in section.trees]
    members: dict[str, Any] = {
        "title": section.heading,
        "code": {"coding": [{"system": LOINC, "code": section.code, "display": _DISPLAYS[section.code]}]},
        "text": _narrative(section.items),
    }
    if entries:
        return {**members, "entry": entries}
    if section.items:
        return members
    empty = {"system": "http://terminology.hl7.org/CodeSystem/list-empty-reason", "code": "unavailable"}
    return {**members, "emptyReason": {"coding": [empty]}}


def _narrative(items: list[tuple[str, list[str]]]) -> dict[str, str]:
    lines = "".join(f"<li>{escape(': '.join([name, ', '.join(facts)]).rstrip(': '))}</li>" for name, facts in items)
    inside = f"<ul>{lines}</ul>" if lines else "<p>None told</p>"
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{inside}</div>'}


def patient_entry(case: Case) -> dict[str, Any]:
    """The Patient as a document tells of them: the partner's own, by name, gender and date of birth."""
    known = case.patient or {}
    return {
        "resourceType": "Patient",
        "id": case.need_patient(),
        **{name: known[name] for name in _TOLD_OF_PATIENT if name in known},
    }


async def copied(case: Case, tree: dict[str, Any], urls: dict[str, str], patient_url: str) -> dict[str, Any]:
    """A resource as an entry of a document: it refers to the other entries (`urls`), or to what the partner has."""
    told = await without_withheld(case.store, case.disclosure, tree)
    kept = {name: value for name, value in told.items() if name not in _LEFT_OUT}
    targets: dict[str, dict[str, Any]] = {}
    for url in dict.fromkeys(reference.url for reference in references(kept)):
        if url in urls:
            targets[url] = {"reference": urls[url]}
            continue
        there = await target(case.store, case.partner, url)
        if there.get("reference"):
            there = {**there, "reference": f"{case.partner.base_url}/{there['reference']}"}
        targets[url] = there
    told_there: dict[str, Any] = rewrite(kept, targets)
    for name in ("subject", "patient", "for"):
        if name in kept and "reference" not in told_there.get(name, {}):
            told_there[name] = {"reference": patient_url}
    return told_there
