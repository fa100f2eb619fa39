"""From the Authorization header to a Principal.

https://www.rfc-editor.org/rfc/rfc6750. Tokens are opaque and random; a small cache spares the database, and forgets a token when it expires.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict

from fhircm.access.principal import Principal
from fhircm.access.scopes import parse_scope
from fhircm.fhir.outcome import Unauthorized
from fhircm.store.credentials import Credentials, TokenRecord

LIFETIME = 300  # seconds; https://hl7.org/fhir/smart-app-launch/backend-services.html#response
_CACHED = 4096


class Bearer:
    """Gives out access tokens and recognises them."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._known: OrderedDict[str, tuple[Principal, int]] = OrderedDict()

    async def issue(self, client_id: str, scope: str) -> str:
        """A new token for a client, good for LIFETIME seconds."""
        token = secrets.token_urlsafe(32)
        now = int(time.time())
        await self._credentials.save_token(token, TokenRecord(client_id, scope, now + LIFETIME), now)
        return token

    async def principal(self, authorization: str | None) -> Principal:
        """Who shows this header. Raises Unauthorized."""
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthorized("A bearer token is needed; get one from the token endpoint in .well-known/smart-configuration")
        return await self._of(token.strip())

    async def _of(self, token: str) -> Principal:
        principal, expires = self._known.get(token, (None, 0))
        if principal is None:
            record = await self._credentials.token(token)
            if record is None:
                raise Unauthorized("The token is not one of this server, or it expired long ago")
            scopes = tuple(scope for text in record.scope.split() if (scope := parse_scope(text)))
            principal, expires = Principal(record.client_id, scopes), record.expires
            self._known[token] = principal, expires
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)
        if expires <= time.time():
            self._known.pop(token, None)
            raise Unauthorized("The token has expired")
        return principal
