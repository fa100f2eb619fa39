"""Take over a patient by a document: check it, find the patient, and open the receiving side of the transition; tell the sending side.

https://hl7.org/fhir/R4/documents.html, http://hl7.org/fhir/us/pacio-toc. A Bundle of type document whose Composition is a transfer summary is
checked on every way in. It stays in the Bundle as it came; a DocumentReference
puts it into the patient's record.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from fhircm.coordination import protocol
from fhircm.coordination.build import concept, edit, for_a_human, instant, new, reference, stable_id
from fhircm.coordination.codes import codings, own
from fhircm.coordination.context import Context, token
from fhircm.coordination.people import in_role, linked, patient_of
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open, machine
from fhircm.coordination.transition.closing import completeness
from fhircm.coordination.transition.document import layout
from fhircm.coordination.transition.wholes import RECEIVED, is_whole, pathways, steps_of, whole_id
from fhircm.fhir.outcome import Invalid, Issue
from fhircm.store.operations import Write, WriteRule
from fhircm.store.resources import Change, Op, Stored

Tree = dict[str, Any]
_EVIDENCE = "transition-document"


# --- checking ----------------------------------------------------------------------------------------------------------------


def is_transition_document(bundle: Tree) -> bool:
    """Whether a Bundle is the document of a transition of care."""
    first = next(iter(bundle.get("entry", [])), {}).get("resource", {})
    wanted = (layout().category["system"], layout().category["code"])
    return (
        bundle.get("type") == "document"
        and first.get("resourceType") == "Composition"
        and wanted in set(codings(first.get("type"), first.get("category", [])))
    )


def enforce(write: Write) -> None:
    """The write rule of transition documents. Raises Invalid with every place where one is wrong."""
    bundle = write.new
    if bundle is None or not is_transition_document(bundle):
        return
    issues = list(_wrong(bundle))
    if issues:
        raise Invalid(issues[0].text, issues=issues)


def _wrong(bundle: Tree) -> Iterator[Issue]:
    composition = bundle["entry"][0]["resource"]
    at = "Bundle.entry[0].resource"
    for name in ("identifier", "timestamp"):
        if name not in bundle:
            yield _issue(f"A document needs Bundle.{name}", f"Bundle.{name}")
    for name in ("subject", "custodian", "identifier", "language"):
        if name not in composition:
            yield _issue(f"The Composition needs {name}", f"{at}.{name}")
    subject = _entry(bundle, composition.get("subject"))
    if "subject" in composition and (subject is None or subject["resourceType"] != "Patient"):
        yield _issue("The subject must be a Patient that is in the Bundle", f"{at}.subject")
    sections = composition.get("section", [])
    for wanted in layout().sections:
        code = (wanted.code["system"], wanted.code["code"])
        count = sum(code in set(codings(one.get("code"))) for one in sections)
        if count != 1:
            yield _issue(
                f"The section '{wanted.title}' ({code[1]}) must be there once; it is there {count} times", f"{at}.section"
            )
    for number, section in enumerate(sections):
        place = f"{at}.section[{number}]"
        if "div" not in section.get("text", {}):
            yield _issue("A section needs a narrative", f"{place}.text")
        if ("entry" in section) == ("emptyReason" in section):
            yield _issue("A section needs entries, or the reason why there are none, and not both", place)
        for index, entry in enumerate(section.get("entry", [])):
            if _entry(bundle, entry) is None:
                yield _issue("What a section lists must be in the Bundle", f"{place}.entry[{index}]")


def _issue(text: str, place: str) -> Issue:
    return Issue("error", "invariant", text, place)


def _entry(bundle: Tree, element: Tree | None) -> Tree | None:
    """What a Reference of the Composition leads to within the Bundle. https://hl7.org/fhir/R4/bundle.html#references"""
    url = (element or {}).get("reference")
    if not url:
        return None
    base = str(bundle["entry"][0].get("fullUrl", "")).partition("/Composition/")[0]
    wanted = {url, f"{base}/{url}"}
    for one in bundle["entry"]:
        resource = one.get("resource", {})
        # A Composition under urn:uuid has no base; then the type and id must do.
        named = base.startswith("urn:") and url == f"{resource.get('resourceType')}/{resource.get('id')}"
        if one.get("fullUrl") in wanted or named:
            return resource or None
    return None


RULE = WriteRule(frozenset({"Bundle"}), enforce)


# --- taking over -------------------------------------------------------------------------------------------------------------


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to Bundle and Task: a transition document opens the receiving side, and what is done there advances the sending side."""
    stored = await context.get(change.type, change.id)
    if stored is None:
        return []
    if change.type == "Task":
        return await _acknowledged(context, stored)
    return await _received(context, stored) if is_transition_document(stored.tree) else []


async def _received(context: Context, bundle: Stored) -> list[Op]:
    composition = bundle.tree["entry"][0]["resource"]
    there = _entry(bundle.tree, composition["subject"])
    patients = await _patients(context, there or {})
    if len(patients) != 1:
        why = (
            "A transition document came for a patient who is not known here"
            if not patients
            else "A transition document may be of several patients"
        )
        id = stable_id("transition-document-patient", bundle.id)
        if await context.get("Task", id) is not None:
            return []
        owner = context.coordinator
        return [for_a_human(id, _EVIDENCE, why, owner=owner, focus=f"Bundle/{bundle.id}", patient=None, at=context.now())]
    patient = patients[0]
    stay = await _own_stay(context, bundle.tree, composition, patient)
    operations: list[Op] = []
    link = stable_id("transition-document", bundle.id)
    linked_to, wanted = await context.get("DocumentReference", link), _reference(bundle, composition, link, patient, stay)
    if linked_to is None:
        operations.append(new(wanted))
    elif linked_to.tree["content"] != wanted["content"]:  # the sender has corrected it
        operations.append(edit(linked_to, content=wanted["content"], date=wanted["date"]))
    for pathway in context.pathways_of(RECEIVED):
        operations += await _open(context, bundle, link, patient, pathway)
    if stay is not None:
        operations += await _advance(context, stay, "discharge-summary", f"DocumentReference/{link}")
    return operations


async def _patients(context: Context, there: Tree) -> list[str]:
    """The Patient here who is meant: the very record, or the one human who bears one of its numbers."""
    same = await context.get("Patient", there["id"]) if there.get("id") else None
    born = there.get("birthDate")
    if same is not None and born and same.tree.get("birthDate") == born and _families(same.tree) & _families(there):
        return [same.id]
    found: set[str] = set()
    for one in there.get("identifier", []):
        if one.get("system") and one.get("value"):
            matches = await context.find("Patient", ("identifier", token(one["system"], one["value"])))
            found |= {match.id for match in matches}
    ids = sorted(found)
    return ids[:1] if ids and found <= set(await linked(context, ids[0])) else ids


def _families(patient: Tree) -> set[str]:
    return {one["family"].casefold() for one in patient.get("name", []) if one.get("family")}


async def _own_stay(context: Context, bundle: Tree, composition: Tree, patient: str) -> Stored | None:
    """The stay here that the document is about, when the sending side is here, too."""
    there = _entry(bundle, composition.get("encounter"))
    stay = await context.get("Encounter", there["id"]) if there and there.get("id") else None
    return stay if stay is not None and patient_of(stay.tree) == patient else None


def _reference(bundle: Stored, composition: Tree, id: str, patient: str, stay: Stored | None) -> Tree:
    """The document in the patient's record: whoever may see that may read it, and the Bundle is of no patient."""
    attachment = {
        "contentType": "application/fhir+json",
        "data": b64encode(bundle.body).decode(),
        "url": f"Bundle/{bundle.id}",
        "title": composition.get("title"),
    }
    return {
        "resourceType": "DocumentReference",
        "id": id,
        "status": "current",
        "type": {"coding": [layout().type]},
        "category": composition.get("category"),
        "subject": reference(f"Patient/{patient}"),
        "date": instant(bundle.last_updated),
        "description": composition.get("title"),
        "content": [{"attachment": {name: value for name, value in attachment.items() if value}}],
        "context": {"encounter": [reference(f"Encounter/{stay.id}")]} if stay else None,
    }


async def _open(context: Context, bundle: Stored, link: str, patient: str, pathway: Pathway) -> list[Op]:
    whole = whole_id(f"Bundle/{bundle.id}", pathway)
    if await context.get("Task", whole) is not None:
        return []
    start, calendar = bundle.last_updated, context.calendar
    due = [(step, end) for step in pathway.applicable({}) if (end := pathway.due(step, start, calendar, {})) is not None]
    trees: list[Tree] = []
    for step, end in due:
        tree = await _task(context, pathway, step, link, patient, {"start": instant(start), "end": calendar.written(end)})
        trees.append(tree | {"id": stable_id(whole, step.id), "status": "ready", "partOf": [reference(f"Task/{whole}")]})
    period = {"start": instant(start), "end": calendar.written(max(end for _, end in due))}
    tree = await _task(context, pathway, pathway.whole, link, patient, period)
    return [new(tree | {"id": whole, "status": "in-progress", "extension": [completeness(trees)]}), *(new(one) for one in trees)]


async def _task(context: Context, pathway: Pathway, step: Step, link: str, patient: str, period: Tree) -> Tree:
    owner = await in_role(context, step.role, [patient], None) if step.role else None
    about = {"patient": patient, "focus": reference(f"DocumentReference/{link}"), "period": period}
    by = {"owner": owner or context.coordinator, "requester": context.coordinator}
    return protocol.task_of(pathway, step, **about, **by, at=context.now())


# --- the sending side --------------------------------------------------------------------------------------------------------


async def _acknowledged(context: Context, task: Stored) -> list[Op]:
    """What the hub has begun to close is closed; and the receiving side's acknowledgement is told to the sending side."""
    evidence = [one for one in task.tree.get("output", []) if own(one["type"]) == _EVIDENCE]
    if evidence and task.tree["status"] == "in-progress":
        return [edit(task, **_done(context, task, task.tree["output"]))]
    pathway = context.pathway_of(task.tree)
    if pathway is None or pathway.event != RECEIVED or own(task.tree.get("code")) != "summary-acknowledged":
        return []
    if task.tree["status"] != "completed":
        return []
    link = await context.follow(task.tree.get("focus"))
    about = (link.tree.get("context", {}).get("encounter") or [None])[0] if link else None
    stay = await context.follow(about)
    return await _advance(context, stay, "summary-acknowledged", f"Task/{task.id}") if stay else []


async def _advance(context: Context, stay: Stored, code: str, evidence: str) -> list[Op]:
    """Close the steps of a kind of the open transitions of a stay, with what shows that they are done."""
    output = [{"type": concept(_EVIDENCE), "valueReference": reference(evidence)}]
    operations: list[Op] = []
    for pathway in pathways(context):
        number = 0
        while whole := await context.get("Task", whole_id(stay.id, pathway, number)):
            number += 1
            if is_open(whole.tree) and is_whole(context, whole.tree):
                steps = [
                    one for one in await steps_of(context, whole.id) if own(one.tree.get("code")) == code and is_open(one.tree)
                ]
                operations += [edit(one, **_done(context, one, [*one.tree.get("output", []), *output])) for one in steps]
    return operations


def _done(context: Context, task: Stored, output: list[Tree]) -> Tree:
    """One legal step towards completed."""
    now = instant(context.now())
    status = (machine("Task").path(task.tree["status"], "completed") or ["completed"])[0]
    ended = {"executionPeriod": {"start": now, "end": now}} if status == "completed" else {}
    return {"status": status, "output": output, "lastModified": now, **ended}
