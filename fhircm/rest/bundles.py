"""Bundles put together from stored bytes, which are not parsed again. https://hl7.org/fhir/R4/bundle.html"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec


class Entry(NamedTuple):
    """An entry: its fullUrl, the bytes of its resource (none for a deletion), and its other members."""

    full_url: str | None
    body: bytes | None
    more: dict[str, Any]


def bundle(type: str, entries: Sequence[Entry], links: Sequence[tuple[str, str]], total: int | None) -> bytes:
    """The bytes of a Bundle."""
    head: dict[str, Any] = {"resourceType": "Bundle", "type": type}
    if total is not None:
        head["total"] = total
    head["link"] = [{"relation": relation, "url": url} for relation, url in links]
    if entries:
        head["entry"] = [_entry(entry) for entry in entries]
    return msgspec.json.encode(head)


def _entry(entry: Entry) -> dict[str, Any]:
    made: dict[str, Any] = {"fullUrl": entry.full_url} if entry.full_url else {}
    if entry.body:
        made["resource"] = msgspec.Raw(entry.body)
    return made | entry.more
