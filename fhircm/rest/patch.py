"""Change a part of a resource, by its id or by a condition. https://hl7.org/fhir/R4/http.html#patch"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from fhircm.fhir.fhirpath_patch import fhirpath_patched, read_fhirpath_patch
from fhircm.fhir.outcome import NotFound, UnsupportedMediaType
from fhircm.fhir.patch import json_patched, read_json_patch
from fhircm.fhir.query import Query
from fhircm.fhir.validation import Checked
from fhircm.rest import conditional, headers
from fhircm.rest.bodies import read_body
from fhircm.rest.exchange import Exchange
from fhircm.store.operations import Plan, Put
from fhircm.store.stored import Stored

JSON_PATCH = "application/json-patch+json"
FORMATS = (JSON_PATCH, headers.FHIR_JSON)
Change = Callable[[dict[str, Any]], Checked]


async def patch(exchange: Exchange, type: str, id: str) -> Response:
    """Change the current version, or with If-Match that version."""
    return await _patched(exchange, type, conditional.by_id(type, id), conditionally=False)


async def patch_conditionally(exchange: Exchange, type: str) -> Response:
    """Change the one resource that matches."""
    return await _patched(exchange, type, conditional.condition(exchange, type, exchange.request.url.query), conditionally=True)


async def _patched(exchange: Exchange, type: str, query: Query, *, conditionally: bool) -> Response:
    kind = exchange.request.headers.get("content-type", "")
    change = change_of(kind, await read_body(exchange.request, exchange.settings.body_limit))
    if_version = headers.if_match(exchange.request)
    plan = Plan([query], lambda found: [patch_of(found[0], type, change, if_version)])
    (stored,) = await exchange.store.transact(plan, [("u", type), ("s", type)] if conditionally else [("u", type)])
    return exchange.written(stored, 200)


def change_of(kind: str, body: bytes) -> Change:
    """What a patch does to a tree: a JSON Patch, or a FHIRPath Patch, which is a Parameters resource.

    Raises UnsupportedMediaType, Malformed, Invalid.
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind == JSON_PATCH:
        changes = read_json_patch(body)
        return lambda tree: json_patched(tree, changes)
    if kind == headers.FHIR_JSON:
        operations = read_fhirpath_patch(body)
        return lambda tree: fhirpath_patched(tree, operations)
    raise UnsupportedMediaType(f"A patch must be sent as Content-Type: {' or '.join(FORMATS)}")


def patch_of(matches: list[Stored], type: str, change: Change, if_version: int | None) -> Put:
    """The write of a patch. Raises NotFound, MultipleMatches, VersionConflict, and what the change raises."""
    match = conditional.the_match(matches, type)
    if match is None:
        raise NotFound(f"No {type} is there to be changed")
    conditional.require_version(match, if_version)
    return Put(change(match.tree), match.version)
