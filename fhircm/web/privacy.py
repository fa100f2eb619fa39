"""For the privacy officer: emergency accesses and their review, the audit trail of a patient or a person, the disclosure report.

https://profiles.ihe.net/ITI/BALP and https://www.ecfr.gov/current/title-45/section-164.528. Who is looked for stands in bodies, never in addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.disclosures import Disclosure, as_csv, disclosures, names_of, trail
from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination import emergency
from fhircm.coordination.task_states import is_open
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import Conflict, FhirError, Forbidden, Gone, IllegalTransition, NotFound, VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.store.stored import Stored
from fhircm.web.console.asking import found_in
from fhircm.web.noting import note_done, note_shown
from fhircm.web.pages import Problem, Visit, at
from fhircm.web.parts import escaped, opened, parts, sealed, seen_by
from fhircm.web.records import Line, patient_line
from fhircm.web.rooms import in_room
from fhircm.web.tasks import STATUS

_DONE = {"accepted": "You review it from now on.", "reviewed": "The review is done."}
_REFERENCE = re.compile(r"(Patient|Practitioner|PractitionerRole|RelatedPerson|Person)/[A-Za-z0-9\-.]{1,64}")
_FOUND = 20


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    for path, handler, method in (
        ("/privacy", waiting, "GET"),
        ("/privacy", waiting, "POST"),
        ("/privacy/reviewed", reviewed, "GET"),
        ("/privacy/reviewed", reviewed, "POST"),
        ("/privacy/emergency", show, "GET"),
        ("/privacy/emergency/accept", accept, "POST"),
        ("/privacy/emergency/review", review, "POST"),
        ("/privacy/trail", ask_trail, "GET"),
        ("/privacy/trail", show_trail, "POST"),
        ("/privacy/disclosures", report, "POST"),
    ):
        at(app, path, in_room("privacy", handler), [method])


@dataclass(frozen=True, slots=True)
class Emergency:
    """An emergency access in words. `began` and `until` are seconds since the epoch."""

    id: str
    who: str
    whom: str
    began: float
    until: float
    why: str
    status: str
    reviewer: str
    notes: list[str]
    open: bool
    requester: str
    patient: str


# --- emergency accesses ---


async def waiting(visit: Visit) -> Response:
    """Those that wait for a review, the newest first."""
    return await _list(visit, reviewed=False)


async def reviewed(visit: Visit) -> Response:
    """Those that had one."""
    return await _list(visit, reviewed=True)


async def show(visit: Visit) -> Response:
    """One of them, and what can be done with it."""
    return await _show(visit, visit.asked("task"))


async def accept(visit: Visit) -> Response:
    """This officer reviews it."""
    store, id = await seen_by(visit), visit.field("task")
    try:
        written = await emergency.accept(store, id, visit.login.name)
    except (NotFound, Gone):
        raise _gone() from None
    except (IllegalTransition, VersionConflict, Conflict):
        raise Problem("Somebody else was there first", "Go back and load the page again.", 409) from None
    note_shown(visit, "update", store.principal, f"Task/{id}", [written])
    return visit.go(f"/privacy/emergency?task={written.id}&done=accepted")


async def review(visit: Visit) -> Response:
    """The review is done, with what was found."""
    store, id, found = await seen_by(visit), visit.field("task"), visit.field("found")
    try:
        written = await emergency.review(store, id, visit.login.name, found)
    except InvalidValue as error:
        return await _show(visit, id, f"{error.issues[0].text}.", found)
    except (NotFound, Gone):
        raise _gone() from None
    except (IllegalTransition, VersionConflict, Conflict):
        raise Problem("Somebody else was there first", "Go back and load the page again.", 409) from None
    note_shown(visit, "update", store.principal, f"Task/{id}", [written])
    return visit.go(f"/privacy/emergency?task={written.id}&done=reviewed")


async def _list(visit: Visit, *, reviewed: bool) -> Response:
    store, page = await seen_by(visit), visit.field("page")
    found = await emergency.emergencies(store, reviewed=reviewed, cursor=opened(visit, page) if page else None)
    note_shown(visit, "search-type", store.principal, "Task", found.matches, query="code=break-glass")
    return visit.page(
        "privacy_emergencies.html",
        reviewed=reviewed,
        lines=await _told(store, found.matches),
        onward=sealed(visit, found.next) if found.next else "",
        further=bool(page),
        now=store.now.timestamp(),
    )


async def _show(visit: Visit, id: str, error: str = "", found: str = "") -> Response:
    store = await seen_by(visit)
    try:
        task = await emergency.emergency(store, id)
    except (NotFound, Gone):
        raise _gone() from None
    note_shown(visit, "read", store.principal, f"Task/{task.id}", [task])
    (line,) = await _told(store, [task])
    mine = (task.tree.get("owner") or {}).get("reference") == visit.login.fhir_user
    done = _DONE.get(visit.asked("done"), "")
    day = visit.pages.iso_day(line.began)
    return visit.page(
        "privacy_emergency.html",
        status=422 if error else 200,
        told=done,
        line=line,
        mine=mine,
        error=error,
        found=found,
        day=day,
        now=store.now.timestamp(),
    )


async def _told(store: GuardedStore, tasks: Iterable[Stored]) -> list[Emergency]:
    trees = [one.tree for one in tasks]
    names = await _names(store, [one[part]["reference"] for one in trees for part in ("requester", "for")])
    found = []
    for tree in trees:
        who, whom = tree["requester"]["reference"], tree["for"]["reference"]
        period = tree["restriction"]["period"]
        owner = tree.get("owner") or {}
        found.append(
            Emergency(
                tree["id"],
                names.get(who) or who,
                names.get(whom) or whom,
                _seconds(period["start"]),
                _seconds(period["end"]),
                tree["reasonCode"]["text"],
                STATUS.get(tree["status"], tree["status"]),
                str(owner.get("display") or owner.get("reference") or ""),
                [str(one.get("text", "")) for one in tree.get("note") or []],
                is_open(tree),
                who,
                whom,
            )
        )
    return found


# --- the audit trail ---


async def ask_trail(visit: Visit) -> Response:
    """Whose trail?"""
    return _trail_form(visit, {"kind": "patient", "find": "", "since": "", "until": ""}, {})


async def show_trail(visit: Visit) -> Response:
    """The trail of somebody, or (when several are meant) who it could be."""
    typed = {name: visit.field(name) for name in ("kind", "find", "since", "until")}
    since, until, errors = _period(visit, typed)
    who = visit.field("who")
    if not who and not typed["find"]:
        errors["find"] = "Type a name or a number."
    if errors:
        return _trail_form(visit, typed, errors)
    store = await seen_by(visit)
    if not _REFERENCE.fullmatch(who):
        found = await (_patients(visit, store, typed["find"]) if typed["kind"] == "patient" else _people(visit, typed["find"]))
        if len(found) != 1:
            none = "" if found else "Nobody is found by this. Try fewer letters, or the whole number."
            return _trail_form(visit, typed, {"find": none}, choices=found)
        who = found[0].id
    _require_all(store)
    of_patient = who.startswith("Patient/")
    page = visit.field("page")
    asked = [("patient" if of_patient else "agent", who)]
    events, onward = await trail(store.store, asked, since, until, opened(visit, page) if page else None)
    names = await _names(store, [who, *_patients_of(events)])
    note_done(visit, "audit-trail", who, patient=who.partition("/")[2] if of_patient else None)
    rows = [
        (
            visit.pages.minute(_seconds(one.at)),
            one.who or one.app,
            ", ".join(part for part in (one.app if one.who else "", one.organization) if part),
            one.what,
            ", ".join(names.get(ref, ref) for ref in _patients_of([one])) if not of_patient else one.purpose,
            "yes" if one.tree.get("outcome") == "0" else f"no ({one.tree.get('outcomeDesc', 'failed')})",
            one.address,
        )
        for one in events
    ]
    columns = ["When", "Who", "With, of", "What", "For" if of_patient else "Of patients", "Let in", "From"]
    return visit.page(
        "privacy_trail.html",
        typed=typed,
        who=who,
        name=names.get(who) or who,
        of_patient=of_patient,
        columns=columns,
        rows=rows,
        onward=sealed(visit, onward) if onward else "",
        further=bool(page),
    )


async def report(visit: Visit) -> Response:
    """Who was shown what of a patient's record, as a table for a spreadsheet."""
    typed = {name: visit.field(name) for name in ("since", "until")}
    since, until, errors = _period(visit, typed)
    kind, _, patient = visit.field("who").partition("/")
    if errors or kind != "Patient" or not _REFERENCE.fullmatch(f"Patient/{patient}"):
        raise Problem("This report cannot be made", "Go back and look for the patient again.", 422)
    store = await seen_by(visit)
    _require_all(store)
    listed = await disclosures(store.store, patient, since, until)
    note_done(visit, "disclosure-report", f"Patient/{patient}", patient=patient)
    headers = {
        "Content-Disposition": f'attachment; filename="disclosures-{patient}.csv"',
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(as_csv(listed), media_type="text/csv; charset=utf-8", headers=headers)


def _require_all(store: GuardedStore) -> None:
    """The trail and the report are made of every event, so they are for who sees them all. Raises Forbidden."""
    store.principal.require("s", "AuditEvent")
    if not store.principal.sees_everything:
        raise Forbidden("The audit trail is for those who see all of it")


def _trail_form(visit: Visit, typed: dict[str, str], errors: dict[str, str], choices: list[Line] | None = None) -> Response:
    shown = {"find": "", "since": "", "until": ""} | errors
    status = 422 if any(errors.values()) else 200
    return visit.page("privacy_ask.html", status=status, typed=typed, errors=shown, choices=choices or [])


def _period(visit: Visit, typed: dict[str, str]) -> tuple[datetime | None, datetime | None, dict[str, str]]:
    """From the begin of the first day to the end of the last, and what is wrong with what was typed."""
    found: dict[str, datetime | None] = {}
    errors = {}
    for name in ("since", "until"):
        try:
            found[name] = visit.pages.begins(typed[name]) if typed[name] else None
        except ValueError:
            found[name] = None
            errors[name] = "Type it as year-month-day, for example 2026-11-30."
    until = found["until"]
    return found["since"], until + timedelta(days=1) if until else None, errors


async def _patients(visit: Visit, store: GuardedStore, text: str) -> list[Line]:
    """Patients by name, number or reference, each known by its reference."""
    kind, _, id = text.partition("/")
    ways = [("_id", id)] if kind == "Patient" and id else [("identifier", escaped(text)), ("name", escaped(text))]
    found: dict[str, Stored] = {}
    for way in ways:
        try:
            page = await store.search(parse_query("Patient", [way, ("_sort", "family"), ("_count", str(_FOUND))]))
        except Forbidden:
            raise
        except FhirError:
            continue
        found |= {one.id: one for one in page.matches}
    note_shown(visit, "search-type", store.principal, "Patient", found.values())
    lines = [patient_line(one.tree) for one in found.values()]
    return [Line(f"Patient/{one.id}", one.title, one.facts) for one in lines]


async def _people(visit: Visit, text: str) -> list[Line]:
    """People who may sign in, by name; or a reference as it is."""
    if _REFERENCE.fullmatch(text):
        return [Line(text, text, [])]
    found = [one for one in await parts(visit).logins.all() if found_in(text, one.name, one.username, one.fhir_user)]
    return [Line(one.fhir_user, one.name, [f"signs in as {one.username}", one.fhir_user]) for one in found[:_FOUND]]


def _patients_of(events: Iterable[Disclosure]) -> list[str]:
    entities = [entity for one in events for entity in one.tree.get("entity") or []]
    found = [entity["what"]["reference"] for entity in entities if (entity.get("role") or {}).get("code") == "1"]
    return list(dict.fromkeys(found))


async def _names(store: GuardedStore, references: Iterable[str]) -> dict[str, str]:
    """What these are called, as far as the officer may see it."""
    seen = [one for one in references if store.principal.may("r", one.partition("/")[0])]
    return await names_of(store.store, seen)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _gone() -> Problem:
    return Problem("There is no such emergency access", "Go back and load the page again.", 404)
