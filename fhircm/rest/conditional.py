"""Conditional interactions: what a search finds decides what is written, inside the same transaction.

https://hl7.org/fhir/R4/http.html#ccreate, #cond-update and #3.1.0.7.1
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl
from uuid import uuid4

from fhircm.fhir.outcome import Malformed, MultipleMatches, NotFound, NotSupported, VersionConflict
from fhircm.fhir.query import Query, parse_query
from fhircm.fhir.validation import Checked
from fhircm.rest.exchange import Exchange
from fhircm.store.operations import Delete, Put
from fhircm.store.stored import Stored

_ALLOWED = frozenset({"_format", "_pretty"})


def condition(exchange: Exchange, type: str, text: str, limit: int = 1) -> Query:
    """The search that a condition is; it finds one match more than may be. Raises NotSupported, InvalidValue."""
    given = [(name, value) for name, value in parse_qsl(text.partition("?")[2] or text, keep_blank_values=True)]
    asked = [(name, value) for name, value in given if name not in _ALLOWED]
    query = parse_query(type, asked, base_url=exchange.base_url, full_text=exchange.settings.full_text)
    if not query.conditions or len(query.conditions) != len(query.used):
        raise NotSupported("A condition must be one or more search parameters, and nothing besides")
    return replace(query, count=limit + 1)


def by_id(type: str, id: str) -> Query:
    """The search for one resource by its id."""
    return parse_query(type, [("_id", id), ("_count", "2")])


def the_match(matches: list[Stored], type: str) -> Stored | None:
    """The one match, or None. Raises MultipleMatches."""
    if len(matches) > 1:
        raise MultipleMatches(f"The condition matches several resources of the type {type}; it must match one at most")
    return matches[0] if matches else None


def update_of(
    match: Stored | None, resource: Checked, if_version: int | None, *, may_create: bool, new_id: str | None = None
) -> Put:
    """The write of a conditional update; `new_id` is what a new resource without an id of its own gets. Raises Malformed, NotFound, VersionConflict."""
    if match is not None:
        if resource.id not in (None, match.id):
            raise Malformed(f"{resource.type}.id is not the id of the resource that matches", f"{resource.type}.id")
        require_version(match, if_version)
        return Put(replace(resource, id=match.id), match.version)
    if if_version is not None:
        raise VersionConflict("If-Match names a version, and nothing matches")
    if resource.id is not None and not may_create:
        raise NotFound(f"{resource.type}/{resource.id} is not known, and ids are chosen by this server")
    return Put(replace(resource, id=resource.id or new_id or str(uuid4())), if_version=0)


def deletes_of(matches: list[Stored], type: str, limit: int, if_version: int | None) -> list[Delete]:
    """The writes of a conditional delete. Raises MultipleMatches, VersionConflict."""
    if len(matches) > limit:
        raise MultipleMatches(f"The condition matches more than {limit} resource(s) of the type {type}; none was deleted")
    for match in matches:
        require_version(match, if_version)
    return [Delete(match.type, match.id, match.version) for match in matches]


def require_version(match: Stored, if_version: int | None) -> None:
    """Raises VersionConflict when the caller names another version than the current one."""
    if if_version is not None and if_version != match.version:
        raise VersionConflict(f"{match.type}/{match.id} is at version {match.version}, not {if_version}")
