"""One request under way: who asks, through which door, and the settings that its interaction needs."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from fhircm.access.guarded_store import GuardedStore
from fhircm.fhir import json
from fhircm.fhir.outcome import outcome
from fhircm.rest import headers
from fhircm.rest.links import PageLinks
from fhircm.store.stored import Stored


@dataclass(frozen=True, slots=True)
class Exchange:
    """What an interaction works with. `base_url` is the FHIR base, without a slash at its end; `new_id` makes ids."""

    request: Request
    store: GuardedStore
    base_url: str
    body_limit: int
    links: PageLinks

    def resource(self, stored: Stored, status: int = 200) -> Response:
        """A resource with its version."""
        return Response(stored.body, status, headers.of_version(stored), headers.FHIR_JSON)

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
