"""Create a resource. https://hl7.org/fhir/R4/http.html#create"""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from starlette.responses import Response

from fhircm.fhir.validation import check
from fhircm.rest import headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange


async def create(exchange: Exchange, type: str) -> Response:
    """Store a new resource under an id that the server chooses; one in the body is ignored, as the specification has it."""
    headers.require_json_body(exchange.request)
    checked = check(await read_body(exchange.request, exchange.body_limit), type)
    return exchange.written(await exchange.store.create(replace(checked, id=str(uuid4()))), 201)
