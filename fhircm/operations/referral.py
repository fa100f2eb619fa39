"""What can be asked about a referral: its package, its whole loop, and who could take it. Nothing is written.

http://hl7.org/fhir/us/sdoh-clinicalcare, http://hl7.org/fhir/us/bser
"""

from __future__ import annotations

from html import escape
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fhircm.coordination import candidates as ranking
from fhircm.coordination import referral_record
from fhircm.coordination.build import instant, stable_id
from fhircm.coordination.codes import identifiers
from fhircm.coordination.context import Record
from fhircm.coordination.package import packed
from fhircm.coordination.people import linked, organization_of, patient_of
from fhircm.coordination.task_states import mirrored
from fhircm.exchange.disclosure import disclosure_to, may_tell, without_withheld
from fhircm.fhir import json
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.systems import HUB, REFERRAL
from fhircm.operations.call import Answer, Call, Entry, Searchset
from fhircm.store.stored import Stored

Tree = dict[str, Any]
REASON = f"{HUB}StructureDefinition/candidate-reason"
_REFERRAL_NOTE = {"system": "http://loinc.org", "code": "57133-1", "display": "Referral note"}
_PEOPLE = ("requester", "performer", "encounter", "locationReference")
_FEW = 20


async def package(call: Call) -> Answer:
    """$package: what the referral carries, for its recipient."""
    assert call.id is not None
    kind = call.one("as", "collection")
    if kind not in ("collection", "document"):
        raise Invalid("'as' is collection or document", "Parameters.parameter.where(name='as')")
    seen, whole = Record(call.store), Record(call.store.store)
    order = await call.store.read("ServiceRequest", call.id)
    tasks = await _tasks(seen, order)
    recipient = call.one("recipient") or (
        tasks[0].tree.get("owner") if tasks else next(iter(order.tree.get("performer", [])), None)
    )
    task = {**(tasks[0].tree if tasks else {}), "owner": recipient}
    patient = await seen.follow(order.tree.get("subject"))
    carried = await packed(whole, order.tree, task, call.store.now)
    around = [element for name in _PEOPLE for element in _many(order.tree.get(name))]
    around += [element for one in tasks for element in (one.tree.get("requester"), one.tree.get("owner")) if element]
    named = [found for one in around if (found := await seen.follow(one)) is not None]
    found = _once([order, *tasks, *([patient] if patient else []), *named])
    allowed = await call.store.read_many([(one.type, one.id) for one in carried.content])
    organization = await organization_of(whole, recipient)
    if organization is None and call.one("recipient"):
        place = "Parameters.parameter.where(name='recipient')"
        raise Invalid("'recipient' is a Reference to an Organization of this server, or to a role or service of one", place)
    told = await disclosure_to(call.store.store, organization, patient.tree if patient else None, call.store.now)
    inside = [one for one in _once([*found, *carried.content]) if (one.type, one.id) in allowed or one in found]
    kept = [one for one in inside if one.type in ("Patient", "Consent") or may_tell(told, one.tree)]
    withheld = len(_once([*found, *carried.content])) - len(kept)
    trees = [await without_withheld(call.store.store, told, one.tree) for one in kept]
    numbers = [value for one in tasks for value in identifiers(one.tree, REFERRAL)]
    return _bundle(call, kind, trees, carried.missing, withheld, numbers[0] if numbers else None)


def _bundle(call: Call, kind: str, trees: list[Tree], missing: tuple[str, ...], withheld: int, number: str | None) -> Answer:
    at = instant(call.store.now)
    if kind == "document":
        trees = [_composition(trees, at), *trees]
    issues = [("incomplete", f"The package lacks {one}") for one in missing]
    issues += (
        [("suppressed", f"{withheld} of what the referral names is not for this recipient, or not for you, and left out")]
        if withheld
        else []
    )
    if issues:
        told = [{"severity": "warning", "code": code, "diagnostics": text} for code, text in issues]
        trees = [
            *trees,
            {"resourceType": "OperationOutcome", "id": stable_id("package-outcome", trees[0]["id"], at), "issue": told},
        ]
    bundle = {
        "resourceType": "Bundle",
        "identifier": {"system": REFERRAL, "value": number} if number else {"system": f"{HUB}package", "value": str(call.id)},
        "type": kind,
        "timestamp": at,
        "entry": [{"fullUrl": _url(call, one), "resource": one} for one in trees],
    }
    return Answer(json.dumps(bundle))


def _url(call: Call, tree: Tree) -> str:
    """Its address here; what only stands in this Bundle has none."""
    if tree["resourceType"] in ("Composition", "OperationOutcome"):
        return f"urn:uuid:{tree['id']}"
    return f"{call.base_url}/{tree['resourceType']}/{tree['id']}"


def _composition(trees: list[Tree], at: str) -> Tree:
    """The first entry of a document: who refers whom, and what comes along."""
    order = trees[0]
    carried = [one for one in trees if one["resourceType"] not in ("Patient", "Organization", "Practitioner", "PractitionerRole")]
    lines = "".join(f"<li>{escape(one['resourceType'])}</li>" for one in carried)
    return {
        "resourceType": "Composition",
        "id": str(uuid5(NAMESPACE_URL, f"{order['id']}/{at}")),
        "status": "final",
        "type": {"coding": [_REFERRAL_NOTE]},
        "subject": order["subject"],
        "date": at,
        "author": [order.get("requester") or {"display": "Care coordination"}],
        "title": "Referral",
        "section": [
            {
                "title": "Reason for referral",
                "code": {
                    "coding": [{"system": "http://loinc.org", "code": "42349-1", "display": "Reason for referral (narrative)"}]
                },
                "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><ul>{lines}</ul></div>'},
                "entry": [{"reference": f"{one['resourceType']}/{one['id']}"} for one in carried],
            }
        ],
    }


async def loop(call: Call) -> Answer:
    """$loop: everything that belongs to the referral and that the caller may see."""
    assert call.id is not None
    seen = Record(call.store)
    order = await call.store.read("ServiceRequest", call.id)
    tasks = await _tasks(seen, order)
    patients = await linked(seen, patient_of(order.tree) or "")
    found: list[Stored] = []
    for task in tasks:
        there = await referral_record.everything(seen, task.tree, order)
        found += [one for one in there if patient_of(one.tree) in patients or one.type in ("Task", "ServiceRequest")]
        about = f"Task/{task.id}"
        found += await seen.find("Task", ("focus", about))
        found += await seen.find("Communication", ("part-of", about))
        outputs = [one.get("valueReference", {}) for name in ("input", "output") for one in task.tree.get(name, [])]
        found += [one for element in outputs if (one := await seen.follow(element)) is not None]
    rest = sorted((one for one in _once([*tasks, *found]) if one.id != order.id), key=lambda one: (one.type, one.id))
    trees = [one.tree for one in (order, *rest)]
    numbers = [value for one in tasks for value in identifiers(one.tree, REFERRAL)]
    return _bundle(call, "collection", trees, (), 0, numbers[0] if numbers else None)


async def candidates(call: Call) -> Searchset:
    """$candidates: the services that could take the order."""
    assert call.id is not None
    seen = Record(call.store)
    order = await call.store.read("ServiceRequest", call.id)
    patient = await seen.follow(order.tree.get("subject"))
    found = await ranking.candidates(seen, order.tree, patient.tree if patient else None, call.store.now)
    fit = [one for one in found if call.one("unfit", False) or not one.against]
    count = call.one("count", _FEW)
    if count < 1:
        raise Invalid("'count' takes a whole number of 1 or more", "Parameters.parameter.where(name='count')")
    entries = [
        Entry(
            one.service,
            {
                "extension": [{"url": REASON, "valueString": text} for text in (*one.against, *one.reasons)],
                "mode": "match",
                "score": one.score,
            },
        )
        for one in fit[:count]
    ]
    return Searchset(entries, total=len(fit), self_url=f"{call.base_url}/ServiceRequest/{call.id}/$candidates")


async def _tasks(record: Record, order: Stored) -> list[Stored]:
    """The hub's Tasks for an order, the one that is open or the newest first."""
    found = await record.find("Task", ("focus", f"ServiceRequest/{order.id}"))
    own = [one for one in found if not mirrored(one.tree) and identifiers(one.tree, REFERRAL)]
    return sorted(own, key=lambda one: (one.tree.get("authoredOn", ""), one.id), reverse=True)


def _many(element: Any) -> list[Tree]:
    return element if isinstance(element, list) else [element] if element else []


def _once(found: list[Stored]) -> list[Stored]:
    return list({(one.type, one.id): one for one in found}.values())
