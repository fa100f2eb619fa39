"""The performer's answer to a Task that it was asked to do. https://hl7.org/fhir/R4/task.html#statemachine"""

from __future__ import annotations

from typing import Any

from fhircm.coordination.acting import Act
from fhircm.coordination.build import edit, instant
from fhircm.store.operations import Put


async def accept(act: Act) -> list[Put]:
    """The owner agrees to do it."""
    return [_step(act, "accepted")]


async def decline(act: Act) -> list[Put]:
    """The owner will not do it, for a reason (`reason`, a CodeableConcept)."""
    return [_step(act, "rejected", statusReason=act.one("reason"))]


def _step(act: Act, status: str, **members: Any) -> Put:
    return edit(act.about, status=status, lastModified=instant(act.store.now), **members)
