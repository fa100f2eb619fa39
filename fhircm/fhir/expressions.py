"""Search parameter expressions compiled to Python closures: the part of FHIRPath that they use, typed by HL7's element tables.

https://hl7.org/fhir/R4/searchparameter-definitions.html#SearchParameter.expression and http://hl7.org/fhirpath/N1/

An expression becomes branches, one for each element type that it can yield: `Observation.effective` has four. Types are known
when the expression is compiled, so that at run time a branch only follows keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhircm.fhir.definitions import Element, definitions
from fhircm.fhir.references import parse_reference

Getter = Callable[[Any], list[Any]]

_TOKEN = re.compile(r"\s*(?:([A-Za-z_%$][A-Za-z0-9_]*)|('(?:[^'\\]|\\.)*')|(\d+)|(!=|[.()\[\]|=,])|(\S))")
_INLINE = frozenset({"BackboneElement", "Element"})
_ANY_RESOURCE = frozenset({"Resource", "DomainResource"})
_RESOLVED = "(resolved)"  # what resolve() yields: here the name of the type that a reference points to
_LITERAL = "(literal)"
_LEADS_TO = re.compile(r"resolve \( \) is (\w+)")


class NotCompilable(Exception):
    """The expression uses what is not understood here, or names an element that does not exist."""


@dataclass(frozen=True, slots=True)
class Branch:
    """The values of one type that an expression yields: `get(tree)` lists them; `path` is where their elements are defined.

    `targets` are the resource types that a Reference can lead to; none: any. `root` is the member of the resource below which all of
    it stands: without that there is nothing to get. '': the resource itself; None: not known.
    """

    get: Getter
    type: str
    path: str
    targets: tuple[str, ...] = ()
    root: str | None = None


def compile_expression(expression: str, type: str, within: Branch | None = None) -> list[Branch]:
    """Compile the expression for resources of this type; parts that belong to other types yield no branch.

    `within`: the expression starts from an element that this branch yields, not from the resource. Raises NotCompilable, with the reason.
    """
    start = within or Branch(lambda tree: [tree], type, type, root="")
    parser = _Parser(expression, type, [replace(start, get=lambda value: [value])])
    branches = parser.whole()
    if any(branch.type in (_RESOLVED, _LITERAL) for branch in branches):
        raise NotCompilable("the expression yields no element")
    return branches


class _Parser:
    """Recursive descent over the expression. `focus` is what the first name of a path starts from."""

    def __init__(self, expression: str, type: str, focus: Sequence[Branch]) -> None:
        self.tokens = [next(group for group in found.groups() if group is not None) for found in _TOKEN.finditer(expression)]
        self.at = 0
        self.type = type
        self.focus = list(focus)

    def whole(self) -> list[Branch]:
        branches = self.conjunction()
        if self.at < len(self.tokens):
            raise NotCompilable(f"'{self.tokens[self.at]}' is not understood")
        return branches

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise NotCompilable(f"'{expected or 'more'}' is missing before '{token}'")
        self.at += 1
        return token

    def conjunction(self) -> list[Branch]:
        left = self.comparison()
        while self.peek() == "and":
            self.take()
            left = [_both(left, self.comparison())]
        return left

    def comparison(self) -> list[Branch]:
        left = self.union()
        if self.peek() in ("=", "!="):
            equal = self.take() == "="
            left = [_compared(left, self.union(), equal)]
        return left

    def union(self) -> list[Branch]:
        branches = self.typed()
        while self.peek() == "|":
            self.take()
            branches = branches + self.typed()
        return branches

    def typed(self) -> list[Branch]:
        branches = self.path()
        while self.peek() in ("as", "is"):
            branches = _of_type(branches, self.take()) if self.take() == "as" else [_is(branches, self.take())]
        return branches

    def path(self) -> list[Branch]:
        branches = self.start()
        while self.peek() in (".", "["):
            if self.take() == "[":
                branches = [_at(branch, int(self.take())) for branch in branches]
                self.take("]")
            else:
                branches = self.invocation(branches)
        return branches

    def start(self) -> list[Branch]:
        word = self.peek()
        if word == "(":
            self.take()
            branches = self.conjunction()
            self.take(")")
            return branches
        if word.startswith("'") or word in ("true", "false"):
            self.take()
            literal: Any = re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith("'") else word == "true"
            return [Branch(lambda _: [literal], _LITERAL, _LITERAL)]
        if word == "$this":
            self.take()
            return self.focus
        if word == self.type or word in _ANY_RESOURCE:
            self.take()
            return self.focus
        if word in definitions().resource_types:
            return self.skip()
        return self.invocation(self.focus)

    def skip(self) -> list[Branch]:
        """Pass over a path of another resource type."""
        self.take()
        while self.peek() in (".", "["):
            self.take()
            self.take()
            if self.peek() == "]":
                self.take()
            elif self.peek() == "(":
                self.arguments()
        return []

    def arguments(self) -> str:
        """The text between the brackets of a call."""
        self.take("(")
        start, depth = self.at, 1
        while depth:
            depth += {"(": 1, ")": -1}.get(self.take(), 0)
        return " ".join(self.tokens[start : self.at - 1])

    def invocation(self, branches: list[Branch]) -> list[Branch]:
        name = self.take()
        if not re.match(r"[A-Za-z_]", name):
            raise NotCompilable(f"'{name}' is not understood")
        if self.peek() != "(":
            return _child(branches, name)
        argument = self.arguments()
        match name:
            case "as" | "ofType":
                return _of_type(branches, argument)
            case "is":
                return [_is(branches, argument)]
            case "where":
                return [_where(branch, argument, self.type) for branch in branches]
            case "exists" if not argument:
                return [_exists(branches)]
            case "first" if not argument:
                return [_at(branch, 0) for branch in branches]
            case "extension":
                return [_where(branch, f"url = {argument}", self.type) for branch in _child(branches, "extension")]
            case "resolve" if not argument:
                return [Branch(_resolved(branch.get), _RESOLVED, _RESOLVED) for branch in branches]
        raise NotCompilable(f"the function {name}() is not understood here")


def _element(path: str, name: str) -> tuple[str, Element] | None:
    elements = definitions().elements
    for candidate in (f"{path}.{name}", f"{path}.{name}[x]"):
        if element := elements.get(candidate):
            if element.content_reference:
                candidate = element.content_reference.rpartition("#")[2]
                element = elements[candidate]
            return candidate, element
    return None


def _by_member(path: str, member: str) -> tuple[str, Element] | None:
    """The choice that a guide names by its JSON member (`valueDateTime`), which FHIRPath does not know: that one type of it."""
    for length in range(1, len(member)):
        if not member[length].isupper():
            continue
        if element := definitions().elements.get(f"{path}.{member[:length]}[x]"):
            types = tuple(type for type in element.types if member[length:] == type.code[0].upper() + type.code[1:])
            return (f"{path}.{member[:length]}[x]", replace(element, types=types)) if types else None
    return None


def _child(branches: list[Branch], name: str) -> list[Branch]:
    children: list[Branch] = []
    for branch in branches:
        found = _element(branch.path, name) or _by_member(branch.path, name)
        if found is None:
            continue
        path, element = found
        for type, targets in element.types:
            stem = path.rpartition(".")[2].removesuffix("[x]")
            key = stem + type[0].upper() + type[1:] if path.endswith("[x]") else name
            inline = type in _INLINE
            plain = type.removeprefix("http://hl7.org/fhirpath/System.").lower() if type.startswith("http") else type
            known = () if "Resource" in targets else targets
            children.append(Branch(_followed(branch.get, key), plain, path if inline else plain, known, branch.root or key))
    if branches and not children:
        raise NotCompilable(f"there is no element '{name}' in {' or '.join(sorted({branch.path for branch in branches}))}")
    return children


def _followed(parent: Getter, key: str) -> Getter:
    def get(tree: Any) -> list[Any]:
        found: list[Any] = []
        for value in parent(tree):
            child = value.get(key) if isinstance(value, dict) else None
            if isinstance(child, list):
                found.extend(member for member in child if member is not None)
            elif child is not None:
                found.append(child)
        return found

    return get


def _of_type(branches: list[Branch], type: str) -> list[Branch]:
    return [branch for branch in branches if branch.type.casefold() == type.casefold()]  # HL7 writes DateTime, too


def _at(branch: Branch, index: int) -> Branch:
    parent = branch.get
    return replace(branch, get=lambda tree: parent(tree)[index : index + 1])


def _exists(branches: list[Branch]) -> Branch:
    getters = [branch.get for branch in branches]
    return Branch(lambda tree: [any(get(tree) for get in getters)], "boolean", "boolean")


def _both(left: list[Branch], right: list[Branch]) -> Branch:
    sides = [[branch.get for branch in side] for side in (left, right)]
    return Branch(lambda tree: [all(any(True in get(tree) for get in side) for side in sides)], "boolean", "boolean")


def _compared(left: list[Branch], right: list[Branch], equal: bool) -> Branch:
    """Equality of a single value with a literal; nothing compared with anything is nothing, as FHIRPath has it.

    A value of another type than the literal differs from it: Patient.deceased as a dateTime is not false.
    """
    if len(right) != 1 or right[0].type != _LITERAL:
        raise NotCompilable("only comparisons with a literal are understood")
    literal = right[0].get(None)[0]
    getters = [branch.get for branch in left]

    def get(tree: Any) -> list[Any]:
        values = [value for one in getters for value in one(tree)]
        return [(values == [literal]) is equal] if values else []

    return Branch(get, "boolean", "boolean")


def _where(branch: Branch, criteria: str, type: str) -> Branch:
    inside = _Parser(criteria, type, [Branch(lambda value: [value], branch.type, branch.path)])
    tests = [test.get for test in inside.whole()]
    parent = branch.get
    led_to = _LEADS_TO.fullmatch(criteria)
    return replace(
        branch,
        get=lambda tree: [value for value in parent(tree) if any(True in test(value) for test in tests)],
        targets=(led_to[1],) if led_to else branch.targets,
    )


def _is(branches: list[Branch], type: str) -> Branch:
    if any(branch.type != _RESOLVED for branch in branches):
        raise NotCompilable("'is' is understood behind resolve() only")
    getters = [branch.get for branch in branches]
    return Branch(lambda tree: [any(type in get(tree) for get in getters)], "boolean", "boolean")


def _resolved(parent: Getter) -> Getter:
    """The types that references point to, as far as the reference itself tells."""

    def get(tree: Any) -> list[Any]:
        types = []
        for value in parent(tree):
            text = value.get("reference") if isinstance(value, dict) else value
            named = parse_reference(text).type if isinstance(text, str) else None
            types.append(named or (value.get("type") if isinstance(value, dict) else None))
        return types

    return get
