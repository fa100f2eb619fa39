"""What changes the planning of a discharge: the stay, its Tasks, and what shows that something is done.

https://hl7.org/fhir/R4/encounter.html
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination.build import Tree
from fhircm.coordination.codes import member, own
from fhircm.coordination.context import Context, token
from fhircm.coordination.discharge import shown
from fhircm.coordination.discharge.arrange import arrange
from fhircm.coordination.discharge.expectation import expectations
from fhircm.coordination.discharge.offers import is_asking
from fhircm.coordination.discharge.plan import BARRIER, EVENT, ITEM, OPEN_ITEMS, REQUEST, WHOLE, is_stay
from fhircm.coordination.people import linked, patient_of, patients_value
from fhircm.coordination.task_states import machine, mirrored
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import COORDINATION
from fhircm.store.resources import Change, Op, Stored, Timer

TYPES = " ".join(sorted({"Encounter", "Task", "Patient", "Coverage", "ServiceRequest", "Provenance", *shown.TYPES}))
_OURS = (WHOLE, ITEM, BARRIER, REQUEST, OPEN_ITEMS, "transition-of-care")
_OPEN = ",".join(state for state in machine("Task").next if state not in machine("Task").terminal)


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to a stay and to what bears on its discharge: arrange what is to be done before the patient leaves."""
    if change.type == "Provenance" and not change.origin.startswith("client:"):
        return []  # the hub's own, and a partner's, sign nothing here
    stored = await context.get(change.type, change.id)
    if stored is None or (change.origin == "hub" and _arranged(stored)):
        return []
    said = await _dated(context, change) if own(stored.tree.get("code")) == WHOLE and change.origin != "hub" else None
    operations: list[Op] = []
    for stay in await _stays(context, stored):
        operations += await arrange(context, stay, said)
    return operations


async def _dated(context: Context, change: Change) -> str | None:
    """The date that an edit of the planning Task gave it, when it stated no expectation with it."""
    if change.version == 1 or change.method == "delete":
        return None
    after, before = [(await context.store.vread(change.type, change.id, change.version - n)).tree for n in (0, 1)]
    end, earlier = (one.get("restriction", {}).get("period", {}).get("end") for one in (after, before))
    return end if end != earlier and expectations(after) == expectations(before) else None


def _arranged(changed: Stored) -> bool:
    """Whether it is an item that the hub opened, moved or closed, and with it wrote what follows from that.

    One that is under way is on its way to its end; one of a transition may have been called off with it.
    """
    tree = changed.tree
    item = changed.type == "Task" and own(tree.get("code")) in (ITEM, OPEN_ITEMS)
    return item and tree["status"] != "in-progress" and len(tree.get("partOf", [])) == 1


async def look_again(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: the discharge is near, or its expected date has passed."""
    stay = await context.get("Encounter", timer.payload["encounter"])
    return await arrange(context, stay) if stay is not None else []


async def _stays(context: Context, changed: Stored) -> list[Stored]:
    """The stays on whose planning a resource bears."""
    tree = changed.tree
    if changed.type == "Encounter":
        others = await _planned(context, patient_of(tree)) if is_stay(tree) else []  # over, when the patient is in hospital again
        return [changed, *(one for one in others if one.id != changed.id)] if is_stay(tree) else []
    if changed.type == "Task" and not mirrored(tree) and own(tree.get("code")) in _OURS:
        return await _stays_of_task(context, tree)
    return await _planned(context, await _patient(context, changed)) if _bears(context, tree) else []


def _bears(context: Context, tree: Tree) -> bool:
    """Whether a resource may show that something is done, or change what is asked for: most of what comes in does neither."""
    match tree["resourceType"]:
        case "Patient":
            return tree.get("deceasedBoolean") is True or "deceasedDateTime" in tree
        case "ServiceRequest":
            return member("discharge-order", tree.get("code"))
        case "Task":
            return is_asking(tree)
        case "Coverage" | "Provenance":
            return True
        case "DocumentReference" if any(one.get("code") == "signs" for one in tree.get("relatesTo", [])):
            return True
    steps = [step for pathway in context.pathways_of(EVENT) for step in pathway.steps]
    return any(shown.may_show(one, tree) for step in steps for one in step.shown)


async def _stays_of_task(context: Context, task: Tree) -> list[Stored]:
    for element in (task.get("encounter"), task.get("focus"), *task.get("partOf", [])):
        found = await context.follow(element)
        if found is not None and found.type == "Task":
            found = await context.follow(found.tree.get("encounter"))
        if found is not None and found.type == "Encounter":
            return [found] if is_stay(found.tree) else []
    return []


async def _patient(context: Context, changed: Stored) -> str | None:
    """Whose a resource is; of an account of who signed, whose the signed one is."""
    tree: Tree | None = changed.tree
    if changed.type == "Provenance":
        signed = [await context.follow(one) for one in changed.tree.get("target", [])] if changed.tree.get("signature") else []
        tree = next((one.tree for one in signed if one is not None), None)
    if changed.type == "Patient":
        return changed.id
    if changed.type == "Coverage":
        return _id(changed.tree.get("beneficiary"))
    if changed.type == "Appointment":
        actors = (_id(one.get("actor")) for one in changed.tree.get("participant", []))
        return next((one for one in actors if one), None)
    return patient_of(tree) if tree else None


def _id(element: Any) -> str | None:
    to = parse_reference((element or {}).get("reference", ""))
    return to.id if to.type == "Patient" and to.kind == "local" else None


async def _planned(context: Context, patient: str | None) -> list[Stored]:
    """The stays of a human whose planning is open."""
    if patient is None:
        return []
    code = ("code", token(COORDINATION, WHOLE))
    plans = await context.find("Task", patients_value(await linked(context, patient)), code, ("status", _OPEN))
    found = [await context.follow(one.tree.get("encounter")) for one in plans if not mirrored(one.tree)]
    return list({one.id: one for one in found if one is not None}.values())
