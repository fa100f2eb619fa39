"""The sandbox's token endpoint: it checks the client's signed assertion as a vendor does, against the keys that the client publishes;
or its secret, where a vendor insists on one.

https://hl7.org/fhir/smart-app-launch/backend-services.html and https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

_V1 = re.compile(r"system/(\*|[A-Z][A-Za-z]+)\.(read|write|\*)")
_V2 = re.compile(r"system/(\*|[A-Z][A-Za-z]+)\.(c?r?u?d?s?)")
_LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}

Keys = Callable[[], Awaitable[list[dict[str, Any]]]]


class Refused(Exception):
    """No token; the message is the OAuth error code."""


class SignIn:
    """The clients' door. One client is registered: `client_id`, whose keys `keys` gives; with a `secret` it has that and no keys.

    `method` is how the secret comes: client_secret_basic or client_secret_post.
    """

    def __init__(
        self,
        client_id: str,
        keys: Keys,
        token_url: str,
        algorithm: str,
        scopes: str,
        lifetime: int,
        secret: str = "",
        method: str = "client_secret_basic",
    ) -> None:
        self.secret, self.method = secret, method if secret else "private_key_jwt"
        self.client_id, self.keys, self.token_url, self.algorithm = client_id, keys, token_url, algorithm
        self.v1_only, self.v2_only, self.lifetime = scopes == "v1", scopes == "v2", lifetime
        self._tokens: dict[str, tuple[float, list[tuple[str, str]]]] = {}
        self._used: dict[str, float] = {}

    async def token(self, form: dict[str, str], authorization: str = "") -> dict[str, Any]:
        """The answer to a token request. Raises Refused."""
        if form.get("grant_type") != "client_credentials":
            raise Refused("unsupported_grant_type")
        if self.method == "private_key_jwt":
            await self.check(form.get("client_assertion", ""), self.client_id)
        elif shown(self.method, form, authorization) != (self.client_id, self.secret) or "client_assertion" in form:
            raise Refused("invalid_client")
        granted = [(scope, found) for scope in form.get("scope", "").split() if (found := self._scope(scope))]
        if not granted:
            raise Refused("invalid_scope")
        return self.issued([found for _, found in granted], " ".join(scope for scope, _ in granted))

    def issued(self, reach: list[tuple[str, str]], scope: str) -> dict[str, Any]:
        """A new access token, as a token endpoint answers; `reach` are types with the letters of what may be done with them."""
        token = secrets.token_urlsafe(24)
        self._tokens[token] = time.time() + self.lifetime, reach
        return {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime, "scope": scope}

    def allowed(self, authorization: str, letter: str, type: str) -> bool | None:
        """Whether the token reaches this far; None when it is no good token."""
        expires, scopes = self._tokens.get(authorization.removeprefix("Bearer "), (0.0, []))
        if expires <= time.time():
            return None
        return any(kind in ("*", type) and letter in letters for kind, letters in scopes)

    def revoke(self, token: str) -> None:
        """A token is good no more."""
        self._tokens.pop(token, None)

    def expire_all(self) -> None:
        """Every token given out so far is good no more."""
        self._tokens.clear()

    def _scope(self, scope: str) -> tuple[str, str] | None:
        if not self.v1_only and (found := _V2.fullmatch(scope)) and found[2]:
            return found[1], found[2]
        if not self.v2_only and (found := _V1.fullmatch(scope)):
            return found[1], _LETTERS[found[2]]
        return None

    async def check(self, assertion: str, client_id: str) -> None:
        """Raises Refused unless the client signed this just now, and for the first time."""
        try:
            header = json.loads(_decoded(assertion.split(".")[0]))
            keys = [key for key in await self.keys() if key.get("kid") == header.get("kid")]
            if header.get("alg") != self.algorithm or len(keys) != 1:
                raise Refused("invalid_client")
            claims = jwt.decode(assertion, KeySet.import_key_set({"keys": keys}), algorithms=[self.algorithm]).claims
        except (JoseError, ValueError, IndexError):
            raise Refused("invalid_client") from None
        now, jti = time.time(), claims.get("jti")
        self._used = {one: until for one, until in self._used.items() if until > now}
        good = claims.get("iss") == claims.get("sub") == client_id and claims.get("aud") == self.token_url
        if not good or not now - 5 < claims.get("exp", 0) <= now + 305 or not jti or jti in self._used:
            raise Refused("invalid_client")
        self._used[jti] = claims["exp"]


def shown(method: str, form: Mapping[str, str], authorization: str) -> tuple[str, str]:
    """The client id and the secret that a token request shows, in the way of `method` alone. Raises Refused."""
    if method != "client_secret_basic":
        return form.get("client_id", ""), form.get("client_secret", "")
    try:
        id, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
    except ValueError:
        raise Refused("invalid_client") from None
    return unquote(id), unquote(secret)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
