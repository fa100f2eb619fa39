"""Update a resource, by its id or by a condition. https://hl7.org/fhir/R4/http.html#update and #cond-update"""

from __future__ import annotations

from starlette.responses import Response

from fhircm.fhir.outcome import Malformed
from fhircm.fhir.validation import Checked, check
from fhircm.rest import conditional, headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange
from fhircm.store.operations import Plan, Put
from fhircm.store.stored import Stored


async def update(exchange: Exchange, type: str, id: str) -> Response:
    """Store a new version; with If-Match, only on top of that version. What does not exist is created where the settings say so."""
    checked = await _body(exchange, type)
    if checked.id != id:
        raise Malformed(f"{type}.id must be the id in the URL", f"{type}.id")
    put = Put(checked, headers.if_match(exchange.request), must_exist=not exchange.may_create(type))
    (stored,) = await exchange.store.transact([put], [("u", type)])
    return exchange.written(stored, 201 if stored.method == "create" else 200)


async def update_conditionally(exchange: Exchange, type: str) -> Response:
    """Update what matches, or create when nothing does."""
    checked = await _body(exchange, type)
    query = conditional.condition(exchange, type, exchange.request.url.query)
    if_version, may_create = headers.if_match(exchange.request), exchange.may_create(type)

    def make(found: list[list[Stored]]) -> list[Put]:
        match = conditional.the_match(found[0], type)
        return [conditional.update_of(match, checked, if_version, may_create=may_create)]

    (stored,) = await exchange.store.transact(Plan([query], make), [("u", type), ("c", type), ("s", type)])
    return exchange.written(stored, 201 if stored.method == "create" else 200)


async def _body(exchange: Exchange, type: str) -> Checked:
    headers.require_json_body(exchange.request)
    return check(await read_body(exchange.request, exchange.settings.body_limit), type)
