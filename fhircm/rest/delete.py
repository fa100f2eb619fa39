"""Delete a resource, by its id or by a condition. https://hl7.org/fhir/R4/http.html#delete"""

from __future__ import annotations

from starlette.responses import Response

from fhircm.rest import conditional, headers
from fhircm.rest.exchange import Exchange
from fhircm.store.operations import Delete, Plan
from fhircm.store.stored import Stored


async def delete(exchange: Exchange, type: str, id: str) -> Response:
    """Delete it; deleting again changes nothing. Its history stays."""
    stored = await exchange.store.transact([Delete(type, id, headers.if_match(exchange.request))], [("d", type)])
    exchange.touched.add(stored[0])
    return Response(status_code=204, headers={"ETag": f'W/"{stored[0].version}"'})


async def delete_conditionally(exchange: Exchange, type: str) -> Response:
    """Delete what matches: one, or as many as the settings allow, or none at all."""
    limit, if_version = exchange.settings.conditional_delete_limit, headers.if_match(exchange.request)
    query = conditional.condition(exchange, type, exchange.request.url.query, limit)

    def make(found: list[list[Stored]]) -> list[Delete]:
        return conditional.deletes_of(found[0], type, limit, if_version)

    for one in await exchange.store.transact(Plan([query], make), [("d", type), ("s", type)]):
        exchange.touched.add(one)
    return Response(status_code=204)
