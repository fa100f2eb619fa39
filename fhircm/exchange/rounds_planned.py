"""A round that looks where a change is likely, for the requests that the partner's budget has left.

https://hl7.org/fhir/R4/search.html#lastUpdated. What it does not reach, the next one does: see fhircm/exchange/plan.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from fhircm.exchange import hints
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.freshness import longest
from fhircm.exchange.loops import open_loops
from fhircm.exchange.mapping import Source
from fhircm.exchange.pages import Received
from fhircm.exchange.panel import OVERLAP
from fhircm.exchange.partners import PullType
from fhircm.exchange.plan import HINTED, NEVER, PATIENT, WAITED, Situation, Visit, plan
from fhircm.exchange.rounds import Round
from fhircm.exchange.together import together
from fhircm.store.resources import Store


class Planned(Round):
    """What is due, the most urgent first; `hinted_only`: what was hinted at, and nothing else."""

    def __init__(
        self,
        store: Store,
        client: PartnerClient,
        owner: str | None,
        seconds: float | None,
        *,
        hinted_only: bool = False,
    ) -> None:
        super().__init__(store, client, owner, seconds)
        self.hinted_only = hinted_only

    async def _known(self) -> Collection[Source]:
        """What patients share and is found by reference alone is read once; whether it changed, a round over the whole panel sees."""
        kept = await self.store.states(self.mirror.shared_rows)
        by_reference = {one.type for one in self.partner.pull if not one.searches}
        known = {Source(*name.split("/", 1)) for name in (*kept, *self.ledger.missing["gaps"])}
        return frozenset(one for one in known if one.type in by_reference)

    async def _work(self) -> None:
        self.allowance = self.partner.budget.allowance(self.ledger.row.get("budget"), self.store.clock())
        for one in self.partner.pull:
            if one.across and one.last_updated and self.ledger.trusts(one.type) and not self.hinted_only and not self.is_over():
                await self._across(one)
        await self._visits()
        await self.mend()
        for one in self.panel.absent():
            self.ledger.gap(one, "not given")

    async def _visits(self) -> None:
        now, patients, allowance = self.store.clock(), self.panel.patients, self.allowance
        if self.hinted_only:
            patients = sorted({hint.patient for hint in self.hints.values()} & self.panel.members)
        left = None if allowance is None else max(0, allowance - self.requests)
        situation = Situation(
            patients,
            self.looks.types,
            self.looks.of,
            longest(self.partner).total_seconds(),
            frozenset() if allowance is None or self.hinted_only else await open_loops(self.store, self.partner, patients),
            dict(self._hinted()),
            {type: mark["told"] for type, mark in self.ledger.row["across"].items() if mark.get("told")},
        )
        chosen = plan(situation, now, left, seed=int(now.timestamp()))
        visits = iter(chosen.visits)
        if self.hinted_only:
            visits = iter([Visit(visit.patient, due) for visit in chosen.visits if (due := _hinted_at(visit))])
        else:
            per_hour = self.partner.budget.per_hour
            self.report.due, self.report.short = chosen.left, max(0.0, chosen.needed - per_hour) if per_hour else 0.0
            self.ledger.row["short"] = round(self.report.short, 1)

        async def some() -> None:
            for visit in visits:
                if (
                    allowance is not None and self.requests >= allowance
                ):  # pages, and what was referred to, were more than supposed
                    self.report.due += len(visit.types)
                    continue
                await self._visit(visit)
                self.report.patients += 1

        await together(some() for _ in range(self.partner.limits.concurrency))

    def _hinted(self) -> Iterable[tuple[tuple[str, str], str]]:
        for (patient, type), hint in self.hints.items():
            for one in self.looks.types if type == hints.ANY else [type]:
                yield (patient, one), hint.means

    async def _visit(self, visit: Visit) -> None:
        types = dict(visit.types)
        row = await self.mirror.row(f"Patient/{visit.patient}")
        if f"Patient/{visit.patient}" not in row.of:
            types.setdefault(PATIENT, NEVER)
        await self.patient(visit.patient, types, {type for type, why in types.items() if why in (NEVER, WAITED)})
        self.report.looks.update(Counter(types.values()))

    # --- one search for all patients --------------------------------------------------------------------------------------------------

    async def _across(self, one: PullType) -> None:
        """Ask once whose resources of a type changed. They are hinted at, and the mark moves with the hints."""
        mark = self.ledger.row["across"].get(one.type) or {"since": self._oldest(one.type), "told": 0}
        there = self.client.counts.clock
        if there is not None and there.timestamp() + OVERLAP.total_seconds() < mark["since"]:
            mark = {"since": self._oldest(one.type), "told": 0}  # its clock went back
        if not mark["since"]:
            return  # not all patients were looked at yet
        try:
            changed, taken = await self.panel.across(one, mark["since"])
        except PartnerRefused:
            self.ledger.distrust(one.type)
            return
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            self.report.failed.append(f"{one.type} of all patients: {error}")
            return
        self.ledger.row["across"][one.type] = {"since": taken.there, "told": taken.at}
        facts = []
        for patient in await self._unknown(changed):
            if (patient, one.type) not in self.hints:
                facts += hints.hinted(self.partner.name, patient, [one.type], "last-updated", self.store.clock())
        await self.store.transact([*facts, *self.ledger.facts()], origin=f"partner:{self.partner.name}")
        for hint in await hints.waiting(self.store, self.partner.name):
            self.hints.setdefault((hint.patient, hint.type), hint)

    async def _unknown(self, changed: Mapping[str, Sequence[Received]]) -> list[str]:
        """The patients of whom a version came that is not here: what lies within the overlap comes again and again."""
        rows = await self.store.states_of(self.mirror.rows, [f"Patient/{patient}" for patient in changed])
        unknown = []
        for patient, resources in sorted(changed.items()):
            of = rows.get(f"Patient/{patient}", {}).get("of", {})
            here = (of.get(f"{one.type}/{one.id}", "").partition(".")[2] == one.version for one in resources)
            unknown += [] if all(here) else [patient]
        return unknown

    def _oldest(self, type: str) -> int:
        """The partner's clock at the look that is longest ago; 0 while somebody was never looked at."""
        return min((self.looks.look(patient, type).since for patient in self.panel.patients), default=0)


def _hinted_at(visit: Visit) -> dict[str, str]:
    return {type: why for type, why in visit.types.items() if why == HINTED}
