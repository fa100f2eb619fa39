"""JSON as FHIR has it: strict where a body comes in, exact where one is written again, spliced where only a part changes.

https://hl7.org/fhir/R4/json.html. The bytes that were accepted are the bytes that are served: decimals keep their digits,
elements their order, and nothing passes through a float.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from fhircm.fhir.outcome import Malformed

DEPTH = 200  # objects and arrays in one another, so a hundred elements: what works on a tree may follow it by recursion

_encoder = msgspec.json.Encoder(decimal_format="number")
_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted")
_loose = msgspec.json.Decoder(float_hook=Decimal)

_members_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])

_items_raw = msgspec.json.Decoder(list[msgspec.Raw])

_BETWEEN = re.compile(rb"[\s,{]*")  # what stands before the name of a member
_BEFORE_ITEM = re.compile(rb"\s*[\[,]\s*")
_COLON = re.compile(rb"\s*:\s*")
# A quote inside a string is always escaped, so this can only be the member itself.
_REFERENCE = re.compile(rb'("reference"\s*:\s*)"((?:[^"\\]|\\.)*)"')

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
# Splicing and re-pointing look for names as they are; one written "ref\u0065rence" would be read by some and missed by others.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?')
_MAYBE_ESCAPED = re.compile(rb'\\.[^"\\]*"\s*:')


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"The member '{double[:64]}' stands twice in one object")
    return members


def _constant(_name: str) -> NoReturn:
    raise Malformed("NaN and Infinity are not JSON numbers")


_strict = json.JSONDecoder(object_pairs_hook=_members, parse_float=Decimal, parse_constant=_constant)


def parse(body: bytes) -> dict[str, Any]:
    """Read a body from outside. Decimals become Decimal with all their digits.

    Raises Malformed, with line and column, for what is not UTF-8, not JSON, not an object, nested too deep,
    or has a member twice.
    """
    tree = parse_any(body)
    if not isinstance(tree, dict):
        raise Malformed("The body is not a JSON object")
    if _MAYBE_ESCAPED.search(body) and any(found[2] and b"\\" in found[1] for found in _STRING.finditer(body)):
        raise Malformed("A member name is written with escapes; no FHIR element needs any")
    return tree


def parse_any(body: bytes) -> Any:
    """Read a body from outside that need not be an object. Raises Malformed as `parse` does."""
    try:
        tree = _loose.decode(body)
        # A member that stands twice is lost on the way: the fast decoder does not see it, but the count does.
        if _names(msgspec.json.format(body, indent=-1)) != _names(_encoder.encode(tree)):
            raise _unreadable(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _unreadable(body) from None
    if b"\\u0000" in body and _NUL.search(body):
        raise Malformed("A string holds the character U+0000, which no FHIR string may")
    if body.count(b"{") + body.count(b"[") > DEPTH and _deeper(tree):
        raise Malformed("The body is nested too deep")
    return tree


def _deeper(tree: Any) -> bool:
    """Whether more than DEPTH objects and arrays stand in one another."""
    level = [tree]
    for _ in range(DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
        if not level:
            return False
    return True


def _names(compact: bytes) -> int:
    """How many member names there are: in JSON without white space a quote and a colon, unless the quote is part of a string."""
    return compact.count(b'":') - compact.count(b'\\":')


def _unreadable(body: bytes) -> Malformed:
    """Why a body cannot be read, found out by the slow and exact decoder."""
    try:
        _strict.decode(body.decode())
    except Malformed as reason:
        return reason
    except UnicodeDecodeError as error:
        return Malformed(f"The body is not UTF-8: byte {error.start} cannot be read")
    except json.JSONDecodeError as error:
        return Malformed(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        return Malformed("The body is nested too deep")
    except ValueError as error:  # an integer of thousands of digits
        return Malformed(f"The body is not JSON: {str(error)[:80]}")
    return Malformed("A string holds one half of a surrogate pair, which is no character")


def loads(body: bytes) -> Any:
    """Read bytes that this server has checked before; decimals as Decimal."""
    return _loose.decode(body)


def dumps(tree: Any) -> bytes:
    """Write a tree; Decimals keep their digits."""
    return _encoder.encode(tree)


def one_line(body: bytes) -> bytes:
    """A body that this server has checked before on one line; every value stays as it is written."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def canonical(tree: Any) -> bytes:
    """The one way to write a tree: its members in order of their names, decimals with their digits."""
    return _sorted.encode(tree)


def splice(body: bytes, members: dict[str, Any]) -> bytes:
    """Set top-level members of an object, leaving every other byte as it is.

    A member that exists is replaced where it stands; a new one goes in right behind `resourceType`, or first.
    """
    spans = _spans(body)
    edits: list[tuple[int, int, bytes]] = []
    new = b""
    for name, value in members.items():
        written = _encoder.encode(value)
        if name in spans:
            _, start, end = spans[name]
            edits.append((start, end, written))
        else:
            new += b"," + _encoder.encode(name) + b":" + written
    if new:
        if "resourceType" in spans:
            at = spans["resourceType"][2]
            edits.append((at, at, new))
        else:
            at = body.index(b"{") + 1
            edits.append((at, at, new[1:] + (b"," if spans else b"")))
    for start, end, written in sorted(edits, reverse=True):
        body = body[:start] + written + body[end:]
    return body


def _spans(body: bytes) -> dict[str, tuple[int, int, int]]:
    """Where each top-level member stands: start of its name, start and end of its value."""
    spans: dict[str, tuple[int, int, int]] = {}
    at = 0
    for name, value in _members_raw.decode(body).items():
        named = _end(_BETWEEN, body, at)
        start = _end(_COLON, body, body.index(b'"', named + 1) + 1)
        at = start + len(memoryview(value))
        spans[name] = named, start, at
    return spans


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    found = pattern.match(body, at)
    assert found is not None
    return found.end()


def amended(body: bytes, tree: Any) -> bytes:
    """A body that says what `tree` says, in which every byte of what it said before stays.

    New members go behind the others. Raises msgspec.DecodeError for what is no JSON.
    """
    before = _loose.decode(body)
    return body if _alike(before, tree) else _amended(body, before, tree)


def _alike(one: Any, other: Any) -> bool:
    """Whether two trees are written alike: 2.5 and 2.50 are not."""
    return one == other and _sorted.encode(one) == _sorted.encode(other)


def _amended(body: bytes, before: Any, tree: Any) -> bytes:
    if isinstance(before, dict) and isinstance(tree, dict) and before:
        return _amended_object(body, before, tree)
    if isinstance(before, list) and isinstance(tree, list) and before:
        return _amended_list(body, before, tree)
    return _encoder.encode(tree)


def _amended_object(body: bytes, before: dict[str, Any], tree: dict[str, Any]) -> bytes:
    spans = _spans(body)
    first, last = min(start for start, _, _ in spans.values()), max(end for _, _, end in spans.values())
    written, at = b"", first
    for name, (start, value, end) in sorted(spans.items(), key=lambda one: one[1]):
        if name in tree:
            same = _alike(before[name], tree[name])
            between = body[at:start] if written else b""
            written += (
                between + body[start:value] + (body[value:end] if same else _amended(body[value:end], before[name], tree[name]))
            )
        at = end
    for name, value in tree.items():
        if name not in spans:
            written += (b"," if written else b"") + _encoder.encode(name) + b":" + _encoder.encode(value)
    return body[:first] + written + body[last:]


def _amended_list(body: bytes, before: list[Any], tree: list[Any]) -> bytes:
    spans, at = [], 0
    for item in _items_raw.decode(body):
        start = _end(_BEFORE_ITEM, body, at)
        at = start + len(memoryview(item))
        spans.append((start, at))
    head = tail = 0  # how many stay as they are, before and behind what changes
    least = min(len(before), len(tree))
    while head < least and _alike(before[head], tree[head]):
        head += 1
    while tail < least - head and _alike(before[-1 - tail], tree[-1 - tail]):
        tail += 1
    old, new = range(head, len(before) - tail), range(head, len(tree) - tail)
    paired = len(old) if len(old) <= len(new) else 0  # what was added stands behind
    changed = [_amended(body[slice(*spans[one])], before[one], tree[one]) for one in old[:paired]]
    changed += [_encoder.encode(tree[one]) for one in new[paired:]]
    items = [body[slice(*span)] for span in spans[:head]] + changed + [body[slice(*span)] for span in spans[len(spans) - tail :]]
    return body[: spans[0][0]] + b",".join(items) + body[spans[-1][1] :]


def rewrite_references(body: bytes, rewrite: Callable[[str], str]) -> bytes:
    """Pass every `reference` member of a checked body through `rewrite`, leaving every other byte as it is."""

    def one(match: re.Match[bytes]) -> bytes:
        old = json.loads(b'"' + match[2] + b'"') if b"\\" in match[2] else match[2].decode()
        new = rewrite(old)
        return match[0] if new == old else match[1] + _encoder.encode(new)

    return _REFERENCE.sub(one, body)
