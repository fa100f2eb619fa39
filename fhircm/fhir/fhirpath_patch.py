"""Change a resource by a FHIRPath Patch: a Parameters resource of operations. https://hl7.org/fhir/R4/fhirpatch.html"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.definitions import definitions
from fhircm.fhir.locations import Effort, parse_path
from fhircm.fhir.outcome import Invalid, Malformed
from fhircm.fhir.places import PathError, Place, inside, lists, named, opened, write_beside, write_lists, write_one
from fhircm.fhir.schema import Child
from fhircm.fhir.validation import Checked, check, check_tree

LIMIT = 1000  # operations of one patch

# For each operation the parts that it has besides type and path; all are needed.
_PARTS = {
    "add": ("name", "value"),
    "insert": ("index", "value"),
    "delete": (),
    "replace": ("value",),
    "move": ("source", "destination"),
}
# Primitives that JSON writes alike: a caller that names a neighbour is understood, and the result is checked as its own type.
_ALIKE = (
    frozenset({"string", "code", "id", "uri", "url", "canonical", "markdown", "oid", "uuid", "xhtml"}),
    frozenset({"date", "dateTime", "instant"}),
    frozenset({"integer", "unsignedInt", "positiveInt"}),
)


@dataclass(frozen=True, slots=True)
class Given:
    """A value as an operation brings it: of a type with what belongs to a primitive besides, or the parts of an anonymous type."""

    type: str
    value: Any = None
    beside: Any = None
    parts: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, and where it stands in the patch."""

    at: str
    type: str
    path: str
    name: str = ""
    value: Given | None = None
    index: int = 0
    source: int = 0
    destination: int = 0


def read_fhirpath_patch(body: bytes) -> list[Operation]:
    """The operations of a patch. Raises Malformed, and Invalid with the place."""
    listed = check(body, "Parameters").tree.get("parameter", [])
    if len(listed) > LIMIT:
        raise Malformed(f"A FHIRPath Patch may have at most {LIMIT} operations")
    return [_operation(parameter, f"Parameters.parameter[{number}]") for number, parameter in enumerate(listed)]


def fhirpath_patched(tree: dict[str, Any], operations: Sequence[Operation]) -> Checked:
    """The resource that the operations make of a resource, which is changed.

    Raises Invalid for an operation that cannot be done, with its place in the patch, and for a result that may not be.
    """
    type, id, effort = tree["resourceType"], tree["id"], Effort()
    for operation in operations:
        try:
            do(tree, operation, effort)
        except Invalid as error:
            raise Invalid(f"{operation.at} ({operation.type}): {error}", operation.at) from None
    if tree.get("id") != id:
        raise Invalid("A patch may not change the id", f"{type}.id")
    return check_tree(tree)


def do(tree: dict[str, Any], operation: Operation, effort: Effort) -> None:
    """Do one operation on a resource, which is changed and not checked. Raises Invalid."""
    _DO[operation.type](tree, operation, effort)


# --- reading -----------------------------------------------------------------------------------------------------------------


def _operation(parameter: dict[str, Any], at: str) -> Operation:
    if parameter["name"] != "operation":
        raise Invalid(f"{at}.name must be 'operation'", f"{at}.name")
    parts: dict[str, dict[str, Any]] = {}
    for part in parameter.get("part", []):
        if part["name"] in parts:
            raise Invalid(f"{at} has the part '{part['name'][:64]}' twice", at)
        parts[part["name"]] = part
    type = _text(parts, "type", at)
    if type not in _PARTS:
        raise Invalid(f"{at}: the type must be one of: {', '.join(_PARTS)}", at)
    wanted = ("type", "path", *_PARTS[type])
    surplus = [name for name in parts if name not in wanted]
    if surplus:
        raise Invalid(f"{at}: {type} has no part '{surplus[0][:64]}'; it has: {', '.join(wanted)}", at)
    numbers = {name: _number(parts, name, at) for name in ("index", "source", "destination") if name in wanted}
    name = _text(parts, "name", at) if "name" in wanted else ""
    value = _given(_part(parts, "value", at), at) if "value" in wanted else None
    return Operation(at, type, _text(parts, "path", at), name, value, **numbers)


def _part(parts: Mapping[str, dict[str, Any]], name: str, at: str) -> dict[str, Any]:
    if name not in parts:
        raise Invalid(f"{at} needs the part '{name}'", at)
    return parts[name]


def _text(parts: Mapping[str, dict[str, Any]], name: str, at: str) -> str:
    part = _part(parts, name, at)
    text = part.get("valueCode", part.get("valueString"))
    if text is None:
        raise Invalid(f"{at}: the part '{name}' has a {'valueCode' if name == 'type' else 'valueString'}", at)
    return text


def _number(parts: Mapping[str, dict[str, Any]], name: str, at: str) -> int:
    part = _part(parts, name, at)
    number = next((part[one] for one in ("valueInteger", "valueUnsignedInt", "valuePositiveInt") if one in part), -1)
    if number < 0:
        raise Invalid(f"{at}: the part '{name}' has a valueInteger of 0 or more", at)
    return number


def _given(part: Mapping[str, Any], at: str) -> Given:
    if "resource" in part:
        return Given(part["resource"]["resourceType"], part["resource"])
    if "part" in part:
        return Given("", parts=part["part"])
    member = next((name.lstrip("_") for name in part if name.lstrip("_").startswith("value")), None)
    if member is None:
        raise Invalid(f"{at}: the part '{part['name'][:64]}' has no value", at)
    kind = member.removeprefix("value")
    primitive = kind[0].lower() + kind[1:]
    type = primitive if primitive in definitions().primitives else kind
    return Given(type, part.get(member), part.get(f"_{member}"))


# --- doing -------------------------------------------------------------------------------------------------------------------


def _add(tree: dict[str, Any], operation: Operation, effort: Effort) -> None:
    place = _one(parse_path(operation.path, tree["resourceType"]).places(tree, effort))
    holder = opened(place)
    _put(holder, place.inner_type, operation.name, operation.value)


def _put(holder: dict[str, Any], type: str, name: str, given: Given | None) -> None:
    """Add a value under a name: behind the others of a list, or where nothing is yet. Raises PathError."""
    assert given is not None
    member, child = _chosen(type, name, given)
    value, beside = _built(child, given)
    if child.element.max != 1:
        values, besides = lists(holder, member)
        write_lists(holder, member, [*values, value], [*besides, beside])
        return
    if any(one in holder or f"_{one}" in holder for one in named(type, name)):
        raise PathError(f"'{name}' is there already; replace changes it")
    write_one(holder, member, value, beside)


def _insert(tree: dict[str, Any], operation: Operation, effort: Effort) -> None:
    holder, member, child = _collection(tree, operation, operation.value, effort)
    assert operation.value is not None
    values, besides = lists(holder, member)
    if operation.index > len(values):
        raise PathError(f"the index is over the number of elements, which is {len(values)}")
    value, beside = _built(child, operation.value)
    values.insert(operation.index, value)
    besides.insert(operation.index, beside)
    write_lists(holder, member, values, besides)


def _move(tree: dict[str, Any], operation: Operation, effort: Effort) -> None:
    holder, member, _ = _collection(tree, operation, None, effort)
    values, besides = lists(holder, member)
    if max(operation.source, operation.destination) >= len(values):
        raise PathError(f"source and destination must be under the number of elements, which is {len(values)}")
    for listed in (values, besides):
        listed.insert(operation.destination, listed.pop(operation.source))
    write_lists(holder, member, values, besides)


def _replace(tree: dict[str, Any], operation: Operation, effort: Effort) -> None:
    place = _one(parse_path(operation.path, tree["resourceType"]).places(tree, effort))
    if place.parent is None:
        raise PathError("a resource as a whole is replaced by an update")
    assert operation.value is not None
    member, child = _chosen(place.parent.inner_type, place.name, operation.value)
    value, beside = _built(child, operation.value)
    if place.index is None:
        place.holder.pop(place.member, None)
        place.holder.pop(f"_{place.member}", None)
        write_one(place.holder, member, value, beside)
        return
    values, besides = lists(place.holder, member)
    values[place.index], besides[place.index] = value, beside
    write_lists(place.holder, member, values, besides)


def _delete(tree: dict[str, Any], operation: Operation, effort: Effort) -> None:
    places = parse_path(operation.path, tree["resourceType"]).places(tree, effort)
    if places:
        _take_out(_one(places))


def _take_out(place: Place) -> None:
    """Remove an element, and what then would be empty, which FHIR does not have."""
    if place.parent is None:
        raise PathError("a resource as a whole is deleted by a delete")
    if place.index is None:
        place.holder.pop(place.member, None)
        place.holder.pop(f"_{place.member}", None)
    else:
        values, besides = lists(place.holder, place.member)
        del values[place.index], besides[place.index]
        write_lists(place.holder, place.member, values, besides)
    if place.holder or place.parent.parent is None:
        return
    if place.parent.value is place.holder or place.parent.value is None:
        _take_out(place.parent)
    else:  # what belonged to a primitive, which stays
        write_beside(place.parent, None)


_DO = {"add": _add, "insert": _insert, "delete": _delete, "replace": _replace, "move": _move}


def _one(places: list[Place]) -> Place:
    if len(places) != 1:
        raise PathError(f"the path leads to {len(places) or 'no'} elements; it must lead to one")
    return places[0]


def _collection(
    tree: dict[str, Any], operation: Operation, given: Given | None, effort: Effort
) -> tuple[dict[str, Any], str, Child]:
    """The list that the path names: what holds it, its member and its definition."""
    places, name = parse_path(operation.path, tree["resourceType"]).collection(tree, effort)
    place = _one(places)
    if not inside(place, name):
        raise PathError("the path leads to no elements; add makes a list begin")
    member, child = _chosen(place.inner_type, name, given)
    if child.element.max == 1:
        raise PathError(f"'{name}' is no list")
    holder = place.inner
    assert holder is not None
    return holder, member, child


def _chosen(type: str, name: str, given: Given | None) -> tuple[str, Child]:
    """The JSON member for a value: of a choice the one of its type. Raises PathError for a type that does not belong there."""
    members = named(type, name)
    if not members:
        raise PathError(f"{type} has no element '{name[:64]}'")
    found = [(member, child) for member, child in members.items() if given is None or _fits(child, given, len(members) > 1)]
    if len(found) != 1:
        raise PathError(f"'{name}' takes a value of the type {' or '.join(sorted(child.type for child in members.values()))}")
    return found[0]


def _fits(child: Child, given: Given, choice: bool) -> bool:
    if given.parts:
        return not choice and not child.is_primitive
    if child.type == given.type or (child.type == "Resource" and isinstance(given.value, dict) and "resourceType" in given.value):
        return True
    return not choice and any(child.type in alike and given.type in alike for alike in _ALIKE)


def _built(child: Child, given: Given) -> tuple[Any, Any]:
    """The value, and what belongs to it besides; anonymous types are put together from their parts."""
    if not given.parts:
        return deepcopy(given.value), deepcopy(given.beside)  # a later operation may change them, and a patch may be done again
    made: dict[str, Any] = {}
    for part in given.parts:
        _put(made, child.type, part["name"], _given(part, "a part of the value"))
    return made, None
