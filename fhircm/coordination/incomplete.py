"""A referral whose package is not complete: it waits as a draft, and somebody on the requester's side is told what is missing.

http://hl7.org/fhir/us/sdoh-clinicalcare (content-rich referral). It is sent when nothing is missing any more, or when that human says that
it may go as it is (their Task completed), or sends it (the referral's Task set to requested).
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination import referral_times
from fhircm.coordination.build import concept, edit, for_a_human, instant, stable_id
from fhircm.coordination.context import Context
from fhircm.coordination.package import Package, packed
from fhircm.coordination.task_states import business, is_open
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
CODE = "complete-package"


def question_id(task: str) -> str:
    """The id of the Task that asks for what is missing."""
    return stable_id(CODE, task)


async def ask(context: Context, task: Tree, carried: Package) -> list[Op]:
    """The question for what is missing; nothing when nothing is."""
    if not carried.missing or await context.get("Task", question_id(task["id"])) is not None:
        return []
    about = {"type": concept("closed-loop-referral"), "valueReference": {"reference": f"Task/{task['id']}"}}
    priority = task.get("priority", "routine")
    return [
        for_a_human(
            question_id(task["id"]),
            CODE,
            _words(carried),
            owner=task.get("requester") or context.coordinator,
            focus=task["focus"]["reference"],
            patient=task["for"],
            at=context.now(),
            priority=priority,
            input=[about],
            **referral_times.due(context, CODE, priority, context.now(), context.calendar),
        )
    ]


def _words(carried: Package) -> str:
    return f"The referral is not sent yet. It lacks {'; and '.join(carried.missing)}"


async def go_on(context: Context, task: Stored, order: Tree | None, members: Tree) -> tuple[Tree, list[Op]]:
    """What to change in a referral's Task for its package, beside what is changed anyway; and in the question that was asked."""
    tree, now = task.tree, instant(context.now())
    asked = await context.get("Task", question_id(task.id))
    if order is None or not is_open(tree):
        return {}, _closed(asked, "The referral is closed", now)
    carried = await packed(context, order, tree, context.now())
    added = _added(tree, carried) if "owner" in tree else {}
    if tree["status"] != "draft":
        return added, _closed(asked, "The referral was sent", now)
    if asked is None:  # somebody prepares it, and sends it
        return {}, []
    if "status" in members:
        return added, []
    if carried.missing and is_open(asked.tree):
        told = _words(carried)
        again = [edit(asked, reasonCode={"text": told}, lastModified=now)] if asked.tree["reasonCode"]["text"] != told else []
        return {}, again
    if carried.missing and asked.tree["status"] != "completed":
        return {}, []
    sent = {"status": "requested", "businessStatus": business().concept("2.0"), **added}
    return sent, _closed(asked, "Nothing is missing any more", now)


def _closed(asked: Stored | None, why: str, now: str) -> list[Op]:
    if asked is None or not is_open(asked.tree):
        return []
    return [edit(asked, status="cancelled", statusReason={"text": why}, lastModified=now)]


def _added(task: Tree, carried: Package) -> Tree:
    """The content that is not among the inputs yet."""
    there = task.get("input", [])
    known = {one.get("valueReference", {}).get("reference") for one in there}
    fresh = [one for one in carried.inputs if one["valueReference"]["reference"] not in known]
    return {"input": [*there, *fresh]} if fresh else {}
