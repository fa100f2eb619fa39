"""Whether a write keeps to its protocol: the step, who takes it, what the resource must have and must not have, and whose it is.

https://hl7.org/fhir/R4/task.html#statemachine. A mirror is a row of snapshots: the hub misses the states in between, so whatever can be
reached from the last one is legal there, the first one may be any, and who did it is the partner's to know. The hub itself acts for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fhircm.coordination.codes import codings
from fhircm.coordination.state_tables import Business, Machine, Protocol, Tree, machine, table
from fhircm.fhir.outcome import IllegalTransition, NotTheirStep
from fhircm.fhir.systems import ROLE
from fhircm.store.operations import Actor, Write

_SIDES = {
    "requester": ("requester",),
    "performer": ("performer",),
    "either": ("requester", "performer"),
    "concerned": ("requester", "performer", "queue"),
}


def check(protocol: Protocol, write: Write) -> None:
    """Raises IllegalTransition and NotTheirStep: where it is wrong, who may, which steps are allowed, what is missing."""
    previous, new = write.previous, write.new
    assert new is not None
    if snapshot(write):
        _check_snapshot(protocol, previous, new)
        return
    before, after = (previous or {}).get("status"), new["status"]
    table = protocol.machine
    if previous is None:
        if after not in table.initial:
            raise table.refuse(None)
    elif not table.may(before, after):
        raise table.refuse(before)
    if protocol.business is not None:
        _check_business(protocol.business, previous, new)
    _check_elements(protocol, previous, new)
    if write.actor is not None and not write.actor.everyone:
        _check_actor(protocol, Sides.of(write.actor, new if previous is None else previous), write.actor, previous, new)


def snapshot(write: Write) -> bool:
    """Whether a write tells how things stand elsewhere, and not what somebody does here."""
    return write.origin.startswith("partner:") or write.origin == "load"


def _check_snapshot(protocol: Protocol, previous: Tree | None, new: Tree) -> None:
    if previous is None or table(protocol.type).get("mirrors") == "any":
        return
    start, end = previous["status"], new["status"]
    of_partner = bool(new.get("meta", {}).get("source"))
    if not protocol.machine.reaches(start, end) and not (of_partner and machine(protocol.type).reaches(start, end)):
        raise protocol.machine.refuse(start)
    if protocol.business is not None and not of_partner:
        _check_business(protocol.business, previous, new, skipping=True)


def _check_business(business: Business, previous: Tree | None, new: Tree, *, skipping: bool = False) -> None:
    """A business status must follow the one before and go with the status.

    Where it does not lead, who sets the status alone may leave it as it was.
    """
    before, after = business.code(previous), business.code(new)
    status, fitting = new["status"], business.of.get(new["status"])
    if business.leads:
        if fitting is not None and after not in (fitting or (None,)):
            raise _does_not_fit(status, fitting)
        if after == before:
            return
    elif after is None or after == before:
        return
    # Somebody may have set the status alone, and left the business status behind.
    behind = previous is not None and before not in business.of.get(previous["status"], (before,))
    follows = business.machine.reaches if skipping or behind else business.machine.may
    if before is not None and after is not None and not follows(before, after):
        raise business.machine.refuse(before)
    if fitting is not None and after is not None and after not in fitting:
        raise _does_not_fit(status, fitting)


def _does_not_fit(status: str, fitting: tuple[str, ...]) -> IllegalTransition:
    text = f"While Task.status is '{status}', Task.businessStatus may be: {', '.join(fitting) or 'nothing'}"
    return IllegalTransition(text, "Task.businessStatus")


def _check_elements(protocol: Protocol, previous: Tree | None, new: Tree) -> None:
    """What a state needs is there when it is entered, and stays; what it forbids is not. What was wrong before may stay as it is."""
    status, type = new["status"], protocol.type
    same = previous is not None and previous["status"] == status
    for name in protocol.needs.get(status, ()):
        if not new.get(name) and not (same and not (previous or {}).get(name)):
            raise IllegalTransition(
                f"{type}.{name} is missing: while {type}.status is '{status}', {protocol.title} needs {_listed(type, protocol.needs[status])}",
                f"{type}.{name}",
            )
    for name in protocol.forbids.get(status, ()):
        if new.get(name) and not (same and (previous or {}).get(name)):
            text = f"{type}.{name} does not belong here: while {type}.status is '{status}', {protocol.title} has no {name}"
            raise IllegalTransition(text, f"{type}.{name}")


def _listed(type: str, names: tuple[str, ...]) -> str:
    return ", ".join(f"{type}.{name}" for name in names)


# --- who ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sides:
    """On which sides of a Task or order somebody is."""

    requester: bool
    performer: bool
    queue: bool  # in a role of its performerType

    @classmethod
    def of(cls, actor: Actor, tree: Tree) -> Sides:
        """Those of an actor."""
        queue = not actor.roles.isdisjoint(code for system, code in codings(tree.get("performerType")) if system == ROLE)
        if tree["resourceType"] == "ServiceRequest":
            performer = any(actor.is_(one) for one in tree.get("performer", ()))
            return cls(_requests(actor, tree, performer), performer, queue)
        return cls(actor.is_(tree.get("requester")), _performs(actor, tree, queue), queue)

    def may(self, who: str) -> bool:
        """Whether a step of these is one of theirs."""
        return who == "anyone" or any(getattr(self, side) for side in _SIDES[who])

    def __str__(self) -> str:
        names = [name for name in ("requester", "performer") if getattr(self, name)]
        return f"you are the {' and the '.join(names)}" if names else "you are neither"


def parties(write: Write) -> Iterator[str]:
    """The references to those on whose side somebody who writes a Task or an order could be."""
    for tree in (write.previous, write.new):
        if tree is None or tree["resourceType"] not in ("Task", "ServiceRequest"):
            continue
        several = (*tree.get("restriction", {}).get("recipient", ()), *tree.get("performer", ()))
        for element in (tree.get("requester", {}), tree.get("owner", {}), *several):
            if (reference := element.get("reference")) is not None:
                yield reference


def _requests(actor: Actor, order: Tree, performer: bool) -> bool:
    """The requester of an order. One that is not told, or of whom no organisation is known, speaks through whoever is not asked to do it."""
    requester = (order.get("requester") or {}).get("reference")
    return actor.is_(order.get("requester")) or ((requester is None or requester in actor.unplaced) and not performer)


def _performs(actor: Actor, task: Tree, queue: bool) -> bool:
    if "owner" in task:
        return actor.is_(task["owner"]) or leads(actor, task)
    recipients = task.get("restriction", {}).get("recipient", ())
    addressed = recipients or task.get("performerType")
    return not addressed or queue or any(actor.is_(one) for one in recipients)


def leads(actor: Actor, task: Tree) -> bool:
    """Whether somebody leads those for whom a Task is: at the organisation that owns it, or to which it is addressed."""
    places = (task.get("owner"), *task.get("restriction", {}).get("recipient", ()))
    return actor.leads and any(actor.is_(one) for one in places)


def _check_actor(protocol: Protocol, sides: Sides, actor: Actor, previous: Tree | None, new: Tree) -> None:
    _check_who(protocol.machine, sides, (previous or {}).get("status"), new["status"], protocol.type)
    if (business := protocol.business) is not None and previous is not None:
        before, after = business.code(previous), business.code(new)
        if before is not None and after is not None:
            _check_who(business.machine, sides, before, after, protocol.type)
    if previous is None:
        return
    if protocol.type == "Task" and _named(previous, "owner") != _named(new, "owner"):
        _check_handover(protocol, sides, actor, previous, new)
    if protocol.type in ("Task", "ServiceRequest") and _named(previous, "requester") != _named(new, "requester"):
        who = "concerned" if protocol.handover == "concerned" else "requester"
        if not sides.may(who):
            place = f"{protocol.type}.requester"
            raise NotTheirStep(f"{place} is changed by the requester alone: {sides}", place)


def check_deletion(write: Write) -> None:
    """What somebody else asked for or does is not deleted: it would be a step out of every table. Raises NotTheirStep."""
    tree = write.previous
    if tree is None or tree["resourceType"] not in ("Task", "ServiceRequest") or write.actor is None or write.actor.everyone:
        return
    who, type = "requester" if tree["resourceType"] == "ServiceRequest" else "concerned", tree["resourceType"]
    if not (sides := Sides.of(write.actor, tree)).may(who):
        raise NotTheirStep(f"This {type} is deleted by {_PHRASES[who].format(type=type)}; {sides}", type)


def _named(tree: Tree, element: str) -> str | None:
    reference: str | None = (tree.get(element) or {}).get("reference")
    return reference


def _check_who(machine: Machine, sides: Sides, before: str | None, after: str, type: str) -> None:
    if before == after or sides.may(who := machine.who(before, after)):
        return
    open_to = sorted(one.end for one in machine.steps if one.start == before and sides.may(one.who))
    step = f"from '{before}' to '{after}'" if before is not None else f"to a new one that is '{after}'"
    raise NotTheirStep(
        f"{machine.element}: the step {step} is taken by {_PHRASES[who].format(type=type)}; {sides}, and may go to:"
        f" {', '.join(open_to) or 'nothing'}",
        machine.element,
    )


_PHRASES = {
    "requester": "the requester ({type}.requester)",
    "performer": "the performer (Task.owner, or while there is none, whom the Task is addressed to)",
    "either": "the requester ({type}.requester) or the performer (Task.owner)",
    "concerned": "the requester ({type}.requester), the performer (Task.owner) or somebody in a role of Task.performerType",
}


def _check_handover(protocol: Protocol, sides: Sides, actor: Actor, previous: Tree, new: Tree) -> None:
    """Who owns a Task gives it away, and the requester; what nobody owns is taken by those it is addressed to, each for themselves."""
    if "owner" in previous:
        if not sides.may(protocol.handover):
            who = _PHRASES[protocol.handover].format(type="Task")
            raise NotTheirStep(f"Task.owner: it is owned by somebody else, and given away by {who}; {sides}", "Task.owner")
    elif not sides.may("concerned"):
        raise NotTheirStep("Task.owner: the Task is addressed to others, and you are not its requester", "Task.owner")
    elif not (sides.requester or protocol.handover == "concerned" or actor.is_(new.get("owner"))):
        raise NotTheirStep("Task.owner: who takes a Task that nobody owns takes it for themselves", "Task.owner")
