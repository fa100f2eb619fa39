"""Search in one type, by GET or by POST _search. https://hl7.org/fhir/R4/http.html#search"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from fhircm.fhir.outcome import Issue, Malformed, UnsupportedMediaType, outcome
from fhircm.fhir.query import Cursor, Query, parse_query
from fhircm.rest.bodies import read_body
from fhircm.rest.bundles import Entry, bundle
from fhircm.rest.exchange import Exchange
from fhircm.rest.headers import FHIR_JSON, preferences
from fhircm.rest.links import Parameters
from fhircm.store.stored import Stored

if TYPE_CHECKING:
    from fhircm.store.search import Page

_FORM = "application/x-www-form-urlencoded"


async def search(exchange: Exchange, type: str) -> Response:
    """A page of matches. An unknown parameter is refused, or with handling=lenient named in an OperationOutcome entry."""
    parameters = await _parameters(exchange)
    pages = [value for name, value in parameters if name == "_page"]
    lenient = preferences(exchange.request).get("handling") == "lenient"
    cursor = None
    if pages:
        parameters, state = exchange.links.read(type, pages[0])
        cursor = Cursor.from_json(state)
    query = parse_query(type, parameters, base_url=exchange.base_url, lenient=lenient)
    page = await exchange.store.search(replace(query, cursor=cursor))
    return Response(_bundle(exchange, query, page), media_type=FHIR_JSON)


async def _parameters(exchange: Exchange) -> Parameters:
    request = exchange.request
    given = parse_qsl(request.url.query, keep_blank_values=True)
    if request.method == "POST":
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise UnsupportedMediaType(f"The parameters of _search must be sent as Content-Type: {_FORM}")
        try:
            given += parse_qsl((await read_body(request, exchange.settings.body_limit)).decode(), keep_blank_values=True)
        except ValueError:
            raise Malformed("The parameters cannot be read as a form in UTF-8") from None
    return given


def _bundle(exchange: Exchange, query: Query, page: Page) -> bytes:
    url = f"{exchange.base_url}/{query.type}"
    links = [("self", f"{url}?{urlencode(query.used)}" if query.used else url)]
    if page.next is not None:
        links.append(("next", f"{url}?_page={exchange.links.write(query.type, list(query.used), page.next.as_json())}"))
    entries = [_entry(exchange, one, "match") for one in page.matches] + [
        _entry(exchange, one, "include") for one in page.included
    ]
    if query.ignored:
        issues = [Issue("warning", "not-supported", f"{name[:64]} was ignored: {why}") for name, why in query.ignored]
        entries.append(Entry(None, None, {"resource": outcome(issues), "search": {"mode": "outcome"}}))
    return bundle("searchset", entries, links, page.total)


def _entry(exchange: Exchange, stored: Stored, mode: str) -> Entry:
    return Entry(f"{exchange.base_url}/{stored.type}/{stored.id}", stored.body, {"search": {"mode": mode}})
