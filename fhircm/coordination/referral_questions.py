"""What a human must look at before it can move a referral: papers of somebody else, and papers that come when all is over.

http://hl7.org/fhir/us/bser
"""

from __future__ import annotations

from fhircm.coordination.build import concept, edit, for_a_human, instant, stable_id
from fhircm.coordination.context import Context
from fhircm.coordination.referral_record import Evidence
from fhircm.coordination.task_states import is_open
from fhircm.store.resources import Op, Stored


async def questions(context: Context, task: Stored, found: Evidence) -> list[Op]:
    """A Task for a human for each visit or report that the hub must not act on; taken back when it was cleared up."""
    operations: list[Op] = []
    asked = {one.id for one in found.strangers}
    why = "It bears the number of a referral, but is about a patient who is not known to be the same"
    for one in found.strangers:
        operations += await _ask(context, task, one, why)
    if task.tree["status"] not in ("completed", "draft") and not is_open(task.tree):
        late = [one for one in found.final if one.id not in asked]
        asked |= {one.id for one in late}
        for one in late:
            operations += await _ask(context, task, one, f"It answers a referral that has ended as '{task.tree['status']}'")
    for one in (*found.visits, *found.reports):
        if one.id not in asked:
            operations += await _take_back(context, task, one)
    return operations


def _question_id(task: Stored, one: Stored) -> str:
    return stable_id("referral-evidence", task.id, one.type, one.id)


async def _ask(context: Context, task: Stored, one: Stored, why: str) -> list[Op]:
    id = _question_id(task, one)
    if await context.get("Task", id) is not None:
        return []
    about = {"type": concept("closed-loop-referral"), "valueReference": {"reference": f"Task/{task.id}"}}
    return [
        for_a_human(
            id,
            "referral-evidence",
            why,
            owner=context.coordinator,
            focus=f"{one.type}/{one.id}",
            patient=task.tree.get("for"),
            at=context.now(),
            input=[about],
        )
    ]


async def _take_back(context: Context, task: Stored, one: Stored) -> list[Op]:
    asked = await context.get("Task", _question_id(task, one))
    if asked is None or not is_open(asked.tree):
        return []
    why = {"text": "The records were found to be of one person since"}
    return [edit(asked, status="cancelled", statusReason=why, lastModified=instant(context.now()))]
