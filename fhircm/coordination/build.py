"""New resources, built with the typed R4B classes and checked like any other write; and small edits of what exists, on its tree.

https://hl7.org/fhir/R4/task.html, https://hl7.org/fhir/R4/communication.html. Why new ones are typed and edits are not:
docs/decisions/typed-when-built-plain-when-edited.md. The classes are imported when first needed: that takes half a second.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fhircm.coordination.codes import BASE, NPI, displays
from fhircm.fhir.invariants import modified
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import Checked, check_tree
from fhircm.store.resources import Put, Stored

Tree = dict[str, Any]
_NAMESPACE = uuid5(NAMESPACE_URL, f"{BASE}/coordination")


def stable_id(*parts: str) -> str:
    """An id that follows from what it stands for: a replay, or a second worker, makes the same resource."""
    return str(uuid5(_NAMESPACE, "/".join(parts)))


def profile(name: str) -> Tree:
    """The meta of a resource that claims a profile of the hub (profiles/structure/)."""
    return {"profile": [f"{BASE}/StructureDefinition/{name}"]}


def instant(at: datetime) -> str:
    """A moment as FHIR writes it, to the second in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def concept(code: str, text: str | None = None) -> Tree:
    """A CodeableConcept of the hub's own code system."""
    return {"coding": [{"system": COORDINATION, "code": code, "display": displays()[code]}], "text": text or displays()[code]}


def reference(to: str, display: str | None = None) -> Tree:
    """A Reference."""
    return {"reference": to, "display": display} if display else {"reference": to}


@cache
def _class(type: str) -> Any:
    return getattr(import_module(f"fhir.resources.R4B.{type.lower()}"), type)


def made(tree: Tree) -> Checked:
    """A new resource: through its typed class, which refuses a wrong element, and through the check of every write.

    Members that are None or empty are left out. Raises Invalid for what FHIR or a profile refuses.
    """
    filled = _filled({name: value for name, value in tree.items() if value not in ([], {}, "")})
    _class(tree["resourceType"]).model_validate(filled)
    return check_tree(filled)


def _filled(node: Any) -> Any:
    """Without what is None, however deep: what the class would write, which takes it as long as to read."""
    if isinstance(node, dict):
        return {name: _filled(value) for name, value in node.items() if value is not None}
    return [_filled(one) for one in node] if isinstance(node, list | tuple) else node


def new(tree: Tree) -> Put:
    """Write a new resource, unless its id is taken."""
    return Put(made(tree), if_version=0)


def edit(stored: Stored, **members: Any) -> Put:
    """Write an edit of what was read: set top-level members, or remove them (None). `for_` stands for `for`.

    Refused by the store if somebody wrote it in between. A copy that does not keep what its partner claimed of it can be edited all the same.
    """
    tree = stored.tree
    for name, value in members.items():
        element = name.rstrip("_")
        if value is None:
            tree.pop(element, None)
        else:
            tree[element] = value
    if "lastModified" in members:
        tree["lastModified"] = modified(tree, members["lastModified"])
    return Put(check_tree(tree, by_guides=False), if_version=stored.version)


def coordinating_organization(name: str) -> Checked:
    """The Organization that runs the hub: it owns what is left for a human. Its id follows from its name."""
    id = stable_id("Organization", name)
    identifier = {"system": f"{BASE}/organization", "value": id}
    return made({"resourceType": "Organization", "id": id, "identifier": [identifier], "active": True, "name": name})


def for_a_human(
    id: str, code: str, reason: str, *, owner: Tree, focus: str, patient: Tree | None, at: datetime, **more: Any
) -> Put:
    """A Task for a human of the coordinating organisation; `reason` is plain words without clinical content."""
    return new(
        {
            "resourceType": "Task",
            "id": id,
            "meta": profile("coordination-task") if patient else None,
            "status": "ready",
            "intent": "order",
            "priority": "routine",
            "code": concept(code),
            "description": displays()[code],
            "focus": reference(focus),
            "for": patient,
            "authoredOn": instant(at),
            "lastModified": instant(at),
            "requester": owner,
            "owner": owner,
            "reasonCode": {"text": reason},
            **more,
        }
    )


def told_of_task(
    id: str, stored: Stored, topic: str, words: str, *, to: list[Tree], sender: Tree, at: datetime, priority: str | None = None
) -> Tree:
    """What somebody is told of a Task. It is on its way (in-progress) until somebody says that it arrived."""
    tree, task = stored.tree, reference(f"Task/{stored.id}")
    return {
        "resourceType": "Communication",
        "id": id,
        "partOf": [task],
        "status": "in-progress",
        "priority": priority or tree.get("priority"),
        "subject": tree.get("for"),
        "topic": concept(topic),
        "about": [task],
        "encounter": tree.get("encounter"),
        "sent": instant(at),
        "recipient": to,
        "sender": sender,
        "payload": [{"contentString": words}],
    }


def npi(organization: Tree) -> str | None:
    """The NPI of an Organization or Practitioner."""
    return next(
        (one["value"] for one in organization.get("identifier", []) if one.get("system") == NPI and one.get("value")), None
    )
