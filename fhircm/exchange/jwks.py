"""The keys that others publish, clients and identity providers: fetched from their URL, cached as their headers allow, and fetched anew for an unknown key.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html#registering-a-client-communicating-public-keys
"""

from __future__ import annotations

import re
import time
from typing import Any

import httpx

from fhircm.exchange.source_address import Allowed, SourceUnavailable
from fhircm.exchange.trust import trust
from fhircm.fhir.outcome import Forbidden

_SIZE = 256 * 1024  # bytes
_AGAIN = 10.0  # seconds between two fetches for the sake of an unknown key
_AGE = re.compile(r"max-age=(\d+)")


class JwksUnavailable(Exception):
    """The keys cannot be had; the message says why."""


class PublishedKeys:
    """Key sets by URL. Unless `allow_private`, only https addresses of the public internet are asked."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._cached: dict[str, tuple[float, float, list[dict[str, Any]]]] = {}  # url: fetched, good until, keys

    async def keys(self, url: str, kid: str) -> list[dict[str, Any]]:
        """The keys at a URL. Raises JwksUnavailable."""
        now = time.monotonic()
        fetched, until, keys = self._cached.get(url, (0.0, 0.0, []))
        known = any(key.get("kid") == kid for key in keys)
        if url in self._cached and ((known and now < until) or (not known and now < fetched + _AGAIN)):
            return keys
        age, keys = await self._fetch(url)
        self._cached[url] = now, now + age, keys
        return keys

    async def _fetch(self, url: str) -> tuple[float, list[dict[str, Any]]]:
        try:
            there, headers, extensions = await self._direct(httpx.URL(url))
            async with (
                httpx.AsyncClient(timeout=5, follow_redirects=False, trust_env=False, verify=trust()) as http,
                http.stream("GET", there, headers=headers, extensions=extensions) as answer,
            ):
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _SIZE:
                        raise JwksUnavailable("The JWKS is too large")
                if answer.status_code != 200:
                    raise JwksUnavailable(f"The JWKS URL answers {answer.status_code}")
                keys = httpx.Response(200, content=body).json()["keys"]
                keys = [key for key in list(keys) if isinstance(key, dict)]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
            raise JwksUnavailable("The JWKS URL does not answer with a key set") from None
        control = answer.headers.get("Cache-Control", "")
        found = _AGE.search(control)
        age = 0.0 if "no-store" in control or "no-cache" in control else min(float(found[1]), 3600.0) if found else 300.0
        return age, keys

    async def _direct(self, url: httpx.URL) -> tuple[httpx.URL, dict[str, str], dict[str, str]]:
        """Where to connect to: the very address that was checked, so that the name cannot come to mean another one meanwhile."""
        if self._allow_private:
            return url, {}, {}
        if url.scheme != "https":
            raise JwksUnavailable("A JWKS URL must be https")
        try:
            address = await Allowed().address(url)
        except SourceUnavailable:
            raise JwksUnavailable("The host of the JWKS URL is not known") from None
        except Forbidden:
            raise JwksUnavailable("The JWKS URL leads to a private address") from None
        return (
            url.copy_with(host=address),
            {"Host": url.netloc.decode(), "Accept-Encoding": "identity"},
            {"sni_hostname": url.host},
        )
