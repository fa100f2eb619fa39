"""Emergency access: a patient with whom there is no care relationship is found, a reason is given, and the record opens for a while.

https://profiles.ihe.net/ITI/PCF. The rule is in fhircm/coordination/emergency.py, as for Patient/$break-glass.
"""

from __future__ import annotations

from datetime import datetime

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.coordination import emergency
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import FhirError, NotFound
from fhircm.web.noting import note_done, note_shown
from fhircm.web.pages import Problem, Visit, at
from fhircm.web.parts import seen_by
from fhircm.web.records import patient_line
from fhircm.web.rooms import in_room

_FIELDS = ("identifier", "birthdate", "reason")


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/emergency", in_room("emergency", ask))
    at(app, "/emergency", in_room("emergency", open_record), ["POST"])


async def ask(visit: Visit) -> Response:
    """Whose record, and why."""
    return await _form(visit, dict.fromkeys(_FIELDS, ""), {})


async def open_record(visit: Visit) -> Response:
    """Ask again whether this is meant, then open the record."""
    typed = {name: visit.field(name) for name in _FIELDS}
    if errors := _errors(typed):
        return await _form(visit, typed, errors)
    store = await seen_by(visit)
    length = store.principal.emergency
    assert length is not None
    if visit.field("sure") != "yes":
        return visit.page("emergency_sure.html", typed=typed, hours=length.total_seconds() / 3600)
    try:
        task = await emergency.open_record_of(store, None, typed["identifier"], typed["birthdate"], typed["reason"])
        patient = await store.read("Patient", task.tree["for"]["reference"].partition("/")[2])
    except NotFound:
        note_done(visit, "break-glass", "nobody was found", status=404)
        text = "Nobody has this number and this birth date, or more than one patient has. Check both."
        return await _form(visit, typed, {"identifier": text}, status=404)
    except InvalidValue as error:
        return await _form(visit, typed, {"reason": f"{error.issues[0].text}."})
    except FhirError as error:
        raise Problem("The record cannot be opened", f"{error.issues[0].text}.", error.status) from None
    note_done(visit, "break-glass", f"Task/{task.id}", patient=patient.id)
    note_shown(visit, "read", store.principal, f"Patient/{patient.id}", [patient])
    until = datetime.fromisoformat(task.tree["restriction"]["period"]["end"]).timestamp()
    return visit.page("emergency_open.html", patient=patient_line(patient.tree), until=until)


def _errors(typed: dict[str, str]) -> dict[str, str]:
    errors = {}
    if not typed["identifier"]:
        errors["identifier"] = "Type the number of the patient, such as the record number."
    try:
        datetime.strptime(typed["birthdate"], "%Y-%m-%d")
    except ValueError:
        errors["birthdate"] = "Type it as year-month-day, for example 1948-05-17."
    if len(" ".join(typed["reason"].split())) < emergency.SHORTEST:
        errors["reason"] = f"Say why, in {emergency.SHORTEST} characters or more: the privacy officer reads it."
    return errors


async def _form(visit: Visit, typed: dict[str, str], errors: dict[str, str], status: int = 422) -> Response:
    store = await seen_by(visit)
    length = store.principal.emergency
    hours = length.total_seconds() / 3600 if length else 0
    shown = dict.fromkeys(_FIELDS, "") | errors
    return visit.page("emergency.html", status=status if errors else 200, typed=typed, errors=shown, hours=hours)
