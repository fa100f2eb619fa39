"""Which pages of other origins may read an answer.

https://hl7.org/fhir/smart-app-launch/app-launch.html#considerations-for-cross-origin-resource-sharing-cors-support and
https://fetch.spec.whatwg.org/#http-cors-protocol. What is public is so for every origin; tokens and records are for the origins of the
registered clients. Cookies are never allowed to come along: an app of another origin shows its token.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from urllib.parse import urlsplit

from fhircm.fhir.outcome import FhirError

log = logging.getLogger("fhircm.edge.cors")

KEPT = 5.0  # seconds that the origins of the clients are remembered
TAKEN = "Accept, Authorization, Content-Type, If-Match, If-None-Match, If-None-Exist, If-Modified-Since, Prefer, X-Request-Id"
SHOWN = "ETag, Location, Content-Location, Retry-After, Last-Modified, X-Progress, X-Request-Id, WWW-Authenticate"
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_OAUTH = frozenset({"/oauth/token", "/oauth/introspect", "/oauth/revoke", "/oauth/userinfo"})
Header = tuple[bytes, bytes]
_VARY: Header = (b"vary", b"Origin")


def origin_of(url: str) -> str | None:
    """The origin of an address as a browser names it; None for one that is no web address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    host = f"[{host}]" if ":" in host else host
    standard = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port and port != standard else "")


def _origins_of(urls: Iterable[str]) -> frozenset[str]:
    return frozenset(filter(None, map(origin_of, urls)))


class Origins:
    """The origins of the registered clients, as the database has them, remembered for a moment; and some more."""

    def __init__(
        self,
        addresses: Callable[[], Awaitable[Iterable[str]]],
        more: Iterable[str] = (),
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._addresses, self._now = addresses, now
        self._more = _origins_of(more)
        self._known: frozenset[str] = frozenset()
        self._until = float("-inf")

    async def allow(self, origin: str) -> bool:
        """Whether pages of this origin may read tokens and records."""
        if origin in self._more:
            return True
        if self._now() >= self._until:
            self._until = self._now() + KEPT
            try:
                self._known = _origins_of(await self._addresses())
            except FhirError as error:  # the database does not answer: what was known holds on
                log.warning("the origins of the clients cannot be read (%s)", type(error).__name__)
        return origin in self._known


class Cors:
    """What the headers of an answer say to a browser."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    async def headers(self, path: str, origin: str | None) -> list[Header]:
        """Those of the answer to a request."""
        if is_public(path):
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", SHOWN.encode())]
        if not is_shared(path):
            return []
        if origin is None or not await self._origins.allow(origin):
            return [_VARY]
        allowed = (b"access-control-allow-origin", origin.encode("latin-1"))
        return [allowed, (b"access-control-expose-headers", SHOWN.encode()), _VARY]

    async def preflight(self, path: str, origin: str) -> list[Header] | None:
        """Those of the answer to the question before a request; None for an origin that may not send it."""
        headers = await self.headers(path, origin)
        if not any(name == b"access-control-allow-origin" for name, _ in headers):
            return None
        return [
            *headers,
            (b"access-control-allow-methods", (b"GET, HEAD" if is_public(path) else METHODS.encode())),
            (b"access-control-allow-headers", TAKEN.encode()),
            (b"access-control-max-age", b"600"),
        ]


def is_public(path: str) -> bool:
    """Whether it is what everybody may read."""
    return path.startswith(("/.well-known/", "/fhir/.well-known/")) or path == "/fhir/metadata"


def is_shared(path: str) -> bool:
    """Whether it is what apps of other origins use."""
    return path in _OAUTH or path == "/fhir" or path.startswith("/fhir/")
