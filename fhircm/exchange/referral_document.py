"""What a referral carries, as a FHIR document for one who takes nothing but documents: the order and the inputs of its Task.

https://hl7.org/fhir/R4/documents.html, http://hl7.org/fhir/us/sdoh-clinicalcare (content-rich referral). Coordination put into Task.input what
goes along; what the recipient may not be told is left out here.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fhircm.exchange.attachments import Fetch, held
from fhircm.exchange.care_plan_bundle import copied, patient_entry
from fhircm.exchange.case import Case, Unfit, concept_text, name_of, read
from fhircm.exchange.disclosure import may_tell
from fhircm.exchange.human import stable_id
from fhircm.fhir.outcome import Invalid, Malformed
from fhircm.fhir.systems import DELIVERY
from fhircm.fhir.validation import check_tree

Tree = dict[str, Any]
_REASON = {"system": "http://loinc.org", "code": "42349-1", "display": "Reason for referral (narrative)"}


async def content(case: Case) -> list[Tree]:
    """The inputs of a referral that its recipient may be told of; a consent that lets them be told goes along."""
    found: dict[str, Tree] = {}
    for element in case.tree.get("input", []):
        tree = await read(case.store, element.get("valueReference"))
        if tree is not None and (tree["resourceType"] == "Consent" or may_tell(case.disclosure, tree)):
            found.setdefault(f"{tree['resourceType']}/{tree['id']}", tree)
    return list(found.values())


def said(tree: Tree) -> str:
    """One of them in a few words."""
    return tree.get("description") or concept_text(tree.get("type")) or name_of(tree) or tree["resourceType"]


async def document(case: Case, key: str, at: str, fetch: Fetch | None) -> bytes | None:
    """The document; None when nothing goes along. Raises Unfit when it would not be valid."""
    carried = await content(case)
    if not carried or case.order is None:
        return None
    trees = [case.order, *[await _with_bytes(tree, fetch) for tree in carried]]
    names = {f"{tree['resourceType']}/{tree['id']}": tree for tree in trees}
    urls = {name: f"urn:uuid:{stable_id(key, name)}" for name in names}
    patient_url = f"{case.partner.base_url}/Patient/{case.need_patient()}"
    composition = _composition(case, key, at, patient_url, names, urls)
    entries = [{"fullUrl": f"urn:uuid:{composition['id']}", "resource": composition}]
    entries.append({"fullUrl": patient_url, "resource": patient_entry(case)})
    for name, tree in names.items():
        entries.append({"fullUrl": urls[name], "resource": await copied(case, tree, urls, patient_url)})
    whole = {"resourceType": "Bundle", "id": stable_id(key, "document"), "identifier": {"system": DELIVERY, "value": key}}
    whole |= {"type": "document", "timestamp": at, "entry": entries}
    try:
        return check_tree(whole).body
    except (Invalid, Malformed) as error:
        raise Unfit(f"the document of what it carries would not be valid: {error}", "invalid") from None


async def _with_bytes(tree: Tree, fetch: Fetch | None) -> Tree:
    """A document with its bytes in it; what cannot be had is named."""
    if tree["resourceType"] != "DocumentReference":
        return tree
    parts = []
    for part in tree.get("content", []):
        try:
            attachment = await held(part["attachment"], fetch)
        except Unfit:
            kept = {name: value for name, value in part["attachment"].items() if name in ("contentType", "title", "creation")}
            attachment = kept or {"title": said(tree)}
        parts.append({**part, "attachment": attachment})
    return {**tree, "content": parts}


def _composition(case: Case, key: str, at: str, patient_url: str, names: dict[str, Tree], urls: dict[str, str]) -> Tree:
    lines = "".join(f"<li>{escape(said(tree))}</li>" for tree in names.values())
    return {
        "resourceType": "Composition",
        "id": stable_id(key, "composition"),
        "status": "final",
        "type": {"coding": [dict(case.occasion.note)]},
        "subject": {"reference": patient_url},
        "date": at,
        "author": [{"display": case.words.get("requester") or "Care coordination"}],
        "title": case.title,
        "section": [
            {
                "title": "Reason for referral",
                "code": {"coding": [_REASON]},
                "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><ul>{lines}</ul></div>'},
                "entry": [{"reference": urls[name]} for name in names],
            }
        ],
    }
