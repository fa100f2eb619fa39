"""Hold a resource to the rules of a profile, element by element.

https://hl7.org/fhir/R4/profiling.html#slicing and https://hl7.org/fhir/R4/elementdefinition-definitions.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fhircm.fhir import fhirpath
from fhircm.fhir.bindings import Unlisted, codes_of, codings, is_bound
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Issue
from fhircm.fhir.profile_rules import ABSENT, CORE, Discriminator, Profile, Rule
from fhircm.fhir.references import parse_reference
from fhircm.fhir.schema import Child, children

Tree = dict[str, Any]
Known = Callable[[str], Profile | None]

_DEPTH = 12  # profiles inside profiles (extensions of extensions): a guide may name itself


class Found(NamedTuple):
    """An element of the resource: its value (None for a primitive that has extensions only), what stands beside a primitive, where, which type."""

    value: Any
    beside: Tree
    path: str
    type: str


@dataclass(slots=True)
class Check:
    """One resource under check; `known` gives the profiles that others name."""

    resource: Tree
    known: Known
    depth: int = 0
    told: set[tuple[str, str]] = field(default_factory=set)

    def profile(self, profile: Profile, at: Found | None = None) -> Iterator[Issue]:
        """What the resource, or one element of it, breaks of a profile."""
        found = at or Found(self.resource, {}, profile.type, profile.type)
        if self.depth > _DEPTH:
            return
        self.depth += 1
        if profile.base is not None:
            base = self.known(profile.base)
            if base is None:
                text = f"{profile.url} builds on {profile.base}, which is not known here: what that asks was not checked"
                yield from self.once(text, found.path)
            else:
                yield from self.profile(base, found)
        yield from _Against(self, profile).value(found, profile.root)
        self.depth -= 1

    def once(self, text: str, path: str) -> Iterator[Issue]:
        """What cannot be checked, once for each place."""
        if (text, path) not in self.told:
            self.told.add((text, path))
            yield Issue("information", "informational", text, path)


@dataclass(slots=True)
class _Against:
    """The check against one profile."""

    check: Check
    profile: Profile

    def not_checked(self, text: str, path: str) -> Iterator[Issue]:
        return self.check.once(f"{path}: {text}, by {self.profile.url}", path)

    # --- elements ------------------------------------------------------------------------------------------------------------

    def element(self, found: Sequence[Found], rule: Rule, path: str) -> Iterator[Issue]:
        """Count the elements of a rule, check each, and tell its slices apart."""
        named = f"{path} (slice {rule.slice})" if rule.slice else path
        if len(found) < rule.min:
            yield Issue("error", "required", f"{named} is required at least {rule.min} time(s) by {self.profile.url}", path)
        if rule.max is not None and len(found) > rule.max:
            allowed = f"allowed at most {rule.max} time(s)" if rule.max else "not allowed"
            yield Issue("error", "structure", f"{named} is {allowed} by {self.profile.url}", path)
        for one in found:
            yield from self.value(one, rule)
        if rule.slices:
            yield from self.slices(found, rule, path)

    def value(self, one: Found, rule: Rule) -> Iterator[Issue]:
        if rule.types:
            yield from self.types(one, rule)
        if one.value is not None:
            yield from self.content(one, rule)
        for constraint in rule.constraints:
            yield from self.invariant(one, constraint)
        holder = one.value if isinstance(one.value, dict) else one.beside
        for child in rule.children.values():
            at = f"{one.path}.{child.name.removesuffix('[x]')}"
            yield from self.element(list(members(holder, one.type, child.name, one.path)), child, at)

    def content(self, one: Found, rule: Rule) -> Iterator[Issue]:
        url = self.profile.url
        if rule.pattern is not ABSENT and not matches(one.value, rule.pattern):
            yield Issue("error", "value", f"{one.path} does not have the pattern that {url} asks for", one.path)
        if rule.fixed is not ABSENT and one.value != rule.fixed:
            shown = f"'{rule.fixed}'" if isinstance(rule.fixed, str) else "what is fixed"
            yield Issue("error", "value", f"{one.path} must be {shown} by {url}", one.path)
        if rule.binding:
            yield from self.bound(one, rule)

    def bound(self, one: Found, rule: Rule) -> Iterator[Issue]:
        assert rule.binding
        strength, value_set = rule.binding
        if strength == "extensible" and not any(True for _ in codings(one.value)):
            return  # a text alone is allowed, when no code of the set fits
        try:
            codes = codes_of(value_set, self.profile.contained.get(value_set))
        except Unlisted as reason:
            if strength == "required":
                text = f"whether its code is in the value set {value_set} was not checked ({reason})"
                yield from self.not_checked(text, one.path)
            return
        if is_bound(one.value, codes):
            return
        if strength == "extensible":
            text = f"{one.path} has no code of {value_set}; use one if it fits, by {self.profile.url}"
            yield Issue("warning", "code-invalid", text, one.path)
        elif value_set.startswith("#"):
            names = ", ".join(sorted(code for _, code in codes))
            yield Issue("error", "code-invalid", f"{one.path} must be one of: {names}, by {self.profile.url}", one.path)
        else:
            text = f"{one.path} must have a code of {value_set}, by {self.profile.url}"
            yield Issue("error", "code-invalid", text, one.path)

    # --- types ---------------------------------------------------------------------------------------------------------------

    def types(self, one: Found, rule: Rule) -> Iterator[Issue]:
        is_choice = rule.name.endswith("[x]")  # every other element has the one type that R4 gives it
        mine = [kind for kind in rule.types if kind.code == one.type or not is_choice]
        if not mine:
            names = ", ".join(kind.code for kind in rule.types)
            yield Issue("error", "structure", f"{one.path} must be of the type {names}, by {self.profile.url}", one.path)
        for kind in mine:
            if kind.targets and isinstance(one.value, dict):
                yield from self.target(one, kind.targets)
        profiles = [url for kind in mine for url in kind.profiles]
        if profiles and all(kind.profiles for kind in mine):
            yield from self.one_of(one, profiles)

    def target(self, one: Found, targets: Sequence[str]) -> Iterator[Issue]:
        type = self.referred_type(one.value)
        allowed = [self.target_type(url) for url in targets]
        if type is None or None in allowed or type in allowed:
            return
        names = ", ".join(dict.fromkeys(str(name) for name in allowed))
        yield Issue("error", "value", f"{one.path} may refer to {names} by {self.profile.url}", one.path)

    def target_type(self, url: str) -> str | None:
        """The resource type that a target profile is for; None when it is not known, or any is allowed."""
        name = url.removeprefix(CORE)
        if name in definitions().resource_types:
            return name
        profile = self.check.known(url)
        return profile.type if profile and profile.type != "Resource" else None

    def referred_type(self, reference: Tree) -> str | None:
        text = reference.get("reference")
        if isinstance(text, str) and text.startswith("#"):
            contained = self.check.resource.get("contained", ())
            return next((one["resourceType"] for one in contained if f"#{one.get('id')}" == text), None)
        named = parse_reference(text).type if isinstance(text, str) else None
        return named or reference.get("type")

    def one_of(self, one: Found, urls: Sequence[str]) -> Iterator[Issue]:
        """The value must fulfil one of these profiles; when there is one only, what it breaks of that is told."""
        known = [profile for url in urls if (profile := self.check.known(url))]
        if len(known) < len(urls):
            missing = next(url for url in urls if self.check.known(url) is None)
            if missing.removeprefix(CORE) not in _TYPE_PROFILES:
                yield from self.not_checked(
                    f"what the profile {missing} asks was not checked, for it is not known here", one.path
                )
            return
        results = [list(self.check.profile(profile, one)) for profile in known]
        best = min(results, key=lambda issues: sum(issue.severity == "error" for issue in issues))
        yield from best

    # --- invariants ----------------------------------------------------------------------------------------------------------

    def invariant(self, one: Found, constraint: Any) -> Iterator[Issue]:
        value = one.value if one.value is not None else one.beside
        holds = fhirpath.holds(constraint.expression, value, one.type, self.check.resource)
        if holds is None:
            yield from self.not_checked(
                f"the rule {constraint.key} was not checked, for its expression is not understood", one.path
            )
        elif not holds:
            severity = "error" if constraint.severity == "error" else "warning"
            text = f"{one.path}: {constraint.human} ({constraint.key}), by {self.profile.url}"
            yield Issue(severity, "invariant", text, one.path)

    # --- slices --------------------------------------------------------------------------------------------------------------

    def slices(self, found: Sequence[Found], rule: Rule, path: str) -> Iterator[Issue]:
        sorted_out: dict[str, list[Found]] = {name: [] for name in rule.slices}
        unclear: set[str] = set()
        for one in found:
            of_none = True
            for name, slice in rule.slices.items():
                belongs = self.belongs(one, slice, _discriminators(rule))
                if belongs is None:
                    unclear.add(name)
                if belongs is not False:
                    of_none = False
                if belongs:
                    sorted_out[name].append(one)
                    break
            if of_none and rule.closed:
                names = ", ".join(rule.slices)
                yield Issue("error", "structure", f"{one.path} is of none of the slices {names} of {self.profile.url}", one.path)
        for name, members_of_slice in sorted_out.items():
            if name in unclear:
                yield from self.not_checked(f"the slice {name} was not checked, for what tells it apart is not understood", path)
            else:
                yield from self.element(members_of_slice, rule.slices[name], path)

    def belongs(self, one: Found, slice: Rule, discriminators: Sequence[Discriminator]) -> bool | None:
        """Whether an element is of a slice; None when that cannot be told."""
        results = [self.passes(one, slice, discriminator) for discriminator in discriminators]
        if False in results:
            return False
        return None if None in results or not results else True

    def passes(self, one: Found, slice: Rule, discriminator: Discriminator) -> bool | None:
        kind, path = discriminator
        if kind == "type":
            return self.is_of_type(one, slice, path)
        steps = [] if path == "$this" else path.split(".")
        if any("(" in step for step in steps):
            return None
        if kind == "profile":
            return self.has_profile(one, slice) if not steps else None
        if steps == ["url"] and (url := _url_of(slice)):
            return isinstance(one.value, dict) and one.value.get("url") == url
        rule = _below(slice, steps)
        if rule is None:
            return None
        actual = list(_follow(one, steps))
        if kind == "exists":
            return bool(actual) if rule.min else not actual if rule.max == 0 else None
        if not _tells_apart(rule):
            return None
        return any(self.fits(value, rule) for value in actual)

    def fits(self, one: Found, rule: Rule) -> bool:
        """Whether a value has all that is fixed of it, patterned or bound, at the element itself and below."""
        if rule.fixed is not ABSENT and one.value != rule.fixed:
            return False
        if rule.pattern is not ABSENT and not matches(one.value, rule.pattern):
            return False
        if rule.binding and rule.binding.strength == "required":
            try:
                codes = codes_of(rule.binding.value_set, self.profile.contained.get(rule.binding.value_set))
            except Unlisted:
                return False
            if not is_bound(one.value, codes):
                return False
        holder = one.value if isinstance(one.value, dict) else one.beside
        telling = [child for child in rule.children.values() if _tells_apart(child)]
        return all(any(self.fits(at, child) for at in members(holder, one.type, child.name, one.path)) for child in telling)

    def is_of_type(self, one: Found, slice: Rule, path: str) -> bool | None:
        codes = {kind.code for kind in slice.types}
        if not codes and slice.name.endswith("[x]") and slice.slice:
            codes = {slice.slice.removeprefix(slice.name.removesuffix("[x]"))}
        if path == "$this":
            names = {one.type, one.type[:1].upper() + one.type[1:]}
            return bool(names & codes) if codes else None
        if path == "resolve()" and isinstance(one.value, dict):
            types = {self.target_type(url) for kind in slice.types for url in kind.targets}
            return None if None in types or not types else self.referred_type(one.value) in types
        return None

    def has_profile(self, one: Found, slice: Rule) -> bool | None:
        known = [profile for kind in slice.types for url in kind.profiles if (profile := self.check.known(url))]
        if not known:
            return None
        return any(all(issue.severity != "error" for issue in self.check.profile(profile, one)) for profile in known)


# R4's own profiles of data types: what they ask is checked as a part of R4, or is nothing at all.
_TYPE_PROFILES = frozenset({"SimpleQuantity", "MoneyQuantity"})


def _discriminators(rule: Rule) -> Sequence[Discriminator]:
    """Those of the slicing, or those that R4 implies. https://hl7.org/fhir/R4/profiling.html#slicing"""
    if rule.discriminators is not None:
        return rule.discriminators
    if rule.name in ("extension", "modifierExtension"):
        return (Discriminator("value", "url"),)
    return (Discriminator("type" if rule.name.endswith("[x]") else "value", "$this"),)


def _url_of(slice: Rule) -> str | None:
    """The URL of the extensions of a slice: of the profile that it names, or the one that is fixed."""
    url = slice.children.get("url")
    if url is not None and isinstance(url.fixed, str):
        return url.fixed
    return next((one.partition("|")[0] for kind in slice.types for one in kind.profiles), None)


def _tells_apart(rule: Rule) -> bool:
    own = rule.fixed is not ABSENT or rule.pattern is not ABSENT or (rule.binding and rule.binding.strength == "required")
    return bool(own) or any(map(_tells_apart, rule.children.values()))


def _below(rule: Rule, steps: Sequence[str]) -> Rule | None:
    for step in steps:
        found = rule.children.get(step) or rule.children.get(f"{step}[x]")
        if found is None:
            return None
        rule = found
    return rule


def _follow(one: Found, steps: Sequence[str]) -> Iterator[Found]:
    if not steps:
        yield one
        return
    if isinstance(one.value, dict):
        for name in (steps[0], f"{steps[0]}[x]"):
            for inner in members(one.value, one.type, name, one.path):
                yield from _follow(inner, steps[1:])


# --- elements of a resource --------------------------------------------------------------------------------------------------


def members(holder: Mapping[str, Any], type: str, name: str, at: str) -> Iterator[Found]:
    """The elements of a name (`value[x]`: of each of its types) in what holds them, a list one by one."""
    for member, child in _named(type, name):
        values, beside = holder.get(member), holder.get(f"_{member}")
        if values is None and beside is None:
            continue
        path = f"{at}.{name.removesuffix('[x]')}"
        if isinstance(values, list) or isinstance(beside, list):
            yield from _each(values or [], beside or [], path, child)
        else:
            yield Found(values, beside or {}, path, _type(values, child))


def _each(values: list[Any], beside: list[Any], path: str, child: Child) -> Iterator[Found]:
    for index in range(max(len(values), len(beside))):
        value = values[index] if index < len(values) else None
        extra = beside[index] if index < len(beside) else None
        yield Found(value, extra or {}, f"{path}[{index}]", _type(value, child))


def _type(value: Any, child: Child) -> str:
    return str(value["resourceType"]) if child.type == "Resource" and isinstance(value, dict) else child.type


def _named(type: str, name: str) -> list[tuple[str, Child]]:
    known = children("Element" if type in definitions().primitives else type)
    if name.endswith("[x]"):
        return [(member, child) for member, child in known.items() if child.element.path.rpartition(".")[2] == name]
    return [(name, known[name])] if name in known else []


def matches(value: Any, pattern: Any) -> bool:
    """Whether a value has everything that a pattern has. https://hl7.org/fhir/R4/elementdefinition-definitions.html#ElementDefinition.pattern_x_"""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(name in value and matches(value[name], wanted) for name, wanted in pattern.items())
    if isinstance(pattern, list):
        return isinstance(value, list) and all(any(matches(one, wanted) for one in value) for wanted in pattern)
    return bool(value == pattern)
