"""Revocation: an app gives back what it was granted. https://www.rfc-editor.org/rfc/rfc7009"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fhircm.access.bearer import Bearer
from fhircm.smart.client_auth import ClientAuthentication
from fhircm.smart.refusal import TokenRefused
from fhircm.smart.token import unique
from fhircm.store.grants import Grants


@dataclass(frozen=True)
class Revocation:
    """Ends an access token; with a refresh token it ends the whole grant and every token of it."""

    authentication: ClientAuthentication
    grants: Grants
    bearer: Bearer

    async def end(self, fields: Sequence[tuple[str, str]], authorization: str | None = None) -> None:
        """End the token in this form; one that is not known needs no ending. Raises TokenRefused."""
        form = unique(fields)
        client = await self.authentication.client(form, authorization)
        token = form.get("token")
        if not token:
            raise TokenRefused("invalid_request", "token is needed")
        refresh = await self.grants.refresh_token(token)
        if refresh is not None:
            if refresh.grant.client_id != client.id:
                raise TokenRefused("invalid_grant", "The token is of another client")
            ended = await self.grants.revoke(refresh.grant.id, int(time.time()))
        else:
            ended = await self.grants.revoke_access_token(token, client.id)
        if ended:
            self.bearer.forget()
