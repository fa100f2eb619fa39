"""Try a map without a partner: cases of what a resource must become, and a trace of what each rule does.

Cases stand in tests/ of the partner's folder; a difference is told as https://www.rfc-editor.org/rfc/rfc6902 has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from fhircm.exchange.map_rules import MappingFailed, Notes, Rule, Tree, Unmapped
from fhircm.exchange.maps import Maps, MapWrong
from fhircm.exchange.pages import Received
from fhircm.exchange.yaml_keys import Keys, YamlWrong
from fhircm.fhir import json
from fhircm.fhir.artefacts import read_yaml

INBOUND, OUTBOUND = "inbound", "outbound"


@dataclass(frozen=True, slots=True)
class Case:
    """One case: a resource, and what must become of it: `becomes`, or `changes` to it (JSON Patch), or the rule that `fails`."""

    file: Path
    name: str
    direction: str
    given: Tree
    becomes: Tree | None
    fails: str | None
    unmapped: tuple[str, ...] | None
    back: bool  # and the other direction makes of that what was given


@dataclass(frozen=True, slots=True)
class Step:
    """What one rule did: whether its condition held, and the changes."""

    at: str
    held: bool
    changes: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Trace:
    """What became of a resource, rule by rule. `result` None: a rule failed."""

    result: Tree | None
    body: bytes = b""
    failed: str = ""
    steps: list[Step] = field(default_factory=list)
    unmapped: list[Unmapped] = field(default_factory=list)


def cases(folder: Path) -> list[Case]:
    """The cases of a partner's folder, in order of their files. Raises MapWrong."""
    paths = sorted(path for path in (folder / "tests").glob("*") if path.suffix in (".yaml", ".json"))
    try:
        return [case for path in paths for case in _of_file(path)]
    except YamlWrong as error:
        raise MapWrong(str(error)) from None


def _of_file(path: Path) -> Iterator[Case]:
    try:
        written = json.loads(path.read_bytes()) if path.suffix == ".json" else read_yaml(path)
    except (ValueError, yaml.YAMLError) as error:
        raise MapWrong(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(written, list):
        raise MapWrong(f"{path} must be a list of cases, each with case, given, and becomes, changes or fails")
    for number, tree in enumerate(written):
        keys = Keys(path, f"[{number}]", tree)
        yield _case(keys, path)
        keys.done()


def _case(keys: Keys, path: Path) -> Case:
    name = keys.text("case", "what the case shows, in words")
    direction = keys.choice("direction", (INBOUND, OUTBOUND), INBOUND)
    given = keys.take("given", dict, "a resource")
    becomes = keys.take("becomes", dict, "a resource", None) if "becomes" in keys.tree else None
    changes = keys.take("changes", list, "a JSON Patch, [] for none", None) if "changes" in keys.tree else None
    fails = keys.text("fails", "a part of what is told", default=None)
    if sum(one is not None for one in (becomes, changes, fails)) != 1:
        keys.wrong("", "needs one of becomes (the whole resource), changes (a JSON Patch) and fails (a part of what is told)")
    if changes is not None:
        try:
            becomes = jsonpatch.apply_patch(given, changes)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError):
            keys.wrong("changes", "is no JSON Patch that can be done on what is given")
    unmapped = tuple(keys.take("unmapped", list, "a list of system|code")) if "unmapped" in keys.tree else None
    return Case(path, name, direction, given, becomes, fails, unmapped, keys.take("back", bool, "true or false", False))


def wrong(maps: Maps, case: Case) -> str | None:
    """How a case comes out otherwise than it should; None when all is well."""
    seen = trace(maps, json.dumps(case.given), case.direction)
    if case.fails is not None:
        return None if case.fails in seen.failed else f"it does not fail with this: {seen.failed or 'it does not fail at all'}"
    if seen.result is None:
        return f"it fails: {seen.failed}"
    if seen.result != case.becomes:
        return _difference(case.becomes, seen.result)
    found = sorted(f"{one.system}|{one.code}" for one in seen.unmapped)
    if case.unmapped is not None and found != sorted(case.unmapped):
        return f"unmapped is {', '.join(found) or 'nothing'}"
    if case.back:
        back = trace(maps, json.dumps(seen.result), OUTBOUND if case.direction == INBOUND else INBOUND)
        if back.result != case.given:
            return (
                f"the way back fails: {back.failed}" if back.failed else "the way back: " + _difference(case.given, back.result)
            )
    return None


def _patch(before: Any, after: Any) -> list[dict[str, Any]]:
    return list(jsonpatch.JsonPatch.from_diff(before, after, dumps=lambda value: json.dumps(value).decode()).patch)


def _difference(expected: Any, found: Any) -> str:
    """What must be changed in what was expected to have what was found."""
    operations = _patch(expected, found)
    return "it differs: " + "; ".join(
        f"{one['op']} {one['path']}" + (f" {json.dumps(one['value']).decode()}" if "value" in one else "") for one in operations
    )


def trace(maps: Maps, body: bytes, direction: str = INBOUND) -> Trace:
    """What becomes of a resource, rule by rule. Raises Malformed for what is none."""
    tree, notes, steps = json.parse(body), Notes(), list[Step]()
    before = [deepcopy(tree)]

    def told(rule: Rule, held: bool, now: Tree) -> None:
        steps.append(Step(rule.at, held, _patch(before[0], now)))
        before[0] = deepcopy(now)

    try:
        if direction == OUTBOUND:
            made = json.dumps(maps.outbound(tree, notes, told))
        else:
            made = maps.inbound(Received(tree.get("resourceType"), tree.get("id"), body), notes, told).body
    except MappingFailed as error:
        return Trace(None, b"", str(error), steps, list(notes.unmapped))
    return Trace(json.loads(made), made, "", steps, list(notes.unmapped))
