"""What the providers that were asked have answered, side by side, in the order in which the patient wants them.

https://hl7.org/fhir/R4/task.html; http://hl7.org/fhir/us/sdoh-clinicalcare. Each was asked with a Task whose focus is the ServiceRequest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination import distribution
from fhircm.coordination.codes import FULFILL, codings, own
from fhircm.coordination.context import Record
from fhircm.coordination.discharge import choices
from fhircm.coordination.discharge.rules import OTHER, rules
from fhircm.coordination.people import organization_of
from fhircm.coordination.times import moment
from fhircm.coordination.wording import text_of
from fhircm.store.resources import Stored

Tree = dict[str, Any]
WAITING, OFFERED, CHOSEN, DECLINED, WITHDRAWN, QUESTION = (
    "waiting",
    "offered",
    "chosen",
    "declined",
    "withdrawn",
    "needs-information",
)
_ANSWERS = {
    "draft": WAITING,
    "requested": WAITING,
    "received": QUESTION,
    "on-hold": QUESTION,
    "accepted": OFFERED,
    "in-progress": CHOSEN,
    "completed": CHOSEN,
    "rejected": DECLINED,
    "failed": DECLINED,
}
ANSWERS = (CHOSEN, OFFERED, QUESTION, WAITING, DECLINED, WITHDRAWN)


@dataclass(frozen=True, slots=True)
class Answer:
    """One provider's answer. `rank` 1 is what the patient wants most, None what they did not choose."""

    task: Stored
    owner: Tree
    answer: str
    rank: int | None
    took: timedelta | None  # from being asked to the first answer
    terms: tuple[str, ...]
    earliest: datetime | None
    stands_until: datetime | None
    reason: str | None
    kind: str | None  # of the reason: clinical, non-clinical or other


async def answers(record: Record, order: Stored, asked: list[tuple[Stored, datetime | None]]) -> list[Answer]:
    """All answers: who has it and who offers first, and among equals what the patient wants most.

    `asked` are the Tasks for the order, each with when its owner first answered (UTC), None so far.
    """
    named = [one for one in order.tree.get("supportingInfo", []) if one.get("reference", "").startswith("List/")]
    lists = [found for one in named if (found := await record.follow(one)) is not None and found.type == "List"]
    wanted = [await _known_as(record, one) for one in choices.preference(order.tree, lists)]
    found = [_answer(task, at, wanted) for task, at in asked]
    return sorted(found, key=lambda one: (ANSWERS.index(one.answer), one.rank or len(wanted) + 1, one.task.id))


async def _known_as(record: Record, provider: str) -> frozenset[str]:
    """The references by which a chosen provider may be asked: itself, and the organisation whose service it is."""
    organization = await organization_of(record, {"reference": provider})
    return frozenset((provider, f"Organization/{organization.id}")) if organization else frozenset((provider,))


def is_asking(task: Tree) -> bool:
    """Whether a Task asks somebody to fulfil an order, and not a human to look at something."""
    return FULFILL in codings(task.get("code"))


def has_answered(task: Tree) -> bool:
    """Whether a version of such a Task is an answer of its owner."""
    return _ANSWERS.get(task["status"], WAITING) != WAITING


def _answer(task: Stored, at: datetime | None, wanted: list[frozenset[str]]) -> Answer:
    tree = task.tree
    owner = tree.get("owner", {})
    answer = _ANSWERS.get(tree["status"], WITHDRAWN)
    if answer == OFFERED and is_chosen(tree):
        answer = CHOSEN
    sent = moment(tree.get("authoredOn"))
    told = [one for one in tree.get("output", []) if own(one.get("type")) == "offer"]
    period: Tree = next((one["valuePeriod"] for one in told if "valuePeriod" in one), {})
    reason = text_of(tree.get("statusReason")) if answer in (DECLINED, WITHDRAWN) else None
    codes = " ".join(code for _, code in codings(tree.get("statusReason")))
    kind = rules().declined(f"{reason} {codes}") if answer == DECLINED else None
    return Answer(
        task,
        owner,
        answer,
        next((place for place, one in enumerate(wanted, 1) if owner.get("reference") in one), None),
        at - sent if at and sent else None,
        tuple(one["valueString"] for one in told if "valueString" in one),
        moment(period.get("start")),
        moment(period.get("end")),
        reason,
        kind if kind or answer != DECLINED else OTHER,
    )


def is_chosen(task: Tree) -> bool:
    """Whether a Task that was accepted has the request: of several offers it must have been chosen."""
    said = distribution.of(task)
    return said.how != distribution.OFFERS or said.chosen
