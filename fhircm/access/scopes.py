"""SMART scopes of backend systems: system/Task.rus, system/*.read, and what they let a caller do.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from fhircm.fhir.definitions import definitions

_SCOPE = re.compile(r"system/(\*|[A-Za-z]+)\.(read|write|\*|c?r?u?d?s?)")
_V1 = {"read": "rs", "write": "cud", "*": "cruds"}


class Scope(NamedTuple):
    """A scope that was understood: a type (or *) and some of the letters c, r, u, d, s."""

    type: str
    verbs: frozenset[str]


def written(scope: Scope) -> str:
    """The scope as text that `parse_scope` reads."""
    return f"system/{scope.type}.{''.join(verb for verb in 'cruds' if verb in scope.verbs)}"


def parse_scope(text: str) -> Scope | None:
    """Read a scope; None for one that this server does not have (granular ones, other contexts, unknown types)."""
    found = _SCOPE.fullmatch(text)
    if not found or not found[2] or (found[1] != "*" and found[1] not in definitions().resource_types):
        return None
    return Scope(found[1], frozenset(_V1.get(found[2], found[2])))


def allows(scopes: Iterable[Scope], verb: str, type: str) -> bool:
    """Whether these scopes let a caller do `verb` (c, r, u, d or s) with a type."""
    return any(scope.type in ("*", type) and verb in scope.verbs for scope in scopes)


def granted(requested: str, registered: str) -> list[str]:
    """Those of the requested scopes that lie wholly within the registered ones, in the order asked."""
    may = [scope for text in registered.split() if (scope := parse_scope(text))]
    return [
        text
        for text in dict.fromkeys(requested.split())
        if (wanted := parse_scope(text)) and all(_covered(may, verb, wanted.type) for verb in wanted.verbs)
    ]


def _covered(may: list[Scope], verb: str, type: str) -> bool:
    return any(scope.type in ("*", type) and verb in scope.verbs for scope in may)
