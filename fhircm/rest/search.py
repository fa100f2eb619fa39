"""Search in one type, in several, or in a compartment; by GET or by POST _search. https://hl7.org/fhir/R4/http.html#search"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Forbidden, Issue, Malformed, NotFound, UnsupportedMediaType, outcome
from fhircm.fhir.query import Condition, Cursor, InvalidValue, Query, in_compartment, parse_types
from fhircm.fhir.subset import Subset, read_subset
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
    return await _answer(exchange, type, await _parameters(exchange), [type])


async def search_system(exchange: Exchange) -> Response:
    """Search in the types that `_type` names, or in all that the caller may search."""
    return await _answer(exchange, "", await _parameters(exchange), None)


async def search_compartment(exchange: Exchange, compartment: str, id: str, type: str) -> Response:
    """Search in what belongs to a patient, an encounter or another compartment: one type of it, or all (*)."""
    linked = definitions().compartments.get(compartment)
    if linked is None:
        raise NotFound(f"{compartment} is no compartment; there are: {', '.join(sorted(definitions().compartments))}")
    if type != "*" and in_compartment(compartment, (id,), type) is None:
        raise NotFound(f"No {type} is ever in the compartment of a {compartment}")
    await exchange.store.read(compartment, id)
    types = [type] if type != "*" else None
    return await _answer(exchange, f"{compartment}/{id}/{type}", await _parameters(exchange), types, (compartment, id))


async def _answer(
    exchange: Exchange, place: str, parameters: Parameters, types: list[str] | None, within: tuple[str, str] | None = None
) -> Response:
    lenient = preferences(exchange.request).get("handling") == "lenient"
    exchange.touched.query = urlencode(parameters)
    pages = [value for name, value in parameters if name == "_page"]
    cursor = None
    if pages:
        parameters, state = exchange.links.read(place, pages[0])
        exchange.touched.query = urlencode(parameters)
        cursor = Cursor.from_json(state)
    named = [(name, value) for name, value in parameters if name == "_type" and types is None]
    wanted = types or _types(exchange, named, within)
    asked = [pair for pair in parameters if pair not in named]
    query = parse_types(wanted, asked, base_url=exchange.base_url, lenient=lenient, full_text=exchange.settings.full_text)
    if within is not None:
        query = _within(query, *within)
    page = await exchange.store.search(replace(query, cursor=cursor))
    used = [*named, *query.used]
    return Response(_bundle(exchange, place, used, query, page, read_subset(parameters)), media_type=FHIR_JSON)


def _types(exchange: Exchange, named: Parameters, within: tuple[str, str] | None) -> list[str]:
    """The types of a search that is not bound to one: those that `_type` names, else all that the caller may search."""
    known = definitions().resource_types
    if named:
        listed = list(dict.fromkeys(type for _, value in named for type in value.split(",")))
        unknown = [type for type in listed if type not in known]
        if unknown:
            raise InvalidValue(f"'_type' names '{unknown[0][:64]}', which is not a resource type of FHIR R4")
        return listed
    allowed = [type for type in sorted(known) if exchange.store.principal.may("s", type)]
    if within is not None:
        allowed = [type for type in allowed if in_compartment(within[0], (within[1],), type) is not None]
    if not allowed:
        raise Forbidden("To search, the token needs a scope that ends with s, such as system/*.s")
    return allowed


def _within(query: Query, compartment: str, id: str) -> Query:
    def also(type: str, conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
        belongs = in_compartment(compartment, (id,), type)
        return (*conditions, belongs) if belongs is not None else conditions

    others = tuple((type, also(type, conditions)) for type, conditions in query.others)
    return replace(query, conditions=also(query.type, query.conditions), others=others)


async def _parameters(exchange: Exchange) -> Parameters:
    request = exchange.request
    given = parse_qsl(request.url.query, keep_blank_values=True)
    if request.method == "POST":
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise UnsupportedMediaType(f"The parameters of _search must be sent as Content-Type: {_FORM}")
        try:
            form = (await read_body(request, exchange.settings.body_limit)).decode()
            given += parse_qsl(form, keep_blank_values=True)
        except ValueError:
            raise Malformed("The parameters cannot be read as a form in UTF-8") from None
    return given


def _bundle(exchange: Exchange, place: str, used: Parameters, query: Query, page: Page, subset: Subset | None) -> bytes:
    url = f"{exchange.base_url}/{place}".rstrip("/")
    links = [("self", f"{url}?{urlencode(used)}" if used else url)]
    if page.next is not None:
        links.append(("next", f"{url}?_page={exchange.links.write(place, used, page.next.as_json())}"))
    entries = [_entry(exchange, one, "match", subset) for one in page.matches]
    entries += [_entry(exchange, one, "include", subset) for one in page.included]
    if query.ignored:
        issues = [Issue("warning", "not-supported", f"{name[:64]} was ignored: {why}") for name, why in query.ignored]
        entries.append(Entry(None, None, {"resource": outcome(issues), "search": {"mode": "outcome"}}))
    return bundle("searchset", entries, links, page.total)


def _entry(exchange: Exchange, stored: Stored, mode: str, subset: Subset | None) -> Entry:
    exchange.touched.add(stored)
    body = subset.of(stored.body) if subset else stored.body
    return Entry(f"{exchange.base_url}/{stored.type}/{stored.id}", body, {"search": {"mode": mode}})
