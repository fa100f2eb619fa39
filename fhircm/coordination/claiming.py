"""Claim, give back, delegate and hand over a Task of a role queue: one write each, so that it is never without an owner between two.

https://hl7.org/fhir/R4/task.html. The rule of claims (fhircm/coordination/claims.py) holds each of them to what a plain update may.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.roles import roles
from fhircm.coordination import claims
from fhircm.coordination.acting import Act
from fhircm.coordination.build import edit, instant, reference
from fhircm.coordination.claims import Claim, StaleFence, claim_of, person, queue_roles, with_claim
from fhircm.coordination.queues import lease_of
from fhircm.coordination.task_states import is_open, machine_of, mirrored
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import Forbidden, IllegalTransition, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import ROLE
from fhircm.fhir.ucum import UCUM, unit
from fhircm.store.operations import Free, Plan, Put
from fhircm.store.resources import Stored
from fhircm.store.work_list import WorkQuery

Tree = dict[str, Any]
_AUTHORS = frozenset({"Practitioner", "Patient", "RelatedPerson", "Organization"})  # who may write an Annotation
_LONGEST = timedelta(days=366)


async def claim(act: Act) -> list[Put]:
    """Work it from now on (`owner`: for whom, of a system), for a time (`lease`); who has it already renews that time.

    Raises Claimed when somebody else works it, Forbidden for those who are not of its queue, StaleFence when `fence` is another one.
    """
    tree, now = open_task(act), act.store.now
    if not claims.claimable(tree):
        raise IllegalTransition(
            "This Task is in no queue: its owner is no organisation, and its performerType has none of the roles of"
            f" {ROLE} ({', '.join(roles())})",
            "Task.performerType",
        )
    who, lease = whoever(act.store.principal, act.one("owner")), lease_said(act.one("lease"))
    held, before = claims.holder(tree, now), claim_of(tree)
    if held is not None and (held == who or _is(act, held)):
        queue = before.queue or (await _queue_of(act) or {}).get("reference")
        until = _until(tree, lease, now)
        return [_written(act, tree, replace(before, fence=max(1, before.fence), until=until, holder=held, queue=queue))]
    if held is not None and before.offered != who and not (before.offered and _is(act, before.offered)):
        raise claims.claimed(tree)
    return [taken(act.about, who, lease, now)]


async def claim_next(store: GuardedStore, listed: WorkQuery, who: str, lease: timedelta | None) -> list[Stored]:
    """Claim the first Tasks of work lists that the caller may take and nobody has, at most `listed.count`: all in one transaction.

    Those that somebody else takes at the same moment are passed over, so that none waits for another. Raises Forbidden, and what the write raises.
    """
    now, actor = store.now, store.principal.actor

    def fits(task: Stored) -> bool:
        tree = task.tree
        return claims.claimable(tree) and claims.holder(tree, now) is None and claims.may_take(actor, tree) and not mirrored(tree)

    def made(found: list[list[Stored]]) -> list[Put]:
        return [taken(task, who, lease, now) for task in found[0]]

    return await store.transact(Plan([], made, free=Free(listed, fits)), [("u", "Task"), ("s", "Task")])


def taken(task: Stored, who: str, lease: timedelta | None, now: datetime) -> Put:
    """The write that makes somebody the owner of a Task that nobody works; `lease` None: for as long as is usual in its queue."""
    tree, before = task.tree, claim_of(task.tree)
    claim = Claim(before.fence + 1, _until(tree, lease, now), who, _queue(tree, before))
    extension = with_claim(tree, claim)
    return edit(task, extension=extension, lastModified=instant(now), **kept(tree, claim), owner=reference(who))


async def release(act: Act) -> list[Put]:
    """Give it back to its queue, for a reason (`reason`); to whom it is offered, release says no to the offer.

    Raises Claimed for who does not have it, StaleFence when `fence` is another one.
    """
    tree = open_task(act)
    held, before = claims.holder(tree, None), claim_of(tree)
    if held is None:
        raise IllegalTransition("Nobody has claimed this Task: there is nothing to give back", "Task.owner")
    if before.offered is not None and _is(act, before.offered):
        return [_written(act, tree, replace(before, offered=None), **_noted(act, tree, _reason(act, "Not taken over")))]
    return [given_back(act.about, await _queue_of(act), act.store.now, **_noted(act, tree, _reason(act, None)))]


async def delegate(act: Act) -> list[Put]:
    """Have somebody else do it from now on (`to`), or those of another role (`role`); who asked for it stays the same."""
    tree = open_task(act)
    to, role = act.one("to"), act.one("role")
    if (to is None) == (role is None):
        raise InvalidValue(
            "$delegate takes either 'to', a reference to who does it from now on, or 'role', in whose queue it goes"
        )
    note = _noted(act, tree, act.one("note"))
    if to is not None:
        who = await _somebody(act, to)
        return [_passed(act, tree, who, **note)]
    performer = {"coding": [{"system": ROLE, "code": role}], "text": roles()[role].title} if role in roles() else None
    if performer is None:
        raise InvalidValue(f"'role' takes one of: {', '.join(roles())}")
    return [given_back(act.about, await _queue_of(act), act.store.now, performerType=[performer], **note)]


async def hand_over(act: Act) -> list[Put]:
    """Pass it on to somebody (`to`) with a hand-over note (`note`); with `must-accept` the giver has it until they claim it."""
    open_task(act)
    who = await _somebody(act, act.one("to"))
    return [handed_over(act.about, who, giver(act.store), act.one("note"), act.store.now, offered=act.one("must-accept", False))]


def handed_over(stored: Stored, who: Tree, by: Tree | None, note: str, now: datetime, *, offered: bool = False) -> Put:
    """The write that hands a Task over."""
    tree = stored.tree
    before = claim_of(tree)
    noted = [*tree.get("note", []), annotation(by, note, now)]
    keep = kept(tree, before)
    if offered:
        keep |= {"restriction": _to(tree, keep.get("restriction", tree.get("restriction", {})), who)}
        after = replace(before, fence=max(1, before.fence), offered=who["reference"])
        return edit(stored, extension=with_claim(tree, after), note=noted, lastModified=instant(now), **keep)
    after = Claim(before.fence + 1, None, who["reference"], _queue(tree, before), by=(by or {}).get("reference"))
    return edit(stored, owner=who, extension=with_claim(tree, after), note=noted, lastModified=instant(now), **keep)


def given_back(stored: Stored, queue: Tree | None, now: datetime, **members: Any) -> Put:
    """The write that puts a Task back into its queue, with nobody's claim on it."""
    tree = stored.tree
    after = with_claim(tree, Claim(claim_of(tree).fence + 1))
    return edit(stored, owner=queue, extension=after, lastModified=instant(now), **members)


def annotation(by: Tree | None, text: str, now: datetime) -> Tree:
    """A note on a Task."""
    author = {"authorReference": by} if by and by["reference"].split("/")[-2] in _AUTHORS else {}
    return {**author, "time": instant(now), "text": text}


def giver(store: GuardedStore) -> Tree | None:
    """Who writes, as a resource may name them."""
    who = store.principal.user or store.principal.organization
    return reference(who) if who else None


# --- what the verbs share ----------------------------------------------------------------------------------------------------


def open_task(act: Act) -> Tree:
    """The Task, which must be open. Raises IllegalTransition, and StaleFence when `fence` is another one."""
    tree = act.about.tree
    if not is_open(tree):
        raise machine_of(tree).refuse(tree["status"])
    said, now = act.one("fence"), claim_of(tree).fence
    if said is not None and said != now:
        raise StaleFence(f"The claim with the fence {said} is over: the fence is {now}", "Task.extension")
    return tree


def whoever(principal: Principal, owner: Tree | None) -> str:
    """For whom is claimed: the person who asks, or whom a system that may names. Raises InvalidValue, Forbidden."""
    said = (owner or {}).get("reference")
    if said is None and principal.user is None:
        raise InvalidValue("A system says with 'owner' who claims, for example Practitioner/123")
    who = said or principal.user
    if not principal.actor.is_(reference(who)) or person(reference(who)) is None:
        raise Forbidden("'owner' of a claim is the person who asks; $delegate and $assign give a Task to somebody else")
    return str(who)


def _is(act: Act, to: str) -> bool:
    """Whether the caller is somebody: a system is nobody, though it may write for them."""
    return act.store.principal.user is not None and act.store.principal.actor.is_(reference(to))


def lease_said(said: Tree | None) -> timedelta | None:
    """How long a claim shall last, when that was said. Raises InvalidValue."""
    if said is None:
        return None
    read = unit(said.get("code", "")) if said.get("system") == UCUM and said.get("value", 0) > 0 else None
    if read is None or read.code != "s" or read.canonical(said["value"]) > _LONGEST.total_seconds():
        raise InvalidValue("'lease' takes a Duration of at most a year in UCUM, such as 30 min")
    return timedelta(seconds=read.canonical(said["value"]))


def _until(tree: Tree, lease: timedelta | None, now: datetime) -> datetime | None:
    lasts = lease or lease_of(queue_roles(tree))
    return now + lasts if lasts else None


def _queue(tree: Tree, before: Claim) -> str | None:
    """The owner to whom it goes back: who owns it while nobody works it."""
    owner = tree.get("owner", {})
    return owner.get("reference") if person(owner) is None else before.queue


async def _queue_of(act: Act) -> Tree | None:
    """The owner to whom it goes back. Who made themselves the owner by a plain update left no other trace than the version before."""
    tree = act.about.tree
    before = claim_of(tree)
    if before.queue is not None:
        return reference(before.queue)
    version = act.about.version
    while person(tree.get("owner")) is not None and before.holder is None and version > 1:
        version -= 1
        try:
            tree = (await act.store.vread("Task", act.about.id, version)).tree
        except NotFound:
            break
    return tree.get("owner") if person(tree.get("owner")) is None else None


async def _somebody(act: Act, to: Tree) -> Tree:
    """The person to whom it goes. Raises InvalidValue."""
    found = parse_reference(to.get("reference", ""))
    if found.kind != "local" or person(to) is None or await act.get(str(found.type), str(found.id)) is None:
        raise InvalidValue(
            "'to' is a reference to somebody who is known here: a Practitioner, PractitionerRole, Patient or RelatedPerson"
        )
    return to


def _passed(act: Act, tree: Tree, who: Tree, **members: Any) -> Put:
    before = claim_of(tree)
    by = (giver(act.store) or {}).get("reference")
    after = Claim(before.fence + 1, None, who["reference"], _queue(tree, before), by=by)
    return _written(act, tree, after, owner=who, **members)


def _written(act: Act, tree: Tree, claim: Claim, **members: Any) -> Put:
    keep = kept(tree, claim)
    return edit(act.about, extension=with_claim(tree, claim), lastModified=instant(act.store.now), **keep, **members)


def kept(tree: Tree, claim: Claim) -> dict[str, Tree]:
    """Those of the queue see the Task on when one of them works it: the queue stays among those for whom it was sought."""
    queue = _queue(tree, claim)
    if queue is None:
        return {}
    return {"restriction": _to(tree, tree.get("restriction", {}), reference(queue))}


def _to(tree: Tree, restriction: Tree, who: Tree) -> Tree:
    listed = restriction.get("recipient", [])
    known = any(one.get("reference") == who["reference"] for one in listed)
    return restriction if known else {**restriction, "recipient": [*listed, who]}


def _reason(act: Act, default: str | None) -> str | None:
    reason = act.one("reason") or {}
    return reason.get("text") or next((one.get("display") for one in reason.get("coding", []) if one.get("display")), default)


def _noted(act: Act, tree: Tree, text: str | None) -> dict[str, Any]:
    return {"note": [*tree.get("note", []), annotation(giver(act.store), text, act.store.now)]} if text else {}
