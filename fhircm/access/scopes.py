"""SMART scopes, v1 and v2, with the search parameters of granular ones, and what they let a caller do.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from fhircm.fhir.conditions import Condition, InvalidValue
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.query import parse_query

_SCOPE = re.compile(r"(patient|user|system)/(\*|[A-Za-z]+)\.(read|write|\*|c?r?u?d?s?)(?:\?([^\s]+))?", re.ASCII)
_V1 = {"read": "rs", "write": "cud", "*": "cruds"}
_LENGTH = 500  # characters
_NOT_PLAIN = frozenset({"_has", "_filter", "_list", "_text", "_content"})


class Scope(NamedTuple):
    """A scope that was understood: whose resources, a type (or *), some of the letters c, r, u, d, s, and what those must match."""

    context: str  # patient, user or system
    type: str
    verbs: frozenset[str]
    query: str = ""

    def __str__(self) -> str:
        verbs = "".join(verb for verb in "cruds" if verb in self.verbs)
        return f"{self.context}/{self.type}.{verbs}{f'?{self.query}' if self.query else ''}"


def parse_scope(text: str) -> Scope | None:
    """Read a scope; None for one that this server does not have: unknown types and parameters, letters out of order."""
    found = _SCOPE.fullmatch(text) if len(text) <= _LENGTH else None
    if not found or not found[3] or (found[2] != "*" and found[2] not in definitions().resource_types):
        return None
    query = urlencode(sorted(parse_qsl(found[4], keep_blank_values=True))) if found[4] else ""
    scope = Scope(found[1], found[2], frozenset(_V1.get(found[3], found[3])), query)
    if query:
        try:
            conditions(scope, "Basic" if scope.type == "*" else scope.type)
        except FhirError:
            return None
    return scope


def parse_scopes(text: str) -> tuple[Scope, ...]:
    """The scopes of a text with spaces between them; what is not understood is passed over."""
    return tuple(scope for one in text.split() if (scope := parse_scope(one)))


@lru_cache(maxsize=4096)
def conditions(scope: Scope, type: str) -> tuple[Condition, ...]:
    """What resources of a type must fulfil for a scope to be about them.

    Raises NotSupported and InvalidValue for a query that says anything but plain search parameters.
    """
    if not scope.query:
        return ()
    pairs = parse_qsl(scope.query, keep_blank_values=True)
    query = parse_query(type, pairs)
    far = [name for name, _ in pairs if "." in name or name.partition(":")[0] in _NOT_PLAIN]
    if far or len(query.conditions) != len(pairs):
        raise InvalidValue("A scope takes plain search parameters: no chains, and nothing about the answer")
    return query.conditions


def allows(scopes: Iterable[Scope], verb: str, type: str) -> bool:
    """Whether these scopes let a caller do `verb` (c, r, u, d or s) with some resources of a type."""
    return any(scope.type in ("*", type) and verb in scope.verbs for scope in scopes)


def granted(requested: str, allowed: str) -> list[str]:
    """What of the requested resource scopes lies within the allowed ones: narrowed to that, in the order asked.

    https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scope-equivalence
    """
    may = parse_scopes(allowed)
    found: dict[str, None] = {}
    for text in requested.split():
        wanted = parse_scope(text)
        if wanted is None:
            continue
        if any(_covers(one, wanted) for one in may):
            found[text] = None
            continue
        parts = [part for one in may if one.context == wanted.context and (part := intersection(wanted, one))]
        found.update((str(one), None) for one in simplified(parts))
    return list(found)


def limited(scopes: Sequence[Scope], role: Sequence[Scope]) -> tuple[Scope, ...]:
    """What of these scopes lies within what a role may do, whatever the context."""
    parts = [part for one in scopes for other in role if (part := intersection(one, other._replace(context=one.context)))]
    return simplified(parts)


def intersection(one: Scope, other: Scope) -> Scope | None:
    """What both of two scopes of one context allow; None: nothing."""
    verbs = one.verbs & other.verbs
    if not verbs or (one.type != other.type and "*" not in (one.type, other.type)):
        return None
    queries = dict.fromkeys(query for query in (one.query, other.query) if query)
    return parse_scope(str(Scope(one.context, other.type if one.type == "*" else one.type, verbs, "&".join(queries))))


def simplified(scopes: Iterable[Scope]) -> tuple[Scope, ...]:
    """The scopes without those that another one covers; verbs of the same resources together."""
    merged: dict[tuple[str, str, str], frozenset[str]] = {}
    for scope in scopes:
        key = (scope.context, scope.type, scope.query)
        merged[key] = merged.get(key, frozenset()) | scope.verbs
    listed = [Scope(context, type, verbs, query) for (context, type, query), verbs in merged.items()]
    return tuple(one for one in listed if not any(other is not one and _covers(other, one) for other in listed))


def _covers(wide: Scope, narrow: Scope) -> bool:
    return (
        wide.context == narrow.context
        and wide.type in ("*", narrow.type)
        and wide.verbs >= narrow.verbs
        and wide.query in ("", narrow.query)
    )
