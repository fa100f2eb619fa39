"""The only door from HTTP to resources: every verb is checked against what the caller may do.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-fhir-resources
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fhircm.access.principal import Principal
from fhircm.access.scopes import Scope, allows
from fhircm.fhir.definitions import definitions
from fhircm.fhir.query import Query
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

    async def searchable_types(self) -> frozenset[str]:
        """The resource types that the caller may search and of which there is any: a search over many types need not ask the others."""
        return frozenset(type for type in await self.store.types() if self.principal.may("s", type))

    async def labels(self, type: str | None) -> list[Stored]:
        """Resources that together have every profile, tag and security label in use, of a type or of all that the caller may search.

        Raises Forbidden.
        """
        within = self._narrowing()
        if type is not None:
            self.principal.require("s", type)
            within = Narrowing({type: within.by_type[type]})
        return await self.store.labels(within)

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

    def _narrowing(self) -> Narrowing:
        return _searchable(self.principal.scopes)


@lru_cache(maxsize=1024)
def _searchable(scopes: tuple[Scope, ...]) -> Narrowing:
    """The types that these scopes let a caller search."""
    return Narrowing({type: () for type in definitions().resource_types if allows(scopes, "s", type)})
