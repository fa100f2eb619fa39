"""$caseload and $hand-over-caseload: who carries how much at an organisation, and the work of one person passed on to another.

fhircm/coordination/caseload.py, docs/explanation/claims-and-caseload.md
"""

from __future__ import annotations

from fhircm.access.roles import roles, unknown
from fhircm.coordination import caseload as carried
from fhircm.coordination.build import reference
from fhircm.coordination.context import Record
from fhircm.coordination.handing_on import handed_on
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import Forbidden
from fhircm.operations.call import Answer, Call, parameters


async def caseload(call: Call) -> Answer:
    """A parameter for each person in the role, the least loaded first. Raises Forbidden for who is not of the organisation."""
    place, codes = f"Organization/{call.id}", call.all("role") or sorted(roles())
    if wrong := unknown(codes):
        raise InvalidValue(f"{', '.join(wrong)}: no such role. There are: {', '.join(roles())}")
    await call.store.read("Organization", str(call.id))
    principal = call.store.principal
    principal.require("s", "Task")
    if not (principal.sees_everything or principal.actor.is_(reference(place))):
        raise Forbidden("Who carries how much at an organisation is told to those of it")
    # Only numbers are told, and they count everything: half of somebody's work would tell nothing.
    listed = await carried.loads(Record(call.store.store), codes, place)
    return parameters(*({"name": "person", "part": _parts(one)} for one in listed))


def _parts(one: carried.Load) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [
        {"name": "who", "valueReference": one.worker.who},
        {"name": "tasks", "valueUnsignedInt": one.tasks},
        {"name": "points", "valueUnsignedInt": one.points},
        {"name": "capacity", "valueUnsignedInt": one.worker.capacity},
    ]
    return [*parts, {"name": "away-until", "valueString": one.worker.away}] if one.worker.away else parts


async def hand_over_caseload(call: Call) -> Answer:
    """How many Tasks were handed over. Raises what the writes raise; what was handed over before that stays so."""
    count = await handed_on(call.store, str(call.id), call.required("to"), call.required("note"))
    return parameters({"name": "handed-over", "valueUnsignedInt": count})
