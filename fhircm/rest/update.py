"""Update a resource. https://hl7.org/fhir/R4/http.html#update"""

from __future__ import annotations

from starlette.responses import Response

from fhircm.fhir.outcome import Malformed
from fhircm.fhir.validation import check
from fhircm.rest import headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange


async def update(exchange: Exchange, type: str, id: str) -> Response:
    """Store a new version of what exists; with If-Match, only on top of that version."""
    headers.require_json_body(exchange.request)
    checked = check(await read_body(exchange.request, exchange.body_limit), type)
    if checked.id != id:
        raise Malformed(f"{type}.id must be the id in the URL", f"{type}.id")
    return exchange.written(await exchange.store.update(checked, headers.if_match(exchange.request)), 200)
