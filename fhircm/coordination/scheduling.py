"""The appointments of a referral: made, moved, missed, or waited for. Each act writes the Appointment; the referral's Task follows it.

https://hl7.org/fhir/R4/appointment.html, http://hl7.org/fhir/us/bser (business status 5.1.1 to 5.1.3)
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination import referral_record
from fhircm.coordination.acting import Act
from fhircm.coordination.build import edit, new, stable_id
from fhircm.coordination.codes import identifiers
from fhircm.coordination.people import linked, patient_of
from fhircm.coordination.task_states import is_open, is_referral
from fhircm.coordination.times import moment
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.fhir.systems import REFERRAL
from fhircm.store.operations import Put
from fhircm.store.resources import Stored

Tree = dict[str, Any]
_TO_COME = ("proposed", "pending", "booked", "waitlist")
_MISSED = ("noshow", "cancelled")
_PLACES = {"location": "Location", "service": "HealthcareService", "practitioner": "Practitioner"}


async def schedule(act: Act) -> list[Put]:
    """An appointment of the referral (`start`, `end`; `location`, `service`, `practitioner` are References). Raises Conflict, Invalid."""
    there = await _appointments(act)
    booked = [one for one in there if one.tree["status"] in ("proposed", "pending", "booked")]
    if booked:
        raise Conflict(
            f"Appointment/{booked[-1].id} is there already: move it with $reschedule, or create an Appointment for another visit"
        )
    waiting = [one for one in there if one.tree["status"] == "waitlist"]
    if waiting:  # the place that was waited for
        return [
            edit(waiting[-1], status="booked", **_times(act), participant=_participants(act, waiting[-1].tree["participant"]))
        ]
    return [new(await _appointment(act, "booked"))]


async def reschedule(act: Act) -> list[Put]:
    """The appointment at another time: the one that is to come is moved; after one that was missed or called off there is a new one.

    Raises Conflict, Invalid.
    """
    there = await _appointments(act)
    last = next((one for states in (_TO_COME, _MISSED) for one in reversed(there) if one.tree["status"] in states), None)
    if last is None:
        raise Conflict("The referral has no appointment that could be moved: make one with $schedule")
    participant = _participants(act, last.tree["participant"])
    if last.tree["status"] in _MISSED:
        return [new(await _appointment(act, "booked") | {"participant": participant})]
    return [
        edit(
            last,
            status="booked",
            **_times(act),
            participant=participant,
            description=act.one("description", last.tree.get("description")),
        )
    ]


async def no_show(act: Act) -> list[Put]:
    """The patient did not come to the appointment (`reason`, a CodeableConcept). Raises Conflict when there is none that was to come."""
    there = [one for one in await _appointments(act) if one.tree["status"] in ("pending", "booked", "arrived", "checked-in")]
    if not there:
        raise Conflict(
            "The referral has no appointment that the patient could have missed: status pending, booked, arrived or checked-in"
        )
    return [edit(there[-1], status="noshow", cancelationReason=act.one("reason"))]


async def waitlist(act: Act) -> list[Put]:
    """The patient waits for a place (`reason`, a CodeableConcept): an appointment that is to come gives way to one on the waiting list."""
    there = await _appointments(act)
    if any(one.tree["status"] == "waitlist" for one in there):
        raise Conflict("The referral is on the waiting list already")
    gone = [edit(one, status="cancelled") for one in there if one.tree["status"] in ("proposed", "pending", "booked")]
    reason = act.one("reason")
    waiting = await _appointment(act, "waitlist", timed=False) | ({"reasonCode": [reason]} if reason else {})
    return [new(waiting), *gone]


async def _appointments(act: Act) -> list[Stored]:
    """Those of the referral, the one that changed last at the end. Raises Conflict, Invalid."""
    task = act.about.tree
    if not is_referral(task):
        raise Invalid(
            "Only a referral has appointments: a Task with the code fulfill, whose focus is a ServiceRequest", "Task.focus"
        )
    if not is_open(task):
        raise Conflict(f"The referral has ended as '{task['status']}'")
    patient = patient_of(task)
    if patient is None:
        raise Invalid("The referral says of no Patient of this server who is to come: Task.for is needed", "Task.for")
    order = await act.follow(task.get("focus"))
    patients = await linked(act, patient)
    found = [
        one
        for one in await referral_record.everything(act, task, order)
        if one.type == "Appointment" and patient_of(one.tree) in patients
    ]
    return sorted(
        (one for one in found if one.tree["status"] != "entered-in-error"),
        key=lambda one: (one.last_updated, one.version, one.id),
    )


async def _appointment(act: Act, status: str, *, timed: bool = True) -> Tree:
    task, number = act.about.tree, 0
    # The next number that is free: of two acts at once one is refused, and looks anew.
    while await act.get("Appointment", id := stable_id("appointment", act.about.id, str(number))) is not None:
        number += 1
    return {
        "resourceType": "Appointment",
        "id": id,
        "identifier": [{"system": REFERRAL, "value": one} for one in identifiers(task, REFERRAL)],
        "basedOn": [
            {name: value for name, value in task["focus"].items() if name in ("reference", "type", "identifier", "display")}
        ],
        "status": status,
        "description": act.one("description"),
        **(_times(act) if timed else {}),
        "participant": _participants(
            act, [{"actor": task["for"], "status": "accepted" if status == "booked" else "needs-action"}]
        ),
    }


def _times(act: Act) -> Tree:
    start, end = act.one("start"), act.one("end")
    first, last = moment(start), moment(end)
    if start is not None and end is not None and (first is None or last is None or last <= first):
        raise Invalid("'end' must be after 'start'", "Appointment.end")
    return {"start": start, "end": end}


def _participants(act: Act, there: list[Tree]) -> list[Tree]:
    """The participants, with the place and the people who are named: a new one of a type replaces the one before."""
    named = {type: act.one(name) for name, type in _PLACES.items() if act.one(name)}
    for name, type in _PLACES.items():
        if type in named and not named[type].get("reference", "").startswith(f"{type}/"):
            raise Invalid(
                f"'{name}' is a Reference to a {type} of this server, such as {type}/123",
                f"Parameters.parameter.where(name='{name}')",
            )
    kept = [one for one in there if one.get("actor", {}).get("reference", "").split("/")[0] not in named]
    return [*kept, *({"actor": one, "status": "accepted"} for one in named.values())]
