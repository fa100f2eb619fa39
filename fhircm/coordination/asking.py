"""Whom a request is given to: the Tasks that come of a ServiceRequest, and those that are withdrawn when somebody else has it.

http://hl7.org/fhir/us/sdoh-clinicalcare, docs/explanation/referrals.md. It looks at the present state of an order and of all its Tasks,
and does what is missing: so it does not matter which of them changed, or how often it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fhircm.coordination import capable, correlation, distribution, incomplete, intermediary, referral_times
from fhircm.coordination.build import concept, for_a_human, instant, new, npi, profile, reference, stable_id
from fhircm.coordination.codes import FULFILL, NPI, PLACER, member
from fhircm.coordination.context import Context, Neighbour, token
from fhircm.coordination.distribution import DIRECT, OPEN, Distribution
from fhircm.coordination.loops import nobody_is_asked, offers_to_choose_from, was_to_choose
from fhircm.coordination.package import Package, packed
from fhircm.coordination.people import belonging_to, named, organization_of, patient_of, same_organization
from fhircm.coordination.task_states import business, is_open, is_referral, mirrored
from fhircm.coordination.times import moment
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import REFERRAL
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
REPLACES = "http://hl7.org/fhir/StructureDefinition/task-replaces"
_WITHDRAWN = ("filled-by-another", "not-asked-any-more")


async def give_out(context: Context, order: Stored, *, written_here: bool = False) -> list[Op]:
    """What an order lacks: Tasks for those who are to be asked now, the end of those who are not, and a human where nobody is left.

    `written_here`: a client of the hub wrote the order just now.
    """
    tree = order.tree
    if not _is_given_out(tree):
        return []
    focused = await context.find("Task", ("focus", f"ServiceRequest/{order.id}"))
    said, tasks = distribution.of(tree), [one for one in focused if is_referral(one.tree)]
    here = distribution.of_round(order.id, said.round, tasks)
    by_hand = [one for one in tasks if not _of_order(one, order, said)]
    holder = next(
        (one for one in tasks if distribution.has_it(one.tree) and (one in here or one in by_hand or is_open(one.tree))), None
    )
    if holder is not None or tree["status"] != "active":
        others = [] if holder is None else [one for one in _open(tasks) if one is not holder and one not in by_hand]
        withdrawn: list[Op] = [_withdraw(context, one, "filled-by-another") for one in others]
        nobody = await nobody_is_asked(context, order, None, focused)
        return [*withdrawn, *nobody, *await offers_to_choose_from(context, order, [], focused)]
    if _open(by_hand):  # the requester asks with Tasks of its own
        return await nobody_is_asked(context, order, None, focused)
    earlier = [one for one in _open(tasks) if one not in here and one not in by_hand]
    operations: list[Op] = [_withdraw(context, one, "not-asked-any-more") for one in earlier]
    taken_up = bool(tasks) or was_to_choose(focused) or (written_here and not mirrored(tree))
    asked, why = await _next(context, order, said, [*here, *by_hand] if said.round == 1 else here, taken_up=taken_up)
    operations += asked
    if why and await intermediary.asked_otherwise(context, order):
        why = None
    operations += await nobody_is_asked(context, order, why, focused)
    operations += await offers_to_choose_from(context, order, [one for one in here if _is_offer(one.tree)], focused)
    return operations


def _is_given_out(tree: Tree) -> bool:
    intents = ("order",) if mirrored(tree) else ("order", "filler-order")
    is_referral = member("referral-order", tree.get("category"), tree.get("code"))
    return tree["intent"] in intents and is_referral and patient_of(tree) is not None


def _open(tasks: Sequence[Stored]) -> list[Stored]:
    return [one for one in tasks if is_open(one.tree)]


def _of_order(task: Stored, order: Stored, said: Distribution) -> bool:
    """Whether the order made a Task, in this round or one before it."""
    return any(task in distribution.of_round(order.id, round, [task]) for round in range(1, said.round + 1))


def _is_offer(task: Tree) -> bool:
    said = distribution.of(task)
    return said.how == distribution.OFFERS and not said.chosen and task["status"] == "accepted"


def _withdraw(context: Context, task: Stored, why: str) -> Op:
    members: Tree = {"businessStatus": business().concept("6.0")} if business().code(task.tree) else {}
    return distribution.ended(task, "cancelled", concept(why), context.now(), **members)


# --- who is next -------------------------------------------------------------------------------------------------------------


async def _next(
    context: Context, order: Stored, said: Distribution, here: list[Stored], *, taken_up: bool
) -> tuple[list[Op], str | None]:
    """What is to be written, and why a human must choose whom to ask, if nobody is asked after that."""
    performers = await _performers(context, order.tree)
    by_need = not mirrored(order.tree) and not order.tree.get("performer") and "performerType" in order.tree
    how = said.how or (OPEN if by_need else DIRECT)
    if not taken_up and said.how is None and not await _is_news(context, order):
        return [], None
    if how == OPEN:
        return await _openly(context, order, said, here)
    owners = await _owners(context, here)
    fits = {one.id: next((it for it in performers if same_organization(it, owners[one.id])), None) for one in here}
    gone = [one for one in here if one.tree["status"] == "requested" and fits[one.id] is None and performers]
    operations: list[Op] = [_withdraw(context, one, "not-asked-any-more") for one in gone]
    waiting = [one for one in _open(here) if one not in gone]
    known = {it.id for it in fits.values() if it is not None}
    fresh = [one for one in performers if one.id not in known]
    if how == DIRECT:
        fresh = [] if waiting else (await _named_since_it_stopped(context, order, here, fresh))[:1]
    before = max((one for one in here if one.tree["status"] == "rejected"), key=lambda one: one.last_updated, default=None)
    for performer in fresh:
        operations += await _ask(context, order, said, performer, here, replaces=before if how == DIRECT else None)
    if waiting or fresh or (mirrored(order.tree) and not here):
        return operations, None
    return operations, _why(here)


async def _named_since_it_stopped(context: Context, order: Stored, here: list[Stored], fresh: list[Stored]) -> list[Stored]:
    """Those who may be asked next without a human. When somebody stopped, rather than declined, only whom the requester named after that."""
    stopped = [one for one in here if one.tree["status"] in ("failed", "cancelled") and not _was_withdrawn(one.tree)]
    if not stopped or not fresh:
        return fresh
    at = max(one.last_updated for one in stopped)
    versions = await context.store.history("ServiceRequest", order.id)
    then = next((one for one in versions if one.last_updated <= at and not one.deleted), None)
    known = await _performers(context, then.tree) if then else []
    return [one for one in fresh if not any(same_organization(one, other) for other in known)]


def changes_nothing(task: Tree) -> bool:
    """Whether what became of a Task changes nothing in whom its order asks: its owner was asked, or others have it."""
    return (task["status"] in ("draft", "requested") and "owner" in task) or _was_withdrawn(task)


def _was_withdrawn(task: Tree) -> bool:
    return any(one.get("code") in _WITHDRAWN for one in task.get("statusReason", {}).get("coding", []))


def _why(here: list[Stored]) -> str:
    if not here:
        return "The order names nobody who can be asked"
    if all(one.tree["status"] == "rejected" for one in here):
        return "All who were asked have declined"
    return "Those who were asked have declined, or ended without doing it"


async def _owners(context: Context, tasks: Sequence[Stored]) -> dict[str, Stored | None]:
    """Who owns each of these, read at once: a request may be given to many."""
    to = {one.id: parse_reference(one.tree.get("owner", {}).get("reference", "")) for one in tasks}
    there = await context.store.read_many((it.type, it.id) for it in to.values() if it.kind == "local" and it.type and it.id)
    return {id: there.get((it.type or "", it.id or "")) for id, it in to.items()}


async def _performers(context: Context, order: Tree) -> list[Stored]:
    """The Organizations that may be asked, each once, in order: the performers, or those to which they belong.

    Of an order that a partner keeps only those with an NPI, and none of its own house.
    """
    found: list[Stored] = []
    asked = [parse_reference(one.get("reference", "")) for one in order.get("performer", [])]
    there = await context.store.read_many((it.type, it.id) for it in asked if it.kind == "local" and it.type and it.id)
    for it in asked:
        entry = there.get((it.type or "", it.id or ""))
        organization = await belonging_to(context, entry) if entry else None
        if organization is None or any(same_organization(organization, one) for one in found):
            continue
        if mirrored(order):
            neighbour = context.neighbour(npi=npi(organization.tree))
            within = neighbour is not None and neighbour == context.source_of(order)
            if within:
                return found  # it is done within the house, unless somebody before that is asked
            if not npi(organization.tree):
                continue
        found.append(organization)
    return found


async def _openly(context: Context, order: Stored, said: Distribution, here: list[Stored]) -> tuple[list[Op], str | None]:
    """An open request is one Task that nobody owns: those who are able find it."""
    able = await capable.organizations(context, order.tree)
    waiting = _open(here)
    nobody = None if able else "Nobody is known who offers what is needed"
    if not here:
        carried = await packed(context, order.tree, {}, context.now())
        task = await _task(context, order, said, stable_id("referral", order.id, "open", str(said.round)), carried)
        return [new(capable.addressed(task, able)), *await incomplete.ask(context, task, carried)], nobody
    if not waiting:
        return [], _why(here)
    return [edited for one in waiting if (edited := capable.refreshed(one, able, context.now()))], nobody


async def _is_news(context: Context, order: Stored) -> bool:
    """Whether the order is recent, or the hub saw it before it was active.

    A first pull, or a load of history, brings orders of years that nobody closed.
    """
    written = moment(order.tree.get("authoredOn"), context.calendar_of(context.source_of(order.tree)))
    versions = [one for one in await context.store.history("ServiceRequest", order.id) if not one.deleted]
    active = [one.tree["status"] == "active" for one in versions]  # newest first
    since = active.index(False) if False in active else len(active)
    if since < len(versions) or written is None:
        return True
    return written >= versions[-1].last_updated - context.window


# --- the Task ----------------------------------------------------------------------------------------------------------------


async def _ask(
    context: Context, order: Stored, said: Distribution, performer: Stored, here: list[Stored], *, replaces: Stored | None
) -> list[Op]:
    neighbour = context.neighbour(npi=npi(performer.tree))
    id = distribution.task_id(order.id)
    if here or said.round > 1 or said.how not in (None, DIRECT):
        id = stable_id("referral", order.id, performer.id, str(said.round))
    owner = await _directory_entry(context, performer, neighbour)
    carried = await packed(context, order.tree, {"owner": reference(f"Organization/{owner.id}")}, context.now())
    task = await _task(context, order, said, id, carried, owner, neighbour)
    if replaces is not None:
        task["extension"] = [*task["extension"], {"url": REPLACES, "valueReference": reference(f"Task/{replaces.id}")}]
    operations: list[Op] = [new(task), *await incomplete.ask(context, task, carried)]
    if neighbour is None and mirrored(order.tree):
        operations.append(_nobody_there(context, task))
    return operations


async def _directory_entry(context: Context, performer: Stored, neighbour: Neighbour | None) -> Stored:
    """The performer as it describes itself, when it is a partner; else the requester's entry for it."""
    if neighbour is not None:
        for one in await context.find("Organization", ("identifier", token(NPI, neighbour.npi))):
            if context.source_of(one.tree) == neighbour:
                return one
    return performer


async def _task(
    context: Context,
    order: Stored,
    said: Distribution,
    id: str,
    carried: Package,
    owner: Stored | None = None,
    neighbour: Neighbour | None = None,
) -> Tree:
    tree, now = order.tree, context.now()
    to_order, priority = reference(f"ServiceRequest/{order.id}"), tree.get("priority", "routine")
    encounter = await context.follow(tree.get("encounter"))
    code = tree.get("code", {})
    told = code.get("text") or next((one["display"] for one in code.get("coding", []) if one.get("display")), None)
    how = said.how or (DIRECT if owner else OPEN)
    asked = Distribution(how, said.round, said.respond_by)
    status = "draft" if carried.missing else "requested"
    task: Tree = {
        "resourceType": "Task",
        "id": id,
        "meta": profile("referral-task"),
        "extension": [] if how == DIRECT and said.round == 1 else [asked.extension()],
        "identifier": [placer(id)],
        "basedOn": [to_order],
        "groupIdentifier": {"system": REFERRAL, "value": distribution.group_id(order.id, said.round)},
        "partOf": await intermediary.above(context, tree),
        "status": status,
        "businessStatus": business().concept("2.0"),
        "intent": "order",
        "priority": priority,
        "code": {"coding": [_coding(FULFILL)], "text": "Fulfil the referral"},
        "description": told,
        "focus": to_order,
        "for": reference(f"Patient/{patient_of(tree)}"),
        "encounter": reference(f"Encounter/{encounter.id}") if encounter else None,
        "authoredOn": instant(now),
        "lastModified": instant(now),
        "requester": await _requester(context, tree, encounter),
        "owner": await named(context, owner) if owner else None,
        "reasonCode": next(iter(tree.get("reasonCode", [])), None),
        "input": carried.inputs if owner else None,  # those who may take an open request read it when they have it
        **referral_times.first_due(context, priority, context.calendar_of(neighbour), said.respond_by, status),
    }
    return task | correlation.learned(task, tree, ())


def placer(id: str) -> Tree:
    """The number of a referral, as an identifier of its Task."""
    return {"type": {"coding": [_coding(PLACER)]}, "system": REFERRAL, "value": id}


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
