"""How the hub proves at a token endpoint which client it is: by a signed assertion, by a secret, or (a public client) not at all.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html and https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote
from uuid import uuid4

from joserfc import jwt

from fhircm.exchange.client_keys import ASSERTION_SECONDS, Key

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True)
class Client:
    """Who the hub is at one token endpoint. `method` is private_key_jwt, client_secret_basic, client_secret_post or none.

    `keys` gives the key that signs and behind it those before it; `secret` the secret. Both are asked each time, so what was changed
    meanwhile counts. `audience` replaces the token endpoint's address in assertions.
    """

    id: str
    method: str = "private_key_jwt"
    keys: Callable[[], Sequence[Key]] = tuple
    secret: Callable[[], str] = str
    audience: str | None = None

    def proof(self, token_url: str, key: Key | None = None, at: float | None = None) -> tuple[dict[str, str], dict[str, str]]:
        """Form fields and headers of a token request; `key` and `at` (seconds since the epoch) of an assertion, else the first and now.

        Raises what `keys` and `secret` raise.
        """
        match self.method:
            case "private_key_jwt":
                signed = assertion(key or self.keys()[0], self.id, self.audience or token_url, at)
                return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}, {}
            case "client_secret_basic":  # both parts are encoded before they are put together
                pair = f"{quote(self.id, safe='')}:{quote(self.secret(), safe='')}"
                return {}, {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
            case "client_secret_post":
                return {"client_id": self.id, "client_secret": self.secret()}, {}
        return {"client_id": self.id}, {}


def assertion(key: Key, client_id: str, audience: str, at: float | None = None) -> str:
    """A signed authentication assertion, good for one use within a few minutes of real time from `at` (seconds since the epoch) on."""
    public = key.as_dict(private=False)
    header = {"alg": public["alg"], "kid": public["kid"], "typ": "JWT"}
    now = int(time.time() if at is None else at)
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "iat": now,
        "exp": now + ASSERTION_SECONDS,
        "jti": str(uuid4()),
    }
    return jwt.encode(header, claims, key, algorithms=[str(public["alg"])])
