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

_encoder = msgspec.json.Encoder(decimal_format="number")
_loose = msgspec.json.Decoder(float_hook=Decimal)

# A JSON string, or one character of structure. On bytes that parse as JSON nothing else can hold a quote or a bracket.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_KEY_END = re.compile(rb"\s*:\s*")
_SCALAR = re.compile(rb"[^,}\]\s]+")
# A quote inside a string is always escaped, so this can only be the member itself.
_REFERENCE = re.compile(rb'(?<=[{,\s])("reference"\s*:\s*)"((?:[^"\\]|\\.)*)"')

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Splicing and re-pointing look for names as they are; one written "ref\u0065rence" would be read by some and missed by others.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?')


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
    if b"\\" in body and any(found[2] and b"\\" in found[1] for found in _STRING.finditer(body)):
        raise Malformed("A member name is written with escapes; no FHIR element needs any")
    return tree


def parse_any(body: bytes) -> Any:
    """Read a body from outside that need not be an object. Raises Malformed as `parse` does."""
    try:
        tree = _strict.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: byte {error.start} cannot be read") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Malformed("The body is nested too deep") from None
    except ValueError as error:  # an integer of thousands of digits
        raise Malformed(f"The body is not JSON: {str(error)[:80]}") from None
    if _NUL.search(body):
        raise Malformed("A string holds the character U+0000, which no FHIR string may")
    if _SURROGATE.search(body) and not _is_text(tree):
        raise Malformed("A string holds one half of a surrogate pair, which is no character")
    return tree


def _is_text(tree: Any) -> bool:
    try:
        json.dumps(tree, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def loads(body: bytes) -> Any:
    """Read bytes that this server has checked before; decimals as Decimal."""
    return _loose.decode(body)


def dumps(tree: Any) -> bytes:
    """Write a tree; Decimals keep their digits."""
    return _encoder.encode(tree)


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
    depth = 0
    name: str | None = None
    name_at = value_at = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
            if depth == 1 and name is not None:
                spans[name] = (name_at, value_at, token.end())
                name = None
        elif depth == 1:
            if name is not None and token.start() == value_at:  # a string value
                spans[name] = (name_at, value_at, token.end())
                name = None
                continue
            end = _KEY_END.match(body, token.end())
            assert end is not None
            name, name_at, value_at = json.loads(token.group()), token.start(), end.end()
            if body[value_at] not in b'"{[':
                scalar = _SCALAR.match(body, value_at)
                assert scalar is not None
                spans[name] = (name_at, value_at, scalar.end())
                name = None
    return spans


def rewrite_references(body: bytes, rewrite: Callable[[str], str]) -> bytes:
    """Pass every `reference` member of a checked body through `rewrite`, leaving every other byte as it is."""

    def one(match: re.Match[bytes]) -> bytes:
        old = json.loads(b'"' + match[2] + b'"')
        new = rewrite(old)
        return match[0] if new == old else match[1] + _encoder.encode(new)

    return _REFERENCE.sub(one, body)
