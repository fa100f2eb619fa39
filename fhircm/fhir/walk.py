"""The elements of a resource with their FHIR types, in the order in which they stand.

https://hl7.org/fhir/R4/elementdefinition.html. Texts, codes, numbers and flags that stand alone are passed over: the schema has said all
that there is to say of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.definitions import definitions
from fhircm.fhir.references import Step, written
from fhircm.fhir.schema import children

_TELLING = frozenset({"date", "dateTime", "instant", "xhtml", "uri", "url", "canonical"})  # primitives that are no mere values


@dataclass(slots=True)
class Node:
    """One element: where, what type, which resource types it may refer to, and its value."""

    at: Step
    type: str  # a data type, a resource type, or the path of a backbone element
    targets: tuple[str, ...]
    value: Any

    @property
    def path(self) -> str:
        """FHIRPath, with indexes."""
        return written(self.at)


def walk(tree: dict[str, Any]) -> list[Node]:
    """The elements of a resource whose structure is right, those of contained resources too."""
    type = str(tree["resourceType"])
    at: Step = (None, type, -1)
    nodes = [Node(at, type, (), tree)]
    _members(tree, type, at, nodes)
    return nodes


class _Member(NamedTuple):
    type: str
    targets: tuple[str, ...]
    is_primitive: bool


@cache
def _known(type: str) -> dict[str, _Member]:
    """The members of a type that are worth a look."""
    silent = definitions().primitives.keys() - _TELLING
    return {
        name: _Member(child.type, child.targets, child.is_primitive)
        for name, child in children(type).items()
        if child.type not in silent
    }


def _members(tree: dict[str, Any], type: str, at: Step, nodes: list[Node]) -> None:
    known = _known(type)
    for name, value in tree.items():
        member = known.get(name)
        if member is not None:
            if value.__class__ is list:
                for index, one in enumerate(value):
                    if one is not None:
                        _element(one, member, (at, name, index), nodes)
            else:
                _element(value, member, (at, name, -1), nodes)
        elif name[0] == "_":  # what is said of a primitive besides its value
            for index, one in enumerate(value if value.__class__ is list else [value]):
                if one is not None:
                    _members(one, "Element", (at, name[1:], index if value.__class__ is list else -1), nodes)


def _element(value: Any, member: _Member, at: Step, nodes: list[Node]) -> None:
    if member.is_primitive:
        nodes.append(Node(at, member.type, (), value))
        return
    kind = str(value["resourceType"]) if member.type == "Resource" else member.type
    nodes.append(Node(at, kind, member.targets, value))
    _members(value, kind, at, nodes)
