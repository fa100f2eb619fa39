"""Vendor shapes: what follows from an EHR's vendor, as data that a partner.yaml lies over.

https://hl7.org/fhir/R4/capabilitystatement.html. A shape is a file shape/<name>.yaml, in the operator's own folder of mappings or among
those that fhircm ships; mappings/shape/r4.yaml explains every key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fhircm.exchange.yaml_keys import Keys, load
from fhircm.fhir.artefacts import folder as shipped_folder

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PARAMETER = re.compile(r"[a-z][a-z0-9\-]*")


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that a shape needs to know of each partner, such as its practice's number."""

    name: str
    means: str
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape. `keys` are those that partner.yaml has too, for one reading."""

    name: str
    path: Path
    software: tuple[str, ...]  # in small letters: parts of the names under which such an EHR presents itself
    parameters: tuple[Parameter, ...]
    base_url: str | None  # where every such EHR is, with parameters in braces
    keys: Keys


def shapes(root: Path | None = None) -> dict[str, Path]:
    """The files of all shapes, by name; those of the operator's folder of mappings go before the shipped ones."""
    places = [shipped_folder("mappings"), *([root] if root else [])]
    return {path.stem: path for place in places for path in sorted((place / "shape").glob("*.yaml"))}


def read(name: str, root: Path | None = None) -> Shape:
    """A shape, read anew. Raises KeyError for a name that there is not, and YamlWrong."""
    path = shapes(root)[name]
    keys = load(path)
    software = keys.take("software", list, "a list of parts of software names", [])
    for number, part in enumerate(software):
        if not isinstance(part, str) or not part or part != part.lower():
            keys.wrong(f"software[{number}]", "must be a text in small letters")
    section = keys.keys("parameters", "a mapping of names to what they mean", {})
    parameters = tuple(_parameter(section, name) for name in section.names)
    url = keys.tree.get("base_url")
    return Shape(name, path, tuple(software), parameters, url if isinstance(url, str) else None, keys)


def recognised(software: str, root: Path | None = None) -> list[str]:
    """The shapes of an EHR that presents itself under a name. Raises YamlWrong."""
    name = software.lower()
    return [one for one in shapes(root) if any(part in name for part in read(one, root).software)]


def _parameter(keys: Keys, name: str) -> Parameter:
    if not _PARAMETER.fullmatch(name):
        keys.wrong(name, "must be named in small letters, digits and hyphens")
    section = keys.keys(name, "means: what it is, and pattern: how it looks")
    means, written = section.text("means", "what it is"), section.text("pattern", "a regular expression", default=r"\S+")
    try:
        pattern = re.compile(written)
    except re.error:
        section.wrong("pattern", "must be a regular expression")
    section.done()
    return Parameter(name, means, pattern)
