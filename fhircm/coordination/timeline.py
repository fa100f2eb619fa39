"""The story of a patient from resources alone: who did what, in order, over all records of the human.

https://hl7.org/fhir/R4/provenance.html. What the hub and its clients did stands in Provenance; what happened elsewhere
stands in the Encounters, ServiceRequests, DocumentReferences and Communications that came from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from fhircm.coordination.codes import codings, identifiers, member
from fhircm.coordination.context import Record, any_of
from fhircm.coordination.people import linked, named, patients_value
from fhircm.coordination.task_states import mirrored
from fhircm.coordination.times import moment
from fhircm.coordination.wording import text_of
from fhircm.fhir.outcome import NotFound
from fhircm.fhir.systems import DELIVERY
from fhircm.store.resources import Store, Stored

Tree = dict[str, Any]
_COPIED = ("http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle", "receive")
_TELLING = ("Encounter", "ServiceRequest", "DocumentReference", "Communication")
_CHUNK = 50  # targets in one search


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened: when (UTC), who did it, what, and the reference of the resource that says so."""

    at: datetime
    who: str
    what: str
    reference: str


async def timeline(store: Store, patient_id: str, *, since: datetime | None = None) -> list[Entry]:
    """The story of the human whose Patient this is, the oldest first. Raises NotFound."""
    record = Record(store)
    if await record.get("Patient", patient_id) is None:
        raise NotFound(f"Patient/{patient_id} is not known")
    patients = await linked(record, patient_id)
    entries = [entry for one in await _provenance(record, patients) if (entry := await _done(record, one))]
    told = {"/".join(entry.reference.split("/")[:2]) for entry in entries}
    for type in _TELLING:
        for stored in await record.find(type, patients_value(patients)):
            if (mirrored(stored.tree) or f"{type}/{stored.id}" not in told) and not identifiers(stored.tree, DELIVERY):
                entries += [entry async for entry in _happened(record, stored)]
    return sorted(
        (entry for entry in entries if since is None or entry.at >= since),
        key=lambda entry: (entry.at, entry.reference, entry.what),
    )


def rendered(entries: list[Entry], zone: ZoneInfo) -> str:
    """The story as lines of text, on the clock of a time zone: date and time, who, what."""
    width = max((len(entry.who) for entry in entries), default=0)
    lines = (f"{entry.at.astimezone(zone):%Y-%m-%d %H:%M}  {entry.who:<{width}}  {entry.what}" for entry in entries)
    return "\n".join(lines)


async def _provenance(record: Record, patients: list[str]) -> list[Stored]:
    """Every Provenance of the patients, and of the Tasks and Communications about them."""
    found = {one.id: one for one in await record.find("Provenance", patients_value(patients))}
    about = [
        f"{type}/{one.id}" for type in ("Task", "Communication") for one in await record.find(type, patients_value(patients))
    ]
    for start in range(0, len(about), _CHUNK):
        chunk = any_of(about[start : start + _CHUNK])
        found |= {one.id: one for one in await record.find("Provenance", ("target", chunk))}
    return list(found.values())


async def _done(record: Record, stored: Stored) -> Entry | None:
    tree = stored.tree
    if _COPIED in codings(tree.get("activity")):
        return None  # what was copied tells its own story
    at = moment(tree.get("occurredDateTime") or tree["recorded"])
    target = tree["target"][0]
    about = target.get("reference") or target.get("identifier", {}).get("value", "")
    what = text_of(tree.get("activity")) or "Changed"
    return Entry(at, await _who(record, tree["agent"][0].get("who")), what, about) if at else None


async def _happened(record: Record, stored: Stored) -> Any:
    """What a resource says happened, with its times."""
    tree, about = stored.tree, f"{stored.type}/{stored.id}"
    for text, who, what in _events(tree):
        at = moment(text)
        if at is not None:
            yield Entry(at, await _who(record, who), what, about)


def _events(tree: Tree) -> Iterator[tuple[str | None, Tree | None, str]]:
    """When, who and what, as the resource itself has it."""
    told = text_of(tree.get("type")) or text_of(tree.get("code"))
    match tree["resourceType"]:
        case "Encounter":
            yield from _visit(tree, told or text_of(tree.get("class")) or _kind(tree))
        case "ServiceRequest":
            yield tree.get("authoredOn"), tree.get("requester"), f"Ordered: {told or 'something'} ({tree['status']})"
        case "DocumentReference":
            author = next(iter(tree.get("author", [])), None) or tree.get("custodian")
            yield tree.get("date"), author, f"Wrote: {tree.get('description') or told or 'a document'}"
        case "Communication":
            yield tree.get("sent"), tree.get("sender"), f"Sent: {text_of(tree.get('topic')) or 'a message'}"


def _kind(encounter: Tree) -> str:
    if member("inpatient-stay", encounter.get("class")):
        return "hospital stay"
    return "emergency visit" if member("emergency-visit", encounter.get("class")) else "visit"


def _visit(encounter: Tree, kind: str) -> Iterator[tuple[str | None, Tree | None, str]]:
    period, place, status = encounter.get("period", {}), encounter.get("serviceProvider"), encounter["status"]
    if status in ("planned", "cancelled"):
        yield period.get("start"), place, f"{status.capitalize()}: {kind}"
        return
    yield period.get("start"), place, f"Began: {kind}"
    if status == "finished":
        left = text_of(encounter.get("hospitalization", {}).get("dischargeDisposition"))
        yield period.get("end"), place, f"Ended: {kind}" + (f" ({left})" if left else "")


async def _who(record: Record, element: Tree | None) -> str:
    """A name, as people know it."""
    if not element:
        return "unknown"
    if display := element.get("display"):
        return display
    found = await record.follow(element)
    if found is not None:
        return (await named(record, found)).get("display") or element["reference"]
    return element.get("identifier", {}).get("value") or element.get("reference") or "unknown"
