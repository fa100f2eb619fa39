"""What shows how a referral stands: visits and reports that bear its number, and the order itself.

http://hl7.org/fhir/us/bser. Numbers are typed by people. So only what is about the same human counts: a visit or report about
anybody else is shown to a human and moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhircm.coordination.build import concept, edit, for_a_human, instant, stable_id
from fhircm.coordination.codes import identifiers, member
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.people import patient_of
from fhircm.coordination.task_states import Protocol, is_open, protocol_of
from fhircm.fhir.systems import REFERRAL
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
_UNDER_WAY = frozenset(("in-progress", "onleave", "finished"))
_BOOKED = frozenset(("planned", "arrived", "triaged"))
ASKED = "5.2"  # the business status of a Task that its requester asks to cancel
_WITHDRAWN = {"revoked": "The requester withdrew the order", "entered-in-error": "The order was entered in error"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found for one referral. `strangers` bear its number, but are about somebody else."""

    order: Tree | None = None
    visits: tuple[Stored, ...] = ()
    reports: tuple[Stored, ...] = ()
    strangers: tuple[Stored, ...] = ()

    @property
    def final(self) -> list[Stored]:
        """The reports that answer the referral."""
        return [one for one in self.reports if one.tree.get("docStatus") != "preliminary"]


def numbers(tree: Tree) -> set[str]:
    """The referral numbers that a visit or report bears."""
    if tree["resourceType"] == "Encounter":
        typed = tree.get("identifier", [])
    elif tree["resourceType"] == "DocumentReference" and _is_report(tree):
        typed = [one.get("identifier", {}) for one in tree.get("context", {}).get("related", [])]
    else:
        typed = []
    return {one["value"] for one in typed if one.get("system", REFERRAL) == REFERRAL and one.get("value")}


def _is_report(document: Tree) -> bool:
    return (
        document.get("status") == "current"
        and document.get("docStatus") != "entered-in-error"
        and member("consult-note", document.get("type"))
    )


async def gather(context: Context, task: Stored, patients: list[str]) -> Evidence:
    """What there is now for a referral; `patients` are the records of its patient."""
    typed = identifiers(task.tree, REFERRAL)
    values = any_of(token(system, number) for number in typed for system in (REFERRAL, ""))  # not every screen keeps a system
    visits = await context.find("Encounter", ("identifier", values))
    documents = await context.find("DocumentReference", ("related:identifier", values))
    visits = [one for one in visits if one.tree["status"] not in ("entered-in-error", "unknown")]
    reports = [one for one in documents if _is_report(one.tree)]
    order = await context.follow(task.tree.get("focus"))
    own = {one.id for one in (*visits, *reports) if patient_of(one.tree) in patients}
    return Evidence(
        order=order.tree if order else None,
        visits=tuple(one for one in visits if one.id in own),
        reports=tuple(sorted((one for one in reports if one.id in own), key=_written)),
        strangers=tuple(one for one in (*visits, *reports) if one.id not in own),
    )


def _written(document: Stored) -> tuple[str, str]:
    return document.tree.get("date", ""), document.id


# --- the next step -----------------------------------------------------------------------------------------------------------


def aim(found: Evidence) -> tuple[str, str, str] | None:
    """Where the evidence says that a referral stands: status, business status, and why the hub says so in nobody's name."""
    if found.final:
        return "completed", "7.0", "a report arrived under the referral number"
    if found.order is not None and found.order["status"] in _WITHDRAWN:
        return "cancelled", "6.0", _WITHDRAWN[found.order["status"]]
    states = {one.tree["status"] for one in found.visits}
    if states & _UNDER_WAY or found.reports:
        return "in-progress", "5.1.4", "a visit took place under the referral number"
    if states & _BOOKED:
        return "in-progress", "5.1.1", "an appointment was made under the referral number"
    cancelled = sorted((one for one in found.visits if one.tree["status"] == "cancelled"), key=_newest_last)
    if cancelled:
        return (
            "in-progress",
            "5.1.2" if missed(cancelled[-1].tree) else "5.1.3",
            "an appointment was made under the referral number",
        )
    return None


def _newest_last(visit: Stored) -> tuple[Any, ...]:
    return visit.last_updated, visit.tree.get("period", {}).get("start", ""), visit.id


def missed(visit: Tree) -> bool:
    """Whether a cancelled visit says that the patient did not come."""
    reasons = (one.get("valueCodeableConcept") or one.get("valueCoding") for one in visit.get("extension", []))
    return member("missed-visit", visit.get("reasonCode"), visit.get("type"), *reasons)


def next_step(task: Tree, found: Evidence, because_of: str, now: str) -> Tree | None:
    """The members of a Task to change now, or None when nothing is to be done.

    A Task that is on hold, or in progress with a business status that somebody gave it, moves on only when a visit or report
    changes, not because it was edited; a final report and a withdrawal always count.
    """
    protocol, status = protocol_of(task), task["status"]
    table = protocol.machine
    if status in table.terminal:
        members = _outputs(task, found) if status == "completed" else {}
        return (members | in_line(task, status)) or None
    goal, fresh = aim(found), because_of in ("Encounter", "DocumentReference")
    if goal is not None and goal[0] == "cancelled" and not may_withdraw(protocol, status):
        return _asked_to_cancel(protocol, task, goal[2]) or in_line(task, status) or None
    if goal is not None and (fresh or goal[0] in table.terminal or status in _BEFORE):
        if status != goal[0]:
            return _towards(protocol, task, found, goal, now)
        if task_code(task) != goal[1] and _fits(protocol, task, status, goal[1]):
            return {**_coded(protocol, goal[1]), "statusReason": None, **_outputs(task, found)}
    return (_outputs(task, found) | in_line(task, status)) or None


_BEFORE = ("draft", "requested", "received", "accepted", "ready")


def may_withdraw(protocol: Protocol, status: str) -> bool:
    """Whether a requester ends a Task by itself."""
    return "cancelled" in protocol.machine.next[status] and protocol.machine.who(status, "cancelled") != "performer"


def _asked_to_cancel(protocol: Protocol, task: Tree, why: str) -> Tree:
    """Where the requester may only ask, its withdrawal asks."""
    if protocol.business is None or task_code(task) == ASKED:
        return {}
    return {"status": "in-progress", **_coded(protocol, ASKED), "statusReason": {"text": why}}


def stop_is_to_be_asked_for(task: Tree, found: Evidence) -> str | None:
    """Why a performer is to be asked to stop with a Task of its own: the protocol gives the requester no other way."""
    protocol, goal = protocol_of(task), aim(found)
    if goal is None or goal[0] != "cancelled" or protocol.business is not None or not is_open(task):
        return None
    return None if may_withdraw(protocol, task["status"]) else goal[2]


def task_code(task: Tree) -> str | None:
    """The business status of a referral."""
    table = protocol_of(task).business
    return table.code(task) if table else None


def _coded(protocol: Protocol, code: str) -> Tree:
    return {"businessStatus": protocol.business.concept(code)} if protocol.business else {}


def _fits(protocol: Protocol, task: Tree, status: str, code: str) -> bool:
    """Whether a business status may be written now, with this status."""
    table = protocol.business
    if table is None or code not in table.of.get(status, ()):
        return False
    before = table.code(task)
    if before is None:
        return True
    behind = before not in table.of.get(task["status"], (before,))
    return (table.machine.reaches if behind else table.machine.may)(before, code)


def in_line(task: Tree, status: str) -> Tree:
    """The business status that goes with a status which somebody set alone, if it can follow the one there."""
    protocol = protocol_of(task)
    codes = protocol.business.of.get(status) if protocol.business else None
    if not codes or task_code(task) in codes or not _fits(protocol, task, status, codes[0]):
        return {}
    return _coded(protocol, codes[0])


def _towards(protocol: Protocol, task: Tree, found: Evidence, goal: tuple[str, str, str], now: str) -> Tree | None:
    """One legal step from where the Task is to where it should be."""
    status, code, why = goal
    way = protocol.machine.path(task["status"], status)
    if way is None:
        return None
    step = (way or [status])[0]
    members: Tree = {"status": step, "statusReason": None, **in_line(task, step)}
    if step == status:
        if _fits(protocol, task, step, code):
            members |= _coded(protocol, code)
        members |= _outputs(task, found)
    else:
        members["statusReason"] = {"text": f"Taken as {step}: {why}"}
    if step == "cancelled":
        members["statusReason"] = {"text": why}
    if step in ("in-progress", "completed", "cancelled"):
        members["executionPeriod"] = _period(task, step, now)
    return members


def _period(task: Tree, step: str, now: str) -> Tree:
    period = {"start": now, **task.get("executionPeriod", {})}
    return period if step == "in-progress" else {**period, "end": now}


def _outputs(task: Tree, found: Evidence) -> Tree:
    """The reports that are not yet among the outputs, added to them."""
    there = task.get("output", [])
    known = {one.get("valueReference", {}).get("reference") for one in there}
    fresh = [f"DocumentReference/{one.id}" for one in found.reports if f"DocumentReference/{one.id}" not in known]
    added = [{"type": concept("report"), "valueReference": {"reference": one}} for one in fresh]
    return {"output": [*there, *added]} if added else {}


# --- what a human must look at -----------------------------------------------------------------------------------------------


async def questions(context: Context, task: Stored, found: Evidence) -> list[Op]:
    """A Task for a human for each visit or report that the hub must not act on; taken back when it was cleared up."""
    operations: list[Op] = []
    asked = {one.id for one in found.strangers}
    why = "It bears the number of a referral, but is about a patient who is not known to be the same"
    for one in found.strangers:
        operations += await _ask(context, task, one, why)
    if task.tree["status"] not in ("completed", "draft") and not is_open(task.tree):
        late = [one for one in found.final if one.id not in asked]
        asked |= {one.id for one in late}
        for one in late:
            operations += await _ask(context, task, one, f"It answers a referral that has ended as '{task.tree['status']}'")
    for one in (*found.visits, *found.reports):
        if one.id not in asked:
            operations += await _take_back(context, task, one)
    return operations


def _question_id(task: Stored, one: Stored) -> str:
    return stable_id("referral-evidence", task.id, one.type, one.id)


async def _ask(context: Context, task: Stored, one: Stored, why: str) -> list[Op]:
    id = _question_id(task, one)
    if await context.get("Task", id) is not None:
        return []
    about = {"type": concept("closed-loop-referral"), "valueReference": {"reference": f"Task/{task.id}"}}
    return [
        for_a_human(
            id,
            "referral-evidence",
            why,
            owner=context.coordinator,
            focus=f"{one.type}/{one.id}",
            patient=task.tree.get("for"),
            at=context.now(),
            input=[about],
        )
    ]


async def _take_back(context: Context, task: Stored, one: Stored) -> list[Op]:
    asked = await context.get("Task", _question_id(task, one))
    if asked is None or not is_open(asked.tree):
        return []
    why = {"text": "The records were found to be of one person since"}
    return [edit(asked, status="cancelled", statusReason=why, lastModified=instant(context.now()))]
