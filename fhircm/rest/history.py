"""The history of a resource, of a type and of everything. https://hl7.org/fhir/R4/http.html#history"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from fhircm.fhir.outcome import Malformed, NotFound, NotSupported
from fhircm.fhir.query import DEFAULT_COUNT, MAX_COUNT, InvalidValue
from fhircm.fhir.ranges import date_range
from fhircm.fhir.subset import Subset, read_subset
from fhircm.rest.bundles import Entry, bundle
from fhircm.rest.exchange import Exchange
from fhircm.rest.headers import FHIR_JSON
from fhircm.store.history import HistoryQuery
from fhircm.store.stored import Stored, instant

_METHODS = {"create": ("POST", "201 Created"), "update": ("PUT", "200 OK"), "delete": ("DELETE", "204 No Content")}
_PASSED_OVER = frozenset({"_format", "_pretty"})


async def history(exchange: Exchange, type: str | None = None, id: str | None = None) -> Response:
    """A page of versions, the newest first, deletions too; the pages behind it show the same moment."""
    given = [pair for pair in parse_qsl(exchange.request.url.query, keep_blank_values=True) if pair[0] not in _PASSED_OVER]
    place = "/".join(part for part in (type, id, "_history") if part)
    query = HistoryQuery(type, id, DEFAULT_COUNT)
    if given and given[0][0] == "_page":
        given, state = exchange.links.read(place, given[0][1])
        query = replace(query, snapshot=state["s"], after=tuple(state["a"]))
    query = _understood(query, given)
    page = await exchange.store.history(query)
    if id and not page.versions and not given:
        raise NotFound(f"{type}/{id} is not known")
    url = f"{exchange.base_url}/{place}"
    links = [("self", f"{url}?{urlencode(given)}" if given else url)]
    if page.after is not None:
        links.append(("next", f"{url}?_page={exchange.links.write(place, given, {'s': page.snapshot, 'a': page.after})}"))
    subset = read_subset(given)
    for one in page.versions:
        exchange.touched.add(one)
    entries = [_entry(exchange, one, subset) for one in page.versions]
    whole = len(entries) if page.after is None and query.snapshot is None else None
    return Response(bundle("history", entries, links, whole), media_type=FHIR_JSON)


def _understood(query: HistoryQuery, given: list[tuple[str, str]]) -> HistoryQuery:
    if len({name for name, _ in given}) != len(given):
        raise Malformed("A parameter of a history may stand once only")
    for name, value in given:
        match name:
            case "_count":
                if not (value.isascii() and value.isdigit() and len(value) < 10):
                    raise InvalidValue("'_count' takes a whole number")
                query = replace(query, count=min(max(int(value), 1), MAX_COUNT))
            case "_since":
                query = replace(query, since=_times(name, value)[0])
            case "_at":
                query = replace(query, at=_times(name, value))
            case "_summary" | "_elements":
                pass  # about the answer: subset.py reads them
            case _:
                raise NotSupported(f"A history has no parameter '{name[:64]}'; it has: _at, _count, _since")
    return query


def _times(name: str, value: str) -> tuple[int, int]:
    try:
        return date_range(value)
    except ValueError as error:
        raise InvalidValue(f"'{name}' takes a date or time; this is {error}") from None


def _entry(exchange: Exchange, stored: Stored, subset: Subset | None) -> Entry:
    method, status = _METHODS[stored.method]
    url = stored.type if method == "POST" else f"{stored.type}/{stored.id}"
    response = {"status": status, "etag": f'W/"{stored.version}"', "lastModified": instant(stored.last_updated)}
    body = subset.of(stored.body) if subset and stored.body else stored.body
    more = {"request": {"method": method, "url": url}, "response": response}
    return Entry(f"{exchange.base_url}/{stored.type}/{stored.id}", body or None, more)
