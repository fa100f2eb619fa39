"""A part of a resource, as a caller asks for it: _summary and _elements.

https://hl7.org/fhir/R4/search.html#summary and #elements. What is left out is told by the tag SUBSETTED.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.definitions import definitions
from fhircm.fhir.schema import children

NAMES = frozenset({"_summary", "_elements"})
_TAG = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
_ALWAYS = frozenset({"resourceType", "id", "meta"})
_MODES = ("true", "text", "data", "count", "false")


@dataclass(frozen=True, slots=True)
class Subset:
    """What is asked for: a summary (true, text or data), or elements of the first level."""

    mode: str = ""
    elements: frozenset[str] = frozenset()

    def of(self, body: bytes) -> bytes:
        """The part of a stored resource. Raises InvalidValue for an element that its type does not have."""
        tree = json.loads(body)
        type = str(tree["resourceType"])
        if self.mode == "true":
            kept = _summarised(tree, type)
        elif self.mode == "data":
            kept = {name: value for name, value in tree.items() if name != "text"}
        else:
            kept = {name: value for name, value in tree.items() if name.lstrip("_") in _ALWAYS | self._wanted(type)}
        meta = kept.get("meta", {})
        return json.dumps({**kept, "meta": {**meta, "tag": [*meta.get("tag", []), _TAG]}})

    def _wanted(self, type: str) -> frozenset[str]:
        if self.mode == "text":
            return _mandatory(type) | {"text"}
        unknown = sorted(self.elements - children(type).keys())
        if unknown:
            raise InvalidValue(f"{type} has no element '{unknown[0][:64]}', which '_elements' names")
        return self.elements | _mandatory(type)


def read_subset(parameters: Iterable[tuple[str, str]]) -> Subset | None:
    """What the parameters of a request ask for; None for whole resources. Raises InvalidValue."""
    given: Mapping[str, str] = {name: value for name, value in parameters if name in NAMES}
    mode = given.get("_summary", "false")
    if mode not in _MODES:
        raise InvalidValue(f"'_summary' takes one of: {', '.join(_MODES)}")
    if "_elements" in given:
        if mode in ("true", "text", "data"):
            raise InvalidValue("'_summary' and '_elements' cannot be asked for together")
        named = frozenset(name.strip().rpartition(".")[2] for name in given["_elements"].split(","))
        if "" in named:
            raise InvalidValue("'_elements' takes names of elements, separated by commas")
        return Subset(elements=named)
    return Subset(mode) if mode in ("true", "text", "data") else None


@cache
def _mandatory(type: str) -> frozenset[str]:
    """The elements that a resource must have, and those that change the meaning of others."""
    known = definitions()
    return frozenset(name for name, child in children(type).items() if child.element.min or child.element.path in known.modifiers)


def _summarised(tree: dict[str, Any], path: str) -> dict[str, Any]:
    """The elements that HL7 marks as summary, down into the elements that a resource defines itself."""
    marked = definitions().summary
    kept: dict[str, Any] = {}
    known = children(path)
    for name, value in tree.items():
        child = known.get(name.lstrip("_"))
        if name in _ALWAYS:
            kept[name] = value
        elif child is not None and child.element.path in marked:
            kept[name] = _inner(value, child.type) if "." in child.type else value
    return kept


def _inner(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_inner(one, path) for one in value]
    return _summarised(value, path) if isinstance(value, dict) else value
