"""Give a Task of a role queue to who is to have it: when somebody asks, or by itself where the organisation wants that.

https://hl7.org/fhir/R4/task.html. A queue is marked on its Organization: the extension `auto-assignment`, the code of the role.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from fhircm.coordination import claims
from fhircm.coordination.acting import Act
from fhircm.coordination.build import edit, instant
from fhircm.coordination.caseload import OPEN, Choice, assignment
from fhircm.coordination.claiming import annotation, giver, kept, open_task
from fhircm.coordination.claims import Claim, claim_of, organizations, person, queue_roles, with_claim
from fhircm.coordination.codes import BASE, codings
from fhircm.coordination.context import Context, Record, any_of, token
from fhircm.coordination.steps import leads
from fhircm.coordination.task_states import is_open, mirrored
from fhircm.fhir.outcome import Conflict, Forbidden, IllegalTransition
from fhircm.fhir.systems import ROLE
from fhircm.store.operations import Plan
from fhircm.store.resources import Change, Op, Put, Stored

Tree = dict[str, Any]
AUTO = f"{BASE}/StructureDefinition/auto-assignment"
_TRIED = 20
_URGENCY = ("stat", "asap", "urgent", "routine")


async def assign(act: Act) -> Plan:
    """Have it done by whoever of the queue is to have it; raises Conflict when nobody could.

    Raises Forbidden for who is not of the queue, Claimed when somebody works it whom the caller does not lead.
    """
    tree = open_task(act)
    if not queue_roles(tree):
        raise IllegalTransition("This Task is in no role queue: its performerType names no role of the hub", "Task.performerType")
    actor = act.store.principal.actor
    if claims.holder(tree, act.store.now) is not None and not (actor.is_(tree.get("owner")) or leads(actor, tree)):
        raise claims.claimed(tree)
    if not claims.may_take(actor, tree):
        raise Forbidden(f"Who assigns is of the queue, or leads those who are: {', '.join(sorted(queue_roles(tree)))}")

    def make(choice: Choice | None) -> Sequence[Put]:
        if choice is None:
            raise Conflict(
                "Nobody of the queue could have this Task: each is away, has no room for it, or lacks the specialty or the service"
                " that it asks for; Organization/$caseload tells who carries how much"
            )
        if choice.worker.who["reference"] == tree.get("owner", {}).get("reference"):
            return []
        return [_assigned(act.about, choice, giver(act.store), act.store.now)]

    # Loads are counted over everything: what the caller does not see weighs as much. Only the Task is written, and they see that.
    return await assignment(Record(act.store.store), act.about, make)


async def follow(context: Context, change: Change) -> list[Op] | Plan:
    """Reaction to Task and PractitionerRole: in a queue that assigns by itself, the next Task that waits goes to who is to have it."""
    stored = await context.get(change.type, change.id)
    if stored is None or mirrored(stored.tree):
        return []
    if stored.type == "Task":
        places, roles = organizations(stored.tree), queue_roles(stored.tree)
    else:
        places = [stored.tree.get("organization", {})]
        roles = frozenset(code for system, code in codings(stored.tree.get("code")) if system == ROLE)
    for place in places:
        organization = await context.follow(place) if roles else None
        wanted = roles & _by_itself(organization)
        if organization is None or not wanted:
            continue
        for waiting in await _waiting(context, f"Organization/{organization.id}", wanted):
            plan = await assignment(Record(context.store), waiting, partial(_if_anybody, context, waiting), context.calendar)
            if plan.make([(await context.store.search(search)).matches for search in plan.searches]):
                return plan
    return []


def _if_anybody(context: Context, task: Stored, choice: Choice | None) -> list[Op]:
    return [_assigned(task, choice, context.coordinator, context.now())] if choice else []  # else it waits


def _by_itself(organization: Stored | None) -> frozenset[str]:
    """The roles whose queues at an organisation are assigned without being asked."""
    listed = organization.tree.get("extension", []) if organization and organization.type == "Organization" else []
    return frozenset(one.get("valueCode", "") for one in listed if one["url"] == AUTO)


async def _waiting(context: Context, place: str, roles: frozenset[str]) -> list[Stored]:
    """The Tasks of the queue that are to be assigned next: the most urgent first, then the oldest. So many are tried that one whom
    nobody can have does not hold up the others."""
    found = await context.find(
        "Task",
        ("owner", place),
        ("performer", any_of(token(ROLE, code) for code in sorted(roles))),
        ("status", any_of(OPEN)),
    )
    return sorted((one for one in found if is_open(one.tree)), key=_order)[:_TRIED]


def _order(task: Stored) -> tuple[int, str, str]:
    return _URGENCY.index(task.tree.get("priority", "routine")), str(task.tree.get("authoredOn", "")), task.id


def _assigned(stored: Stored, choice: Choice, by: Tree | None, now: datetime) -> Put:
    tree = stored.tree
    before = claim_of(tree)
    queue = tree["owner"].get("reference") if tree.get("owner") and person(tree["owner"]) is None else before.queue
    after = Claim(before.fence + 1, None, choice.worker.who["reference"], queue)
    note = [*tree.get("note", []), annotation(by, choice.why, now)]
    return edit(
        stored,
        owner=choice.worker.who,
        extension=with_claim(tree, after),
        note=note,
        lastModified=instant(now),
        **kept(tree, before),
    )
