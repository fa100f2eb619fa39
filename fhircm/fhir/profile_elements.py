"""The elements of a resource as a profile names them: by path and type, lists one by one, with what stands beside primitives.

https://hl7.org/fhir/R4/json.html#primitive
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fhircm.fhir.definitions import definitions
from fhircm.fhir.schema import Child, children

Tree = dict[str, Any]


class Found(NamedTuple):
    """An element of the resource: its value (None for a primitive that has extensions only), what stands beside a primitive, where, which type."""

    value: Any
    beside: Tree
    path: str
    type: str


def members(holder: Mapping[str, Any], type: str, name: str, at: str) -> Iterator[Found]:
    """The elements of a name (`value[x]`: of each of its types) in what holds them, a list one by one."""
    for member, child in _named(type, name):
        values, beside = holder.get(member), holder.get(f"_{member}")
        if values is None and beside is None:
            continue
        path = f"{at}.{name.removesuffix('[x]')}"
        if isinstance(values, list) or isinstance(beside, list):
            yield from _each(values or [], beside or [], path, child)
        else:
            yield Found(values, beside or {}, path, _type(values, child))


def _each(values: list[Any], beside: list[Any], path: str, child: Child) -> Iterator[Found]:
    for index in range(max(len(values), len(beside))):
        value = values[index] if index < len(values) else None
        extra = beside[index] if index < len(beside) else None
        yield Found(value, extra or {}, f"{path}[{index}]", _type(value, child))


def _type(value: Any, child: Child) -> str:
    return str(value["resourceType"]) if child.type == "Resource" and isinstance(value, dict) else child.type


def _named(type: str, name: str) -> list[tuple[str, Child]]:
    known = children("Element" if type in definitions().primitives else type)
    if name.endswith("[x]"):
        return [(member, child) for member, child in known.items() if child.element.path.rpartition(".")[2] == name]
    return [(name, known[name])] if name in known else []


def matches(value: Any, pattern: Any) -> bool:
    """Whether a value has everything that a pattern has. https://hl7.org/fhir/R4/elementdefinition-definitions.html#ElementDefinition.pattern_x_"""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(name in value and matches(value[name], wanted) for name, wanted in pattern.items())
    if isinstance(pattern, list):
        return isinstance(value, list) and all(any(matches(one, wanted) for one in value) for wanted in pattern)
    return bool(value == pattern)
