"""Where in a resource a FHIRPath expression leads: the elements themselves, so that they can be changed.

http://hl7.org/fhirpath/N1/ and https://hl7.org/fhir/R4/fhirpatch.html. What is understood: names, indexes, where(), extension(), first(),
last(), ofType(), as(), and resolve() into what the resource contains; in criteria also =, !=, and, or, exists(), empty(), not().
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from fhircm.fhir.places import PathError, Place, inside

LENGTH_LIMIT = 2000  # characters of a path
_TOKEN = re.compile(r"\s*(?:('(?:[^'\\]|\\.)*')|`([^`]+)`|([$%]?[A-Za-z_][A-Za-z0-9_]*)|(\d+(?:\.\d+)?)|(!=|[.()\[\]=,])|(\S))")
_ROOTS = frozenset({"$this", "%resource", "%context", "%rootResource", "Resource", "DomainResource"})


@dataclass(slots=True)
class Effort:
    """How many more elements the paths of one patch may look at: criteria in criteria could look at the same ones without end."""

    left: int = 200_000

    def spend(self, elements: int) -> None:
        """Raises PathError when it was too much."""
        self.left -= elements + 1
        if self.left < 0:
            raise PathError("the paths look at too many elements")


class _Run(NamedTuple):
    """One path on its way through a resource."""

    root: Place
    effort: Effort


Found = list[Any]  # places and plain values
Step = Callable[[Found, _Run], Found]  # from what was found so far


class Expression(NamedTuple):
    """A path: its steps, and for each its name when it is nothing but a name."""

    steps: Sequence[tuple[str | None, Step]]

    def places(self, tree: dict[str, Any], effort: Effort) -> list[Place]:
        """The elements of a resource to which it leads. Raises PathError."""
        return self._places(tree, self.steps, effort)

    def collection(self, tree: dict[str, Any], effort: Effort) -> tuple[list[Place], str]:
        """What holds the list that it names, and the name. Raises PathError when it does not end with a name."""
        name = self.steps[-1][0] if len(self.steps) > 1 else None
        if name is None:
            raise PathError("the path must end with the name of a list")
        return self._places(tree, self.steps[:-1], effort), name

    def _places(self, tree: dict[str, Any], steps: Sequence[tuple[str | None, Step]], effort: Effort) -> list[Place]:
        type = str(tree["resourceType"])
        run = _Run(Place(None, {type: tree}, type, None, type, type), effort)
        found: Found = [run.root]
        for _, step in steps:
            found = step(found, run)
            effort.spend(len(found))
        if not all(isinstance(one, Place) for one in found):
            raise PathError("the path leads to no element")
        return found


def parse_path(text: str, type: str) -> Expression:
    """Read a path into a resource of a type. Raises PathError."""
    if len(text) > LENGTH_LIMIT:
        raise PathError(f"the path is longer than {LENGTH_LIMIT} characters")
    parser = _Parser(text, type)
    try:
        return parser.whole()
    except RecursionError:
        raise PathError("the path is nested too deep") from None


class _Parser:
    """Recursive descent; every method gives steps or one step."""

    def __init__(self, text: str, type: str) -> None:
        self.tokens = [(group.lastindex, group[group.lastindex or 0]) for group in _TOKEN.finditer(text)]
        self.at, self.type = 0, type

    def whole(self) -> Expression:
        steps = self.path()
        if self.at < len(self.tokens):
            raise self.foreign()
        return Expression(steps)

    def foreign(self) -> PathError:
        """That the next token is not understood; what stands in quotes may be a patient's, so it is not told."""
        kind, token = self.tokens[self.at] if self.at < len(self.tokens) else (None, "")
        return PathError(f"{'a text in quotes' if kind == 1 else repr(token[:64])} is not understood there in the path")

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise PathError(f"'{expected or 'a name'}' is missing in the path")
        self.at += 1
        return token

    def path(self) -> list[tuple[str | None, Step]]:
        steps = [self.start()]
        while self.peek() in (".", "["):
            if self.take() == "[":
                steps.append((None, _at(self.number())))
                self.take("]")
            else:
                steps.append(self.invocation())
        return steps

    def number(self) -> int:
        token = self.take()
        if not token.isdigit() or len(token) > 9:
            raise PathError("an index is a whole number")
        return int(token)

    def start(self) -> tuple[str | None, Step]:
        word = self.peek()
        if word in _ROOTS or word == self.type:
            self.take()
            return None, (lambda found, run: found) if word == "$this" else (lambda found, run: [run.root])
        return self.invocation()

    def invocation(self) -> tuple[str | None, Step]:
        kind, name = self.tokens[self.at] if self.at < len(self.tokens) else (None, "")
        if kind not in (2, 3) or name[0] in "$%":
            raise self.foreign()
        self.take()
        if self.peek() != "(":
            return name, lambda found, run: [child for one in _elements(found) for child in inside(one, name)]
        self.take("(")
        step = self.function(name)
        self.take(")")
        return None, step

    def function(self, name: str) -> Step:
        match name:
            case "where":
                return _where(self.criteria())
            case "exists":
                test = self.criteria() if self.peek() != ")" else None
                return lambda found, run: [bool(_where(test)(found, run) if test else found)]
            case "empty":
                return lambda found, run: [not found]
            case "not":
                return lambda found, run: [not _truth(found)] if found else []
            case "first":
                return lambda found, run: found[:1]
            case "last":
                return lambda found, run: found[-1:]
            case "ofType" | "as":
                wanted = self.take()
                return lambda found, run: [one for one in _elements(found) if one.type == wanted]
            case "extension":
                url = self.literal()
                return lambda found, run: [
                    child for one in _elements(found) for child in inside(one, "extension") if child.value.get("url") == url
                ]
            case "resolve":
                return _resolve
        raise PathError(f"the function {name[:64]}() is not understood in a path")

    def literal(self) -> Any:
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else None
        word = self.take()
        if kind == 1:
            return re.sub(r"\\(.)", r"\1", word[1:-1])
        if kind == 4:
            return Decimal(word)
        if word in ("true", "false"):
            return word == "true"
        raise PathError("a value in quotes, a number, true or false is missing in the path")

    # --- criteria

    def criteria(self) -> Step:
        sides = [self.conjunction()]
        while self.peek() == "or":
            self.take()
            sides.append(self.conjunction())
        return sides[0] if len(sides) == 1 else lambda found, run: _either([side(found, run) for side in sides], True)

    def conjunction(self) -> Step:
        sides = [self.comparison()]
        while self.peek() == "and":
            self.take()
            sides.append(self.comparison())
        return sides[0] if len(sides) == 1 else lambda found, run: _either([side(found, run) for side in sides], False)

    def comparison(self) -> Step:
        left = self.operand()
        if self.peek() not in ("=", "!="):
            return left
        equal = self.take() == "="
        right = self.operand()
        return lambda found, run: _compared(left(found, run), right(found, run), equal)

    def operand(self) -> Step:
        if self.peek() == "(":
            self.take()
            inner = self.criteria()
            self.take(")")
            return inner
        kind = self.tokens[self.at][0] if self.at < len(self.tokens) else None
        if kind in (1, 4) or self.peek() in ("true", "false"):
            value = self.literal()
            return lambda found, run: [value]
        steps = self.path()

        def follow(found: Found, run: _Run) -> Found:
            for _, step in steps:
                found = step(found, run)
                run.effort.spend(len(found))
            return found

        return follow


def _elements(found: Found) -> list[Place]:
    if not all(isinstance(one, Place) for one in found):
        raise PathError("only an element has children")
    return found


def _at(index: int) -> Step:
    return lambda found, run: found[index : index + 1]


def _where(test: Step) -> Step:
    return lambda found, run: [one for one in found if _truth(test([one], run))]


def _truth(found: Found) -> bool:
    values = [one.value if isinstance(one, Place) else one for one in found]
    return len(values) == 1 and values[0] is not False


def _either(sides: Sequence[Found], decisive: bool) -> Found:
    """`or` (decisive: true) and `and` (decisive: false), where nothing stands for what is not known."""
    known = [_truth(side) for side in sides if side]
    if decisive in known:
        return [decisive]
    return [not decisive] if len(known) == len(sides) else []


def _compared(left: Found, right: Found, equal: bool) -> Found:
    if not left or not right:
        return []
    sides = [[one.value if isinstance(one, Place) else one for one in side] for side in (left, right)]
    same = len(left) == len(right) and all(map(_same, *sides))
    return [same is equal]


def _same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _resolve(found: Found, run: _Run) -> Found:
    """What the references lead to within the resource: FHIRPath Patch never leaves it."""
    texts = [one.value.get("reference") if isinstance(one.value, dict) else one.value for one in _elements(found)]
    if not all(isinstance(text, str) and text.startswith("#") for text in texts):
        raise PathError("resolve() leads to contained resources only")
    return [place for place in inside(run.root, "contained") if f"#{place.value.get('id')}" in texts]
