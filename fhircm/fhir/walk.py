"""Every element of a resource with its FHIR type, in the order in which it stands.

https://hl7.org/fhir/R4/elementdefinition.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fhircm.fhir.schema import children


class Node(NamedTuple):
    """One element: where, what type, which resource types it may refer to, and its value."""

    path: str  # FHIRPath, with indexes
    type: str  # a data type, a resource type, or the path of a backbone element
    targets: tuple[str, ...]
    value: Any


def walk(tree: dict[str, Any]) -> Iterator[Node]:
    """Every element of a resource whose structure is right, those of contained resources too."""
    type = str(tree["resourceType"])
    yield Node(type, type, (), tree)
    yield from _members(tree, type, type)


def _members(tree: dict[str, Any], type: str, path: str) -> Iterator[Node]:
    known = children(type)
    for name, value in tree.items():
        if name == "resourceType":
            continue
        if name.startswith("_"):
            for at, inner in _each(value, f"{path}.{name[1:]}"):
                yield from _members(inner, "Element", at)
            continue
        child = known[name]
        for at, inner in _each(value, f"{path}.{name}"):
            kind = str(inner["resourceType"]) if child.type == "Resource" else child.type
            yield Node(at, kind, child.targets, inner)
            if isinstance(inner, dict):
                yield from _members(inner, kind, at)


def _each(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for index, one in enumerate(value):
            if one is not None:
                yield f"{path}[{index}]", one
    else:
        yield path, value
