"""Call an operation, by GET or by POST. https://hl7.org/fhir/R4/operations.html#executing"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from starlette.responses import Response

from fhircm.fhir import json
from fhircm.fhir.outcome import MethodNotAllowed, NotFound
from fhircm.fhir.validation import check, check_tree
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
    ignored: list[str] = []
    lenient = headers.preferences(request).get("handling") == "lenient"
    arguments = await _arguments(exchange, found, ignored if lenient else None)
    call = Call(
        exchange.store,
        exchange.base_url,
        type,
        id,
        arguments=arguments,
        headers={name.lower(): value for name, value in request.headers.items()},
        url=str(request.url),
        version=version,
        if_version=headers.if_match(request),
        sources=exchange.settings.sources,
        ignored=ignored,
        may_create=type is not None and exchange.may_create(type),
        links=exchange.links,
    )
    answer = await found.function(call)
    if isinstance(answer, Searchset):
        return Response(_bundle(exchange, answer), media_type=headers.FHIR_JSON)
    return Response(answer.body, answer.status, dict(answer.headers), headers.FHIR_JSON if answer.body else None)


def _bundle(exchange: Exchange, answer: Searchset) -> bytes:
    for one, _ in answer.entries:
        exchange.touched.add(one)
    links = [("self", answer.self_url), *([("next", answer.next_url)] if answer.next_url else [])]
    entries = [
        bundles.Entry(f"{exchange.base_url}/{one.type}/{one.id}", one.body, {"search": search}) for one, search in answer.entries
    ]
    return bundles.bundle("searchset", entries, links, answer.total)


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
    tree = _tree(found, body)
    if ignored is not None and tree.get("resourceType") == "Parameters":
        given = tree.get("parameter", [])
        ignored += [one["name"] for one in given if not found.has(one["name"])]
        tree = {**tree, "parameter": [one for one in given if found.has(one["name"])]}
    return [*in_url, *found.of_body(tree)]


def _tree(found: Operation, body: bytes) -> dict[str, Any]:
    if found.as_sent:
        return _as_sent(body)
    if found.plain and "resourceType" not in (plain := json.parse(body)):
        return check_tree(found.of_plain(plain)).tree
    return check(body).tree


def _as_sent(body: bytes) -> dict[str, Any]:
    """A resource that may be wrong, or Parameters that are right but for the resources that they carry."""
    tree = json.parse(body)
    if tree.get("resourceType") == "Parameters":
        carried = tree.get("parameter")
        shell = [_without_resource(one) for one in carried] if isinstance(carried, list) else carried
        check(json.dumps({**tree, "parameter": shell} if carried is not None else tree))
    return tree


def _without_resource(parameter: Any) -> Any:
    if not isinstance(parameter, dict) or not isinstance(parameter.get("resource"), dict):
        return parameter
    return {**parameter, "resource": {"resourceType": "Binary", "contentType": "application/fhir+json"}}
