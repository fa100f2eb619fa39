"""What is said to a partner and by it around an export: the kick-off in its dialect, and the manifest that it answers in the end.

https://hl7.org/fhir/uv/bulkdata/export.html#bulk-data-kick-off-request and #response---complete-status
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

import httpx
import msgspec

from fhircm.exchange.bulk_shape import SINCE, Bulk
from fhircm.exchange.errors import PartnerAnswerBroken
from fhircm.exchange.partners import Partner
from fhircm.fhir import json

RESPOND_ASYNC = {"Prefer": "respond-async"}


@dataclass(frozen=True, slots=True)
class KickOff:
    """The request that starts an export."""

    method: str
    url: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file that a manifest lists. `kind`: output, error or deleted."""

    kind: str
    type: str
    url: str
    count: int | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished export, or one page of its manifest, says."""

    transaction_time: datetime | None
    request: str
    requires_token: bool
    files: tuple[ManifestFile, ...]
    following: str | None  # URL of the next page


def kick_off(
    partner: Partner, bulk: Bulk, types: Sequence[str], since: datetime | None, patients: Sequence[str] | None = None
) -> KickOff:
    """The kick-off of an export of these types, of what changed since, of some patients only when they are named."""
    path = {"group": f"Group/{partner.group}/$export", "patient": "Patient/$export", "system": "$export"}[bulk.level]
    url, named = f"{partner.base_url}/{path}", _parameters(bulk, types, since)
    if bulk.method == "get":
        return KickOff("GET", str(httpx.URL(url, params=named)), None)
    parameters = [{"name": name, _VALUE.get(name, "valueString"): value} for name, value in named]
    parameters += [{"name": "patient", "valueReference": {"reference": f"Patient/{id}"}} for id in patients or ()]
    return KickOff("POST", url, json.dumps({"resourceType": "Parameters", "parameter": parameters}))


_VALUE = {"_since": "valueInstant"}


def _parameters(bulk: Bulk, types: Sequence[str], since: datetime | None) -> list[tuple[str, str]]:
    named = [("_outputFormat", bulk.output_format)] if bulk.output_format else []
    instant = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if since else None
    if instant and bulk.since:
        named.append(("_since", instant))
    filters = [
        f"{type}?{one.replace(SINCE, instant or '')}"
        for type in types
        for one in bulk.type_filters.get(type, ())
        if instant or SINCE not in one
    ]
    if bulk.lists == "repeated":
        return [*named, *(("_type", type) for type in types), *(("_typeFilter", one) for one in filters)]
    named.append(("_type", ",".join(types)))
    if filters:
        named.append(("_typeFilter", ",".join(one.replace(",", "%2C") for one in filters)))
    return named


def manifest(body: bytes, asked: str) -> Manifest:
    """Read a manifest; `asked` is the URL that answered it. Raises PartnerAnswerBroken."""
    try:
        tree = json.loads(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        tree = None
    if not isinstance(tree, dict) or not isinstance(tree.get("output"), list):
        raise PartnerAnswerBroken("The export's end was told with what is no manifest")
    files = [
        _file(kind, one, asked)
        for kind, name in (("output", "output"), ("deleted", "deleted"), ("error", "error"), ("error", "outcome"))
        for one in tree.get(name) or ()
    ]
    links = [link for link in tree.get("link") or () if isinstance(link, dict) and link.get("relation") == "next"]
    following = links[0].get("url") if links else None
    if following is not None and not isinstance(following, str):
        raise PartnerAnswerBroken("The manifest's next page is at no URL")
    return Manifest(
        _instant(tree.get("transactionTime")),
        str(tree.get("request", "")),
        tree.get("requiresAccessToken") is True,
        tuple(files),
        urljoin(asked, following) if following else None,
    )


def _file(kind: str, listed: Any, asked: str) -> ManifestFile:
    if not isinstance(listed, dict) or not isinstance(listed.get("url"), str):
        raise PartnerAnswerBroken(f"The manifest's {kind} lists a file without a URL")
    count, type = listed.get("count"), listed.get("type")
    return ManifestFile(
        kind,
        type if isinstance(type, str) else "",
        urljoin(asked, listed["url"]),
        count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None,
    )


def _instant(text: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo else None
