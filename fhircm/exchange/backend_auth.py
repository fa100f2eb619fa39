"""Sign in at a partner as a SMART backend service: the hub's keys, its signed assertion, and tokens that live in memory only.

https://hl7.org/fhir/smart-app-launch/backend-services.html and https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from fhircm.exchange.errors import PartnerAnswerBroken, PartnerUnavailable, SignInRefused, harmless, retry_after, word

log = logging.getLogger("fhircm.exchange.backend_auth")

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_SECONDS = 240  # SMART allows 300; clocks differ
Key = RSAKey | ECKey


class KeyWrong(Exception):
    """A key file cannot be used; the message names it and how to mend it."""


def signing_key(keys_dir: Path, name: str, algorithm: str) -> Key:
    """The private key in keys_dir/<name>.json (a JWK), made when it does not exist; of two that make it at once, one wins.

    `algorithm` is RS384 or ES384. Raises KeyWrong for a file that is not such a key.
    """
    path = keys_dir / f"{name}.json"
    if not path.exists():
        _make(path, algorithm)
    key = _read(path)
    made_for = key.as_dict(private=False).get("alg")
    if made_for != algorithm:
        raise KeyWrong(f"{path} is a key for {made_for}, and {algorithm} is wanted: move the file away, and a new key is made")
    return key


def _make(path: Path, algorithm: str) -> None:
    use = {"use": "sig", "alg": algorithm}
    if algorithm == "RS384":
        key: Key = RSAKey.generate_key(3072, use, auto_kid=True)
    elif algorithm == "ES384":
        key = ECKey.generate_key("P-384", use, auto_kid=True)
    else:
        raise KeyWrong(f"{algorithm} is not an algorithm of SMART: RS384 or ES384")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mine = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(key.as_dict(private=True), file)
            file.flush()
            os.fsync(file.fileno())
        os.link(mine, path)  # fails when another process was first: then its key is the key
    except FileExistsError:
        log.debug("another process made %s", path.name)
    finally:
        mine.unlink()


def _read(path: Path) -> Key:
    try:
        tree = json.loads(path.read_bytes())
        kind: type[Key] = {"RSA": RSAKey, "EC": ECKey}[tree["kty"]]  # type: ignore[assignment]
        key = kind.import_key(tree)
    except OSError as error:
        raise KeyWrong(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, JoseError):
        raise KeyWrong(f"{path} is not a private key as JWK: move it away, and a new key is made") from None
    if not key.is_private or not isinstance(tree.get("kid"), str):
        raise KeyWrong(f"{path} is not a private key with a kid: move it away, and a new key is made")
    if path.stat().st_mode & 0o077:
        log.warning("%s can be read by others than its owner: chmod 600 it", path)
    return key


def public_jwks(keys_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The public halves of all keys of a folder, for /.well-known/jwks.json. What is no private key is passed over."""
    keys = []
    for path in sorted(keys_dir.glob("*.json")):
        try:
            keys.append(_read(path).as_dict(private=False))
        except KeyWrong as error:
            log.warning("%s", error)
    return {"keys": keys}


def assertion(key: Key, client_id: str, token_url: str) -> str:
    """A signed authentication assertion, good for one use within a few minutes of real time."""
    public = key.as_dict(private=False)
    header = {"alg": public["alg"], "kid": public["kid"], "typ": "JWT"}
    now = int(time.time())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": token_url,
        "iat": now,
        "exp": now + ASSERTION_SECONDS,
        "jti": str(uuid4()),
    }
    return jwt.encode(header, claims, key, algorithms=[str(public["alg"])])


class BackendAuth(httpx.Auth):
    """Puts an access token on every request: fetched when first needed, again before it ends, and once more after a 401.

    Requests that need a token at the same time wait for one fetch. Without `token_url` the partner is asked where its token endpoint is.
    """

    def __init__(self, base_url: str, client_id: str, key: Key, scopes: Sequence[str], token_url: str | None = None) -> None:
        self.base_url, self.client_id, self.scopes = base_url, client_id, tuple(scopes)
        self.token_url = token_url
        self.granted: tuple[str, ...] | None = None  # the scopes of the last token
        self._key = key
        self._token: str | None = None
        self._until = 0.0
        self._one = asyncio.Lock()

    def __repr__(self) -> str:
        return f"BackendAuth({self.client_id} at {self.base_url})"

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Only the asynchronous client is served."""
        raise RuntimeError("BackendAuth needs an httpx.AsyncClient")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """httpx's way to let an Auth send requests of its own before, and after, the one that it signs."""
        for again in (True, False):
            async with self._one:
                if self._token is None or time.time() >= self._until:
                    if self.token_url is None:
                        answer = yield httpx.Request("GET", self._discovery, headers={"Accept": "application/json"})
                        self.token_url = _endpoint(await _json(answer, "discovery"), self.base_url)
                    answer = yield self._token_request(self.token_url)
                    self._keep(await _json(answer, "the token endpoint"))
                token = self._token
            request.headers["Authorization"] = f"Bearer {token}"
            response = yield request
            if response.status_code != 401 or not again:
                return
            if self._token == token:  # nobody fetched another meanwhile
                self._token = None

    @property
    def _discovery(self) -> str:
        return f"{self.base_url}/.well-known/smart-configuration"

    def _token_request(self, url: str) -> httpx.Request:
        form = {
            "grant_type": "client_credentials",
            "scope": " ".join(self.scopes),
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion(self._key, self.client_id, url),
        }
        return httpx.Request("POST", url, data=form, headers={"Accept": "application/json"})

    def _keep(self, answer: dict[str, Any]) -> None:
        token, kind, seconds = answer.get("access_token"), answer.get("token_type"), answer.get("expires_in", 300)
        if (
            not isinstance(token, str)
            or not token
            or not token.isascii()
            or not isinstance(kind, str)
            or kind.lower() != "bearer"
        ):
            raise PartnerAnswerBroken("The token endpoint's answer holds no bearer token")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            seconds = 300
        self._token = token
        self._until = time.time() + seconds - min(30.0, seconds * 0.2)
        scope = answer.get("scope")
        self.granted = tuple(scope.split()) if isinstance(scope, str) else None


def _endpoint(configuration: dict[str, Any], base_url: str) -> str:
    """The token endpoint that discovery names, which must be as safe as the base URL."""
    url = configuration.get("token_endpoint")
    try:
        scheme, host = (urlsplit(url).scheme, urlsplit(url).hostname) if isinstance(url, str) else ("", None)
    except ValueError:
        scheme, host = "", None
    if not isinstance(url, str) or not host or not (scheme == "https" or (scheme == "http" and base_url.startswith("http:"))):
        raise PartnerAnswerBroken("Discovery names no token_endpoint that can be used")
    return url


async def _json(answer: httpx.Response, where: str) -> dict[str, Any]:
    """The JSON object that a request of sign-in was answered with."""
    body = await answer.aread()
    if answer.status_code == 429 or answer.status_code >= 500:
        wait = retry_after(answer.headers)
        throttled = answer.status_code == 429
        raise PartnerUnavailable(f"{where} answered {answer.status_code}", retry_after=wait, sent=False, throttled=throttled)
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        tree = None
    if answer.status_code >= 400:
        raise SignInRefused(f"{where} answered {answer.status_code}{_reason(tree)}", answered=answer.status_code)
    if answer.status_code != 200 or not isinstance(tree, dict):
        raise PartnerAnswerBroken(f"{where} answered {answer.status_code} with what is not a JSON object")
    return tree


def _reason(tree: Any) -> str:
    """RFC 6749 section 5.2, as far as it may be told."""
    error, description = (tree.get("error"), tree.get("error_description")) if isinstance(tree, dict) else (None, None)
    told = [word(error) if isinstance(error, str) else "", harmless(description) if isinstance(description, str) else ""]
    return "".join(f": {text}" for text in told if text)


async def access_token(base_url: str, client_id: str, key: Key, scopes: Sequence[str]) -> str:
    """Sign in once and return the access token. Raises what the token endpoint's refusal raises, and httpx.HTTPError."""
    auth = BackendAuth(base_url, client_id, key, scopes)
    async with httpx.AsyncClient(timeout=30) as http:
        await http.get(f"{base_url}/metadata", headers={"Accept": "application/fhir+json"}, auth=auth)
    if auth._token is None:
        raise SignInRefused("The token was given, but not taken", answered=401)
    return auth._token
