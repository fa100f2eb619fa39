"""From the Authorization header to a Principal.

https://www.rfc-editor.org/rfc/rfc6750. Tokens are opaque and random. Who is behind one is remembered for a few seconds, which spares the
database; so that is how long a token outlives its revocation in a process that did not do it.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fhircm.access.principal import Principal, purpose_of, within_roles
from fhircm.access.scopes import parse_scopes
from fhircm.fhir.outcome import Unauthorized
from fhircm.store.credentials import Credentials, TokenRecord
from fhircm.store.principals import Principals, TokenHolder

LIFETIME = 300  # seconds; https://hl7.org/fhir/smart-app-launch/backend-services.html#response
REMEMBERED = 5.0  # seconds
_CACHED = 4096


class Bearer:
    """Gives out access tokens and recognises them."""

    def __init__(self, credentials: Credentials, principals: Principals) -> None:
        self._credentials, self._principals = credentials, principals
        self._known: OrderedDict[str, tuple[Principal, float]] = OrderedDict()

    async def issue(
        self,
        client_id: str,
        scope: str,
        *,
        lifetime: int = LIFETIME,
        grant_id: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> str:
        """A new token for a client, good for so many seconds. `context`: patient, encounter and what else a launch told."""
        token = secrets.token_urlsafe(32)
        now = int(time.time())
        record = TokenRecord(client_id, scope, now + lifetime, grant_id, dict(context or {}))
        await self._credentials.save_token(token, record, now)
        return token

    def forget(self) -> None:
        """Look everybody up again: something was revoked or disabled in this process."""
        self._known.clear()

    async def principal(self, authorization: str | None) -> Principal:
        """Who shows this header. Raises Unauthorized."""
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthorized("A bearer token is needed; get one from the token endpoint in .well-known/smart-configuration")
        return await self._of(token.strip())

    async def _of(self, token: str) -> Principal:
        now = time.time()
        known, until = self._known.get(token, (None, 0.0))
        if known is not None and now < until:
            return known
        self._known.pop(token, None)
        holder = await self._principals.holder(token)
        if holder is None:
            raise Unauthorized("The token is not one of this server, or it expired long ago")
        if holder.expires <= now:
            raise Unauthorized("The token has expired")
        if holder.why_not:
            raise Unauthorized(holder.why_not)
        principal = await self._principal(holder)
        self._known[token] = principal, min(now + REMEMBERED, holder.expires)
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)
        return principal

    async def _principal(self, holder: TokenHolder) -> Principal:
        codes = frozenset(holder.roles)
        names = [one for one in (holder.user, holder.organization) if one]
        known_as = await self._principals.known_as(names)
        return Principal(
            client_id=holder.client_id,
            scopes=within_roles(parse_scopes(holder.scope), codes),
            roles=codes,
            organization=holder.organization,
            user=holder.user,
            login=holder.login,
            grant_id=holder.grant_id,
            patient=holder.context.get("patient"),
            encounter=holder.context.get("encounter"),
            purpose=holder.context.get("purpose") or holder.purpose or purpose_of(codes),
            known_as=known_as,
            few_patients=await self._principals.has_few_patients(known_as),
        )
