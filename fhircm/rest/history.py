"""The history of a resource. https://hl7.org/fhir/R4/http.html#history"""

from __future__ import annotations

from starlette.responses import Response

from fhircm.fhir.outcome import NotSupported
from fhircm.rest.bundles import Entry, bundle
from fhircm.rest.exchange import Exchange
from fhircm.rest.headers import FHIR_JSON
from fhircm.store.stored import Stored, instant

_METHODS = {"create": ("POST", "201 Created"), "update": ("PUT", "200 OK"), "delete": ("DELETE", "204 No Content")}


async def history(exchange: Exchange, type: str, id: str) -> Response:
    """Every version, the newest first."""
    for name in exchange.request.query_params:
        if name not in ("_format", "_pretty"):
            raise NotSupported(f"The history of a resource has no parameter {name[:64]}")
    versions = await exchange.store.history(type, id)
    entries = [_entry(exchange, one) for one in versions]
    link = [("self", f"{exchange.base_url}/{type}/{id}/_history")]
    return Response(bundle("history", entries, link, len(entries)), media_type=FHIR_JSON)


def _entry(exchange: Exchange, stored: Stored) -> Entry:
    method, status = _METHODS[stored.method]
    url = stored.type if method == "POST" else f"{stored.type}/{stored.id}"
    response = {"status": status, "etag": f'W/"{stored.version}"', "lastModified": instant(stored.last_updated)}
    more = {"request": {"method": method, "url": url}, "response": response}
    return Entry(f"{exchange.base_url}/{stored.type}/{stored.id}", stored.body or None, more)
