"""The next step of a referral: one legal step towards what its appointments, visits, reports and replies show.

http://hl7.org/fhir/us/bser, http://hl7.org/fhir/us/sdoh-clinicalcare (Task). What was found is in fhircm/coordination/referral_record.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fhircm.coordination.build import concept
from fhircm.coordination.codes import codings, member, value_set
from fhircm.coordination.referral_record import EVIDENCE, Evidence
from fhircm.coordination.task_states import Protocol, business, is_open, machine, protocol_of
from fhircm.fhir.invariants import over
from fhircm.fhir.systems import COORDINATION
from fhircm.store.resources import Stored

Tree = dict[str, Any]
REPLY = "reply"  # the Task that the addressee keeps itself, as a cause to look anew
_UNDER_WAY = frozenset(("in-progress", "onleave", "finished", "fulfilled"))
_BOOKED = frozenset(("planned", "arrived", "triaged", "booked", "checked-in"))
_NOT_KEPT = frozenset(("cancelled", "noshow"))
_WITHDRAWN = {"revoked": "The requester withdrew the order", "entered-in-error": "The order was entered in error"}
_SAID = {
    "requested": None,
    "received": None,
    "draft": None,
    "ready": "accepted",
    "entered-in-error": None,
}  # of a reply, for a referral
WAITING = (COORDINATION, "waitlist")
ASKED = "5.2"  # the business status of a Task that its requester asks to cancel
_BEFORE = ("draft", "requested", "received", "accepted", "ready")


class Aim(NamedTuple):
    """Where a referral stands: status, business status, and why the hub says so in nobody's name (`reason`: in the addressee's)."""

    status: str
    business: str
    why: str
    reason: Tree | None = None
    waits: bool = False


_WAITS = Aim("on-hold", "5.1", "the patient is on the waiting list", waits=True)


def aim(found: Evidence) -> Aim | None:
    """Where the evidence says that a referral stands; None when it says nothing."""
    if found.final:
        return Aim("completed", "7.0", "a report arrived under the referral number")
    if found.order is not None and found.order["status"] in _WITHDRAWN:
        return Aim("cancelled", "6.0", _WITHDRAWN[found.order["status"]])
    replied = _replied(found.reply)
    if replied is not None and replied.status in machine("Task", "referral").terminal:
        return replied
    states = _states(found)
    made = "an appointment was made under the referral number"
    if states & _UNDER_WAY or found.reports:
        return Aim("in-progress", "5.1.4", "a visit took place under the referral number")
    if states & _BOOKED:
        return Aim("in-progress", "5.1.1", made)
    if "waitlist" in states:
        return _WAITS
    not_kept = sorted((one for one in found.visits if one.tree["status"] in _NOT_KEPT), key=_newest_last)
    if not_kept:
        return Aim("in-progress", "5.1.2" if missed(not_kept[-1].tree) else "5.1.3", made)
    taken = replied is not None and replied.status == "accepted"
    return _WAITS if taken and found.capacity == "waitlist" else replied


def _states(found: Evidence) -> set[str]:
    """The states of the visits. A visit that is only planned stands as its appointment does; a letter about one means that it is booked."""
    appointments = {f"Appointment/{one.id}": one.tree["status"] for one in found.visits if one.type == "Appointment"}
    states = set(appointments.values())
    for one in found.visits:
        if one.type == "Encounter":
            of = {appointments.get(element.get("reference", "")) for element in one.tree.get("appointment", [])} & _NOT_KEPT
            states |= of if of and one.tree["status"] in _BOOKED else {one.tree["status"]}
        elif one.type == "DocumentReference":
            states.add("booked")
    return states


def _replied(reply: Tree | None) -> Aim | None:
    """What the addressee's own Task says."""
    status = _SAID.get(reply["status"], reply["status"]) if reply else None
    if reply is None or status is None:
        return None
    code = business().code(reply)
    fitting = business().of.get(status, ())
    said = code if code in fitting else (fitting[0] if fitting else "")
    return Aim(status, said, "the addressee's own task says so", reply.get("statusReason"))


def _newest_last(visit: Stored) -> tuple[Any, ...]:
    return visit.last_updated, visit.tree.get("start") or visit.tree.get("period", {}).get("start", ""), visit.id


def missed(visit: Tree) -> bool:
    """Whether a visit or appointment that was not kept says that the patient did not come."""
    reasons = (one.get("valueCodeableConcept") or one.get("valueCoding") for one in visit.get("extension", []))
    told = (visit.get("reasonCode"), visit.get("type"), visit.get("cancelationReason"), *reasons)
    return visit["status"] == "noshow" or member("missed-visit", *told)


def is_waiting(task: Tree) -> bool:
    """Whether a referral is on hold because its addressee has no place yet."""
    return task["status"] == "on-hold" and WAITING in codings(task.get("businessStatus"), task.get("statusReason"))


def next_step(task: Tree, found: Evidence, because_of: str, now: str) -> Tree | None:
    """The members of a Task to change now, or None when nothing is to be done.

    A Task that is on hold, or in progress with a business status that somebody gave it, moves on only when a visit, report or reply
    changes, not because it was edited; a final report and a withdrawal always count.
    """
    protocol, status = protocol_of(task), task["status"]
    table = protocol.machine
    if status in table.terminal:
        members = _outputs(task, found) if status == "completed" else {}
        return (members | in_line(task, status)) or None
    goal = _goal(task, found, protocol)
    fresh = because_of in EVIDENCE or because_of == REPLY
    if goal is not None and goal.status == "cancelled" and not may_withdraw(protocol, status):
        return _asked_to_cancel(protocol, task, goal.why) or in_line(task, status) or None
    if goal is not None and (fresh or goal.status in table.terminal or status in _BEFORE):
        if status != goal.status and (members := _towards(protocol, task, found, goal, now)):
            return members
        if status == goal.status and (members := _business(protocol, task, status, goal)):
            return {**members, "statusReason": _reason(goal), **_outputs(task, found)}
    return (_outputs(task, found) | in_line(task, status)) or None


def _goal(task: Tree, found: Evidence, protocol: Protocol) -> Aim | None:
    """The aim for a Task as it stands: who has accepted and has no place lets wait, and declines no more but fails."""
    goal, status = aim(found), task["status"]
    if status == "accepted" and found.capacity == "waitlist" and goal is None:
        return _WAITS
    if goal is not None and goal.status == "rejected" and protocol.machine.path(status, "rejected") is None:
        return goal._replace(status="failed", business="")
    return goal


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
    if goal is None or goal.status != "cancelled" or protocol.business is not None or not is_open(task):
        return None
    return None if may_withdraw(protocol, task["status"]) else goal.why


def task_code(task: Tree) -> str | None:
    """The business status of a referral."""
    table = protocol_of(task).business
    return table.code(task) if table else None


def _business(protocol: Protocol, task: Tree, status: str, goal: Aim) -> Tree:
    """The business status of an aim, when it can be written now; one that waits bears the hub's own code besides."""
    before = task_code(task)
    fits = before != goal.business and _fits(protocol, task, status, goal.business)
    if not goal.waits:
        return _coded(protocol, goal.business) if fits else {}
    if WAITING in codings(task.get("businessStatus")):
        return {}
    there = before if protocol.business and before in protocol.business.of.get(status, ()) else None
    code = goal.business if fits else there
    told = _coded(protocol, code)["businessStatus"]["coding"] if code else []
    waiting = concept(WAITING[1])
    return {"businessStatus": {"coding": [*told, *waiting["coding"]], "text": waiting["text"]}}


def _coded(protocol: Protocol, code: str) -> Tree:
    return {"businessStatus": protocol.business.concept(code)} if protocol.business else {}


def _reason(goal: Aim) -> Tree | None:
    return concept(WAITING[1]) if goal.waits else None


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


def _towards(protocol: Protocol, task: Tree, found: Evidence, goal: Aim, now: str) -> Tree | None:
    """One legal step from where the Task is to where it should be; None when no way leads there."""
    way = protocol.machine.path(task["status"], goal.status)
    if way is None:
        return None
    step = (way or [goal.status])[0]
    members: Tree = {"status": step, "statusReason": None, **in_line(task, step)}
    if step == goal.status:
        members |= {**_business(protocol, task, step, goal), "statusReason": _reason(goal), **_outputs(task, found)}
    else:
        members["statusReason"] = {"text": f"Taken as {step}: {goal.why}"}
    if step in ("cancelled", "rejected", "failed", "on-hold") and not goal.waits:
        members["statusReason"] = _worded(goal)
    if step in ("in-progress", "completed", "cancelled", "failed"):
        members["executionPeriod"] = _period(task, step, now)
    if step == "completed":
        members |= _as_report(task, found)
    return members


def _worded(goal: Aim) -> Tree:
    """Why it is so, in words, as a referral must say: the addressee's own reason where it gave one."""
    text = (goal.reason or {}).get("text") or next(
        (one["display"] for one in (goal.reason or {}).get("coding", []) if one.get("display")), goal.why
    )
    return {**(goal.reason or {}), "text": text}


def _as_report(task: Tree, found: Evidence) -> Tree:
    """The code of the report that closes a referral, beside what the Task is: the measure of closed loops counts Tasks by it (CMS50)."""
    codes = {
        ("http://loinc.org", code)
        for system, code in codings(*(_type(one.tree) for one in found.final))
        if system == "http://loinc.org"
    }
    added = sorted((codes & value_set("consult-note")) - set(codings(task.get("code"))))
    code = task.get("code", {})
    return {"code": {**code, "coding": [*code.get("coding", []), *_as_codings(added[:1])]}} if added else {}


def _as_codings(codes: list[tuple[str, str]]) -> list[Tree]:
    return [{"system": system, "code": code} for system, code in codes]


def _type(report: Tree) -> Tree | None:
    return report.get("type") or report.get("code")


def _period(task: Tree, step: str, now: str) -> Tree:
    period = {"start": now, **task.get("executionPeriod", {})}
    return period if step == "in-progress" else over(period, now)


def _outputs(task: Tree, found: Evidence) -> Tree:
    """The reports that are not yet among the outputs, added to them."""
    there = task.get("output", [])
    known = {one.get("valueReference", {}).get("reference") for one in there}
    fresh = [name for one in found.reports if (name := f"{one.type}/{one.id}") not in known]
    added = [{"type": concept("report"), "valueReference": {"reference": one}} for one in fresh]
    return {"output": [*there, *added]} if added else {}
