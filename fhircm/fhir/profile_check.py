"""Hold a resource to the rules of a profile, element by element.

https://hl7.org/fhir/R4/profiling.html#slicing and https://hl7.org/fhir/R4/elementdefinition-definitions.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fhircm.fhir import fhirpath
from fhircm.fhir.bindings import Unlisted, codes_of, codings, is_bound
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Issue
from fhircm.fhir.profile_elements import Found, matches, members
from fhircm.fhir.profile_rules import ABSENT, CORE, Profile, Rule
from fhircm.fhir.profile_slices import Slices, discriminators_of
from fhircm.fhir.references import parse_reference

Tree = dict[str, Any]
Known = Callable[[str], Profile | None]

# R4's own profiles of data types: what they ask is checked as a part of R4, or is nothing at all.
_TYPE_PROFILES = frozenset({"SimpleQuantity", "MoneyQuantity"})


@dataclass(slots=True)
class Check:
    """One resource under check; `known` gives the profiles that others name."""

    resource: Tree
    known: Known
    active: set[tuple[str, str]] = field(default_factory=set)
    told: set[tuple[str, str]] = field(default_factory=set)

    def profile(self, profile: Profile, at: Found | None = None) -> Iterator[Issue]:
        """What the resource, or one element of it, breaks of a profile."""
        found = at or Found(self.resource, {}, profile.type, profile.type)
        here = (profile.url, found.path)
        if here in self.active:  # a profile that names itself is under check here already
            return
        self.active.add(here)
        try:
            if profile.base is not None:
                yield from self._base(profile, profile.base, found)
            yield from _Against(self, profile).value(found, profile.root)
        finally:
            self.active.discard(here)

    def _base(self, profile: Profile, url: str, found: Found) -> Iterator[Issue]:
        base = self.known(url)
        if base is None:
            text = f"{profile.url} builds on {url}, which is not known here: what that asks was not checked"
            yield from self.once(text, found.path)
        else:
            yield from self.profile(base, found)

    def once(self, text: str, path: str) -> Iterator[Issue]:
        """What cannot be checked, once for each place."""
        if (text, path) not in self.told:
            self.told.add((text, path))
            yield Issue("information", "informational", text, path)

    def target_type(self, url: str) -> str | None:
        """The resource type that a target profile is for; None when it is not known, or any is allowed."""
        name = url.removeprefix(CORE)
        if name in definitions().resource_types:
            return name
        profile = self.known(url)
        return profile.type if profile and profile.type != "Resource" else None

    def referred_type(self, reference: Tree) -> str | None:
        text = reference.get("reference")
        if isinstance(text, str) and text.startswith("#"):
            contained = self.resource.get("contained", ())
            return next((one["resourceType"] for one in contained if f"#{one.get('id')}" == text), None)
        named = parse_reference(text).type if isinstance(text, str) else None
        return named or reference.get("type")


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
        type = self.check.referred_type(one.value)
        allowed = [self.check.target_type(url) for url in targets]
        if type is None or None in allowed or type in allowed:
            return
        names = ", ".join(dict.fromkeys(str(name) for name in allowed))
        yield Issue("error", "value", f"{one.path} may refer to {names} by {self.profile.url}", one.path)

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
        tells = Slices(self.check, self.profile)
        sorted_out: dict[str, list[Found]] = {name: [] for name in rule.slices}
        unclear: set[str] = set()
        for one in found:
            of_none = True
            for name, slice in rule.slices.items():
                belongs = tells.belongs(one, slice, discriminators_of(rule))
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
