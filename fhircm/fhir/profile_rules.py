"""A StructureDefinition read into rules: what a profile says of each element beyond what R4 says already.

https://hl7.org/fhir/R4/profiling.html and https://hl7.org/fhir/R4/elementdefinition.html. A snapshot is read where there is one; otherwise
the differential, and the profile that it builds on is checked besides. What R4 itself says is left out: every resource is held to that before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fhircm.fhir.bindings import Unlisted, codes_of
from fhircm.fhir.definitions import definitions
from fhircm.fhir.schema import Child, children

Tree = dict[str, Any]

CORE = "http://hl7.org/fhir/StructureDefinition/"
ABSENT: Any = object()  # no fixed value and no pattern: None would be one


class Discriminator(NamedTuple):
    """How the members of a slice are told from others. https://hl7.org/fhir/R4/profiling.html#discriminator"""

    type: str  # value | pattern | exists | type | profile
    path: str


class Allowed(NamedTuple):
    """A type that an element may have here, the profiles that its value fulfils, and those of what it may refer to."""

    code: str
    profiles: tuple[str, ...]
    targets: tuple[str, ...]


class Binding(NamedTuple):
    """The value set that codes must (required) or should (extensible) come from; `#…` is contained in the profile."""

    strength: str
    value_set: str


class Constraint(NamedTuple):
    """An invariant in FHIRPath."""

    key: str
    severity: str
    human: str
    expression: str


@dataclass(slots=True)
class Rule:
    """What a profile says of one element; `slice` is its name where it stands for some of a list."""

    name: str  # the last step of the path: `category`, `value[x]`
    slice: str | None = None
    min: int = 0
    max: int | None = None
    types: tuple[Allowed, ...] = ()
    fixed: Any = ABSENT
    pattern: Any = ABSENT
    binding: Binding | None = None
    constraints: tuple[Constraint, ...] = ()
    children: dict[str, Rule] = field(default_factory=dict)
    discriminators: tuple[Discriminator, ...] | None = None  # None: the profile does not say
    closed: bool = False
    slices: dict[str, Rule] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile: the type that it constrains, its rules, and the profile that is checked besides."""

    url: str
    version: str
    type: str
    root: Rule
    base: str | None
    contained: Mapping[str, Tree]  # value sets by `#id`


def read_profile(definition: Tree) -> Profile:
    """The rules of a StructureDefinition that constrains a type of R4."""
    snapshot = definition.get("snapshot", {}).get("element")
    elements = snapshot or definition.get("differential", {}).get("element", [])
    own = {(one.get("id"), c["key"]) for one in _differential(definition) for c in one.get("constraint", ())}
    type = definition["type"]
    root = Rule(type)
    for element, steps in _placed(elements):
        node = root
        for name, slice in steps:
            node = node.children.setdefault(name, Rule(name))
            if slice:
                node = node.slices.setdefault(slice, Rule(name, slice))
        _fill(node, element, own)
    _prune(root, type)
    contained = {f"#{one['id']}": one for one in definition.get("contained", ()) if "id" in one}
    return Profile(definition["url"], definition.get("version", ""), type, root, builds_on(definition), contained)


def builds_on(definition: Tree) -> str | None:
    """The profile that must be known to check one that has no snapshot; None when it builds on R4 itself, or has a snapshot."""
    base = definition.get("baseDefinition")
    if definition.get("snapshot", {}).get("element") or base is None or base.removeprefix(CORE) in _core_types():
        return None
    return str(base)


def _core_types() -> frozenset[str]:
    """The types of R4 itself: a profile that builds on one of them needs nothing besides."""
    return definitions().resource_types | {path.partition(".")[0] for path in definitions().elements}


def _differential(definition: Tree) -> Sequence[Tree]:
    found: Sequence[Tree] = definition.get("differential", {}).get("element", ())
    return found


def _placed(elements: Sequence[Tree]) -> Iterator[tuple[Tree, list[tuple[str, str]]]]:
    """Each element with the steps from the root to it; a differential without ids tells slices by the order of its elements."""
    open_slices: dict[str, str] = {}
    for element in elements:
        path = element["path"]
        if "sliceName" in element:
            open_slices[path] = element["sliceName"]
        else:
            open_slices.pop(path, None)
        open_slices = {at: name for at, name in open_slices.items() if path == at or path.startswith(at + ".")}
        names = path.split(".")
        prefixes = [".".join(names[: count + 1]) for count in range(1, len(names))]
        yield element, [(prefix.rpartition(".")[2], open_slices.get(prefix, "")) for prefix in prefixes]


def _fill(rule: Rule, element: Tree, own: set[tuple[Any, str]]) -> None:
    rule.min = element.get("min", 0)
    most = element.get("max", "*")
    rule.max = None if most == "*" else int(most)
    rule.types = tuple(
        Allowed(one["code"], tuple(one.get("profile", ())), tuple(one.get("targetProfile", ())))
        for one in element.get("type", ())
        if "code" in one
    )
    rule.fixed = next((value for name, value in element.items() if name.startswith("fixed")), ABSENT)
    rule.pattern = next((value for name, value in element.items() if name.startswith("pattern")), ABSENT)
    binding = element.get("binding", {})
    if binding.get("strength") in ("required", "extensible") and "valueSet" in binding:
        rule.binding = Binding(binding["strength"], binding["valueSet"])
    rule.constraints = tuple(
        Constraint(one["key"], one["severity"], one.get("human", ""), one["expression"])
        for one in element.get("constraint", ())
        if "expression" in one and ((element.get("id"), one["key"]) in own or not _is_of_r4(one.get("source")))
    )
    if slicing := element.get("slicing"):
        rule.discriminators = tuple(Discriminator(one["type"], one["path"]) for one in slicing.get("discriminator", ()))
        rule.closed = slicing.get("rules") == "closed"


def _is_of_r4(source: str | None) -> bool:
    return source is not None and source.removeprefix(CORE) in _core_types()


# --- what R4 says already ----------------------------------------------------------------------------------------------------


def _prune(rule: Rule, type: str | None) -> None:
    """Take away the rules that no value can break that R4 has accepted: most of a snapshot."""
    members = children(type) if type else {}
    for name, child in list(rule.children.items()):
        known = _members_of(members, name)
        _against_r4(child, known)
        inner = known[0].type if len(known) == 1 else None
        for one in (child, *child.slices.values()):
            _prune(one, inner)
        if not _says_something(child):
            del rule.children[name]


def _members_of(members: Mapping[str, Child], name: str) -> list[Child]:
    return [child for member, child in members.items() if member == name or child.element.path.rpartition(".")[2] == name]


def _against_r4(rule: Rule, known: Sequence[Child]) -> None:
    if not known:
        return
    element = known[0].element
    for one in (rule, *rule.slices.values()):
        allowed = {kind.code for kind in element.types}
        plain = all(not kind.profiles for kind in one.types)
        same_targets = all(_types_of(kind) == set(_targets(element.types, kind.code)) for kind in one.types if kind.targets)
        if plain and same_targets and {kind.code for kind in one.types} >= allowed:
            one.types = ()
        if one.max == element.max and one.slice is None:
            one.max = None
        if one.binding and element.codes and _is_as_wide(one.binding, element.codes):
            one.binding = None
    rule.min = 0 if rule.min <= element.min else rule.min


def _is_as_wide(binding: Binding, codes: frozenset[str]) -> bool:
    try:
        return codes <= {code for _, code in codes_of(binding.value_set)}
    except Unlisted:
        return False


def _types_of(kind: Allowed) -> set[str]:
    return {target.removeprefix(CORE) for target in kind.targets}


def _targets(types: Sequence[Any], code: str) -> tuple[str, ...]:
    return next((kind.targets for kind in types if kind.code == code), ())


def _says_something(rule: Rule) -> bool:
    return bool(
        rule.min
        or rule.max is not None
        or rule.types
        or rule.fixed is not ABSENT
        or rule.pattern is not ABSENT
        or rule.binding
        or rule.constraints
        or rule.children
        or any(map(_says_something, rule.slices.values()))
        or (rule.closed and rule.slices)
    )
