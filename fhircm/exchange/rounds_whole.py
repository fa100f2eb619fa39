"""A round that looks at every patient of the panel and at everything that they share; interrupted, it goes on where it stopped.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.freshness import longest
from fhircm.exchange.mapping import Source
from fhircm.exchange.mirror import GONE, Row
from fhircm.exchange.panel import Stopped
from fhircm.exchange.progress import RESUME_WITHIN, Progress
from fhircm.exchange.rounds import Round
from fhircm.exchange.together import together
from fhircm.store.resources import SetState, Store

TOGETHER = 100  # shared resources read again in one batch


class Whole(Round):
    """The whole panel; `full`: without believing `_lastUpdated`; `within_budget`: with no more than this part of what the budget has left."""

    def __init__(
        self,
        store: Store,
        client: PartnerClient,
        owner: str | None,
        seconds: float | None,
        tell: Callable[[int, int], None],
        *,
        full: bool = False,
        within_budget: float | None = None,
    ) -> None:
        super().__init__(store, client, owner, seconds)
        self.tell, self.full, self.within_budget = tell, full, within_budget

    async def _work(self) -> None:
        if self.within_budget is not None:
            left = self.partner.budget.allowance(self.ledger.row.get("budget"), self.store.clock())
            self.allowance = None if left is None else ceil(left * self.within_budget)
        what = f"{self.partner.base_url} {self.full}"
        resume = longest(self.partner) if self.full else RESUME_WITHIN
        progress = Progress(self.store, self.partner.name, what, self.panel.patients, resume)
        self.report.resumed = await progress.resume()
        try:
            await self._patients(progress)
            if self.report.cut:
                await self.mend()
                await progress.save(now=True)
                return
            await self._rest()
            await self.mend()
        except Stopped:
            await progress.save(now=True)
            raise
        self._gaps()
        report = self.report
        figures = {"patients": report.patients, "resources": report.resources, "written": report.written}
        await progress.finish({**figures, "left": len(report.failed)})

    async def _patients(self, progress: Progress) -> None:
        """Several patients at a time: while one is written, others are read."""
        numbers = iter([number for number in range(len(self.panel.patients)) if not progress.is_done(number)])

        async def some() -> None:
            for number in numbers:
                if self.is_over():
                    return
                await self._one(number, progress)
                self.report.patients += 1
                self.tell(self.report.resumed + self.report.patients, len(self.panel.patients))

        self.tell(self.report.resumed, len(self.panel.patients))
        await together(some() for _ in range(self.partner.limits.concurrency))

    async def _one(self, number: int, progress: Progress) -> None:
        """One patient; what was written commits together with the progress."""

        def done(unresolved: frozenset[Source], _: frozenset[Source]) -> list[SetState]:
            return [progress.fact(number, again=bool(self.panel.may_come(unresolved)))]

        later = await self.patient(self.panel.patients[number], None, (), done)
        if later is not None:
            progress.note(number, again=bool(later))
            await progress.save()

    async def _rest(self) -> None:
        """Shared resources that were copied once and that nothing led to now: they may have changed too."""
        kept = await self.store.states(self.mirror.shared_rows)
        known = [Source(*name.split("/", 1)) for name, mark in kept.items() if mark["of"] != GONE]
        left = [one for one in known if one not in self.mirror.settled]
        for start in range(0, len(left), TOGETHER):
            reading = await self.panel.again(left[start : start + TOGETHER])
            await self._write(reading, "", Row({"": ""}))

    def _gaps(self) -> None:
        """What is referred to and was not given: all of it was asked for now."""
        absent = sorted(self.panel.absent())
        self.report.gaps = [str(one) for one in absent]
        self.ledger.missing["gaps"] = {}
        for one in absent:
            self.ledger.gap(one, "not given")
        if self.full:
            self._reconciled()

    def _reconciled(self) -> None:
        report = self.report
        figures = {"gone": report.gone, "written": report.written, "gaps": len(report.gaps), "merged": len(report.merged)}
        again = self.ledger.reconciled(self.store.clock(), {**figures, "left": len(report.failed)})
        report.missed.update(dict.fromkeys(again, 0))
