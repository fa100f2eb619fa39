"""Link the labelled set as the hub does, without a database, and count what came of it."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from benchmarks.identity_population import Record
from fhircm.exchange.candidates import blocks
from fhircm.exchange.features import features
from fhircm.exchange.linkage import Linkage, Pair, ordered


@dataclass
class Linked:
    """What linking made of a set of records."""

    records: Mapping[str, Record]
    true: set[Pair]  # of one human, at two partners
    found: set[Pair]  # that were compared
    linked: set[Pair]
    asked: set[Pair]
    linkage: Linkage = field(default_factory=Linkage)

    def right(self, pair: Pair) -> bool:
        """Whether both are of one human."""
        return self.records[pair[0]].human == self.records[pair[1]].human

    def figures(self) -> dict[str, Any]:
        """Precision and recall of automatic links, and what is left to humans."""
        wrong = sum(not self.right(pair) for pair in self.linked)
        worth = sum(self.right(pair) for pair in self.asked)
        return {
            "records": len(self.records),
            "true pairs": len(self.true),
            "compared pairs": len(self.found),
            "found by blocking": round(len(self.true & self.found) / len(self.true), 4),
            "linked": len(self.linked),
            "wrong": wrong,
            "precision": round(1 - wrong / max(1, len(self.linked)), 5),
            "recall": round(len(self.true & self.linked) / len(self.true), 4),
            "asked": len(self.asked),
            "asked per 1000 records": round(1000 * len(self.asked) / len(self.records), 1),
            "asked that are the same": round(worth / max(1, len(self.asked)), 3),
            "recall with the answers": round(len(self.true & (self.linked | self.asked)) / len(self.true), 4),
        }

    def kinds(self) -> dict[str, dict[str, Any]]:
        """The same for the pairs of which one record has a trait or an error, and the wrong links among them."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for name, pairs in (
            ("pairs", self.true),
            ("linked", self.linked & self.true),
            ("asked", self.asked & self.true),
            ("wrong", self.linked - self.true),
        ):
            for a, b in pairs:
                for kind in self.records[a].kinds | self.records[b].kinds or {"none"}:
                    counts[kind][name] += 1
        return {
            kind: {
                "pairs": count["pairs"],
                "recall": round(count["linked"] / max(1, count["pairs"]), 4),
                "asked": round(count["asked"] / max(1, count["pairs"]), 4),
                "wrong links": count["wrong"],
            }
            for kind, count in sorted(counts.items())
        }


def link(records: Iterable[Record]) -> Linked:
    """Compare what one of the searches would find, link what is sure, and list what would be asked."""
    of = {record.tree["id"]: record for record in records}
    linkage = Linkage(
        {id: features(record.tree) for id, record in of.items()},
        {id: record.tree["meta"]["source"].rpartition("/Patient/")[0] for id, record in of.items()},
    )
    found = _candidates(of, linkage)
    for pair in found:
        match = linkage.judge(*pair)
        if match.decision != "distinct":
            linkage.matches[pair] = match
    linked: set[Pair] = set()
    for component in _components(linkage.matches):
        part = Linkage(linkage.folded, linkage.sources, {pair: linkage.matches[pair] for pair in component})
        for group in part.groups(sorted({id for pair in component for id in pair})):
            linked |= set(combinations(group, 2))
    return Linked(of, _true(of), found, linked, set(linkage.matches) - linked, linkage)


def _true(of: Mapping[str, Record]) -> set[Pair]:
    humans = defaultdict(list)
    for id, record in of.items():
        humans[record.human].append(id)
    return {ordered(a, b) for ids in humans.values() for a, b in combinations(ids, 2) if of[a].partner != of[b].partner}


def _candidates(of: Mapping[str, Record], linkage: Linkage) -> set[Pair]:
    index = defaultdict(list)
    for id, record in of.items():
        for block in blocks(record.tree, linkage.folded[id]):
            index[tuple((name, _folded(value)) for name, value in block)].append(id)
    return {
        ordered(a, b)
        for ids in index.values()
        for a, b in combinations(dict.fromkeys(ids), 2)
        if linkage.sources[a] != linkage.sources[b]
    }


def _folded(value: str) -> str:
    """As the search of strings compares."""
    return "".join(c for c in unicodedata.normalize("NFKD", value.casefold()) if not unicodedata.combining(c))


def _components(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """The pairs that hang together, directly or through others."""
    root: dict[str, str] = {}

    def find(id: str) -> str:
        while root.setdefault(id, id) != id:
            root[id] = id = root[root[id]]
        return id

    pairs = list(pairs)
    for a, b in pairs:
        root[find(a)] = find(b)
    parts: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        parts[find(pair[0])].append(pair)
    return list(parts.values())
