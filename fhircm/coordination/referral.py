"""A referral: from an order at one organisation to the report that comes back from another, and nothing forgotten between.

http://hl7.org/fhir/us/sdoh-clinicalcare (Task), http://hl7.org/fhir/us/bser (business status). An order becomes one Task,
addressed to the performer; what the performer does, seen in its Encounters and DocumentReferences by the referral number, moves
the Task. The reaction looks at the present state of all of this, whatever changed, and takes the next legal step towards what
the evidence says. Its own step is a change again, so it goes on until Task and evidence agree: fhircm/coordination/evidence.py.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from fhircm.coordination import correlation, evidence, incomplete, loop, package, referral_follow_up, referral_questions, steps
from fhircm.coordination.build import edit, for_a_human, instant, new, npi, profile, reference, stable_id
from fhircm.coordination.codes import FULFILL, NPI, PLACER, identifiers, member, own
from fhircm.coordination.context import Context, Neighbour, any_of, token
from fhircm.coordination.escalation import reset
from fhircm.coordination.people import linked, named, organization_of, patient_of, patients_value
from fhircm.coordination.task_states import business, is_open, machine, mirrored
from fhircm.coordination.times import moment
from fhircm.fhir.outcome import Gone, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import REFERRAL
from fhircm.store.resources import Change, Op, Stored

Tree = dict[str, Any]
TYPES = loop.EVIDENCE | package.WATCHED | {"HealthcareService", "Person", "ServiceRequest", "Task"}
_STEP = {
    "draft": "complete-package",
    "requested": "respond-to-referral",
    "accepted": "schedule-visit",
    "on-hold": "report-back",
    "in-progress": "report-back",
}
_OPEN = any_of(state for state in machine("Task", "referral").next if state not in machine("Task", "referral").terminal)


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to what a referral is made of, and what shows how it stands: send it, and move it on."""
    stored = await context.get(change.type, change.id)
    if stored is None:
        return []
    if change.type == "ServiceRequest" and (sent := await _send(context, stored)):
        return sent
    operations: list[Op] = []
    for task in await _tasks_of(context, stored):
        operations += await _move(
            context, task, evidence.REPLY if change.type == "Task" and stored.id != task.id else change.type
        )
    return operations


async def _tasks_of(context: Context, stored: Stored) -> list[Stored]:
    """The referrals of the hub that a resource can matter to."""
    tree = stored.tree
    if stored.type == "Task" and not mirrored(tree):
        found = [stored]
    elif stored.type == "Person":
        found = await _of_person(context, stored)
    elif stored.type == "HealthcareService":
        found = await _of_service(context, stored)
    elif stored.type not in loop.EVIDENCE or loop.tells(tree):
        found = await correlation.quoted_tasks(context, tree)
    else:
        found = []
    if stored.type == "Consent" or (stored.type in package.WATCHED and stored.version == 1):
        found = [*found, *await _incomplete(context, tree)]
    if stored.type == "ServiceRequest" and (task := await context.get("Task", task_id(stored.id))):
        found = [task, *(one for one in found if one.id != task.id)]
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


async def _of_service(context: Context, service: Stored) -> list[Stored]:
    """The open referrals that are addressed to a service."""
    name = f"HealthcareService/{service.id}"
    orders = await context.find("ServiceRequest", ("performer", name), ("status", "active"))
    asked = [("focus", any_of(f"ServiceRequest/{order.id}" for order in orders))] if orders else []
    return [task for search in (*asked, ("owner", name)) for task in await context.find("Task", search, ("status", _OPEN))]


async def _incomplete(context: Context, tree: Tree) -> list[Stored]:
    """The referrals of this human that are not sent yet."""
    patient = patient_of(tree)
    if patient is None:
        return []
    patients = await linked(context, patient)
    return await context.find("Task", patients_value(patients), ("code", token(*FULFILL)), ("status", "draft"))


def task_id(order: str) -> str:
    """The id of the Task of an order: its referral number."""
    return stable_id("referral", order)


# --- sending -----------------------------------------------------------------------------------------------------------------


async def _send(context: Context, order: Stored) -> list[Op]:
    """The Task of an order that is a referral to another organisation; nothing when it has one, or is none."""
    tree = order.tree
    if (
        tree["status"] != "active"
        or tree["intent"] != "order"
        or not member("referral-order", tree.get("category"), tree.get("code"))
    ):
        return []
    if patient_of(tree) is None or await context.get("Task", task_id(order.id)) is not None:
        return []
    performer = await _performer(context, tree)
    if performer is None or not await _is_news(context, order):
        return []
    number = npi(performer.tree)
    neighbour = context.neighbour(npi=number)
    if neighbour is not None and neighbour == context.source_of(tree):
        return []  # an order within the house
    owner = await _directory_entry(context, performer, neighbour)
    carried = await package.packed(context, tree, {"owner": reference(f"Organization/{owner.id}")}, context.now())
    task = await _task(context, order, owner, context.calendar_of(neighbour), carried)
    operations: list[Op] = [new(task), *await incomplete.ask(context, task, carried)]
    if neighbour is None:
        operations.append(_nobody_there(context, task))
    return operations


async def _performer(context: Context, order: Tree) -> Stored | None:
    """The Organization that is asked: the first performer that is one, or belongs to one, with an NPI.

    Others are alternatives.
    """
    for element in order.get("performer", []):
        organization = await organization_of(context, element)
        if organization is not None and npi(organization.tree):
            return organization
    return None


async def _is_news(context: Context, order: Stored) -> bool:
    """Whether the order is recent, or the hub saw it before it was active.

    A first pull brings orders of years that nobody closed.
    """
    written = moment(order.tree.get("authoredOn"), context.calendar_of(context.source_of(order.tree)))
    versions = [one for one in await context.store.history("ServiceRequest", order.id) if not one.deleted]
    active = [one.tree["status"] == "active" for one in versions]  # newest first
    since = active.index(False) if False in active else len(active)
    if since < len(versions) or written is None:
        return True
    return written >= versions[-1].last_updated - context.window


async def _directory_entry(context: Context, performer: Stored, neighbour: Neighbour | None) -> Stored:
    """The performer as it describes itself, when it is a partner; else the requester's entry for it."""
    if neighbour is not None:
        for one in await context.find("Organization", ("identifier", token(NPI, neighbour.npi))):
            if context.source_of(one.tree) == neighbour:
                return one
    return performer


async def _task(context: Context, order: Stored, performer: Stored, calendar: Any, carried: package.Package) -> Tree:
    tree, id, now = order.tree, task_id(order.id), context.now()
    status = "draft" if carried.missing else "requested"
    to_order = reference(f"ServiceRequest/{order.id}")
    encounter = await context.follow(tree.get("encounter"))
    code = tree.get("code", {})
    told = code.get("text") or next((one["display"] for one in code.get("coding", []) if one.get("display")), None)
    task: Tree = {
        "resourceType": "Task",
        "id": id,
        "meta": profile("referral-task"),
        "identifier": [{"type": {"coding": [_coding(PLACER)]}, "system": REFERRAL, "value": id}],
        "basedOn": [to_order],
        "status": status,
        "businessStatus": business().concept("2.0"),
        "intent": "order",
        "priority": tree.get("priority", "routine"),
        "code": {"coding": [_coding(FULFILL)], "text": "Fulfil the referral"},
        "description": told,
        "focus": to_order,
        "for": reference(f"Patient/{patient_of(tree)}"),
        "encounter": reference(f"Encounter/{encounter.id}") if encounter else None,
        "authoredOn": instant(now),
        "lastModified": instant(now),
        "requester": await _requester(context, tree, encounter),
        "owner": await named(context, performer),
        "reasonCode": next(iter(tree.get("reasonCode", [])), None),
        "input": carried.inputs,
        **_deadline(context, status, tree.get("priority", "routine"), now, calendar),
    }
    return task | correlation.learned(task, tree, ())


def _coding(code: tuple[str, str]) -> Tree:
    return {"system": code[0], "code": code[1]}


async def _requester(context: Context, order: Tree, encounter: Stored | None) -> Tree:
    """The organisation that asks: the requester's, else that of the visit, else the partner's, else the one that coordinates."""
    organization = await organization_of(context, order.get("requester"))
    if organization is None and encounter is not None:
        organization = await context.follow(encounter.tree.get("serviceProvider"))
    source = context.source_of(order)
    if organization is None and source is not None:
        entries = await context.find("Organization", ("identifier", token(NPI, source.npi)))
        organization = next((one for one in entries if context.source_of(one.tree) == source), None)
    return await named(context, organization) if organization else context.coordinator


def _nobody_there(context: Context, task: Tree) -> Op:
    return for_a_human(
        stable_id("undelivered", task["id"]),
        "undelivered",
        "The hub exchanges nothing with the organisation that this referral is addressed to",
        owner=context.coordinator,
        focus=f"Task/{task['id']}",
        patient=task["for"],
        at=context.now(),
    )


# --- moving on ---------------------------------------------------------------------------------------------------------------


async def _move(context: Context, task: Stored, because_of: str) -> list[Op]:
    """One step of a referral, and what a human must look at."""
    patients = await linked(context, patient_of(task.tree) or "")
    found = await loop.gather(context, task, patients)
    operations = await referral_questions.questions(context, task, found)
    operations += await referral_follow_up.follow_up(context, task, found, patients)
    members = evidence.next_step(task.tree, found, because_of, instant(context.now())) or {}
    told, asked = await incomplete.go_on(context, task, found.order, members)
    members |= told
    members |= correlation.learned(task.tree, found.order, (*found.replies, *found.visits, *found.reports))
    members |= await _new_deadline(context, task, members.get("status", task.tree["status"]))
    operations += asked
    return [*operations, edit(task, **members, lastModified=instant(context.now()))] if members else operations


async def _new_deadline(context: Context, task: Stored, status: str) -> Tree:
    """The due time of the step that a status stands for; it stays when the Task is at that step already, or closed."""
    tree = task.tree
    if not is_open({"status": status}):
        return {}
    owner = await context.follow(tree.get("owner"))
    calendar = context.calendar_of(context.neighbour(npi=npi(owner.tree)) if owner else None)
    deadline = _deadline(context, status, tree.get("priority", "routine"), context.now(), calendar)
    if not deadline or deadline["instantiatesUri"].rpartition("#")[0] != tree.get("instantiatesUri", "").rpartition("#")[0]:
        return {}
    if _code_of(context, deadline) == _code_of(context, tree):
        return {}
    return {**deadline, "restriction": {**tree.get("restriction", {}), **deadline["restriction"]}, "extension": reset(tree)}


def _code_of(context: Context, task: Tree) -> str | None:
    """What the step of a Task is about: the urgent and the routine form of a step are one step."""
    pathway = context.pathway_of(task)
    step = pathway.step(task.get("instantiatesUri", "").rpartition("#")[2]) if pathway else None
    return own(step.code) if step else None


def _deadline(context: Context, status: str, priority: str, since: datetime, calendar: Any) -> Tree:
    """What a Task says of its step and of when it is due."""
    return steps.due(context, _STEP.get(status), priority, since, calendar)
