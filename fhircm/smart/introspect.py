"""Introspection: a server that was shown an access token of the hub asks what it is worth.

https://www.rfc-editor.org/rfc/rfc7662 and https://hl7.org/fhir/smart-app-launch/token-introspection.html
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.smart.client_auth import ClientAuthentication
from fhircm.smart.context import TOLD
from fhircm.smart.identity import Identities
from fhircm.smart.refusal import TokenRefused
from fhircm.smart.scopes import INTROSPECT
from fhircm.smart.token import unique
from fhircm.store.grants import Grants
from fhircm.store.principals import Principals, TokenHolder

_INACTIVE = {"active": False}


@dataclass(frozen=True)
class Introspection:
    """Tells what tokens are worth: of its own to a client that proved who it is, of anybody's to one with the scope `introspect`."""

    authentication: ClientAuthentication
    principals: Principals
    grants: Grants
    identities: Identities

    async def answer(self, fields: Sequence[tuple[str, str]], authorization: str | None = None) -> dict[str, Any]:
        """What is told of the token in this form. Raises TokenRefused."""
        form = unique(fields)
        only_of = await self._asker(form, authorization)
        token = form.get("token")
        if not token:
            raise TokenRefused("invalid_request", "token is needed")
        holder = await good(self.principals, token)
        if holder is None or only_of not in (None, holder.client_id):
            return dict(_INACTIVE)
        told: dict[str, Any] = {
            "active": True,
            "scope": holder.scope,
            "client_id": holder.client_id,
            "exp": holder.expires,
            "token_type": "Bearer",
        }
        told |= {name: holder.context[name] for name in TOLD if name in holder.context}
        grant = await self.grants.grant(holder.grant_id) if holder.grant_id else None
        return told | (self.identities.claims(grant) if grant else {})

    async def _asker(self, form: Mapping[str, str], authorization: str | None) -> str | None:
        """Whose tokens the caller may ask about: None, anybody's; else those of this client. Raises TokenRefused."""
        if (authorization or "").lower().startswith("bearer "):
            await with_scope(self.principals, authorization, INTROSPECT)
            return None
        client = await self.authentication.client(form, authorization)
        if client.is_public:
            raise TokenRefused("invalid_client", "A client that asks has to prove who it is")
        return None if INTROSPECT in client.scope.split() else client.id


async def good(principals: Principals, token: str) -> TokenHolder | None:
    """Who holds an access token that is worth something now."""
    holder = await principals.holder(token)
    return holder if holder and holder.why_not is None and holder.expires > time.time() else None


async def with_scope(principals: Principals, authorization: str | None, scope: str) -> TokenHolder:
    """Who shows a bearer token with a scope of this server. Raises TokenRefused."""
    kind, _, token = (authorization or "").partition(" ")
    holder = await good(principals, token.strip()) if kind.lower() == "bearer" else None
    if holder is None:
        raise TokenRefused("invalid_token", "A good bearer token is needed", scheme="Bearer")
    if scope not in holder.scope.split():
        raise TokenRefused("insufficient_scope", f"The bearer token needs the scope {scope}", scheme="Bearer")
    return holder
