"""Keep copies of a partner's resources at the hub: what did not change is not written, what cannot be taken is told, the rest is one transaction.

https://hl7.org/fhir/R4/provenance.html. What is at the hub already is remembered as fingerprints, in facts that commit with the copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from fhircm.exchange import gone, quarantine
from fhircm.exchange.map_rules import Notes
from fhircm.exchange.mapping import Copied, Source, digest, hub_id, inbound, provenance, referred, same
from fhircm.exchange.pages import Received
from fhircm.exchange.partners import Partner
from fhircm.exchange.quarantine import Strange
from fhircm.exchange.unmapped import Unknown
from fhircm.fhir.outcome import FhirError, Invalid, Issue, NotFound, VersionConflict
from fhircm.fhir.validation import Checked, check, check_tree
from fhircm.store.resources import Op, Put, SetState, Store, Stored

BATCH = 500  # resources in one transaction; only resources that refer to one another in a circle may be more
ATTEMPTS = 4  # when somebody else writes the same resources meanwhile
GONE = "gone"  # in place of a fingerprint: the partner has it no more
HELD = "held"  # the last that came is in quarantine
Facts = Callable[[frozenset[Source], frozenset[Source]], Sequence[SetState]]  # of what is unresolved, and of what is written
NPI = "http://hl7.org/fhir/sid/us-npi"


class Refusal(NamedTuple):
    """What a pull could not take, and why; never what is in it."""

    what: str  # Type/id at the partner, or a search
    issues: tuple[Issue, ...]

    def __str__(self) -> str:
        return f"{self.what}: {quarantine.told(self.issues)}"


@dataclass
class Row:
    """What is remembered of a group of copies: a fingerprint for each."""

    of: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)  # names in quarantine of what is not this patient's

    def as_json(self) -> dict[str, Any]:
        """The form in which it is kept."""
        return {"of": self.of, "strange": self.strange} if self.strange else {"of": self.of}


@dataclass
class Batch:
    """Resources that belong together: a patient's own, and those of others that they refer to.

    `strange`: what came among them and is not to be written, by its name in quarantine. `whole`: the types that were read from end to end.
    `trusted`: a human said that versions and times are to be taken as they are.
    """

    key: str  # Patient/id at the partner, or empty
    row: Row  # as it was
    own: dict[Source, Received] = field(default_factory=dict)
    shared: dict[Source, Received] = field(default_factory=dict)
    gone: set[Source] = field(default_factory=set)
    strange: dict[str, Strange] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    trusted: bool = False

    @property
    def patients(self) -> set[str]:
        """The ids that this human has at the partner: the record's own, and those that it was merged with."""
        own = {one.id for one in self.own if str(one) == self.key} | {self.key.removeprefix("Patient/")}
        record = self.own.get(Source("Patient", self.key.removeprefix("Patient/")))
        if record is not None:
            with suppress(FhirError):  # it is refused itself, and nothing is known of merges
                links = record.tree.get("link", [])
                others = (link["other"]["reference"] for link in links if isinstance(link, dict) and "other" in link)
                own |= {str(other).rpartition("/")[2] for other in others}
        return own


@dataclass
class Written:
    """What became of a batch."""

    resources: int = 0
    changed: frozenset[Source] = frozenset()  # of these, what was written
    refused: list[Refusal] = field(default_factory=list)
    unresolved: frozenset[Source] = frozenset()  # referred to, not at the hub, and of a type that another batch may bring

    @property
    def written(self) -> int:
        """How many were written."""
        return len(self.changed)

    @property
    def unchanged(self) -> int:
        """Resources that were at the hub already, as they are."""
        return self.resources - self.written - len(self.refused)


@dataclass
class _Judged:
    """What is to be done with a batch."""

    mapped: dict[Source, bytes]
    checked: dict[Source, Checked]  # of those that must be written
    existing: dict[Source, Stored]
    refused: dict[Source, FhirError]
    unresolved: frozenset[Source]
    known: frozenset[Source]  # that the hub had a copy of before


class Mirror:
    """The copies of one partner, during one pull. One batch is written at a time."""

    def __init__(self, store: Store, partner: Partner, clock_there: Callable[[], datetime | None] = lambda: None) -> None:
        self.store, self.partner, self.base = store, partner, partner.base_url
        self.clock_there = clock_there
        self.origin = f"partner:{partner.name}"
        self.rows, self.shared_rows = f"mirror:{partner.name}", f"mirror-shared:{partner.name}"
        self.settled: set[Source] = set()  # shared resources that this pull has dealt with
        self._here: set[Source] = set()  # known to be at the hub
        self._refused: set[Source] = set()
        self._shared: dict[Source, str | None] = {}  # fingerprints
        self.members: frozenset[str] | None = (
            None  # the ids of the panel's patients at the partner, when those are all that may be told of
        )
        self._custodian = Source("Organization", partner.organization.id)
        self._unknown = Unknown(store, partner)
        self._one = asyncio.Lock()

    async def row(self, key: str) -> Row:
        """What is remembered of a batch."""
        kept = await self.store.state(self.rows, key)
        return Row(kept["of"], kept.get("strange", [])) if kept else Row()

    async def write(self, batch: Batch, progress: Facts = lambda *_: ()) -> Written:
        """Write what changed, all of it with its Provenance and its fingerprints, or nothing; `progress` is asked for at the commit.

        What the store refuses beside the others, such as one that closes a cycle, goes to quarantine. Raises the store's errors when
        others write the same resources again and again.
        """
        refused: dict[Source, FhirError] = {}
        attempt = 1
        async with self._one:
            while True:
                try:
                    return await self._write(batch, progress, refused)
                except (VersionConflict, Invalid) as error:
                    self._here.clear()
                    one = self._about(batch, error) if attempt > 1 else None  # at first others may have written in between
                    if one is not None and one not in refused:
                        refused[one] = error
                    elif attempt == ATTEMPTS:
                        raise
                    else:
                        attempt += 1

    def _about(self, batch: Batch, error: FhirError) -> Source | None:
        """Which of a batch the store refused."""
        there = (one for one in (*batch.own, *batch.shared) if isinstance(error, Invalid))
        return next((one for one in there if error.issues[0].resource == (one.type, hub_id(self.base, str(one)))), None)

    async def _write(self, batch: Batch, progress: Facts, refused_before: Mapping[Source, FhirError]) -> Written:
        resources = {**{one: got for one, got in batch.shared.items() if one not in self.settled}, **batch.own}
        before = {one: batch.row.of.get(str(one)) for one in batch.own}
        before |= {one: await self._fingerprint(one) for one in resources if one not in batch.own}
        as_mapped, failed = self._by_map(resources)
        judged = await self._judge(batch, as_mapped, before, {**failed, **refused_before})
        marks = {one: _mark(body, resources[one]) for one, body in judged.mapped.items()}
        for one, why in judged.refused.items():
            if isinstance(why, quarantine.Misplaced):  # the same may be where it belongs as well
                strange = Strange(quarantine.misplaced_name(one, batch.key), why, resources[one])
                batch.strange[strange.name] = strange
            else:
                marks[one] = HELD
        held = await self._held(batch, resources, judged, before)
        chunks = _chunks({one: referred(self.base, as_mapped[one].body) for one in judged.checked})
        for chunk in chunks[:-1]:
            await self._commit(chunk, resources, judged, batch, {one: marks[one] for one in chunk})
        await self._commit(chunks[-1] if chunks else [], resources, judged, batch, marks, progress, held)
        self._remember(batch, judged.mapped, judged)
        refused = [_refusal(one, why) for one, why in judged.refused.items()]
        return Written(len(resources), frozenset(judged.checked), refused, judged.unresolved)

    async def has_any(self, wanted: Iterable[Source]) -> bool:
        """Whether one of these is at the hub now."""
        return bool(await self._at_hub(set(wanted)))

    # --- what is to be done ---------------------------------------------------------------------------------------------------

    def _by_map(self, resources: Mapping[Source, Received]) -> tuple[dict[Source, Received], dict[Source, FhirError]]:
        """The resources as the partner's map has them, and those that a rule of it failed at."""
        mapped: dict[Source, Received] = {}
        failed: dict[Source, FhirError] = {}
        for one, got in resources.items():
            notes = Notes()
            try:
                mapped[one] = self.partner.maps.inbound(got, notes)
            except FhirError as error:
                failed[one] = error
            self._unknown.note(str(one), notes.unmapped)
        return mapped, failed

    async def _judge(
        self,
        batch: Batch,
        resources: Mapping[Source, Received],
        before: Mapping[Source, str | None],
        failed: Mapping[Source, FhirError],
    ) -> _Judged:
        """Map and check until nothing more is refused: what refers to something refused must be mapped again."""
        refused: dict[Source, FhirError] = dict(failed)
        checked: dict[Source, tuple[str, Checked]] = {}
        existing: dict[Source, Stored] = {}
        links = {one: referred(self.base, got.body) for one, got in resources.items()}
        patients = batch.patients
        while True:
            accepted = resources.keys() - refused.keys()
            wanted = {target for one in accepted for target in links[one]} - accepted
            here = await self._at_hub(wanted) | accepted
            mapped: dict[Source, bytes] = {}
            for one in sorted(accepted):
                try:
                    mapped[one] = inbound(self.base, resources[one], here.__contains__)
                except FhirError as error:
                    refused[one] = error
            changed = [one for one, body in mapped.items() if not _is(before.get(one), body)]
            for one in changed:
                if one in batch.own and batch.key:
                    try:
                        quarantine.check_place(self.base, resources[one], patients, self.members)
                    except FhirError as error:
                        refused[one] = error
            changed = [one for one in changed if one not in refused]
            existing |= await self._existing(one for one in changed if one not in existing)
            different = [one for one in changed if one not in existing or not same(mapped[one], existing[one].body)]
            for one in different:
                try:
                    if not batch.trusted:
                        quarantine.check_time(resources[one], _version_in(before.get(one)), self.now())
                    checked[one] = self._checked(mapped[one], checked.get(one), existing.get(one))
                except FhirError as error:
                    refused[one] = error
            if not refused.keys() & accepted:
                missing = (one for one in wanted - here - refused.keys() - self._refused if one.type in self.partner.types)
                known = frozenset(one for one in changed if before.get(one))
                return _Judged(mapped, {one: checked[one][1] for one in different}, existing, refused, frozenset(missing), known)

    def _checked(self, body: bytes, before: tuple[str, Checked] | None, existing: Stored | None) -> tuple[str, Checked]:
        mark = digest(body)
        if before is not None and before[0] == mark:
            return before
        resource = check(body, by_guides=False)  # what a partner claims and does not keep is its own affair
        self.store.check_rules(existing, resource, self.origin)
        return mark, resource

    async def _at_hub(self, wanted: set[Source]) -> set[Source]:
        """Which of these are at the hub."""
        asked = {one for one in wanted - self._here if one.type in self.partner.types or one == self._custodian}
        found = set(await self._existing(asked)) if asked else set()
        self._here |= {one for one in found if self._is_shared(one)}
        return found | (wanted & self._here)

    async def _existing(self, sources: Iterable[Source]) -> dict[Source, Stored]:
        identities = {(one.type, hub_id(self.base, str(one))): one for one in sources}
        return {identities[identity]: stored for identity, stored in (await self.store.read_many(identities)).items()}

    async def _fingerprint(self, shared: Source) -> str | None:
        if shared not in self._shared:
            kept = await self.store.state(self.shared_rows, str(shared))
            self._shared[shared] = kept["of"] if kept else None
        return self._shared[shared]

    # --- doing it -------------------------------------------------------------------------------------------------------------

    async def _commit(
        self,
        chunk: Sequence[Source],
        resources: Mapping[Source, Received],
        judged: _Judged,
        batch: Batch,
        marks: Mapping[Source, str],
        progress: Facts = lambda *_: (),
        held: Sequence[Op] | None = None,
    ) -> None:
        """One transaction: copies, their Provenance and their fingerprints; nothing when none of these is new.

        With the last chunk goes what changes in quarantine (`held`), and what is gone.
        """
        row = _new_row(batch, marks, last=held is not None)
        facts = [SetState(self.rows, batch.key, row.as_json())] if row != batch.row else []
        for one, mark in sorted(marks.items()):
            if one not in batch.own and not _same_mark(self._shared.get(one), mark):
                facts.append(SetState(self.shared_rows, str(one), {"of": mark}))
        puts = [Put(judged.checked[one], _version(judged, one)) for one in chunk]
        if puts:
            copied = [await self._copied(resources[one], judged, one) for one in chunk]
            puts.append(Put(check_tree(provenance(await self._who(chunk), copied, self.store.clock())), 0))
        if held is not None:
            puts += [put for copy in (await self._existing(batch.gone)).values() if (put := gone.marked(copy))]
            facts += await self._unknown.facts()
        if puts or facts or held:
            counted = progress(judged.unresolved, frozenset(judged.checked))
            await self.store.transact([*puts, *facts, *(held or ()), *counted], origin=self.origin)
            self._unknown.saved()
        batch.row = row
        self._shared |= {one: mark for one, mark in marks.items() if one not in batch.own}

    async def _copied(self, received: Received, judged: _Judged, one: Source) -> Copied:
        type, id = one.type, hub_id(self.base, str(one))
        version = _version(judged, one) + 1
        if version == 1 and one in judged.known:  # deleted at the hub, where its versions go on counting
            with suppress(NotFound):
                version = (await self.store.history(type, id))[0].version + 1
        there = f"{self.base}/{one}" + (f"/_history/{received.version}" if received.version else "")
        return Copied(f"{type}/{id}/_history/{version}", there)

    async def _who(self, chunk: Sequence[Source]) -> dict[str, Any]:
        """The partner's organisation, as a resource when the hub has it."""
        organization = self.partner.organization
        who: dict[str, Any] = {"display": organization.name}
        if self._custodian in chunk or await self._at_hub({self._custodian}):
            return {"reference": f"Organization/{hub_id(self.base, str(self._custodian))}", **who}
        return {"type": "Organization", "identifier": {"system": NPI, "value": organization.npi}, **who}

    async def _held(
        self,
        batch: Batch,
        resources: Mapping[Source, Received],
        judged: _Judged,
        before: Mapping[Source, str | None],
    ) -> list[Op]:
        """What changes in quarantine."""
        strange = [Strange(str(one), why, resources[one]) for one, why in sorted(judged.refused.items())]
        strange = [one for one in strange if not isinstance(one.why, quarantine.Misplaced)]
        was = [str(one) for one, mark in before.items() if mark == HELD]
        was += [str(one) for one in batch.gone if batch.row.of.get(str(one)) == HELD]
        was += [name for name in batch.row.strange if _looked_for(name, batch)]
        return list(await quarantine.hold(self.store, self.partner.name, batch.key, [*strange, *batch.strange.values()], was))

    def now(self) -> datetime:
        """The later of the hub's clock and the partner's own, as far as that was told."""
        return max(self.store.clock(), self.clock_there() or self.store.clock())

    def _remember(self, batch: Batch, written: Iterable[Source], judged: _Judged) -> None:
        written = set(written)
        shared = {one for one in (*written, *batch.shared) if one.type == "Patient" or one not in batch.own}
        self.settled |= shared
        self._here |= shared & written
        self._refused |= judged.refused.keys()

    def _is_shared(self, one: Source) -> bool:
        return one.type == "Patient" or one in self._shared


def _new_row(batch: Batch, marks: Mapping[Source, str], *, last: bool) -> Row:
    """What is to be remembered of a batch once these are written."""
    own = {str(one): mark for one, mark in marks.items() if one in batch.own}
    fresh = {name: mark for name, mark in own.items() if not _same_mark(batch.row.of.get(name), mark)}
    row = Row({**batch.row.of, **fresh}, batch.row.strange)
    if last:
        row.of |= {str(one): GONE for one in batch.gone}
        row.strange = sorted({name for name in row.strange if not _looked_for(name, batch)} | batch.strange.keys())
    return row


def _looked_for(name: str, batch: Batch) -> bool:
    """Whether something strange of before would have been found again, if it still came."""
    return name.partition("/")[0] in batch.whole


def _mark(body: bytes, received: Received) -> str:
    """The fingerprint of a mapped body and, where it counts, the version at the partner."""
    version = quarantine.numbered(received.version)
    return f"{digest(body)}.{version}" if version else digest(body)


def _is(mark: str | None, body: bytes) -> bool:
    """Whether a body is the one of a fingerprint."""
    return mark is not None and mark.partition(".")[0] == digest(body)


def _same_mark(before: str | None, mark: str) -> bool:
    return before is not None and before.partition(".")[0] == mark.partition(".")[0]


def _version_in(mark: str | None) -> str | None:
    return (mark or "").partition(".")[2] or None


def _version(judged: _Judged, one: Source) -> int:
    return judged.existing[one].version if one in judged.existing else 0


def _refusal(one: Source, why: FhirError) -> Refusal:
    return Refusal(str(one), tuple(why.issues))


def _chunks(links: Mapping[Source, set[Source]]) -> list[list[Source]]:
    """Resources in an order in which none comes before what it refers to, cut into transactions; a circle stays together."""
    if len(links) <= BATCH:
        return [sorted(links)] if links else []
    chunks: list[list[Source]] = [[]]
    for circle in _circles(links):
        if chunks[-1] and len(chunks[-1]) + len(circle) > BATCH:
            chunks.append([])
        chunks[-1] += circle
    return chunks


def _circles(links: Mapping[Source, set[Source]]) -> list[list[Source]]:
    """The strongly connected parts, those that are referred to first (Tarjan 1972, https://doi.org/10.1137/0201010)."""
    number: dict[Source, int] = {}
    lowest: dict[Source, int] = {}
    waiting: list[Source] = []
    parts: list[list[Source]] = []
    finished: set[Source] = set()
    for root in sorted(links):
        path = [(root, iter(sorted(links[root] & links.keys())))] if root not in number else []
        while path:
            here, targets = path[-1]
            if here not in number:
                number[here] = lowest[here] = len(number)
                waiting.append(here)
            following = next(targets, None)
            if following is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[here])
                if lowest[here] == number[here]:
                    at = waiting.index(here)
                    parts.append(waiting[at:])
                    finished.update(waiting[at:])
                    del waiting[at:]
            elif following not in number:
                path.append((following, iter(sorted(links[following] & links.keys()))))
            elif following not in finished:
                lowest[here] = min(lowest[here], number[following])
    return parts
