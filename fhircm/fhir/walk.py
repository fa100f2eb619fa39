"""The elements of a resource with their FHIR types, in the order in which they stand.

https://hl7.org/fhir/R4/elementdefinition.html
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.schema import children

At = tuple[Any, str, int | None] | None  # where an element stands: its parent's place, its name, its index in a list


def path_of(at: At) -> str:
    """The FHIRPath of a place, with indexes: written only when there is something to tell."""
    steps = []
    while at is not None:
        at, name, index = at
        steps.append(name if index is None else f"{name}[{index}]")
    return ".".join(reversed(steps))


class Node(NamedTuple):
    """One element: where, what type, which resource types it may refer to, and its value."""

    at: At
    type: str  # a data type, a resource type, or the path of a backbone element
    targets: tuple[str, ...]
    value: Any

    @property
    def path(self) -> str:
        """Its FHIRPath, with indexes."""
        return path_of(self.at)


def walk(tree: dict[str, Any], wanted: frozenset[str]) -> list[Node]:
    """The elements of these types in a resource whose structure is right, those of contained resources too."""
    type = str(tree["resourceType"])
    at = (None, type, None)
    found = [Node(at, type, (), tree)] if type in wanted else []
    _members(tree, type, at, wanted, found)
    return found


class _Steps(NamedTuple):
    """How to go on from a type: `plain` members are neither wanted nor have members; `others` are, with type, targets, and whether they have."""

    plain: frozenset[str]
    others: dict[str, tuple[str, tuple[str, ...], bool]]


@cache
def _steps(type: str, wanted: frozenset[str]) -> _Steps:
    plain = {name for name, child in children(type).items() if child.is_primitive and child.type not in wanted}
    others = {
        name: (child.type, child.targets, not child.is_primitive) for name, child in children(type).items() if name not in plain
    }
    return _Steps(frozenset(plain), others)


def _members(tree: dict[str, Any], type: str, parent: At, wanted: frozenset[str], found: list[Node]) -> None:
    plain, others = _steps(type, wanted)
    if tree.keys() <= plain:
        return
    for name, value in tree.items():
        step = others.get(name)
        if step is None:
            if name[0] != "_":
                continue
            name, step = name[1:], ("Element", (), True)
        if isinstance(value, list):
            for index, one in enumerate(value):
                if one is not None:
                    _member(one, step, (parent, name, index), wanted, found)
        else:
            _member(value, step, (parent, name, None), wanted, found)


def _member(value: Any, step: tuple[str, tuple[str, ...], bool], at: At, wanted: frozenset[str], found: list[Node]) -> None:
    kind, targets, has_members = step
    if kind == "Resource":
        kind = str(value["resourceType"])
    if kind in wanted:
        found.append(Node(at, kind, targets, value))
    if has_members:
        _members(value, kind, at, wanted, found)
