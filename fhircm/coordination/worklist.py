"""The work list of a person or a role: which lists that is, and what each line tells besides its Task.

https://hl7.org/fhir/R4/task.html. docs/explanation/work-list.md
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.access.roles import roles as all_roles
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Record
from fhircm.coordination.people import name_of
from fhircm.coordination.protocol import Pathway, Step, load_pathways
from fhircm.coordination.state_tables import protocols
from fhircm.coordination.steps import Sides
from fhircm.coordination.task_states import mirrored, protocol_of
from fhircm.coordination.wording import text_of
from fhircm.fhir.outcome import NotSupported
from fhircm.fhir.ranges import LATEST
from fhircm.fhir.systems import ROLE
from fhircm.fhir.work_list import RISKS, claim_of, due_of, is_queue, local, queue, reason_of, risk_of
from fhircm.store.operations import Actor
from fhircm.store.stored import Stored, moment
from fhircm.store.work_list import WorkPage, WorkQuery

Tree = dict[str, Any]
# Why a line is in somebody's list, and of which lines (fhircm/fhir/work_list.py) that can be so; the first that holds is told first.
WHY = {
    "offered": "a colleague wants to hand it over to you",
    "escalated": "it was not done in time and came to you",
    "delegated": "somebody passed it on to you",
    "mine": "it is yours",
    "role": "it waits for somebody in your role",
    "organization": "your organisation has it",
}
_REASONS = {"offered": ("offered",), "escalated": ("escalated",), "delegated": ("delegated",)}


@dataclass(frozen=True, slots=True)
class Line:
    """A Task and what is known besides: when it is due (UTC; None: no time), what its step is called, and which states the caller may set next.

    `risk` is a code of RISKS with the RiskAssessment that says so; `why` are codes of WHY; `claimed` is the Reference of the person who has it, and
    `until` when that claim is over.
    """

    task: Stored
    tree: Tree
    due: datetime | None
    overdue: bool
    priority: str
    risk: tuple[str, Stored] | None
    patient: Stored | None
    patient_name: str | None
    step: str
    next: tuple[str, ...]
    why: tuple[str, ...]
    claimed: Tree | None
    until: str | None


@dataclass(frozen=True, slots=True)
class Lines:
    """A page of lines; `next`: what WorkQuery.after is on the next one."""

    lines: list[Line]
    next: tuple[int, ...] | None


def lists_of(
    principal: Principal,
    owners: Collection[str] = (),
    roles: Collection[tuple[str, str]] = (),
    organizations: Collection[str] = (),
    why: str | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lists that are asked for, and the reasons that count in them. Without a name, those of the caller: own, of their roles, of their organisation.

    `roles`: (system, code); of the organisations, else of the caller's own. Raises NotSupported when nobody is meant.
    """
    places = sorted(one for one in principal.known_as if is_queue(one))
    people = sorted(principal.known_as - set(places))
    own = _meant((ROLE, code) for code in sorted(principal.roles))
    if owners or roles or organizations:
        at = sorted(organizations) or ["", *places]
        queues = [queue(place, *role) for place in at for role in _meant(roles)]
        lists = [*sorted(owners), *queues, *([] if roles else sorted(organizations))]
    else:
        queues = [queue(place, *role) for place in ("", *places) for role in own] if principal.known_as else []
        lists = {"role": queues, "organization": places}.get(why or "", people if why else [*people, *places, *queues])
        if not principal.known_as:
            raise NotSupported("Nobody has a work list behind this token: name an owner, a role or an organization")
    return tuple(dict.fromkeys(lists)), _REASONS.get(why or "", ())


def _meant(codings: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of roles of the hub all the codings by which they are meant; of others themselves."""
    return [
        one for system, code in codings for one in (all_roles()[code].codings if _is_role(system, code) else [(system, code)])
    ]


def _is_role(system: str, code: str) -> bool:
    return system == ROLE and code in all_roles()


async def lines(store: GuardedStore, query: WorkQuery) -> Lines:
    """A page of lines, as the caller sees them. Raises Forbidden."""
    page = await store.work_list(query)
    names = {id: await name_of(Record(store), one) for id, one in page.patients.items()}
    principal, actor = store.principal, store.principal.actor
    return Lines([_line(principal, actor, task, page, names, query.now) for task in page.tasks], page.next)


def _line(principal: Principal, actor: Actor, task: Stored, page: WorkPage, names: Mapping[str, str | None], now: int) -> Line:
    tree = task.tree
    patient, due = local(tree.get("for")).removeprefix("Patient/"), due_of(tree)
    claimed = tree["owner"] if (owner := local(tree.get("owner"))) and not is_queue(owner) else None
    return Line(
        task,
        tree,
        moment(due) if due != LATEST else None,
        due <= now,
        tree.get("priority", "routine"),
        _risk(page.risks.get(patient)),
        page.patients.get(patient),
        names.get(patient),
        _step(tree),
        _next(actor, tree),
        _why(principal, tree),
        claimed,
        claim_of(tree).get("until", {}).get("valueInstant") if claimed else None,
    )


def _risk(assessment: Stored | None) -> tuple[str, Stored] | None:
    levels = [level for one in assessment.tree.get("prediction", ()) if (level := risk_of(one)) is not None] if assessment else []
    return (RISKS[min(levels)], assessment) if assessment and levels else None


@cache
def _pathways() -> tuple[Pathway, ...]:
    return load_pathways()


def _step(tree: Tree) -> str:
    """What is to be done next: the step of the pathway, or what the Task itself says."""
    url = tree.get("instantiatesCanonical", "").split("|")[0]
    pathway = next((one for one in _pathways() if one.url == url), None) if url else None
    step: Step | None = pathway.step(tree.get("instantiatesUri", "").rpartition("#")[2]) if pathway else None
    return step.title if step else text_of(tree.get("code")) or tree.get("description") or "Task"


def _next(actor: Actor, tree: Tree) -> tuple[str, ...]:
    """The states that may follow by the step of the caller. What is the mirror of a partner's Task is changed at the partner."""
    if mirrored(tree):
        return ()
    protocol = protocol_of(tree)
    return _following(protocol.type, protocol.name, tree["status"], Sides.of(actor, tree))


@cache
def _following(type: str, protocol: str, status: str, sides: Sides) -> tuple[str, ...]:
    machine = protocols(type)[protocol].machine
    return tuple(one.end for one in machine.steps if one.start == status and one.end not in machine.always and sides.may(one.who))


def _why(principal: Principal, tree: Tree) -> tuple[str, ...]:
    """Every reason for which the caller has this line, the most telling first; none when it is another's list that they look at."""
    owner = local(tree.get("owner"))
    found = []
    if local(claim_of(tree).get("offered", {}).get("valueReference")) in principal.known_as:
        found.append("offered")
    if owner in principal.known_as and not is_queue(owner):
        found += [*([reason] if (reason := reason_of(tree)) in WHY else []), "mine"]
    if "performerType" in tree and _in_role(principal, tree):
        found.append("role")
    if is_queue(owner) and owner in principal.known_as:
        found.append("organization")
    return tuple(found)


def _in_role(principal: Principal, tree: Tree) -> bool:
    """Whether it waits for somebody in the caller's role, where the caller is."""
    if set(_meant((ROLE, code) for code in principal.roles)).isdisjoint(codings(tree["performerType"])):
        return False
    places = map(local, (tree.get("owner"), *(tree.get("restriction") or {}).get("recipient", ())))
    return "owner" not in tree or any(is_queue(one) and one in principal.known_as for one in places)
