"""How a client proves who it is: not at all (public), by a secret, or by an assertion that it signed.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html, https://hl7.org/fhir/smart-app-launch/client-confidential-symmetric.html
and https://www.rfc-editor.org/rfc/rfc7523. Written on joserfc: docs/decisions/smart-token-endpoint.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import CompactSignature, extract_compact

from fhircm.exchange.jwks import JwksUnavailable, PublishedKeys
from fhircm.smart.clients import Client, find
from fhircm.smart.refusal import TokenRefused, invalid_client
from fhircm.store.credentials import Credentials

ALGORITHMS = ["RS384", "ES384"]
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST = 300  # seconds that an assertion may be good for
_SKEW = 30  # seconds that two clocks may differ
_NOT_ITS_WAY = "The client is registered to prove who it is in another way"


@dataclass(frozen=True)
class ClientAuthentication:
    """Finds the client behind a request. `audience` is the token endpoint, the address that an assertion must be made for."""

    audience: str
    credentials: Credentials
    published: PublishedKeys

    async def client(self, form: Mapping[str, str], authorization: str | None = None) -> Client:
        """The client that sent this form; a header that is not HTTP Basic says nothing of clients. Raises TokenRefused."""
        basic = authorization if authorization and authorization.partition(" ")[0].lower() == "basic" else None
        ways = [basic is not None, "client_assertion" in form or "client_assertion_type" in form, "client_secret" in form]
        if sum(ways) > 1:
            raise TokenRefused("invalid_request", "A client proves who it is in one way, not in several")
        if basic is not None:
            return await self._by_basic(form, basic)
        if ways[1]:
            return await self._by_assertion(form)
        client = await find(self.credentials, form.get("client_id"))
        if client is None:
            raise invalid_client("The client is not registered, or may no longer sign in")
        if ways[2]:
            if client.method != "client_secret_post":
                raise invalid_client(_NOT_ITS_WAY)
            if not client.has_secret(form["client_secret"]):
                raise invalid_client("The secret is not the client's")
        elif not client.is_public:
            raise invalid_client("This client has to prove who it is: by a signed client_assertion, or by its secret")
        return client

    async def _by_basic(self, form: Mapping[str, str], authorization: str) -> Client:
        encoded = authorization.partition(" ")[2]
        try:
            name, _, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            raise invalid_client("The Authorization header cannot be read", scheme="Basic") from None
        client_id = unquote_plus(name)
        if form.get("client_id", client_id) != client_id:
            raise TokenRefused("invalid_request", "client_id is another one than in the Authorization header")
        client = await find(self.credentials, client_id)
        if client is None:
            raise invalid_client("The client is not registered, or may no longer sign in", scheme="Basic")
        if client.method != "client_secret_basic":
            raise invalid_client(_NOT_ITS_WAY, scheme="Basic")
        if not client.has_secret(unquote_plus(secret)):
            raise invalid_client("The secret is not the client's", scheme="Basic")
        return client

    async def _by_assertion(self, form: Mapping[str, str]) -> Client:
        assertion = form.get("client_assertion")
        if form.get("client_assertion_type") != ASSERTION_TYPE or not assertion:
            raise invalid_client("A signed client_assertion is needed")
        try:
            unverified = extract_compact(assertion.encode())
            claimed = _claims(unverified)
        except (JoseError, ValueError, RecursionError):
            raise invalid_client("The assertion is not a signed JWT") from None
        client_id = claimed.get("iss")
        client = await find(self.credentials, client_id) if isinstance(client_id, str) else None
        if client is None:
            raise invalid_client("The client is not registered, or may no longer sign in")
        if client.method != "private_key_jwt":
            raise invalid_client(_NOT_ITS_WAY)
        if form.get("client_id", client.id) != client.id:
            raise TokenRefused("invalid_request", "client_id is another one than in the assertion")
        await self._verify(assertion, unverified.headers(), client)
        await self._check_claims(claimed, client.id)
        return client

    async def _verify(self, assertion: str, header: dict[str, Any], client: Client) -> None:
        if header.get("alg") not in ALGORITHMS:
            raise invalid_client(f"The assertion must be signed with {' or '.join(ALGORITHMS)}")
        if not isinstance(header.get("kid"), str):
            raise invalid_client("The assertion must name its key (kid)")
        if "jku" in header and header["jku"] != client.jwks_uri:
            raise invalid_client("jku is not the JWKS URL that the client registered")
        wanted = "RSA" if header["alg"] == "RS384" else "EC"
        keys = await self._keys(client, header["kid"], wanted)
        if len(keys) != 1:
            raise invalid_client(f"{len(keys)} {wanted} keys of the client have the kid of the assertion; exactly one must")
        try:
            jwt.decode(assertion, KeySet.import_key_set({"keys": keys}), algorithms=ALGORITHMS)
        except (JoseError, ValueError, KeyError, TypeError):  # also of a key that is none
            raise invalid_client("The signature is not good") from None

    async def _keys(self, client: Client, kid: str, kty: str) -> list[dict[str, Any]]:
        if "jwks" in client.registration:
            listed = client.registration["jwks"].get("keys", [])
        elif client.jwks_uri is not None:
            try:
                listed = await self.published.keys(client.jwks_uri, kid)
            except JwksUnavailable as error:
                raise invalid_client(str(error)) from None
        else:
            listed = []
        return [key for key in listed if key.get("kid") == kid and key.get("kty") == kty]

    async def _check_claims(self, claims: dict[str, Any], client_id: str) -> None:
        now = time.time()
        audience = claims.get("aud")
        if claims.get("sub") != client_id:
            raise invalid_client("iss and sub must both be the client_id")
        if self.audience not in (audience if isinstance(audience, list) else [audience]):
            raise invalid_client(f"aud must be {self.audience}")
        expires, jti = claims.get("exp"), claims.get("jti")
        if not isinstance(expires, int | float) or not expires >= now - _SKEW:  # NaN is no time either
            raise invalid_client("The assertion has expired")
        if expires > now + _LONGEST + _SKEW:
            raise invalid_client("The assertion may be good for 5 minutes at most")
        if not isinstance(jti, str) or not 1 <= len(jti) <= 256 or not jti.isprintable():
            raise invalid_client("The assertion needs a jti of at most 256 characters that can be printed")
        if not await self.credentials.use_assertion(client_id, jti, int(expires) + _SKEW + 1, int(now)):
            raise invalid_client("The assertion was used before")


def _claims(signature: CompactSignature) -> dict[str, Any]:
    claims = json.loads(signature.payload or b"")
    if not isinstance(claims, dict):
        raise ValueError("claims are not an object")
    return claims
