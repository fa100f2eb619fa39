"""One round at one partner: a patient is read and written, and what that tells is counted; see rounds_whole and rounds_planned.

https://hl7.org/fhir/R4/http.html and https://hl7.org/fhir/R4/patient.html#links (merges)
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple
from datetime import datetime
from time import monotonic

from fhircm.exchange import gone, hints
from fhircm.exchange.client import PartnerClient, Spent
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable
from fhircm.exchange.freshness import Ledger
from fhircm.exchange.hints import Hint
from fhircm.exchange.looks import Looks
from fhircm.exchange.mapping import Source, hub_id
from fhircm.exchange.members import members
from fhircm.exchange.merge import replaced
from fhircm.exchange.mirror import GONE, HELD, Batch, Facts, Mirror, Refusal, Row
from fhircm.exchange.panel import OVERLAP, Panel, Reading, Stopped
from fhircm.exchange.plan import PATIENT, rules
from fhircm.exchange.pull_report import PullReport
from fhircm.fhir.outcome import FhirError, Issue
from fhircm.store.resources import SetState, Store

log = logging.getLogger("fhircm.exchange.pull")

KEEP = 5.0  # seconds between two notes of what was looked at


class Round:
    """What all rounds have in common."""

    def __init__(self, store: Store, client: PartnerClient, owner: str | None, seconds: float | None) -> None:
        self.store, self.client, self.partner = store, client, client.partner
        self.owner = owner
        self.allowance: int | None = None  # requests of this round
        self._ends = None if seconds is None else monotonic() + seconds
        self.mirror = Mirror(store, client.partner, lambda: client.counts.clock)
        self.report = PullReport(client.partner.name)
        self.full = False  # nothing is believed that was said of changes
        self.panel: Panel
        self.looks: Looks
        self.ledger: Ledger
        self.hints: dict[tuple[str, str], Hint] = {}
        self._waiting: list[tuple[Batch, frozenset[Source]]] = []  # with references to what had not come yet
        self._followed: list[SetState] = []
        self._counted = _copied(client.counts.by_type)
        self._began = (monotonic(), client.counts.pages, client.counts.requests)
        self._kept_at = monotonic()
        self._seen = self._gone = 0

    async def run(self) -> PullReport:
        """The whole of it."""
        try:
            await self._open()
            await self._work()
        except Stopped as stopped:
            self._charge()
            await self.keep(now=True)
            assert stopped.__cause__ is not None
            raise stopped.__cause__ from None
        finally:
            if hasattr(self, "panel"):
                await self.panel.close()
            self._count()
        self._charge()
        await self.keep(now=True)
        log.info("%s: %s", self.report.partner, self.report.summary())
        return self.report

    async def _open(self) -> None:
        patients = await members(self.client, self.store, self.report.refused.append)
        self.ledger = await Ledger.read(self.store, self.partner)
        self.looks = await Looks.read(self.store, self.partner, sorted(set(patients)))
        known = await self._known()
        clock = self.store.clock
        self.panel = Panel(self.client, patients, clock, trusts=self.ledger.trusts, whole=self.full, known=known)
        self.mirror.members = self.panel.members
        self.report.panel = len(self.panel.patients)
        for hint in await hints.waiting(self.store, self.partner.name):
            if hint.patient not in self.panel.members:  # nobody of this panel, or no more
                self._followed.append(hints.followed(self.partner.name, hint))
            self.hints[hint.patient, hint.type] = hint

    async def _known(self) -> Collection[Source]:
        """Shared resources that need not be read in this round."""
        return ()

    async def _work(self) -> None:
        raise NotImplementedError

    def _charge(self) -> None:
        """Take what this round asked from the partner's budget."""
        kept = self.partner.budget.after(self.ledger.row.get("budget"), self.store.clock(), self.requests)
        if kept is not None:
            self.ledger.row["budget"] = kept

    def is_over(self) -> bool:
        """Whether this round has used up its requests or its time; what is left is then for the next one."""
        spent = self.allowance is not None and self.requests >= self.allowance
        if spent or (self._ends is not None and monotonic() >= self._ends):
            self.report.cut = True
            return True
        return False

    # --- one patient ----------------------------------------------------------------------------------------------------------------

    async def patient(
        self, id: str, types: Collection[str] | None, whole: Collection[str], progress: Facts = lambda *_: ()
    ) -> frozenset[Source] | None:
        """Read and write a patient, or these types of it; those in `whole` from end to end.

        Returns what is referred to and may still come; None when something is left for another time.
        """
        row = await self.mirror.row(f"Patient/{id}")
        looks = self.looks.of.get(id, {})
        try:
            reading = await self.panel.read(id, row, looks, types, whole)
        except PartnerRefused as error:
            self.report.refused.append(Refusal(f"Patient/{id}", tuple(error.issues)))
            self.ledger.unreadable(id, f"answered {error.answered}")
            if error.answered in (404, 410):
                await self._moved(id)
            return frozenset()
        except (PartnerUnavailable, PartnerAnswerBroken) as error:
            self.report.failed.append(f"Patient/{id}: {error}")
            self.ledger.failed(PATIENT, id)
            return None
        self._doubt(id, reading)
        later = await self._write(reading, id, row, progress)
        return None if reading.failed else later

    async def _write(self, reading: Reading, id: str, row: Row, progress: Facts = lambda *_: ()) -> frozenset[Source] | None:
        """Write what was read; returns what it refers to and may still come, or None when it could not be written."""
        batch = reading.batch
        self.report.refused += reading.refused
        self.report.failed += reading.failed

        def facts(unresolved: frozenset[Source], changed: frozenset[Source]) -> list[SetState]:
            self._spend()
            return [*progress(unresolved, changed), self.ledger.fact(self._means(id, reading, changed, row))]

        try:
            result = await self.mirror.write(batch, facts)
        except FhirError as error:  # others write the same resources at the same time: the next pull has them
            self.report.failed.append(f"{batch.key or 'shared resources'}: {error}")
            return None
        self.report.gone += len(batch.gone)
        self.report.resources += result.resources
        self.report.written += result.written
        self.report.unchanged += result.unchanged
        self.report.refused += result.refused
        for type, means in self._means(id, reading, result.changed, row):
            self.ledger.found(type, means)
        await self._note(id, reading, result.changed, row)
        if later := self.panel.may_come(result.unresolved):
            self._waiting.append((batch, later))
        await self.keep()
        return later

    def _doubt(self, id: str, reading: Reading) -> None:
        """When very much is gone at once, it is not believed: an index may be lost, or a right to see."""
        batch, by = reading.batch, rules()
        self._seen += len(batch.own)
        if self._gone + len(batch.gone) > max(by.vanish_least, by.vanish_share * self._seen):
            types = {one.type for one in batch.gone}
            text = (
                f"{len(batch.gone)} resources of Patient/{id} are gone, after so many others in this pull that it is not believed"
            )
            reading.failed.append(text)
            for type in types:
                reading.taken.pop(type, None)
                reading.broken[type] = "too much is gone at once"
            batch.whole -= types
            batch.gone.clear()
        self._gone += len(batch.gone)

    # --- what it tells --------------------------------------------------------------------------------------------------------------

    def _hint(self, id: str, type: str) -> Hint | None:
        return self.hints.get((id, type)) or self.hints.get((id, hints.ANY))

    def _means(self, id: str, reading: Reading, changed: Iterable[Source], row: Row) -> list[tuple[str, str]]:
        """Of each change, by what means it was found. What comes for the first time with a patient is no change."""
        found = []
        for one in changed:
            taken = reading.taken.get(one.type) if one in reading.batch.own else None
            if taken is None:
                found += [(one.type, "full" if self.full else "hash")] if row.of else []
            elif self.looks.look(id, one.type).at:
                hint = self._hint(id, one.type)
                usual = "last-updated" if not taken.whole else "full" if self.full else "hash"
                found.append((one.type, hint.means if hint else usual))
        return found

    async def _note(self, id: str, reading: Reading, changed: Collection[Source], row: Row) -> None:
        """What is known now of the patient, type by type."""
        batch, by = reading.batch, rules()
        for type, taken in reading.taken.items():
            before = self.looks.look(id, type)
            fresh = [one for one in changed if one.type == type and one in batch.own]
            found = bool(fresh) or any(one.type == type for one in batch.gone)
            look = before.seen(taken.at, found and bool(before.at), taken.cost, by)._replace(since=taken.there)
            if taken.whole:
                look = look._replace(whole=taken.at, full=taken.full)
                self._judge(type, max(before.since, self.ledger.row["across"].get(type, {}).get("since", 0)), fresh, batch, row)
            self.looks.note(id, type, look)
            self.ledger.refused(type, None)
            self.ledger.failed(type, id, now_well=True)
            for one in fresh if before.at else ():
                self._came(one, batch, before.since)
            if (hint := self.hints.get((id, type))) is not None:
                self._followed.append(hints.followed(self.partner.name, hint))
        everything = self.hints.get((id, hints.ANY))
        if everything is not None and reading.taken.keys() >= set(self.looks.types):
            self._followed.append(hints.followed(self.partner.name, everything))
        for type, why in reading.broken.items():
            if any(refusal.what == f"{type}, by search" for refusal in self.report.refused):
                self.ledger.refused(type, why)
            else:
                self.ledger.failed(type, id)
        for type in self.panel.refuse_since:
            if self.ledger.trusts(type):
                self.ledger.distrust(type)
                issue = Issue("error", "not-supported", "The partner refuses it now; everything is read from now on")
                self.report.refused.append(Refusal(f"{type}, by _lastUpdated", (issue,)))
        if (own := batch.own.get(Source(PATIENT, id))) is not None:
            self.ledger.unreadable(id, None)
            if (into := _replaced_by(own.tree)) is not None:
                await self._into(id, into)
        operations = await gone.told(self.store, self.partner, batch.gone, self.owner)
        back = [one for one in changed if row.of.get(str(one)) == GONE]
        operations += await gone.came_back(self.store, self.partner, back)
        if operations:
            await self.store.transact(operations, origin="hub")

    def _judge(self, type: str, since: int, fresh: Iterable[Source], batch: Batch, row: Row) -> None:
        """Whether `_lastUpdated` should have told of what a whole look found: the partner says it was changed before it was last asked."""
        if not since or not any(one.type == type and one.last_updated for one in self.partner.pull):
            return
        for one in fresh:
            mark, received = row.of.get(str(one)), batch.own[one]
            version = (mark or "").partition(".")[2]
            if mark in (HELD, GONE) or (mark and (not version or version == received.version)):
                continue  # it was known, or is new only for the hub, because what it refers to has come
            at = _second(received.last_updated)
            if at is None or at < since - OVERLAP.total_seconds():
                self.report.missed[type] += 1
                if self.ledger.missed(type):
                    log.warning("%s: _lastUpdated of %s hides changes and is not believed any more", self.partner.name, type)

    def _came(self, one: Source, batch: Batch, since: int) -> None:
        at = _second(batch.own[one].last_updated)
        if at is not None and since and at >= since - OVERLAP.total_seconds():
            self.ledger.came(one.type, self.store.clock().timestamp() - at)

    # --- merges ---------------------------------------------------------------------------------------------------------------------

    async def _moved(self, id: str) -> None:
        """A Patient is not there any more: perhaps another one has its identifiers now."""
        copy = (await self.store.read_many([(PATIENT, hub_id(self.partner.base_url, f"Patient/{id}"))])).values()
        for identifier in (one for stored in copy for one in stored.tree.get("identifier", [])):
            if not identifier.get("system") or not identifier.get("value"):
                continue
            try:
                token = f"{identifier['system']}|{identifier['value']}"
                found = await self.client.search_all(PATIENT, [("identifier", token)])
            except (PartnerRefused, PartnerAnswerBroken):
                return  # it does not let itself be searched so
            others = {one.id for one in found if one.type == PATIENT and one.id and one.id != id}
            if len(others) == 1:
                await self._into(id, others.pop())
                return

    async def _into(self, id: str, into: str) -> None:
        self.report.merged[id] = into
        self.ledger.merged(id, into)
        if noted := await replaced(self.store, self.partner, id, into):
            await self.store.transact(noted, origin=self.mirror.origin)

    # --- keeping ------------------------------------------------------------------------------------------------------------------

    async def mend(self) -> None:
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

    async def keep(self, *, now: bool = False) -> None:
        """Keep what was looked at, what was counted and which hints were followed, every few seconds and at the end."""
        if not now and monotonic() - self._kept_at < KEEP:
            return
        self._kept_at = monotonic()
        self._spend()
        followed, self._followed = self._followed, []
        facts = [*self.looks.facts(), *followed, *self.ledger.facts()]
        await self.store.transact(facts, origin=f"partner:{self.partner.name}")

    def _spend(self) -> None:
        """Count what was asked since this was counted last."""
        now = _copied(self.client.counts.by_type)
        nothing = Spent()
        self.ledger.spent({type: _less(one, self._counted.get(type, nothing)) for type, one in now.items()})
        self._counted = now

    @property
    def requests(self) -> int:
        """What this round asked so far."""
        return self.client.counts.requests - self._began[2]

    def _count(self) -> None:
        began, pages, requests = self._began
        counts = self.client.counts
        self.report.pages, self.report.requests = counts.pages - pages, counts.requests - requests
        self.report.seconds = monotonic() - began


def _copied(by_type: Mapping[str, Spent]) -> dict[str, Spent]:
    return {type: Spent(*astuple(one)) for type, one in by_type.items()}


def _less(one: Spent, before: Spent) -> Spent:
    return Spent(*(now - then for now, then in zip(astuple(one), astuple(before), strict=True)))


def _second(text: str | None) -> float | None:
    """An instant as FHIR writes it, in seconds since the epoch."""
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at.timestamp() if at.tzinfo else None


def _replaced_by(tree: dict[str, object]) -> str | None:
    """The id of the Patient that this one was merged into, by its own word."""
    links = tree.get("link")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("type") == "replaced-by" and isinstance(link.get("other"), dict):
            type, _, id = str(link["other"].get("reference", "")).rpartition("/")
            if type.endswith(PATIENT) and id:
                return id
    return None
