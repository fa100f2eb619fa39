"""$break-glass: emergency access to the record of a patient with whom there is no care relationship. fhircm/coordination/emergency.py"""

from __future__ import annotations

from fhircm.coordination import emergency
from fhircm.fhir.conditions import InvalidValue
from fhircm.operations.call import Answer, Call


async def break_glass(call: Call) -> Answer:
    """The Task of the emergency access. Raises Forbidden for those who may not ask, NotFound when the patient is not known."""
    reason = call.required("reason")
    if call.id:
        task = await emergency.open_record(call.store, call.id, reason)
    else:
        task = await emergency.open_record_of(call.store, *_identity(call), reason)
    return Answer(task.body, 201, {"Location": f"{call.base_url}/Task/{task.id}/_history/{task.version}"})


def _identity(call: Call) -> tuple[str, str, str]:
    """By what a patient is recognised of whom the caller has no id: an identifier, and the date of birth to be sure."""
    if call.store.principal.emergency is None:
        return "", "", ""  # refused, whatever is asked for
    identifier, born = call.required("identifier"), call.required("birthDate")
    if not identifier.get("system") or not identifier.get("value"):
        raise InvalidValue("'identifier' takes an Identifier with a system and a value")
    return identifier["system"], identifier["value"], born
