"""Take a page of a search apart without touching the resources on it: each is handed out as the very bytes that came.

https://hl7.org/fhir/R4/bundle.html and https://hl7.org/fhir/R4/search.html#errors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import httpx
import msgspec

from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, issues, summary
from fhircm.fhir import json
from fhircm.fhir.definitions import definitions


class _Meta(msgspec.Struct):
    versionId: str | None = None
    lastUpdated: str | None = None


class _Head(msgspec.Struct):
    resourceType: str | None = None
    id: str | None = None
    meta: _Meta = msgspec.field(default_factory=_Meta)


class _Mode(msgspec.Struct):
    mode: str | None = None


class _Entry(msgspec.Struct):
    resource: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b""))
    search: _Mode | None = None


class _Link(msgspec.Struct):
    relation: str = ""
    url: str = ""


class _Bundle(msgspec.Struct):
    resourceType: str = ""
    type: str = ""
    link: list[_Link] = []
    entry: list[_Entry] = []


_head = msgspec.json.Decoder(_Head)
_bundle = msgspec.json.Decoder(_Bundle)


@dataclass(frozen=True, slots=True)
class Received:
    """A resource as the partner sent it. `version` and `last_updated` are its own there; type and id are None when it has none."""

    type: str | None
    id: str | None
    body: bytes
    version: str | None = None
    last_updated: str | None = None
    etag: str | None = None  # for If-Match

    @property
    def tree(self) -> dict[str, Any]:
        """The resource parsed anew, decimals exact. Raises Malformed."""
        return json.parse(self.body)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a search: what was found on it, and where the partner says that the next one is."""

    resources: list[Received]
    following: str | None


def page(body: bytes, type: str) -> Page:
    """Read a page of a search for a type. Raises PartnerRefused for an OperationOutcome and PartnerAnswerBroken for what is no Bundle."""
    try:
        bundle = _bundle.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PartnerAnswerBroken(f"A page of {type} is truncated or no Bundle ({len(body)} bytes)") from None
    if bundle.resourceType == "OperationOutcome":
        told = issues(body) or []
        raise PartnerRefused(f"A search of {type} was answered: {summary(told)}", answered=200, told=told)
    if bundle.resourceType != "Bundle":
        raise PartnerAnswerBroken(f"A page of {type} is not a Bundle")
    resources = [received for entry in bundle.entry if (received := _received(entry)) is not None]
    return Page(resources, next((link.url for link in bundle.link if link.relation == "next"), None))


def _received(entry: _Entry) -> Received | None:
    """The resource of an entry of a page; None for an outcome, which says something about the search."""
    body = bytes(entry.resource)
    if not body or (entry.search is not None and entry.search.mode == "outcome"):
        return None
    received = cut(body)
    return None if received.type == "OperationOutcome" else received


def cut(body: bytes) -> Received:
    """Bytes with what their head says of them. Raises PartnerAnswerBroken when they are no JSON."""
    try:
        head = _head.decode(body)
    except msgspec.ValidationError:
        return Received(None, None, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PartnerAnswerBroken(f"An answer is truncated or no JSON ({len(body)} bytes)") from None
    version = head.meta.versionId
    return Received(head.resourceType, head.id, body, version, head.meta.lastUpdated, f'W/"{version}"' if version else None)


def newest(resources: Sequence[Received]) -> list[Received]:
    """Each resource once, in the order of first appearance; of several with one id the newest, by lastUpdated, then version, then place."""
    kept: dict[tuple[str | None, str | None] | int, Received] = {}
    for number, received in enumerate(resources):
        key = (received.type, received.id) if received.id is not None else number
        before = kept.get(key)
        if before is None or _age(received) >= _age(before):
            kept[key] = received
    return list(kept.values())


def _age(received: Received) -> tuple[datetime, int]:
    try:
        at = datetime.fromisoformat(received.last_updated or "")
    except ValueError:
        at = datetime.min
    version = received.version or ""
    number = int(version) if version.isascii() and version.isdigit() and len(version) < 20 else 0
    return at if at.tzinfo else at.replace(tzinfo=UTC), number


def next_page(base_url: str, current: str, following: str, *, rebase: bool = False) -> str:
    """The URL of the next page, from the link on the current one, if the partner's token may go there. Raises PartnerAnswerBroken.

    With `rebase`, a link to an address behind the partner's proxy is taken at its base URL.
    """
    try:
        url = str(httpx.URL(urljoin(current, following)))
        if rebase and not within(base_url, url):
            url = _rebased(base_url, urlsplit(url))
    except (ValueError, httpx.InvalidURL):
        raise PartnerAnswerBroken("The next page is at an address that is no URL") from None
    if not within(base_url, url):
        raise PartnerAnswerBroken("The next page is at another address than the partner's own, where its token must not go")
    return url


def _rebased(base_url: str, link: SplitResult) -> str:
    """A link below the base URL: for a type, or for the whole, with its query."""
    last = link.path.rstrip("/").rpartition("/")[2]
    path = f"/{last}" if last in definitions().resource_types else ""
    return f"{base_url}{path}?{link.query}"


def within(base_url: str, url: str) -> bool:
    """Whether a URL lies at or below a base URL: same scheme, host, port and path."""
    try:
        base, other = urlsplit(base_url), urlsplit(url)
        same = (base.scheme, base.hostname, _port(base)) == (other.scheme, other.hostname, _port(other))
    except ValueError:
        return False
    path = unquote(other.path)
    inside = path == base.path or path.startswith(base.path + "/")
    return same and inside and other.username is None and ".." not in path.split("/") and "\\" not in path


def _port(url: SplitResult) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)
