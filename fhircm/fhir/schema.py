"""A JSON Schema for each resource type, made from HL7's tables: structure, cardinality, primitive formats and required codes.

https://hl7.org/fhir/R4/json.html and https://hl7.org/fhir/R4/datatypes.html. It is stricter than HL7's own schema: required
primitives, exclusive choices, required bindings, and nulls only where JSON needs them to keep arrays of primitives in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.definitions import Element, definitions

Schema = dict[str, Any]

_SPACE = r"[ \t\r\n]"
_INK = r"[^ \t\r\n]"
# By primitive: what JSON it is. Formats are those of the tables, but for the ones where their letter is wider than their meaning.
_PRIMITIVES: dict[str, Schema] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    "unsignedInt": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "positiveInt": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    "decimal": {"type": "number"},
    "string": {"type": "string", "minLength": 1},
    "markdown": {"type": "string", "minLength": 1},
    "xhtml": {"type": "string", "minLength": 1},
    "uri": {"type": "string", "minLength": 1, "pattern": f"^{_INK}+$"},
    "url": {"type": "string", "minLength": 1, "pattern": f"^{_INK}+$"},
    "canonical": {"type": "string", "minLength": 1, "pattern": f"^{_INK}+$"},
    "code": {"type": "string", "pattern": f"^{_INK}+({_SPACE}{_INK}+)*$"},
    "base64Binary": {"type": "string", "minLength": 1, "pattern": f"^(?:{_SPACE}|[0-9a-zA-Z+/=])+$"},
}


class Child(NamedTuple):
    """A JSON member that an element may have: the element it belongs to, and the type that its name says it has."""

    element: Element
    type: str  # a data type, a resource type, or the path of a backbone element
    targets: tuple[str, ...]

    @property
    def is_primitive(self) -> bool:
        return self.type in definitions().primitives


@cache
def children(type: str) -> Mapping[str, Child]:
    """The members of a resource, a data type or a backbone element, by name; one for each type of a choice."""
    members: dict[str, Child] = {}
    prefix = type + "."
    for path, element in _by_parent().get(type, {}).items():
        name = path.removeprefix(prefix)
        if element.content_reference:
            members[name] = Child(element, element.content_reference, ())
            continue
        for kind in element.types:
            inner = path if kind.code in ("BackboneElement", "Element") else kind.code
            member = name.removesuffix("[x]") + kind.code[0].upper() + kind.code[1:] if name.endswith("[x]") else name
            members[member] = Child(element, inner, kind.targets)
    return members


@cache
def _by_parent() -> dict[str, dict[str, Element]]:
    parents: dict[str, dict[str, Element]] = {}
    for path, element in definitions().elements.items():
        parents.setdefault(path.rpartition(".")[0], {})[path] = element
    return parents


@cache
def schema(type: str) -> Schema:
    """The schema of a resource type, with the definitions of everything that it needs."""
    needed: dict[str, Schema] = {}
    _define(type, needed)
    return {"$ref": f"#/$defs/{type}", "$defs": needed}


def _define(type: str, needed: dict[str, Schema]) -> None:
    if type in needed:
        return
    if type == "Resource":
        needed[type] = {"type": "object", "required": ["resourceType"], "properties": {"resourceType": {"type": "string"}}}
        return
    if type in definitions().primitives:
        needed[type] = _primitive(type)
        return
    needed[type] = {}  # reserved, for types that hold themselves
    members = children(type)
    for child in members.values():
        _define(child.type, needed)
    _define("Extension", needed)
    needed["_primitive"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string"},
            "extension": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Extension"}},
        },
    }
    needed[type] |= _object(type, members)


def _object(type: str, members: Mapping[str, Child]) -> Schema:
    properties: dict[str, Schema] = {}
    rules: list[Schema] = []
    required: list[str] = []
    choices: dict[str, list[str]] = {}
    for name, child in members.items():
        one = _value(child)
        many = child.element.max != 1
        properties[name] = _many(one, child.is_primitive) if many else one
        if child.is_primitive:
            properties[f"_{name}"] = _many({"$ref": "#/$defs/_primitive"}, True) if many else {"$ref": "#/$defs/_primitive"}
        if child.element.path.endswith("[x]"):
            choices.setdefault(child.element.path, []).append(name)
        elif child.element.min:
            if child.is_primitive:
                rules.append({"anyOf": [{"required": [name]}, {"required": [f"_{name}"]}]})
            else:
                required.append(name)
    for path, names in choices.items():
        options = [_present(name, members[name].is_primitive) for name in names]
        absent = [] if members[names[0]].element.min else [{"not": {"anyOf": options}}]
        if len(options) + len(absent) > 1 or not absent:
            rules.append({"oneOf": [*options, *absent], "title": path})
    if type in definitions().resource_types:
        properties["resourceType"] = {"const": type}
        required.append("resourceType")
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": False, "minProperties": 1}
    if required:
        made["required"] = required
    if rules:
        made["allOf"] = rules
    return made


def _present(name: str, primitive: bool) -> Schema:
    return {"anyOf": [{"required": [name]}, {"required": [f"_{name}"]}]} if primitive else {"required": [name]}


def _value(child: Child) -> Schema:
    if child.type == "code" and child.element.codes is not None:
        return {"type": "string", "enum": sorted(child.element.codes)}
    return {"$ref": f"#/$defs/{child.type}"}


def _many(one: Schema, nullable: bool) -> Schema:
    return {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "null"}, one]} if nullable else one}


def _primitive(type: str) -> Schema:
    if type in _PRIMITIVES:
        return _PRIMITIVES[type]
    return {"type": "string", "pattern": f"^(?:{definitions().primitives[type]})$"}
