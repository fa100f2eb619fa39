"""$break-glass: emergency access to the record of a patient with whom there is no care relationship.

It is asked for with a reason, opens the record for a time that the role says, overrides consents and labels for that time, and is told to the
privacy officer as a Task, which is also what opens the record. https://profiles.ihe.net/ITI/PCF and docs/explanation/access.md
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fhircm.coordination import build
from fhircm.coordination.codes import BASE
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import Forbidden, NotFound
from fhircm.operations.call import Answer, Call
from fhircm.store.stored import instant

PRIVACY_OFFICER = {"coding": [{"system": f"{BASE}/role", "code": "privacy-officer"}], "text": "Privacy officer"}
_SHORTEST = 10  # characters of a reason


async def break_glass(call: Call) -> Answer:
    """The Task of the emergency access. Raises Forbidden for those who may not ask, NotFound when the patient is not known."""
    principal = call.store.principal
    length = principal.emergency
    if length is None or principal.user is None:
        raise Forbidden("Emergency access is for people in a role that has it, such as clinician or nurse")
    reason = " ".join(call.required("reason").split())
    if len(reason) < _SHORTEST:
        raise InvalidValue(f"'reason' takes {_SHORTEST} characters or more: the privacy officer reads it")
    now = call.store.now
    for patient in [call.id] if call.id else await call.store.identified(*_identity(call)):
        tree = _task(f"Patient/{patient}", principal.user, reason, instant(now), instant(now + length))
        stored = await call.store.open_in_emergency([("Patient", patient)], build.new(tree))
        if stored is not None:
            return Answer(stored.body, 201, {"Location": f"{call.base_url}/Task/{stored.id}/_history/{stored.version}"})
    raise NotFound("There is no such patient, or not exactly one")


def _identity(call: Call) -> tuple[str, str, str]:
    """By what a patient is recognised of whom the caller has no id: an identifier, and the date of birth to be sure."""
    identifier, born = call.required("identifier"), call.required("birthDate")
    if not identifier.get("system") or not identifier.get("value"):
        raise InvalidValue("'identifier' takes an Identifier with a system and a value")
    return identifier["system"], identifier["value"], born


def _task(patient: str, who: str, reason: str, start: str, end: str) -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "id": str(uuid4()),
        "status": "requested",
        "intent": "order",
        "priority": "urgent",
        "code": build.concept("break-glass"),
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
