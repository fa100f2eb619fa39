"""The keys that clients publish: fetched from their URL, cached as their headers allow, and fetched anew for an unknown key.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html#registering-a-client-communicating-public-keys
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

_SIZE = 256 * 1024  # bytes
_AGAIN = 10.0  # seconds between two fetches for the sake of an unknown key
_AGE = re.compile(r"max-age=(\d+)")


class JwksUnavailable(Exception):
    """The client's keys cannot be had; the message says why."""


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
        self._check_address(url)
        try:
            async with httpx.AsyncClient(timeout=5, follow_redirects=False) as http, http.stream("GET", url) as answer:
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _SIZE:
                        raise JwksUnavailable("The client's JWKS is too large")
                if answer.status_code != 200:
                    raise JwksUnavailable(f"The client's JWKS URL answers {answer.status_code}")
                keys = httpx.Response(200, content=body).json()["keys"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            raise JwksUnavailable("The client's JWKS URL does not answer with a key set") from None
        control = answer.headers.get("Cache-Control", "")
        found = _AGE.search(control)
        age = 0.0 if "no-store" in control or "no-cache" in control else min(float(found[1]), 3600.0) if found else 300.0
        return age, [key for key in keys if isinstance(key, dict)]

    def _check_address(self, url: str) -> None:
        parts = urlsplit(url)
        if self._allow_private:
            return
        if parts.scheme != "https":
            raise JwksUnavailable("A JWKS URL must be https")
        try:
            addresses = {row[4][0] for row in socket.getaddrinfo(parts.hostname, parts.port or 443)}
        except OSError:
            raise JwksUnavailable("The host of the JWKS URL is not known") from None
        if not all(ipaddress.ip_address(address).is_global for address in addresses):
            raise JwksUnavailable("The JWKS URL leads to a private address")
