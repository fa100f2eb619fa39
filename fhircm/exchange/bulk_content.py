"""Write what an export brought: part after part, patient after patient, through the same door as what a search finds.

https://hl7.org/fhir/uv/bulkdata/export.html#response---complete-status. Files come in any order and by type; here each patient's lines are
together, so that one transaction holds what belongs together, and a part of the export is all that is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fhircm.exchange import quarantine
from fhircm.exchange.bulk_spool import SHARED, STRANGE, Line, Spool, part_of
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, SignInRefused, issues, summary
from fhircm.exchange.mapping import Source, hub_id, referred, source
from fhircm.exchange.mirror import GONE, Batch, Mirror, Refusal, Row
from fhircm.exchange.pages import Received, cut, newest
from fhircm.exchange.quarantine import Misplaced, Strange, nameless
from fhircm.exchange.together import together
from fhircm.fhir import json
from fhircm.fhir.outcome import FhirError
from fhircm.store.resources import SetState, Store

TOGETHER = 500  # shared resources, or deleted ones, in one batch
KEPT = 100  # refusals that are told one by one


class _Head(msgspec.Struct):
    resourceType: str | None = None
    id: str | None = None
    patient: Any = None
    subject: Any = None
    for_: Any = msgspec.field(default=None, name="for")
    beneficiary: Any = None


_head = msgspec.json.Decoder(_Head)


def belonging(
    base_url: str, types: Collection[str], members: Collection[str] | None, *, strict: bool
) -> Callable[[bytes], str | None]:
    """What names the patient of a line: the id, "" for a line about nobody, None for one that is not wanted.

    Wanted are these types, about these `members` (None: anybody). The function raises PartnerAnswerBroken for a line that is no resource, and,
    where the export should hold nobody else (`strict`), Misplaced for one about somebody else.
    """

    def of(line: bytes) -> str | None:
        try:
            head = _head.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise PartnerAnswerBroken("The line is not a FHIR resource in JSON") from None
        if not head.resourceType or not head.id:
            raise PartnerAnswerBroken("The resource has no type or no id")
        if head.resourceType not in types:
            return None
        patient = head.id if head.resourceType == "Patient" else _patient(base_url, head, line)
        if patient and members is not None and patient not in members:
            if strict:
                raise Misplaced("It is of a patient who is not in the panel")
            return None
        return patient

    return of


def _patient(base_url: str, head: _Head, line: bytes) -> str:
    """The id of the patient that a resource is about; "" for none."""
    for element in (head.patient, head.subject, head.for_, head.beneficiary):
        reference = element.get("reference") if isinstance(element, dict) else None
        named = source(base_url, reference) if isinstance(reference, str) else None
        if named is not None and named.type == "Patient":
            return named.id
    return min((one.id for one in referred(base_url, line) if one.type == "Patient"), default="")


def patient_of(base_url: str, body: bytes) -> str:
    """The id at the partner of the patient that a resource of the partner's is about; "" for none."""
    head = _head.decode(body)
    return head.id or "" if head.resourceType == "Patient" else _patient(base_url, head, body)


def patient_of_copy(body: bytes) -> str:
    """The id at the hub of the patient that one of the hub's copies is about; "" for none."""
    return patient_of("", body)


@dataclass
class Content:
    """What became of the content so far."""

    patients: int = 0
    resources: int = 0
    written: int = 0
    unchanged: int = 0
    gone: int = 0
    held: int = 0  # strange lines in quarantine
    refused: int = 0
    some_refused: list[str] = field(default_factory=list)  # the first of them
    failed: dict[str, str] = field(default_factory=dict)  # type: why some of it could not be written


class Writer:
    """Writes the parts of one export. `whole`: the types of which the export should tell everything that there is."""

    def __init__(
        self,
        store: Store,
        client: PartnerClient,
        members: frozenset[str] | None,
        whole: Collection[str],
        reads: int,
        content: Content,
    ) -> None:
        self.store, self.client, self.partner, self.base = store, client, client.partner, client.partner.base_url
        self.members, self.whole, self.content = members, frozenset(whole), content
        self.waiting: dict[int, set[Source]] = {}  # part: what it refers to that had not come
        self._reads = reads
        self.mirror = self._mirror()

    def _mirror(self) -> Mirror:
        mirror = Mirror(self.store, self.partner, lambda: self.client.counts.clock)
        mirror.members = self.members
        return mirror

    async def part(self, spool: Spool, number: int, parts: int) -> None:
        """Write one part. Raises SignInRefused, OSError."""
        if number == SHARED:
            for chunk in _chunks(spool.part(SHARED), TOGETHER):
                await self._write(SHARED, Batch("", Row(), shared=_received(chunk)), count=True)
            return
        lines: dict[str, list[bytes]] = {}
        belongs = belonging(self.base, self.partner.types, self.members, strict=False)
        for line in spool.part(number):
            lines.setdefault(belongs(line.body) or "", []).append(line.body)
        silent = (id for id in self.members or () if self.whole and part_of(id, parts) == number and id not in lines)
        for id in sorted({*lines, *silent}):
            await self._patient(number, id, _received(lines.get(id, ())), looking=True)
            self.content.patients += id in lines

    async def mend(self, spool: Spool, parts: int, again: Collection[int]) -> None:
        """Write parts once more, in which references led to nothing that now lead somewhere; `again` is for those of an earlier process."""
        fresh = self._mirror()
        todo = {part for part, wanted in self.waiting.items() if await fresh.has_any(wanted)} | set(again)
        self.mirror, self.waiting = fresh, {}
        belongs = belonging(self.base, self.partner.types, self.members, strict=False)
        for number in sorted(todo):
            if number == SHARED:
                for chunk in _chunks(spool.part(SHARED), TOGETHER):
                    await self._write(SHARED, Batch("", Row(), shared=_received(chunk)), count=False)
                continue
            lines: dict[str, list[bytes]] = {}
            for line in spool.part(number):
                lines.setdefault(belongs(line.body) or "", []).append(line.body)
            for id in sorted(lines):
                await self._patient(number, id, _received(lines[id]), looking=False)

    async def strange(self, spool: Spool, name: Callable[[int], str], belongs: Callable[[bytes], str | None]) -> None:
        """Put what cannot be told whose it is into quarantine."""
        for chunk in _chunks(spool.part(STRANGE), TOGETHER):
            held = [self._strange(line, name(line.file), belongs) for line in chunk]
            operations = await quarantine.hold(self.store, self.partner.name, "", held, ())
            if operations:
                await self.store.transact(operations, origin=self.mirror.origin)
            self.content.held += len(held)

    def _strange(self, line: Line, file: str, belongs: Callable[[bytes], str | None]) -> Strange:
        try:
            received = cut(line.body)
        except PartnerAnswerBroken:
            received = Received(None, None, line.body)
        why: FhirError = PartnerAnswerBroken("It cannot be told whose it is")
        try:
            belongs(line.body)
        except FhirError as error:
            why = error
        self._refuse(Refusal(f"line {line.number} of {file}", tuple(why.issues)))
        if received.type and received.id:
            return Strange(quarantine.misplaced_name(Source(received.type, received.id), "an export"), why, received)
        return nameless(received, "an export")

    async def deleted(self, sources: Iterable[Source]) -> None:
        """Remember that the partner has these no more."""
        for chunk in _chunks(sources, TOGETHER):
            owners = await self._owners(chunk)
            for patient, mine in owners.items():
                if patient:
                    row = await self.mirror.row(f"Patient/{patient}")
                    gone = {one for one in mine if row.of.get(str(one), GONE) != GONE}
                    await self._write(None, Batch(f"Patient/{patient}", row, gone=gone), count=False)
                    self.content.gone += len(gone)
                else:
                    known = await self.store.states_of(self.mirror.shared_rows, [str(one) for one in mine])
                    facts = [
                        SetState(self.mirror.shared_rows, key, {"of": GONE}) for key, row in known.items() if row["of"] != GONE
                    ]
                    if facts:
                        await self.store.transact(facts, origin=self.mirror.origin)
                    self.content.gone += len(facts)

    async def _owners(self, sources: Iterable[Source]) -> dict[str, set[Source]]:
        """These by the patient in whose record they are at the hub; what is in none under ""."""
        wanted = {(one.type, hub_id(self.base, str(one))): one for one in sources if one.type in self.partner.types}
        copies = await self.store.read_many(wanted)
        about = {wanted[key]: patient_of_copy(copy.body) for key, copy in copies.items()}
        patients = await self.store.read_many({("Patient", id) for id in about.values() if id})
        there = {id: patient.tree["meta"].get("source", "").rpartition("/")[2] for (_, id), patient in patients.items()}
        owners: dict[str, set[Source]] = {}
        for one, id in about.items():
            owners.setdefault(there.get(id, ""), set()).add(one)
        return owners

    # --- one patient ---------------------------------------------------------------------------------------------------------

    async def _patient(self, part: int, id: str, own: dict[Source, Received], *, looking: bool) -> None:
        """Write one patient's; `looking`: also look for what a whole export told before and does not tell now."""
        key, here = f"Patient/{id}", Source("Patient", id)
        row = await self.mirror.row(key)
        batch = Batch(key, row, own=own)
        if looking and self.whole and row.of:
            batch.whole = self.whole
            await self._vanished(batch)
        if own and here not in own and not await self.mirror.has_any({here}):
            try:
                own[here] = await self.client.read("Patient", id)
            except SignInRefused:
                raise
            except (PartnerUnavailable, PartnerRefused, PartnerAnswerBroken) as error:
                self._fail({one.type for one in own}, f"{key} is not in the export and cannot be read: {error}")
                return
        if own or batch.gone:
            await self._write(part, batch, count=looking)
            self.content.gone += len(batch.gone)

    async def _vanished(self, batch: Batch) -> None:
        before = [Source(*name.split("/", 1)) for name, mark in batch.row.of.items() if mark != GONE]
        missing = [one for one in before if one.type in self.whole and one not in batch.own][: self._reads]
        self._reads -= len(missing)

        async def ask(one: Source) -> None:
            try:
                received = await self.client.read(one.type, one.id)
            except SignInRefused:
                raise
            except PartnerRefused as error:
                if error.answered in (404, 410):
                    batch.gone.add(one)
            except (PartnerUnavailable, PartnerAnswerBroken):
                return  # the next whole export asks again
            else:
                if received.id == one.id:
                    batch.own[one] = received

        await together(ask(one) for one in missing)

    async def _write(self, part: int | None, batch: Batch, *, count: bool) -> None:
        try:
            result = await self.mirror.write(batch)
        except FhirError as error:  # others write the same at the same time
            self._fail({one.type for one in (*batch.own, *batch.shared)}, f"{batch.key or 'shared resources'}: {error}")
            return
        if part is not None and result.unresolved:
            self.waiting.setdefault(part, set()).update(result.unresolved)
        self.content.written += result.written
        if count:
            self.content.resources += result.resources
            self.content.unchanged += result.unchanged
            for refusal in result.refused:
                self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        self.content.refused += 1
        if len(self.content.some_refused) < KEPT:
            self.content.some_refused.append(str(refusal))

    def _fail(self, types: Iterable[str], why: str) -> None:
        for type in types:
            self.content.failed.setdefault(type, why)


def _received(lines: Iterable[Any]) -> dict[Source, Received]:
    """Each resource of these lines once, the newest of those that came twice."""
    found = newest([cut(line.body if isinstance(line, Line) else line) for line in lines])
    return {Source(one.type, one.id): one for one in found if one.type and one.id}


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def deleted_in(base_url: str, line: bytes) -> list[Source]:
    """What a line of a file of deleted resources names: a Bundle of DELETE requests. Raises FhirError."""
    tree = json.parse(line)
    found = []
    for entry in tree.get("entry", []) if isinstance(tree.get("entry"), list) else ():
        request = entry.get("request", {}) if isinstance(entry, dict) else {}
        if isinstance(request, dict) and request.get("method") == "DELETE" and isinstance(request.get("url"), str):
            named = source(base_url, request["url"])
            if named is not None:
                found.append(named)
    return found


def told_in(line: bytes, types: Collection[str]) -> tuple[str, set[str], bool]:
    """What an OperationOutcome of an error file says: harmless words, the exported types that it names, and whether it is an error."""
    tree: Mapping[str, Any] = json.parse(line)
    told = issues(line) or []
    words = str(tree.get("issue", ""))
    named = {type for type in types if f"{type}/" in words or f"{type}?" in words or f"'{type}'" in words or f" {type} " in words}
    return summary(told), named, any(one.severity in ("error", "fatal") for one in told)
