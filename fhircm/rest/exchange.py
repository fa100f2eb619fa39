"""One request under way: who asks, through which door, and the settings that its interaction needs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response

from fhircm.access.audit import Touched
from fhircm.access.guarded_store import GuardedStore
from fhircm.exchange.source_address import Allowed
from fhircm.fhir import json
from fhircm.fhir.outcome import outcome
from fhircm.fhir.subset import read_subset
from fhircm.rest import headers
from fhircm.rest.links import PageLinks
from fhircm.store.stored import Stored


@dataclass(frozen=True, slots=True)
class RestSettings:
    """What an operator chooses of the API: limits in bytes, whether updates create, how much a conditional delete may delete, whether words are kept."""

    body_limit: int
    bundle_limit: int
    update_create: bool
    conditional_delete_limit: int
    full_text: bool = False
    sources: Allowed = field(default_factory=Allowed)  # from where files may be imported
    grace: timedelta = timedelta()  # for which a care relationship is good after its end


@dataclass(frozen=True, slots=True)
class Exchange:
    """What an interaction works with. `base_url` is the FHIR base, without a slash at its end.

    `dispatch` answers another request of the same caller, as the entries of a batch are; `turns` limits how many large ones are worked
    at together. `touched` is told what is shown and written, for the audit.
    """

    request: Request
    store: GuardedStore
    base_url: str
    settings: RestSettings
    links: PageLinks
    dispatch: Callable[[Request], Awaitable[Response]]
    turns: asyncio.Semaphore
    touched: Touched

    def may_create(self, type: str) -> bool:
        """Whether an update of what does not exist creates it: the operator's choice, and the caller's right.

        Not for those who do not see everything: that an id is taken would tell them of what they must not know.
        """
        principal = self.store.principal
        return self.settings.update_create and principal.sees_everything and principal.may("c", type)

    def resource(self, stored: Stored, status: int = 200) -> Response:
        """A resource with its version; of a read, the part that the caller asks for."""
        self.touched.add(stored)
        body = stored.body
        if (
            self.request.method in ("GET", "HEAD")
            and self.request.url.query
            and (subset := read_subset(self.request.query_params.items()))
        ):
            body = subset.of(body)
        return Response(body, status, headers.of_version(stored), headers.FHIR_JSON)

    def written(self, stored: Stored, status: int) -> Response:
        """The answer to a write, as the caller prefers it."""
        wanted = headers.preferences(self.request).get("return")
        answer = self.resource(stored, status)
        if wanted == "minimal":
            answer = Response(b"", status, headers.of_version(stored))
        elif wanted == "OperationOutcome":
            answer = Response(json.dumps(outcome([])), status, headers.of_version(stored), headers.FHIR_JSON)
        if status == 201:
            answer.headers["Location"] = f"{self.base_url}/{stored.type}/{stored.id}/_history/{stored.version}"
        return answer
