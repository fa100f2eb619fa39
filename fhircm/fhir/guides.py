"""The implementation guides in force beside R4 itself, known to the whole process.

https://hl7.org/fhir/R4/implementationguide.html. The store says which they are (store/guides.py); what reads search parameters and
profiles asks here. Nothing here changes but as a whole, so a reader sees one state of affairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fhircm.fhir.definitions import SearchParameter, definitions

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Artefact:
    """A definition of a guide as it is stored: `body` are its bytes, `constrains` the type that a profile is for."""

    type: str
    url: str
    version: str
    body: bytes = field(repr=False, default=b"")
    constrains: str = ""


@dataclass(frozen=True)
class Guide:
    """An implementation guide in one of its versions; `loaded` tells one loading of it from the next."""

    name: str
    version: str
    artefacts: tuple[Artefact, ...] = ()
    parameters: tuple[SearchParameter, ...] = ()
    loaded: str = ""

    @property
    def key(self) -> str:
        """How a guide in one version is named: `hl7.fhir.us.core#7.0.0`."""
        return f"{self.name}#{self.version}"


@dataclass(frozen=True, eq=False)
class InForce:
    """Everything that is in force beside R4. `generation` is new with every change.

    `indexed` tells by which definition all stored resources have been indexed (`Patient.race`: its digest). A parameter
    that is not there is written for every resource, and answers nothing yet.
    """

    generation: str = ""
    guides: tuple[Guide, ...] = ()
    indexed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def newest(self) -> tuple[Guide, ...]:
        """Of each guide its newest version, in order of their names; older ones give profiles that are claimed by version only."""
        by_name: dict[str, Guide] = {}
        for guide in sorted(self.guides, key=lambda one: (one.name, precedence(one.version))):
            by_name[guide.name] = guide
        return tuple(by_name.values())

    @cached_property
    def parameters(self) -> Mapping[str, Mapping[str, SearchParameter]]:
        """The search parameters of the guides by type and code; R4's own and the first guide's stay where two have the same code."""
        by_type: dict[str, dict[str, SearchParameter]] = {type: {} for type in definitions().resource_types}
        for parameter in (one for guide in self.newest for one in guide.parameters):
            for type in types_of(parameter):
                if parameter.code not in definitions().search_parameters[type]:
                    by_type[type].setdefault(parameter.code, parameter)
        return by_type

    @cached_property
    def artefacts(self) -> Mapping[str, Artefact]:
        """Every definition by `url|version`, and by its URL alone the one of the newest guide."""
        found = {f"{one.url}|{one.version}": one for guide in self.guides for one in guide.artefacts}
        return found | {one.url: one for guide in reversed(self.newest) for one in guide.artefacts}

    def is_indexed(self, type: str, parameter: SearchParameter) -> bool:
        """Whether every stored resource can be found by this parameter of a guide."""
        return self.indexed.get(f"{type}.{parameter.code}") == digest(parameter)


_in_force = InForce()


def in_force() -> InForce:
    """What is in force in this process now."""
    return _in_force


def put_in_force(what: InForce) -> None:
    """Make this what is in force, from now on."""
    global _in_force
    _in_force = what


def types_of(parameter: SearchParameter) -> frozenset[str]:
    """The resource types that a search parameter is for."""
    types = definitions().resource_types
    return types if set(parameter.base) & {"Resource", "DomainResource"} else types.intersection(parameter.base)


def digest(parameter: SearchParameter) -> str:
    """What tells two definitions of a search parameter apart, as far as they find other things."""
    meaning = f"{parameter.type} {parameter.expression} {sorted(parameter.components)}"
    return hashlib.sha256(meaning.encode()).hexdigest()[:16]


def search_parameter(tree: Tree) -> SearchParameter:
    """A SearchParameter resource as a definition."""
    components = tuple((one["definition"], one["expression"]) for one in tree.get("component", ()))
    bases, targets = tuple(tree["base"]), tuple(tree.get("target", ()))
    return SearchParameter(tree["code"], tree["type"], tree.get("expression"), bases, targets, tree["url"], components)


def precedence(version: str) -> Sequence[tuple[int, int | str]]:
    """A key that sorts versions as https://semver.org does: a pre-release stands before its release."""
    release, _, pre = version.partition("+")[0].partition("-")
    return (*_parts(release), (-1, 0), *_parts(pre)) if pre else (*_parts(release), (0, 0))


def _parts(text: str) -> Iterable[tuple[int, int | str]]:
    return [(1, int(part)) if part.isascii() and part.isdigit() else (2, part) for part in text.split(".")]
