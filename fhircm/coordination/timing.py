"""How long a Task may take, read from profiles/deadline/: due times, limits of a state, reminders, who is next, pauses and snoozes.

https://hl7.org/fhir/R4/task.html. Of the rules that apply to a Task, the first that says something about a matter counts for it. What is
wrong in a file is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fhircm.coordination.codes import codings
from fhircm.coordination.deadlines import Span
from fhircm.coordination.protocol import NextInLine
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.systems import COORDINATION

Tree = dict[str, Any]


class TimingWrong(ValueError):
    """A file of profiles/deadline/ cannot be used; the message names the place."""


@dataclass(frozen=True, slots=True)
class Snooze:
    """How often, and how far, something may be put off."""

    times: int
    most: Span


@dataclass(frozen=True, slots=True)
class Timing:
    """What is said about a Task, by one rule or by all that apply; None is nothing."""

    within: Span | None = None
    in_state: Span | None = None
    remind: tuple[Span, ...] | None = None
    chain: tuple[NextInLine, ...] | None = None
    again: Span | None = None
    pause: Span | None = None
    longest_pause: Span | None = None
    snooze: Snooze | None = None
    hard: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What is said about the Tasks to which it applies: those with one of the values of each element."""

    name: str
    applies: Mapping[str, frozenset[str]]
    says: Timing

    def applies_to(self, said: Mapping[str, frozenset[str]]) -> bool:
        """Whether it applies to a Task that says this."""
        return all(not values.isdisjoint(said[element]) for element, values in self.applies.items())


def timing_of(task: Tree, rules: tuple[Rule, ...] | None = None) -> Timing:
    """What counts for a Task."""
    said = _said(task)
    applying = [rule.says for rule in (shipped() if rules is None else rules) if rule.applies_to(said)]
    found = {one.name: next(filter(_said_so, (getattr(says, one.name) for says in applying)), None) for one in fields(Timing)}
    return Timing(**found)


def _said_so(value: Any) -> bool:
    return value is not None


def _said(task: Tree) -> dict[str, frozenset[str]]:
    return {
        "code": _coded(task.get("code")),
        "business-status": _coded(task.get("businessStatus")),
        "status": frozenset((task["status"],)),
        "priority": frozenset((task.get("priority", "routine"),)),
    }


def _coded(element: Tree | None) -> frozenset[str]:
    """As rules name codes: those of the hub alone, others with their system."""
    return frozenset(code if system == COORDINATION else f"{system}|{code}" for system, code in codings(element))


@cache
def shipped() -> tuple[Rule, ...]:
    """The rules that fhircm ships. Raises TimingWrong."""
    return tuple(rule for path in sorted((folder("profiles") / "deadline").glob("*.yaml")) for rule in load_rules(path))


def load_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file. Raises TimingWrong."""
    try:
        tree = read_yaml(path)
    except yaml.YAMLError as error:
        raise TimingWrong(f"{path.name} is not YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("rules"), list):
        raise TimingWrong(f"{path.name}: rules must be a list")
    roles = tree.get("roles", {})
    rules = tuple(_rule(each, roles, f"{path.name}: rules[{at}]") for at, each in enumerate(tree["rules"]))
    whole = [rule.says for rule in rules if not rule.applies]
    for needed in ("within", "again", "pause", "longest_pause"):
        if not any(getattr(says, needed) for says in whole):
            raise TimingWrong(f"{path.name}: one rule for all Tasks (without `for`) must say {needed.replace('_', '-')}")
    return rules


def _rule(tree: Any, roles: Mapping[str, Tree], place: str) -> Rule:
    if not isinstance(tree, dict) or not isinstance(tree.get("name"), str):
        raise TimingWrong(f"{place} must have a name")
    place = f"{place} ({tree['name']})"
    if unknown := set(tree) - {"name", "for", *_READ}:
        raise TimingWrong(f"{place}: {', '.join(sorted(unknown))} is none of: for, {', '.join(_READ)}")
    said = {}
    for key, read in _READ.items():
        if key in tree:
            try:
                said[key.replace("-", "_")] = read(tree[key], roles)
            except (ValueError, TypeError, KeyError) as error:
                raise TimingWrong(f"{place}.{key}: {error}") from None
    return Rule(tree["name"], _applies(tree.get("for", {}), f"{place}.for"), Timing(**said))


def _applies(tree: Any, place: str) -> dict[str, frozenset[str]]:
    known = ("code", "business-status", "status", "priority")
    if not isinstance(tree, dict) or set(tree) - set(known) or not all(isinstance(values, list) for values in tree.values()):
        raise TimingWrong(f"{place} must have lists under: {', '.join(known)}")
    return {element: frozenset(map(str, values)) for element, values in tree.items()}


def _span(value: Any, _: Any) -> Span:
    return Span.read(value)


def _spans(value: Any, _: Any) -> tuple[Span, ...]:
    return tuple(map(Span.read, value))


def _chain(value: Any, roles: Mapping[str, Tree]) -> tuple[NextInLine, ...]:
    if unknown := [each["role"] for each in value if each["role"] not in roles]:
        raise ValueError(f"{unknown[0]} is none of the roles of this file")
    return tuple(NextInLine(roles[each["role"]], Span.read(each["after"])) for each in value)


def _snooze(value: Any, _: Any) -> Snooze:
    return Snooze(int(value["times"]), Span.read(value["most"]))


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be words")
    return value


_READ = {
    "within": _span,
    "in-state": _span,
    "remind": _spans,
    "chain": _chain,
    "again": _span,
    "pause": _span,
    "longest-pause": _span,
    "snooze": _snooze,
    "hard": _text,
}
