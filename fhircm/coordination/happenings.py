"""What a resource says happened: when, who and what, as the resource itself has it.

https://hl7.org/fhir/R4/encounter.html, appointment.html, episodeofcare.html, servicerequest.html, task.html, documentreference.html and
communication.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fhircm.coordination.codes import member
from fhircm.coordination.wording import text_of

Tree = dict[str, Any]
TELLING = ("Encounter", "EpisodeOfCare", "Appointment", "ServiceRequest", "Task", "DocumentReference", "Communication")
_MET = {
    "proposed": "Proposed",
    "pending": "Asked for",
    "booked": "Booked",
    "arrived": "Arrived for",
    "checked-in": "Arrived for",
    "fulfilled": "Kept",
    "cancelled": "Cancelled",
    "noshow": "Did not come to",
    "waitlist": "Waits for",
}


class Happening(NamedTuple):
    """One thing: `when` as it is written, `who` and `organization` as References."""

    when: str | None
    who: Tree | None
    organization: Tree | None
    what: str


def happenings(tree: Tree) -> list[Happening]:
    """Everything that a resource tells of; nothing of one that was entered in error."""
    return [] if tree.get("status") == "entered-in-error" else list(_told(tree))


def _told(tree: Tree) -> Iterator[Happening]:
    about = text_of(tree.get("type")) or text_of(tree.get("code"))
    match tree["resourceType"]:
        case "Encounter":
            yield from _visit(tree, about or text_of(tree.get("class")) or _kind(tree))
        case "EpisodeOfCare":
            place, period = tree.get("managingOrganization"), tree.get("period", {})
            yield Happening(period.get("start"), place, place, f"Began: care{f' ({about})' if about else ''}")
            if tree["status"] in ("finished", "cancelled"):
                yield Happening(period.get("end"), place, place, f"Ended: care{f' ({about})' if about else ''}")
        case "Appointment":
            what = text_of(tree.get("serviceType")) or tree.get("description") or "appointment"
            who = next((one["actor"] for one in tree.get("participant", []) if _serves(one)), None)
            yield Happening(tree.get("start") or tree.get("created"), who, None, f"{_MET.get(tree['status'], 'Noted')}: {what}")
        case "ServiceRequest":
            yield Happening(
                tree.get("authoredOn"), tree.get("requester"), None, f"Ordered: {about or 'something'} ({tree['status']})"
            )
        case "Task":
            what = about or tree.get("description") or "something"
            yield Happening(tree.get("authoredOn"), tree.get("requester"), None, f"Asked: {what} ({tree['status']})")
        case "DocumentReference":
            author = next(iter(tree.get("author", [])), None) or tree.get("custodian")
            yield Happening(
                tree.get("date"), author, tree.get("custodian"), f"Wrote: {tree.get('description') or about or 'a document'}"
            )
        case "Communication":
            yield Happening(tree.get("sent"), tree.get("sender"), None, f"Sent: {text_of(tree.get('topic')) or 'a message'}")


def _serves(participant: Tree) -> bool:
    return participant.get("actor", {}).get("reference", "").split("/")[0] not in ("", "Patient", "RelatedPerson")


def _kind(encounter: Tree) -> str:
    if member("inpatient-stay", encounter.get("class")):
        return "hospital stay"
    return "emergency visit" if member("emergency-visit", encounter.get("class")) else "visit"


def _visit(encounter: Tree, kind: str) -> Iterator[Happening]:
    period, place, status = encounter.get("period", {}), encounter.get("serviceProvider"), encounter["status"]
    if status in ("planned", "cancelled"):
        yield Happening(period.get("start"), place, place, f"{status.capitalize()}: {kind}")
        return
    yield Happening(period.get("start"), place, place, f"Began: {kind}")
    if status == "finished":
        left = text_of(encounter.get("hospitalization", {}).get("dischargeDisposition"))
        yield Happening(period.get("end"), place, place, f"Ended: {kind}" + (f" ({left})" if left else ""))
