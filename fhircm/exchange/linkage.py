"""Who is who among some records, once every pair is judged: groups of records, each of one human. Pure, and the same in every order.

https://hl7.org/fhir/R4/person.html. A link is made only when it is the one possible: each of the two matches exactly one record of the
other's partner; and no two of a group contradict each other. What a human said goes before all of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from fhircm.exchange.features import Features
from fhircm.exchange.matching import Match, Thresholds, compare

Pair = tuple[str, str]  # two Patient ids, the smaller first


def ordered(a: str, b: str) -> Pair:
    """The pair of two ids, whichever was named first."""
    return (a, b) if a < b else (b, a)


@dataclass
class Linkage:
    """Records, by id, and what is known of their pairs."""

    folded: dict[str, Features] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # the base URL of the partner, "" for none
    matches: dict[Pair, Match] = field(default_factory=dict)  # of those that are not distinct, or that a human decided
    decisions: dict[Pair, str] = field(default_factory=dict)  # what a human said: same or different
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)  # by base URL, of partners with thresholds of their own

    def judge(self, a: str, b: str) -> Match:
        """The verdict on two records, by the stricter of their partners' thresholds."""
        own = [self.thresholds[source] for id in (a, b) if (source := self.sources[id]) in self.thresholds]
        return compare(self.folded[a], self.folded[b], own)

    def linkable(self, a: str, b: str) -> bool:
        """Whether this pair may be linked if nothing else stands in the way."""
        pair = ordered(a, b)
        if pair not in self.matches or self.sources[a] == self.sources[b]:
            return False
        said = self.decisions.get(pair)
        return said == "same" or (said is None and self.matches[pair].decision == "link")

    def sure(self, a: str, b: str) -> bool:
        """Whether the pair is linkable and neither has another choice at the other's partner; a human's word ends the choice."""
        return self.linkable(a, b) and self._choices(a, b) == {b} and self._choices(b, a) == {a}

    def _choices(self, of: str, like: str) -> set[str]:
        """With whom `of` could be linked at the partner of `like`."""
        rivals = {other for other in self._others(of) if self.sources[other] == self.sources[like] and self.linkable(of, other)}
        said = {other for other in rivals if self.decisions.get(ordered(of, other)) == "same"}
        return said or rivals

    def _others(self, of: str) -> Iterator[str]:
        return (other for pair in self.matches if of in pair for other in pair if other != of)

    def groups(self, among: Iterable[str]) -> list[list[str]]:
        """The humans: records joined by sure links. Who contradicts another of the group is left out of it, and so is that other."""
        present = {id for id in among if id in self.folded}
        joined = self._joined(present)
        quarrelling = {id for group in joined for pair in combinations(group, 2) if self._apart(*pair) for id in pair}
        return self._joined(present - quarrelling) if quarrelling else joined

    def _joined(self, present: set[str]) -> list[list[str]]:
        joined = {id: {id} for id in present}
        for a, b in self.matches:
            if a in joined and b in joined and joined[a] is not joined[b] and self.sure(a, b):
                joined[a] |= joined[b]
                for member in joined[b]:
                    joined[member] = joined[a]
        distinct = {id(group): group for group in joined.values()}
        return sorted(sorted(group) for group in distinct.values() if len(group) > 1)

    def _apart(self, a: str, b: str) -> bool:
        """Whether two cannot be one human, although both are linked to others of a group: of one partner, or in contradiction."""
        pair = ordered(a, b)
        if self.sources[a] == self.sources[b] or self.decisions.get(pair) == "different":
            return True
        return pair not in self.decisions and (self.matches.get(pair) or self.judge(a, b)).contradicts
