"""Keep copies of a partner's resources at the hub: what did not change is not written, what cannot be taken is told, the rest is one transaction.

https://hl7.org/fhir/R4/provenance.html. What is at the hub already is remembered as fingerprints, in facts that commit with the copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fhircm.exchange.mapping import Copied, Source, digest, hub_id, inbound, provenance, referred, same
from fhircm.exchange.pages import Received
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import FhirError, Invalid, Issue, NotFound, VersionConflict
from fhircm.fhir.validation import Checked, check, check_tree
from fhircm.store.resources import Put, SetState, Store, Stored

BATCH = 500  # resources in one transaction; only resources that refer to one another in a circle may be more
ATTEMPTS = 4  # when somebody else writes the same resources meanwhile
GONE = "gone"  # in place of a fingerprint: the partner has it no more
Facts = Callable[[frozenset[Source]], Sequence[SetState]]  # of what is unresolved
NPI = "http://hl7.org/fhir/sid/us-npi"


class Refusal(NamedTuple):
    """What a pull could not take, and why; never what is in it."""

    what: str  # Type/id at the partner, or a search
    issues: tuple[Issue, ...]

    def __str__(self) -> str:
        reasons = dict.fromkeys(
            f"{issue.expression}: {issue.text}" if issue.expression else issue.text for issue in self.issues if issue
        )
        return f"{self.what}: {'; '.join(reasons)}"


@dataclass
class Row:
    """What is remembered of a group of copies: a fingerprint for each, and since when the partner need only tell what changed."""

    of: dict[str, str] = field(default_factory=dict)
    marks: dict[str, dict[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The form in which it is kept."""
        return {"of": self.of, "marks": self.marks} if self.marks else {"of": self.of}


@dataclass
class Batch:
    """Resources that belong together: a patient's own, and those of others that they refer to."""

    key: str  # Patient/id at the partner
    row: Row  # as it was
    own: dict[Source, Received] = field(default_factory=dict)
    shared: dict[Source, Received] = field(default_factory=dict)
    gone: set[Source] = field(default_factory=set)
    marks: dict[str, dict[str, str]] = field(default_factory=dict)
    marks_matter: bool = False  # the marks are worth a write of their own


@dataclass
class Written:
    """What became of a batch."""

    resources: int = 0
    written: int = 0
    refused: list[Refusal] = field(default_factory=list)
    unresolved: frozenset[Source] = frozenset()  # referred to, not at the hub, and of a type that another batch may bring

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

    def __init__(self, store: Store, partner: Partner) -> None:
        self.store, self.partner, self.base = store, partner, partner.base_url
        self.origin = f"partner:{partner.name}"
        self.rows, self.shared_rows = f"mirror:{partner.name}", f"mirror-shared:{partner.name}"
        self.settled: set[Source] = set()  # shared resources that this pull has dealt with
        self._here: set[Source] = set()  # known to be at the hub
        self._refused: set[Source] = set()
        self._shared: dict[Source, str | None] = {}  # fingerprints
        self._custodian = Source("Organization", partner.organization.id)
        self._one = asyncio.Lock()

    async def row(self, key: str) -> Row:
        """What is remembered of a batch."""
        kept = await self.store.state(self.rows, key)
        return Row(kept["of"], kept.get("marks", {})) if kept else Row()

    async def write(self, batch: Batch, progress: Facts = lambda _: ()) -> Written:
        """Write what changed, all of it with its Provenance and its fingerprints, or nothing; `progress` is asked for at the commit.

        Raises the store's errors when others write the same resources again and again.
        """
        async with self._one:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return await self._write(batch, progress)
                except (VersionConflict, Invalid):
                    self._here.clear()
                    if attempt == ATTEMPTS:
                        raise
        raise AssertionError("unreachable")

    async def _write(self, batch: Batch, progress: Facts) -> Written:
        resources = {**{one: got for one, got in batch.shared.items() if one not in self.settled}, **batch.own}
        before = {one: batch.row.of.get(str(one)) for one in batch.own}
        before |= {one: await self._fingerprint(one) for one in resources if one not in batch.own}
        judged = await self._judge(resources, before)
        marks = {one: digest(body) for one, body in judged.mapped.items()}
        chunks = _chunks({one: referred(self.base, resources[one].body) for one in judged.checked})
        for chunk in chunks[:-1]:
            await self._commit(chunk, resources, judged, batch, {one: marks[one] for one in chunk})
        await self._commit(chunks[-1] if chunks else [], resources, judged, batch, marks, progress, last=True)
        self._remember(batch, marks, judged)
        refused = [_refusal(one, why) for one, why in judged.refused.items()]
        return Written(len(resources), len(judged.checked), refused, judged.unresolved)

    async def has_any(self, wanted: Iterable[Source]) -> bool:
        """Whether one of these is at the hub now."""
        return bool(await self._at_hub(set(wanted)))

    # --- what is to be done ---------------------------------------------------------------------------------------------------

    async def _judge(self, resources: Mapping[Source, Received], before: Mapping[Source, str | None]) -> _Judged:
        """Map and check until nothing more is refused: what refers to something refused must be mapped again."""
        refused: dict[Source, FhirError] = {}
        checked: dict[Source, tuple[str, Checked]] = {}
        existing: dict[Source, Stored] = {}
        links = {one: referred(self.base, got.body) for one, got in resources.items()}
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
            changed = [one for one, body in mapped.items() if digest(body) != before.get(one)]
            existing |= await self._existing(one for one in changed if one not in existing)
            different = [one for one in changed if one not in existing or not same(mapped[one], existing[one].body)]
            for one in different:
                try:
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
        progress: Facts = lambda _: (),
        *,
        last: bool = False,
    ) -> None:
        """One transaction: copies, their Provenance and their fingerprints; nothing when none of these is new."""
        row = _new_row(batch, marks, last)
        facts = [SetState(self.rows, batch.key, row.as_json())] if row != batch.row else []
        for one, mark in sorted(marks.items()):
            if one not in batch.own and self._shared.get(one) != mark:
                facts.append(SetState(self.shared_rows, str(one), {"of": mark}))
        puts = [Put(judged.checked[one], _version(judged, one)) for one in chunk]
        if puts:
            copied = [await self._copied(resources[one], judged, one) for one in chunk]
            puts.append(Put(check_tree(provenance(await self._who(chunk), copied, self.store.clock())), 0))
        if puts or facts:
            await self.store.transact([*puts, *facts, *progress(judged.unresolved)], origin=self.origin)
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

    def _remember(self, batch: Batch, marks: Mapping[Source, str], judged: _Judged) -> None:
        shared = {one for one in (*marks, *batch.shared) if one.type == "Patient" or one not in batch.own}
        self.settled |= shared
        self._here |= shared & marks.keys()
        self._refused |= judged.refused.keys()

    def _is_shared(self, one: Source) -> bool:
        return one.type == "Patient" or one in self._shared


def _new_row(batch: Batch, marks: Mapping[Source, str], last: bool) -> Row:
    """What is to be remembered of a batch once these are written."""
    row = Row({**batch.row.of, **{str(one): mark for one, mark in marks.items() if one in batch.own}}, batch.row.marks)
    if last:
        row.of |= {str(one): GONE for one in batch.gone}
        if row.of != batch.row.of or batch.marks_matter:
            row.marks = batch.marks
    return row


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
