"""The only door from HTTP to resources: every verb is checked against what the caller may do.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-fhir-resources
"""

from __future__ import annotations

from dataclasses import dataclass

from fhircm.access.principal import Principal
from fhircm.fhir.definitions import definitions
from fhircm.fhir.query import Query
from fhircm.fhir.validation import Checked
from fhircm.store.operations import Narrowing
from fhircm.store.resources import Delete, Put, Store, Stored
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

    async def history(self, type: str, id: str) -> list[Stored]:
        """Raises Forbidden, NotFound."""
        self.principal.require("r", type)
        return await self.store.history(type, id)

    async def search(self, query: Query) -> Page:
        """Search; what is reached by chains, _has and includes is narrowed to the types that the caller may search."""
        self.principal.require("s", query.type)
        seen = {type: () for type in definitions().resource_types if self.principal.may("s", type)}
        return await self.store.search(query, Narrowing(seen))

    async def create(self, resource: Checked) -> Stored:
        """Create under an id that is new."""
        self.principal.require("c", resource.type)
        return await self._put(Put(resource, if_version=0))

    async def update(self, resource: Checked, if_version: int | None) -> Stored:
        """Update what exists. Raises Forbidden, NotFound, Gone, VersionConflict, and what the write rules raise."""
        self.principal.require("u", resource.type)
        await self.store.read(resource.type, resource.id or "")
        return await self._put(Put(resource, if_version))

    async def delete(self, type: str, id: str, if_version: int | None) -> Stored:
        """Raises Forbidden, NotFound, Conflict, VersionConflict."""
        self.principal.require("d", type)
        return (await self.store.transact([Delete(type, id, if_version)], origin=self.principal.origin))[0]

    async def _put(self, put: Put) -> Stored:
        return (await self.store.transact([put], origin=self.principal.origin))[0]
