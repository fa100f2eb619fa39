"""Check a resource against the profiles that it claims, as far as this server has them (profiles/structure/).

https://hl7.org/fhir/R4/profiling.html. Differentials: cardinality, fixed and pattern values, narrowed reference targets, and slices told
apart by a pattern. docs/decisions/profiles-apply-when-claimed.md says when they apply.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fhircm.fhir.artefacts import folder
from fhircm.fhir.outcome import Issue
from fhircm.fhir.references import parse_reference

Tree = dict[str, Any]


@dataclass
class Constraint:
    """What a profile says of one element; `slice` is its name where it stands for some of a list."""

    path: str
    slice: str | None
    min: int
    max: int | None
    pattern: Any = None
    fixed: Any = None
    targets: tuple[str, ...] = ()
    codes: frozenset[str] | None = None


@dataclass
class Profile:
    """A profile: its canonical URL, the type it constrains, and what it says element by element."""

    url: str
    type: str
    constraints: list[Constraint] = field(default_factory=list)


@cache
def profiles() -> dict[str, Profile]:
    """The profiles that ship with this server, by canonical URL."""
    files = sorted((folder("profiles") / "structure").glob("*.json"))
    return {one.url: one for one in (_profile(json.loads(file.read_text())) for file in files)}


def broken(tree: Tree) -> Iterator[Issue]:
    """What a resource breaks of the profiles that it claims; a claimed profile that this server does not have is told as information."""
    for canonical in tree.get("meta", {}).get("profile", []):
        profile = profiles().get(str(canonical).partition("|")[0])
        if profile is None:
            yield Issue("information", "informational", "A claimed profile is not known here and was not checked", "meta.profile")
        elif profile.type != tree["resourceType"]:
            yield Issue("error", "structure", f"A claimed profile is for {profile.type}", f"{tree['resourceType']}.meta.profile")
        else:
            for constraint in profile.constraints:
                yield from _check(tree, constraint, profile)


def _profile(definition: Tree) -> Profile:
    profile = Profile(definition["url"], definition["type"])
    for element in definition["differential"]["element"]:
        if "." not in element["path"]:
            continue
        pattern = next((value for name, value in element.items() if name.startswith("pattern")), None)
        fixed = next((value for name, value in element.items() if name.startswith("fixed")), None)
        targets = [target.rpartition("/")[2] for kind in element.get("type", []) for target in kind.get("targetProfile", [])]
        most = element.get("max", "*")
        codes = _codes(element.get("binding", {}), definition)
        profile.constraints.append(
            Constraint(
                element["path"],
                element.get("sliceName"),
                element.get("min", 0),
                None if most == "*" else int(most),
                pattern,
                fixed,
                tuple(targets),
                codes,
            )
        )
    return profile


def _codes(binding: Tree, definition: Tree) -> frozenset[str] | None:
    """The codes of a required binding to a value set that the profile contains."""
    if binding.get("strength") != "required" or not str(binding.get("valueSet", "")).startswith("#"):
        return None
    value_set = next(one for one in definition["contained"] if f"#{one['id']}" == binding["valueSet"])
    return frozenset(concept["code"] for part in value_set["compose"]["include"] for concept in part["concept"])


def _check(tree: Tree, constraint: Constraint, profile: Profile) -> Iterator[Issue]:
    steps = constraint.path.split(".")[1:]
    for holder, at in _holders([(tree, profile.type)], steps[:-1]):
        path = f"{at}.{steps[-1]}"
        found = list(_values(holder, steps[-1]))
        if constraint.slice:
            found = [value for value in found if matches(value, constraint.pattern)]
        named = f"{path} (slice {constraint.slice})" if constraint.slice else path
        if len(found) < constraint.min:
            yield Issue("error", "required", f"{named} is required at least {constraint.min} time(s) by {profile.url}", path)
        if constraint.max is not None and len(found) > constraint.max:
            yield Issue("error", "structure", f"{named} is allowed at most {constraint.max} time(s) by {profile.url}", path)
        if not constraint.slice:
            yield from (issue for value in found for issue in _value(value, constraint, profile, path))


def _value(value: Any, constraint: Constraint, profile: Profile, path: str) -> Iterator[Issue]:
    if constraint.pattern is not None and not matches(value, constraint.pattern):
        yield Issue("error", "value", f"{path} does not have the pattern that {profile.url} asks for", path)
    if constraint.fixed is not None and value != constraint.fixed:
        yield Issue("error", "value", f"{path} must be '{constraint.fixed}' by {profile.url}", path)
    if constraint.codes is not None and value not in constraint.codes:
        yield Issue(
            "error", "code-invalid", f"{path} must be one of: {', '.join(sorted(constraint.codes))}, by {profile.url}", path
        )
    if constraint.targets and isinstance(value, dict) and isinstance(value.get("reference"), str):
        found = parse_reference(value["reference"])
        if found.type and found.type not in constraint.targets:
            yield Issue("error", "value", f"{path} may refer to {', '.join(constraint.targets)} by {profile.url}", path)


def _holders(holders: list[tuple[Tree, str]], steps: list[str]) -> list[tuple[Tree, str]]:
    """The elements that hold the last step of a path, with where they stand."""
    for step in steps:
        holders = [
            (inner, f"{at}.{step}" + (f"[{index}]" if isinstance(holder.get(step), list) else ""))
            for holder, at in holders
            for index, inner in enumerate(_values(holder, step))
            if isinstance(inner, dict)
        ]
    return holders


def _values(holder: Tree, name: str) -> Iterator[Any]:
    if name.endswith("[x]"):
        stem = name.removesuffix("[x]")
        yield from (
            value for member, value in holder.items() if member.startswith(stem) and member[len(stem) : len(stem) + 1].isupper()
        )
        return
    value = holder.get(name)
    if isinstance(value, list):
        yield from value
    elif value is not None:
        yield value
    elif f"_{name}" in holder:
        yield holder[f"_{name}"]


def matches(value: Any, pattern: Any) -> bool:
    """Whether a value has everything that a pattern has. https://hl7.org/fhir/R4/elementdefinition-definitions.html#ElementDefinition.pattern_x_"""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(name in value and matches(value[name], wanted) for name, wanted in pattern.items())
    if isinstance(pattern, list):
        return isinstance(value, list) and all(any(matches(one, wanted) for one in value) for wanted in pattern)
    return bool(value == pattern)
