"""What a registered client is, and what may be registered.

https://www.rfc-editor.org/rfc/rfc7591#section-2, https://www.rfc-editor.org/rfc/rfc8252 (native apps) and
https://hl7.org/fhir/smart-app-launch/app-launch.html#register-app-with-ehr
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fhircm.smart.scopes import is_known
from fhircm.store.credentials import Credentials

ID_TOKEN_ALGORITHMS = ("RS256", "RS384", "ES384")
GRANT_TYPES = ("authorization_code", "refresh_token", "client_credentials")
PUBLIC = "none"
SECRET_METHODS = ("client_secret_basic", "client_secret_post")
METHODS = (PUBLIC, *SECRET_METHODS, "private_key_jwt")

_LOOPBACK = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]))(?::\d{1,5})?(/.*)?", re.ASCII)
_URI = re.compile(r"[\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]{1,2000}")  # RFC 3986 without the unwise ones
_SCHEME = re.compile(r"[a-z][a-z0-9+-]*(\.[a-z0-9+-]+)+")  # a name in reverse: RFC 8252 section 7.1
_NAME = re.compile(r"[\x21-\x39\x3b-\x7e]{1,200}")  # no colon: HTTP Basic ends the name there
_SCOPES = re.compile(r"[\x20-\x7e]{0,8000}")
_PRINTED = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_LINE = re.compile(r"[^\x00-\x1f\x7f]{1,2000}")
_TEXTS = ("client_name", "software_id", "software_version")
_PAGES = ("logo_uri", "client_uri", "policy_uri", "tos_uri")


class RegistrationWrong(Exception):
    """A client cannot be registered so; `error` is one of RFC 7591 section 3.2.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client."""

    id: str
    registration: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.registration.get("client_name") or self.id)

    @property
    def disabled(self) -> bool:
        return bool(self.registration.get("disabled"))

    @property
    def scope(self) -> str:
        return str(self.registration.get("scope", ""))

    @property
    def method(self) -> str:
        """How it proves who it is."""
        return str(self.registration.get("token_endpoint_auth_method", "private_key_jwt"))

    @property
    def is_public(self) -> bool:
        return self.method == PUBLIC

    @property
    def redirect_uris(self) -> tuple[str, ...]:
        return tuple(self.registration.get("redirect_uris") or ())

    @property
    def grant_types(self) -> tuple[str, ...]:
        default = ("authorization_code", "refresh_token") if self.redirect_uris else ("client_credentials",)
        return tuple(self.registration.get("grant_types") or default)

    @property
    def launch_uri(self) -> str | None:
        return self.registration.get("launch_uri")

    @property
    def jwks_uri(self) -> str | None:
        return self.registration.get("jwks_uri") or self.registration.get("jwks_url")  # the latter is how it was once written

    @property
    def id_token_algorithm(self) -> str:
        """SMART asks for RS256 at least: https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#scopes-for-requesting-identity-data"""
        return str(self.registration.get("id_token_signed_response_alg", "RS256"))

    def redirects_to(self, uri: str) -> bool:
        """Whether this is one of its redirect URIs, character by character; only the port of a loopback address is free (RFC 8252 section 7.3)."""
        if uri in self.redirect_uris:
            return True
        asked = _LOOPBACK.fullmatch(uri)
        return asked is not None and any(
            (known := _LOOPBACK.fullmatch(one)) and known.groups() == asked.groups() for one in self.redirect_uris
        )

    def has_secret(self, secret: str) -> bool:
        """Whether this is its secret."""
        kept = self.registration.get("client_secret")
        return isinstance(kept, str) and hmac.compare_digest(kept, hashed(secret))


def is_name(text: str) -> bool:
    """Whether a client may have this name (RFC 6749 appendix A.1)."""
    return _NAME.fullmatch(text) is not None


async def find(credentials: Credentials, client_id: str | None) -> Client | None:
    """The client of this name, if it may sign in."""
    registration = await credentials.client(client_id) if client_id and is_name(client_id) else None
    client = None if registration is None else Client(str(client_id), registration)
    return None if client is None or client.disabled else client


def new_secret() -> str:
    """A secret that nobody can guess, so that its SHA-256 need not be slow."""
    return secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """How a secret is kept."""
    return f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"


def checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A registration from what was asked for: everything in it is understood, and nothing else is kept. Raises RegistrationWrong."""
    if "software_statement" in asked:
        raise RegistrationWrong("unapproved_software_statement", "Software statements are not taken here")
    method = _one_of(asked, "token_endpoint_auth_method", METHODS, "client_secret_basic")
    grants = _list(asked, "grant_types", ["authorization_code"])
    if not grants or not set(grants) <= set(GRANT_TYPES) or grants == ["refresh_token"]:
        raise _wrong(f"grant_types are some of {', '.join(GRANT_TYPES)}")
    if "client_credentials" in grants and method != "private_key_jwt":
        raise _wrong("client_credentials needs token_endpoint_auth_method private_key_jwt")
    if _list(asked, "response_types", ["code"]) != ["code"] and "authorization_code" in grants:
        raise _wrong("The only response type is code")
    found: dict[str, Any] = {"token_endpoint_auth_method": method, "grant_types": grants, "scope": _scope(asked)}
    found |= _addresses(asked, needed="authorization_code" in grants) | _keys(asked, method)
    if "id_token_signed_response_alg" in asked:
        found["id_token_signed_response_alg"] = _one_of(asked, "id_token_signed_response_alg", ID_TOKEN_ALGORITHMS, "")
    for name in _TEXTS:
        if asked.get(name) is not None:
            if not isinstance(asked[name], str) or not _PRINTED.fullmatch(asked[name]):
                raise _wrong(f"{name} is a text of at most 200 characters")
            found[name] = asked[name]
    if asked.get("contacts") is not None:
        found["contacts"] = _list(asked, "contacts", [])
    return found


def _scope(asked: Mapping[str, Any]) -> str:
    scope = asked.get("scope") or ""
    if not isinstance(scope, str) or not _SCOPES.fullmatch(scope):
        raise _wrong("scope is a text of ASCII characters, with spaces between the scopes")
    if unknown := [one for one in scope.split() if not is_known(one)]:
        raise _wrong(f"Scopes that are not known here: {' '.join(unknown)[:200]}")
    return " ".join(dict.fromkeys(scope.split()))


def _addresses(asked: Mapping[str, Any], *, needed: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    redirects = _list(asked, "redirect_uris", [], error="invalid_redirect_uri")
    if needed and not redirects:
        raise RegistrationWrong("invalid_redirect_uri", "redirect_uris are needed")
    for uri in redirects:
        if not is_redirect(uri):
            raise RegistrationWrong(
                "invalid_redirect_uri",
                "A redirect URI is https, http to a loopback address, or of a scheme like com.example.app; without fragment and user",
            )
    if redirects:
        found["redirect_uris"] = redirects
    for name in ("launch_uri", *_PAGES):
        uri = asked.get(name)
        if uri is None:
            continue
        if not isinstance(uri, str) or not _is_page(uri):
            raise _wrong(f"{name} is an https address")
        found[name] = uri
    return found


def _keys(asked: Mapping[str, Any], method: str) -> dict[str, Any]:
    jwks, url = asked.get("jwks"), asked.get("jwks_uri")
    if jwks is not None and url is not None:
        raise _wrong("Either jwks or jwks_uri")
    if method == "private_key_jwt" and jwks is None and url is None:
        raise _wrong("private_key_jwt needs jwks or jwks_uri")
    if url is not None:
        if not isinstance(url, str) or not _URI.fullmatch(url) or not urlsplit(url).hostname:
            raise _wrong("jwks_uri is an address")
        return {"jwks_uri": url}
    if jwks is None:
        return {}
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(keys, list) or not keys or not all(isinstance(key, dict) for key in keys):
        raise _wrong("jwks is an object with a list of keys")
    if any(private in key for key in keys for private in ("d", "p", "q", "k")):
        raise _wrong("jwks holds a private key: it is known to others now, make a new one")
    if not all(isinstance(key.get("kid"), str) and key.get("kty") in ("RSA", "EC") for key in keys):
        raise _wrong("Each key of jwks has a kid, and the kty RSA or EC")
    return {"jwks": {"keys": keys}}


def is_redirect(uri: str) -> bool:
    """Whether codes may be sent to this address."""
    if not _URI.fullmatch(uri) or "#" in uri or "\\" in uri:
        return False
    try:
        parts = urlsplit(uri)
        host, user = parts.hostname, parts.username
        _ = parts.port
    except ValueError:
        return False
    if parts.scheme == "https":
        return bool(host) and user is None and "*" not in str(host)
    if parts.scheme == "http":
        return host in ("127.0.0.1", "::1", "localhost") and user is None
    return bool(_SCHEME.fullmatch(parts.scheme)) and bool(parts.netloc or parts.path) and user is None


def _is_page(uri: str) -> bool:
    return is_redirect(uri) and urlsplit(uri).scheme in ("https", "http")


def _one_of(asked: Mapping[str, Any], name: str, values: tuple[str, ...], default: str) -> str:
    value = asked.get(name) or default
    if value not in values:
        raise _wrong(f"{name} is one of {', '.join(values)}")
    return str(value)


def _list(asked: Mapping[str, Any], name: str, default: list[str], *, error: str = "invalid_client_metadata") -> list[str]:
    value = asked.get(name)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) > 20 or not all(isinstance(one, str) and _LINE.fullmatch(one) for one in value):
        raise RegistrationWrong(error, f"{name} is a list of texts")
    return list(dict.fromkeys(value))


def _wrong(description: str) -> RegistrationWrong:
    return RegistrationWrong("invalid_client_metadata", description)
