"""Call an operation, by GET or by POST. https://hl7.org/fhir/R4/operations.html#executing"""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.responses import Response

from fhircm.fhir.outcome import MethodNotAllowed, NotFound
from fhircm.fhir.validation import check
from fhircm.operations import OPERATIONS
from fhircm.operations.call import Argument, Call
from fhircm.operations.definition import Operation
from fhircm.rest import headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange


async def operation(exchange: Exchange, code: str, type: str | None = None, id: str | None = None) -> Response:
    """Carry it out. One that changes something is called by POST only."""
    found = next((one for one in OPERATIONS.values() if one.code == code and one.is_at(type, id)), None)
    if found is None:
        raise NotFound(f"There is no operation ${code[:64]} here")
    request = exchange.request
    if request.method != "POST" and found.affects_state:
        raise MethodNotAllowed(f"${code} changes something, so it is called by POST")
    arguments = await _arguments(exchange, found)
    sent = {name.lower(): value for name, value in request.headers.items()}
    call = Call(exchange.store, exchange.base_url, type, id, arguments, sent, str(request.url))
    answer = await found.function(call)
    return Response(answer.body, answer.status, dict(answer.headers), headers.FHIR_JSON if answer.body else None)


async def _arguments(exchange: Exchange, found: Operation) -> list[Argument]:
    request = exchange.request
    query = parse_qsl(request.url.query, keep_blank_values=True)
    if request.method != "POST":
        return found.of_query(query)
    in_url = found.of_query(query) if query else []
    body = await read_body(request, exchange.settings.body_limit)
    if not body:
        return in_url or found.of_body(None)
    headers.require_json_body(request)
    return [*in_url, *found.of_body(check(body).tree)]
