"""Which slice of a profile an element belongs to. https://hl7.org/fhir/R4/profiling.html#slicing"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fhircm.fhir.bindings import Unlisted, codes_of, is_bound
from fhircm.fhir.profile_elements import Found, matches, members
from fhircm.fhir.profile_rules import ABSENT, Discriminator, Profile, Rule

if TYPE_CHECKING:
    from fhircm.fhir.profile_check import Check


@dataclass(frozen=True, slots=True)
class Slices:
    """Tells the slices of a profile apart, in a resource under check."""

    check: Check
    profile: Profile

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
            types = {self.check.target_type(url) for kind in slice.types for url in kind.targets}
            return None if None in types or not types else self.check.referred_type(one.value) in types
        return None

    def has_profile(self, one: Found, slice: Rule) -> bool | None:
        known = [profile for kind in slice.types for url in kind.profiles if (profile := self.check.known(url))]
        if not known:
            return None
        return any(all(issue.severity != "error" for issue in self.check.profile(profile, one)) for profile in known)


def discriminators_of(rule: Rule) -> Sequence[Discriminator]:
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
