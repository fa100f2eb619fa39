"""The elements of a resource's tree as places that can be changed, a primitive along with what belongs to it.

https://hl7.org/fhir/R4/json.html#primitive: the id and the extensions of `birthDate` stand in `_birthDate`, those of a list in step with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhircm.fhir.outcome import Invalid
from fhircm.fhir.schema import Child, children


class PathError(Invalid):
    """A path cannot be read, or names an element that its type does not have."""


@dataclass(frozen=True, slots=True)
class Place:
    """An element: the object that holds it, under which member, which of a list; `type` as fhircm/fhir/schema.py names types."""

    parent: Place | None
    holder: dict[str, Any]
    member: str
    index: int | None
    type: str
    name: str  # in FHIRPath: `value` for the member valueQuantity

    @property
    def value(self) -> Any:
        """What stands there; None for a primitive without a value."""
        return self._of(self.member)

    @property
    def inner(self) -> dict[str, Any] | None:
        """The object that holds its children: the element itself, or what belongs to a primitive (id and extensions)."""
        value = self.value
        return value if isinstance(value, dict) else self._of(f"_{self.member}")

    @property
    def inner_type(self) -> str:
        """The type of `inner`."""
        return self.type if isinstance(self.value, dict) else "Element"

    def _of(self, member: str) -> Any:
        found = self.holder.get(member)
        if self.index is None or not isinstance(found, list):
            return found
        return found[self.index] if self.index < len(found) else None


@cache
def named(type: str, name: str) -> Mapping[str, Child]:
    """The JSON members that an element of this name can have: several for a choice of types."""
    return {
        member: child
        for member, child in children(type).items()
        if child.element.path.rpartition(".")[2].removesuffix("[x]") == name
    }


def inside(place: Place, name: str) -> list[Place]:
    """The children of this name. Raises PathError when the type has none such."""
    members = named(place.inner_type, name)
    if not members:
        raise PathError(f"{place.inner_type} has no element '{name[:64]}'")
    holder = place.inner
    found: list[Place] = []
    for member, child in members.items() if holder else ():
        assert holder is not None
        values = [value for key in (member, f"_{member}") if (value := holder.get(key)) is not None]
        if child.element.max == 1:
            found += [_place(place, holder, member, None, child, name)] if values else []
        else:
            count = max((len(value) for value in values if isinstance(value, list)), default=0)
            found += [_place(place, holder, member, index, child, name) for index in range(count)]
    return found


def _place(parent: Place, holder: dict[str, Any], member: str, index: int | None, child: Child, name: str) -> Place:
    place = Place(parent, holder, member, index, child.type, name)
    if child.type != "Resource":
        return place
    return Place(parent, holder, member, index, str(place.value["resourceType"]), name)


def opened(place: Place) -> dict[str, Any]:
    """The object that holds the children of an element; for a primitive it is made when there is none."""
    if place.inner is None:
        write_beside(place, {})
    holder = place.inner
    assert holder is not None
    return holder


def write_beside(place: Place, beside: dict[str, Any] | None) -> None:
    """Set what belongs to a primitive besides its value; None: nothing."""
    if place.index is None:
        write_one(place.holder, place.member, place.value, beside)
        return
    values, besides = lists(place.holder, place.member)
    besides[place.index] = beside
    write_lists(place.holder, place.member, values, besides)


def write_one(holder: dict[str, Any], member: str, value: Any, beside: Any) -> None:
    """Set an element that does not repeat."""
    for name, one in ((member, value), (f"_{member}", beside)):
        if one is None:
            holder.pop(name, None)
        else:
            holder[name] = one


def lists(holder: dict[str, Any], member: str) -> tuple[list[Any], list[Any]]:
    """The values of a list and what belongs to each, in step."""
    values, besides = list(holder.get(member) or ()), list(holder.get(f"_{member}") or ())
    count = max(len(values), len(besides))
    return values + [None] * (count - len(values)), besides + [None] * (count - len(besides))


def write_lists(holder: dict[str, Any], member: str, values: list[Any], besides: list[Any]) -> None:
    """Set a list; FHIR has none that is empty."""
    for name, listed in ((member, values), (f"_{member}", besides)):
        if any(one is not None for one in listed):
            holder[name] = listed
        else:
            holder.pop(name, None)
