"""Who works a Task of a role queue: at most one person at a time, for as long as the claim lasts, held on every way of writing.

https://hl7.org/fhir/R4/task.html. A role queue is what Task.performerType (a role of the hub) and an organisation together name: the owner
while nobody works it, and Task.restriction.recipient from then on. Whoever makes themself the owner has claimed it. The extension
`task-claim` says until when, from which queue, and its fence: a number that grows whenever the Task changes hands, so that a process that
lost a claim cannot write with what it knew of it. docs/explanation/claims-and-caseload.md
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhircm.coordination.build import instant, reference
from fhircm.coordination.codes import BASE, codings
from fhircm.coordination.steps import leads
from fhircm.coordination.task_states import is_open, is_referral, mirrored
from fhircm.coordination.times import moment
from fhircm.fhir.outcome import Conflict, Forbidden, Invalid
from fhircm.fhir.systems import ROLE
from fhircm.store.operations import Actor, Write, WriteRule

Tree = dict[str, Any]
CLAIM = f"{BASE}/StructureDefinition/task-claim"
PEOPLE = frozenset({"Practitioner", "PractitionerRole", "Patient", "RelatedPerson", "Device"})  # who works; others are queues
_ENDS = ("cancelled", "entered-in-error")  # what a requester may make of what it asked for, whoever works it


class Claimed(Conflict):
    """Somebody else works this Task."""


class StaleFence(Conflict):
    """The Task changed hands since the writer had the claim that it writes under."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the extension says. `until` None: until it is given back; `holder`, `queue`, `offered` and `by` are references."""

    fence: int = 0
    until: datetime | None = None
    holder: str | None = None  # for whom `until` counts: when somebody else owns the Task, that is nobody's lease
    queue: str | None = None  # the owner before
    offered: str | None = None  # to whom the holder wants to hand it over: they may claim it
    by: str | None = None  # who passed it on to the holder

    def written(self) -> Tree:
        """As an extension."""
        parts: list[Tree] = [{"url": "fence", "valuePositiveInt": self.fence}]
        if self.until is not None:
            parts.append({"url": "until", "valueInstant": instant(self.until)})
        for name in ("holder", "queue", "offered", "by"):
            if (to := getattr(self, name)) is not None:
                parts.append({"url": name, "valueReference": reference(to)})
        return {"url": CLAIM, "extension": parts}


def claim_of(task: Tree | None) -> Claim:
    """What a Task says of its claim; one that was never claimed through the extension has the fence 0. Raises Invalid."""
    element = next((one for one in (task or {}).get("extension", []) if one["url"] == CLAIM), None)
    if element is None:
        return Claim()
    parts = {one["url"]: one for one in element.get("extension", [])}
    fence = parts.get("fence", {}).get("valuePositiveInt")
    if not isinstance(fence, int):
        raise Invalid(f"The extension {CLAIM} needs a part 'fence' with a valuePositiveInt", "Task.extension")
    to = {name: parts.get(name, {}).get("valueReference", {}).get("reference") for name in ("holder", "queue", "offered", "by")}
    return Claim(fence, moment(parts.get("until", {}).get("valueInstant")), **to)


def with_claim(task: Tree, claim: Claim) -> list[Tree]:
    """The extensions of a Task with this claim in place of what it says."""
    return [*(one for one in task.get("extension", []) if one["url"] != CLAIM), claim.written()]


def queue_roles(task: Tree) -> frozenset[str]:
    """The hub's roles in whose queue a Task is."""
    return frozenset(code for system, code in codings(task.get("performerType")) if system == ROLE)


def governed(task: Tree | None) -> bool:
    """Whether the rule of claims holds for a Task: it is in a role queue, or was claimed through the extension."""
    return task is not None and bool(queue_roles(task) or claim_of(task).fence)


def claimable(task: Tree) -> bool:
    """Whether a Task can be claimed: besides those of role queues, whatever an organisation has to do itself, by anybody of it."""
    return governed(task) or (bool(organizations(task)) and not is_referral(task))


def person(element: Tree | None) -> str | None:
    """The reference to who works, if that is somebody and no queue."""
    to: str = (element or {}).get("reference", "")
    return to if PEOPLE.intersection(to.split("/")[-2:-1]) else None


def organizations(task: Tree) -> list[Tree]:
    """At whom a queue is: the owner while nobody works it, and those to whom it was sought to be given."""
    owner = task.get("owner")
    listed = [owner] if owner and person(owner) is None else []
    return [*listed, *(one for one in task.get("restriction", {}).get("recipient", []) if person(one) is None)]


def holder(task: Tree | None, now: datetime | None) -> str | None:
    """Who works a Task now: nobody when it is closed or the lease is over. `now` None: as if no lease was over."""
    if task is None or not is_open(task) or not governed(task):
        return None
    owner, claim = person(task.get("owner")), claim_of(task)
    over = claim.until is not None and claim.holder == owner and now is not None and claim.until <= now
    return None if over else owner


def claimed(task: Tree) -> Claimed:
    """The error for who would work what somebody works: it names the role and the place, never a patient."""
    claim, place = claim_of(task), next((one["reference"] for one in organizations(task) if "reference" in one), None)
    leased = claim.until is not None and claim.holder == person(task.get("owner"))
    until = f"until {instant(claim.until)}" if leased and claim.until else "until it is given back"
    who, where = " or ".join(sorted(queue_roles(task))), f" at {place}" if place else ""
    return Claimed(
        f"{f'A {who}' if who else 'Somebody'}{where} has claimed this Task {until}. Who has it may pass it on with $hand-over or"
        " $delegate and give it back with $release; so may who leads them",
        "Task.owner",
    )


def may_take(actor: Actor | None, task: Tree) -> bool:
    """Whether somebody may take from the queue of a Task: they have one of its roles, if it has any, at the organisation that it names."""
    if actor is None or actor.everyone:
        return True
    at, wanted = organizations(task), queue_roles(task)
    placed = not at or any(actor.is_(one) for one in at)
    return placed and (actor.leads or not wanted or bool(actor.roles & wanted))


def enforce(write: Write) -> None:
    """The write rule of claims. Raises Claimed, StaleFence, Forbidden, Invalid."""
    previous, new, actor = write.previous, write.new, write.actor
    if mirrored(new or previous):
        return
    if previous is None or not (governed(previous) or governed(new)):
        return
    if new is not None:
        _fence(previous, new, hub=actor is None)
    if actor is None:
        return
    held = holder(previous, write.now)
    if held is not None:
        _held(previous, new, actor)
    elif new is not None and person(new.get("owner")) not in (None, person(previous.get("owner"))) and is_open(previous):
        _taken(previous, actor)


def _fence(previous: Tree, new: Tree, *, hub: bool) -> None:
    """The fence never falls, and grows when the Task leaves somebody's hands."""
    before, after = claim_of(previous).fence, claim_of(new).fence
    if after < before:
        raise StaleFence(
            f"This Task changed hands: its fence is {before}, and what is written says {after or 'none'}. Read it anew, keep its extension"
            f" {CLAIM}, and claim it again to go on",
            "Task.extension",
        )
    gave = person(previous.get("owner"))
    if gave is not None and gave != person(new.get("owner")) and after == before and is_open(previous) and not hub:
        raise StaleFence(
            f"Who gives up or passes on a claimed Task raises its fence: the extension {CLAIM} must say {before + 1} or more; $release,"
            " $delegate and $hand-over do that",
            "Task.extension",
        )


def _held(previous: Tree, new: Tree | None, actor: Actor) -> None:
    claim = claim_of(previous)
    if actor.is_(previous.get("owner")) or leads(actor, previous):
        return
    if claim.offered is not None and actor.is_(reference(claim.offered)) and new is not None and claim_of(new).offered is None:
        return  # they take it, or will not have it
    asked = previous.get("requester")
    if new is not None and new["status"] in _ENDS and actor.is_(asked) and asked not in organizations(previous):
        return
    raise claimed(previous)


def _taken(previous: Tree, actor: Actor) -> None:
    if not may_take(actor, previous):
        place = ", ".join(one["reference"] for one in organizations(previous) if "reference" in one) or "any organisation"
        who = ", ".join(sorted(queue_roles(previous))) or "anybody"
        raise Forbidden(f"This Task is for: {who} at {place}; the caller is none of these")


RULE = WriteRule(frozenset({"Task"}), enforce, deletes=True)
