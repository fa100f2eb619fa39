"""The artefacts that come with this server: those of profiles/ and mappings/, and HL7's own of R4 from a table.

https://hl7.org/fhir/R4/terminologies-systems.html. The table is opened when terminology is first asked; a line of it is read only when it
is needed, so that two thousand artefacts cost their bytes and no more.
"""

from __future__ import annotations

import gzip
import re
from functools import cache, lru_cache
from importlib.resources import files

from fhircm.fhir import json
from fhircm.fhir.artefacts import folder
from fhircm.fhir.terminology.artefacts import TYPES, Artefact, Tree
from fhircm.fhir.terminology.code_system import compiled

_HEAD = re.compile(rb'\{"resourceType":"(\w+)","url":"([^"]+)"(?:,"version":"([^"]*)")?')
_SYSTEMS = re.compile(rb'"(?:source|target)":"([^"]+)"')

Key = tuple[str, str]  # resource type and canonical URL


@cache
def _lines() -> dict[Key, bytes]:
    """HL7's artefacts, unread."""
    table = gzip.decompress((files("fhircm.fhir") / "tables" / "terminology.ndjson.gz").read_bytes())
    found = ((line, _HEAD.match(line)) for line in table.splitlines())
    return {(head[1].decode(), head[2].decode()): line for line, head in found if head}


@cache
def _own() -> dict[Key, Tree]:
    """The artefacts of profiles/ and mappings/."""
    places = [folder("profiles") / kind for kind in ("code-system", "value-set", "concept-map")] + [folder("mappings")]
    trees = [json.loads(file.read_bytes()) for place in places for file in sorted(place.rglob("*.json"))]
    artefacts = [tree for tree in trees if isinstance(tree, dict) and tree.get("resourceType") in TYPES and "url" in tree]
    return {(tree["resourceType"], tree["url"]): tree for tree in artefacts}


@lru_cache(maxsize=256)
def artefacts(type: str, url: str) -> tuple[Artefact, ...]:
    """The artefact of this URL that is built in, or none."""
    own = _own().get((type, url))
    line = json.dumps(own) if own is not None else _lines().get((type, url))
    if line is None:
        return ()
    tree = json.loads(line)
    return (compiled(tree, f"built-in {type} {url}|{tree.get('version')}"),)


@cache
def known_code_systems() -> list[tuple[str, str | None]]:
    """URL and version of every code system that is built in."""
    heads = {key: _HEAD.match(line) for key, line in _lines().items()}
    known = {key: head[3].decode() if head and head[3] else None for key, head in heads.items()}
    known |= {key: tree.get("version") for key, tree in _own().items()}
    return sorted((url, version) for (type, url), version in known.items() if type == "CodeSystem")


def concept_maps(system: str) -> list[Artefact]:
    """The concept maps that are built in and map from or to codes of this system."""
    return [one for url in _maps().get(system, ()) for one in artefacts("ConceptMap", url)]


@cache
def _maps() -> dict[str, list[str]]:
    """The URLs of concept maps by the code systems that they name."""
    by_system: dict[str, list[str]] = {}
    lines = {url: line for (type, url), line in _lines().items() if type == "ConceptMap"}
    lines |= {url: json.dumps(tree) for (type, url), tree in _own().items() if type == "ConceptMap"}
    for url, line in lines.items():
        for system in {found.decode() for found in _SYSTEMS.findall(line)}:
            by_system.setdefault(system, []).append(url)
    return by_system
