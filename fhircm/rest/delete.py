"""Delete a resource. https://hl7.org/fhir/R4/http.html#delete"""

from __future__ import annotations

from starlette.responses import Response

from fhircm.rest import headers
from fhircm.rest.exchange import Exchange


async def delete(exchange: Exchange, type: str, id: str) -> Response:
    """Delete it; deleting again changes nothing. Its history stays."""
    stored = await exchange.store.delete(type, id, headers.if_match(exchange.request))
    return Response(status_code=204, headers={"ETag": f'W/"{stored.version}"'})
