"""Who is asking."""

from __future__ import annotations

from dataclasses import dataclass

from fhircm.access.scopes import Scope, allows
from fhircm.fhir.outcome import Forbidden

_VERBS = {"c": "create", "r": "read", "u": "update", "d": "delete", "s": "search"}


@dataclass(frozen=True, slots=True)
class Principal:
    """A backend system that signed in; what it may do follows from its scopes."""

    client_id: str
    scopes: tuple[Scope, ...]

    @property
    def origin(self) -> str:
        """How its writes are named in the change log."""
        return f"client:{self.client_id}"

    def may(self, verb: str, type: str) -> bool:
        """Whether it may do `verb` (c, r, u, d or s) with a type."""
        return allows(self.scopes, verb, type)

    def require(self, verb: str, type: str) -> None:
        """Raises Forbidden, naming the scope that is missing."""
        if not self.may(verb, type):
            raise Forbidden(f"To {_VERBS[verb]} {type}, the token needs the scope system/{type}.{verb}")
