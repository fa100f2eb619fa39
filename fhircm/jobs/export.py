"""Bulk Data export: writes what a client asked for into files, a slice at a time.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html. The files show one moment, the transactionTime: everything that was changed up to it is in
as it was then, and nothing that was changed later. What a client may see is what it might see by searching, with the scopes that it
had when it started the export.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import read
from fhircm.coordination.codes import CLIENT
from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError, Issue, outcome
from fhircm.fhir.query import Condition, parse_query
from fhircm.fhir.schema import children
from fhircm.fhir.subset import Subset
from fhircm.fhir.systems import JOB
from fhircm.jobs.export_files import Files
from fhircm.jobs.job import Job, Means, Step, start
from fhircm.store.export import ExportPage, ExportQuery
from fhircm.store.operations import DropForJob, KeepForJob
from fhircm.store.resources import Op, SetState, SetTimer, Store
from fhircm.store.stored import instant, micros, moment

NAMESPACE = "export"  # of the facts about finished exports
EXPIRY = "export-files"  # the kind of the timer that removes their files
UNDER_WAY = 10  # exports of one client at a time
FEW = 200  # Patients, whose records are sought one by one rather than all records passed over
# Outside the compartment of a Patient, and needed to make sense of what is inside: exported when that refers to them.
ASSOCIATED = ("Location", "Medication", "Organization", "Practitioner", "PractitionerRole")
_SETTLING = timedelta(seconds=0.25)
_ENTRIES = 500  # of a Bundle of deletions


class TooManyExports(FhirError):
    """A client must wait until one of its exports is done."""

    status, code = 429, "throttled"

    @property
    def headers(self) -> Iterator[tuple[str, str]]:
        """How long to wait, in seconds."""
        yield "Retry-After", "60"


@dataclass(frozen=True)
class Request:
    """What was asked for, checked; times are microseconds since the epoch. JSON can hold it.

    `level` is system, patient or group; `filters` are searches as (type, query); `issues` tell what was passed over.
    """

    url: str
    level: str
    types: Sequence[str]
    principal: Mapping[str, Any]
    since: int | None = None
    until: int | None = None
    filters: Sequence[tuple[str, str]] = ()
    elements: Sequence[str] | None = None
    members: bool = False  # only the Patients that are kept for the job
    few: bool = False
    issues: Sequence[str] = ()
    moment: int = 0
    mark: str = ""

    @property
    def in_compartments(self) -> list[str]:
        """Those of the types that are exported for belonging to a Patient; at the system level all are exported anyway."""
        return [type for type in self.types if self.level == "system" or type not in ASSOCIATED]

    @cached_property
    def ordered(self) -> list[str]:
        """The types in order: what is exported for being referred to comes last."""
        first = self.in_compartments
        return [*first, *(type for type in self.types if type not in first)]

    def conditions(self, type: str, base_url: str) -> tuple[tuple[Condition, ...], ...]:
        """What the filters of a type ask: one of these lists holds."""
        queries = [parse_query(type, parse_qsl(query), base_url=base_url) for of, query in self.filters if of == type]
        return tuple(query.conditions for query in queries)

    def subset(self, type: str) -> Subset | None:
        """The elements that are exported of a type; None: all."""
        if self.elements is None:
            return None
        named = (name.rpartition(".") for name in self.elements)
        return Subset(elements=frozenset(name for of, _, name in named if of in ("", type) and name in children(type)))


async def start_export(store: Store, client: str, request: Request, patients: Sequence[str] | None) -> str:
    """Start it; returns the id of its Task. `patients` are the ids of the only Patients to export, None: of all.

    Raises TooManyExports.
    """
    mine = [("code", f"{JOB}|export"), ("owner:identifier", f"{CLIENT}|{client}"), ("status", "ready,in-progress,on-hold")]
    if len((await store.search(parse_query("Task", [*mine, ("_count", str(UNDER_WAY))]))).matches) >= UNDER_WAY:
        raise TooManyExports(f"{UNDER_WAY} exports of this client are under way; start another when one of them is done")
    now = store.clock()
    mark = await store.writers()  # asked for after the time: who has an earlier time was writing by then
    members = patients is not None
    asked = replace(request, moment=micros(now), mark=mark, members=members, few=members and len(patients or ()) <= FEW)
    inputs = [("level", request.level), ("_type", ",".join(request.types))]
    inputs += [("_since", instant(moment(request.since)))] if request.since is not None else []
    targets = [("Patient", id) for id in patients or ()]
    return await start(store, "export", asdict(asked), client=client, inputs=inputs, keep=targets)


def forget(id: str) -> Sequence[Op]:
    """Clear away the files of a job, and the fact that tells of them."""
    return [DropForJob(id), SetState(NAMESPACE, id, None)]


@dataclass
class _Progress:
    """How far an export is, between two slices."""

    type: int = 0  # place in the types
    after: int = 0
    seen: int = 0
    written: int = 0
    closed: bool = False  # what is referred to has been gathered to its end
    files: list[dict[str, Any]] = field(default_factory=list)


async def export(means: Means, job: Job) -> Step:
    """One slice: pages of one type after the other."""
    asked = Request(**job.parameters)
    at = _Progress(**job.state)
    if not job.state and not await _settled(means, asked):
        return Step({}, wait=_SETTLING)
    total = await _total(means, job, asked)
    files = Files(job.id, at.files)
    kept = await _read(means, job, asked, at, files)
    finished = at.type == len(asked.ordered)
    if finished:
        await files.add_all("error", "OperationOutcome", [_told(text) for text in asked.issues])
    kept = replace(kept, parts=await files.parts())
    ending = _ending(means, job, asked, at) if finished else []
    done, total = (at.seen, max(total, at.seen)) if total is not None else (at.written, None)
    output = [{"type": {"text": one["type"]}, "valueInteger": one["count"]} for one in at.files] if finished else ()
    return Step(asdict(at), done, total, [kept, *ending], finished, output)


async def _read(means: Means, job: Job, asked: Request, at: _Progress, files: Files) -> KeepForJob:
    """Pages into files, until it is time to write them. Returns what is to be kept besides."""
    source = GuardedStore(means.store, read(asked.principal), means.grace)
    referring: list[int] = []
    end = time.monotonic() + means.seconds
    while at.type < len(asked.ordered) and time.monotonic() < end and not files.full:
        if at.type == len(asked.in_compartments) and not at.closed:
            at.closed = True  # what is gathered has to be written before it can be asked for
            return KeepForJob(job.id, referring=referring, to=ASSOCIATED, closed=True)
        page = await source.export_page(_query(means, job, asked, at))
        await _write(files, asked, asked.ordered[at.type], page)
        if asked.level != "system" and not at.closed:
            referring += (row.key for row in page.rows)
        at.seen, at.written = at.seen + page.seen, at.written + len(page.rows)
        at.type, at.after = (at.type, page.after) if page.after is not None else (at.type + 1, 0)
        await asyncio.sleep(0)  # SQLite answers at once, and others have work too
    return KeepForJob(job.id, referring=referring, to=ASSOCIATED)


async def _settled(means: Means, asked: Request) -> bool:
    """Whether nothing can come any more that belongs to the moment: all who were writing then have ended, on any machine.

    Waits for it, but not longer than a slice may take.
    """
    early = moment(asked.moment) + means.skew - means.store.clock()
    await asyncio.sleep(min(max(early.total_seconds(), 0), 2 * means.skew.total_seconds()))
    end = time.monotonic() + means.seconds
    while not await means.store.writers_done(asked.mark):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def _total(means: Means, job: Job, asked: Request) -> int | None:
    """How many resources there are to look at, when that is worth knowing."""
    if asked.level != "system" or asked.since is not None or not read(asked.principal).sees_everything:
        return None
    return job.total if job.total is not None else await means.store.count(asked.types)


def _query(means: Means, job: Job, asked: Request, at: _Progress) -> ExportQuery:
    type = asked.ordered[at.type]
    associated = type not in asked.in_compartments
    return ExportQuery(
        job.id,
        type,
        asked.moment,
        asked.since,
        asked.until,
        asked.conditions(type, means.base_url),
        compartment=asked.level != "system" and not associated,
        members=asked.members,
        few=asked.few,
        referenced=associated,
        after=at.after,
    )


async def _write(files: Files, asked: Request, type: str, page: ExportPage) -> None:
    subset = asked.subset(type)
    lines = [json.one_line(row.body) if subset is None else subset.of(row.body) for row in page.rows]
    await files.add_all("output", type, lines)
    entries = [{"request": {"method": "DELETE", "url": f"{type}/{id}"}} for id in page.deleted]
    bundles = [entries[start : start + _ENTRIES] for start in range(0, len(entries), _ENTRIES)]
    envelope: Mapping[str, Any] = {"resourceType": "Bundle", "type": "transaction"}
    await files.add_all("deleted", "Bundle", [json.dumps({**envelope, "entry": listed}) for listed in bundles])


def _told(text: str) -> bytes:
    return json.dumps(outcome([Issue("warning", "not-supported", text)]))


def _ending(means: Means, job: Job, asked: Request, at: _Progress) -> Sequence[Op]:
    at_moment = {"transactionTime": instant(moment(asked.moment))}
    return ended(means, job, {"request": asked.url, **at_moment, "since": asked.since is not None, "files": at.files})


def ended(means: Means, job: Job, known: Mapping[str, Any]) -> Sequence[Op]:
    """The fact that tells the client what there is, and the timer that takes it away."""
    now = means.store.clock()
    until = now + means.retention
    fact = {"client": job.client, "transactionTime": instant(now), "expires": micros(until), **known}
    return [SetState(NAMESPACE, job.id, fact), SetTimer(f"{EXPIRY}:{job.id}", EXPIRY, until, {"task": job.id})]


def compartment_types() -> frozenset[str]:
    """The types that can belong to a Patient."""
    return frozenset({"Patient", *definitions().compartments["Patient"]})
