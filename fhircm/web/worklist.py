"""The work list: what somebody, their role or their organisation is asked to do, and the apps to do it with.

An app is opened by an EHR launch at the address that it is registered with, never at another:
https://hl7.org/fhir/smart-app-launch/app-launch.html#launch-app-ehr-launch and https://hl7.org/fhir/smart-app-launch/task-launch.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.codes import own
from fhircm.coordination.task_states import is_open
from fhircm.coordination.worklist import WHY, Line, lines, lists_of
from fhircm.fhir.outcome import Forbidden, Gone, NotFound
from fhircm.fhir.ranges import EARLIEST, LATEST
from fhircm.fhir.work_list import PRIORITIES, RISKS
from fhircm.smart.clients import Client
from fhircm.smart.launch import Launches, LaunchWrong, context_of, task_launch
from fhircm.store.stored import micros
from fhircm.store.work_list import WorkQuery
from fhircm.web.noting import note_done, note_shown
from fhircm.web.pages import Problem, Visit, at, sources
from fhircm.web.parts import parts, seen_by
from fhircm.web.rooms import in_room
from fhircm.web.tasks import Work, work

_PAGE = 20
DAY = 86_400_000_000  # microseconds
# What the form offers: for each field its values and what they are called; the first is the one without a choice.
FILTERS = {
    "why": {
        "": "everything of mine",
        "mine": "what I have",
        "role": "what waits for my role",
        "organization": "what my organisation has",
        "escalated": "what came to me late",
        "delegated": "what was passed on to me",
        "offered": "what I am offered",
    },
    "due": {"": "any time", "overdue": "overdue", "today": "within a day", "week": "within a week"},
    "priority": {"": "any", "urgent": "urgent or more", "asap": "as soon as possible or more", "stat": "at once"},
    "risk": {"": "any", "high": "high", "moderate": "moderate or high"},
    "sort": {"": "due time", "priority": "priority", "risk": "risk of the patient"},
    "hidden": {"": "leave out", "true": "show"},
}
STEPS = {
    "received": "confirm that it came",
    "accepted": "accept",
    "rejected": "decline",
    "ready": "make ready",
    "in-progress": "begin",
    "on-hold": "pause",
    "completed": "finish",
    "failed": "end without success",
    "cancelled": "cancel",
}


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/worklist", in_room("worklist", show))
    at(app, "/worklist/launch", in_room("worklist", launch), ["POST"])


@dataclass(frozen=True, slots=True)
class Shown:
    """A line with its Task in words; `asks`: what the app is called that the Task itself asks to open, if it does; `next`: what may be done."""

    line: Line
    work: Work
    why: str
    next: str
    asks: str


async def show(visit: Visit) -> Response:
    """A page of the list: by due time, or as the form asks."""
    store = await seen_by(visit)
    asked = {name: value for name, options in FILTERS.items() if (value := visit.asked(name)) and value in options}
    after, now = _place(visit, store)
    page = await lines(store, _query(visit, store, asked, after, now))
    tasks = [line.task for line in page.lines]
    note_shown(visit, "search-type", store.principal, "Task", tasks, query=urlencode({"owner": visit.login.fhir_user}))
    if people := list({line.patient.id: line.patient for line in page.lines if line.patient}.values()):
        ids = ",".join(sorted(one.id for one in people))
        note_shown(visit, "search-type", store.principal, "Patient", people, query=urlencode({"_id": ids}))
    apps = await launchable(visit)
    following = urlencode(asked | {"after": ".".join(map(str, (now, *page.next)))}) if page.next else ""
    return visit.page(
        "worklist.html",
        form_action=[source for app in apps for source in sources(str(app.launch_uri))],
        lines=[_shown(visit, one, apps) for one in page.lines],
        apps=apps,
        filters=FILTERS,
        asked=asked,
        whole=urlencode(asked),
        following=following,
        later=after is not None,
    )


def _place(visit: Visit, store: GuardedStore) -> tuple[tuple[int, ...] | None, int]:
    """Behind which line the page begins, and the moment of the first one: numbers of ours, which open nothing to who makes them up."""
    text = visit.asked("after")
    if not re.fullmatch(r"-?\d{1,19}(\.-?\d{1,19}){3}", text, re.ASCII):
        return None, micros(store.now)
    now, *after = (max(EARLIEST, min(LATEST, int(one))) for one in text.split("."))
    return tuple(after), now


def _query(visit: Visit, store: GuardedStore, asked: Mapping[str, str], after: tuple[int, ...] | None, now: int) -> WorkQuery:
    names, reasons = lists_of(store.principal, why=asked.get("why") or None)
    sort = asked.get("sort") or "due"
    ends = {"overdue": now + 1, "today": now + DAY, "week": now + 7 * DAY}
    return WorkQuery(
        names,
        now,
        sort,
        _PAGE,
        (None, ends.get(asked.get("due", ""))),
        tuple(range(PRIORITIES.index(asked["priority"]) + 1)) if asked.get("priority") else (),
        tuple(range(RISKS.index(asked["risk"]) + 1)) if asked.get("risk") else (),
        reasons=reasons,
        hidden=asked.get("hidden") == "true",
        after=after,
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


def _shown(visit: Visit, line: Line, apps: Sequence[Client]) -> Shown:
    asks = ""
    with suppress(LaunchWrong):
        address = task_launch(line.tree, _launches(visit).fhir_base).application
        asks = next((app.name for app in apps if app.launch_uri == address), "")
    steps = [STEPS[status] for status in line.next if status in STEPS]
    following = f"{', '.join(steps[:-1])} or {steps[-1]}" if len(steps) > 1 else "".join(steps)
    why = next((WHY[one] for one in line.why if one in WHY), "")
    return Shown(line, work(line.tree), why, following, asks)


def _launches(visit: Visit) -> Launches:
    launches: Launches = visit.request.app.state.authorization.launches
    return launches
