"""Pull a partner's panel: read each patient, copy what changed, and go on where an interrupted pull stopped.

https://hl7.org/fhir/R4/http.html. Every patient is one transaction with the progress in it, so that a process may be killed anywhere;
what did not change is not written, so that reading it again costs nothing but the reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from time import monotonic
from uuid import uuid4

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.mapping import Source
from fhircm.exchange.mirror import GONE, Batch, Mirror, Refusal, Row
from fhircm.exchange.panel import Panel, Reading, Stopped, members
from fhircm.fhir.outcome import Conflict, FhirError
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.exchange.pull")

NAMESPACE = "pull"
RESUME_WITHIN = timedelta(days=1)  # an older interruption starts over
SAVE = 5.0  # seconds between notes of progress while nothing changes
BEYOND = 1000  # patients done out of turn that are remembered
TOGETHER = 100  # shared resources read again in one batch


class PullRunning(Conflict):
    """Another pull of the same partner is at work."""


@dataclass
class PullReport:
    """What a pull came to. `refused` and `failed` never hold more than types, ids and reasons."""

    partner: str
    panel: int = 0  # patients in it
    patients: int = 0  # read in this pull
    resumed: int = 0  # done by the pull before, which was interrupted
    resources: int = 0
    written: int = 0
    unchanged: int = 0
    gone: int = 0  # not at the partner any more; the copies stay
    pages: int = 0
    requests: int = 0
    seconds: float = 0.0
    refused: list[Refusal] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # left for the next pull

    def summary(self) -> str:
        """The figures in one line."""
        figures = f"{self.patients} patients, {self.resources} resources: {self.written} written, {self.unchanged} unchanged"
        more = [f"{len(self.refused)} refused" if self.refused else "", f"{self.gone} gone" if self.gone else ""]
        more += [f"{len(self.failed)} left for the next pull" if self.failed else ""]
        more += [f"{self.resumed} done before" if self.resumed else ""]
        figures += "".join(f", {one}" for one in more if one)
        return f"{figures}; {self.pages} pages, {self.requests} requests, {self.seconds:.1f} s"


async def pull(
    store: Store,
    client: PartnerClient,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    lease_seconds: float = 30.0,
) -> PullReport:
    """Pull the whole panel; `progress` is told how many patients are done, and of how many.

    Raises PullRunning, PartnerUnavailable, PartnerRefused and PartnerAnswerBroken. Whatever it raises, the next call goes on from there.
    """
    name, holder = f"pull:{client.partner.name}", str(uuid4())
    if not await store.lease(name, holder, lease_seconds):
        raise PullRunning(f"{client.partner.name} is being pulled already, by another process; try again when that is done")
    work = asyncio.create_task(_Pull(store, client, progress).run())
    renewal = asyncio.create_task(_renew(store, name, holder, lease_seconds))
    try:
        await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise PullRunning(f"{client.partner.name}: this pull fell silent, and another process took it over")
    finally:
        for task in (work, renewal):
            task.cancel()
        await asyncio.gather(work, renewal, return_exceptions=True)
        await store.release(name, holder)


async def _renew(store: Store, name: str, holder: str, seconds: float) -> None:
    """Keep the lease; returns when it was lost."""
    while True:
        await asyncio.sleep(seconds / 3)
        if not await store.lease(name, holder, seconds):
            return


class _Progress:
    """Which patients of a panel are done: all up to one, and some beyond it."""

    def __init__(self, store: Store, partner: str, panel: str) -> None:
        self.store, self.partner, self.panel = store, partner, panel
        self.upto = 0
        self.beyond: set[int] = set()
        self.started = store.clock()
        self._saved = monotonic()

    async def resume(self) -> int:
        """Take up the progress of a pull of the same panel that did not come to its end; returns how many patients are done."""
        kept = await self.store.state(NAMESPACE, self.partner)
        if kept and kept.get("panel") == self.panel:
            started = datetime.fromisoformat(kept["started"])
            if timedelta() <= self.store.clock() - started <= RESUME_WITHIN:
                self.started, self.upto, self.beyond = started, kept["upto"], set(kept["beyond"])
        return self.upto + len(self.beyond)

    def is_done(self, number: int) -> bool:
        return number < self.upto or number in self.beyond

    def note(self, number: int) -> SetState:
        """Count a patient as done; the fact commits with the patient."""
        self.beyond.add(number)
        while self.upto in self.beyond:
            self.beyond.remove(self.upto)
            self.upto += 1
        return self.fact()

    def fact(self) -> SetState:
        kept = {"panel": self.panel, "started": self.started.isoformat(), "upto": self.upto, "beyond": sorted(self.beyond)[:BEYOND]}
        return SetState(NAMESPACE, self.partner, kept)

    async def save(self, *, now: bool = False) -> None:
        """Write the progress when nothing else was written for a while."""
        if now or monotonic() - self._saved > SAVE:
            self._saved = monotonic()
            await self.store.transact([self.fact()], origin=f"partner:{self.partner}")


class _Pull:
    """One pull of one panel."""

    def __init__(self, store: Store, client: PartnerClient, progress: Callable[[int, int], None]) -> None:
        self.store, self.client, self.tell = store, client, progress
        self.mirror = Mirror(store, client.partner)
        self.report = PullReport(client.partner.name)
        self._waiting: list[tuple[Batch, frozenset[Source]]] = []  # with references to what had not come yet

    async def run(self) -> PullReport:
        begun, before = monotonic(), (self.client.counts.pages, self.client.counts.requests)
        panel = Panel(self.client, await members(self.client))
        progress = _Progress(self.store, self.client.partner.name, _fingerprint(self.client.partner.base_url, panel.patients))
        self.report.panel, self.report.resumed = len(panel.patients), await progress.resume()
        try:
            await self._patients(panel, progress)
            await self._rest(panel)
            await self._mend(panel)
        except Stopped as stopped:
            await progress.save(now=True)
            assert stopped.__cause__ is not None
            raise stopped.__cause__ from None
        finally:
            await panel.close()
            self._count(begun, before)
        await self._finish()
        return self.report

    async def _patients(self, panel: Panel, progress: _Progress) -> None:
        """Several patients at a time: while one is written, others are read."""
        numbers = iter([number for number in range(len(panel.patients)) if not progress.is_done(number)])
        total = len(panel.patients)

        async def some() -> None:
            for number in numbers:
                if await self._patient(panel, panel.patients[number], progress, number):
                    await progress.save()
                self.tell(self.report.resumed + self.report.patients, total)

        self.tell(self.report.resumed, total)
        workers = [asyncio.create_task(some()) for _ in range(self.client.partner.limits.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _patient(self, panel: Panel, id: str, progress: _Progress, number: int) -> bool:
        """One patient; returns whether it is done."""
        self.report.patients += 1
        try:
            reading = await panel.read(id, await self.mirror.row(f"Patient/{id}"))
        except PartnerRefused as error:
            self.report.refused.append(Refusal(f"Patient/{id}", tuple(error.issues)))
            progress.note(number)
            return True
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            self.report.failed.append(f"Patient/{id}: {error}")
            return False
        facts = [] if reading.failed else [progress.note(number)]
        await self._write(panel, reading, facts)
        return not reading.failed

    async def _write(self, panel: Panel, reading: Reading, facts: list[SetState]) -> None:
        self.report.refused += reading.refused
        self.report.failed += reading.failed
        self.report.gone += len(reading.batch.gone)
        try:
            result = await self.mirror.write(reading.batch, facts)
        except FhirError as error:  # others write the same resources at the same time: the next pull has them
            self.report.failed.append(f"{reading.batch.key or 'shared resources'}: {error}")
            return
        self.report.resources += result.resources
        self.report.written += result.written
        self.report.unchanged += result.unchanged
        self.report.refused += result.refused
        if later := frozenset(one for one in result.unresolved if not panel.is_absent(one)):
            self._waiting.append((reading.batch, later))

    async def _rest(self, panel: Panel) -> None:
        """Shared resources that were copied once and that nothing led to now: they may have changed too."""
        kept = await self.store.states(self.mirror.shared_rows)
        known = [Source(*name.split("/", 1)) for name, mark in kept.items() if mark["of"] != GONE]
        left = [one for one in known if one not in self.mirror.settled]
        for start in range(0, len(left), TOGETHER):
            await self._write(panel, await panel.again(left[start : start + TOGETHER]), [])

    async def _mend(self, panel: Panel) -> None:
        """References that led to nothing when they were written, and now lead somewhere."""
        waiting, self._waiting = self._waiting, []
        for batch, later in waiting:
            if await self.mirror.has_any(later):
                result = await self.mirror.write(batch)
                self.report.written += result.written
                self.report.unchanged -= result.written

    async def _finish(self) -> None:
        report = self.report
        figures = {"patients": report.patients, "resources": report.resources, "written": report.written}
        kept = {**figures, "finished": self.store.clock().isoformat(), "left": len(report.failed)}
        await self.store.transact([SetState(NAMESPACE, report.partner, kept)], origin=self.mirror.origin)
        log.info("%s: %s", report.partner, report.summary())

    def _count(self, begun: float, before: tuple[int, int]) -> None:
        counts = self.client.counts
        self.report.pages, self.report.requests = counts.pages - before[0], counts.requests - before[1]
        self.report.seconds = monotonic() - begun


def _fingerprint(base_url: str, patients: list[str]) -> str:
    return sha256("\n".join([base_url, *patients]).encode()).hexdigest()
