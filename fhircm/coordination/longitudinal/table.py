"""The rule table: what counts as part of a plan, and who is right when two sources differ. mappings/longitudinal.yaml

https://hl7.org/fhir/R4/careplan.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.definitions import definitions

Tree = dict[str, Any]
RULES = frozenset({"author", "primary-care", "newest", "oldest", "strictest", "union", "human"})


class TableWrong(ValueError):
    """The table says something that cannot be followed."""


@dataclass(frozen=True, slots=True)
class Table:
    """The table, read."""

    rules: Mapping[str, Mapping[str, tuple[str, ...]]]  # resource type: element: rules in their order
    asserted: Mapping[str, tuple[str, ...]]
    author: Mapping[str, tuple[str, ...]]
    current: Mapping[
        str, tuple[str, frozenset[str]]
    ]  # resource type: the element that holds its state, the states that are current
    problems: frozenset[str]
    not_an_activity: frozenset[str]
    priorities: tuple[str, ...]


def read(tree: Mapping[str, Any]) -> Table:
    """A table from its YAML. Raises TableWrong, naming the place."""
    rules = {type: {name: tuple(chain) for name, chain in of.items()} for type, of in tree["rules"].items()}
    for type, of in rules.items():
        if type not in definitions().resource_types:
            raise TableWrong(f"rules.{type}: no resource type of FHIR R4")
        for name, chain in of.items():
            if unknown := [one for one in chain if one not in RULES]:
                raise TableWrong(f"rules.{type}.{name}: '{unknown[0]}' is none of: {', '.join(sorted(RULES))}")
            if not chain or "human" in chain[:-1] or ("union" in chain and len(chain) > 1):
                raise TableWrong(f"rules.{type}.{name}: 'human' comes last, and 'union' stands alone")
    return Table(
        rules,
        {type: tuple(names) for type, names in tree["asserted"].items()},
        {type: tuple(names) for type, names in tree["author"].items()},
        {type: (one["element"], frozenset(one["states"])) for type, one in tree["current"].items()},
        frozenset(tree["problems"]),
        frozenset(tree["not_an_activity"]),
        tuple(tree["priorities"]),
    )


@cache
def table() -> Table:
    """The table of this installation."""
    return read(read_yaml(folder("mappings") / "longitudinal.yaml"))
