"""An attempt to reach a patient after a discharge or emergency visit, written down. https://hl7.org/fhir/R4/communication.html"""

from __future__ import annotations

from typing import Any

from fhircm.coordination.acting import Act
from fhircm.coordination.build import concept, edit, instant, new, reference, stable_id
from fhircm.fhir.outcome import Invalid
from fhircm.store.operations import Put

_MODE = "http://terminology.hl7.org/CodeSystem/v3-ParticipationMode"


async def record_contact(act: Act) -> list[Put]:
    """Write the Communication that tells of an attempt: `reached`, and `sent`, `medium` and `note`. Raises Invalid for a Task without a patient."""
    task, now = act.about, instant(act.store.now)
    if "for" not in task.tree:
        raise Invalid("The Task says of nobody whom to reach: Task.for is needed", "Task.for")
    reached, sent = act.one("reached"), act.one("sent", now)
    note, medium = act.one("note"), act.one("medium")
    tree: dict[str, Any] = {
        "resourceType": "Communication",
        "id": stable_id("contact-attempt", task.id, sent),
        "basedOn": [reference(f"Task/{task.id}")],
        "status": "completed" if reached else "not-done",
        "statusReason": None if reached else {"text": "Nobody was reached"},
        "topic": concept("contact-attempt"),
        "medium": [{"coding": [{"system": _MODE, "code": medium}]}] if medium else None,
        "subject": task.tree["for"],
        "encounter": task.tree.get("encounter"),
        "sent": sent,
        "note": [{"text": note}] if note else None,
    }
    there = await act.get("Communication", tree["id"])
    if there is None:
        return [new(tree)]
    # The same attempt told again, perhaps otherwise: somebody called back.
    same = there.tree["status"] == tree["status"]
    return [] if same else [edit(there, status=tree["status"], statusReason=tree["statusReason"], note=tree["note"])]
