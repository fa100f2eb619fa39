"""How far a transition is, and its end: steps that are done, attempts to reach the patient, and what is still missing.

https://hl7.org/fhir/R4/task.html, https://hl7.org/fhir/R4/communication.html. CMS counts a transition (CPT 99495, 99496) although nobody was
reached, when two attempts within two business days are on record; they go on all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhircm.coordination.build import concept, edit, instant
from fhircm.coordination.codes import BASE, own
from fhircm.coordination.context import Context
from fhircm.coordination.task_states import is_open, machine, mirrored
from fhircm.coordination.times import moment
from fhircm.coordination.transition.wholes import is_whole, step_id, steps_of
from fhircm.fhir.invariants import over
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
COMPLETENESS = f"{BASE}/StructureDefinition/completeness"
_NOT_NEEDED = frozenset(("cancelled", "entered-in-error"))


def completeness(steps: Iterable[Tree]) -> Tree:
    """How complete a whole is, as an extension: `done` of `of`, and the codes of what is `missing`. What was called off counts nothing."""
    counted = sorted((one for one in steps if one["status"] not in _NOT_NEEDED), key=step_id)
    missing = [one for one in counted if one["status"] != "completed"]
    parts: list[Tree] = [
        {"url": "done", "valueInteger": len(counted) - len(missing)},
        {"url": "of", "valueInteger": len(counted)},
        *({"url": "missing", "valueCodeableConcept": one["code"]} for one in missing),
    ]
    return {"url": COMPLETENESS, "extension": parts}


async def close(context: Context, changed: Stored) -> list[Op]:
    """When no step is open any more, the whole is completed; cancelled, if nothing came about. Until then it says how complete it is."""
    above = [parse_reference(element.get("reference", "")) for element in changed.tree.get("partOf", [])]
    wholes = [await context.get("Task", to.id) for to in above if to.type == "Task" and to.kind == "local" and to.id]
    settled = [operation for whole in (*wholes, changed) if whole for operation in await _settle(context, whole)]
    return [*settled, *await _half_done(context, changed)]


async def _settle(context: Context, whole: Stored) -> list[Op]:
    if not is_open(whole.tree) or not is_whole(context, whole.tree):
        return []
    steps = [one.tree for one in await steps_of(context, whole.id)]
    states = {one["status"] for one in steps}
    if not states:
        return []
    others = [one for one in whole.tree.get("extension", []) if one["url"] != COMPLETENESS]
    members: Tree = {"extension": [*others, completeness(steps)]}
    if not states <= machine("Task").terminal:
        same = members["extension"] == whole.tree.get("extension")
        return [] if same else [edit(whole, **members, lastModified=instant(context.now()))]
    # One step at a time: a whole that somebody put on hold is taken up again before it is completed.
    table, status = machine("Task"), whole.tree["status"]
    way = table.path(status, "completed" if "completed" in states else "cancelled") or ["cancelled"]
    if len(way) > 1 and table.may(status, "in-progress"):
        way = ["in-progress"]
    now = instant(context.now())
    if way[0] in machine("Task").terminal:
        members["executionPeriod"] = over({"start": whole.tree.get("authoredOn", now)}, now)
    return [edit(whole, status=way[0], lastModified=now, **members)]


# --- attempts to reach the patient -------------------------------------------------------------------------------------------


async def attempted(context: Context, communication: Stored) -> list[Op]:
    """A Communication about a contact step was written: count the attempts; when somebody was reached, or by rule, the step is done."""
    operations: list[Op] = []
    for to in (parse_reference(one.get("reference", "")) for one in communication.tree.get("basedOn", [])):
        task = await context.get("Task", to.id) if to.type == "Task" and to.kind == "local" and to.id else None
        if task is not None:
            operations += await _count(context, task)
    return operations


async def _half_done(context: Context, task: Stored) -> list[Op]:
    """A contact step that was reached from ready is in-progress now, and completed next."""
    return await _count(context, task) if own(task.tree.get("code")) == "contact" and task.tree["status"] == "in-progress" else []


async def _count(context: Context, task: Stored) -> list[Op]:
    pathway = context.pathway_of(task.tree)
    step = pathway.step(step_id(task.tree)) if pathway else None
    if step is None or step.attempts is None or mirrored(task.tree) or not is_open(task.tree):
        return []
    due = moment(task.tree.get("restriction", {}).get("period", {}).get("end"))
    found = await context.find("Communication", ("based-on", f"Task/{task.id}"))
    reached = [one for one in found if one.tree["status"] == "completed"]
    missed = [one for one in found if one.tree["status"] == "not-done" and _in_time(one.tree, due)]
    apart = {one.tree.get("sent") for one in missed}  # two notes of one call are one attempt
    counted = reached or (missed if len(apart) >= step.attempts else [])
    known = [one["valueReference"]["reference"] for one in task.tree.get("output", []) if own(one["type"]) == "contact-attempt"]
    attempts = [f"Communication/{one.id}" for one in sorted(found, key=_sent) if one.tree["status"] in ("completed", "not-done")]
    others = [one for one in task.tree.get("output", []) if own(one["type"]) != "contact-attempt"]
    members: Tree = {}
    if known != attempts:
        output = [{"type": concept("contact-attempt"), "valueReference": {"reference": one}} for one in attempts]
        members["output"] = [*others, *output] or None
    if counted:
        way = machine("Task").path(task.tree["status"], "completed") or []
        members["status"] = way[0] if way else task.tree["status"]
        if members["status"] == "completed":
            started = moment(_sent(counted[0])[0]) or context.now()
            members["executionPeriod"] = {"start": instant(started), "end": instant(max(started, context.now()))}
            if not reached:
                members["statusReason"] = {"text": f"{len(apart)} attempts in time reached nobody, which is enough"}
    return [edit(task, **members, lastModified=instant(context.now()))] if members else []


def _in_time(communication: Tree, due: Any) -> bool:
    at = moment(communication.get("sent"))
    return at is not None and (due is None or at <= due)


def _sent(communication: Stored) -> tuple[str, str]:
    return communication.tree.get("sent", ""), communication.id
