"""CodeSystem, ValueSet and ConceptMap as artefacts with a canonical URL, and which of several versions is meant.

https://hl7.org/fhir/R4/references.html#canonical
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from fhircm.fhir.outcome import FhirError

Tree = dict[str, Any]

TYPES = ("CodeSystem", "ValueSet", "ConceptMap")
_NUMBERS = re.compile(r"(\d+)")


class CannotCompute(FhirError):
    """A code system or value set that is needed is not here, or says something that cannot be computed."""

    status, code = 422, "not-found"


class Canonical(NamedTuple):
    """A canonical URL; `version` None: the newest that is active."""

    url: str
    version: str | None = None

    def __str__(self) -> str:
        return self.url if self.version is None else f"{self.url}|{self.version}"


def canonical(text: str, version: str | None = None) -> Canonical:
    """Read `url|version`; a version that stands in the text comes before the other."""
    url, _, written = text.partition("|")
    return Canonical(url, written or version or None)


@dataclass(slots=True, eq=False)
class Artefact:
    """What the three have in common. `identity` tells this very content from every other."""

    identity: str
    tree: Tree
    url: str
    version: str | None
    status: str
    size: int = 0  # bytes of its body, where it has one

    @property
    def type(self) -> str:
        """Its resource type."""
        return str(self.tree["resourceType"])

    @property
    def canonical(self) -> str:
        """The URL with the version that it has."""
        return str(Canonical(self.url, self.version))


A = TypeVar("A", bound=Artefact)


def best(candidates: Iterable[A], version: str | None) -> A | None:
    """The one of the version, or of all the newest active one; without an active one the newest."""
    fitting = [one for one in candidates if version is None or one.version == version]
    return max(fitting, key=lambda one: (one.status == "active", one.status == "draft", _newness(one.version)), default=None)


def _newness(version: str | None) -> list[tuple[int, int, str]]:
    """Versions in order: numbers as numbers, so that 4.10 comes behind 4.9."""
    parts = _NUMBERS.split(version or "")
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts if part not in ("", ".")]
