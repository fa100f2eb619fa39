"""The token endpoint: client credentials by a signed assertion.

https://hl7.org/fhir/smart-app-launch/backend-services.html and https://www.rfc-editor.org/rfc/rfc7523. One grant of a few checks, written on joserfc:
docs/decisions/smart-token-endpoint.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import CompactSignature, extract_compact

from fhircm.access.bearer import LIFETIME, Bearer
from fhircm.access.scopes import granted
from fhircm.smart.jwks import JwksUnavailable, PublishedKeys
from fhircm.store.credentials import Credentials

ALGORITHMS = ["RS384", "ES384"]
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST = 300  # seconds that an assertion may be good for
_SKEW = 30  # seconds that two clocks may differ


class TokenRefused(Exception):
    """The request gets no token; `error` is one of RFC 6749 section 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description

    @property
    def status(self) -> int:
        return 401 if self.error == "invalid_client" else 400


@dataclass(frozen=True)
class TokenEndpoint:
    """Checks assertions and gives out tokens. `url` is the address that an assertion must be made for."""

    url: str
    credentials: Credentials
    bearer: Bearer
    published: PublishedKeys

    async def grant(self, form: dict[str, str]) -> dict[str, Any]:
        """The answer to a token request. Raises TokenRefused."""
        if form.get("grant_type") != "client_credentials":
            raise TokenRefused("unsupported_grant_type", "Only client_credentials is supported")
        if form.get("client_assertion_type") != ASSERTION_TYPE or not form.get("client_assertion"):
            raise TokenRefused("invalid_client", "A signed client_assertion is needed")
        client_id, registration = await self._client(form["client_assertion"])
        asked = form.get("scope", "")
        scopes = granted(asked, registration["scope"])
        if not scopes:
            raise TokenRefused("invalid_scope", "None of the requested scopes is granted to this client")
        scope = " ".join(scopes)
        token = await self.bearer.issue(client_id, scope)
        return {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": scope}

    async def _client(self, assertion: str) -> tuple[str, dict[str, Any]]:
        try:
            unverified = extract_compact(assertion.encode())
            claimed = _claims(unverified)
        except (JoseError, ValueError):
            raise _refused("The assertion is not a signed JWT") from None
        client_id = claimed.get("iss")
        registration = await self.credentials.client(client_id) if isinstance(client_id, str) else None
        if registration is None:
            raise _refused("The client is not registered")
        await self._verify(assertion, unverified.headers(), registration)
        await self._check_claims(claimed, str(client_id))
        return str(client_id), registration

    async def _verify(self, assertion: str, header: dict[str, Any], registration: dict[str, Any]) -> None:
        if header.get("alg") not in ALGORITHMS:
            raise _refused(f"The assertion must be signed with {' or '.join(ALGORITHMS)}")
        if not isinstance(header.get("kid"), str):
            raise _refused("The assertion must name its key (kid)")
        wanted = "RSA" if header["alg"] == "RS384" else "EC"
        keys = await self._keys(registration, header["kid"], wanted)
        if len(keys) != 1:
            raise _refused(f"{len(keys)} {wanted} keys of the client have the kid of the assertion; exactly one must")
        try:
            jwt.decode(assertion, KeySet.import_key_set({"keys": keys}), algorithms=ALGORITHMS)
        except (JoseError, ValueError):
            raise _refused("The signature is not good") from None

    async def _keys(self, registration: dict[str, Any], kid: str, kty: str) -> list[dict[str, Any]]:
        if "jwks" in registration:
            listed = registration["jwks"].get("keys", [])
        else:
            try:
                listed = await self.published.keys(registration["jwks_url"], kid)
            except JwksUnavailable as error:
                raise _refused(str(error)) from None
        return [key for key in listed if key.get("kid") == kid and key.get("kty") == kty]

    async def _check_claims(self, claims: dict[str, Any], client_id: str) -> None:
        now = time.time()
        audience = claims.get("aud")
        if claims.get("sub") != client_id:
            raise _refused("iss and sub must both be the client_id")
        if self.url not in (audience if isinstance(audience, list) else [audience]):
            raise _refused(f"aud must be {self.url}")
        expires, jti = claims.get("exp"), claims.get("jti")
        if not isinstance(expires, int | float) or expires < now - _SKEW:
            raise _refused("The assertion has expired")
        if expires > now + _LONGEST + _SKEW:
            raise _refused("The assertion may be good for 5 minutes at most")
        if not isinstance(jti, str) or not 1 <= len(jti) <= 256:
            raise _refused("The assertion needs a jti of at most 256 characters")
        if not await self.credentials.use_assertion(client_id, jti, int(expires) + _SKEW + 1, int(now)):
            raise _refused("The assertion was used before")


def _claims(signature: CompactSignature) -> dict[str, Any]:
    import json

    claims = json.loads(signature.payload or b"")
    if not isinstance(claims, dict):
        raise ValueError("claims are not an object")
    return claims


def _refused(description: str) -> TokenRefused:
    return TokenRefused("invalid_client", description)
