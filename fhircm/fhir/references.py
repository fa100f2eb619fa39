"""What a reference points to, and every reference of a resource.

https://hl7.org/fhir/R4/references.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from fhircm.fhir.definitions import definitions

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
    local = text
    if base_url and text.startswith(base_url.rstrip("/") + "/"):
        local = text[len(base_url.rstrip("/")) + 1 :]
    found = _RELATIVE.fullmatch(local)
    if found and found[1] in definitions().resource_types:
        return Reference(path, found[1], found[2], found[3], text, "local")
    if text.startswith("#"):
        return Reference(path, None, None, None, text, "contained")
    if text.startswith("urn:"):
        return Reference(path, None, None, None, text, "urn")
    if _SCHEME.match(text):
        if "|" in text:
            return Reference(path, None, None, None, text, "canonical")
        found = _ABSOLUTE.fullmatch(text)
        if found and found[1] in definitions().resource_types:
            return Reference(path, found[1], found[2], found[3], text, "absolute")
        return Reference(path, None, None, None, text, "absolute")
    before, question, _ = text.partition("?")
    if question and before in definitions().resource_types:
        return Reference(path, before, None, None, text, "conditional")
    return Reference(path, None, None, None, text, "unknown")


def references(tree: dict[str, Any]) -> Iterator[Reference]:
    """Every Reference.reference of a resource and of what it contains, in the order in which they stand.

    The resources inside a Bundle or a Parameters are resources of their own: their references are not those of the envelope.
    """
    kind = str(tree.get("resourceType", ""))
    found: list[tuple[Step, str]] = []
    _walk(tree, (None, kind, -1), found)
    for step, text in found:
        path = written(step)
        if not _EDUCATION.search(path):
            yield parse_reference(text, path=path)


# The step before, the name of a member, and its place in a list or -1: a path, written out for few of all elements.
Step = tuple[Any, str, int]


def _walk(node: dict[str, Any], at: Step, found: list[tuple[Step, str]]) -> None:
    for name, value in node.items():
        if value.__class__ is dict:
            if "resourceType" not in value:
                _walk(value, (at, name, -1), found)
        elif value.__class__ is list:
            for index, member in enumerate(value):
                if member.__class__ is dict:
                    _walk(member, (at, name, index), found)
        elif name == "reference" and value.__class__ is str and all(member.lstrip("_") in _MEMBERS for member in node):
            found.append((at, value))


def written(step: Step) -> str:
    """The path, with indexes."""
    parts: list[str] = []
    while step is not None:
        before, name, index = step
        parts.append(name if index < 0 else f"{name}[{index}]")
        step = before
    return ".".join(reversed(parts))
