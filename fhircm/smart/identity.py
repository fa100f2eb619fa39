"""Identity tokens: who the person is, told to the app that the person let in.

https://openid.net/specs/openid-connect-core-1_0.html#IDToken and
https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-identity-data
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jwt

from fhircm.smart.clients import Client
from fhircm.smart.keys import LIFETIME, SigningKeys
from fhircm.store.grants import Grant

_HASH = {"RS256": hashlib.sha256, "RS384": hashlib.sha384, "ES384": hashlib.sha384}


@dataclass(frozen=True)
class Identities:
    """Signs identity tokens. `issuer` is the address of the hub, `fhir_base` that of its FHIR API."""

    issuer: str
    fhir_base: str
    keys: SigningKeys

    def claims(self, grant: Grant) -> dict[str, Any]:
        """What an app may know of the person behind a grant; nothing without the scope openid."""
        scopes = grant.scope.split()
        if "openid" not in scopes or grant.login_id is None:
            return {}
        told: dict[str, Any] = {"iss": self.issuer, "sub": grant.login_id}
        user = grant.context.get("user")
        if user and ("fhirUser" in scopes or "profile" in scopes):
            # The scope profile is how SMART 1.0 asked for the same: its claim stays beside the newer one.
            told["fhirUser"] = told["profile"] = f"{self.fhir_base}/{user}"
            if "fhirUser" not in scopes:
                del told["fhirUser"]
        return told

    async def token(self, client: Client, grant: Grant, code: Mapping[str, Any], access_token: str) -> str | None:
        """The identity token for a grant, signed as the client registered; None when it did not ask for one."""
        claims = self.claims(grant)
        if not claims:
            return None
        algorithm = client.id_token_algorithm
        now = int(time.time())
        half = _HASH[algorithm](access_token.encode()).digest()
        claims |= {
            "aud": client.id,
            "iat": now,
            "exp": now + LIFETIME,
            "at_hash": base64.urlsafe_b64encode(half[: len(half) // 2]).rstrip(b"=").decode(),
        }
        claims |= {name: code[name] for name in ("nonce", "auth_time") if code.get(name) is not None}
        key = await self.keys.to_sign(algorithm)
        header = {"alg": algorithm, "kid": key.kid, "typ": "JWT"}
        return jwt.encode(header, claims, key, algorithms=[algorithm])
