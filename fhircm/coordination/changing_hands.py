"""What follows when a Task changes hands: its lease is watched, who has it now is told, and who is away is spared it.

https://hl7.org/fhir/R4/task.html, https://hl7.org/fhir/R4/communication.html. docs/explanation/claims-and-caseload.md
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination import away
from fhircm.coordination.build import edit, instant, new, reference, stable_id, told_of_task
from fhircm.coordination.claiming import annotation, given_back
from fhircm.coordination.claims import Claim, claim_of, person, with_claim
from fhircm.coordination.context import Context
from fhircm.coordination.task_states import is_open, is_referral, mirrored
from fhircm.fhir.outcome import Gone, NotFound
from fhircm.store.resources import CancelTimer, Change, Op, SetTimer, Stored, Timer

Tree = dict[str, Any]
KIND = "claim"


def key(task_id: str) -> str:
    """The key of the timer of a Task's claim."""
    return f"claim:Task/{task_id}"


def message_id(giver: str, receiver: str, at: str) -> str:
    """The id of the Communication that tells of a hand-over: one, however many Tasks are handed over in the same moment."""
    return stable_id("hand-over", giver, receiver, at)


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to Task: watch the time of a claim, tell who was handed a Task, and pass on what comes to somebody who is away."""
    stored = await context.get("Task", change.id)
    if stored is None or mirrored(stored.tree):
        return [CancelTimer(key(change.id))] if stored is None else []
    operations: list[Op] = _watched(stored)
    owner = person(stored.tree.get("owner"))
    if owner is None or not is_open(stored.tree) or is_referral(stored.tree) or change.version != stored.version:
        return operations
    before = await _before(context, change)
    gave = person((before or {}).get("owner"))
    if gave != owner:
        passed = await _away(context, stored, owner, gave)
        operations += passed
        if not passed and gave is not None and change.origin != "hub":
            operations += await _told(context, stored, gave)
    elif claim_of(stored.tree).offered not in (None, claim_of(before).offered):
        operations += await _told(context, stored, owner, offered=claim_of(stored.tree).offered)
    return operations


async def over(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: a claim whose time is over gives the Task back to its queue."""
    stored = await context.get("Task", timer.payload["task"])
    if stored is None or mirrored(stored.tree) or not is_open(stored.tree):
        return []
    claim = claim_of(stored.tree)
    if claim.until is None or claim.until > context.now() or claim.holder != person(stored.tree.get("owner")):
        return []
    text = f"The claim ended at {context.calendar.written(claim.until)[:16].replace('T', ' ')} and was not renewed"
    note = [*stored.tree.get("note", []), annotation(context.coordinator, text, context.now())]
    return [given_back(stored, reference(claim.queue) if claim.queue else None, context.now(), note=note)]


def _watched(stored: Stored) -> list[Op]:
    claim = claim_of(stored.tree)
    if not claim.fence:
        return []
    lasting = claim.until is not None and claim.holder == person(stored.tree.get("owner")) and is_open(stored.tree)
    if lasting and claim.until is not None:
        return [SetTimer(key(stored.id), KIND, claim.until, {"task": stored.id})]
    return [CancelTimer(key(stored.id))]


async def _before(context: Context, change: Change) -> Tree | None:
    if change.version == 1:
        return None
    try:
        return (await context.store.vread("Task", change.id, change.version - 1)).tree
    except (NotFound, Gone):
        return None


async def _away(context: Context, stored: Stored, owner: str, gave: str | None) -> list[Op]:
    """Who is away gets nothing new: it goes to their deputy, else back to the queue, and they read of it when they are back."""
    tree, now = stored.tree, context.now()
    absence = await away.absence(context, owner, tree, now)
    if absence is None:
        return []
    deputy = await away.deputy(context, owner, tree, now)
    claim = claim_of(tree)
    queue = reference(claim.queue) if claim.queue else context.coordinator
    to = deputy or queue
    who = "their deputy has it" if deputy else "it is back in its queue"
    note = [*tree.get("note", []), annotation(context.coordinator, f"Its owner is away until {absence}: {who}", now)]
    after = Claim(claim.fence + 1, None, deputy["reference"] if deputy else None, claim.queue)
    passed = edit(stored, owner=to, extension=with_claim(tree, after), note=note, lastModified=instant(now))
    words = f"{_what(tree)}: its owner is away until {absence}, and {who}."
    to = [*([deputy] if deputy else []), reference(owner)]
    id = stable_id("away", stored.id, str(stored.version))
    told = told_of_task(id, stored, "hand-over", words, to=to, sender=context.coordinator, at=context.now())
    return [passed, new(told)]


async def _told(context: Context, stored: Stored, gave: str, *, offered: str | None = None) -> list[Op]:
    tree = stored.tree
    at, to = tree.get("lastModified", ""), offered or tree["owner"]["reference"]
    id = message_id(gave, to, at)
    if await context.get("Communication", id) is not None:
        return []
    note = next((one["text"] for one in reversed(tree.get("note", [])) if one.get("time") == at), None)
    words = "is offered to you: claim it, or say no with $release" if offered else "is yours now"
    text = f"{_what(tree)}: this {words}." + (f" {note}" if note else "")
    return [new(told_of_task(id, stored, "hand-over", text, to=[reference(to)], sender=reference(gave), at=context.now()))]


def _what(tree: Tree) -> str:
    return tree.get("description") or tree.get("code", {}).get("text") or "A task"
