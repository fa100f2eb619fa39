"""What a requester has left to do for a referral: choose whom to ask, choose an offer, answer a question, look at the report.

http://hl7.org/fhir/us/sdoh-clinicalcare. Each is a Task with an owner and a due time, there as long as what asks for it; who does it by
a plain update of the order or the referral need not touch it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import count
from typing import Any

from fhircm.coordination import referral_times
from fhircm.coordination.build import concept, edit, for_a_human, instant, new, npi, reference, stable_id
from fhircm.coordination.codes import FULFILL, own
from fhircm.coordination.context import Context
from fhircm.coordination.people import named, organization_of, patient_of
from fhircm.coordination.task_states import is_open, is_referral, machine, mirrored
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
QUESTION, CHOOSE, OFFERS, ACKNOWLEDGE = "provide-information", "choose-performer", "choose-offer", "acknowledge-report"
CODES = frozenset((QUESTION, CHOOSE, OFFERS, ACKNOWLEDGE))
INFORMATION, AWAITING = "information", "awaiting-information"


async def _left_to_do(
    context: Context,
    about: str,
    code: str,
    why: str,
    *,
    owner: Tree,
    focus: str,
    patient: Tree | None,
    priority: str,
    **more: Any,
) -> list[Op]:
    """A Task of the requester's, unless there is one that is open. Somebody may have ended one before without doing it."""
    for number in count():
        id = stable_id(code, about, str(number))
        there = await context.get("Task", id)
        if there is None:
            break
        if is_open(there.tree):
            return []
    return [await _made(context, id, code, why, owner=owner, focus=focus, patient=patient, priority=priority, **more)]


async def _made(
    context: Context, id: str, code: str, why: str, *, owner: Tree, focus: str, patient: Tree | None, priority: str, **more: Any
) -> Op:
    of = await context.follow(owner)
    calendar = context.calendar_of(context.neighbour(npi=npi(of.tree)) if of else None)
    due = referral_times.due(context, code, priority, context.now(), calendar)
    made = {"owner": owner, "focus": focus, "patient": patient, "at": context.now(), "priority": priority}
    return for_a_human(id, code, why, **made, **due, **more)


def _end(context: Context, task: Stored, status: str, why: str | None = None) -> list[Op]:
    """One step towards the end of a Task, and its reason."""
    if not is_open(task.tree):
        return []
    step = (machine("Task").path(task.tree["status"], status) or [status])[0]
    reason = {"text": why} if why and step == status else None
    return [edit(task, status=step, statusReason=reason, lastModified=instant(context.now()))]


def _of_code(focused: Sequence[Stored], code: str) -> list[Stored]:
    """The open Tasks of a code among those that are about something."""
    return [one for one in focused if own(one.tree.get("code")) == code and is_open(one.tree) and not mirrored(one.tree)]


async def _asking(context: Context, order: Tree) -> Tree:
    """Who has to choose: the organisation that asks, when it works with the hub; else the one that coordinates."""
    organization = None if mirrored(order) else await organization_of(context, order.get("requester"))
    return await named(context, organization) if organization else context.coordinator


# --- choosing ----------------------------------------------------------------------------------------------------------------


def was_to_choose(focused: Sequence[Stored]) -> bool:
    """Whether somebody ever had to choose whom to ask, by the Tasks that are about an order."""
    return any(own(one.tree.get("code")) == CHOOSE and not mirrored(one.tree) for one in focused)


async def nobody_is_asked(context: Context, order: Stored, why: str | None, focused: Sequence[Stored]) -> list[Op]:
    """An order that nobody has or is asked for (`why`) has somebody who must choose; that ends when it is not so any more."""
    if why is None:
        return _no_more(context, order, CHOOSE, focused, "It is not needed any more")
    patient = reference(f"Patient/{patient_of(order.tree)}")
    return await _to_choose(context, order, CHOOSE, why, owner=await _asking(context, order.tree), patient=patient)


async def offers_to_choose_from(context: Context, order: Stored, offers: Sequence[Stored], focused: Sequence[Stored]) -> list[Op]:
    """As long as there are offers of which none is chosen, the requester has to choose."""
    if not offers:
        return _no_more(context, order, OFFERS, focused, "There is no offer any more")
    first = min(offers, key=lambda one: (one.last_updated, one.id)).tree
    owner = first.get("requester") or context.coordinator
    return await _to_choose(context, order, OFFERS, "There is an offer for this request", owner=owner, patient=first.get("for"))


def _no_more(context: Context, order: Stored, code: str, focused: Sequence[Stored], why: str) -> list[Op]:
    over = "cancelled" if order.tree["status"] in ("revoked", "entered-in-error") else "completed"
    return [op for one in _of_code(focused, code) for op in _end(context, one, over, why)]


async def _to_choose(context: Context, order: Stored, code: str, why: str, *, owner: Tree, patient: Tree | None) -> list[Op]:
    about = {"focus": f"ServiceRequest/{order.id}", "priority": order.tree.get("priority", "routine")}
    return await _left_to_do(context, order.id, code, why, owner=owner, patient=patient, **about)


async def passing_on(context: Context, task: Stored, needed: bool) -> list[Op]:
    """An intermediary that has passed on nothing so far has to choose to whom."""
    focus = f"Task/{task.id}"
    if not needed:
        focused = await context.find("Task", ("focus", focus))
        return [op for one in _of_code(focused, CHOOSE) for op in _end(context, one, "completed")]
    return await _left_to_do(
        context,
        task.id,
        CHOOSE,
        "The request was accepted and is passed on to nobody so far",
        owner=task.tree.get("owner") or context.coordinator,
        focus=focus,
        patient=task.tree.get("for"),
        priority=task.tree.get("priority", "routine"),
    )


# --- the report --------------------------------------------------------------------------------------------------------------


def acknowledgement_id(task: str) -> str:
    """The id of the Task to look at what a referral brought."""
    return stable_id(ACKNOWLEDGE, task)


async def acknowledgement(context: Context, task: Stored, order: Stored | None) -> list[Op]:
    """A completed referral is looked at by its requester: by this Task, or by completing the order; either does the other."""
    tree = task.tree
    if tree["status"] != "completed" or tree.get("partOf"):
        return []
    id = acknowledgement_id(task.id)
    asked = await context.get("Task", id)
    closed = order is not None and order.tree["status"] in ("completed", "revoked", "entered-in-error")
    if asked is None:
        if closed:
            return []
        made = await _made(
            context,
            id,
            ACKNOWLEDGE,
            "The request is completed; look at what came of it",
            owner=tree.get("requester") or context.coordinator,
            focus=f"Task/{task.id}",
            patient=tree.get("for"),
            priority=tree.get("priority", "routine"),
            basedOn=tree.get("basedOn"),
        )
        return [made]
    if closed:
        return _end(context, asked, "completed")
    if (
        asked.tree["status"] == "completed"
        and order is not None
        and not mirrored(order.tree)
        and order.tree["status"] == "active"
    ):
        return [edit(order, status="completed")]
    return []


# --- questions ---------------------------------------------------------------------------------------------------------------


def is_question(task: Tree) -> bool:
    """Whether a Task asks the requester of a referral for information."""
    return own(task.get("code")) == QUESTION and not mirrored(task)


async def question(context: Context, asked: Stored) -> list[Op]:
    """A question gets an owner and a due time; its answer goes to the referral, which then goes on: also when none will come any more."""
    referral = await _referral_of(context, asked.tree)
    if referral is None:
        return []
    if is_open(asked.tree):
        return [*await _complete_question(context, asked, referral), *_ended_with(context, asked, referral)]
    if not is_open(referral.tree):
        return []
    tree = referral.tree
    there, answered = tree.get("input", []), asked.tree["status"] == "completed"
    known = [{name: value for name, value in one.items() if name != "type"} for one in there]
    given = [{name: value for name, value in one.items() if name != "type"} for one in asked.tree.get("output", []) if answered]
    members: Tree = {}
    if fresh := [one for one in given if one not in known]:
        members["input"] = [*there, *({"type": concept(INFORMATION), **one} for one in fresh)]
        if tree["status"] == "requested":
            members |= await referral_times.again(context, referral)
    waits = own(tree.get("statusReason")) == AWAITING and tree["status"] == "on-hold"
    if waits and not [one for one in await questions_of(context, referral.id) if is_open(one.tree)]:
        members |= {"status": "in-progress", "statusReason": None}
    return [edit(referral, **members, lastModified=instant(context.now()))] if members else []


async def questions_of(context: Context, referral: str) -> list[Stored]:
    """The questions that the performer of a referral has asked."""
    return [one for one in await context.find("Task", ("part-of", f"Task/{referral}")) if is_question(one.tree)]


async def no_more_questions(context: Context, referral: Stored) -> list[Op]:
    """When a referral has ended, nobody needs an answer."""
    if is_open(referral.tree):
        return []
    return [op for one in await questions_of(context, referral.id) for op in _ended_with(context, one, referral)]


def _ended_with(context: Context, asked: Stored, referral: Stored) -> list[Op]:
    return [] if is_open(referral.tree) else _end(context, asked, "cancelled", "The referral has ended")


async def _referral_of(context: Context, asked: Tree) -> Stored | None:
    for element in asked.get("partOf", []):
        to = parse_reference(element.get("reference", ""))
        if to.type == "Task" and (found := await context.follow(element)) is not None and is_referral(found.tree):
            return found
    return None


async def _complete_question(context: Context, asked: Stored, referral: Stored) -> list[Op]:
    tree, of = asked.tree, referral.tree
    if not is_open(of):
        return []
    lacks = {
        name: value
        for name, value in (("owner", of.get("requester")), ("requester", of.get("owner")), ("for", of.get("for")))
        if value and name not in tree
    }
    if "end" not in tree.get("restriction", {}).get("period", {}):
        priority = tree.get("priority", of.get("priority", "routine"))
        calendar = await referral_times.calendar_of(context, {"owner": tree.get("owner", of.get("requester"))})
        lacks |= referral_times.due(context, QUESTION, priority, context.now(), calendar)
    if not lacks:
        return []
    return [edit(asked, **lacks, lastModified=instant(context.now()))]


# --- please stop -------------------------------------------------------------------------------------------------------------


def please_stop(task: Stored, reason: Tree, at: datetime) -> Tree:
    """The Task by which a requester asks a performer to stop, where it may not cancel by itself and a status has no word for it."""
    tree = task.tree
    return {
        "resourceType": "Task",
        "id": stable_id("abort", task.id),
        "status": "requested",
        "intent": "order",
        "priority": tree.get("priority", "routine"),
        "code": {"coding": [{"system": FULFILL[0], "code": "abort"}], "text": "Stop doing this"},
        "focus": reference(f"Task/{task.id}"),
        "for": tree.get("for"),
        "authoredOn": instant(at),
        "lastModified": instant(at),
        "requester": tree.get("requester"),
        "owner": tree.get("owner"),
        "reasonCode": reason,
    }


async def asked_to_stop(context: Context, task: Stored, why: str | None) -> list[Op]:
    """The performer is asked once to stop, when there is a reason."""
    if why is None or "owner" not in task.tree:
        return []
    asked = please_stop(task, {"text": why}, context.now())
    return [] if await context.get("Task", asked["id"]) else [new(asked)]
