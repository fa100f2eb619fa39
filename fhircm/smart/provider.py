"""The organisation's own OpenID Connect provider, at which its people sign in: the hub as the relying party.

https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth with PKCE (https://www.rfc-editor.org/rfc/rfc7636), and against mix-up the
issuer in the answer (https://www.rfc-editor.org/rfc/rfc9207). The provider is named by the administrator, so it may be at a private address.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey
from joserfc.jws import extract_compact

from fhircm.exchange.proof import ASSERTION_TYPE, assertion
from fhircm.smart.jwks import JwksUnavailable, PublishedKeys

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_KEPT = 3600.0  # seconds that the provider's own description is good for
_SKEW = 60  # seconds that two clocks may differ
_SIZE = 256 * 1024  # bytes
_TIMEOUT = 10.0


class ProviderRefused(Exception):
    """The provider did not vouch for anybody, or not in a way that can be believed; the message is for the log of the operator."""


class ProviderUnavailable(Exception):
    """The provider does not answer as it should; the message is for the log of the operator."""


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Which provider, and who the hub is there. With neither secret nor key the hub is a public client.

    `user_claim` names the claim with the fhirUser reference of somebody new, `roles_claim` the one whose values `roles` turns into roles
    of the hub. Somebody whom the hub does not know yet is let in only when `provision`.
    """

    issuer: str
    client_id: str
    redirect_uri: str
    client_secret: str | None = None
    key: RSAKey | ECKey | None = None
    scopes: str = "openid profile"
    button: str = "Sign in with your organisation"
    name_claim: str = "name"
    user_claim: str = "fhirUser"
    roles_claim: str = "groups"
    roles: Mapping[str, str] | None = None
    provision: bool = False
    organization: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A sign-in at the provider that was begun: where to send the browser, and what must be kept for its return."""

    url: str
    kept: dict[str, str]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the provider vouches for."""

    issuer: str
    subject: str
    claims: Mapping[str, Any]


class Provider:
    """Signs people in at one provider."""

    def __init__(self, settings: ProviderSettings, now: Callable[[], float] = time.time) -> None:
        self.settings, self._now = settings, now
        self._keys = PublishedKeys(allow_private=True)
        self._description: tuple[float, dict[str, Any]] | None = None

    async def start(self, *, anew: bool = False) -> Started:
        """Begin; `anew`: also somebody who is signed in at the provider must prove it once more. Raises ProviderUnavailable."""
        about = await self._about()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self.settings.redirect_uri,
            "scope": self.settings.scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **({"prompt": "login"} if anew else {}),
        }
        endpoint = about["authorization_endpoint"]
        url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked, quote_via=quote)}"
        return Started(url, {"state": state, "nonce": nonce, "verifier": verifier})

    async def finish(self, kept: Mapping[str, str], answer: Mapping[str, str]) -> Identity:
        """Whom the provider vouches for, from the parameters of its answer. Raises ProviderRefused, ProviderUnavailable."""
        if not hmac.compare_digest(answer.get("state", "").encode(), kept["state"].encode()):
            raise ProviderRefused("The answer belongs to another sign-in (state)")
        about = await self._about()
        told = answer.get("iss")
        if told != self.settings.issuer and (told is not None or about.get("authorization_response_iss_parameter_supported")):
            raise ProviderRefused("The answer comes from another provider (iss)")
        if "error" in answer:
            raise ProviderRefused(f"The provider answers {_word(answer['error'])}")
        if not answer.get("code"):
            raise ProviderRefused("The answer holds no code")
        tokens = await self._exchange(about, answer["code"], kept["verifier"])
        claims = await self._verified(about, tokens.get("id_token"), kept["nonce"])
        return Identity(self.settings.issuer, claims["sub"], claims)

    async def _about(self) -> dict[str, Any]:
        """https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfig"""
        now = self._now()
        if self._description and self._description[0] > now:
            return self._description[1]
        about = await self._ask("GET", f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        if about.get("issuer") != self.settings.issuer:
            raise ProviderUnavailable("The provider describes itself under another issuer than the settings name")
        scheme = urlsplit(self.settings.issuer).scheme
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if urlsplit(str(about.get(name))).scheme not in ("https", scheme):
                raise ProviderUnavailable(f"The provider's {name} is missing, or not https")
        self._description = now + _KEPT, about
        return about

    async def _exchange(self, about: Mapping[str, Any], code: str, verifier: str) -> dict[str, Any]:
        settings = self.settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": settings.redirect_uri,
            "client_id": settings.client_id,
            "code_verifier": verifier,
        }
        auth = None
        if settings.key is not None:
            signed = assertion(settings.key, settings.client_id, about["token_endpoint"])
            form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}
        elif settings.client_secret is not None:
            methods = about.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in methods:  # https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1: both parts encoded
                auth = httpx.BasicAuth(quote(settings.client_id, safe=""), quote(settings.client_secret, safe=""))
                del form["client_id"]
            else:
                form["client_secret"] = settings.client_secret
        return await self._ask("POST", about["token_endpoint"], data=form, auth=auth)

    async def _verified(self, about: Mapping[str, Any], token: Any, nonce: str) -> dict[str, Any]:
        """https://openid.net/specs/openid-connect-core-1_0.html#IDTokenValidation"""
        try:
            header = extract_compact(str(token).encode()).headers()
        except (JoseError, ValueError):
            raise ProviderRefused("There is no id_token that is a signed JWT") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise ProviderRefused("The id_token is signed with an algorithm that is not accepted")
        try:
            keys = await self._keys.keys(about["jwks_uri"], str(kid))
        except JwksUnavailable as error:
            raise ProviderUnavailable(str(error)) from None
        usable = [key for key in keys if key.get("kty") in ("RSA", "EC") and key.get("use", "sig") == "sig"]
        if kid is not None:
            usable = [key for key in usable if key.get("kid") == kid]
        if len(usable) != 1:
            raise ProviderRefused(f"{len(usable)} keys of the provider may have signed the id_token; exactly one must")
        try:
            claims = jwt.decode(str(token), KeySet.import_key_set({"keys": usable}), algorithms=[algorithm]).claims
        except (JoseError, ValueError):
            raise ProviderRefused("The signature of the id_token is not good") from None
        self._check(claims, nonce)
        return claims

    def _check(self, claims: Mapping[str, Any], nonce: str) -> None:
        now, audience = self._now(), claims.get("aud")
        audiences: Sequence[Any] = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != self.settings.issuer:
            raise ProviderRefused("The id_token is of another issuer")
        if self.settings.client_id not in audiences:
            raise ProviderRefused("The id_token is for another client")
        if claims.get("azp", self.settings.client_id) != self.settings.client_id or (len(audiences) > 1 and "azp" not in claims):
            raise ProviderRefused("The id_token was given out to another client")
        expires, issued = claims.get("exp"), claims.get("iat")
        if not _number(expires) or expires < now - _SKEW:
            raise ProviderRefused("The id_token has expired")
        if not _number(issued) or issued > now + _SKEW:
            raise ProviderRefused("The id_token comes from the future")
        given = claims.get("nonce")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
            raise ProviderRefused("The id_token belongs to another sign-in (nonce)")
        if not isinstance(claims.get("sub"), str) or not 1 <= len(claims["sub"]) <= 255:
            raise ProviderRefused("The id_token does not say who it is about")

    async def _ask(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        try:
            async with (
                httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False) as http,
                http.stream(method, url, headers={"Accept": "application/json"}, **options) as answer,
            ):
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _SIZE:
                        raise ProviderUnavailable("The provider's answer is too large")
                tree = httpx.Response(200, content=body).json()
        except (httpx.HTTPError, ValueError) as error:
            raise ProviderUnavailable(f"The provider does not answer as it should ({type(error).__name__})") from None
        if not isinstance(tree, dict):
            raise ProviderUnavailable("The provider's answer is not a JSON object")
        if answer.status_code in (400, 401):
            raise ProviderRefused(f"The provider answers {answer.status_code} {_word(tree.get('error'))}")
        if answer.status_code != 200:
            raise ProviderUnavailable(f"The provider answers {answer.status_code}")
        return tree


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(text: Any) -> str:
    """A code of an answer, safe to be logged."""
    return "".join(letter for letter in str(text)[:64] if letter.isascii() and (letter.isalnum() or letter in "_-"))
