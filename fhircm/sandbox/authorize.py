"""The sandbox's side of an app launch: launch contexts, the authorization endpoint, codes for tokens, and signed identity tokens.

https://hl7.org/fhir/smart-app-launch/app-launch.html and https://openid.net/specs/openid-connect-core-1_0.html. Nobody is asked to sign in
or to consent: who launched is who signs in. Everything else is enforced as a vendor does.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fhircm.sandbox.signin import Refused, SignIn, shown

_LAUNCH = 300.0  # seconds in which a launch must be taken up
_CODE = 60.0
_SCOPE = re.compile(r"(patient|user)/(\*|[A-Z][A-Za-z]+)\.(read|write|\*|c?r?u?d?s?)")
_LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}


@dataclass(frozen=True, slots=True)
class App:
    """An app as it is registered. Without a secret and with method none it is a public one."""

    client_id: str
    redirect_uris: tuple[str, ...]
    method: str = "none"  # client_secret_basic | client_secret_post | private_key_jwt
    secret: str = ""


@dataclass(slots=True)
class _Grant:
    """What an app was let do, for whom, and by which request."""

    app: App
    asked: Mapping[str, str]
    context: Mapping[str, Any]
    scopes: list[str]
    until: float
    used: bool = False
    tokens: list[str] = field(default_factory=list)


class AppDoor:
    """The door of apps. `base_url` is that of the FHIR API; `standalone` is who signs in, and for whom, when an app starts by itself."""

    def __init__(
        self,
        app: App,
        sign_in: SignIn,
        server: str,
        base_url: str,
        standalone: Mapping[str, Any] | None = None,
        now: Callable[[], float] = time.time,
        key: RSAKey | None = None,
    ) -> None:
        self.app, self.sign_in, self.server, self.base_url = app, sign_in, server, base_url
        self.standalone = standalone or {"user": "Practitioner/p-1"}
        self.now = now
        self.key = key or _new_key()
        self._launches: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._codes: dict[str, _Grant] = {}
        self._refresh: dict[str, _Grant] = {}

    def rotate_key(self) -> None:
        """Sign with another key from now on."""
        self.key = _new_key()

    def launch(self, user: str, patient: str | None = None, **context: Any) -> str:
        """Somebody opens the app in the EHR: the value of `launch`, good once and for a few minutes."""
        value = secrets.token_urlsafe(24)
        self._launches[value] = self.now() + _LAUNCH, {"user": user, "patient": patient, **context}
        return value

    def configuration(self) -> dict[str, Any]:
        """What discovery says about all this."""
        return {
            "issuer": self.server,
            "jwks_uri": f"{self.server}/oauth2/jwks",
            "authorization_endpoint": f"{self.server}/oauth2/authorize",
            "authorization_response_iss_parameter_supported": True,
            "grant_types_supported": ["client_credentials", "authorization_code", "refresh_token"],
        }

    def authorize(self, asked: Mapping[str, str]) -> str:
        """To where the browser is sent back, with a code or an error. Raises Refused when it may not be sent anywhere."""
        back = asked.get("redirect_uri", "")
        if asked.get("client_id") != self.app.client_id or back not in self.app.redirect_uris:
            raise Refused("invalid_request")
        try:
            answer = {"code": self._code(asked)}
        except Refused as error:
            answer = {"error": str(error)}
        answer |= {"iss": self.server, **({"state": asked["state"]} if "state" in asked else {})}
        return f"{back}{'&' if '?' in back else '?'}{urlencode(answer)}"

    def _code(self, asked: Mapping[str, str]) -> str:
        scopes = asked.get("scope", "").split()
        if asked.get("response_type") != "code":
            raise Refused("unsupported_response_type")
        challenge = asked.get("code_challenge", "")
        if asked.get("code_challenge_method") != "S256" or not re.fullmatch(r"[A-Za-z0-9_-]{43}", challenge):
            raise Refused("invalid_request")
        if asked.get("aud", "").rstrip("/") != self.base_url or not asked.get("state") or not scopes:
            raise Refused("invalid_request")
        context = self.standalone
        if ("launch" in scopes) != ("launch" in asked):
            raise Refused("invalid_request")
        if "launch" in asked:
            until, context = self._launches.pop(asked["launch"], (0.0, {}))
            if until <= self.now():
                raise Refused("invalid_request")
        code = secrets.token_urlsafe(24)
        self._codes[code] = _Grant(self.app, asked, context, scopes, self.now() + _CODE)
        return code

    async def token(self, form: Mapping[str, str], authorization: str) -> dict[str, Any]:
        """The answer to a token request of an app. Raises Refused."""
        await self._prove(form, authorization)
        if form.get("grant_type") == "refresh_token":
            grant = self._refresh.pop(form.get("refresh_token", ""), None)
            if grant is None:
                raise Refused("invalid_grant")
            return self._tokens(grant, refreshed=True)
        grant = self._codes.get(form.get("code", ""))
        if grant is None or grant.until <= self.now() or form.get("redirect_uri") != grant.asked["redirect_uri"]:
            raise Refused("invalid_grant")
        if grant.used:  # somebody has the code who should not: what it brought is worth nothing any more
            for token in grant.tokens:
                self.sign_in.revoke(token)
                self._refresh.pop(token, None)
            raise Refused("invalid_grant")
        grant.used = True
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != grant.asked["code_challenge"]:
            raise Refused("invalid_grant")
        return self._tokens(grant)

    def _tokens(self, grant: _Grant, *, refreshed: bool = False) -> dict[str, Any]:
        reach = [(found[2], _LETTERS.get(found[3], found[3])) for scope in grant.scopes if (found := _SCOPE.fullmatch(scope))]
        answer = self.sign_in.issued(reach, " ".join(grant.scopes))
        grant.tokens.append(answer["access_token"])
        answer |= {name: value for name, value in grant.context.items() if name != "user" and value is not None}
        if "offline_access" in grant.scopes:
            answer["refresh_token"] = secrets.token_urlsafe(24)
            grant.tokens.append(answer["refresh_token"])
            self._refresh[answer["refresh_token"]] = grant
        if "openid" in grant.scopes and not refreshed:
            answer["id_token"] = self.id_token(grant.asked, grant.context["user"], "fhirUser" in grant.scopes)
        return answer

    def id_token(self, asked: Mapping[str, str], user: str, names_user: bool) -> str:
        """Who that is, signed."""
        now = int(self.now())
        claims = {
            "iss": self.server,
            "sub": hashlib.sha256(user.encode()).hexdigest()[:20],
            "aud": asked["client_id"],
            "iat": now,
            "exp": now + 300,
            **({"nonce": asked["nonce"]} if "nonce" in asked else {}),
            **({"fhirUser": f"{self.base_url}/{user}"} if names_user else {}),
        }
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key, algorithms=["RS256"])

    async def _prove(self, form: Mapping[str, str], authorization: str) -> None:
        app = self.app
        if app.method == "private_key_jwt":
            await self.sign_in.check(form.get("client_assertion", ""), app.client_id)
            return
        if shown(app.method, form, authorization) != (app.client_id, app.secret):
            raise Refused("invalid_client")

    # --- over HTTP ---

    def routes(self) -> list[Route]:
        """Its addresses; the token endpoint is shared with the backend services."""
        return [
            Route("/oauth2/authorize", self._authorize, methods=["GET", "POST"]),
            Route("/oauth2/jwks", self._jwks),
            Route("/staff/launch", self._launch, methods=["POST"]),
        ]

    async def _authorize(self, request: Request) -> Response:
        query = request.url.query if request.method == "GET" else (await request.body()).decode("utf-8", "replace")
        try:
            return RedirectResponse(self.authorize(dict(parse_qsl(query))), 302)
        except Refused as error:
            return PlainTextResponse(str(error), 400)

    async def _jwks(self, _: Request) -> Response:
        return JSONResponse({"keys": [self.key.as_dict(private=False)]})

    async def _launch(self, request: Request) -> Response:
        try:
            launch = self.launch(**await request.json())
        except (TypeError, ValueError):
            return JSONResponse({"error": "user, and patient or more"}, 400)
        return JSONResponse({"iss": self.base_url, "launch": launch})


def _new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
