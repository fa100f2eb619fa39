"""Tasks for a human: what the hub cannot or must not do by itself, said in plain words.

https://hl7.org/fhir/R4/task.html. Such a Task is born `ready` and owned by the organisation that coordinates. The hub takes it back
(cancelled) when the reason is gone; a human starts and completes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fhircm.fhir.invariants import modified
from fhircm.fhir.systems import COORDINATION, HUB
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Put, Store, Stored

PROFILE = "https://fhircm.example/StructureDefinition/coordination-task"
OPEN = ("draft", "requested", "received", "accepted", "ready", "in-progress", "on-hold")
_AGAIN = 50  # how often one and the same reason may come and go


def stable_id(*parts: str) -> str:
    """An id that follows from what it stands for, so that two workers make one and the same resource."""
    return str(uuid5(uuid5(NAMESPACE_URL, HUB), "/".join(parts)))


def instant(at: datetime) -> str:
    """A time as FHIR writes it, to the second in UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def concept(code: str, display: str) -> dict[str, Any]:
    """A CodeableConcept of the hub's own code system."""
    return {"coding": [{"system": COORDINATION, "code": code, "display": display}], "text": display}


def task(
    id: str,
    code: str,
    display: str,
    reason: str,
    *,
    focus: str | None,
    patient: str | None,
    owner: str | None,
    at: datetime,
) -> dict[str, Any]:
    """The tree of a Task for a human. References are local; `reason` is plain words without clinical content."""
    members: dict[str, Any] = {
        "resourceType": "Task",
        "id": id,
        "meta": patient and {"profile": [PROFILE]},
        "status": "ready",
        "intent": "order",
        "priority": "routine",
        "code": concept(code, display),
        "description": display,
        "focus": focus and {"reference": focus},
        "for": patient and {"reference": patient},
        "authoredOn": instant(at),
        "lastModified": instant(at),
        "requester": owner and {"reference": owner},
        "owner": owner and {"reference": owner},
        "reasonCode": {"text": reason},
    }
    return {name: value for name, value in members.items() if value}


async def latest(store: Store, *parts: str) -> tuple[Stored | None, str]:
    """The newest Task for a reason, if any, and the id that the next one would have: a Task that ended is not opened again."""
    found: Stored | None = None
    for number in range(_AGAIN):
        id = stable_id(*parts, *([str(number)] if number else []))
        present = await store.read_many([("Task", id)])
        if ("Task", id) not in present:
            return found, id
        found = present["Task", id]
        if found.tree["status"] in OPEN:
            return found, id
    return found, id


async def tell(store: Store, parts: Sequence[str], code: str, display: str, reason: str, **about: Any) -> list[Put]:
    """Open a Task for a human unless one is open for this reason; an open one is told the new words."""
    found, id = await latest(store, *parts)
    if found is None or found.id != id:
        return [Put(check_tree(task(id, code, display, reason, at=store.clock(), **about)), if_version=0)]
    tree = found.tree
    if tree.get("reasonCode", {}).get("text") == reason:
        return []
    tree["reasonCode"] = {"text": reason}
    tree["lastModified"] = modified(tree, instant(store.clock()))
    return [Put(check_tree(tree), if_version=found.version)]


async def take_back(store: Store, parts: Sequence[str], why: str) -> list[Put]:
    """Cancel the Task for a reason that is gone, if one is open."""
    found, id = await latest(store, *parts)
    if found is None or found.id != id:
        return []
    tree = found.tree
    tree.update(status="cancelled", statusReason={"text": why}, lastModified=modified(tree, instant(store.clock())))
    return [Put(check_tree(tree), if_version=found.version)]
