"""What a computation may look at: artefacts of the store that were gathered for it, and those that are built in.

https://hl7.org/fhir/R4/terminology-service.html#resources
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fhircm.fhir.terminology import builtin
from fhircm.fhir.terminology.artefacts import Artefact, CannotCompute, Canonical, Tree, best, canonical
from fhircm.fhir.terminology.code_system import CodeSystem


class Wanted(NamedTuple):
    """An artefact that a computation needs, whatever its version."""

    type: str
    url: str


@dataclass(frozen=True, slots=True)
class Versions:
    """Which version of a code system counts, by its URL: `default` where the value set says none, `force` always, `check` refuses others."""

    default: Mapping[str, str] = field(default_factory=dict)
    check: Mapping[str, str] = field(default_factory=dict)
    force: Mapping[str, str] = field(default_factory=dict)

    def of(self, system: str, written: str | None) -> str | None:
        """The version to use of a code system. Raises CannotCompute when the check forbids it."""
        chosen = self.force.get(system) or written or self.default.get(system)
        demanded = self.check.get(system)
        if demanded is not None and chosen not in (None, demanded):
            raise CannotCompute("A code system is used in another version than check-system-version allows")
        return chosen or demanded


@dataclass(slots=True)
class Library:
    """Artefacts by type and URL. Those of the store come before those that are built in."""

    stored: Mapping[Wanted, Sequence[Artefact]] = field(default_factory=dict)

    @property
    def identity(self) -> frozenset[str]:
        """Tells this library from every other: what is built in never changes."""
        return frozenset(one.identity for listed in self.stored.values() for one in listed)

    def code_system(self, url: str, version: str | None = None) -> CodeSystem | None:
        """The code system, or None. One of the store that has no codes does not stand before one that is built in and has them."""
        for listed in self._sources("CodeSystem", url):
            systems = [one for one in listed if isinstance(one, CodeSystem) and one.concepts]
            if found := best(systems, version):
                return found
        found = self.find("CodeSystem", Canonical(url, version))
        return found if isinstance(found, CodeSystem) else None

    def find(self, type: str, wanted: Canonical) -> Artefact | None:
        """The artefact of a type, or None."""
        return next((one for listed in self._sources(type, wanted.url) if (one := best(listed, wanted.version))), None)

    def _sources(self, type: str, url: str) -> tuple[Sequence[Artefact], ...]:
        return self.stored.get(Wanted(type, url), ()), builtin.artefacts(type, url)


def needs(value_set: Tree) -> Iterator[Wanted]:
    """What a value set is made of: code systems and other value sets."""
    compose = value_set.get("compose", {})
    for part in (*compose.get("include", ()), *compose.get("exclude", ())):
        if "system" in part:
            yield from (Wanted("CodeSystem", url) for url in {part["system"], canonical(part["system"]).url})
        for url in part.get("valueSet", ()):
            yield Wanted("ValueSet", canonical(url).url)
