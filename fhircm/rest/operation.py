"""Call an operation, by GET or by POST. https://hl7.org/fhir/R4/operations.html#executing"""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.responses import Response

from fhircm.fhir.outcome import MethodNotAllowed, NotFound
from fhircm.fhir.validation import check
from fhircm.operations import OPERATIONS
from fhircm.operations.call import Argument, Call, Searchset
from fhircm.operations.definition import Operation
from fhircm.rest import bundles, headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange

# The ones that HL7 lets be called at a version of a resource: https://hl7.org/fhir/R4/resource-operation-meta.html
_OF_A_VERSION = frozenset({"meta", "meta-add", "meta-delete"})


async def operation(
    exchange: Exchange, code: str, type: str | None = None, id: str | None = None, version: str | None = None
) -> Response:
    """Carry it out. One that changes something, or takes what no URL can hold, is called by POST only."""
    found = next((one for one in OPERATIONS.values() if one.code == code and one.is_at(type, id)), None)
    if found is None or (version is not None and code not in _OF_A_VERSION):
        raise NotFound(f"There is no operation ${code[:64]} here")
    request = exchange.request
    if request.method != "POST" and (found.affects_state or found.needs_body):
        raise MethodNotAllowed(f"${code} is called by POST")
    call = Call(
        exchange.store,
        exchange.base_url,
        type,
        id,
        arguments=await _arguments(exchange, found),
        headers={name.lower(): value for name, value in request.headers.items()},
        url=str(request.url),
        version=version,
        if_version=headers.if_match(request),
        links=exchange.links,
    )
    answer = await found.function(call)
    if isinstance(answer, Searchset):
        return Response(_bundle(exchange, answer), media_type=headers.FHIR_JSON)
    return Response(answer.body, answer.status, dict(answer.headers), headers.FHIR_JSON if answer.body else None)


def _bundle(exchange: Exchange, answer: Searchset) -> bytes:
    links = [("self", answer.self_url), *([("next", answer.next_url)] if answer.next_url else [])]
    entries = [
        bundles.Entry(f"{exchange.base_url}/{one.type}/{one.id}", one.body, {"search": search}) for one, search in answer.entries
    ]
    return bundles.bundle("searchset", entries, links, answer.total)


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
