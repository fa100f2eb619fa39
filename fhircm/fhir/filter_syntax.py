"""How a `_filter` is written: its text as a tree of tests, joined and negated.

https://hl7.org/fhir/R4/search_filter.html
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from fhircm.fhir.conditions import InvalidValue

FILTER_LIMIT = 8000  # characters of one filter
DEPTH_LIMIT = 8  # of brackets, and of "and" within "or" within "and": SQLite reads statements so deep, with chains in them
OPERATORS = ("ap", "co", "eb", "eq", "ew", "ge", "gt", "in", "le", "lt", "ne", "ni", "po", "pr", "re", "sa", "sb", "ss", "sw")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TOKEN = re.compile(r"[^\s)\]]+")
_NOT = re.compile(r"not(?=\s*\()", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Step:
    """One name of a path, and the filter in brackets behind it."""

    name: str
    filter: Node | None
    at: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """path operator value; `value_at` and the steps tell where they stand, counted from 1."""

    path: tuple[Step, ...]
    operator: str
    operator_at: int
    value: str
    value_at: int


@dataclass(frozen=True, slots=True)
class Joined:
    word: str  # and | or
    parts: tuple[Node, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class Negated:
    part: Node


Node = Comparison | Joined | Negated


def parse_filter(text: str) -> Node:
    """The tree of a filter. Raises InvalidValue, which tells the place, counted in characters from 1, and no value."""
    if len(text) > FILTER_LIMIT:
        raise InvalidValue(f"'_filter' is longer than {FILTER_LIMIT} characters")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the text; `at` is where it stands, counted from 0."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def whole(self) -> Node:
        node = self.expression(0)
        if self.at < len(self.text):
            raise self.wrong("'and', 'or' or the end")
        return node

    def wrong(self, expected: str) -> InvalidValue:
        return InvalidValue(f"'_filter' cannot be read: {expected} is expected at character {self.at + 1}")

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def take(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def sign(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.at):
            return False
        self.at += 1
        return True

    def expression(self, depth: int) -> Node:
        """Operands with and, or between them, from left to right; stands behind the space that follows."""
        node = self.operand(depth)
        while True:
            self.space()
            before = self.at
            word = (self.take(_NAME) or "").lower()
            if word not in ("and", "or"):
                self.at = before
                return node
            node = self.joined(word, node, self.operand(depth))

    def joined(self, word: str, left: Node, right: Node) -> Node:
        before = left.parts if isinstance(left, Joined) and left.word == word else (left,)
        depth = max(_depth(part) for part in (*before, right)) + 1
        if depth > DEPTH_LIMIT:
            raise InvalidValue(f"'_filter' is nested deeper than {DEPTH_LIMIT} levels at character {self.at + 1}")
        return Joined(word, (*before, right), depth)

    def operand(self, depth: int) -> Node:
        self.space()
        negated = self.take(_NOT) is not None
        self.space()
        if not self.sign("("):
            return self.test(depth)
        if depth >= DEPTH_LIMIT:
            raise InvalidValue(f"'_filter' is nested deeper than {DEPTH_LIMIT} levels at character {self.at}")
        node = self.expression(depth + 1)
        if not self.sign(")"):
            raise self.wrong("'and', 'or' or ')'")
        return Negated(node) if negated else node

    def test(self, depth: int) -> Comparison:
        steps = [self.step(depth)]
        while self.sign("."):
            steps.append(self.step(depth))
        if steps[-1].filter is not None:
            raise self.wrong("'.' and a name behind a filter in brackets")
        self.gap("an operator")
        operator_at = self.at + 1
        operator = (self.take(_NAME) or "").lower()
        if operator not in OPERATORS:
            self.at = operator_at - 1
            raise self.wrong(f"an operator ({', '.join(OPERATORS)})")
        self.gap("a value")
        value_at = self.at + 1
        return Comparison(tuple(steps), operator, operator_at, self.value(), value_at)

    def gap(self, expected: str) -> None:
        before = self.at
        self.space()
        if self.at == before:
            raise self.wrong(f"a space and {expected}")

    def step(self, depth: int) -> Step:
        at = self.at + 1
        name = self.take(_NAME)
        if name is None:
            raise self.wrong("the name of a search parameter")
        if not self.sign("["):
            return Step(name, None, at)
        if depth >= DEPTH_LIMIT:
            raise InvalidValue(f"'_filter' is nested deeper than {DEPTH_LIMIT} levels at character {self.at}")
        inner = self.expression(depth + 1)
        if not self.sign("]"):
            raise self.wrong("'and', 'or' or ']'")
        return Step(name, inner, at)

    def value(self) -> str:
        if not self.text.startswith('"', self.at):
            token = self.take(_TOKEN)
            if token is None:
                raise self.wrong("a value")
            return token
        at = self.at
        try:
            value = json.loads(self.take(_STRING) or "")
            value.encode()  # half a surrogate pair is in no database
        except ValueError:
            self.at = at
            raise self.wrong("a JSON string") from None
        if self.at < len(self.text) and not self.text[self.at].isspace() and self.text[self.at] not in ")]":
            raise self.wrong("a space or the end behind a string")
        return str(value)


def _depth(node: Node) -> int:
    match node:
        case Joined(depth=depth):
            return depth
        case Negated(part):
            return _depth(part) + 1
        case Comparison(path):
            return max((_depth(step.filter) + 1 for step in path if step.filter is not None), default=0)
