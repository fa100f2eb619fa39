"""The scopes that are not about resources, and what of all scopes a client is granted.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html
"""

from __future__ import annotations

from collections.abc import Iterable

from fhircm.access.principal import within_roles
from fhircm.access.scopes import granted, parse_scope

LAUNCH = ("launch", "launch/patient", "launch/encounter")
IDENTITY = ("openid", "fhirUser", "profile")
REFRESH = ("offline_access", "online_access")
INTROSPECT = "introspect"  # of this server: the client may look at the tokens of others
LAUNCHER = "launcher"  # of this server: the client, an EHR or portal, may launch apps here
FOR_PEOPLE = frozenset({*LAUNCH, *IDENTITY, *REFRESH})
FOR_SYSTEMS = frozenset({INTROSPECT, LAUNCHER})

SUPPORTED = [
    *IDENTITY,
    *LAUNCH,
    *REFRESH,
    *(f"{context}/*.{verbs}" for context in ("patient", "user", "system") for verbs in ("cruds", "rs", "read", "write")),
]


def is_known(text: str) -> bool:
    """Whether this server has such a scope."""
    return text in FOR_PEOPLE or text in FOR_SYSTEMS or parse_scope(text) is not None


def for_people(requested: str, allowed: str) -> list[str]:
    """What of the requested scopes a person may let a client have: those within its registration, none of systems."""
    return _granted(requested, allowed, FOR_PEOPLE, ("patient/", "user/"))


def for_systems(requested: str, allowed: str) -> list[str]:
    """What of the requested scopes a client may have by itself."""
    return _granted(requested, allowed, FOR_SYSTEMS, ("system/",))


def narrowed(requested: str, allowed: str) -> list[str] | None:
    """The requested scopes when all of them lie within what was granted before; None when one does not."""
    asked = list(dict.fromkeys(requested.split()))
    within = _granted(requested, allowed, FOR_PEOPLE, ("patient/", "user/"))
    return within if asked and within == asked else None


def without(scopes: Iterable[str], context: str) -> list[str]:
    """These scopes without those about the resources of a context."""
    return [scope for scope in scopes if not scope.startswith(f"{context}/")]


def within(scopes: Iterable[str], codes: Iterable[str]) -> list[str]:
    """What of these scopes somebody in these roles can give: nobody lets an app do more than they may do themselves."""
    roles = frozenset(codes)
    found: dict[str, None] = {}
    for text in scopes:
        scope = parse_scope(text)
        if scope is None:
            found[text] = None
            continue
        kept = within_roles((scope,), roles)
        found.update(dict.fromkeys([text] if kept == (scope,) else map(str, kept)))
    return list(found)


def _granted(requested: str, allowed: str, whole: frozenset[str], contexts: tuple[str, ...]) -> list[str]:
    registered = frozenset(allowed.split())
    found: dict[str, None] = {}
    for text in requested.split():
        if text in whole:
            found.update({text: None} if text in registered else {})
        elif text.startswith(contexts):
            found.update(dict.fromkeys(granted(text, allowed)))
    return list(found)
