"""Translate codes by the ConceptMaps of a map: those of the partner, those that all share, and those that HL7 gives with R4.

https://hl7.org/fhir/R4/conceptmap.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fhircm.fhir.outcome import FhirError
from fhircm.fhir.terminology import builtin
from fhircm.fhir.terminology.artefacts import Artefact
from fhircm.fhir.terminology.translation import Question, translate
from fhircm.fhir.validation import check

EQUIVALENCES = ("equal", "equivalent", "relatedto", "wider", "subsumes", "narrower", "specializes", "inexact")
Code = tuple[str, str]  # system, code


class ConceptMapWrong(Exception):
    """A ConceptMap cannot be used; the message names the file and the place."""


class Translation(NamedTuple):
    """What a code is elsewhere."""

    coding: dict[str, Any]
    source: str  # the map that says so


def load_concept_maps(folders: Iterable[Path]) -> dict[str, Artefact]:
    """The ConceptMaps of `concept-map/` in these folders, by URL; of two with one URL the later counts. Raises ConceptMapWrong."""
    found: dict[str, Artefact] = {}
    for folder in folders:
        for path in sorted((folder / "concept-map").glob("*.json")):
            try:
                tree = check(path.read_bytes(), "ConceptMap").tree
            except FhirError as error:
                place = error.issues[0].expression or "the file"
                raise ConceptMapWrong(f"{path}: {place} is wrong: {error}; mend it as a ConceptMap of R4") from None
            if "url" not in tree or not tree.get("group"):
                raise ConceptMapWrong(f"{path}: give it a url, by which rules name it, and at least one group")
            found[tree["url"]] = Artefact(str(path), tree, tree["url"], tree.get("version"), tree["status"])
    return found


class Translator:
    """Translates between the two sides of one map, or of all maps that lead to a system."""

    def __init__(
        self, maps: Collection[Artefact], others: dict[str, Artefact], accepted: Collection[str], target: str | None
    ) -> None:
        self._maps, self._others, self._accepted, self._target = list(maps), others, frozenset(accepted), target
        groups = [group for one in maps for group in one.tree["group"] if target is None or group.get("target") == target]
        self.sources = frozenset(group["source"] for group in groups if "source" in group)
        self.targets = frozenset(group["target"] for group in groups if "target" in group)
        self._known: dict[tuple[Code, bool], Translation | None] = {}

    def there(self, code: Code) -> Translation | None:
        """What a local code is in the standard system; None when no map has a match that is accepted."""
        return self._translated(code, reverse=False)

    def back(self, code: Code) -> Translation | None:
        """What a standard code is in the local system."""
        return self._translated(code, reverse=True)

    def _translated(self, code: Code, *, reverse: bool) -> Translation | None:
        if (code, reverse) not in self._known:
            question = Question(code[1], code[0], target_system=None if reverse else self._target, reverse=reverse)
            matches = translate(self._maps, question, self._by_url)
            fitting = [
                one for one in matches if one.equivalence in self._accepted and "code" in one.coding and "system" in one.coding
            ]
            best = min(fitting, key=lambda one: EQUIVALENCES.index(one.equivalence), default=None)
            if len(self._known) > 50_000:
                self._known.clear()
            self._known[code, reverse] = Translation(dict(best.coding), best.source) if best else None
        return self._known[code, reverse]

    def _by_url(self, url: str) -> Artefact | None:
        return self._others.get(url.partition("|")[0]) or next(iter(builtin.artefacts("ConceptMap", url.partition("|")[0])), None)


def translator(maps: dict[str, Artefact], url: str | None, target: str | None, accepted: Collection[str]) -> Translator | None:
    """By the map of this URL, else by all that lead to the system; None when there is none."""
    if url is not None:
        found = [one] if (one := maps.get(url)) else list(builtin.artefacts("ConceptMap", url))
    else:
        found = [one for one in maps.values() if any(group.get("target") == target for group in one.tree["group"])]
    return Translator(found, maps, accepted, target) if found else None
