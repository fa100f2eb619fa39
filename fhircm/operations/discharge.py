"""$discharge-plan, $handover-package and $compare-offers: how a discharge stands. Nothing is written.

docs/reference/coordination-operations-discharge.md
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from fhircm.coordination.build import instant, reference
from fhircm.coordination.context import Record
from fhircm.coordination.discharge import handover, offers
from fhircm.coordination.discharge.acts import UTC
from fhircm.coordination.discharge.days import barrier_days, days_lost
from fhircm.coordination.discharge.expectation import Expectation, slips
from fhircm.coordination.discharge.plan import BARRIER, ITEM, is_mandatory, planning, step_of
from fhircm.fhir import json
from fhircm.fhir.outcome import NotFound
from fhircm.operations.call import Answer, Call, parameters
from fhircm.store.history import HistoryQuery
from fhircm.store.resources import Stored

Tree = dict[str, Any]


async def discharge_plan(call: Call) -> Answer:
    """How the planning of a stay stands: when and where to, what is open, what is in the way, and what that cost."""
    record, stay = await _stay(call)
    plan = await planning(record, stay, UTC)
    if plan.whole is None:
        raise NotFound(f"No discharge was planned for Encounter/{stay.id}")
    barriers = plan.of(BARRIER)
    return parameters(
        {"name": "plan", "valueReference": reference(f"Task/{plan.whole.id}")},
        {"name": "status", "valueCode": plan.whole.tree["status"]},
        {"name": "disposition", "valueCode": plan.where},
        *(_part("expected", **_expected(one)) for one in plan.expected),
        {"name": "slips", "valueInteger": slips(plan.expected, UTC)},
        *(_part("item", **_item(one)) for one in plan.of(ITEM)),
        *(_part("barrier", **_barrier(one, call.store.now)) for one in barriers),
        {"name": "daysLost", "valueInteger": days_lost(barriers, call.store.now, UTC)},
        {"name": "openMandatory", "valueInteger": len(plan.open_mandatory())},
    )


async def _stay(call: Call) -> tuple[Record, Stored]:
    assert call.type is not None
    assert call.id is not None
    return Record(call.store), await call.store.read(call.type, call.id)


def _part(name: str, **values: tuple[str, Any]) -> Tree:
    """A parameter with parts: those that have a value, each told with its type."""
    parts = [{"name": part, f"value{type}": value} for part, (type, value) in values.items() if value is not None]
    return {"name": name, "part": parts}


def _expected(one: Expectation) -> dict[str, tuple[str, Any]]:
    return {
        "date": ("DateTime", one.date),
        "disposition": ("CodeableConcept", one.disposition),
        "by": ("Reference", one.by),
        "at": ("DateTime", one.at),
        "reason": ("String", one.reason),
    }


def _item(one: Stored) -> dict[str, tuple[str, Any]]:
    tree = one.tree
    return {
        "step": ("Code", step_of(tree)),
        "title": ("String", tree.get("description")),
        "status": ("Code", tree["status"]),
        "mandatory": ("Boolean", is_mandatory(tree)),
        "due": ("DateTime", tree.get("restriction", {}).get("period", {}).get("end")),
        "owner": ("Reference", tree.get("owner")),
        "task": ("Reference", reference(f"Task/{one.id}")),
        "why": ("String", (tree.get("statusReason") or {}).get("text")),
    }


def _barrier(one: Stored, now: datetime) -> dict[str, tuple[str, Any]]:
    tree = one.tree
    return {
        "reason": ("CodeableConcept", tree.get("reasonCode")),
        "title": ("String", tree.get("description")),
        "status": ("Code", tree["status"]),
        "owner": ("Reference", tree.get("owner")),
        "due": ("DateTime", tree.get("restriction", {}).get("period", {}).get("end")),
        "days": ("Integer", len(barrier_days(tree, now, UTC))),
        "task": ("Reference", reference(f"Task/{one.id}")),
    }


async def handover_package(call: Call) -> Answer:
    """What who cares on needs to know, with what of it is missing."""
    record, stay = await _stay(call)
    package = await handover.gathered(record, stay)
    return Answer(json.dumps(handover.bundle(package, call.store.now, base=call.base_url)))


async def compare_offers(call: Call) -> Answer:
    """What the providers that were asked have answered, in the order in which the patient wants them."""
    record, order = await _stay(call)
    found = await record.find("Task", ("focus", f"ServiceRequest/{order.id}"))
    asked = [(one, await _answered(call, one)) for one in found if offers.is_asking(one.tree)]
    told = await offers.answers(record, order, asked)
    counts = {answer: sum(one.answer == answer for one in told) for answer in offers.ANSWERS}
    return parameters(
        *({"name": answer, "valueInteger": number} for answer, number in counts.items()),
        *(_part("answer", **_answer(one)) for one in told),
        *(_reasons(kind, told) for kind in sorted({one.kind for one in told if one.kind})),
    )


async def _answered(call: Call, task: Stored) -> datetime | None:
    """When its owner first answered: the first version that waits no more."""
    page = await call.store.history(HistoryQuery("Task", task.id, 100))
    answered = [one.last_updated for one in page.versions if not one.deleted and offers.has_answered(one.tree)]
    return min(answered, default=None)


def _answer(one: offers.Answer) -> dict[str, tuple[str, Any]]:
    return {
        "provider": ("Reference", one.owner),
        "answer": ("Code", one.answer),
        "rank": ("PositiveInt", one.rank),
        "terms": ("String", "; ".join(one.terms) or None),
        "earliest": ("DateTime", instant(one.earliest) if one.earliest else None),
        "standsUntil": ("DateTime", instant(one.stands_until) if one.stands_until else None),
        "reason": ("String", one.reason),
        "reasonKind": ("Code", one.kind),
        "hoursToAnswer": ("Decimal", round(one.took.total_seconds() / 3600, 1) if one.took is not None else None),
        "task": ("Reference", reference(f"Task/{one.task.id}")),
    }


def _reasons(kind: str, told: Iterable[offers.Answer]) -> Tree:
    """The refusals of one kind, and how often each was given."""
    words = [one.reason or "No reason given" for one in told if one.kind == kind]
    given = [{"name": "reason", "valueString": f"{word} ({words.count(word)})"} for word in dict.fromkeys(words)]
    return {"name": "refusals", "part": [{"name": "kind", "valueCode": kind}, *given]}
