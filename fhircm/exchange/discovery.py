"""Where a partner's authorization server is: its SMART configuration, and for old servers what their CapabilityStatement says instead.

https://hl7.org/fhir/smart-app-launch/conformance.html and https://hl7.org/fhir/extensions/StructureDefinition-oauth-uris.html
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from fhircm.exchange.errors import PartnerAnswerBroken, PartnerUnavailable, retry_after
from fhircm.exchange.trust import trust

OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
_SIZE = 4 * 1024 * 1024  # bytes: a CapabilityStatement may be long

Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


@dataclass(frozen=True, slots=True)
class SmartConfiguration:
    """What a partner says about its authorization server. Endpoints are checked to be as safe as the FHIR base URL; None: not told."""

    token_endpoint: str | None
    authorization_endpoint: str | None = None
    issuer: str | None = None
    jwks_uri: str | None = None
    methods: tuple[str, ...] = ()  # token_endpoint_auth_methods_supported
    algorithms: tuple[str, ...] = ()  # token_endpoint_auth_signing_alg_values_supported
    names_issuer: bool = False  # in each answer of the authorization endpoint: RFC 9207
    old: bool = False  # read from the CapabilityStatement


def is_safe(url: Any, base_url: str) -> bool:
    """Whether a URL that a partner names is as safe as its FHIR base URL: https, or http where that is http too."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        host = parts.hostname if parts else None
    except ValueError:
        return False
    if parts is None or not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and base_url.startswith("http:"))


def of_configuration(tree: Mapping[str, Any], base_url: str) -> SmartConfiguration:
    """What .well-known/smart-configuration says."""
    safe = {name: tree.get(name) if is_safe(tree.get(name), base_url) else None for name in _ENDPOINTS}
    return SmartConfiguration(
        **safe,
        methods=_texts(tree.get("token_endpoint_auth_methods_supported")),
        algorithms=_texts(tree.get("token_endpoint_auth_signing_alg_values_supported")),
        names_issuer=tree.get("authorization_response_iss_parameter_supported") is True,
    )


def of_statement(statement: Mapping[str, Any], base_url: str) -> SmartConfiguration:
    """What the oauth-uris extension of a CapabilityStatement says."""
    found: dict[str, Any] = {}
    for rest in _mappings(statement.get("rest")):
        security = rest.get("security")
        for extension in _mappings(security.get("extension") if isinstance(security, dict) else None):
            if extension.get("url") == OAUTH_URIS:
                found |= {str(one.get("url")): one.get("valueUri") for one in _mappings(extension.get("extension"))}
    token, authorize = (url if is_safe(url, base_url) else None for url in (found.get("token"), found.get("authorize")))
    return SmartConfiguration(token, authorize, old=True)


async def discovered(send: Send, base_url: str) -> SmartConfiguration:
    """Ask a partner. Raises PartnerUnavailable, and PartnerAnswerBroken when neither document names a token endpoint that can be used."""
    smart = await _document(send, f"{base_url}/.well-known/smart-configuration", "application/json")
    configuration = of_configuration(smart, base_url)
    if configuration.token_endpoint is None:
        statement = await _document(send, f"{base_url}/metadata", "application/fhir+json")
        configuration = of_statement(statement, base_url)
    if configuration.token_endpoint is None:
        raise PartnerAnswerBroken("Discovery names no token_endpoint that can be used")
    return configuration


def elsewhere(token_endpoint: str | None, base_url: str) -> str | None:
    """A sentence for `partner check` when sign-in happens at another host than the FHIR API, to which then assertions or secrets go."""
    host, other = urlsplit(base_url).hostname, urlsplit(token_endpoint or base_url).hostname
    return None if host == other else f"Signs in at another host, {other}: ask the partner whether that is theirs"


@asynccontextmanager
async def sending(timeout: float, transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Send]:
    """What sends requests of discovery and sign-in: no redirects, no proxy to this machine itself. `timeout` in seconds for each."""
    async with httpx.AsyncClient(
        timeout=timeout,
        follow_redirects=False,
        mounts={"all://127.0.0.1": None, "all://localhost": None},
        transport=transport,
        headers={"User-Agent": "fhircm"},
        verify=trust(),
    ) as http:

        async def send(request: httpx.Request) -> httpx.Response:
            """The answer, read to its end. Raises PartnerUnavailable, PartnerAnswerBroken."""
            try:
                answer = await http.send(request, stream=True)
                try:
                    body = b""
                    async for part in answer.aiter_bytes():
                        body += part
                        if len(body) > _SIZE:
                            raise PartnerAnswerBroken(f"{request.url.host} answered with more than {_SIZE} bytes")
                finally:
                    await answer.aclose()
            except httpx.HTTPError as error:
                text = f"{request.url.host} cannot be reached to sign in ({type(error).__name__})"
                raise PartnerUnavailable(text, sent=False) from None
            plain = {name: value for name, value in answer.headers.items() if name.lower() != "content-encoding"}
            return httpx.Response(answer.status_code, headers=plain, content=body)

        yield send


def get(url: str, accept: str = "application/json") -> httpx.Request:
    """A request for a public document."""
    return httpx.Request("GET", url, headers={"Accept": accept, "User-Agent": "fhircm"})


async def _document(send: Send, url: str, accept: str) -> dict[str, Any]:
    """The JSON object at a URL; an empty one when there is none. Raises PartnerUnavailable."""
    answer = await send(get(url, accept))
    if answer.status_code == 429 or answer.status_code >= 500:
        wait, throttled = retry_after(answer.headers), answer.status_code == 429
        raise PartnerUnavailable(f"discovery answered {answer.status_code}", retry_after=wait, sent=False, throttled=throttled)
    try:
        tree = json.loads(answer.content) if answer.status_code == 200 else {}
    except (ValueError, RecursionError):
        tree = {}
    return tree if isinstance(tree, dict) else {}


_ENDPOINTS = ("token_endpoint", "authorization_endpoint", "issuer", "jwks_uri")


def _mappings(tree: Any) -> list[dict[str, Any]]:
    return [one for one in tree if isinstance(one, dict)] if isinstance(tree, list) else []


def _texts(tree: Any) -> tuple[str, ...]:
    return tuple(one for one in tree if isinstance(one, str)) if isinstance(tree, list) else ()
