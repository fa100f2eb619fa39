"""A batch or a transaction. https://hl7.org/fhir/R4/http.html#transaction

All writes of a transaction are one transaction of the store: everything is checked before anything is written, conditions are asked
inside it, and references among the entries lead to the ids that the entries got. Its reads are answered from what was committed.
Each entry of a batch is a request of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from fhircm.fhir import json
from fhircm.fhir.bundle import Entry, carried_patch, read_bundle
from fhircm.rest import bundles, headers
from fhircm.rest.bodies import read_body
from fhircm.rest.errors import answer_to
from fhircm.rest.exchange import Exchange
from fhircm.rest.transaction_writes import Writes
from fhircm.store.stored import Stored, instant

_STATUS = {200: "200 OK", 201: "201 Created", 204: "204 No Content", 304: "304 Not Modified"}
_READS = ("GET", "HEAD")


async def transaction(exchange: Exchange) -> Response:
    """The answer lists what became of each entry, in the order of the request."""
    headers.require_json_body(exchange.request)
    body = await read_body(exchange.request, exchange.settings.bundle_limit)
    async with exchange.turns:
        kind, entries = read_bundle(body, exchange.base_url)
        exchange.touched.code = kind
        if kind == "batch":
            answers = [await _alone(exchange, entry) for entry in entries]
        else:
            answers = await _together(exchange, entries)
        return Response(bundles.bundle(f"{kind}-response", answers, [], None), media_type=headers.FHIR_JSON)


async def _together(exchange: Exchange, entries: Sequence[Entry]) -> list[bundles.Entry]:
    writes = Writes(exchange, [entry for entry in entries if entry.method not in _READS])
    results = iter(await writes.commit())
    answers = []
    for entry in entries:
        if entry.method in _READS:
            answers.append(await _alone(exchange, entry))
        else:
            status, stored = next(results)
            if stored is not None:
                exchange.touched.add(stored)
            answers.append(_written(exchange, status, stored))
    return answers


def _written(exchange: Exchange, status: int, stored: Stored | None) -> bundles.Entry:
    response: dict[str, Any] = {"status": _STATUS[status]}
    if stored is None:
        return bundles.Entry(None, None, {"response": response})
    response["etag"] = f'W/"{stored.version}"'
    response["lastModified"] = instant(stored.last_updated)
    if stored.deleted:
        return bundles.Entry(None, None, {"response": response})
    response["location"] = f"{exchange.base_url}/{stored.type}/{stored.id}/_history/{stored.version}"
    wanted = headers.preferences(exchange.request).get("return") == "representation"
    return bundles.Entry(
        f"{exchange.base_url}/{stored.type}/{stored.id}", stored.body if wanted else None, {"response": response}
    )


async def _alone(exchange: Exchange, entry: Entry) -> bundles.Entry:
    """An entry as a request of its own."""
    try:
        answer = await exchange.dispatch(_request(exchange.request, entry))
    except Exception as error:
        answer = answer_to(error)
    status = answer.status_code
    response: dict[str, Any] = {"status": _STATUS.get(status, str(status))}
    for header, name in (("etag", "etag"), ("location", "location"), ("content-location", "location")):
        if header in answer.headers:
            response[name] = answer.headers[header]
    body = bytes(answer.body)
    if status >= 400 and body:
        return bundles.Entry(None, None, {"response": response | {"outcome": json.loads(body)}})
    return bundles.Entry(None, body or None, {"response": response})


def _request(outer: Request, entry: Entry) -> Request:
    kept = {name: value for name, value in outer.headers.items() if name in ("authorization", "prefer")}
    content = "application/fhir+json"
    body = entry.body
    if entry.method == "PATCH" and entry.resource_type == "Binary":
        content, body = carried_patch(entry)
    named = Headers({**kept, **entry.headers, "content-type": content, "accept": headers.FHIR_JSON})
    scope = {
        **outer.scope,
        "method": entry.method,
        "path": outer.scope.get("root_path", "") + "/" + "/".join(entry.steps),
        "raw_path": quote("/" + "/".join(entry.steps)).encode(),
        "query_string": entry.query.encode(),
        "headers": named.raw,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)
