"""The only door from HTTP to resources: every verb is checked against what the caller may do.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-fhir-resources
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

from fhircm.access.principal import Principal
from fhircm.access.scopes import Scope, allows
from fhircm.fhir.definitions import definitions
from fhircm.fhir.query import Query
from fhircm.fhir.terminology.artefacts import TYPES, Artefact, Canonical
from fhircm.fhir.terminology.expansion import Expansion
from fhircm.fhir.terminology.library import Library, Versions, Wanted
from fhircm.store.history import HistoryPage, HistoryQuery
from fhircm.store.resources import Delete, Narrowing, Plan, Put, Store, Stored
from fhircm.store.search import Page


@dataclass(frozen=True, slots=True)
class GuardedStore:
    """The store as one principal sees it."""

    store: Store
    principal: Principal

    async def read(self, type: str, id: str) -> Stored:
        """Raises Forbidden, NotFound, Gone."""
        self.principal.require("r", type)
        return await self.store.read(type, id)

    async def vread(self, type: str, id: str, version: int) -> Stored:
        """Raises Forbidden, NotFound, Gone."""
        self.principal.require("r", type)
        return await self.store.vread(type, id, version)

    async def history(self, query: HistoryQuery) -> HistoryPage:
        """A page of versions. Raises Forbidden; for those of everything the caller must be allowed to read every type."""
        for type in [query.type] if query.type else sorted(definitions().resource_types):
            self.principal.require("r", type)
        return await self.store.history_page(query)

    async def search(self, query: Query) -> Page:
        """Search; what is reached by chains, _has and includes is narrowed to the types that the caller may search."""
        for type, _ in query.branches:
            self.principal.require("s", type)
        return await self.store.search(query, self._narrowing())

    async def transact(self, operations: Sequence[Put | Delete] | Plan, needs: Iterable[tuple[str, str]]) -> list[Stored]:
        """Write, when the caller may do every verb that is needed with its type; the searches of a plan are narrowed like others.

        Raises Forbidden, and what Store.transact raises.
        """
        needed = list(needs)
        for verb, type in needed:
            self.principal.require(verb, type)
        if isinstance(operations, Plan):
            # What may be updated is found by its id, for a patch, also by one who may not search.
            updated = {type: () for verb, type in needed if verb == "u"}
            operations = replace(operations, within=Narrowing({**self._narrowing().by_type, **updated}))
        return await self.store.transact(operations, origin=self.principal.origin)

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

    @property
    def now(self) -> datetime:
        """The time by the store's clock."""
        return self.store.clock()

    def _readable_terms(self) -> Narrowing:
        return Narrowing({type: () for type in TYPES if self.principal.may("r", type)})

    def _narrowing(self) -> Narrowing:
        return _searchable(self.principal.scopes)


@lru_cache(maxsize=1024)
def _searchable(scopes: tuple[Scope, ...]) -> Narrowing:
    """The types that these scopes let a caller search."""
    return Narrowing({type: () for type in definitions().resource_types if allows(scopes, "s", type)})
