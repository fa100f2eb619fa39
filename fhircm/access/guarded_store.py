"""The only door from HTTP to resources: every verb is checked against what the caller may do.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-fhir-resources
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fhircm.access.principal import Principal
from fhircm.access.visibility import narrowing
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Forbidden, Gone, NotFound
from fhircm.fhir.query import Query, parse_query
from fhircm.fhir.terminology.artefacts import TYPES, Artefact, Canonical
from fhircm.fhir.terminology.expansion import Expansion
from fhircm.fhir.terminology.library import Library, Versions, Wanted
from fhircm.store.export import ExportPage, ExportQuery
from fhircm.store.history import HistoryPage, HistoryQuery
from fhircm.store.resources import Delete, Narrowing, Plan, Put, Store, Stored
from fhircm.store.search import Page
from fhircm.store.stored import micros
from fhircm.store.work_list import WorkPage, WorkQuery
from fhircm.store.write_guard import WriteGuard


@dataclass(frozen=True, slots=True)
class GuardedStore:
    """The store as one principal sees it."""

    store: Store
    principal: Principal
    grace: timedelta = timedelta()  # for which a care relationship is good after its end

    async def read(self, type: str, id: str) -> Stored:
        """Raises Forbidden, NotFound, Gone."""
        self.principal.require("r", type)
        return await self.store.read(type, id, self._narrowing("r"))

    async def read_many(self, references: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Stored]:
        """The current versions of those that exist and are seen; what the caller may not read is not among them."""
        found = {}
        for type, id in sorted(set(references)):
            with suppress(Forbidden, NotFound, Gone):
                found[type, id] = await self.read(type, id)
        return found

    async def vread(self, type: str, id: str, version: int) -> Stored:
        """Raises Forbidden, NotFound, Gone."""
        self.principal.require("r", type)
        return await self.store.vread(type, id, version, self._narrowing("r"))

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """A page of versions. Raises Forbidden; for those of everything the caller must be allowed to read every type."""
        for type in [query.type] if query.type else sorted(definitions().resource_types):
            self.principal.require("r", type)
        return await self.store.history_page(query, self._narrowing("r"))

    async def search(self, query: Query) -> Page:
        """Search; what is reached by chains, _has and includes is narrowed to what the caller may search."""
        for type, _ in query.branches:
            self.principal.require("s", type)
        return await self.store.search(query, self._narrowing("s"))

    async def work_list(self, query: WorkQuery) -> WorkPage:
        """A page of work lists, narrowed like a search of Tasks; so are the Patients and risks that come along. Raises Forbidden."""
        self.principal.require("s", "Task")
        return await self.store.work_list(query, self._narrowing("s"))

    async def export_page(self, query: ExportQuery) -> ExportPage:
        """The next resources of an export, narrowed like a search. Raises Forbidden."""
        for verb in "rs":
            self.principal.require(verb, query.type)
        return await self.store.export_page(query, self._narrowing("s"))

    async def searchable_types(self) -> frozenset[str]:
        """The resource types that the caller may search and of which there is any: a search over many types need not ask the others."""
        return frozenset(type for type in await self.store.types() if self.principal.may("s", type))

    async def labels(self, type: str | None) -> list[Stored]:
        """Resources that together have every profile, tag and security label in use, of a type or of all that the caller may search.

        Raises Forbidden.
        """
        within = self._narrowing("s") or _WHOLE
        if type is not None:
            self.principal.require("s", type)
            within = replace(within, by_type={type: within.by_type[type]})
        return await self.store.labels(within)

    async def transact(self, operations: Sequence[Put | Delete] | Plan, needs: Iterable[tuple[str, str]]) -> list[Stored]:
        """Write, when the caller may do every verb that is needed with its type; the searches of a plan are narrowed like others.

        Raises Forbidden, and what Store.transact raises.
        """
        needed = list(needs)
        for verb, type in needed:
            self.principal.require(verb, type)
        guard = self._guard()
        if isinstance(operations, Plan):
            # What may be updated is found by its id, for a patch, also by one who may not search.
            within = self._narrowing("s") or _WHOLE
            updating = self._narrowing("u") or _WHOLE
            updated = {type: updating.by_type[type] for verb, type in needed if verb == "u" and type not in within.by_type}
            operations = replace(operations, within=replace(within, by_type={**within.by_type, **updated}))
        return await self.store.transact(operations, origin=self.principal.origin, guard=guard, actor=self.principal.actor)

    async def weigh(self, plan: Plan, needs: Iterable[tuple[str, str]]) -> list[Stored]:
        """Write what a plan comes to that counts what the caller need not see; what it writes is held to what they may, as ever.

        Raises Forbidden, and what Store.transact raises.
        """
        for verb, type in needs:
            self.principal.require(verb, type)
        return await self.store.transact(plan, origin=self.principal.origin, guard=self._guard(), actor=self.principal.actor)

    async def rehearse(self, operations: Sequence[Put | Delete], needs: Iterable[tuple[str, str]]) -> None:
        """Whether a write would be accepted: nothing is written. Raises what `transact` raises."""
        for verb, type in needs:
            self.principal.require(verb, type)
        await self.store.rehearse(operations, origin=self.principal.origin, guard=self._guard(), actor=self.principal.actor)

    async def identified(self, system: str | None, value: str, born: str) -> list[str]:
        """The ids of Patients with an identifier (of any system: None) and a date of birth, seen or not.

        Of several none, for nobody may be guessed.
        """
        identifier = _escaped(value) if system is None else f"{_escaped(system)}|{_escaped(value)}"
        query = parse_query("Patient", [("identifier", identifier), ("birthdate", f"eq{born}"), ("_count", "2")])
        found = (await self.store.search(query)).matches
        return [one.id for one in found] if len(found) == 1 else []

    async def open_in_emergency(self, patients: Sequence[tuple[str, str]], task: Put) -> Stored | None:
        """Write the Task that opens the record of one of these Patients to the caller; None: there is no such Patient.

        Whether a care relationship exists is not asked: that there is none is why the glass is broken.
        """
        found = await self.store.read_many(patients)
        if len(found) != 1:
            return None
        return (await self.store.transact([task], origin="hub"))[0]

    async def library(self, *roots: Wanted) -> Library:
        """The terminology that a computation needs: what is built in, and of the store what the caller may read. Raises TooCostly."""
        return await self.store.library(roots, self._readable_terms())

    async def concept_maps(self, system: str) -> list[Artefact]:
        """The concept maps of the store that map from or to codes of a system, as far as the caller may read them."""
        return await self.store.concept_maps(system, self._readable_terms())

    def expansion(
        self,
        library: Library,
        value_set: Artefact,
        versions: Versions,
        without: Sequence[Canonical] = (),
        only: str | None = None,
    ) -> Expansion:
        """A value set of the library, computed. Raises CannotCompute, TooCostly."""
        return self.store.terminology.expansion(library, value_set, versions, without, only)

    def clock(self) -> datetime:
        """The time by the store's clock, as `Store.clock` has it."""
        return self.store.clock()

    @property
    def now(self) -> datetime:
        """The time by the store's clock."""
        return self.store.clock()

    def _readable_terms(self) -> Narrowing:
        within = self._narrowing("r") or _WHOLE
        return replace(within, by_type={type: within.by_type[type] for type in TYPES if type in within.by_type})

    def _narrowing(self, verb: str, *, at_least: timedelta = timedelta()) -> Narrowing | None:
        grace = max(self.grace, at_least)
        return narrowing(self.principal, verb, micros(self.store.clock()), grace // _MICROSECOND)

    def _guard(self) -> WriteGuard | None:
        """What writes are held to; None: to nothing beyond the scopes."""
        # Who ends a relationship by a write (declines, completes) sees its end, even where nothing is seen after it.
        by_verb = {verb: self._narrowing(verb, at_least=_MOMENT) for verb in "crud"}
        return (
            None
            if all(one is None for one in by_verb.values())
            else WriteGuard(**by_verb, directory=self.principal.keeps_directory)
        )


def _escaped(text: str) -> str:
    return re.sub(r"([\\,|$])", r"\\\1", text)


_MICROSECOND = timedelta(microseconds=1)
_MOMENT = timedelta(seconds=1)
_WHOLE = Narrowing(dict.fromkeys(definitions().resource_types, ()))
