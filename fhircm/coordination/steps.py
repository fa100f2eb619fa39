"""When a step of a referral is due, as the PlanDefinition says. https://hl7.org/fhir/R4/plandefinition.html"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.protocol import Step

Tree = dict[str, Any]
REFERRAL = "referral"  # the event whose pathways these are


def step(context: Context, code: str | None, priority: str) -> Step | None:
    """The step of a referral that is about this, at this priority."""
    found = (one for pathway in context.pathways_of(REFERRAL) for one in pathway.applicable({"priority": priority}))
    return next((one for one in found if own(one.code) == code), None)


def due(context: Context, code: str | None, priority: str, since: datetime, calendar: BusinessCalendar) -> Tree:
    """What a Task says of its step and of when it is due; nothing when no pathway has such a step."""
    for pathway in context.pathways_of(REFERRAL):
        for one in pathway.applicable({"priority": priority}):
            if own(one.code) == code and (end := pathway.due(one, since, calendar, {"priority": priority})):
                return {
                    "instantiatesCanonical": pathway.canonical,
                    "instantiatesUri": f"{pathway.url}#{one.id}",
                    "restriction": {"period": {"start": calendar.written(since), "end": calendar.written(end)}},
                }
    return {}
