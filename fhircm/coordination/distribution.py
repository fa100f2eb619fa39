"""How a request is given out: to one performer after the other, to several at once, or to whoever is able. docs/explanation/referrals.md

https://hl7.org/fhir/R4/servicerequest-definitions.html#ServiceRequest.performer: several performers are alternatives, and R4 has no word for
how they are asked. So an extension says it, on the ServiceRequest and on the Tasks that come of it. Its parts: `how`, a code of the hub;
`respond-by`, until when an answer is awaited; `round`, which goes up when all are asked anew; and on a Task `chosen`, when its offer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhircm.coordination.build import edit, instant, stable_id
from fhircm.coordination.codes import identifiers
from fhircm.coordination.context import Context
from fhircm.coordination.task_states import is_open, is_referral
from fhircm.fhir.outcome import IllegalTransition, Invalid, NotTheirStep
from fhircm.fhir.systems import REFERRAL
from fhircm.store.operations import Put, SetState, Write, WriteRule
from fhircm.store.resources import Stored

Tree = dict[str, Any]
EXTENSION = "https://fhircm.example/StructureDefinition/distribution"
DIRECT, FIRST_ACCEPT, OFFERS, OPEN = "direct", "first-accept", "offers", "open"
WAYS = (DIRECT, FIRST_ACCEPT, OFFERS, OPEN)
TAKEN = "referral-taken"  # namespace of the facts: which Task has the request of a group
_AT_WORK = frozenset(("accepted", "in-progress", "on-hold", "completed"))
_UNDER_WAY = _AT_WORK - {"accepted"}


@dataclass(frozen=True, slots=True)
class Distribution:
    """What the extension says. `how` None: nothing, which for a request with a performer means direct."""

    how: str | None = None
    round: int = 1
    respond_by: str | None = None
    chosen: bool = False

    def extension(self) -> Tree:
        """It as an extension."""
        parts: list[Tree] = [{"url": "how", "valueCode": self.how or DIRECT}]
        if self.round > 1:
            parts.append({"url": "round", "valuePositiveInt": self.round})
        if self.respond_by:
            parts.append({"url": "respond-by", "valueDateTime": self.respond_by})
        if self.chosen:
            parts.append({"url": "chosen", "valueBoolean": True})
        return {"url": EXTENSION, "extension": parts}


def of(tree: Tree | None) -> Distribution:
    """How a ServiceRequest, or a Task of one, is given out."""
    found = next((one for one in (tree or {}).get("extension", []) if one.get("url") == EXTENSION), {})
    parts = {one.get("url"): one for one in found.get("extension", [])}
    return Distribution(
        parts.get("how", {}).get("valueCode"),
        int(parts.get("round", {}).get("valuePositiveInt", 1)),
        parts.get("respond-by", {}).get("valueDateTime"),
        parts.get("chosen", {}).get("valueBoolean") is True,
    )


def put(tree: Tree, said: Distribution) -> list[Tree]:
    """The extensions of a resource, with this in place of what it said."""
    return [*(one for one in tree.get("extension", []) if one.get("url") != EXTENSION), said.extension()]


def task_id(order: str) -> str:
    """The id of the first Task of an order: its referral number."""
    return stable_id("referral", order)


def group_id(order: str, round: int) -> str:
    """What Tasks that one request was given out as, in one round, have in common."""
    return task_id(order) if round == 1 else stable_id("referral-group", order, str(round))


def group_of(task: Tree | None) -> str | None:
    """The group of a Task of the hub."""
    group = (task or {}).get("groupIdentifier", {})
    return group.get("value") if group.get("system") == REFERRAL and is_referral(task) else None


def has_it(task: Tree | None) -> bool:
    """Whether a Task has the request for itself: it is accepted, and chosen, where that is to be chosen."""
    if task is None or task["status"] not in _AT_WORK or not is_referral(task):
        return False
    said = of(task)
    return said.how != OFFERS or said.chosen


def number_of(task: Tree) -> str | None:
    """The referral number of a Task."""
    return next(iter(identifiers(task, REFERRAL)), None)


async def tasks_of(context: Context, order: str) -> list[Stored]:
    """The referrals of the hub that fulfil an order."""
    found = await context.find("Task", ("focus", f"ServiceRequest/{order}"))
    return [one for one in found if is_referral(one.tree)]


def of_round(order: str, round: int, tasks: Sequence[Stored]) -> list[Stored]:
    """Those of a round; a Task from before there were groups is of the first."""
    group = group_id(order, round)
    return [one for one in tasks if (group_of(one.tree) or (one.id if one.id == task_id(order) else None)) == group]


async def may_be_moved(context: Context, task: Stored) -> bool:
    """Whether a Task may be moved by what is seen elsewhere: not when another has the request, nor as long as its offer is not chosen."""
    group = group_of(task.tree)
    if group is None or not is_open(task.tree):
        return True
    said = of(task.tree)
    if "owner" not in task.tree or (said.how == OFFERS and not said.chosen):
        return False
    holder = await context.store.state(TAKEN, group)
    return holder is None or holder.get("task") == task.id


def ended(task: Stored, status: str, reason: Tree, at: datetime, **more: Any) -> Put:
    """A Task that ends for a reason."""
    return edit(task, status=status, statusReason=reason, lastModified=instant(at), **more)


# --- the rule ----------------------------------------------------------------------------------------------------------------


def _check(write: Write) -> None:
    """What is given out to several goes to one: by its own rules, and as the requester chose."""
    new, before = write.new, write.previous
    if new is None or write.origin.startswith("partner:"):
        return
    said = of(new)
    _check_own_name(write, new)
    if said.how is not None and said.how not in WAYS:
        raise Invalid(f"The extension 'distribution' has no '{said.how}'; 'how' may be: {', '.join(WAYS)}", "extension")
    if new["resourceType"] != "Task" or not (is_referral(new) or is_referral(before)):
        return
    asked = of(before) if before else said
    if (said.how, said.round) != (asked.how, asked.round) and write.actor is not None:
        raise IllegalTransition(
            "How a request is given out is said on its ServiceRequest; a Task keeps what it was made with", "Task.extension"
        )
    if said.chosen and not asked.chosen:
        _check_choice(write, said)
    if said.how == OFFERS and not said.chosen and new["status"] in _UNDER_WAY:
        raise IllegalTransition(
            f"This is an offer that the requester has not chosen so far: Task.status '{new['status']}' comes after the choice."
            " It may be 'accepted' (the offer stands) or 'cancelled' (the offer is withdrawn)",
            "Task.status",
        )
    withdrawn = before is not None and "owner" not in new and new["status"] == "cancelled" != before["status"]
    if withdrawn and write.actor is not None and not write.actor.is_((before or {}).get("requester")):
        raise NotTheirStep(
            "An open request is cancelled by its requester alone: it is addressed to others, too. Who does not want it leaves it to them",
            "Task.status",
        )
    if "owner" not in new and new["status"] not in ("draft", "requested", "received", "cancelled", "entered-in-error"):
        raise IllegalTransition(
            "Nobody has this open request: it is accepted together with Task.owner, the organisation that takes it; who does not want it leaves"
            " it to others. Its requester may cancel it",
            "Task.owner",
        )


def _check_own_name(write: Write, new: Tree) -> None:
    """A patient, or who acts for one, may ask; in nobody else's name."""
    if new["resourceType"] != "ServiceRequest" or write.previous is not None or write.actor is None or write.actor.everyone:
        return
    if any(name.startswith(("Patient/", "RelatedPerson/")) for name in write.actor.known_as) and not write.actor.is_(
        new.get("requester")
    ):
        raise NotTheirStep(
            "ServiceRequest.requester: patients, and those who act for them, ask in their own name", "ServiceRequest.requester"
        )


def _check_choice(write: Write, said: Distribution) -> None:
    new = write.new or {}
    if said.how != OFFERS or new["status"] != "accepted":
        raise IllegalTransition(
            "What is chosen is an offer: a Task of a request given out for 'offers', with the status 'accepted'", "Task.extension"
        )
    if write.actor is not None and not write.actor.is_((write.previous or new).get("requester")):
        raise IllegalTransition("Which offer is chosen is said by the Task's requester", "Task.extension")


def _facts(write: Write) -> list[SetState]:
    """One Task of a group has the request: held from its acceptance (its choice, of offers) until it ends without having done it."""
    group = group_of(write.previous) or group_of(write.new)
    had, has = has_it(write.previous), has_it(write.new)
    if group is None or had == has:
        return []
    tree = write.new or write.previous or {}
    fact = {"task": tree["id"]}
    if had:
        return [SetState(TAKEN, group, None, if_equal=fact)]
    chosen = of(tree).how == OFFERS
    words = "Another offer was chosen already" if chosen else "Another organisation has accepted this request already"
    return [
        SetState(
            TAKEN, group, fact, if_absent=True, otherwise=f"{words}: it is given to one. What was written last shows to whom"
        )
    ]


RULE = WriteRule(frozenset({"Task", "ServiceRequest"}), _check, deletes=True, facts=_facts)
