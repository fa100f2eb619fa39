"""The token endpoint: authorization code with PKCE, refresh tokens, and client credentials by a signed assertion.

https://hl7.org/fhir/smart-app-launch/app-launch.html#obtain-access-token, https://hl7.org/fhir/smart-app-launch/backend-services.html,
https://www.rfc-editor.org/rfc/rfc7636 and https://www.rfc-editor.org/rfc/rfc9700. Why no library does the grants:
docs/decisions/smart-token-endpoint.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.access.bearer import LIFETIME, Bearer
from fhircm.smart.client_auth import ClientAuthentication
from fhircm.smart.clients import Client
from fhircm.smart.context import TOLD
from fhircm.smart.identity import Identities
from fhircm.smart.refusal import TokenRefused
from fhircm.smart.scopes import for_people, for_systems, narrowed
from fhircm.store.grants import Code, Grant, Grants, UsedAgain

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_NOT_GOOD = "The code or token is not known, was used, or is no longer good"


@dataclass(frozen=True)
class TokenEndpoint:
    """Gives out tokens. Access tokens of apps are good for `lifetime` seconds, those of systems for five minutes."""

    authentication: ClientAuthentication
    bearer: Bearer
    grants: Grants
    identities: Identities
    lifetime: int = 900

    async def grant(self, fields: Sequence[tuple[str, str]], authorization: str | None = None) -> dict[str, Any]:
        """The answer to a token request. Raises TokenRefused."""
        form = unique(fields)
        kinds = {
            "authorization_code": self._by_code,
            "refresh_token": self._by_refresh_token,
            "client_credentials": self._by_credentials,
        }
        kind = form.get("grant_type", "")
        if kind not in kinds:
            raise TokenRefused("unsupported_grant_type", f"grant_type is one of {', '.join(kinds)}")
        client = await self._client(form, authorization)
        if kind not in client.grant_types:
            raise TokenRefused("unauthorized_client", f"The client is not registered for {kind}")
        return await kinds[kind](client, form)

    async def _client(self, form: Mapping[str, str], authorization: str | None) -> Client:
        """Who asks. SMART has a public app send its refresh token alone, and apps do so: whose it is says who they are. Raises TokenRefused."""
        if form["grant_type"] == "refresh_token" and authorization is None and "client_id" not in form:
            known = await self.grants.refresh_token(form.get("refresh_token", ""))
            if known is not None:
                form = {**form, "client_id": known.grant.client_id}
        return await self.authentication.client(form, authorization)

    async def _by_credentials(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        if client.method != "private_key_jwt":
            raise TokenRefused("unauthorized_client", "client_credentials needs a signed client_assertion")
        scopes = for_systems(form.get("scope", ""), client.scope)
        if not scopes:
            raise TokenRefused("invalid_scope", "None of the requested scopes is granted to this client")
        scope = " ".join(scopes)
        token = await self.bearer.issue(client.id, scope, lifetime=LIFETIME)
        return {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": scope}

    async def _by_code(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        for name in ("code", "code_verifier", "redirect_uri"):
            if name not in form:
                raise TokenRefused("invalid_request", f"{name} is needed")
        now = int(time.time())
        try:
            code = await self.grants.use_code(form["code"], now)
        except UsedAgain:
            self.bearer.forget()
            code = None
        if code is None:
            raise TokenRefused("invalid_grant", _NOT_GOOD)
        if wrong := _mismatch(code, client, form):
            # Whoever holds the code is not who asked for it: nobody gets anything for it any more.
            await self.grants.revoke(code.grant.id, now)
            raise TokenRefused("invalid_grant", wrong)
        grant = code.grant
        answer = await self._answer(client, grant, grant.scope, now)
        if refresh := self._refreshes(client, grant):
            token = secrets.token_urlsafe(32)
            session = bytes.fromhex(code.payload["session"]) if refresh == "online_access" else None
            await self.grants.add_refresh_token(token, grant, session)
            answer["refresh_token"] = token
        if id_token := await self.identities.token(client, grant, code.payload, answer["access_token"]):
            answer["id_token"] = id_token
        return answer

    async def _by_refresh_token(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        token = form.get("refresh_token")
        if not token:
            raise TokenRefused("invalid_request", "refresh_token is needed")
        now = int(time.time())
        known = await self.grants.refresh_token(token)
        if known is None:
            raise TokenRefused("invalid_grant", _NOT_GOOD)
        if known.used or known.grant.client_id != client.id:  # two hold it, whatever else they ask for
            await self.grants.revoke(known.grant.id, now)
            self.bearer.forget()
            raise TokenRefused("invalid_grant", _NOT_GOOD)
        asked = form.get("scope")
        scopes = known.grant.scope.split() if asked is None else narrowed(asked, known.grant.scope)
        if scopes is None:
            raise TokenRefused("invalid_scope", "A refresh token gives what was granted, or a part of it")
        scopes = for_people(" ".join(scopes), client.scope)  # the client may have been registered anew with less
        if not scopes:
            raise TokenRefused("invalid_scope", "The client may have none of this any more")
        fresh = secrets.token_urlsafe(32)
        try:
            grant = await self.grants.rotate(token, fresh, now)
        except UsedAgain:
            self.bearer.forget()
            grant = None
        if grant is None:
            raise TokenRefused("invalid_grant", _NOT_GOOD)
        return await self._answer(client, grant, " ".join(scopes), now) | {"refresh_token": fresh}

    async def _answer(self, client: Client, grant: Grant, scope: str, now: int) -> dict[str, Any]:
        """An access token with what the app is told of the launch."""
        lifetime = min(self.lifetime, grant.expires - now)
        token = await self.bearer.issue(client.id, scope, lifetime=lifetime, grant_id=grant.id, context=grant.context)
        told = {name: grant.context[name] for name in TOLD if name in grant.context}
        return {"access_token": token, "token_type": "Bearer", "expires_in": lifetime, "scope": scope} | told

    def _refreshes(self, client: Client, grant: Grant) -> str | None:
        """Which of the scopes for refresh tokens was granted, the longer one first."""
        if "refresh_token" not in client.grant_types:
            return None
        scopes = grant.scope.split()
        return next((one for one in ("offline_access", "online_access") if one in scopes), None)


def unique(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The fields of a form, each of which may come once (RFC 6749 section 3.2). Raises TokenRefused."""
    form = dict(fields)
    if len(form) != len(fields):
        raise TokenRefused("invalid_request", "A parameter is given more than once")
    return form


def _mismatch(code: Code, client: Client, form: Mapping[str, str]) -> str | None:
    """What is wrong with who shows a code, or None."""
    if code.grant.client_id != client.id:
        return "The code is of another client"
    if not hmac.compare_digest(form["redirect_uri"].encode(), code.payload["redirect_uri"].encode()):
        return "redirect_uri is another one than in the authorization request"
    verifier = form["code_verifier"]
    if not _VERIFIER.fullmatch(verifier):
        return "code_verifier has 43 to 128 letters, digits and -._~"
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return None if hmac.compare_digest(challenge, code.payload["code_challenge"]) else "code_verifier is not the right one"
