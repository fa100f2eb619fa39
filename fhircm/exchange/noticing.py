"""Notice what is due for a partner: from the change log into its queue, in one transaction with its cursor.

https://hl7.org/fhir/R4/http.html. Nothing is sent here, so a partner that is down keeps no change from being noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fhircm.exchange.case import concerns
from fhircm.exchange.dead_letters import in_line, parked
from fhircm.exchange.disclosure import records
from fhircm.exchange.due import Due, lane_of, place
from fhircm.exchange.outbound import Occasion, fulfils, occasions, occurring
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import Gone, NotFound
from fhircm.fhir.query import parse_query
from fhircm.store.changes import CursorMoved
from fhircm.store.database import DatabaseUnavailable
from fhircm.store.resources import Change, MoveCursor, Op, Store, Stored

log = logging.getLogger("fhircm.exchange.push")

BATCH = 200


@dataclass
class Noticing:
    """Reads the change log for one partner."""

    store: Store
    partner: Partner
    deliver: Any
    clock: Callable[[], datetime]

    async def read(self) -> int:
        """Go through the change log to its end. Returns how many changes were of a kind that matters. Raises CursorMoved."""
        cursor = f"push:{self.partner.name}"
        types = frozenset(occasions()[name].resource for name in self.deliver) | {"Person", "Consent"}
        before = await self.store.cursor(cursor)
        count = 0
        while True:
            batch = await self.store.changes(before, types=types, limit=BATCH)
            operations: list[Op] = []
            for change in batch.changes:
                operations += await self.meant(change)
            if batch.upto > before and (batch.changes or batch.upto.number - before.number > BATCH):
                unique = {getattr(one, "key", one): one for one in operations}  # two changes may put one letter in line
                await self.store.transact([*unique.values(), MoveCursor(cursor, before, batch.upto)], origin="hub")
                before = batch.upto
            count += len(batch.changes)
            if not batch.changes:
                return count

    async def meant(self, change: Change) -> list[Op]:
        """What a change makes due; when that cannot be found out, it is due itself."""
        try:
            if change.method == "delete":
                return []
            if change.type == "Person":
                return await self._now_known(change)
            if change.type == "Consent":
                return await self._consented(change)
            if change.origin == f"partner:{self.partner.name}":
                return []
            return await self.version(await self.store.vread(change.type, change.id, change.version), place(change.position))
        except (Gone, NotFound):
            return []
        except (CursorMoved, DatabaseUnavailable):
            raise
        except Exception as error:
            log.error(
                "%s: what %s/%s means is found out later (%s)", self.partner.name, change.type, change.id, type(error).__name__
            )
            about = f"{change.type}/{change.id}"
            key = f"{place(change.position)}:{about}/_history/{change.version}"
            return [Due(key, about, change.type, change.id, change.version, None, self._now()).put(self.partner.name)]

    async def version(self, stored: Stored, at: str) -> list[Op]:
        """What one version makes due, at a place in the order."""
        tree = stored.tree
        if tree.get("meta", {}).get("source"):
            return []  # a mirror: the partner that it came from tells of it
        occurred = occurring(tree, await self._version_before(stored), list(self.deliver))
        return [put for occasion in occurred for put in await self._occasion(occasion, stored, at)]

    async def _occasion(self, occasion: Occasion, stored: Stored, at: str) -> list[Op]:
        if await concerns(self.store, self.partner, occasion, stored) is None:
            return []
        key = f"{at}:{occasion.key(stored.type, stored.id, stored.version)}"
        lane = await lane_of(self.store, stored.tree)
        queued = stored.last_updated.isoformat()
        return [Due(key, lane, stored.type, stored.id, stored.version, occasion.name, queued).put(self.partner.name)]

    async def _version_before(self, stored: Stored) -> dict[str, Any] | None:
        if stored.version == 1:
            return None
        try:
            return (await self.store.vread(stored.type, stored.id, stored.version - 1)).tree
        except Gone:
            return None

    def _now(self) -> str:
        return self.clock().isoformat()

    # --- what became possible ----------------------------------------------------------------------------------------------------

    async def _now_known(self, change: Change) -> list[Op]:
        """A Person may tell which Patient of the partner was meant: what waits for that is in line again, and news of before is told."""
        found = (await self.store.read_many([("Person", change.id)])).get(("Person", change.id))
        members = {link["target"].get("reference") for link in found.tree.get("link", [])} if found else set()
        waited = await self._in_line("no-record", members, "known")
        return [*waited, *await self._happened_before(sorted(members), place(change.position))]

    async def _consented(self, change: Change) -> list[Op]:
        """A Consent came or changed: what one kept back is looked at again."""
        found = (await self.store.read_many([("Consent", change.id)])).get(("Consent", change.id))
        reference = (found.tree.get("patient") or {}).get("reference", "") if found else ""
        if not reference.startswith("Patient/"):
            return []
        return await self._in_line(
            "withheld", set(await records(self.store, {"id": reference.removeprefix("Patient/")})), "consent"
        )

    async def _in_line(self, why: str, patients: set[Any], replay: str) -> list[Op]:
        name = self.partner.name
        rows = await self.store.states(parked(name))
        waited = {key: row for key, row in rows.items() if row["why"] == why and row["patient"] in patients}
        return [one for key, row in waited.items() for one in in_line(name, key, row, replay, self._now())]

    async def _happened_before(self, members: Sequence[str], at: str) -> list[Op]:
        """What happened to patients who are now known here, as far as it goes on: when it began it concerned nobody here.

        Which of the two is seen first is chance: the link between the records, or what happened.
        """
        operations: list[Op] = []
        for occasion in (occasions()[name] for name in self.deliver):
            for member in members if occasion.to in ("elsewhere", "known") else ():
                for stored in await self._going_on(occasion, member):
                    if not await self.store.states(
                        parked(self.partner.name), f"{occasion.key(stored.type, stored.id, stored.version)}/"
                    ):
                        operations += await self._occasion(occasion, stored, at)
        return operations

    async def _going_on(self, occasion: Occasion, patient: str) -> list[Stored]:
        """The resources of a patient that would make the occasion, were they new."""
        coded = [("code", ",".join(occasion.when["code"]))] if "code" in occasion.when else []
        query = parse_query(occasion.resource, [("patient", patient), *coded])
        page = await self.store.search(query)
        found = list(page.matches)
        while page.next:
            page = await self.store.search(replace(query, cursor=page.next))
            found += page.matches
        lasting = {**occasion.when, **occasion.still}
        return [stored for stored in found if fulfils(stored.tree, lasting) and not stored.tree.get("meta", {}).get("source")]
