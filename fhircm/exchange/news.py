"""Who of many partners a change may concern: one reader looks at every change once, and wakes only those partners.

https://hl7.org/fhir/R4/task.html. A partner's own cursor (fhircm/exchange/push.py) would read the whole change log to find next to nothing
in it; here it is told from where on it has to look. Told too much costs a look; nothing that push would deliver may be left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from fhircm.exchange.case import npi, organization, read, subject_of
from fhircm.exchange.merge import survivor
from fhircm.exchange.outbound import Occasion, occasions, occurring
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import Gone
from fhircm.fhir.query import parse_query
from fhircm.store.changes import CursorMoved
from fhircm.store.database import DatabaseUnavailable
from fhircm.store.operations import START
from fhircm.store.resources import Change, MoveCursor, Op, Position, SetState, SetTimer, Store

log = logging.getLogger("fhircm.exchange.news")

CURSOR = "news"  # of the one reader
NAMESPACE = "news"  # from where on a partner has to look
DUE = "partner"  # the kind of the timers by which rounds at partners are due


def due(partner: str, at: datetime) -> SetTimer:
    """That the next round at a partner is due; replaces when it was due otherwise."""
    return SetTimer(f"{DUE}:{partner}", DUE, at, {"partner": partner})


class News:
    """The one reader. A reaction of the worker: it takes a change and returns whom to wake."""

    def __init__(self, store: Store, partners: Sequence[Partner]) -> None:
        self.store = store
        self._by_base = {partner.base_url: partner.name for partner in partners}
        self._by_npi: dict[str, set[str]] = {}
        self._told: dict[str, set[str]] = {}  # occasion: partners that are told of it
        for partner in partners:
            self._by_npi.setdefault(partner.organization.npi, set()).add(partner.name)
            for name in partner.deliver:
                self._told.setdefault(name, set()).add(partner.name)

    @property
    def types(self) -> frozenset[str]:
        """The types whose changes may concern somebody."""
        return frozenset(occasions()[name].resource for name in self._told) | {"Person", "Consent"}

    async def tell(self, change: Change) -> list[Op]:
        """Wake whom a change may concern."""
        operations: list[Op] = []
        for partner in sorted(await self._whom(change)):
            kept = await self.store.state(NAMESPACE, partner)
            first = kept["first"] if kept else list(change.position._replace(number=change.position.number - 1))
            row = {"first": first, "last": list(change.position)}
            operations += [SetState(NAMESPACE, partner, row), due(partner, self.store.clock())]
        return operations

    async def _whom(self, change: Change) -> set[str]:
        try:
            return await self._concerned(change)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # whoever it concerns must not go without it: each looks for itself, and tells of what fails
            log.error("%s/%s: whom it concerns is not known (%s)", change.type, change.id, type(error).__name__)
            return set(self._by_base.values())

    async def _concerned(self, change: Change) -> set[str]:
        if change.method == "delete":
            return set()
        if change.type == "Person":
            found = (await self.store.read_many([("Person", change.id)])).get(("Person", change.id))
            return await self._with_records(_members([found.tree] if found else []))
        tree = (await self.store.vread(change.type, change.id, change.version)).tree
        if change.type == "Consent":  # what one kept back is looked at again
            return await self._who_know((tree.get("patient") or {}).get("reference", ""))
        if tree.get("meta", {}).get("source"):
            return set()  # a mirror: the partner that it came from tells of it
        concerned: set[str] = set()
        for occasion in occurring(tree, await self._before(change), list(self._told)):
            concerned |= await self._of(occasion, tree) & self._told[occasion.name]
        return concerned - {change.origin.removeprefix("partner:")}

    async def _before(self, change: Change) -> dict[str, Any] | None:
        if change.version == 1:
            return None
        try:
            return (await self.store.vread(change.type, change.id, change.version - 1)).tree
        except Gone:
            return None

    async def _of(self, occasion: Occasion, tree: dict[str, Any]) -> set[str]:
        """Whom an occasion is for; see mappings/occasions.yaml."""
        match occasion.to:
            case "addressee":
                return self._sources([await read(self.store, reference) for reference in tree.get("recipient", [])])
            case "performer":
                return self._by_npi.get(npi(await organization(self.store, tree.get("owner"))) or "", set())
            case "requester":
                return self._sources([await read(self.store, tree.get("focus"))])
            case "elsewhere":  # not where it happened, but that is for the partner's own look
                return await self._who_know((tree.get("for") or {}).get("reference", ""))
            case "known":
                return await self._who_know((subject_of(tree) or {}).get("reference", ""))
        return set(self._told[occasion.name])

    async def _who_know(self, patient: str) -> set[str]:
        """The partners at which this human has a record, the one in whose place a merged record is among them."""
        end = await survivor(self.store, patient.removeprefix("Patient/")) if patient.startswith("Patient/") else None
        alike = {patient, *([f"Patient/{end}"] if end else [])}
        query = parse_query("Person", [("patient", ",".join(sorted(alike)))])
        persons = (await self.store.search(query)).matches if patient else []
        return await self._with_records(alike | _members(person.tree for person in persons))

    async def _with_records(self, patients: Iterable[str]) -> set[str]:
        keys = [("Patient", one.removeprefix("Patient/")) for one in sorted(patients) if one.startswith("Patient/")]
        return self._sources([stored.tree for stored in (await self.store.read_many(keys)).values()])

    def _sources(self, trees: Iterable[dict[str, Any] | None]) -> set[str]:
        found = set()
        for tree in trees:
            source = (tree or {}).get("meta", {}).get("source", "")
            base = source.rpartition(f"/{(tree or {}).get('resourceType')}/")[0]
            found |= {self._by_base[base]} if base in self._by_base else set()
        return found


def _members(persons: Iterable[dict[str, Any]]) -> set[str]:
    return {link.get("target", {}).get("reference", "") for person in persons for link in person.get("link", [])}


async def skip(store: Store, partner: str, cursor: str) -> dict[str, Any] | None:
    """Move a partner's cursor to what may concern it, past all that does not. Returns what waits for it, or None for nothing.

    A partner that is new reads the log from its beginning: the reader passed there when it was not known.
    """
    kept, before = await store.state(NAMESPACE, partner), await store.cursor(cursor)
    if before == START:
        return {"first": list(START), "last": list(await store.cursor(CURSOR)), **(kept or {})}
    if kept is not None and (first := Position(*kept["first"])) > before:
        with suppress(CursorMoved):  # another worker was first
            await store.transact([MoveCursor(cursor, before, first)], origin="hub")
    return kept


async def read_to(store: Store, partner: str, cursor: str, kept: dict[str, Any]) -> None:
    """Forget what waited for a partner once its cursor is past it; what came meanwhile stays."""
    if await store.cursor(cursor) >= Position(*kept["last"]):
        await store.transact([SetState(NAMESPACE, partner, None, if_equal=kept)], origin="hub")
