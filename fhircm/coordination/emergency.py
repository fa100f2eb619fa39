"""Emergency access to the record of a patient with whom there is no care relationship, and its review by the privacy officer.

It is asked for with a reason, opens the record for a time that the role says, overrides consents and labels for that time, and is told to the
privacy officer as a Task, which is also what opens the record. https://profiles.ihe.net/ITI/PCF and docs/explanation/access.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination import build, task_states
from fhircm.coordination.codes import own
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import Forbidden, NotFound
from fhircm.fhir.query import Cursor, parse_query
from fhircm.fhir.systems import ROLE
from fhircm.store.resources import Stored
from fhircm.store.search import Page
from fhircm.store.stored import instant

PRIVACY_OFFICER = {"coding": [{"system": ROLE, "code": "privacy-officer"}], "text": "Privacy officer"}
CODE = "break-glass"
SHORTEST = 10  # characters of a reason, and of what a review found
OPEN = ("requested", "received", "accepted", "ready", "in-progress", "on-hold")


async def open_record(store: GuardedStore, patient: str, reason: str) -> Stored:
    """The Task that opens the record of a patient, by id. Raises Forbidden for those who may not ask, InvalidValue, NotFound."""
    return await _opened(store, [patient], *_asked(store, reason))


async def open_record_of(store: GuardedStore, system: str | None, value: str, born: str, reason: str) -> Stored:
    """The same for a patient whom the caller has no id of: an identifier, and the date of birth to be sure. Raises the same."""
    who, why = _asked(store, reason)
    return await _opened(store, await store.identified(system, value, born), who, why)


def _asked(store: GuardedStore, reason: str) -> tuple[str, str]:
    principal = store.principal
    if principal.emergency is None or principal.user is None:
        raise Forbidden("Emergency access is for people in a role that has it, such as clinician or nurse")
    reason = " ".join(reason.split())
    if len(reason) < SHORTEST:
        raise InvalidValue(f"'reason' takes {SHORTEST} characters or more: the privacy officer reads it")
    return principal.user, reason


async def _opened(store: GuardedStore, patients: Sequence[str], who: str, reason: str) -> Stored:
    now, length = store.now, store.principal.emergency
    assert length is not None
    for patient in patients:
        tree = _task(f"Patient/{patient}", who, reason, instant(now), instant(now + length))
        stored = await store.open_in_emergency([("Patient", patient)], build.new(tree))
        if stored is not None:
            return stored
    raise NotFound("There is no such patient, or not exactly one")


def _task(patient: str, who: str, reason: str, start: str, end: str) -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "id": str(uuid4()),
        "status": "requested",
        "intent": "order",
        "priority": "urgent",
        "code": build.concept(CODE),
        "description": "Review this emergency access",
        "focus": {"reference": patient},
        "for": {"reference": patient},
        "authoredOn": start,
        "lastModified": start,
        "requester": {"reference": who},
        "performerType": [PRIVACY_OFFICER],
        "reasonCode": {"text": reason},
        "restriction": {"period": {"start": start, "end": end}},
    }


# --- the review --------------------------------------------------------------------------------------------------------------


async def emergencies(store: GuardedStore, *, reviewed: bool = False, count: int = 25, cursor: Cursor | None = None) -> Page:
    """A page of emergency accesses, the newest first: those that wait for a review, or those that had one. Raises Forbidden."""
    status = "completed" if reviewed else ",".join(OPEN)
    asked = [("code", f"{build.concept(CODE)['coding'][0]['system']}|{CODE}"), ("status", status)]
    query = parse_query("Task", [*asked, ("_sort", "-authored-on"), ("_count", str(count))])
    return await store.search(replace(query, cursor=cursor))


async def emergency(store: GuardedStore, id: str) -> Stored:
    """One of them. Raises Forbidden, NotFound, Gone."""
    task = await store.read("Task", id)
    if own(task.tree.get("code")) != CODE:
        raise NotFound("There is no such emergency access")
    return task


async def accept(store: GuardedStore, id: str, officer: str) -> Stored:
    """The officer reviews it from now on. Raises Forbidden, NotFound, Gone, IllegalTransition, VersionConflict."""
    return await _step(
        store, await emergency(store, id), "accepted", owner={"reference": store.principal.user, "display": officer}
    )


async def review(store: GuardedStore, id: str, officer: str, found: str) -> Stored:
    """The review is done, with what was found. Raises InvalidValue, and what `accept` raises."""
    found = " ".join(found.split())
    if len(found) < SHORTEST:
        raise InvalidValue(f"A review says in {SHORTEST} characters or more what was found")
    task = await emergency(store, id)
    machine, at = task_states.machine("Task"), task.tree["status"]
    if not task_states.is_open(task.tree) or not machine.reaches(at, "completed"):
        raise machine.refuse(at)
    who = {"reference": store.principal.user, "display": officer}
    for status in [one for one in machine.path(at, "completed") or [] if one != "completed"]:
        task = await _step(store, task, status, owner=who)
    note = {"authorReference": who, "time": instant(store.now), "text": found}
    return await _step(store, task, "completed", owner=who, note=[*task.tree.get("note", []), note])


async def _step(store: GuardedStore, task: Stored, status: str, **members: Any) -> Stored:
    put = build.edit(task, status=status, lastModified=instant(store.now), **members)
    return (await store.transact([put], [("u", "Task")]))[0]
