"""Read one version of a resource. https://hl7.org/fhir/R4/http.html#vread"""

from __future__ import annotations

from starlette.responses import Response

from fhircm.fhir.outcome import NotFound
from fhircm.rest.exchange import Exchange


async def vread(exchange: Exchange, type: str, id: str, version: str) -> Response:
    """That version; 410 when it is a deletion."""
    if not version.isdigit() or len(version) > 18:
        raise NotFound(f"{type}/{id} has no such version")
    return exchange.resource(await exchange.store.vread(type, id, int(version)))
