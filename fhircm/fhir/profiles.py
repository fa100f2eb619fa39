"""Check a resource against the profiles that it claims: those that ship with this server, and those of the guides in force.

https://hl7.org/fhir/R4/profiling.html. docs/decisions/profiles-apply-when-claimed.md says when they apply. What cannot be checked here is
told as information, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from fhircm.fhir import guides, json
from fhircm.fhir.artefacts import folder
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Issue
from fhircm.fhir.profile_check import Check
from fhircm.fhir.profile_rules import CORE, Profile, read_profile

Tree = dict[str, Any]

_LISTED = 60  # profiles that are named to one who asks for another


def profiles() -> dict[str, str]:
    """The profiles that may be claimed, each with the resource type that it is for."""
    found = {profile.url: profile.type for profile in _shipped().values()}
    for artefact in guides.in_force().artefacts.values():
        if artefact.constrains in definitions().resource_types:  # not those of extensions, data types and logical models
            found.setdefault(artefact.url, artefact.constrains)
    return found


def profile_of(canonical: str) -> Profile | None:
    """The profile of a canonical URL: in the version that it names, or the newest."""
    url, _, version = canonical.partition("|")
    if (shipped := _shipped().get(url)) and version in ("", shipped.version):
        return shipped
    artefact = guides.in_force().artefacts.get(canonical)
    if artefact is None or artefact.type != "StructureDefinition":
        return None
    return _read(artefact)


def broken(tree: Tree, *, by_guides: bool = True) -> Iterator[Issue]:
    """What a resource breaks of the profiles that it claims; a claimed profile that this server does not have is told as information.

    Without `by_guides` only the server's own profiles count.
    """
    for canonical in tree.get("meta", {}).get("profile", ()):
        if not isinstance(canonical, str) or canonical.removeprefix(CORE) == tree["resourceType"]:
            continue
        if not by_guides and canonical.partition("|")[0] not in _shipped():
            continue
        profile = profile_of(canonical)
        if profile is None:
            text = "A claimed profile is not known here and was not checked" + _versions_of(canonical)
            yield Issue("information", "informational", text, f"{tree['resourceType']}.meta.profile")
        elif profile.type != tree["resourceType"]:
            yield Issue("error", "structure", f"A claimed profile is for {profile.type}", f"{tree['resourceType']}.meta.profile")
        else:
            yield from Check(tree, profile_of).profile(profile)


def broken_of(tree: Tree, canonical: str) -> Iterator[Issue]:
    """What a resource breaks of one profile, claimed or not; one that is not known is an error here."""
    profile = profile_of(canonical)
    type = tree["resourceType"]
    if profile is None:
        known = sorted(url for url, constrains in profiles().items() if constrains == type)
        names = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "") or "none"
        text = f"The profile {canonical[:200]} is not known here{_versions_of(canonical)}. For {type} there are: {names}"
        yield Issue("error", "not-found", text)
    elif profile.type != type:
        yield Issue("error", "structure", f"The profile {profile.url} is for {profile.type}, not for {type}", type)
    else:
        yield from Check(tree, profile_of).profile(profile)


def _versions_of(canonical: str) -> str:
    """In which other versions a profile is known, for a text."""
    url, bar, _ = canonical.partition("|")
    found = {one.version for one in guides.in_force().artefacts.values() if one.url == url} if bar else set()
    return f"; it is in version {', '.join(sorted(found))}" if found else ""


@cache
def _shipped() -> dict[str, Profile]:
    files = sorted((folder("profiles") / "structure").glob("*.json"))
    return {one.url: one for one in (read_profile(json.loads(file.read_bytes())) for file in files)}


@lru_cache(maxsize=2048)
def _read(artefact: guides.Artefact) -> Profile:
    """Read when it is first claimed: a guide has many profiles, and a hub meets few of them."""
    return read_profile(json.loads(artefact.body))
