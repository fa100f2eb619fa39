"""The work list: what somebody, their role or their organisation is asked to do, by due time, and the apps to do it with.

An app is opened by an EHR launch at the address that it is registered with, never at another:
https://hl7.org/fhir/smart-app-launch/app-launch.html#launch-app-ehr-launch and https://hl7.org/fhir/smart-app-launch/task-launch.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.codes import own
from fhircm.coordination.emergency import OPEN
from fhircm.coordination.task_states import is_open
from fhircm.fhir.outcome import FhirError, Forbidden, Gone, NotFound
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import ROLE
from fhircm.smart.clients import Client
from fhircm.smart.launch import Launches, LaunchWrong, context_of, task_launch
from fhircm.store.stored import Stored
from fhircm.web.noting import note_done, note_shown
from fhircm.web.pages import Problem, Visit, at, sources
from fhircm.web.parts import parts, seen_by
from fhircm.web.records import name_of
from fhircm.web.rooms import in_room
from fhircm.web.tasks import Work, work

_PAGE = 20
_ALL = "1000"
_AT_ONCE = 200  # references by which somebody is known, of one search


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/worklist", in_room("worklist", show))
    at(app, "/worklist/launch", in_room("worklist", launch), ["POST"])


@dataclass(frozen=True, slots=True)
class Line:
    """A Task with the name of its patient; `asks`: what the app is called that the Task itself asks to open, if it does."""

    work: Work
    patient: str
    overdue: bool
    asks: str


async def show(visit: Visit) -> Response:
    """A page of the list."""
    store = await seen_by(visit)
    found, more = await _open_tasks(visit, store)
    text = visit.asked("page")
    page = max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 5 else 1
    pages = max(1, -(-len(found) // _PAGE))
    page = min(page, pages)
    shown = found[(page - 1) * _PAGE : page * _PAGE]
    works = [work(one.tree) for one in shown]
    names = await _names(visit, store, [one.patient for one in works if one.patient])
    note_shown(visit, "search-type", store.principal, "Task", shown, query=urlencode({"owner": visit.login.fhir_user}))
    apps = await launchable(visit)
    now = store.now
    return visit.page(
        "worklist.html",
        form_action=[source for app in apps for source in sources(str(app.launch_uri))],
        lines=[_line(visit, one, names, apps, now) for one in works],
        apps=apps,
        page=page,
        pages=pages,
        total=len(found),
        more=more,
    )


async def launch(visit: Visit) -> Response:
    """Open an app for a Task: the one that was chosen, or (without) the one that the Task asks for."""
    store = await seen_by(visit)
    try:
        task = await store.read("Task", visit.field("task"))
    except (NotFound, Gone, Forbidden):
        raise Problem("This task is not there any more", "Go back to the work list and load it again.", 404) from None
    if not is_open(task.tree):
        raise Problem("This task is done", "Go back to the work list and load it again.", 409)
    launches, client_id = _launches(visit), visit.field("client")
    try:
        if client_id:
            context = context_of(task.tree, launches.fhir_base)
            intent = own(task.tree.get("code"))
            url = await launches.url(client_id, visit.login.id, context | ({"intent": intent} if intent else {}))
        else:
            url = await launches.url_for_task(task.tree, visit.login.id)
    except LaunchWrong as error:
        raise Problem("The app cannot be opened", f"{error}.", 409) from None
    patient = work(task.tree).patient or None
    note_shown(visit, "read", store.principal, f"Task/{task.id}", [task])
    note_done(visit, "launch", f"{client_id or 'the app that the task asks for'} for Task/{task.id}", patient=patient)
    return visit.go(url)


async def launchable(visit: Visit) -> list[Client]:
    """The apps that can be opened from here, by name."""
    listed = [Client(client_id, one) for client_id, one in (await parts(visit).credentials.clients()).items()]
    found = [app for app in listed if app.launch_uri and not app.disabled and "authorization_code" in app.grant_types]
    return sorted(found, key=lambda app: (app.name.casefold(), app.id))


async def _open_tasks(visit: Visit, store: GuardedStore) -> tuple[list[Stored], bool]:
    """What is open and seen, by due time; and whether there is more than can be listed."""
    principal = store.principal
    names = sorted(principal.known_as)
    ours = [[("owner", ",".join(names[at : at + _AT_ONCE]))] for at in range(0, len(names), _AT_ONCE)]
    roles = ",".join(f"{ROLE}|{code}" for code in sorted(principal.roles))
    queues = [("performer", roles), ("owner:missing", "true")]
    tasks: dict[str, Stored] = {}
    more = False
    for way in (*ours, queues):
        page = await store.search(parse_query("Task", [*way, ("status", ",".join(OPEN)), ("_count", _ALL)]))
        tasks |= {one.id: one for one in page.matches}
        more |= page.next is not None
    return sorted(tasks.values(), key=lambda one: work(one.tree).order), more


async def _names(visit: Visit, store: GuardedStore, patients: Sequence[str]) -> dict[str, str]:
    """What these patients are called whom the person may see."""
    if not patients:
        return {}
    ids = ",".join(sorted(set(patients)))
    try:
        found = (await store.search(parse_query("Patient", [("_id", ids), ("_count", _ALL)]))).matches
    except FhirError:
        return {}
    note_shown(visit, "search-type", store.principal, "Patient", found, query=urlencode({"_id": ids}))
    return {one.id: name_of(one.tree) for one in found}


def _line(visit: Visit, one: Work, names: dict[str, str], apps: Sequence[Client], now: datetime) -> Line:
    asks = ""
    try:
        address = task_launch(one.tree, _launches(visit).fhir_base).application
        asks = next((app.name for app in apps if app.launch_uri == address), "")
    except LaunchWrong:
        pass
    return Line(one, names.get(one.patient, "") if one.patient else "", one.due is not None and one.due < now, asks)


def _launches(visit: Visit) -> Launches:
    launches: Launches = visit.request.app.state.authorization.launches
    return launches
