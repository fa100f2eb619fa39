"""Create a resource, when nothing matches a condition if there is one. https://hl7.org/fhir/R4/http.html#create and #ccreate"""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

from starlette.responses import Response

from fhircm.fhir.validation import check
from fhircm.rest import conditional, headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange
from fhircm.store.operations import Plan, Put
from fhircm.store.stored import Stored


async def create(exchange: Exchange, type: str) -> Response:
    """Store a new resource under an id that the server chooses; one in the body is ignored, as the specification has it.

    With If-None-Exist, what matches already is the answer (200), and nothing is written.
    """
    headers.require_json_body(exchange.request)
    checked = check(await read_body(exchange.request, exchange.settings.body_limit), type)
    put = Put(replace(checked, id=str(uuid4())), if_version=0, fresh=True)
    criteria = exchange.request.headers.get("if-none-exist")
    if criteria is None:
        return exchange.written((await exchange.store.transact([put], [("c", type)]))[0], 201)
    present: list[Stored] = []

    def make(found: list[list[Stored]]) -> list[Put]:
        match = conditional.the_match(found[0], type)
        present[:] = [match] if match else []
        return [] if match else [put]

    plan = Plan([conditional.condition(exchange, type, criteria)], make)
    stored = await exchange.store.transact(plan, [("c", type), ("s", type)])
    return exchange.written(present[0], 200) if present else exchange.written(stored[0], 201)
