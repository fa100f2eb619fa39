"""From where files may be fetched, and what can go wrong at a source.

https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
"""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from fhircm.exchange.pages import within
from fhircm.fhir.outcome import FhirError, Forbidden


class SourceUnavailable(FhirError):
    """The source does not answer now, or broke off; `retry_after` is in seconds, when it named it."""

    status, code = 503, "transient"

    def __init__(self, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class SourceRefused(FhirError):
    """The source will not give the file, and asking again does not help."""

    status, code = 502, "not-found"


class SourceChanged(FhirError):
    """The file is not the one any more of which a part was read."""

    status, code = 409, "conflict"


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be fetched: URLs at or below `prefixes`, over https; `private` lets addresses inside in, and http on this machine."""

    prefixes: tuple[str, ...] = ()
    private: bool = False

    def check(self, url: str) -> None:
        """Raises Forbidden; the text says what is wrong and nothing of the URL, which may be signed."""
        try:
            parts = urlsplit(url)
            host, known = parts.hostname or "", any(within(prefix.rstrip("/"), url) for prefix in self.prefixes)
        except ValueError:
            raise Forbidden("The address of a file is no URL") from None
        if not (parts.scheme == "https" or (parts.scheme == "http" and self.private and _is_loopback(host))):
            raise Forbidden("Files are fetched over https only")
        if not known:
            raise Forbidden("The operator of this server does not allow files from this address (FHIRCM_IMPORT_SOURCES)")

    async def address(self, url: httpx.URL) -> str:
        """The address to connect to: the very one that was checked. Raises Forbidden, SourceUnavailable."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port or 443, type=1)
        except OSError:
            raise SourceUnavailable("The host of the file is not known") from None
        addresses = [row[4][0] for row in found]
        if not self.private and not all(map(_is_public, addresses)):
            raise Forbidden("The host of the file has a private address")
        return addresses[0]


_RELAYS = (
    ipaddress.ip_network("64:ff9b::/96"),
    ipaddress.ip_network("2002::/16"),
)  # lead to any IPv4 address: RFC 6052, RFC 3056


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in relay for relay in _RELAYS):
            return False
        address = address.ipv4_mapped or address
    return address.is_global and not address.is_multicast


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
