"""Take in the files of an export: fetch them, sort their lines by patient, write them part by part.

https://hl7.org/fhir/uv/bulkdata/export.html#bulk-data-output-file-request. Each step can be begun again anywhere. A file that cannot be had, or
is not whole, costs its type the next `_since`; the rest is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from fhircm.exchange.bulk_content import Content, Writer, belonging, deleted_in, told_in
from fhircm.exchange.bulk_shape import Bulk
from fhircm.exchange.bulk_spool import FileLost, Spool, parts_for
from fhircm.exchange.bulk_state import FIRST_WAIT, Export, Phase, Restart, files_at, keep, renew
from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerUnavailable, SignInRefused
from fhircm.exchange.mapping import Source
from fhircm.exchange.pull import PullRunning
from fhircm.fhir.outcome import FhirError
from fhircm.store.resources import Op, SetState, Store

FILE_ATTEMPTS = 8
Rows = dict[int, dict[str, Any]]
GoOn = Callable[..., Awaitable[None]]  # to a phase, after so many seconds, with more operations
Tell = Callable[[str, int, int], None]


class Intake:
    """The files of one export."""

    def __init__(
        self, store: Store, client: PartnerClient, bulk: Bulk, spool_dir: Path, go_on: GoOn, tell: Tell, lease_seconds: float
    ) -> None:
        self.store, self.client, self.bulk, self.partner = store, client, bulk, client.partner
        self.spool_dir, self._go_on, self.tell, self.lease_seconds = spool_dir, go_on, tell, lease_seconds

    # --- files ---------------------------------------------------------------------------------------------------------------

    async def _rows(self) -> Rows:
        return {int(key): row for key, row in (await self.store.states(files_at(self.partner.name))).items()}

    def _spool(self, export: Export) -> Spool:
        spool = Spool(self.spool_dir, self.partner.name, export.id)
        spool.open()
        return spool

    async def fetch(self, export: Export) -> None:
        rows, spool = await self._rows(), self._spool(export)
        accept = self.bulk.output_format or "application/fhir+ndjson"
        for number, row in rows.items():
            self.tell("files", number, len(rows))
            if row.get("why") or spool.has(number):
                continue
            if not row["allowed"]:
                await self._lost(export, number, row, "it lies at an address that partner.yaml does not name (bulk.files)")
                continue
            try:
                await spool.fetch(self.client, number, row["url"], signed_in=row["token"], accept=accept)
                export.failures = 0
            except SignInRefused:
                raise
            except FileLost as error:
                await self._lost(export, number, row, str(error))
            except PartnerUnavailable as error:
                row["attempts"] += 1
                if row["attempts"] >= FILE_ATTEMPTS:
                    await self._lost(export, number, row, str(error))
                    continue
                await self.store.transact([SetState(files_at(self.partner.name), f"{number:06}", row)], origin="hub")
                raise
        self.tell("files", len(rows), len(rows))
        if rows and all(row.get("why") for row in rows.values()):
            raise Restart("None of the files of the export could be had")
        await self._go_on(export, Phase.SORTING)

    async def _lost(self, export: Export, number: int, row: dict[str, Any], why: str) -> None:
        """A file cannot be had: the rest is taken, and its type is asked for again."""
        row["why"] = why
        export.tell(f"{_name(number, row)}: {why}")
        export.fail([row["type"]] if row["kind"] == "output" and row["type"] in export.types else export.types, why)
        await self.store.transact(
            [keep(self.partner.name, export), SetState(files_at(self.partner.name), f"{number:06}", row)], origin="hub"
        )

    def _present(self, export: Export, rows: Rows, spool: Spool) -> bool:
        return all(row.get("why") or spool.has(number) for number, row in rows.items())

    async def sort(self, export: Export) -> None:
        rows, spool = await self._rows(), self._spool(export)
        if not self._present(export, rows, spool):  # another machine has fetched them
            await self._go_on(export, Phase.FETCHING)
            return
        output = [number for number, row in rows.items() if row["kind"] == "output" and not row.get("why")]
        parts = export.parts or parts_for(spool.size(output))
        found = await asyncio.to_thread(spool.sort, output, parts, self.partner.limits.body, self._belongs(export))
        again: list[Op] = []
        for number in output:
            row = rows[number]
            why = found.broken.get(number)
            if why is None and row["count"] is not None and row["count"] != found.lines.get(number, 0):
                why = f"the manifest says {row['count']} resources, and there are {found.lines.get(number, 0)}"
            if why is None:
                continue
            if row.get("fetched_again"):
                export.tell(f"{_name(number, row)}: {why}")
                export.fail([row["type"]] if row["type"] in export.types else export.types, why)
                continue
            spool.forget(number)
            again.append(SetState(files_at(self.partner.name), f"{number:06}", {**row, "fetched_again": True}))
        if again:
            await self._go_on(export, Phase.FETCHING, FIRST_WAIT, *again)
            return
        for number, line in found.too_long:
            export.tell(f"{_name(number, rows[number])}, line {line}: longer than {self.partner.limits.body} bytes")
        if found.left_out:
            export.tell(f"{found.left_out} lines are of patients or types that are not wanted here")
        self._errors(export, rows, spool)
        export.parts = parts
        await self._go_on(export, Phase.WRITING)

    def _belongs(self, export: Export) -> Callable[[bytes], str | None]:
        members = frozenset(export.members) if export.members is not None else None
        return belonging(self.partner.base_url, self.partner.types, members, strict=self.bulk.level == "group")

    def _errors(self, export: Export, rows: Rows, spool: Spool) -> None:
        """What the partner says that it could not export: the types that it names are asked for again, or all when it names none."""
        for number, row in rows.items():
            if row["kind"] != "error" or row.get("why"):
                continue
            try:
                for _, line in spool.lines(number, self.partner.limits.body):
                    text, named, grave = told_in(line or b"{}", export.types)
                    export.tell(f"The partner says: {text}")
                    if grave:
                        export.fail(sorted(named) or export.types, f"the partner could not export it: {text}")
            except FhirError as error:
                export.fail(export.types, f"a file of errors cannot be read: {error}")

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def write(self, export: Export) -> None:
        rows, spool = await self._rows(), self._spool(export)
        if not spool.is_sorted():
            await self._go_on(export, Phase.SORTING)
            return
        name, holder = f"pull:{self.partner.name}", str(uuid4())
        if not await self.store.lease(name, holder, self.lease_seconds):
            raise PullRunning(f"{self.partner.name} is being pulled by search at the moment")
        renewal = asyncio.create_task(renew(self.store, name, holder, self.lease_seconds))
        try:
            await self._parts(export, rows, spool, Content(**export.content), renewal)
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            await self.store.release(name, holder)

    async def _parts(self, export: Export, rows: Rows, spool: Spool, content: Content, renewal: asyncio.Task[None]) -> None:
        members = frozenset(export.members) if export.members is not None else None
        writer = Writer(self.store, self.client, members, self._whole(export), self.bulk.vanished_reads, content)
        before = list(export.mend)
        if export.written == 0:
            await writer.deleted(self._deleted(export, rows, spool))
            await writer.strange(spool, lambda number: _name(number, rows[number]), self._belongs(export))
        pause = monotonic()
        for part in range(export.written, export.parts + 1):
            self.tell("parts", part, export.parts + 1)
            await writer.part(spool, part, export.parts)
            export.written, export.content = part + 1, asdict(content)
            export.mend = sorted({*before, *writer.waiting})
            await self.store.transact([keep(self.partner.name, export)], origin="hub")
            if renewal.done():
                raise PullRunning("another process took the lease over")
            if monotonic() - pause > self.lease_seconds and part < export.parts:  # let a search-based pull in between
                return
        await writer.mend(spool, export.parts, [part for part in before if part not in writer.waiting])
        self.tell("parts", export.parts + 1, export.parts + 1)
        export.content = asdict(content)
        for type, why in content.failed.items():
            export.fail([type] if type in export.types else [], why)
        await self._go_on(export, Phase.ENDING)

    def _whole(self, export: Export) -> set[str]:
        """The types of which everything must have come."""
        if export.patients is not None:
            return set()
        whole = set(export.types) if export.since is None else {one for one in export.types if not self.bulk.since}
        if export.since is not None:
            whole -= {one for one in whole if self.bulk.filtered_since(one)}
        return (
            whole
            - export.failed.keys()
            - {one for one in whole if self.bulk.type_filters.get(one) and not self.bulk.filtered_since(one)}
        )

    def _deleted(self, export: Export, rows: Rows, spool: Spool) -> Iterator[Source]:
        for number, row in rows.items():
            if row["kind"] == "deleted" and not row.get("why"):
                try:
                    for _, line in spool.lines(number, self.partner.limits.body):
                        yield from deleted_in(self.partner.base_url, line or b"{}")
                except FhirError as error:
                    export.tell(f"{_name(number, row)}: {error}")
                    export.fail(export.types, "a file of deleted resources cannot be read")


def _name(number: int, row: dict[str, Any]) -> str:
    return f"file {number + 1} ({row['type'] or row['kind']})"
