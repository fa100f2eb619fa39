"""Organisations in the console: those that people and clients belong to."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.coordination import organizations
from fhircm.coordination.build import npi
from fhircm.fhir.outcome import FhirError, Gone, Invalid, NotFound
from fhircm.fhir.query import parse_query
from fhircm.store.operations import Put
from fhircm.store.stored import Stored
from fhircm.web.console.asking import add, asked_again, part, told
from fhircm.web.noting import note_done, note_shown
from fhircm.web.pages import Problem, Visit
from fhircm.web.parts import escaped, seen_by

_DONE = {
    "added": "It is there from now on.",
    "edited": "That is changed.",
    "disabled": "It is not in use any more.",
    "enabled": "It is in use again.",
}
_ALL = 1000


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    add(app, "/console/organizations", show_all, "GET", "POST")
    add(app, "/console/organizations/add", ask_new)
    add(app, "/console/organizations/add", add_new, "POST")
    add(app, "/console/organizations/show", show)
    add(app, "/console/organizations/edit", edit, "POST")
    add(app, "/console/organizations/disable", disable, "POST")
    add(app, "/console/organizations/enable", enable, "POST")


async def show_all(visit: Visit) -> Response:
    """Every organisation, or those in whose name a text is found."""
    find, store = visit.field("find"), await seen_by(visit)
    asked = [("name:contains", escaped(find))] if find else []
    query = parse_query("Organization", [*asked, ("_sort", "name"), ("_count", str(_ALL))])
    found = await store.search(query)
    shown = part(visit, [(one.id, one.tree, npi(one.tree)) for one in found.matches])
    return visit.page("console/organizations.html", part=shown, find=find, more=found.next is not None)


async def ask_new(visit: Visit) -> Response:
    """The form for one that there is not yet."""
    return _form(visit, None, {"name": "", "npi": ""})


async def add_new(visit: Visit) -> Response:
    """The form was sent."""
    typed = {"name": visit.field("name"), "npi": visit.field("npi")}
    try:
        put = organizations.new(typed["name"], typed["npi"] or None)
    except Invalid as error:
        return _form(visit, None, typed, error)
    return visit.go(_at(await _write(visit, put, "create"), "added"))


async def show(visit: Visit) -> Response:
    """One of them."""
    stored = await _organization(visit, visit.asked("id"))
    return _form(visit, stored, {"name": stored.tree.get("name", ""), "npi": npi(stored.tree) or ""})


async def edit(visit: Visit) -> Response:
    """Another name or NPI."""
    stored = await _organization(visit, visit.field("id"))
    typed = {"name": visit.field("name"), "npi": visit.field("npi")}
    try:
        put = organizations.edited(stored, name=typed["name"], npi=typed["npi"])
    except Invalid as error:
        return _form(visit, stored, typed, error)
    return visit.go(_at(await _write(visit, put, "update"), "edited"))


async def disable(visit: Visit) -> Response:
    """Not in use any more."""
    stored = await _organization(visit, visit.field("id"))
    text = "Its people and clients stay as they are: shut them out where that is meant."
    title = f"Is {stored.tree.get('name', 'it')} not in use any more?"
    if page := asked_again(visit, title, text, "It is not in use", _at(stored)):
        return page
    return visit.go(_at(await _write(visit, organizations.edited(stored, active=False), "update"), "disabled"))


async def enable(visit: Visit) -> Response:
    """In use again."""
    stored = await _organization(visit, visit.field("id"))
    return visit.go(_at(await _write(visit, organizations.edited(stored, active=True), "update"), "enabled"))


async def _write(visit: Visit, put: Put, code: str) -> Stored:
    store = await seen_by(visit)
    (stored,) = await store.transact([put], [(code[0], "Organization")])
    note_shown(visit, code, store.principal, f"Organization/{stored.id}", [stored])
    note_done(visit, "organization", f"Organization/{stored.id} {code}d")
    return stored


async def _organization(visit: Visit, id: str) -> Stored:
    try:
        return await (await seen_by(visit)).read("Organization", id)
    except (NotFound, Gone):
        raise Problem("There is no such organisation", "Perhaps it was removed meanwhile.", 404) from None


def _form(visit: Visit, stored: Stored | None, typed: dict[str, str], error: FhirError | None = None) -> Response:
    errors = {"name": "", "npi": ""}
    if error is not None:
        errors[error.issues[0].expression or "name"] = f"{error.issues[0].text}."
    active = stored is not None and stored.tree.get("active") is not False
    return visit.page(
        "console/organization.html",
        status=422 if error else 200,
        told=told(visit, _DONE),
        id=stored.id if stored else "",
        active=active,
        typed=typed,
        errors=errors,
    )


def _at(stored: Stored, done: str = "") -> str:
    return f"/console/organizations/show?id={stored.id}" + (f"&done={done}" if done else "")
