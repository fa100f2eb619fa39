"""What a change at the hub means for a partner, and in which ways that partner may be told.

Occasions are described in mappings/occasions.yaml, and each partner.yaml lists under `deliver` the occasions it is told of and, for
each thing wanted, the ways to do it, best first; `default` stands for the ladder that the occasion itself has. An occasion is there when
a version of a resource fulfils its conditions and the version before did not, or, when it is of `every` change, was another: every
version is looked at once, so nothing is told twice and nothing is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.coded import codes

NOBODY = "none"  # as the last way: nothing is sent, and no human is told
PORTAL = "portal-task"  # a human enters it in the partner's own system
DEFAULT = "default"  # in place of a list: the ladder of the occasion
WAYS = (
    "order-status",
    "referral-task",
    "referral-order",
    "letter",
    "referral-document",
    "forward-output",
    "message",
    "native-update",
    "native-patch",
    "native-create",
    "care-plan-document",
    "care-plan-page",
    PORTAL,
    NOBODY,
)

Condition = Mapping[str, Sequence[str]]  # element: codes
Deliver = Mapping[str, Sequence[Sequence[str]]]  # occasion: for each thing wanted its ways


@dataclass(frozen=True, slots=True)
class Occasion:
    """One thing that a change can mean; mappings/occasions.yaml explains the members."""

    name: str
    resource: str
    to: str
    when: Condition
    title: str
    text: tuple[str, ...]
    note: dict[str, str]
    not_from: Condition = field(default_factory=dict)
    still: Condition = field(default_factory=dict)
    after: str | None = None
    order_not: tuple[str, ...] = ()
    repeats: bool = False
    order: str | None = None
    ladder: tuple[tuple[str, ...], ...] = ()
    every: bool = False
    settle: float = 0.0  # seconds
    refers: bool = False

    def key(self, type: str, id: str, version: int) -> str:
        """What identifies this occasion of a resource for ever, whichever version made it known."""
        return f"{type}/{id}/{self.name}" + (f".{version}" if self.repeats or self.every else "")


@cache
def occasions() -> dict[str, Occasion]:
    """The occasions that fhircm knows, by name."""
    written = read_yaml(folder("mappings") / "occasions.yaml")
    known: dict[str, Occasion] = {}
    for name, members in written.items():
        members = {key.replace("-", "_"): tuple(value) if isinstance(value, list) else value for key, value in members.items()}
        members["ladder"] = tuple(tuple(ways) for ways in members.get("ladder", ()))
        known[name] = Occasion(name, **members)
    return known


def check_deliver(deliver: Any) -> Deliver:
    """The `deliver` part of a partner.yaml, if it can be followed, with default ladders in it. Raises ValueError in plain words."""
    if not isinstance(deliver, Mapping):
        raise ValueError("deliver must map occasions to lists of ways")
    whole: dict[str, Any] = {}
    for name, wanted in deliver.items():
        if name not in occasions():
            raise ValueError(f"deliver.{name} is no occasion; there are: {', '.join(occasions())}")
        if wanted == DEFAULT:
            if not occasions()[name].ladder:
                raise ValueError(f"deliver.{name} has no default: list its ways, such as [[message, letter]]")
            wanted = [list(ways) for ways in occasions()[name].ladder]
        whole[name] = wanted
        if not isinstance(wanted, list) or not all(isinstance(ways, list) and ways for ways in wanted):
            raise ValueError(f"deliver.{name} must be a list of lists of ways, such as [[message, letter]]")
        for number, ways in enumerate(wanted):
            if unknown := [str(way) for way in ways if way not in WAYS]:
                raise ValueError(f"deliver.{name}[{number}]: {', '.join(unknown)} is no way; there are: {', '.join(WAYS)}")
            if NOBODY in ways[:-1]:
                raise ValueError(f"deliver.{name}[{number}]: what stands behind {NOBODY} is never reached")
    return whole


def occurring(tree: dict[str, Any], before: dict[str, Any] | None, names: Iterator[str] | Sequence[str]) -> list[Occasion]:
    """The occasions, of those named, that this version of a resource makes and the version before did not."""
    known = (occasions()[name] for name in names)
    return [
        occasion
        for occasion in known
        if occasion.resource == tree["resourceType"]
        and fulfils(tree, occasion.when)
        and not (before is not None and _same(occasion, tree, before))
        and not (occasion.not_from and before is not None and fulfils(before, occasion.not_from))
    ]


def _same(occasion: Occasion, tree: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether the version before meant the same already."""
    if not occasion.every:
        return fulfils(before, occasion.when)
    return {**tree, "meta": None, "text": None} == {**before, "meta": None, "text": None}


def fulfils(tree: dict[str, Any], condition: Condition) -> bool:
    """Whether each element that the condition names holds one of its codes."""
    return all(codes(tree.get(element)) & set(allowed) for element, allowed in condition.items())
