"""What a partner's resource becomes at the hub: its id derived, its references re-pointed, its source noted, and no other byte changed.

https://hl7.org/fhir/R4/references.html, https://hl7.org/fhir/R4/resource.html#Meta and https://hl7.org/fhir/R4/provenance.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from fhircm.exchange.pages import Received, within
from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Malformed

_LOCAL = re.compile(r"/?([A-Z][A-Za-z]+)/([^/?#\s]+)(/_history/[^/?#\s]+)?")
_SMALL = 65_536  # bytes of a body that is remembered for a while
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
# An attachment's content at the partner: at the hub a relative address would lead nowhere.
_BINARY = re.compile(rb'(?<=[{,\s])("url"\s*:\s*")(Binary/[A-Za-z0-9\-.]{1,64}")')


class Source(NamedTuple):
    """A resource at the partner."""

    type: str
    id: str

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"


class _Meta(msgspec.Struct):
    meta: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


_meta = msgspec.json.Decoder(_Meta)


@lru_cache(maxsize=65_536)  # the same few are asked for again and again
def hub_id(base_url: str, reference: str) -> str:
    """The id at the hub of the resource that is `reference` (Type/id) at a FHIR base URL."""
    return str(uuid5(_namespace(base_url), reference))


@cache
def _namespace(base_url: str) -> UUID:
    return uuid5(NAMESPACE_URL, base_url)


@lru_cache(maxsize=65_536)
def source(base_url: str, reference: str) -> Source | None:
    """The resource at the partner that a reference of the partner's means; None when it means something else or elsewhere."""
    found = _LOCAL.fullmatch(_relative(base_url, reference))
    if found is None or found[1] not in definitions().resource_types or found[2] in (".", ".."):
        return None
    return Source(found[1], found[2])


def _relative(base_url: str, reference: str) -> str:
    """An absolute reference to the partner itself as a relative one."""
    if _SCHEME.match(reference) and within(base_url, reference):
        return reference[len(base_url) :]
    return reference


def referred(base_url: str, body: bytes) -> frozenset[Source]:
    """The resources at the partner that a body refers to."""
    return (_referred if len(body) <= _SMALL else _referred.__wrapped__)(base_url, body)


@lru_cache(maxsize=2048)  # whoever reads a resource, judges it and writes it asks for the same
def _referred(base_url: str, body: bytes) -> frozenset[Source]:
    found: set[Source] = set()

    def collect(reference: str) -> str:
        if (one := source(base_url, reference)) is not None:
            found.add(one)
        return reference

    with suppress(UnicodeDecodeError):  # such a body is refused later, with its reason
        json.rewrite_references(body, collect)
    return frozenset(found)


def inbound(base_url: str, received: Received, at_hub: Callable[[Source], bool]) -> bytes:
    """The body of a received resource as the hub keeps it, without versionId and lastUpdated, which the store sets.

    A reference to what `at_hub` says is (or will be) there is re-pointed; a version of it that was named is not, because the hub
    counts its own. Any other reference to the partner becomes an absolute URL there. Raises Malformed for a body that cannot be read.
    """

    def point(reference: str) -> str:
        if reference.startswith("#") or (_SCHEME.match(reference) and not within(base_url, reference)):
            return reference
        target = source(base_url, reference)
        if target is not None and at_hub(target):
            return f"{target.type}/{hub_id(base_url, str(target))}"
        return f"{base_url}/{_relative(base_url, reference).lstrip('/')}"

    here = f"{received.type}/{received.id}"
    try:
        received.body.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: byte {error.start} cannot be read") from None
    body = json.rewrite_references(received.body, point)
    body = _BINARY.sub(lambda found: found[1] + base_url.encode() + b"/" + found[2], body)
    return json.splice(body, {"id": hub_id(base_url, here), "meta": _hub_meta(received.body, f"{base_url}/{here}")})


def _hub_meta(body: bytes, url: str) -> dict[str, Any]:
    meta = json.loads(_meta.decode(body).meta)
    if not isinstance(meta, dict):
        return {"source": url}
    return {name: value for name, value in meta.items() if name not in ("versionId", "lastUpdated", "source")} | {"source": url}


def digest(body: bytes) -> str:
    """A short fingerprint of a mapped body: equal means unchanged."""
    return sha256(body).hexdigest()[:32]


def same(mapped: bytes, stored: bytes) -> bool:
    """Whether a mapped body says what a stored one says, apart from what the store sets and from white space."""
    return _content(mapped) == _content(stored)


def _content(body: bytes) -> dict[str, Any]:
    tree = json.loads(body)
    meta = {name: value for name, value in tree.get("meta", {}).items() if name not in ("versionId", "lastUpdated")}
    return {**tree, "meta": meta}


class Copied(NamedTuple):
    """A version written at the hub and what it was copied from."""

    target: str  # Type/id/_history/version at the hub
    source: str  # URL at the partner, with its version there when it has one


def provenance(custodian: dict[str, Any], copied: Sequence[Copied], at: datetime) -> dict[str, Any]:
    """A Provenance of versions that were copied from a partner; `custodian` is the Reference to the partner's organisation.

    Its id follows from the versions, so the same copy is never told twice.
    """
    targets = [one.target for one in copied]
    return {
        "resourceType": "Provenance",
        "id": str(uuid5(NAMESPACE_URL, "Provenance of " + " ".join(targets))),
        "target": [{"reference": target} for target in targets],
        "recorded": at.isoformat(timespec="milliseconds"),
        "activity": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle", "code": "receive"}],
            "text": "Copied from the partner's record",
        },
        "agent": [
            {
                "type": {
                    "coding": [
                        {"system": "http://terminology.hl7.org/CodeSystem/provenance-participant-type", "code": "custodian"}
                    ]
                },
                "who": custodian,
            }
        ],
        "entity": [{"role": "source", "what": {"reference": one.source}} for one in copied],
    }
