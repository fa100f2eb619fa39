"""An app asks for access: the person signs in, chooses a patient where one is needed, and decides.

https://hl7.org/fhir/smart-app-launch/app-launch.html. Names and birth dates of patients are in bodies only, never in addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.audit_journal import AuditUnavailable
from fhircm.fhir.outcome import FhirError, Forbidden, Gone, NotFound
from fhircm.fhir.query import Query, parse_query
from fhircm.smart.authorize import Pending, RequestGone
from fhircm.smart.clients import Client, find
from fhircm.web.noting import note, note_shown
from fhircm.web.pages import Problem, Visit, at, sources
from fhircm.web.parts import opened, parts, sealed, seen_by
from fhircm.web.records import encounter_line, patient_line
from fhircm.web.scope_words import by_choice, told

if TYPE_CHECKING:
    from fhircm.store.search import Page

_PAGE = 10  # patients
_VISITS = 20
_CHOICES = 5  # requests of apps whose choices a session remembers
_SEARCHED = {"name": "name", "birthdate": "birth date", "identifier": "number"}
_FOR_RECORDS = ("patient/", "user/")


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/oauth/authorize/{id}", show, signed_in=False)
    at(app, "/oauth/authorize/{id}/search", search, ["POST"])
    at(app, "/oauth/authorize/{id}/patient", choose_patient, ["POST"])
    at(app, "/oauth/authorize/{id}/encounter", choose_encounter, ["POST"])
    at(app, "/oauth/authorize/{id}/decision", decide, ["POST"])


@dataclass(frozen=True, slots=True)
class Step:
    """A request of an app that waits for the person of a visit, and what was chosen for it so far."""

    pending: Pending
    client: Client
    chosen: Mapping[str, str]

    @property
    def path(self) -> str:
        return f"/oauth/authorize/{self.pending.id}"

    @property
    def leads_to(self) -> list[str]:
        return sources(self.pending.redirect_uri)


async def show(visit: Visit) -> Response:
    """The next step: to sign in, to choose, to decide; or back to the app when nothing is left to ask."""
    step = await _step(visit)
    pending, silent = step.pending, "none" in step.pending.prompt
    if visit.session is None or pending.needs_sign_in(visit.session.signed_in):
        return await _refuse(visit, step, "login_required") if silent else visit.go(f"/signin?next={quote(step.path, safe='')}")
    if pending.login not in (None, visit.login.id):
        return await _refuse(visit, step, "access_denied") if silent else _somebody_else(visit, step)
    if missing := _missing(visit, step):
        if silent:
            return await _refuse(visit, step, "interaction_required")
        return await (_patients(visit, step, {}) if missing == "patient" else _encounters(visit, step))
    if await _agreed_before(visit, step):
        return await _complete(visit, step, pending.scopes)
    return await _refuse(visit, step, "consent_required") if silent else await _consent(visit, step)


async def search(visit: Visit) -> Response:
    """Patients by name, birth date and number, and further pages of them."""
    step = await _mine(visit)
    return await _patients(visit, step, {name: visit.field(name) for name in _SEARCHED}, visit.field("page"))


async def choose_patient(visit: Visit) -> Response:
    """A patient was chosen: one whom the person may see."""
    step = await _mine(visit)
    id = visit.field("patient")
    await _readable(visit, "Patient", id)
    await _remember(visit, step, {"patient": id})
    return visit.go(step.path)


async def choose_encounter(visit: Visit) -> Response:
    """A visit was chosen, or none."""
    step = await _mine(visit)
    id = visit.field("encounter")
    if id:
        encounter = await _readable(visit, "Encounter", id)
        if (encounter.get("subject") or {}).get("reference") != f"Patient/{_patient(visit, step)}":
            raise Problem("This is a visit of somebody else", "Go back and choose again.")
    await _remember(visit, step, {**step.chosen, "encounter": id})
    return visit.go(step.path)


async def decide(visit: Visit) -> Response:
    """The person let the app in, or did not."""
    step = await _mine(visit)
    if visit.field("decision") == "other":
        await _remember(visit, step, {})
        return visit.go(step.path)
    if visit.field("decision") != "allow":
        note(visit, "consent", visit.login, status=403, client=step.client.id)
        return await _refuse(visit, step, "access_denied")
    if _missing(visit, step):
        return visit.go(step.path)
    ticked = frozenset(visit.form.get("scope", []))
    agreed = [scope for scope in step.pending.scopes if scope in ticked or not by_choice(scope)]
    records = [scope for scope in step.pending.scopes if scope.startswith(_FOR_RECORDS)]
    if records and not set(records) & set(agreed):
        error = "Leave at least one of these ticked, or choose “Do not allow”."
        return await _consent(visit, step, ticked, error)
    answer = await _complete(visit, step, agreed)
    note(visit, "consent", visit.login, client=step.client.id, patient=_patient(visit, step))
    at_hand = parts(visit)
    await at_hand.grants.remember(visit.login.id, step.client.id, " ".join(agreed), int(at_hand.now()))
    return answer


# --- where the request stands ---


async def _step(visit: Visit) -> Step:
    id = visit.request.path_params["id"]
    pending = await parts(visit).authorizations.pending(id)
    client = await find(parts(visit).credentials, pending.client_id) if pending else None
    if pending is None or client is None:
        raise _gone()
    kept = visit.session.payload.get("chosen", {}) if visit.session else {}
    return Step(pending, client, kept.get(id, {}))


async def _mine(visit: Visit) -> Step:
    """The step of somebody who may take it: forms that were sent too late start over."""
    step = await _step(visit)
    if step.pending.needs_sign_in(visit.session.signed_in if visit.session else None):
        raise Problem("This page was open for too long", "Go back to the app and start again.", 403)
    if step.pending.login not in (None, visit.login.id):
        raise Problem("The app was opened for somebody else", "Go back to the app and start again.", 403)
    return step


def _patient(visit: Visit, step: Step) -> str | None:
    """The patient whom the app is about: who signed in, whom the launch told, or who was chosen."""
    kind, _, own = visit.login.fhir_user.partition("/")
    return own if kind == "Patient" else step.pending.context.get("patient") or step.chosen.get("patient")


def _missing(visit: Visit, step: Step) -> str | None:
    """What must be chosen first."""
    patient = _patient(visit, step)
    if step.pending.needs_patient and not patient:
        return "patient"
    return "encounter" if step.pending.needs_encounter and patient and "encounter" not in step.chosen else None


async def _remember(visit: Visit, step: Step, chosen: Mapping[str, str]) -> None:
    session = visit.session
    assert session is not None
    others = {id: kept for id, kept in session.payload.get("chosen", {}).items() if id != step.pending.id}
    latest = dict(list(others.items())[-_CHOICES + 1 :]) | {step.pending.id: dict(chosen)}
    await parts(visit).sessions.tell(session, chosen=latest)


async def _readable(visit: Visit, type: str, id: str) -> dict[str, Any]:
    """A resource that the person may see. Raises Problem: the same for one that there is not."""
    store = await seen_by(visit)
    try:
        found = await store.read(type, id)
    except (NotFound, Gone, Forbidden):
        raise Problem("This choice is not there any more", "Go back and choose again.", 404) from None
    note_shown(visit, "read", store.principal, f"{type}/{id}", [found])
    return found.tree


async def _agreed_before(visit: Visit, step: Step) -> bool:
    """Whether the person let this app do all of it before, and need not be asked."""
    if not _is_certain(step) or {"consent", "select_account"} & set(step.pending.prompt):
        return False
    kept = await parts(visit).grants.remembered(visit.login.id, step.client.id)
    return kept is not None and set(step.pending.scopes) <= set(kept.split())


def _is_certain(step: Step) -> bool:
    """Whether it is this app that asks: one that anybody can pose as is asked about each time.

    https://www.rfc-editor.org/rfc/rfc8252#section-8.6
    """
    return not step.client.is_public or urlsplit(step.pending.redirect_uri).scheme == "https"


# --- how it ends ---


async def _complete(visit: Visit, step: Step, scopes: list[str] | tuple[str, ...]) -> Response:
    assert visit.session is not None
    chosen, patient = step.chosen.get("patient"), _patient(visit, step)
    if patient and (chosen or "patient" in step.pending.context):
        await _readable(visit, "Patient", patient)  # also when it was chosen a while ago, or nobody is asked
    try:
        return visit.go(
            await parts(visit).authorizations.complete(
                step.pending.id,
                visit.login,
                patient=chosen,
                encounter=step.chosen.get("encounter") or None,
                scopes=scopes,
                session_digest=visit.session.digest,
            )
        )
    except RequestGone:
        raise _gone() from None


async def _refuse(visit: Visit, step: Step, error: str) -> Response:
    try:
        return visit.go(await parts(visit).authorizations.refuse(step.pending.id, error))
    except RequestGone:
        raise _gone() from None


def _gone() -> Problem:
    return Problem(
        "This request is over", "It was answered already, or it waited too long. Go back to the app and start again.", 410
    )


# --- the pages ---


def _somebody_else(visit: Visit, step: Step) -> Response:
    return visit.page("somebody_else.html", status=403, form_action=step.leads_to, app=step.client.name, path=step.path)


async def _patients(visit: Visit, step: Step, asked: Mapping[str, str], page: str = "") -> Response:
    parameters = [(name, value) for name, value in asked.items() if value]
    errors, lines, onward, shown = dict.fromkeys(_SEARCHED, ""), [], "", False
    try:
        query = parse_query("Patient", [*_escaped(parameters), ("_sort", "family"), ("_count", str(_PAGE))])
        if page:
            query = replace(query, cursor=opened(visit, page))
        found = await _found(visit, query)
        lines = [patient_line(one.tree) for one in found.matches]
        onward = sealed(visit, found.next) if found.next else ""
        shown = True
    except Forbidden:
        raise Problem("You may not choose patients", "Your role does not let you see records of patients.", 403) from None
    except AuditUnavailable:
        raise
    except FhirError:
        wrong = "birthdate" if asked.get("birthdate") else next(iter(dict(parameters)), "name")
        errors[wrong] = (
            "Type it as year-month-day, for example 1948-05-17." if wrong == "birthdate" else "Nothing can be found by this."
        )
    return visit.page(
        "patients.html",
        status=200 if shown else 422,
        form_action=step.leads_to,
        app=step.client.name,
        path=step.path,
        asked={name: asked.get(name, "") for name in _SEARCHED},
        searched=bool(parameters),
        errors=errors,
        lines=lines,
        onward=onward,
        further=bool(page),
        shown=shown,
    )


async def _found(visit: Visit, query: Query) -> Page:
    """What a person may see of a search, written down. Raises Forbidden, and what a search raises."""
    store = await seen_by(visit)
    found = await store.search(query)
    note_shown(visit, "search-type", store.principal, query.type, found.matches)
    return found


async def _encounters(visit: Visit, step: Step) -> Response:
    patient = _patient(visit, step)
    query = parse_query("Encounter", [("patient", f"Patient/{patient}"), ("_sort", "-date"), ("_count", str(_VISITS))])
    try:
        found = await _found(visit, query)
    except Forbidden:
        lines = []
    else:
        lines = [encounter_line(one.tree) for one in found.matches]
    return visit.page("encounters.html", form_action=step.leads_to, app=step.client.name, path=step.path, lines=lines)


async def _consent(visit: Visit, step: Step, ticked: frozenset[str] | None = None, error: str = "") -> Response:
    at_hand, pending = parts(visit), step.pending
    patient, own = _patient(visit, step), visit.login.fhir_user.startswith("Patient/")
    line = None
    if patient and not own:
        line = patient_line(await _readable(visit, "Patient", patient))
    until = visit.pages.day(at_hand.now() + at_hand.authorizations.offline)
    return visit.page(
        "consent.html",
        status=422 if error else 200,
        form_action=step.leads_to,
        app=step.client.name,
        publisher=await _publisher(visit, step.client),
        back_to=urlsplit(pending.redirect_uri).netloc or pending.redirect_uri.partition(":")[0],
        path=step.path,
        told=told(pending.scopes, until),
        ticked=frozenset(pending.scopes) if ticked is None else ticked,
        patient=line,
        own=own,
        can_choose="patient" in step.chosen,
        remembers=_is_certain(step),
        error=error,
    )


async def _publisher(visit: Visit, client: Client) -> str:
    """The name of the organisation that an app is registered with; empty when it is not known."""
    reference = client.registration.get("organization")
    type, _, id = str(reference or "").partition("/")
    if type != "Organization":
        return ""
    try:
        return str((await (await seen_by(visit)).read(type, id)).tree.get("name", ""))
    except FhirError:
        return ""


def _escaped(parameters: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a person typed is one value, commas and bars included: https://hl7.org/fhir/R4/search.html#escaping"""
    found = []
    for name, value in parameters:
        for special in "\\,$" + ("" if name == "identifier" else "|"):
            value = value.replace(special, f"\\{special}")
        found.append((name, value))
    return found
