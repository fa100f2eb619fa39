"""Read a resource. https://hl7.org/fhir/R4/http.html#read"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from starlette.requests import Request
from starlette.responses import Response

from fhircm.rest import headers
from fhircm.rest.exchange import Exchange
from fhircm.store.stored import Stored


async def read(exchange: Exchange, type: str, id: str) -> Response:
    """The current version; 304 when the caller has it already."""
    stored = await exchange.store.read(type, id)
    if _has_it(exchange.request, stored):
        exchange.touched.add(stored)
        return Response(status_code=304, headers=headers.of_version(stored))
    return exchange.resource(stored)


def _has_it(request: Request, stored: Stored) -> bool:
    etags = request.headers.get("if-none-match")
    if etags is not None:
        return any(one.strip() in ("*", f'W/"{stored.version}"', f'"{stored.version}"') for one in etags.split(","))
    since = request.headers.get("if-modified-since")
    if since is None:
        return False
    try:
        return stored.last_updated.replace(microsecond=0) <= parsedate_to_datetime(since)
    except (ValueError, TypeError):
        return False  # RFC 9110 13.1.3: a date that cannot be read is ignored
