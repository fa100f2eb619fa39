"""What a reference points to, and every reference of a resource.

https://hl7.org/fhir/R4/references.html
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from fhircm.fhir.definitions import definitions
from fhircm.fhir.walk import At, path_of

_ID = r"[A-Za-z0-9\-.]{1,64}"
_RELATIVE = re.compile(rf"([A-Z][A-Za-z]+)/({_ID})(?:/_history/({_ID}))?")
_ABSOLUTE = re.compile(rf"(?:[a-z][a-z0-9+.-]*://[^?#|]+)/([A-Z][A-Za-z]+)/({_ID})(?:/_history/({_ID}))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# Expression.reference, DetectedIssue.reference and Immunization.education.reference are plain URIs; the company that they keep tells.
_MEMBERS = frozenset({"id", "extension", "reference", "type", "identifier", "display"})
_EDUCATION = re.compile(r"(?:^|\.)Immunization(?:\.contained\[\d+\])?\.education\[\d+\]$")


class Reference(NamedTuple):
    """One reference, taken apart.

    `kind` is "local" (a resource of this server), "absolute" (any other URL), "contained", "urn", "canonical" (a URL with a
    version behind a bar), "conditional" (a search, as transactions have them) or "unknown". `type` and `id` are known for
    local references and for absolute ones that end like a FHIR URL.
    """

    path: str  # the element that holds it, for example Task.focus or CarePlan.activity[0].reference
    type: str | None
    id: str | None
    version: str | None
    url: str  # as written
    kind: str


def parse_reference(text: str, base_url: str | None = None, *, path: str = "") -> Reference:
    """Take a reference apart; one that begins with `base_url` is local. Never raises: what it cannot read is "unknown"."""
    return Reference(path, *_parsed(text, base_url))


@lru_cache(maxsize=8192)  # of a record most references lead to the same few resources
def _parsed(text: str, base_url: str | None) -> tuple[str | None, str | None, str | None, str, str]:
    local = text
    if base_url and text.startswith(base_url.rstrip("/") + "/"):
        local = text[len(base_url.rstrip("/")) + 1 :]
    found = _RELATIVE.fullmatch(local)
    if found and found[1] in definitions().resource_types:
        return (found[1], found[2], found[3], text, "local")
    if text.startswith("#"):
        return (None, None, None, text, "contained")
    if text.startswith("urn:"):
        return (None, None, None, text, "urn")
    if _SCHEME.match(text):
        if "|" in text:
            return (None, None, None, text, "canonical")
        found = _ABSOLUTE.fullmatch(text)
        if found and found[1] in definitions().resource_types:
            return (found[1], found[2], found[3], text, "absolute")
        return (None, None, None, text, "absolute")
    before, question, _ = text.partition("?")
    if question and before in definitions().resource_types:
        return (before, None, None, text, "conditional")
    return (None, None, None, text, "unknown")


def references(tree: dict[str, Any]) -> list[Reference]:
    """Every Reference.reference of a resource and of what it contains, in the order in which they stand.

    The resources inside a Bundle or a Parameters are resources of their own: their references are not those of the envelope.
    """
    kind = str(tree.get("resourceType", ""))
    found: list[tuple[At, str]] = []
    _walk(tree, (None, kind, None), found)
    placed = ((path_of(at), text) for at, text in found)
    return [parse_reference(text, path=path) for path, text in placed if not _EDUCATION.search(path)]


def _walk(node: dict[str, Any], at: At, found: list[tuple[At, str]]) -> None:
    for name, value in node.items():
        if value.__class__ is dict:
            if "resourceType" not in value:
                _walk(value, (at, name, None), found)
        elif value.__class__ is list:
            for index, member in enumerate(value):
                if member.__class__ is dict:
                    _walk(member, (at, name, index), found)
        elif name == "reference" and value.__class__ is str and all(member.lstrip("_") in _MEMBERS for member in node):
            found.append((at, value))
