"""Pull a partner's panel: read each patient, copy what changed, and go on where an interrupted pull stopped.

https://hl7.org/fhir/R4/http.html. Every patient is one transaction with the progress in it, so that a process may be killed anywhere;
what did not change is not written, so that reading it again costs nothing but the reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from uuid import uuid4

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.mapping import Source
from fhircm.exchange.members import members
from fhircm.exchange.mirror import GONE, Batch, Facts, Mirror, Refusal
from fhircm.exchange.panel import Panel, Reading, Stopped, together
from fhircm.exchange.progress import Progress
from fhircm.fhir.outcome import Conflict, FhirError
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.exchange.pull")

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


class _Pull:
    """One pull of one panel."""

    def __init__(self, store: Store, client: PartnerClient, progress: Callable[[int, int], None]) -> None:
        self.store, self.client, self.tell = store, client, progress
        self.mirror = Mirror(store, client.partner, lambda: client.counts.clock)
        self.report = PullReport(client.partner.name)
        self._waiting: list[tuple[Batch, frozenset[Source]]] = []  # with references to what had not come yet

    async def run(self) -> PullReport:
        """The whole of it."""
        begun, before = monotonic(), (self.client.counts.pages, self.client.counts.requests)
        panel = Panel(self.client, await members(self.client, self.store, self.report.refused.append))
        self.mirror.members = panel.members
        progress = Progress(self.store, self.client.partner.name, self.client.partner.base_url, panel.patients)
        self.report.panel, self.report.resumed = len(panel.patients), await progress.resume()
        try:
            await self._patients(panel, progress)
            await self._rest(panel)
            await self._mend()
        except Stopped as stopped:
            await progress.save(now=True)
            assert stopped.__cause__ is not None
            raise stopped.__cause__ from None
        finally:
            await panel.close()
            self._count(begun, before)
        await self._finish(progress)
        return self.report

    async def _patients(self, panel: Panel, progress: Progress) -> None:
        """Several patients at a time: while one is written, others are read."""
        numbers = iter([number for number in range(len(panel.patients)) if not progress.is_done(number)])

        async def some() -> None:
            for number in numbers:
                await self._patient(panel, number, progress)
                self.report.patients += 1
                self.tell(self.report.resumed + self.report.patients, len(panel.patients))

        self.tell(self.report.resumed, len(panel.patients))
        await together(some() for _ in range(self.client.partner.limits.concurrency))

    async def _patient(self, panel: Panel, number: int, progress: Progress) -> None:
        """Read and write one patient; what was written commits together with the progress."""
        id = panel.patients[number]
        try:
            reading = await panel.read(id, await self.mirror.row(f"Patient/{id}"))
        except PartnerRefused as error:
            self.report.refused.append(Refusal(f"Patient/{id}", tuple(error.issues)))
            progress.note(number)
            return
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            self.report.failed.append(f"Patient/{id}: {error}")
            return

        def done(unresolved: frozenset[Source]) -> list[SetState]:
            return [] if reading.failed else [progress.fact(number, again=bool(panel.may_come(unresolved)))]

        later = await self._write(panel, reading, done)
        if later is not None and not reading.failed:
            progress.note(number, again=bool(later))
            await progress.save()

    async def _write(self, panel: Panel, reading: Reading, progress: Facts = lambda _: ()) -> frozenset[Source] | None:
        """Write what was read; returns what it refers to and may still come, or None when it could not be written."""
        self.report.refused += reading.refused
        self.report.failed += reading.failed
        self.report.gone += len(reading.batch.gone)
        try:
            result = await self.mirror.write(reading.batch, progress)
        except FhirError as error:  # others write the same resources at the same time: the next pull has them
            self.report.failed.append(f"{reading.batch.key or 'shared resources'}: {error}")
            return None
        self.report.resources += result.resources
        self.report.written += result.written
        self.report.unchanged += result.unchanged
        self.report.refused += result.refused
        if later := panel.may_come(result.unresolved):
            self._waiting.append((reading.batch, later))
        return later

    async def _rest(self, panel: Panel) -> None:
        """Shared resources that were copied once and that nothing led to now: they may have changed too."""
        kept = await self.store.states(self.mirror.shared_rows)
        known = [Source(*name.split("/", 1)) for name, mark in kept.items() if mark["of"] != GONE]
        left = [one for one in known if one not in self.mirror.settled]
        for start in range(0, len(left), TOGETHER):
            await self._write(panel, await panel.again(left[start : start + TOGETHER]))

    async def _mend(self) -> None:
        """References that led to nothing when they were written, and now lead somewhere."""
        for batch, later in self._waiting:
            if await self.mirror.has_any(later):
                try:
                    result = await self.mirror.write(batch)
                except FhirError as error:
                    self.report.failed.append(f"{batch.key}: {error}")
                else:
                    self.report.written += result.written
                    self.report.unchanged -= result.written

    async def _finish(self, progress: Progress) -> None:
        report = self.report
        figures = {"patients": report.patients, "resources": report.resources, "written": report.written}
        await progress.finish({**figures, "left": len(report.failed)})
        log.info("%s: %s", report.partner, report.summary())

    def _count(self, begun: float, before: tuple[int, int]) -> None:
        counts = self.client.counts
        self.report.pages, self.report.requests = counts.pages - before[0], counts.requests - before[1]
        self.report.seconds = monotonic() - begun
