"""Follow a transition of care: what an admission, a transfer, a discharge or an emergency visit sets going, and when it is over.

https://hl7.org/fhir/R4/encounter.html, https://hl7.org/fhir/R4/task.html. What there should be follows from how the human's stays stand
now, never from the order in which the hub came to know of them: late, repeated, corrected and cancelled events end in the same state.
"""

from __future__ import annotations

from collections.abc import Iterable

from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.people import deceased, patient_of
from fhircm.coordination.transition.closing import attempted, close
from fhircm.coordination.transition.pathways import reconcile
from fhircm.coordination.transition.stays import human, setting_of
from fhircm.coordination.transition.wholes import first_ids
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Change, Op, Stored

_ORDERS = frozenset(("ServiceRequest", "DeviceRequest"))


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to Encounters and what belongs to them: open transitions of care, keep them as they should be, call them off, or close them."""
    stored = await context.get(change.type, change.id)
    match change.type:
        case "Encounter":
            return await _encounter(context, change, stored)
        case "Patient":
            return await _patient(context, change, stored)
        case "Person":
            return await _person(context, stored)
        case "Task" if stored is not None:
            return await _task(context, stored)
        case "Communication" if stored is not None:
            return await attempted(context, stored)
        case type if type in _ORDERS and stored is not None:
            encounter = await context.follow(stored.tree.get("encounter"))
            return await _stay(context, encounter) if encounter is not None else []
    return []


async def _encounter(context: Context, change: Change, stored: Stored | None) -> list[Op]:
    if stored is not None and setting_of(stored.tree) is not None:
        return await _stay(context, stored)
    if stored is not None and change.version == 1:
        return []  # a visit, as most are
    # It was a stay once, perhaps: then its transitions are called off.
    tasks = await context.store.read_many([("Task", id) for id in first_ids(context, [change.id])])
    patients = {patient for task in tasks.values() if (patient := patient_of(task.tree))}
    return await _each(context, patients)


async def _stay(context: Context, encounter: Stored) -> list[Op]:
    patient = patient_of(encounter.tree)
    if patient is None or setting_of(encounter.tree) is None:
        return []
    return await reconcile(context, await human(context, patient, encounter), encounter.id)


async def _task(context: Context, task: Stored) -> list[Op]:
    operations: list[Op] = []
    if own(task.tree.get("code")) == "arrival" and task.tree["status"] == "in-progress":
        encounter = await context.follow(task.tree.get("encounter"))
        operations = await _stay(context, encounter) if encounter is not None else []
    return operations or await close(context, task)


async def _patient(context: Context, change: Change, stored: Stored | None) -> list[Op]:
    if stored is None or (change.version == 1 and not await deceased(context, [stored.id])):
        return []
    return await _each(context, [stored.id])


async def _person(context: Context, stored: Stored | None) -> list[Op]:
    """Records that are of one human now: what the one tells counts for the other."""
    targets = [parse_reference(one["target"].get("reference", "")) for one in stored.tree.get("link", [])] if stored else []
    ids = [to.id for to in targets if to.kind == "local" and to.type == "Patient" and to.id]
    return await _each(context, ids[:1]) if len(ids) > 1 else []


async def _each(context: Context, patients: Iterable[str]) -> list[Op]:
    found: list[Op] = []
    for patient in sorted(patients):
        found += await reconcile(context, await human(context, patient))
    return found
