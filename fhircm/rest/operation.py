"""Call an operation, by GET or by POST. https://hl7.org/fhir/R4/operations.html#executing"""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.responses import Response

from fhircm.fhir import json
from fhircm.fhir.outcome import MethodNotAllowed, NotFound
from fhircm.fhir.validation import check, check_tree
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
    ignored: list[str] = []
    lenient = headers.preferences(request).get("handling") == "lenient"
    arguments = await _arguments(exchange, found, ignored if lenient else None)
    sent = {name.lower(): value for name, value in request.headers.items()}
    sources = exchange.settings.sources
    call = Call(exchange.store, exchange.base_url, type, id, arguments, sent, str(request.url), sources, ignored)
    answer = await found.function(call)
    return Response(answer.body, answer.status, dict(answer.headers), headers.FHIR_JSON if answer.body else None)


async def _arguments(exchange: Exchange, found: Operation, ignored: list[str] | None) -> list[Argument]:
    """The arguments; with `ignored`, parameters that the operation does not have go there instead of being refused."""
    request = exchange.request
    query = parse_qsl(request.url.query, keep_blank_values=True)
    if ignored is not None:
        ignored += [name for name, _ in query if not found.has(name) and name not in ("_format", "_pretty")]
        query = [(name, value) for name, value in query if name not in ignored]
    if request.method != "POST":
        return found.of_query(query)
    in_url = found.of_query(query) if query else []
    body = await read_body(request, exchange.settings.body_limit)
    if not body:
        return in_url or found.of_body(None)
    headers.require_json_body(request)
    tree = json.parse(body)
    tree = check(body).tree if "resourceType" in tree or not found.plain else check_tree(found.of_plain(tree)).tree
    if ignored is not None and tree["resourceType"] == "Parameters":
        given = tree.get("parameter", [])
        ignored += [one["name"] for one in given if not found.has(one["name"])]
        tree = {**tree, "parameter": [one for one in given if found.has(one["name"])]}
    return [*in_url, *found.of_body(tree)]
