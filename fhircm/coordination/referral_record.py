"""What belongs to one referral: the order, the appointments, visits, reports and replies that bear its number.

http://hl7.org/fhir/us/bser. Numbers are typed by people. So only what is about the same human counts: what is about anybody else is shown to
a human and moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhircm.coordination import correlation
from fhircm.coordination.build import npi
from fhircm.coordination.capacity import asked_service, capacity
from fhircm.coordination.codes import identifiers, member
from fhircm.coordination.context import Context, Record
from fhircm.coordination.people import organization_of, patient_of
from fhircm.coordination.task_states import is_open, is_referral, mirrored
from fhircm.fhir.systems import DELIVERY, REFERRAL
from fhircm.store.resources import Stored

Tree = dict[str, Any]
_UNFINISHED = frozenset(("registered", "partial", "preliminary"))  # of a DiagnosticReport or Composition, and docStatus
EVIDENCE = frozenset(("Appointment", "Composition", "DiagnosticReport", "DocumentReference", "Encounter"))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found for one referral. `strangers` bear its number, but are about somebody else.

    `visits` are Encounters and Appointments; `replies` the addressee's own Tasks and orders for it, as its system keeps them.
    """

    order: Tree | None = None
    visits: tuple[Stored, ...] = ()
    reports: tuple[Stored, ...] = ()
    replies: tuple[Stored, ...] = ()
    strangers: tuple[Stored, ...] = ()
    capacity: str | None = None  # of the service that is asked, when it is one that tells

    @property
    def final(self) -> list[Stored]:
        """The reports that answer the referral."""
        return [one for one in self.reports if _finished(one.tree)]

    @property
    def reply(self) -> Tree | None:
        """The newest Task that the addressee keeps itself."""
        tasks = sorted((one for one in self.replies if one.type == "Task"), key=lambda one: (one.last_updated, one.id))
        return tasks[-1].tree if tasks else None


def tells(tree: Tree) -> bool:
    """Whether a resource can be evidence: a visit, an appointment, or a document that reports or books."""
    if tree["resourceType"] in ("Encounter", "Appointment"):
        return tree["status"] not in ("entered-in-error", "unknown")
    return _is_report(tree) or _is_booking(tree)


def _is_report(document: Tree) -> bool:
    return _stands(document) and member("consult-note", document.get("type"), document.get("code"))


def _is_booking(document: Tree) -> bool:
    """A letter that tells of an appointment, from one who has nothing but documents."""
    return (
        document["resourceType"] == "DocumentReference" and _stands(document) and member("appointment-note", document.get("type"))
    )


def _stands(document: Tree) -> bool:
    if document["resourceType"] == "DocumentReference":
        return document.get("status") == "current" and document.get("docStatus") != "entered-in-error"
    return document["resourceType"] in ("Composition", "DiagnosticReport") and document["status"] not in (
        "cancelled",
        "entered-in-error",
        "unknown",
    )


def _finished(report: Tree) -> bool:
    told = report.get("docStatus") if report["resourceType"] == "DocumentReference" else report["status"]
    return told not in _UNFINISHED


async def gather(context: Context, task: Stored, patients: list[str]) -> Evidence:
    """What there is now for a referral; `patients` are the records of its patient."""
    order = await context.follow(task.tree.get("focus"))
    there = [one for one in await everything(context, task.tree, order) if not is_own(one.tree, task.tree)]
    found = await _of_this_one(context, task, order, there)
    told = [one for one in found if tells(one.tree) and not _is_echo(context, one.tree, order)]
    own = {one.id for one in found if patient_of(one.tree) in patients}
    service = await asked_service(context, order.tree if order else None, task.tree)
    told_by_them = [one for one in found if one.type in ("Task", "ServiceRequest") and one.id in own]
    reports = sorted((one for one in told if _is_report(one.tree)), key=_written)
    return Evidence(
        order=order.tree if order else None,
        visits=tuple(one for one in told if one.id in own and not _is_report(one.tree)),
        reports=tuple(one for one in reports if one.id in own),
        replies=tuple([one for one in told_by_them if await _from_owner(context, task.tree, one)]),
        strangers=tuple(one for one in told if one.id not in own),
        capacity=capacity(service.tree) if service else None,
    )


async def _of_this_one(context: Context, task: Stored, order: Stored | None, found: list[Stored]) -> list[Stored]:
    """Without what only names the order, when others were asked for it too: that is of the one from whose house it comes."""
    own = [one for one in task.tree.get("identifier", []) if one.get("system") == REFERRAL]
    plain = {one.id for one in found if await correlation.quotes_any(context, one.tree, own)}
    if order is None or len(plain) == len(found):
        return found
    asked = await context.find("Task", ("focus", f"ServiceRequest/{order.id}"))
    others = [one for one in asked if one.id != task.id and is_referral(one.tree) and is_open(one.tree)]
    if not others:
        return found
    return [one for one in found if one.id in plain or await _from_owner(context, task.tree, one)]


def is_own(tree: Tree, task: Tree) -> bool:
    """Whether a Task or order is the hub's own, or the requester's: no reply of the addressee."""
    focus = task.get("focus", {}).get("reference")
    return tree["resourceType"] in ("Task", "ServiceRequest") and (
        not mirrored(tree) or focus == f"{tree['resourceType']}/{tree.get('id')}"
    )


def _is_echo(context: Context, tree: Tree, order: Stored | None) -> bool:
    """Whether it is a copy that the hub delivered, as it comes back from the requester, or the requester's own paper about its order."""
    if identifiers(tree, DELIVERY) if isinstance(tree.get("identifier"), list) else False:
        return True
    source = context.source_of(order.tree) if order else None
    by_number = tree["resourceType"] == "Appointment" or bool(correlation.quoted(tree))
    return source is not None and not by_number and context.source_of(tree) == source


async def everything(record: Record, task: Tree, order: Stored | None) -> list[Stored]:
    """Whatever bears one of a referral's numbers, or says that it is based on its order: of any patient, by type and id."""
    numbers = correlation.numbers_of(task, order.tree if order else None)
    requisition = order.tree.get("requisition") if order else None
    if requisition and requisition.get("system") and await correlation.of_requisition(record, [requisition]):
        numbers = [*numbers, requisition]  # the order is alone under it; else nobody knows which one is meant
    value, named = correlation.searched(numbers), [f"ServiceRequest/{order.id}"] if order else []
    searches = [(type, [(parameter, value)]) for type, (by_number, _) in _SEARCHED.items() for parameter in by_number if numbers]
    searches += [(type, [(parameter, named[0])]) for type, (_, parameter) in _SEARCHED.items() if parameter and named]
    searches.append(("DocumentReference", [("related", f"Task/{task['id']}")]))
    about = {("Task", task["id"]), *([("ServiceRequest", order.id)] if order else [])}
    found = [
        one
        for one in await record.find_any(searches)
        if not about.isdisjoint(correlation.referred(one.tree, "ServiceRequest", "Task"))
        or await correlation.quotes_any(record, one.tree, numbers)
    ]
    return sorted(found, key=lambda one: (one.type, one.id))


# The parameters by which what belongs to a referral is found: by a number, and by a reference to its order (or its Task).
_SEARCHED: dict[str, tuple[tuple[str, ...], str | None]] = {
    "Appointment": (("identifier", "based-on:identifier"), "based-on"),
    "Composition": (("identifier",), None),
    "DiagnosticReport": (("identifier", "based-on:identifier"), "based-on"),
    "DocumentReference": (("related:identifier",), "related"),
    "Encounter": (("identifier", "based-on:identifier"), "based-on"),
    "ServiceRequest": (("identifier",), None),
    "Task": (("identifier", "focus:identifier"), None),
}


async def _from_owner(context: Context, task: Tree, one: Stored) -> bool:
    """Whether a mirror is of the system of the organisation that was asked."""
    source, owner = context.source_of(one.tree), await organization_of(context, task.get("owner"))
    return source is not None and owner is not None and source.npi == npi(owner.tree)


def _written(document: Stored) -> tuple[str, str]:
    return document.tree.get("date") or document.tree.get("effectiveDateTime") or document.tree.get("issued", ""), document.id
