"""From the journal to the database: events become AuditEvents in the chain, a batch in each transaction.

A segment goes when all of it is committed. What was committed before a process ended is known by its id, so nothing is written twice.
docs/decisions/audit-is-a-chain.md
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

from fhircm.access.audit import PATIENTS, asked_of, audit_event, entities, framed
from fhircm.access.audit_journal import Event, Journal, Segment, adopt, backlog, next_segment
from fhircm.fhir import guides, json
from fhircm.fhir.outcome import FhirError
from fhircm.store.audit import Entry, chain, patients_of, patients_of_job
from fhircm.store.guides import GuidesMoved
from fhircm.store.resources import Store
from fhircm.store.search_rows import ANY_PARAM, SearchRows, search_rows
from fhircm.store.stored import instant, moment

log = logging.getLogger("fhircm.audit")

BATCH = 100  # events in one transaction: of SQLite, a request waits until they are written
SLICE = 10  # events that are made ready before requests get their turn
EVERY = 1.0  # seconds: how old an open segment becomes
REST = 19  # while requests come in, how many times as long as it worked a serving process leaves them alone
FULL = 0.25  # of what the journal may hold: from there on it does not rest
_KEPT = 50_000  # versions whose patients are remembered
_MARK = "-.mark.-"  # stands in the rows of a kind of entity for its id

Rows = dict[str, list[tuple[Any, ...]]]


class Drain:
    """Writes the journal of a folder to the database, whoever wrote it."""

    def __init__(self, store: Store, folder: Path, base_url: str) -> None:
        self.store, self.folder, self.base_url = store, folder, base_url
        self._patients: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    async def run(self, journal: Journal | None = None) -> None:
        """Until cancelled: beside a journal that this process writes, or for others. What fails is tried again, later each time."""
        pause = EVERY
        while True:
            await asyncio.sleep(pause)
            try:
                await self.drain(journal)
                pause = EVERY
            except Exception as error:
                log.error("the audit journal cannot be written to the database (%s); it waits on disk", type(error).__name__)
                pause = min(pause * 2, 30.0)

    async def drain(self, journal: Journal | None = None) -> int:
        """Write all that is closed now; returns how many events. Raises what the database raises: the rest waits."""
        adopt(self.folder)
        total = 0
        while True:
            with next_segment(self.folder) as segment:
                if segment is None:
                    return total
                for start in range(0, len(segment.events), BATCH):
                    served, begun = journal.written if journal else 0, perf_counter()
                    total += await self._write(segment, segment.events[start : start + BATCH])
                    if journal is not None and journal.written > served:
                        await asyncio.sleep((perf_counter() - begun) * self._rest(journal))
                segment.done()

    def _rest(self, journal: Journal) -> float:
        """How many times as long as it worked it rests: the less, the more waits."""
        return REST * max(0.0, 1 - backlog(self.folder).size / (journal.limit * FULL))

    async def _write(self, segment: Segment, events: Sequence[tuple[str, Event]]) -> int:
        about = await self._about([event for _, event in events])
        unwritable: dict[str, Event] = {}
        for _ in range(6):
            await self.store.guides.follow()
            entries: list[Entry] = []
            for (id, event), patients in zip(events, about, strict=True):
                if len(entries) % SLICE == 0:
                    await asyncio.sleep(0)
                parts = [patients[at : at + PATIENTS] for at in range(0, len(patients), PATIENTS)] or [()]
                try:
                    for number, part in enumerate(parts):
                        entries.append(self.entry(len(entries) + 1, id if number == 0 else f"{id}-{number}", event, part))
                except (ValueError, TypeError, KeyError, FhirError):
                    unwritable[id] = event
            try:
                written = await chain(self.store, entries, instant(self.store.clock()))
            except GuidesMoved:
                continue
            for event in unwritable.values():
                segment.set_aside(event)
            return written
        raise FhirError("The guides in force change all the time")

    async def _about(self, events: Sequence[Event]) -> list[Sequence[str]]:
        """The patients of each event."""
        wanted = {one for event in events for one in _things(event)}
        found = {one: self._patients[one] for one in wanted if one in self._patients}
        fresh = await patients_of(self.store, wanted - found.keys())
        # What names no version may be another tomorrow.
        self._patients.update({one: ids for one, ids in fresh.items() if one.count("/") == 2})
        while len(self._patients) > _KEPT:
            self._patients.popitem(last=False)
        found |= fresh
        about = []
        for event in events:
            ids = [*asked_of(event), *(id for one in _things(event) for id in found.get(one, ()))]
            if event.job:
                ids += await patients_of_job(self.store, event.job)
            about.append(tuple(dict.fromkeys(ids)))
        return about

    def entry(self, place: int, id: str, event: Event, patients: Sequence[str]) -> Entry:
        """An event, ready to be chained."""
        known = _known(event._replace(at=0, request=None, target=None, query=None, touched=(), job=None), self.base_url)
        recorded, listed = instant(moment(event.at)), entities(event, patients)
        tail = b',"entity":' + json.dumps(listed) if listed else b""
        body = b'{"resourceType":"AuditEvent","id":"%s"%s,"recorded":"%s"%s}' % (id.encode(), known, recorded.encode(), tail)
        return Entry(id, body, self._rows(place, event, patients, listed))

    def _rows(self, place: int, event: Event, patients: Sequence[str], listed: Sequence[dict[str, Any]]) -> SearchRows:
        """The search rows, without those that keep what is referred to from being deleted: an audit holds nobody."""
        if self.store.full_text or event.code.startswith("!"):
            return _whole(place, audit_event(event, patients, self.base_url), words=self.store.full_text)
        around = guides.in_force()
        caller = event._replace(at=0, request=None, target=None, query=None, touched=(), job=None)
        rows = {table: [(place, *row) for row in of] for table, of in _rows_of_frame(caller, self.base_url, around).items()}
        low = event.at // 1000 * 1000
        param = _date_param(around)
        rows.setdefault("search_date", []).append((place, param, low, low + 1000))
        for one in listed:
            what = one.get("what", {})
            type, _, marked = what.get("reference", "").partition("/")
            marked = marked.partition("/")[0] or what.get("identifier", {}).get("value", "")
            kind = (one["type"]["system"], one["type"]["code"], one.get("role", {}).get("code"), type, "identifier" in what)
            for table, of in _rows_of_entity(*kind, around).items():
                place_for = rows.setdefault(table, [])
                for row in of:
                    made = (place, *(value if value != _MARK else marked for value in row))
                    if made not in place_for:
                        place_for.append(made)
        return SearchRows(rows)


@asynccontextmanager
async def drained(journal: Journal | None, store: Store, base_url: str) -> AsyncIterator[None]:
    """Beside a process that writes this journal: it is drained while the block lasts; what is left at its end waits for the next."""
    if journal is None:
        yield
        return
    drain = Drain(store, journal.folder, base_url)
    tasks = [asyncio.create_task(drain.run(journal)), asyncio.create_task(_tend(journal))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        journal.close_segment()
        journal.sync()


async def _tend(journal: Journal) -> None:
    """Close segments that are old enough, and let the disk have them, however long a drain takes."""
    while True:
        await asyncio.sleep(min(EVERY, journal.sync_every or EVERY))
        journal.close_segment(older=EVERY)
        try:
            await asyncio.to_thread(journal.sync)
        except OSError as error:
            log.error("the disk does not take the audit journal: %s", error.strerror)


def _things(event: Event) -> Sequence[str]:
    """What tells whose record was touched; of what was refused, what was asked for."""
    if event.touched:
        return event.touched
    return [event.target] if event.target and event.target.count("/") == 1 else []


@lru_cache(maxsize=4096)
def _known(event: Event, base_url: str) -> bytes:
    return json.dumps(framed(event, base_url))[len(b'{"resourceType":"AuditEvent"') : -1]


def _whole(place: int, tree: dict[str, Any], *, words: bool = False) -> SearchRows:
    rows = search_rows(place, "AuditEvent", tree, words=words).by_table
    kept = [row for row in rows.get("search_reference", ()) if row[1] != ANY_PARAM]
    return SearchRows({**rows, "search_reference": kept})


def _without_place(tree: dict[str, Any]) -> Rows:
    return {table: [row[1:] for row in rows] for table, rows in _whole(0, tree).by_table.items()}


@lru_cache(maxsize=4096)
def _rows_of_frame(event: Event, base_url: str, around: guides.InForce) -> Rows:
    return _without_place(framed(event, base_url))


@lru_cache(maxsize=256)
def _rows_of_entity(system: str, code: str, role: str | None, type: str, identified: bool, around: guides.InForce) -> Rows:
    one: dict[str, Any] = {"type": {"system": system, "code": code}}
    if role:
        one["role"] = {"system": "http://terminology.hl7.org/CodeSystem/object-role", "code": role}
    if type:
        one["what"] = {"reference": f"{type}/{_MARK}"}
    if identified:
        one["what"] = {"identifier": {"value": _MARK}}
    return _without_place({"resourceType": "AuditEvent", "entity": [one]})


@lru_cache(maxsize=8)
def _date_param(around: guides.InForce) -> int:
    (row,) = _without_place({"resourceType": "AuditEvent", "recorded": "2026-01-01T00:00:00.000Z"})["search_date"]
    return int(row[0])
