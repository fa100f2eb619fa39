"""What a principal may see: its scopes, its launch context, its role, and as whom resources know it.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html; docs/explanation/access.md
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

from fhircm.access.principal import Principal
from fhircm.access.scopes import Scope, allows, conditions
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.belonging import of_patients
from fhircm.fhir.conditions import AllOf, AnyOf, Condition
from fhircm.fhir.definitions import definitions
from fhircm.store.operations import Narrowing
from fhircm.store.search_tests import Listed
from fhircm.store.visibility import Viewer, is_open


def narrowing(principal: Principal, verb: str, now: int, grace: int) -> Narrowing | None:
    """What a principal may do a verb (c, r, u, d, s) with; None: with everything of every type.

    `now` and `grace` are microseconds: the time since the epoch, and how long a care relationship is good after its end.
    """
    by_type = _by_type(principal.scopes, verb, principal.patient)
    viewer = None if principal.sees_everything else _viewer(principal, grace)
    if viewer is None and len(by_type) == len(definitions().resource_types) and not any(by_type.values()):
        return None
    return Narrowing(by_type, viewer, now)


@lru_cache(maxsize=1024)
def _by_type(scopes: tuple[Scope, ...], verb: str, patient: str | None) -> Mapping[str, tuple[Condition, ...]]:
    """The types with which scopes allow a verb, and what resources must fulfil besides."""
    found: dict[str, tuple[Condition, ...]] = {}
    for type in definitions().resource_types:
        if not allows(scopes, verb, type):
            continue
        ways = [
            way
            for scope in scopes
            if scope.type in ("*", type) and verb in scope.verbs and (way := _of_scope(scope, type, patient)) is not None
        ]
        if ways:
            found[type] = () if () in ways else (AnyOf(tuple(AllOf(way) for way in ways)),)
    return found


def _of_scope(scope: Scope, type: str, patient: str | None) -> tuple[Condition, ...] | None:
    """What one scope asks of resources of a type; None: it gives none of them."""
    asked = conditions(scope, type)
    if scope.context != "patient" or is_open(type):
        return asked
    inside = of_patients([patient]).inside.get(type) if patient else None
    return None if inside is None else (*asked, *inside)


@lru_cache(maxsize=4096)
def _viewer(principal: Principal, grace: int) -> Viewer:
    user, _, id = (principal.user or "").partition("/")
    return Viewer(
        known_as=Listed(sorted(principal.known_as)),
        own=Listed([id]) if user == "Patient" else Listed(),
        purpose=principal.purpose,
        closed=Listed(closed_labels(principal.roles)),
        grace=grace,
        relationships=principal.relationships,
    )


@cache
def closed_labels(roles: frozenset[str]) -> tuple[str, ...]:
    """The security labels, folded as they are searched, that nobody in these roles sees without a consent: profiles/sensitivity."""
    closed: list[str] = []
    for path in sorted((folder("profiles") / "sensitivity").glob("*.yaml")):
        tree = read_yaml(path)
        if roles.isdisjoint(tree["roles"]):
            closed += (label.casefold() for label in tree["labels"])
    return tuple(dict.fromkeys(closed))
