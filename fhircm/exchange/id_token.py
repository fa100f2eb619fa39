"""Check an identity token: who signed it, for whom, for which sign-in, and that it is of now.

https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import extract_compact

from fhircm.exchange.jwks import PublishedKeys

SKEW = 60  # seconds that two clocks may differ


class IdTokenRefused(Exception):
    """The token says nothing that can be believed; the message is for the log of the operator, and tells nothing of the token."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say: by whom, for which client and which sign-in, signed with which algorithms by the keys at which URL."""

    issuer: str
    client_id: str
    nonce: str
    jwks_uri: str
    algorithms: Sequence[str]


async def verified(token: Any, expected: Expected, published: PublishedKeys, now: float) -> dict[str, Any]:
    """The claims of a token. `now` in seconds since the epoch. Raises IdTokenRefused, JwksUnavailable."""
    try:
        header = extract_compact(str(token).encode()).headers()
    except (JoseError, ValueError):
        raise IdTokenRefused("There is no id_token that is a signed JWT") from None
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in expected.algorithms:
        raise IdTokenRefused("The id_token is signed with an algorithm that is not accepted")
    keys = await published.keys(expected.jwks_uri, str(kid))
    usable = [key for key in keys if key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig"]
    if kid is not None:
        usable = [key for key in usable if key.get("kid") == kid]
    if len(usable) != 1:
        raise IdTokenRefused(f"{len(usable)} published keys may have signed the id_token; exactly one must")
    try:
        claims = jwt.decode(str(token), KeySet.import_key_set({"keys": usable}), algorithms=[algorithm]).claims
    except (JoseError, ValueError):
        raise IdTokenRefused("The signature of the id_token is not good") from None
    _check(claims, expected, now)
    return claims


def _check(claims: Mapping[str, Any], expected: Expected, now: float) -> None:
    audience, client_id = claims.get("aud"), expected.client_id
    audiences: Sequence[Any] = audience if isinstance(audience, list) else [audience]
    if claims.get("iss") != expected.issuer:
        raise IdTokenRefused("The id_token is of another issuer")
    if client_id not in audiences:
        raise IdTokenRefused("The id_token is for another client")
    if claims.get("azp", client_id) != client_id or (len(audiences) > 1 and "azp" not in claims):
        raise IdTokenRefused("The id_token was given out to another client")
    expires, issued = claims.get("exp"), claims.get("iat")
    if not _number(expires) or expires < now - SKEW:
        raise IdTokenRefused("The id_token has expired")
    if not _number(issued) or issued > now + SKEW:
        raise IdTokenRefused("The id_token comes from the future")
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), expected.nonce.encode()):
        raise IdTokenRefused("The id_token belongs to another sign-in (nonce)")
    if not isinstance(claims.get("sub"), str) or not 1 <= len(claims["sub"]) <= 255:
        raise IdTokenRefused("The id_token does not say who it is about")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
