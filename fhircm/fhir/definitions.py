"""What R4 defines: types, elements, search parameters and compartments, from HL7's own tables.

https://hl7.org/fhir/R4/structuredefinition.html. `scripts/definitions` makes the tables; nothing lists a resource type by hand.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple
from zlib import crc32


class ElementType(NamedTuple):
    """A type that an element may have; for a Reference, the resource types it may refer to (none: any)."""

    code: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a resource or data type; `max` None is `*`, `codes` those of a required binding that can be listed."""

    path: str
    min: int
    max: int | None
    types: tuple[ElementType, ...]
    codes: frozenset[str] | None
    content_reference: str | None


@dataclass(frozen=True, slots=True)
class SearchParameter:
    """A search parameter with its official FHIRPath expression; `components` are those of a composite."""

    code: str
    type: str
    expression: str | None
    base: tuple[str, ...]
    targets: tuple[str, ...]
    url: str
    components: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Definitions:
    """Everything that R4 defines and this server needs."""

    resource_types: frozenset[str]
    elements: Mapping[str, Element]
    primitives: Mapping[str, str | None]  # name: regular expression of its value
    search_parameters: Mapping[str, Mapping[str, SearchParameter]]
    compartments: Mapping[str, Mapping[str, tuple[str, ...]]]
    summary: frozenset[str]  # paths of elements that belong to a summary
    modifiers: frozenset[str]  # paths of elements that change what the others mean


@cache
def definitions() -> Definitions:
    """The definitions, read once in a process."""
    tables = json.loads(gzip.decompress((files("fhircm.fhir") / "tables" / "r4.json.gz").read_bytes()))
    types = frozenset(tables["resource_types"])
    return Definitions(
        resource_types=types,
        elements={path: _element(path, row) for path, row in tables["elements"].items()},
        primitives=tables["primitives"],
        search_parameters=_search_parameters(tables["search_parameters"], types),
        compartments={
            name: {type: tuple(codes) for type, codes in linked.items()} for name, linked in tables["compartments"].items()
        },
        summary=frozenset(tables["summary"]),
        modifiers=frozenset(tables["modifiers"]),
    )


def param_key(type: str, code: str) -> int:
    """The number under which the store keeps the values of a search parameter of a type: stable, 32 bits, signed."""
    unsigned = crc32(f"{type}.{code}".encode())
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned


def _element(path: str, row: list[Any]) -> Element:
    least, most, kinds, codes, content = row
    types = tuple(ElementType(code, tuple(targets)) for code, *targets in kinds)
    return Element(path, least, most, types, None if codes is None else frozenset(codes), content)


def _search_parameters(rows: list[list[Any]], types: frozenset[str]) -> dict[str, dict[str, SearchParameter]]:
    by_type: dict[str, dict[str, SearchParameter]] = {type: {} for type in sorted(types)}
    for code, kind, expression, base, targets, url, components in rows:
        parameter = SearchParameter(code, kind, expression, tuple(base), tuple(targets), url, tuple(map(tuple, components)))
        for type in types if set(base) & {"Resource", "DomainResource"} else base:
            by_type[type][code] = parameter
    return by_type
