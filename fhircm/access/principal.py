"""Who is asking: a person, an app for a person, a patient's app, a backend system, or the hub itself; always of an organisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from fhircm.access.roles import roles
from fhircm.access.scopes import Scope, allows, limited, parse_scopes
from fhircm.fhir.outcome import Forbidden
from fhircm.store.operations import Actor
from fhircm.store.visibility import MANY

_VERBS = {"c": "create", "r": "read", "u": "update", "d": "delete", "s": "search"}
TREATMENT = "TREAT"  # http://terminology.hl7.org/CodeSystem/v3-ActReason


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who signed in. `scopes` are what the token grants, as far as the roles allow it.

    `user` is who that is in FHIR (fhirUser), None for a backend system; `known_as` are all references by which resources name the
    principal: its organisation, its Practitioner and roles, with the copies of them that came from elsewhere. `patient` and `encounter`
    are ids of the launch context. `relationships`: how many name it with a patient; counted up to a limit.
    """

    client_id: str
    scopes: tuple[Scope, ...]
    roles: frozenset[str] = frozenset()
    organization: str | None = None
    user: str | None = None
    login: str | None = None
    grant_id: str | None = None
    patient: str | None = None
    encounter: str | None = None
    purpose: str = TREATMENT
    known_as: frozenset[str] = field(default=frozenset())
    relationships: int = field(default=MANY, compare=False)

    @property
    def origin(self) -> str:
        """How its writes are named in the change log."""
        return f"client:{self.client_id}"

    @property
    def actor(self) -> Actor:
        """Who it is to the rules of what is written. A custodian system speaks for everyone: it brings what others have done."""
        return Actor(self.known_as, everyone=self.user is None and self.sees_everything, roles=self.roles, leads=self.leads)

    @property
    def leads(self) -> bool:
        """Whether it is a person who leads the others of their organisation."""
        return self.user is not None and any(roles()[code].leads for code in self.roles if code in roles())

    @property
    def account(self) -> str:
        """To whom work that goes on after the request belongs: the client, or the person for whom it asked."""
        return self.client_id if self.login is None else f"{self.client_id}/{self.login}"

    @property
    def keeps_directory(self) -> bool:
        """Whether it may say who an organisation or a practitioner is."""
        return self.sees_everything or any(roles()[code].directory for code in self.roles if code in roles())

    @property
    def sees_everything(self) -> bool:
        """Whether it reaches every record, without a care relationship: each of its roles must, for what one allows another would widen."""
        reaches = {roles()[code].reach for code in self.roles if code in roles()}
        return reaches == {"everything"}

    @property
    def emergency(self) -> timedelta | None:
        """For how long an emergency access of this person opens a record; None: it has none."""
        known = [roles()[code].emergency for code in self.roles if code in roles()]
        return max((one for one in known if one is not None), default=None) if self.user else None

    def may(self, verb: str, type: str) -> bool:
        """Whether it may do `verb` (c, r, u, d or s) with resources of a type: with which, guarded_store.py says."""
        return allows(self.scopes, verb, type)

    def require(self, verb: str, type: str) -> None:
        """Raises Forbidden, naming the scope that is missing."""
        if not self.may(verb, type):
            context = "system" if self.user is None else "patient" if self.patient else "user"
            raise Forbidden(f"To {_VERBS[verb]} {type}, the token needs the scope {context}/{type}.{verb}")


def within_roles(scopes: tuple[Scope, ...], codes: frozenset[str]) -> tuple[Scope, ...]:
    """What of these scopes somebody in these roles may do."""
    may = [scope for code in codes if code in roles() for scope in roles()[code].may]
    return limited(scopes, may)


def purpose_of(codes: frozenset[str]) -> str:
    """For what somebody in these roles asks when nothing else is said."""
    purposes = [roles()[code].purpose for code in sorted(codes) if code in roles()]
    return TREATMENT if not purposes or TREATMENT in purposes else purposes[0]


def written(principal: Principal) -> dict[str, Any]:
    """The principal as JSON, for work that goes on after the request: `read` makes it again."""
    return {
        "client_id": principal.client_id,
        "scopes": [str(scope) for scope in principal.scopes],
        "roles": sorted(principal.roles),
        "organization": principal.organization,
        "user": principal.user,
        "login": principal.login,
        "patient": principal.patient,
        "encounter": principal.encounter,
        "purpose": principal.purpose,
        "known_as": sorted(principal.known_as),
    }


def read(tree: Mapping[str, Any]) -> Principal:
    """The principal that `written` told of."""
    lists = {"scopes": parse_scopes(" ".join(tree["scopes"])), "roles": frozenset(tree["roles"])}
    return Principal(**{**tree, **lists, "known_as": frozenset(tree["known_as"])})
