"""Check a resource before it is written: structure first, then what a schema cannot say.

https://hl7.org/fhir/R4/validation.html. Structure by the generated schema (schema.py); then calendar dates, reference targets, narrative,
invariants (invariants.py) and the profiles that the resource claims (profiles.py). Every issue is told with its FHIRPath, and none quotes a
value of the resource.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from itertools import chain, islice
from typing import Any

import jsonschema_rs

from fhircm.fhir import invariants, profiles
from fhircm.fhir.definitions import definitions
from fhircm.fhir.json import dumps, parse
from fhircm.fhir.narrative import narrative_issue
from fhircm.fhir.outcome import Invalid, Issue, Malformed
from fhircm.fhir.references import Reference, parse_reference, references
from fhircm.fhir.schema import Schema, schema
from fhircm.fhir.walk import Node, walk

_MANY = 50  # issues told at most of what is refused
_ALL = 1000  # issues told at most to one who asks for all
_CARRIERS = frozenset({"Bundle", "Parameters"})  # what carries resources that it does not contain
_DATES = frozenset({"date", "dateTime", "instant"})
_WANTED = _DATES | {"Reference", "xhtml"} | invariants.TYPES
_WANTED_OF_CONTAINER = _WANTED | invariants.URLS


@dataclass(frozen=True, slots=True)
class Checked:
    """A resource that passed: only `check` makes one. `body` is as it was received; the numbers of `tree` are Decimal."""

    type: str
    id: str | None
    body: bytes
    tree: dict[str, Any]
    _references: list[Reference] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def references(self) -> list[Reference]:
        """Every reference that it holds; found once, for they are asked for again and again."""
        if not self._references:
            self._references.extend(references(self.tree))
        return self._references


def check(body: bytes, type: str | None = None, *, by_guides: bool = True) -> Checked:
    """Read and check a resource; `type` is the one that the URL demands.

    It is held to the profiles that it claims; to those of guides only `by_guides`, for what others made is taken as it is.
    Raises Malformed for what is not a FHIR resource at all, Invalid with every issue for one that breaks the rules.
    """
    return _checked(body, parse(body), type, by_guides)


def require_valid(tree: dict[str, Any]) -> None:
    """Raises Malformed, Invalid for a tree that `parse` made and that is not kept as it is, as the envelope of a transaction."""
    _checked(b"", tree, None, True)


def check_tree(tree: dict[str, Any], *, by_guides: bool = True) -> Checked:
    """Check a resource that this server made. Raises Invalid."""
    return check(dumps(tree), by_guides=by_guides)


def issues_of(tree: dict[str, Any], type: str | None = None, asked: Sequence[str] = ()) -> list[Issue]:
    """Everything that can be said of a resource, warnings and information too, for one who asks ($validate).

    `type` is the one that the URL demands, `asked` are profiles that it is held to besides those that it claims. Where the structure is wrong, what it means is not looked at, and that is told.
    """
    try:
        named = _named(tree, type)
    except Malformed as error:
        return error.issues
    found = list(islice(_structure(tree, named, named, _ALL), _ALL))
    if found:
        text = "Its structure is wrong: dates, references, invariants and profiles were not looked at"
        return [*found, Issue("information", "incomplete", text)]
    besides = (issue for canonical in asked for issue in profiles.broken_of(tree, canonical))
    return list(dict.fromkeys(islice(chain(_meanings(tree), besides), _ALL)))


def _checked(body: bytes, tree: dict[str, Any], type: str | None, by_guides: bool) -> Checked:
    named = _named(tree, type)
    issues = list(_structure(tree, named, named, _MANY)) or list(_meanings(tree, by_guides))
    errors = [issue for issue in issues if issue.severity in ("error", "fatal")]
    if errors:
        raise Invalid(errors[0].text, issues=errors[:_MANY])
    return Checked(named, tree.get("id"), body, tree)


def _named(tree: dict[str, Any], type: str | None) -> str:
    """The type of a resource. Raises Malformed."""
    named = tree.get("resourceType")
    if not isinstance(named, str):
        raise Malformed("The body has no resourceType", "resourceType")
    if named not in definitions().resource_types:
        raise Malformed("The resourceType is not one of FHIR R4", "resourceType")
    if type is not None and named != type:
        raise Malformed(f"The body is a {named}, and the URL asks for a {type}", "resourceType")
    return named


def _meanings(tree: dict[str, Any], by_guides: bool = True) -> Iterator[Issue]:
    nodes = walk(tree, _WANTED_OF_CONTAINER if "contained" in tree else _WANTED)
    yield from _meaning(nodes)
    yield from invariants.broken(tree, nodes)
    yield from profiles.broken(tree, by_guides=by_guides)


# --- structure ---------------------------------------------------------------------------------------------------------------


@cache
def _validator(type: str) -> Any:
    return jsonschema_rs.validator_for(schema(type), pattern_options=jsonschema_rs.RegexOptions())


def _structure(tree: dict[str, Any], type: str, path: str, most: int) -> Iterator[Issue]:
    """The issues of a resource and of those inside it."""
    validator = _validator(type)
    if not validator.is_valid(tree):
        for number, error in enumerate(validator.iter_errors(tree)):
            if number == most:
                return
            yield from _issues(error, type, path)
    if "contained" not in tree and type not in _CARRIERS:
        return
    for inner_path, inner in _inside(tree, path):
        named = inner.get("resourceType")
        if not isinstance(named, str) or named not in definitions().resource_types:
            yield Issue("error", "structure", f"{inner_path}.resourceType is not a type of FHIR R4", f"{inner_path}.resourceType")
        else:
            yield from _structure(inner, named, inner_path, most)


def _inside(tree: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The resources that a resource contains or carries."""
    for index, contained in enumerate(_list(tree, "contained")):
        yield f"{path}.contained[{index}]", contained
    kind = tree.get("resourceType")
    if kind == "Bundle":
        for index, entry in enumerate(_list(tree, "entry")):
            if isinstance(entry.get("resource"), dict):
                yield f"{path}.entry[{index}].resource", entry["resource"]
            if isinstance(entry.get("response"), dict) and isinstance(entry["response"].get("outcome"), dict):
                yield f"{path}.entry[{index}].response.outcome", entry["response"]["outcome"]
    elif kind == "Parameters":
        yield from _parameters(_list(tree, "parameter"), f"{path}.parameter")


def _parameters(parameters: list[dict[str, Any]], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, parameter in enumerate(parameters):
        if isinstance(parameter.get("resource"), dict):
            yield f"{path}[{index}].resource", parameter["resource"]
        yield from _parameters(_list(parameter, "part"), f"{path}[{index}].part")


def _list(tree: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = tree.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


_SHAPES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


def _issues(error: Any, type: str, root: str) -> Iterator[Issue]:
    keyword = error.schema_path[-1] if error.schema_path else ""
    holder = _at(schema(type), list(error.schema_path)[:-1])
    path = _fhirpath(root, error.instance_path)
    match keyword:
        case "additionalProperties":
            for name in sorted(error.kind.unexpected):
                yield Issue("error", "structure", f"{path} has no element '{name[:64]}'", path)
        case "required":
            missing = f"{path}.{error.kind.property}"
            yield Issue("error", "required", f"{missing} is required", missing)
        case "enum":
            yield Issue("error", "code-invalid", f"{path} must be one of: {', '.join(holder['enum'])}", path)
        case "anyOf" if "required" in holder["anyOf"][0]:
            missing = f"{path}.{holder['anyOf'][0]['required'][0]}"
            yield Issue("error", "required", f"{missing} is required", missing)
        case "anyOf":  # an entry in a list of primitives
            yield from _in_list(holder["anyOf"][1], error, type, path)
        case "oneOf":
            choice = holder["title"].rpartition(".")[2]
            several = "Multiple" in error.kind.__class__.__name__
            text = f"{path} may have only one {choice}" if several else f"{path}.{choice} is required"
            yield Issue("error", "structure" if several else "required", text, f"{path}.{choice.removesuffix('[x]')}")
        case "type":
            yield Issue("error", "value", f"{path} must be {_SHAPES[holder['type']]}", path)
        case "minItems" | "minProperties" | "minLength":
            yield Issue("error", "value", f"{path} must not be empty", path)
        case "pattern":
            yield Issue("error", "value", f"{path} does not have the format of its type", path)
        case "minimum" | "maximum":
            yield Issue(
                "error", "value", f"{path} must be {'at least' if keyword == 'minimum' else 'at most'} {holder[keyword]}", path
            )
        case _:
            yield Issue("error", "structure", f"{path} breaks the rule '{keyword}'", path)


def _in_list(inner: Schema, error: Any, type: str, path: str) -> Iterator[Issue]:
    """What is wrong with an entry that may also be null: the schema of the entry itself tells it better than 'none of these'."""
    resolved = _at(schema(type), inner["$ref"].removeprefix("#/").split("/")) if "$ref" in inner else inner
    if "enum" in resolved:
        yield Issue("error", "code-invalid", f"{path} must be one of: {', '.join(resolved['enum'])}", path)
    else:
        shape = _SHAPES.get(str(resolved.get("type")), "of its type")
        yield Issue("error", "value", f"{path} must be {shape} in the format of its type", path)


def _at(node: Any, path: list[str | int]) -> Any:
    for step in path:
        node = node[int(step)] if isinstance(node, list) else node[step]
    return node


def _fhirpath(root: str, path: list[str | int]) -> str:
    return root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)


# --- meaning -----------------------------------------------------------------------------------------------------------------


def _meaning(nodes: Sequence[Node]) -> Iterator[Issue]:
    for node in nodes:
        if node.type in _DATES:
            if len(node.value) >= 10 and not _is_a_day(node.value[:10]):
                yield Issue("error", "value", f"{node.path} is not a day of the calendar", node.path)
        elif node.type == "Reference":
            if (wrong := _wrong_target(node)) is not None:
                yield wrong
        elif node.type == "xhtml" and (unsafe := narrative_issue(node.value)):
            yield Issue("error", "invalid", f"{node.path} {unsafe}", node.path)


def _is_a_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _wrong_target(node: Node) -> Issue | None:
    written = node.value.get("reference")
    if not node.targets or "Resource" in node.targets or not isinstance(written, str):
        return None
    found = parse_reference(written)
    if found.kind in ("local", "absolute") and found.type and found.type not in node.targets:
        return Issue("error", "value", f"{node.path} may refer to {', '.join(node.targets)}, not to {found.type}", node.path)
    return None
