"""The words of a resource that full text search finds: of its narrative (`_text`), and of all its text (`_content`).

https://hl7.org/fhir/R4/search.html#content. Strings, markdown, codes and the narrative are text; dates, URIs, references, ids and binary
content are not, for other parameters find those.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from html import unescape
from typing import Any, NamedTuple

from fhircm.fhir.ranges import DROPPED
from fhircm.fhir.schema import children

WORDS_LIMIT = 200_000  # characters of the words of one resource; what comes later is not found
WORD_LIMIT = 64  # characters of a word; longer words are alike when they begin with the same

SEPARATOR = "|"  # stands between what is not one text, so that no phrase reaches from one into the next

_TEXT = frozenset({"string", "markdown", "code", "xhtml"})
_NOT_TEXT = frozenset({"Reference.reference", "Extension.url", "Narrative.status"})
# A tag ends before the next begins, so that no text takes long.
_TAG = re.compile(r"""</?([A-Za-z][A-Za-z0-9]*)(?:[^<>"']|"[^"<]*"|'[^'<]*')*>""")
_KEPT = 0x3000  # characters below, of all alphabets, are remembered when they were folded once
_OF_WORDS = frozenset("LMN")  # Unicode categories of what makes up words: letters, marks, numbers
# Elements that stand within a line of text; all others begin something new.
_INLINE = frozenset(
    {"a", "abbr", "acronym", "b", "big", "cite", "code", "del", "dfn", "em", "font", "i", "ins", "kbd"}
    | {"q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "tt", "u", "var"}
)


class Words(NamedTuple):
    """The words of one of the two parameters in their order, with spaces between them and SEPARATOR where a text ends."""

    parameter: str
    words: str


class _Folded(dict[int, str]):
    """What each character of decomposed text becomes: nothing, a space, or itself in small letters."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.combining(character) or DROPPED.match(character):
            folded = ""
        else:
            folded = character.casefold() if unicodedata.category(character)[0] in _OF_WORDS else " "
        if code < _KEPT:
            self[code] = folded
        return folded


_FOLDED = _Folded()


def words_of(text: str) -> list[str]:
    """The words of a text, folded as string search folds it: without case and accents, and O'Brien is one word."""
    words = unicodedata.normalize("NFKD", text).translate(_FOLDED).split()
    return [word[:WORD_LIMIT] for word in words] if len(text) > WORD_LIMIT else words


def full_text(tree: dict[str, Any]) -> Iterator[Words]:
    """What `_text` and `_content` find a resource by; nothing for the one that has no words."""
    narrative = tree.get("text")
    blocks = _distinct(narrative_texts(narrative["div"])) if isinstance(narrative, dict) and "div" in narrative else {}
    rest = {name: value for name, value in tree.items() if name != "text"}
    for parameter, texts in (("_text", blocks), ("_content", blocks | _distinct(_texts(rest, str(tree["resourceType"]))))):
        if words := f" {SEPARATOR} ".join(texts):
            yield Words(parameter, words if len(words) <= WORDS_LIMIT else words[: words.rfind(" ", 0, WORDS_LIMIT + 1)])


def _distinct(texts: Iterable[str]) -> dict[str, None]:
    """The words of texts, each text once, in order."""
    folded = dict.fromkeys(" ".join(words_of(text)) for text in dict.fromkeys(texts))
    folded.pop("", None)
    return folded


def narrative_texts(div: str) -> list[str]:
    """The texts of a narrative without its markup, each block or cell for itself."""
    if "<!--" in div:
        first, *parts = div.split("<!--")
        div = first + "".join(part.partition("-->")[2] for part in parts)
    return unescape(_TAG.sub(_instead, div)).split("\0")


def _instead(tag: re.Match[str]) -> str:
    name = tag[1].lower()
    return "" if name in _INLINE else " " if name == "br" else "\0"


@cache
def _members(type: str) -> dict[str, str]:
    """The members of a type that are text or may hold some, with their types."""
    known = children(type)
    return {
        name: child.type
        for name, child in known.items()
        if (child.type in _TEXT or not child.is_primitive) and name != "id" and f"{type}.{name}" not in _NOT_TEXT
    }


def _texts(node: dict[str, Any], type: str) -> Iterator[str]:
    """Every text of a resource or element, in the order in which it stands."""
    members = _members(type)
    for name, value in node.items():
        if name[0] == "_":
            yield from _inner(value, "Element")
        elif inner := members.get(name):
            if inner not in _TEXT:
                yield from _inner(value, inner)
            elif inner == "xhtml":
                yield from narrative_texts(value)
            elif isinstance(value, str):
                yield value
            else:
                yield from (one for one in value if isinstance(one, str))


def _inner(value: Any, type: str) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            yield from _texts(one, str(one["resourceType"]) if type == "Resource" else type)
