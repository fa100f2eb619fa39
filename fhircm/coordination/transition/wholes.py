"""The Tasks of a transition: one for the whole, under an id that follows from the stay and the pathway, and one for each step.

https://hl7.org/fhir/R4/task.html. What the hub called off bears a reason of its own code, so that it can be told from what a human
ended: the first comes again, under the next number, when it holds again; the second never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.coordination import protocol
from fhircm.coordination.build import concept, edit, instant, reference, stable_id
from fhircm.coordination.codes import codings, own
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.people import in_role, named, patients_value
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open, machine, mirrored
from fhircm.coordination.transition.stays import Stay
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Op, Stored

Tree = dict[str, Any]
ADMISSION, DISCHARGE, EMERGENCY = "stay-begun", "discharge", "emergency-visit"
EVENTS = (ADMISSION, DISCHARGE, EMERGENCY)
RECEIVED = "transition-document"
_OPEN = any_of(state for state in machine("Task").next if state not in machine("Task").terminal)


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest Task for the whole of a pathway of a stay, and the id that the next would have."""

    task: Stored | None
    vacant: str


def pathways(context: Context) -> list[Pathway]:
    """The pathways that stays and emergency visits start."""
    return [pathway for event in EVENTS for pathway in context.pathways_of(event)]


def whole_id(encounter: str, pathway: Pathway, number: int = 0) -> str:
    """The id of the Task for the whole; `number` counts how often it was called off before."""
    return stable_id("transition", encounter, pathway.url, str(number))


def first_ids(context: Context, encounters: Iterable[str]) -> list[str]:
    """The ids that the first Tasks for the whole of these stays have, if they were made."""
    return [whole_id(encounter, pathway) for encounter in encounters for pathway in pathways(context)]


async def latest(context: Context, stays: Iterable[Stay]) -> Mapping[tuple[str, str], Latest]:
    """The newest Task for the whole by stay and pathway (its url)."""
    keys = {(stay.id, pathway.url): pathway for stay in stays for pathway in pathways(context)}
    found = {key: Latest(None, whole_id(key[0], pathway)) for key, pathway in keys.items()}
    ahead, number = set(keys), 0
    while ahead:
        read = await context.store.read_many([("Task", found[key].vacant) for key in ahead])
        number += 1
        there = {key: task for key in ahead if (task := read.get(("Task", found[key].vacant)))}
        found |= {key: Latest(task, whole_id(key[0], keys[key], number)) for key, task in there.items()}
        ahead = set(there)
    return found


async def open_wholes(context: Context, patients: list[str]) -> list[Stored]:
    """The open transitions of a human."""
    codes = {token(*one) for pathway in pathways(context) for one in codings(pathway.whole.code)}
    if not codes:
        return []
    found = await context.find("Task", patients_value(patients), ("code", any_of(sorted(codes))), ("status", _OPEN))
    return [task for task in found if is_whole(context, task.tree) and stay_of(task.tree) is not None]


def is_whole(context: Context, task: Tree) -> bool:
    """Whether a Task of the hub stands for the whole of a transition."""
    pathway = context.pathway_of(task)
    if pathway is None or pathway.event not in (*EVENTS, RECEIVED) or mirrored(task):
        return False
    return task.get("instantiatesUri") == f"{pathway.url}#{pathway.whole.id}"


def stay_of(task: Tree) -> str | None:
    """The id of the Encounter that a transition is about."""
    return parse_reference(task.get("encounter", {}).get("reference", "")).id


async def steps_of(context: Context, whole: str) -> list[Stored]:
    """The Tasks that are a part of a whole."""
    return await context.find("Task", ("part-of", f"Task/{whole}"))


def step_id(task: Tree) -> str:
    """The id of the action that a Task is a step of."""
    return task.get("instantiatesUri", "").rpartition("#")[2]


def called_off(task: Tree) -> bool:
    """Whether the hub ended a Task, or took back that it was done."""
    return task["status"] in ("cancelled", "entered-in-error") and own(task.get("statusReason")) == "called-off"


async def call_off(context: Context, tasks: Iterable[Stored], why: str) -> list[Op]:
    """End what is open of these Tasks and of their steps; what somebody did stays."""
    ended = {"status": "cancelled", "statusReason": concept("called-off", why), "lastModified": instant(context.now())}
    operations: list[Op] = []
    for task in tasks:
        operations += [edit(one, **ended) for one in (*await steps_of(context, task.id), task) if is_open(one.tree)]
    return operations


async def task_of(
    context: Context, stay: Stay, patients: list[str], organization: Stored | None, pathway: Pathway, step: Step, period: Tree
) -> Tree:
    """A new Task for a step, or for the whole."""
    encounter = reference(f"Encounter/{stay.id}")
    about = {"patient": patients[0], "focus": encounter, "encounter": encounter, "period": period}
    by = {"owner": await _owner(context, step, patients, organization), "requester": context.coordinator}
    return protocol.task_of(pathway, step, **about, **by, at=context.now())


async def _owner(context: Context, step: Step, patients: list[str], organization: Stored | None) -> Tree:
    """Who has the role for this patient; else the house of the stay; else the coordinating one."""
    who = await in_role(context, step.role, patients, organization) if step.role else None
    if who is not None:
        return who
    return await named(context, organization) if organization else context.coordinator
