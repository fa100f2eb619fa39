"""A referral: from an order at one organisation to the report that comes back from another, and nothing forgotten between.

http://hl7.org/fhir/us/sdoh-clinicalcare (Task), http://hl7.org/fhir/us/bser (business status). An order becomes a Task for each
performer that is asked (fhircm/coordination/asking.py); what the performer does, seen in its Encounters and DocumentReferences by the
referral number, moves the Task. The reaction looks at the present state of all of this, whatever changed, and takes the next legal step
towards what the evidence says. Its own step is a change again, so it goes on until Task and evidence agree:
fhircm/coordination/evidence.py. What the requester has left to do is in fhircm/coordination/loops.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from fhircm.coordination import (
    asking,
    capable,
    correlation,
    distribution,
    evidence,
    incomplete,
    intermediary,
    loops,
    referral_follow_up,
    referral_questions,
    referral_record,
    referral_times,
)
from fhircm.coordination.build import edit, instant, reference
from fhircm.coordination.codes import FULFILL, identifiers, own
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.people import linked, patient_of, patients_value
from fhircm.coordination.task_states import business, is_open, is_referral, machine, mirrored
from fhircm.fhir.outcome import Gone, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import REFERRAL
from fhircm.store.resources import Change, Op, Put, Stored

Tree = dict[str, Any]
TYPES = referral_record.EVIDENCE | {"Consent", "HealthcareService", "Person", "PractitionerRole", "ServiceRequest", "Task"}
_OPEN = any_of(state for state in machine("Task", "referral").next if state not in machine("Task", "referral").terminal)


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to what a referral is made of, and to what shows how it stands: ask who is to be asked, and move it on."""
    stored = await context.get(change.type, change.id)
    if stored is None:
        return []
    match change.type:
        case "ServiceRequest":
            return _once(await _order(context, stored, written_here=change.origin.startswith("client:")))
        case "Task":
            return _once(await _task(context, stored))
        case "PractitionerRole":
            return _once(await _service(context))
        case "HealthcareService":
            return _once([*await _service(context), *await _moved(context, await _of_service(context, stored), change.type)])
    return _once(await _moved(context, await _evident(context, stored), change.type))


async def _moved(context: Context, tasks: Iterable[Stored], because_of: str) -> list[Op]:
    return [op for task in tasks for op in await _move(context, task, because_of)]


def _once(operations: Iterable[Op]) -> list[Op]:
    """The first edit of each resource: the others are made when that one is seen as a change, if they are needed still."""
    found: dict[tuple[str, str] | int, Op] = {}
    for number, one in enumerate(operations):
        found.setdefault((one.resource.type, one.resource.id or "") if isinstance(one, Put) else number, one)
    return list(found.values())


async def _order(context: Context, order: Stored, *, written_here: bool) -> list[Op]:
    operations = await asking.give_out(context, order, written_here=written_here)
    if mirrored(order.tree):  # the copy that a performer keeps
        operations += await _moved(context, await _evident(context, order), evidence.REPLY)
    for task in await distribution.tasks_of(context, order.id):
        if identifiers(task.tree, REFERRAL):
            operations += await _move(context, task, "ServiceRequest")
            operations += await intermediary.pass_on(context, task)
        operations += await loops.acknowledgement(context, task, order)
    for element in order.tree.get("basedOn", []) if order.tree["intent"] == "filler-order" else []:
        source = await context.follow(element)
        if source is not None and source.type == "ServiceRequest":
            operations += await asking.give_out(context, source)
            for task in await distribution.tasks_of(context, source.id):
                operations += await _above(context, task)
    return operations


async def _task(context: Context, task: Stored) -> list[Op]:
    if mirrored(task.tree):
        return await _moved(context, await _evident(context, task), evidence.REPLY)
    if not is_referral(task.tree):
        return await _left_to_do(context, task)
    order = await context.follow(task.tree.get("focus"))
    if not identifiers(task.tree, REFERRAL):
        return _adopted(context, task, order)
    operations: list[Op] = []
    if order is not None and order.type == "ServiceRequest" and not asking.changes_nothing(task.tree):
        operations += await asking.give_out(context, order)
    operations += await _move(context, task, "Task")
    operations += await _above(context, task)
    for element in task.tree.get("partOf", []):
        above = await context.follow(element)
        if above is not None and above.type == "Task":
            operations += await _above(context, above)
    operations += await loops.no_more_questions(context, task)
    return [*operations, *await loops.acknowledgement(context, task, order)]


async def _above(context: Context, task: Stored) -> list[Op]:
    """A Task that an intermediary has to pass on."""
    if not is_referral(task.tree) or mirrored(task.tree):
        return []
    needed = await intermediary.nobody_below(context, task)
    return [*await intermediary.pass_on(context, task), *await loops.passing_on(context, task, needed)]


async def _left_to_do(context: Context, task: Stored) -> list[Op]:
    """What a change of a Task of the requester's means: done, or still to do."""
    if loops.is_question(task.tree):
        return await loops.question(context, task)
    code = own(task.tree.get("code"))
    if code in (incomplete.CODE, *referral_follow_up.CODES):
        of = [await context.follow(one.get("valueReference")) for one in task.tree.get("input", [])]
        return await _moved(context, [one for one in of if one is not None and is_referral(one.tree)], "Task")
    about = await context.follow(task.tree.get("focus")) if code in loops.CODES else None
    if about is None:
        return []
    if about.type == "ServiceRequest":
        return await asking.give_out(context, about)
    if code == loops.ACKNOWLEDGE:
        return await loops.acknowledgement(context, about, await context.follow(about.tree.get("focus")))
    return await _above(context, about)


def _adopted(context: Context, task: Stored, order: Stored | None) -> list[Op]:
    """A referral that somebody wrote as a Task gets what those have that come of an order: number, patient, step and due time."""
    tree = task.tree
    if tree["status"] == "draft" or not is_open(tree):
        return []
    members: Tree = {"identifier": [*tree.get("identifier", []), asking.placer(task.id)]}
    if "groupIdentifier" not in tree:
        members["groupIdentifier"] = {"system": REFERRAL, "value": task.id}
    if "basedOn" not in tree:
        members["basedOn"] = [tree["focus"]]
    if "for" not in tree and order is not None and (patient := patient_of(order.tree)):
        members["for_"] = reference(f"Patient/{patient}")
    if "businessStatus" not in tree and (codes := business().of.get(tree["status"])):
        members["businessStatus"] = business().concept(codes[0])
    period = tree.get("restriction", {}).get("period", {})
    if "end" not in period:
        due = referral_times.first_due(context, tree.get("priority", "routine"), context.calendar, None)
        members |= due and {**due, "restriction": {**tree.get("restriction", {}), **due["restriction"]}}
    return [edit(task, **members, lastModified=instant(context.now()))]


async def _service(context: Context) -> list[Op]:
    """Who is able has changed: it may be others who find an open request now."""
    operations: list[Op] = []
    for task in await context.find("Task", ("owner:missing", "true"), ("status", "requested"), ("code", token(*FULFILL))):
        order = await context.follow(task.tree.get("focus"))
        if order is not None and distribution.of(task.tree).how == distribution.OPEN and not mirrored(task.tree):
            edited = capable.refreshed(task, await capable.organizations(context, order.tree), context.now())
            operations += [edited] if edited else []
    return operations


# --- evidence ----------------------------------------------------------------------------------------------------------------


async def _evident(context: Context, stored: Stored) -> list[Stored]:
    """The referrals of the hub to which something can matter: by a number, by its order, by its patient."""
    found: list[Stored] = []
    if stored.type == "Person":
        found = await _of_person(context, stored)
    elif stored.type == "Consent":
        found = await _incomplete(context, stored.tree)
    elif stored.type not in referral_record.EVIDENCE or referral_record.tells(stored.tree):
        found = await correlation.quoted_tasks(context, stored.tree)
    return [task for task in found if identifiers(task.tree, REFERRAL) and not mirrored(task.tree) and task.id != stored.id]


async def _incomplete(context: Context, tree: Tree) -> list[Stored]:
    """The referrals of this human that are not sent yet."""
    patient = patient_of(tree)
    if patient is None:
        return []
    patients = await linked(context, patient)
    return await context.find("Task", patients_value(patients), ("code", token(*FULFILL)), ("status", "draft"))


async def _of_service(context: Context, service: Stored) -> list[Stored]:
    """The open referrals that are addressed to a service."""
    orders = await context.find("ServiceRequest", ("performer", f"HealthcareService/{service.id}"), ("status", "active"))
    if not orders:
        return []
    focus = any_of(f"ServiceRequest/{order.id}" for order in orders)
    found = await context.find("Task", ("focus", focus), ("status", _OPEN))
    return [task for task in found if identifiers(task.tree, REFERRAL) and not mirrored(task.tree)]


async def _of_person(context: Context, person: Stored) -> list[Stored]:
    """The open referrals of its members, and of those that it lost: what was seen at the other's record is theirs no more."""
    trees = [person.tree]
    if person.version > 1:
        with suppress(NotFound, Gone):
            trees.append((await context.store.vread("Person", person.id, person.version - 1)).tree)
    targets = (parse_reference(link["target"].get("reference", "")) for tree in trees for link in tree.get("link", []))
    patients = sorted({to.id for to in targets if to.kind == "local" and to.type == "Patient" and to.id})
    if not patients:
        return []
    return await context.find("Task", patients_value(patients), ("code", token(*FULFILL)), ("status", _OPEN))


async def _move(context: Context, task: Stored, because_of: str) -> list[Op]:
    """One step of a referral, and what a human must look at."""
    patient = patient_of(task.tree)
    patients = await linked(context, patient) if patient else []  # of nobody who is known: no paper can be theirs
    found = await referral_record.gather(context, task, patients)
    operations = await referral_questions.questions(context, task, found)
    operations += await referral_follow_up.follow_up(context, task, found, patients)
    seen = found if await distribution.may_be_moved(context, task) else referral_record.Evidence(order=found.order)
    members = evidence.next_step(task.tree, seen, because_of, instant(context.now())) or {}
    completed, asked = await incomplete.go_on(context, task, found.order, members)
    members |= completed
    members |= correlation.learned(task.tree, found.order, (*seen.replies, *seen.visits, *seen.reports))
    members |= await referral_times.moved(context, task, members.get("status", task.tree["status"]))
    operations += asked
    operations += await loops.asked_to_stop(context, task, evidence.stop_is_to_be_asked_for(task.tree, found))
    return [*operations, edit(task, **members, lastModified=instant(context.now()))] if members else operations
