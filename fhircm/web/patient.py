"""The page of one patient: what is to be done for them, what is planned, and who cares; as far as the person who looks may see it.

https://hl7.org/fhir/R4/careplan.html, careteam.html and goal.html. In a session that an EHR launched, only for the patient who is open there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.emergency import OPEN
from fhircm.fhir.outcome import Forbidden, Gone, NotFound
from fhircm.fhir.query import parse_query
from fhircm.store.stored import Stored
from fhircm.web.noting import note_shown
from fhircm.web.pages import Problem, Visit, at
from fhircm.web.parts import parts, seen_by
from fhircm.web.records import day, name_of, patient_line
from fhircm.web.rooms import ROOMS, open_to
from fhircm.web.tasks import work

Tree = Mapping[str, Any]
_PAGE = "100"


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    at(app, "/patients/{id}", show)


async def show(visit: Visit) -> Response:
    """The page, or why it cannot be shown."""
    id, bound = visit.request.path_params["id"], visit.launch.get("patient")
    if bound and id != bound:
        text = "You opened another patient in the EHR since, or came here by a link. Open this patient in the EHR, and the hub from there."
        raise Problem("This is not the patient who is open in the EHR", text, 409)
    store = await seen_by(visit)
    try:
        patient = await store.read("Patient", id)
    except (NotFound, Gone, Forbidden):
        if bound:
            return await _not_here(visit, id)
        raise Problem(
            "There is no such patient here", "Nobody has this address, or you have no part in their care.", 404
        ) from None
    note_shown(visit, "read", store.principal, f"Patient/{id}", [patient])
    tasks = await _of(visit, store, "Task", id, ("status", ",".join(OPEN)))
    goals = await _of(visit, store, "Goal", id, ("lifecycle-status", "active,accepted,planned,proposed,on-hold"))
    plans = await _of(visit, store, "CarePlan", id, ("status", "active,on-hold,draft"))
    teams = await _of(visit, store, "CareTeam", id, ("status", "active,proposed"))
    return visit.page(
        "patient.html",
        patient=patient_line(patient.tree),
        banner=visit.launch.get("banner", True),
        tasks=sorted((work(one.tree) for one in tasks), key=lambda one: one.order),
        goals=[_goal(one.tree) for one in goals],
        plans=[_plan(one.tree) for one in plans],
        members=await _members(visit, store, [one.tree for one in teams]),
    )


async def _of(visit: Visit, store: GuardedStore, type: str, patient: str, filter: tuple[str, str]) -> Sequence[Stored]:
    """The resources of a type of one patient that the person may see."""
    asked = [("patient", f"Patient/{patient}"), filter]
    try:
        found = (await store.search(parse_query(type, [*asked, ("_count", _PAGE)]))).matches
    except Forbidden:
        return []
    note_shown(visit, "search-type", store.principal, type, found, query=urlencode(asked))
    return found


async def _members(visit: Visit, store: GuardedStore, teams: Sequence[Tree]) -> list[tuple[str, str]]:
    """Who is in these teams, and as what; by the name that the team gives, else by the directory's."""
    seats = [one for team in teams for one in team.get("participant") or []]
    named = {str((one.get("member") or {}).get("reference", "")) for one in seats}
    roles = await _directory(visit, store, "PractitionerRole", named)
    stands_for = {name: str((tree.get("practitioner") or {}).get("reference", "")) for name, tree in roles.items()}
    people = await _directory(visit, store, "Practitioner", {*named, *stands_for.values()})
    organizations = await _directory(visit, store, "Organization", named)
    listed = []
    for one in seats:
        member = one.get("member") or {}
        reference = str(member.get("reference", ""))
        person = people.get(stands_for.get(reference, reference))
        organization = str(organizations.get(reference, {}).get("name") or "")
        name = str(member.get("display") or "") or (name_of(person) if person else organization)
        role = next((text for role in one.get("role") or [] if (text := _text(role))), "")
        if name:
            listed.append((name, role))
    return list(dict.fromkeys(listed))


async def _directory(visit: Visit, store: GuardedStore, type: str, named: Iterable[str]) -> dict[str, Tree]:
    """Those of these references that are of a type, with what they refer to."""
    ids = sorted({id for kind, _, id in (name.partition("/") for name in named) if kind == type and id})
    if not ids:
        return {}
    try:
        found = (await store.search(parse_query(type, [("_id", ",".join(ids[:100])), ("_count", _PAGE)]))).matches
    except Forbidden:
        return {}
    note_shown(visit, "search-type", store.principal, type, found, query=urlencode({"_id": ",".join(ids[:100])}))
    return {f"{type}/{one.id}": one.tree for one in found}


async def _not_here(visit: Visit, id: str) -> Response:
    """The patient whom the EHR launched for is not to be seen: not copied, or not by this person."""
    partner = parts(visit).launches.by_name(visit.launch["partner"])
    there = partner.organization.name if partner else "The EHR"
    copied = bool(await parts(visit).store.read_many([("Patient", id)]))
    glass = ROOMS["emergency"] in open_to(visit.login)
    return visit.page("launch_unseen.html", status=404, there=there, copied=copied, glass=glass)


def _plan(tree: Tree) -> tuple[str, list[str]]:
    """What a plan is called, and facts about it."""
    kinds = [_text(one) for one in tree.get("category") or []]
    title = tree.get("title") or next((kind for kind in kinds if kind), "") or "Care plan"
    return str(title), [str(tree.get("status", "")), *([str(tree["description"])] if tree.get("description") else [])]


def _goal(tree: Tree) -> tuple[str, list[str]]:
    """What is to be reached, and facts about it."""
    due = [f"by {day(one['dueDate'])}" for one in tree.get("target") or [] if one.get("dueDate")]
    return _text(tree.get("description") or {}) or "Goal", [str(tree.get("lifecycleStatus", "")), *due[:1]]


def _text(concept: Tree) -> str:
    displays = [one.get("display") or one.get("code") for one in concept.get("coding") or []]
    return str(concept.get("text") or next((display for display in displays if display), ""))
