"""The organisation's own OpenID Connect provider, at which its people sign in: the hub as the relying party.

https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth with PKCE (https://www.rfc-editor.org/rfc/rfc7636), and against mix-up the
issuer in the answer (https://www.rfc-editor.org/rfc/rfc9207). The provider is named by the administrator, so it may be at a private address.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from joserfc.jwk import ECKey, RSAKey

from fhircm.exchange.authorization_code import AnswerRefused, Started, begin, code_in, plain, redemption
from fhircm.exchange.id_token import Expected, IdTokenRefused, verified
from fhircm.exchange.jwks import JwksUnavailable, PublishedKeys
from fhircm.exchange.proof import Client
from fhircm.exchange.trust import trust

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
_KEPT = 3600.0  # seconds that the provider's own description is good for
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
        settings = self.settings
        asked = {"client_id": settings.client_id, "redirect_uri": settings.redirect_uri, "scope": settings.scopes}
        return begin(about["authorization_endpoint"], {**asked, **({"prompt": "login"} if anew else {})})

    async def finish(self, kept: Mapping[str, str], answer: Mapping[str, str]) -> Identity:
        """Whom the provider vouches for, from the parameters of its answer. Raises ProviderRefused, ProviderUnavailable."""
        about, issuer = await self._about(), self.settings.issuer
        names_issuer = bool(about.get("authorization_response_iss_parameter_supported"))
        try:
            code = code_in(answer, kept, issuer, names_issuer=names_issuer)
            tokens = await self._exchange(about, code, kept)
            expected = Expected(issuer, self.settings.client_id, kept["nonce"], about["jwks_uri"], ALGORITHMS)
            claims = await verified(tokens.get("id_token"), expected, self._keys, self._now())
        except (AnswerRefused, IdTokenRefused) as error:
            raise ProviderRefused(str(error)) from None
        except JwksUnavailable as error:
            raise ProviderUnavailable(str(error)) from None
        return Identity(issuer, claims["sub"], claims)

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

    async def _exchange(self, about: Mapping[str, Any], code: str, kept: Mapping[str, str]) -> dict[str, Any]:
        settings, endpoint = self.settings, about["token_endpoint"]
        method = "none"
        if settings.key is not None:
            method = "private_key_jwt"
        elif settings.client_secret is not None:
            methods = about.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            method = "client_secret_basic" if "client_secret_basic" in methods else "client_secret_post"
        client = Client(settings.client_id, method, secret=lambda: settings.client_secret or "")
        fields, headers = client.proof(endpoint, settings.key)
        form = redemption(code, settings.redirect_uri, kept) | fields
        if method == "private_key_jwt":
            form["client_id"] = settings.client_id
        return await self._ask("POST", endpoint, headers, data=form)

    async def _ask(self, method: str, url: str, headers: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
        try:
            async with (
                httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False, verify=trust()) as http,
                http.stream(method, url, headers={"Accept": "application/json", **(headers or {})}, **options) as answer,
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
            raise ProviderRefused(f"The provider answers {answer.status_code} {plain(tree.get('error'))}")
        if answer.status_code != 200:
            raise ProviderUnavailable(f"The provider answers {answer.status_code}")
        return tree
