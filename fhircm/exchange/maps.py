"""The map of a partner: what becomes of its resources on the way in, and of the hub's on the way out.

Rules stand in inbound.yaml, outbound.yaml and both.yaml of the partner's folder, after those of the folders that it builds on; ConceptMaps
in concept-map/. https://hl7.org/fhir/R4/fhirpatch.html and https://hl7.org/fhir/R4/conceptmap.html. A resource that no rule is for is not
even parsed, and the bytes that no rule touches stay as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import msgspec

from fhircm.exchange.concept_maps import ConceptMapWrong, load_concept_maps
from fhircm.exchange.map_files import EVERY, Written, read_rules
from fhircm.exchange.map_rules import MappingFailed, Notes, Rule, Tree, done
from fhircm.exchange.pages import Received
from fhircm.exchange.yaml_keys import YamlWrong
from fhircm.fhir import json
from fhircm.fhir.definitions import definitions

FILES = ("both.yaml", "inbound.yaml", "outbound.yaml")
Told = Callable[[Rule, bool, Tree], None]  # after each rule: whether its condition held, and the resource as it is then


class MapWrong(Exception):
    """A map cannot be used; the message names the file, the key and how to mend it."""


@dataclass(frozen=True, slots=True)
class Maps:
    """The rules of one partner, by resource type and direction, in the order in which they are done."""

    inward: dict[str, tuple[Rule, ...]] = field(default_factory=dict)
    outward: dict[str, tuple[Rule, ...]] = field(default_factory=dict)
    fingerprint: str = ""  # of all the files; "" without a rule for the way in

    def inbound(self, received: Received, notes: Notes, told: Told | None = None) -> Received:
        """A resource of the partner's as its map has it; the very same when no rule has to do with it.

        Raises MappingFailed. What is no JSON goes through, to be refused with its reason by who reads it.
        """
        rules = self.inward.get(received.type or "", ())
        if not told:
            # Up to the first that may have something to do; what it writes, those behind it may be for.
            first = next((number for number, one in enumerate(rules) if one.touches(received.body)), len(rules))
            rules = rules[first:]
        if not rules:
            return received
        try:
            tree = json.loads(received.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return received
        if not isinstance(tree, dict):
            return received
        self._do(rules, tree, notes, told)
        return replace(received, body=json.amended(received.body, tree))

    def outbound(self, tree: Tree, notes: Notes, told: Told | None = None) -> Tree:
        """A resource as the partner wants it; a copy when a rule is for it. Raises MappingFailed."""
        rules = self.outward.get(str(tree.get("resourceType")), ())
        if not rules:
            return tree
        copy: Tree = json.loads(json.dumps(tree))
        self._do(rules, copy, notes, told)
        return copy

    def _do(self, rules: Sequence[Rule], tree: Tree, notes: Notes, told: Told | None) -> None:
        type, id = tree.get("resourceType"), tree.get("id")
        for rule in rules:
            held = done(rule, tree, notes)
            if told:
                told(rule, held, tree)
            if (tree.get("resourceType"), tree.get("id")) != (type, id):
                raise MappingFailed(f"{rule.at}: a rule may not change resourceType or id", str(type))


NONE = Maps()


def load_maps(folders: Sequence[Path]) -> Maps:
    """The map of a chain of folders, the general first; the folder above them has what all share. Raises MapWrong."""
    return _loaded(tuple(folders), _state(folders))


@lru_cache(maxsize=64)
def _loaded(folders: tuple[Path, ...], state: tuple[tuple[str, int, int], ...]) -> Maps:
    try:
        terms = load_concept_maps([*dict.fromkeys(_shared(one) for one in folders), *folders])
        written = {one: [read_rules(folder / one, terms) for folder in folders] for one in FILES}
    except (YamlWrong, ConceptMapWrong) as error:
        raise MapWrong(str(error)) from None
    inward = [
        pair for both, inbound in zip(written["both.yaml"], written["inbound.yaml"], strict=True) for pair in (*both, *inbound)
    ]
    outward: list[Written] = []
    for both, outbound in zip(reversed(written["both.yaml"]), reversed(written["outbound.yaml"]), strict=True):
        turned = [Written(one.type, back) for one in reversed(both) if (back := one.rule.turned()) is not None]
        outward += [*outbound, *turned]
    contents = [Path(name).read_bytes() for name, _, _ in state if not name.endswith("outbound.yaml")]
    return Maps(_by_type(inward), _by_type(outward), sha256(b"\0".join(contents)).hexdigest()[:16] if inward else "")


def _shared(folder: Path) -> Path:
    """`mappings/` itself, for a partner's folder and for a shape's."""
    return folder.parent.parent if folder.parent.name == "shape" else folder.parent


def _state(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """The files of a map, by which it is seen when one of them changed."""
    stats = ((str(path), path.stat()) for path in _files(folders))
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (path for name in FILES if (path := folder / name).exists())
    for folder in dict.fromkeys([*(_shared(one) for one in folders), *folders]):
        yield from sorted((folder / "concept-map").glob("*.json"))


def _by_type(written: Sequence[Written]) -> dict[str, tuple[Rule, ...]]:
    types = definitions().resource_types if any(one.type == EVERY for one in written) else {one.type for one in written}
    return {type: tuple(one.rule for one in written if one.type in (type, EVERY)) for type in sorted(types)}
