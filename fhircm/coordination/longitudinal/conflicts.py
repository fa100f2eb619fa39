"""Where the sources of one thing differ, and who is right: by the rule table, by what a human decided, or not yet. Pure.

mappings/longitudinal.yaml. No difference is settled silently: each is told with its sources, and with the rule that settled it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from fhircm.coordination.build import stable_id
from fhircm.coordination.codes import codings
from fhircm.coordination.longitudinal.recognition import Thing
from fhircm.coordination.longitudinal.sources import Records, Source, asserted
from fhircm.coordination.longitudinal.table import table
from fhircm.fhir.ranges import date_range, normalise

Tree = dict[str, Any]
KEEP_BOTH = "keep-both"
_UNKEPT = ("id", "extension", "modifierExtension")


@dataclass(frozen=True, slots=True)
class Conflict:
    """One element in which sources differ. `rule` settled it ("": none could); `chosen` is whose value stands.

    `asks`: a human is asked. `fingerprint` follows from what is compared: another value makes another conflict.
    """

    type: str
    thing: str
    element: str
    sources: tuple[str, ...]
    rule: str
    chosen: str | None
    asks: bool
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What stands for an element: its members as FHIR has them (more than one name for a choice), and the conflict there was."""

    members: Tree
    conflict: Conflict | None = None


def settled(records: Records, thing: Thing, element: str, decisions: Mapping[str, str]) -> Settled:
    """What stands for an element of a thing. `decisions` are what humans said, by fingerprint: a reference or `keep-both`."""
    chain = table().rules[thing.sources[0].type][element]
    having = [one for one in thing.sources if members(one.tree, element)]
    if not having:
        return Settled({})
    if chain == ("union",):
        return Settled({element: _union([value for one in having for value in members(one.tree, element)[element]])})
    sides = _sides(records, having, element)
    if len(sides) == 1:
        return Settled(members(having[0].tree, element))
    told = sorted(f"{one.reference}={sorted(map(str, _value(records, one.tree, element)))}" for one in having)
    fingerprint = stable_id("conflict", thing.sources[0].type, element, *told)
    rule, chosen = _judged(records, having, sides, element, chain, decisions.get(fingerprint))
    conflict = Conflict(
        thing.sources[0].type,
        thing.key,
        element,
        tuple(one.reference for one in having),
        rule,
        chosen.reference if chosen else None,
        chain[-1] == "human" and not rule,
        fingerprint,
    )
    if chosen is not None:
        return Settled(members(chosen.tree, element), conflict)
    return Settled(_both(sides, element), conflict)


def _judged(
    records: Records,
    having: Sequence[Source],
    sides: Sequence[Sequence[Source]],
    element: str,
    chain: Sequence[str],
    decision: str | None,
) -> tuple[str, Source | None]:
    if decision is not None:
        return "human", next((one for one in having if one.reference == decision), None)
    for rule in chain:
        chosen = _RULES[rule](records, having, element) if rule != "human" else []
        if chosen and _alone(chosen, sides):
            return rule, min(chosen, key=lambda one: one.reference)
    return "", None


def _alone(chosen: Sequence[Source], sides: Sequence[Sequence[Source]]) -> bool:
    """Whether all of these stand on one side."""
    return any(set(map(id, chosen)) <= set(map(id, side)) for side in sides)


def _both(sides: Sequence[Sequence[Source]], element: str) -> Tree:
    """What stands while nothing is settled: all of a list; nothing of what can be said only once."""
    values = [members(side[0].tree, element) for side in sides]
    if all(isinstance(one.get(element), list) for one in values):
        return {element: _union([entry for one in values for entry in one[element]])}
    return {}


# --- comparing ---------------------------------------------------------------------------------------------------------------


def members(tree: Tree, element: str) -> Tree:
    """The members of a tree that an element has; those of a choice are found by its beginning."""
    if not element.endswith("[x]"):
        return {element: tree[element]} if tree.get(element) not in (None, [], {}) else {}
    name = element.removesuffix("[x]")
    return {key: value for key, value in tree.items() if key.startswith(name) and key[len(name) : len(name) + 1].isupper()}


def _sides(records: Records, having: Sequence[Source], element: str) -> list[list[Source]]:
    """The sources by what they say."""
    sides: list[tuple[frozenset[Any], list[Source]]] = []
    for one in having:
        value = _value(records, one.tree, element)
        side = next((side for side in sides if side[0] & value), None)
        if side is None:
            sides.append((value, [one]))
        else:
            side[1].append(one)
    return [sources for _, sources in sides]


def _value(records: Records, tree: Tree, element: str) -> frozenset[Any]:
    """What a source says, so that two which have something in common say the same."""
    value = members(tree, element)
    coded = [one for one in value.values() if isinstance(one, dict) and ("coding" in one or "text" in one)]
    if coded:
        codes = records.terms.of(codings(coded))
        return codes or frozenset(normalise(one.get("text", "")) for one in coded)
    return frozenset({_canonical(value)})


def _canonical(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if name not in _UNKEPT}
    if isinstance(value, list):
        return sorted((_plain(one) for one in value), key=lambda one: json.dumps(one, sort_keys=True, default=str))
    return value


def _union(values: Sequence[Any]) -> list[Any]:
    """Each value once, in an order that follows from the values."""
    return [one for _, one in sorted({_canonical(value): value for value in values}.items())]


# --- the rules: those who are right, or nobody when a rule cannot tell ----------------------------------------------------------


def _author(records: Records, having: Sequence[Source], element: str) -> list[Source]:
    return [one for one in having if one.own]


def _primary_care(records: Records, having: Sequence[Source], element: str) -> list[Source]:
    return [one for one in having if one.voice in records.primary_care]


def _newest(records: Records, having: Sequence[Source], element: str) -> list[Source]:
    """By the dates that the sources state; when one states none, nobody knows which is the newest."""
    dates = [asserted(one.tree, table().asserted.get(one.type, ())) for one in having]
    if not all(dates):
        return []
    ranges = [date_range(date) for date in dates if date]
    last = max(ranges)
    if any(one != last and one[1] > last[0] for one in ranges):  # "2026" may be later than "2026-03-01"
        return []
    return [one for one, when in zip(having, ranges, strict=True) if when == last]


def _oldest(records: Records, having: Sequence[Source], element: str) -> list[Source]:
    """By the date in the element itself."""
    dates = [next((one for one in members(source.tree, element).values() if isinstance(one, str)), None) for source in having]
    try:
        ranges = [date_range(one) for one in dates if one]
    except ValueError:
        return []
    if len(ranges) < len(having):
        return []
    first = min(one[0] for one in ranges)
    return [one for one, when in zip(having, ranges, strict=True) if when[0] == first]


def _strictest(records: Records, having: Sequence[Source], element: str) -> list[Source]:
    if element == "priority":
        ranks = [_rank(one.tree.get("priority")) for one in having]
    else:
        ranks = [_tightness(one.tree.get(element)) for one in having]
        if len({one[0] for one in ranks if one}) > 1:  # not the same unit, measure or direction
            return []
        ranks = [one[1:] if one else None for one in ranks]
    if not all(one is not None for one in ranks):
        return []
    best = min(one for one in ranks if one is not None)
    return [source for source, rank in zip(having, ranks, strict=True) if rank == best]


def _rank(priority: Any) -> tuple[Any, ...] | None:
    said = [priority] if isinstance(priority, str) else [code for _, code in codings(priority)]
    order = table().priorities
    return next(((order.index(one),) for one in said if one in order), None)


def _tightness(targets: Any) -> tuple[Any, ...] | None:
    """What a target is measured in, how far it goes (less is stricter), and by when. None when it cannot be told."""
    if not isinstance(targets, list) or len(targets) != 1:
        return None
    target = targets[0]
    says_how_far = any(name.startswith("detail") for name in target)
    limit = _limit(target) if says_how_far else ("due", Decimal(0), None)
    due = target.get("dueDate")
    if limit is None or (due is not None and not isinstance(due, str)):
        return None
    direction, value, unit = limit
    measure = tuple(sorted(codings(target.get("measure"))))
    return (direction, unit, measure), -value if direction == "above" else value, date_range(due)[0] if due else float("inf")


def _limit(target: Tree) -> tuple[str, Decimal, Any] | None:
    """Whether a target wants less or more, of how much, in which unit."""
    span = target.get("detailRange", {})
    sides = {"below": span.get("high"), "above": span.get("low")} if span else {}
    quantity = target.get("detailQuantity")
    if quantity:
        direction = {"<": "below", "<=": "below", ">": "above", ">=": "above"}.get(quantity.get("comparator", ""))
        sides = {direction: quantity} if direction else {}
    found = [(direction, one) for direction, one in sides.items() if one]
    if len(found) != 1:
        return None
    direction, one = found[0]
    try:
        return direction, Decimal(str(one["value"])), one.get("code") or one.get("unit")
    except (KeyError, InvalidOperation):
        return None


_RULES: dict[str, Callable[[Records, Sequence[Source], str], list[Source]]] = {
    "author": _author,
    "primary-care": _primary_care,
    "newest": _newest,
    "oldest": _oldest,
    "strictest": _strictest,
}
