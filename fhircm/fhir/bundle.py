"""A batch or transaction taken apart: its entries, each with the bytes of its resource as they came.

https://hl7.org/fhir/R4/http.html#transaction and https://hl7.org/fhir/R4/bundle.html#Bundle.entry.fullUrl
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Invalid, Issue, Malformed
from fhircm.fhir.validation import check, require_valid

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_URL_MEMBERS = tuple(re.compile(rb'("%b"\s*:\s*)"((?:[^"\\]|\\.)*)"' % name) for name in (b"reference", b"url"))


class _Entry(msgspec.Struct):
    resource: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b""))


class _Bundle(msgspec.Struct):
    entry: list[_Entry] = []


_decoder = msgspec.json.Decoder(_Bundle)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of a batch or transaction. `path` is where it stands; `query` what follows the ? of its URL."""

    path: str
    full_url: str | None
    method: str
    url: str
    steps: tuple[str, ...]
    query: str
    headers: Mapping[str, str]
    body: bytes
    resource_type: str | None

    @property
    def type(self) -> str:
        """The resource type that the URL begins with, or ''."""
        return self.steps[0] if self.steps else ""


def read_bundle(body: bytes, base_url: str) -> tuple[str, list[Entry]]:
    """The type of the Bundle (batch or transaction) and its entries. Raises Malformed, Invalid with every place."""
    tree = json.parse(body)
    if tree.get("resourceType") != "Bundle":
        raise Malformed("Only a Bundle of the type batch or transaction can be sent here", "Bundle.resourceType")
    if tree.get("type") not in ("batch", "transaction"):
        raise Invalid("Bundle.type must be batch or transaction here", "Bundle.type")
    listed = tree.get("entry", [])
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise Invalid("Bundle.entry must be a list of objects", "Bundle.entry")
    missing = [
        f"Bundle.entry[{number}].request" for number, entry in enumerate(listed) if not isinstance(entry.get("request"), dict)
    ]
    if missing:
        text = f"{missing[0]} is required in a batch or transaction"
        raise Invalid(text, issues=[Issue("error", "required", f"{place} is required here", place) for place in missing])
    envelope = [{name: value for name, value in entry.items() if name != "resource"} for entry in listed]
    require_valid({**tree, **({"entry": envelope} if "entry" in tree else {})})
    bodies = [bytes(entry.resource) for entry in _decoder.decode(body).entry]
    issues: list[Issue] = []
    entries = [_entry(number, entry, bodies[number], base_url, issues) for number, entry in enumerate(listed)]
    if issues:
        raise Invalid(issues[0].text, issues=issues)
    return tree["type"], entries


def _entry(number: int, entry: dict[str, Any], body: bytes, base_url: str, issues: list[Issue]) -> Entry:
    path = f"Bundle.entry[{number}]"
    request = entry["request"]
    method, url = request["method"], str(request["url"])
    local = url.removeprefix(base_url + "/").lstrip("/")
    place, _, query = local.partition("?")
    resource = entry.get("resource")
    kind = resource.get("resourceType") if isinstance(resource, dict) else None
    if method in ("POST", "PUT", "PATCH") and not body and not place.rpartition("/")[2].startswith("$"):
        issues.append(Issue("error", "required", f"{path}.resource is required for {method}", f"{path}.resource"))
    names = {
        "ifMatch": "if-match",
        "ifNoneExist": "if-none-exist",
        "ifNoneMatch": "if-none-match",
        "ifModifiedSince": "if-modified-since",
    }
    headers = {header: request[name] for name, header in names.items() if name in request}
    steps = tuple(place.split("/")) if place else ()
    return Entry(path, entry.get("fullUrl"), method, url, steps, query, headers, body, kind if isinstance(kind, str) else None)


def require_write(entry: Entry, issues: list[Issue]) -> None:
    """Note what keeps an entry from being a write of a transaction: POST Type, PUT, PATCH or DELETE Type/id or Type?condition."""
    at = f"{entry.path}.request.url"
    if entry.type not in definitions().resource_types:
        issues.append(Issue("error", "value", f"{at} must begin with a resource type of FHIR R4", at))
    elif entry.method == "POST" and (len(entry.steps) != 1 or entry.query):
        issues.append(Issue("error", "value", f"{at} must be a resource type alone for POST in a transaction", at))
    elif entry.method != "POST" and not (len(entry.steps) == 1 and entry.query) and not _is_instance(entry):
        issues.append(Issue("error", "value", f"{at} must be Type/id or Type?condition for {entry.method}", at))
    elif entry.method in ("POST", "PUT") and entry.resource_type != entry.type:
        issues.append(Issue("error", "value", f"{entry.path}.resource is of another type than its URL", f"{entry.path}.resource"))


def _is_instance(entry: Entry) -> bool:
    return len(entry.steps) == 2 and not entry.query and bool(_ID.fullmatch(entry.steps[1]))


def rewrite_urls(body: bytes, targets: Mapping[str, str]) -> bytes:
    """Put the new reference in place of every `reference` or `url` that is one of these, leaving every other byte as it is."""

    def one(match: re.Match[bytes]) -> bytes:
        old = json.loads(b'"' + match[2] + b'"')
        plain, hash, fragment = old.partition("#")
        new = targets.get(plain)
        return match[0] if new is None else match[1] + json.dumps(new + hash + fragment)

    for member in _URL_MEMBERS:
        body = member.sub(one, body)
    return body


def carried_patch(entry: Entry) -> tuple[str, bytes]:
    """The content type and the bytes of a patch in a bundle: of a JSON Patch that a Binary holds, or a FHIRPath Patch. Raises Invalid.

    https://hl7.org/fhir/R4/http.html#jsonpatch-transaction
    """
    if entry.resource_type == "Parameters":
        return "application/fhir+json", entry.body
    if entry.resource_type != "Binary":
        raise Invalid("A patch in a bundle is a Binary that holds a JSON Patch, or a Parameters resource", "Binary")
    binary = check(entry.body, "Binary").tree
    try:
        return binary["contentType"], base64.b64decode(binary.get("data", ""))
    except binascii.Error:
        raise Invalid("Binary.data is no base64", "Binary.data") from None
