"""An expansion as it is shown: which members, in which words, in what shape.

https://hl7.org/fhir/R4/valueset-operation-expand.html
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from fhircm.fhir.ranges import normalise
from fhircm.fhir.terminology.artefacts import Tree
from fhircm.fhir.terminology.expansion import Key, Member

_PLAIN = re.compile(r"[A-Za-z0-9 ]*", re.ASCII)
_LANGUAGES = "urn:ietf:bcp:47"


def selected(members: Iterable[Member], words: str = "", *, active_only: bool = False, abstract: bool = True) -> list[Member]:
    """Those to show: without inactive ones, without those that only group others, with words that begin as all of these do."""
    wanted = normalise(words).split() if words.strip() else []
    return [
        one
        for one in members
        if not (active_only and one.inactive) and (abstract or not one.abstract) and (not wanted or _found(one, wanted))
    ]


def _found(member: Member, wanted: Sequence[str]) -> bool:
    texts = (member.code, member.display or "", *(one.get("value", "") for one in member.designations))
    found = f" {' '.join(map(_folded, texts))}"
    return all(f" {word}" in found for word in wanted)


def _folded(text: str) -> str:
    """The text as `normalise` makes it, the short way for words without accents and punctuation: most are, and there are many."""
    return text.lower() if _PLAIN.fullmatch(text) else _normalised(text)


_normalised = lru_cache(maxsize=10_000)(normalise)  # who types a word asks again with every letter


def display(member: Member, language: str | None = None) -> str | None:
    """The words for a code in a language, where there are any, otherwise those of the value set or code system."""
    if language:
        for one in member.designations:
            if speaks(one, language) and "value" in one:
                return str(one["value"])
    return member.display


def speaks(designation: Tree, language: str) -> bool:
    """Whether a designation is in a language, or in one of its kinds: de is spoken in de-CH."""
    spoken = str(designation.get("language", "")).casefold()
    return spoken == language.casefold() or spoken.startswith(f"{language.casefold()}-")


def entry(member: Member, language: str | None, designations: Collection[str] | None, *, versioned: bool) -> Tree:
    """A member as expansion.contains; `designations`: None for none, the tokens of languages and uses, or empty for all."""
    tree: Tree = {"system": member.system}
    for name in ("abstract", "inactive"):
        if getattr(member, name):
            tree[name] = True
    if versioned and member.version:
        tree["version"] = member.version
    tree["code"] = member.code
    if words := display(member, language):
        tree["display"] = words
    if designations is not None and (found := [one for one in member.designations if _chosen(one, designations)]):
        tree["designation"] = [
            {name: value for name, value in one.items() if name in ("language", "use", "value")} for one in found
        ]
    return tree


def _chosen(designation: Tree, tokens: Collection[str]) -> bool:
    use = designation.get("use", {})
    of_use = f"{use.get('system', '')}|{use.get('code', '')}"
    spoken = [token.removeprefix(f"{_LANGUAGES}|") for token in tokens if token.startswith(f"{_LANGUAGES}|")]
    return not tokens or of_use in tokens or any(speaks(designation, language) for language in spoken)


def nested(members: Sequence[Member], entries: Sequence[Tree]) -> list[Tree]:
    """The entries, each within that of the first of its parents that is there too."""
    by_key: dict[Key, Tree] = {(one.system, one.code): tree for one, tree in zip(members, entries, strict=True)}
    above: dict[Key, Key] = {}
    top: list[Tree] = []
    for one, tree in zip(members, entries, strict=True):
        key = (one.system, one.code)
        parents = [(one.system, code) for code in (one.concept.parents if one.concept else ())]
        parent = next((held for held in parents if held in by_key and not _leads(above, held, key)), None)
        if parent is None:
            top.append(tree)
        else:
            above[key] = parent
            by_key[parent].setdefault("contains", []).append(tree)
    return top


def _leads(above: dict[Key, Key], start: Key, end: Key) -> bool:
    """Whether one stands within the other already: a code system may say that two codes are each a kind of the other."""
    while start != end and start in above:
        start = above[start]
    return start == end
