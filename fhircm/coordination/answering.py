"""What the performer of a Task does: its answer, its work, its questions. https://hl7.org/fhir/R4/task.html#statemachine"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fhircm.coordination import distribution, loops
from fhircm.coordination.acting import Act
from fhircm.coordination.build import concept, edit, instant, new, profile, reference
from fhircm.coordination.codes import codings, displays
from fhircm.coordination.evidence import ASKED, may_withdraw
from fhircm.coordination.task_states import is_open, is_referral, protocol_of
from fhircm.fhir.outcome import Conflict, IllegalTransition
from fhircm.fhir.systems import COORDINATION
from fhircm.store.operations import Put
from fhircm.store.resources import Stored

Tree = dict[str, Any]


async def accept(act: Act) -> list[Put]:
    """The owner agrees to do it; an open request gets its owner with that: who accepts."""
    return [accepted(act)]


async def offer(act: Act) -> list[Put]:
    """The owner of one of several Tasks offers to do it (`terms`, `period`): it is accepted, and the requester chooses."""
    if distribution.of(act.about.tree).how != distribution.OFFERS:
        raise IllegalTransition("This request is not one that collects offers; it is accepted with $accept", "Task.extension")
    told: list[Tree] = [{"type": concept("offer"), "valueString": text} for text in act.said.get("terms", ())]
    told += [{"type": concept("offer"), "valuePeriod": period} for period in act.said.get("period", ())]
    return [accepted(act, output=[*act.about.tree.get("output", []), *told] or None)]


def accepted(act: Act, **members: Any) -> Put:
    """The acceptance of a Task by who acts; an open request gets its owner with that. Raises Conflict, IllegalTransition."""
    tree = act.about.tree
    if is_referral(tree) and "owner" not in tree and tree["status"] == "requested":
        members["owner"] = _taker(act, tree)
    elif distribution.of(tree).how == distribution.OPEN and "owner" in tree and not _is_theirs(act, tree["owner"]):
        raise Conflict("Another organisation has accepted this request already")
    return _step(act, "accepted", **members)


def _is_theirs(act: Act, element: Tree) -> bool:
    return act.store.principal.actor.is_(element)


def _taker(act: Act, task: Tree) -> Tree:
    """As whom somebody takes an open request: that of its addressees, as whom the Task knows them; else their organisation."""
    known = act.store.principal.known_as
    addressed = task.get("restriction", {}).get("recipient", [])
    found = next((one for one in addressed if one.get("reference") in known), None)
    organization = act.store.principal.organization
    if found is None and organization is None:
        raise IllegalTransition("Who takes an open request is an organisation; the caller belongs to none", "Task.owner")
    return found or reference(organization or "")


async def decline(act: Act) -> list[Put]:
    """The owner will not do it, for a reason (`reason`, a CodeableConcept)."""
    return [_step(act, "rejected", statusReason=_reason(act))]


async def start(act: Act) -> list[Put]:
    """The owner begins to do it."""
    return [_step(act, "in-progress", statusReason=None)]


async def complete(act: Act) -> list[Put]:
    """The owner has done it (`report`: what came of it)."""
    reports = [{"type": concept("report"), "valueReference": one} for one in act.said.get("report", ())]
    output = [*act.about.tree.get("output", []), *reports]
    return [_step(act, "completed", statusReason=None, output=output or None, **_noted(act))]


async def fail(act: Act) -> list[Put]:
    """The owner tried, and it cannot be done, for a reason."""
    return [_step(act, "failed", statusReason=_reason(act))]


async def cancel(act: Act) -> list[Put]:
    """It is not to be done any more, for a reason: at once, or, where its protocol lets the requester only ask, by asking."""
    tree = act.about.tree
    protocol = protocol_of(tree)
    if may_withdraw(protocol, tree["status"]) or not _is_theirs(act, tree.get("requester", {})):
        return [_step(act, "cancelled", statusReason=_reason(act))]
    if protocol.business is not None:
        return [_step(act, "in-progress", businessStatus=protocol.business.concept(ASKED), statusReason=_reason(act))]
    if protocol.cancellation != "ask" or "owner" not in tree or not is_open(tree):
        return [_step(act, "cancelled", statusReason=_reason(act))]
    return [new(loops.please_stop(act.about, _reason(act), act.store.now))]


async def confirm_cancellation(act: Act) -> list[Put]:
    """The owner agrees to the cancellation that the requester asked for."""
    tree = act.about.tree
    protocol = protocol_of(tree)
    if protocol.business is None or protocol.business.code(tree) != ASKED:
        raise IllegalTransition("Nobody has asked to cancel this: its businessStatus is not 5.2", "Task.businessStatus")
    reason = tree.get("statusReason") or {"text": "The requester asked to cancel it"}
    return [_step(act, "cancelled", businessStatus=protocol.business.concept("6.0"), statusReason=reason)]


async def request_information(act: Act) -> list[Put]:
    """The owner asks the requester (`question`, `needed`): a Task for the requester; what is begun already waits for the answer."""
    tree = act.about.tree
    if not is_referral(tree) or not is_open(tree):
        raise IllegalTransition("Questions are asked about a referral that is open", "Task.status")
    needed = [{"type": concept("needed-information"), "valueCodeableConcept": one} for one in act.said.get("needed", ())]
    asked = new(
        {
            "resourceType": "Task",
            "id": str(uuid4()),
            "meta": profile("coordination-task"),
            "partOf": [reference(f"Task/{act.about.id}")],
            "status": "ready",
            "intent": "order",
            "priority": tree.get("priority", "routine"),
            "code": concept(loops.QUESTION),
            "description": act.one("question"),
            "focus": reference(f"Task/{act.about.id}"),
            "for": tree.get("for"),
            "authoredOn": instant(act.store.now),
            "lastModified": instant(act.store.now),
            "requester": tree.get("owner"),
            "owner": tree.get("requester"),
            "input": needed,
        }
    )
    begun = tree["status"] in ("accepted", "in-progress") and distribution.has_it(tree)  # an offer stands meanwhile
    waits = begun and "on-hold" in protocol_of(tree).machine.next.get(tree["status"], ())
    return [asked, *([_step(act, "on-hold", statusReason=concept(loops.AWAITING))] if waits else [])]


async def provide_information(act: Act) -> list[Put]:
    """The requester answers a question (`reference`, `text`), on the question itself or on the referral that has one that is open."""
    asked = act.about if loops.is_question(act.about.tree) else await _open_question(act)
    if asked is None:
        raise IllegalTransition(
            "The performer has asked nothing that is not answered: there is no open Task 'provide-information'", "Task"
        )
    given: list[Tree] = [{"type": concept(loops.INFORMATION), "valueReference": one} for one in act.said.get("reference", ())]
    given += [{"type": concept(loops.INFORMATION), "valueString": text} for text in act.said.get("text", ())]
    if not given:
        raise IllegalTransition("An answer has at least one 'reference' or 'text'", "Task.output")
    output = [*asked.tree.get("output", []), *given]
    return [edit(asked, status="completed", statusReason=None, output=output, lastModified=instant(act.store.now))]


async def _open_question(act: Act) -> Stored | None:
    found = await act.find(
        "Task", ("part-of", f"Task/{act.about.id}"), ("status", "requested,received,accepted,ready,in-progress,on-hold")
    )
    return next((one for one in found if loops.is_question(one.tree)), None)


def _reason(act: Act) -> Tree:
    """The reason that was given, with words: the display of a code of the hub stands in for them."""
    reason = act.one("reason")
    if reason.get("text"):
        return dict(reason)
    own = next((code for system, code in codings(reason) if system == COORDINATION and code in displays()), None)
    words = displays()[own] if own else next((one["display"] for one in reason.get("coding", ()) if one.get("display")), None)
    return {**reason, "text": words} if words else dict(reason)


def _noted(act: Act) -> Tree:
    note = act.one("note")
    written = {"time": instant(act.store.now), "text": note}
    return {"note": [*act.about.tree.get("note", []), written]} if note else {}


def _step(act: Act, status: str, **members: Any) -> Put:
    """A step of the status; where no step is without one of the business status, with the one that goes along."""
    table = protocol_of(act.about.tree).business
    if table is not None and table.leads and table.code(act.about.tree) not in (codes := table.of.get(status, ())) and codes:
        members.setdefault("businessStatus", table.concept(codes[0]))
    return edit(act.about, status=status, lastModified=instant(act.store.now), **members)
