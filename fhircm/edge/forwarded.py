"""Who is really calling when a proxy stands in front: told by the proxy, believed only from proxies that are trusted.

https://www.rfc-editor.org/rfc/rfc7239 and the older X-Forwarded-For and X-Forwarded-Proto. The list is read from its end: each proxy adds
whom it saw, so the first address that is no trusted proxy is the caller, and what stands before it is the caller's own invention.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

_PAIR = re.compile(r'\s*(for|proto|by|host)\s*=\s*("[^"]*"|[^;,"\s]*)\s*', re.IGNORECASE)
_HOPS = 32  # as many as are read


class Proxies:
    """The proxies that are believed. Raises ValueError for what is no address or network."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._networks: tuple[IPv4Network | IPv6Network, ...] = tuple(ip_network(one, strict=False) for one in trusted)

    def told(self, scope: Scope) -> Scope:
        """The scope with the caller's own address and scheme."""
        if not self._networks or not self._trusts(_address((scope.get("client") or ("",))[0])):
            return scope
        hops = _forwarded(scope) or _x_forwarded(scope)
        told = dict(scope)
        for address, scheme in reversed(hops[-_HOPS:]):
            if scheme in ("http", "https"):
                told["scheme"] = scheme
            if address is None:
                break
            told["client"] = (str(address), 0)
            if not self._trusts(address):
                break
        return told

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port; None for what is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _lines(scope: Scope, name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


def _forwarded(scope: Scope) -> list[tuple[IPv4Address | IPv6Address | None, str]]:
    hops = []
    for hop in filter(str.strip, _lines(scope, b"forwarded").split(",")):
        pairs = {name.lower(): value.strip('"') for name, value in _PAIR.findall(hop)}
        hops.append((_address(pairs.get("for", "")), pairs.get("proto", "").lower()))
    return hops


def _x_forwarded(scope: Scope) -> list[tuple[IPv4Address | IPv6Address | None, str]]:
    addresses = [_address(one) for one in _lines(scope, b"x-forwarded-for").split(",") if one.strip()]
    schemes = [one.strip().lower() for one in _lines(scope, b"x-forwarded-proto").split(",") if one.strip()]
    if not addresses:
        return []
    missing = len(addresses) - len(schemes)
    schemes = ["", *["" for _ in range(missing - 1)], *schemes] if missing > 0 else schemes[-len(addresses) :]
    return list(zip(addresses, schemes, strict=True))
