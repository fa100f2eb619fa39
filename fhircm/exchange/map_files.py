"""Read the rules of a map file: every word is checked when it is read, and a mistake names file, key and remedy.

docs/reference/maps.md explains the words; the element rules are those of https://hl7.org/fhir/R4/fhirpatch.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from fhircm.exchange.concept_maps import EQUIVALENCES, translator
from fhircm.exchange.map_rules import Change, Profile, Rename, Rule, Translate, Unfold
from fhircm.exchange.yaml_keys import Keys, load
from fhircm.fhir.definitions import definitions
from fhircm.fhir.fhirpath import ExpressionWrong, check_expression
from fhircm.fhir.fhirpath_patch import Operation
from fhircm.fhir.locations import parse_path
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.places import named
from fhircm.fhir.schema import children
from fhircm.fhir.terminology.artefacts import Artefact

EVERY = "*"  # in place of a type
_OPERATIONS = ("add", "insert", "delete", "replace", "move")
_ACTIONS = (*_OPERATIONS, "translate", "identifier-system", "code-system", "extension", "profile")
_TURNABLE = ("translate", "identifier-system", "code-system", "extension", "profile")
_NAMED = re.compile(r"[A-Za-z][A-Za-z0-9]*")
_MOVING = re.compile(r"\b(?:ofType|as|extension|resolve)\s*\(")


class Written(NamedTuple):
    """The rules of one file, in order: for which type, or EVERY."""

    type: str
    rule: Rule


def read_rules(path: Path, maps: Mapping[str, Artefact]) -> list[Written]:
    """The rules of a file; none when it is not there. Raises YamlWrong."""
    if not path.exists():
        return []
    keys = load(path)
    listed: list[Written] = []
    for type in list(keys.tree):
        if type != EVERY and type not in definitions().resource_types:
            keys.wrong(str(type), "must be an R4 resource type such as DocumentReference, or '*' for all")
        listed += _of_type(keys, type, dict(maps), turnable=path.stem == "both")
    keys.done()
    return listed


def _of_type(keys: Keys, type: str, maps: dict[str, Artefact], *, turnable: bool) -> list[Written]:
    """The list of a type; in outbound.yaml it stands under `rules`, beside what that file says of the type besides."""
    holder, key = keys, type
    if isinstance(keys.tree[type], dict) and keys.path.stem == "outbound":
        holder, key = keys.at(type, keys.take(type, dict, "a mapping")), "rules"
    listed = holder.take(key, list, "a list of rules", [])
    rules = []
    for number, tree in enumerate(listed):
        one = holder.at(f"{key}[{number}]", tree)
        rules.append(Written(type, _rule(one, type, maps, turnable=turnable)))
        one.done()
    return rules


def _rule(keys: Keys, type: str, maps: dict[str, Artefact], *, turnable: bool) -> Rule:
    name = keys.text("rule", "the name of the rule, for people", default=None)
    at = f"{keys.path.parent.name}/{keys.path.name}: {keys.place}" + (f" '{name}'" if name else "")
    when = keys.text("when", "a FHIRPath expression", default=None)
    if when is not None:
        _expression(keys, "when", when, type)
    actions = [one for one in _ACTIONS if one in keys.tree]
    if len(actions) != 1:
        keys.wrong("", f"must do one thing: give one of {', '.join(_ACTIONS)}")
    action = actions[0]
    if turnable and action not in _TURNABLE:
        keys.wrong(action, f"goes one way only: write it in inbound.yaml or outbound.yaml; both.yaml has {', '.join(_TURNABLE)}")
    if type == EVERY and (action in (*_OPERATIONS, "translate")):
        keys.wrong(action, "needs a resource type: write it under each type that it is for")
    about = keys.keys(action, "a mapping")
    rule: Rule = _READ[action](about, type, {"at": at, "when": when}, maps, action)
    if not isinstance(rule, Rename):
        about.done()
    return rule


def _expression(keys: Keys, key: str, expression: str, type: str) -> None:
    try:
        check_expression(expression, "Basic" if type == EVERY else type)
    except ExpressionWrong:
        keys.wrong(key, "must be FHIRPath, with functions that there are: http://hl7.org/fhirpath/N1/")


def _path(keys: Keys, key: str, type: str) -> str:
    """A path into a resource of the type, whose names are there as far as that can be known."""
    path = keys.text(key, f"a FHIRPath path such as {type}.meta")
    try:
        steps = parse_path(path, type).steps
        at: str | None = type
        for name, _ in steps:
            if name is None:
                at = None if _MOVING.search(path) else at
            elif at is not None:
                members = named(at, name)
                if not members:
                    keys.wrong(key, f"names {at}.{name}, which R4 does not have")
                at = next(iter(members.values())).type if len(members) == 1 else None
                at = None if at == "Resource" else at
    except FhirError as error:
        keys.wrong(key, f"cannot be used as a path: {error}")
    return path


def _change(keys: Keys, type: str, common: dict[str, Any], maps: dict[str, Artefact], action: str) -> Rule:
    numbers = {one: keys.number(one, int, 0, 10_000, ...) for one in _numbers(action)}
    name = keys.text("name", "the name of an element", _NAMED) if action == "add" else ""
    operation = Operation(common["at"], action, _path(keys, "path", type), name, None, **numbers)
    if action not in ("add", "insert", "replace"):
        return Change(**common, operation=operation)
    keys.known.append("value")
    given = [one for one in keys.tree if one.startswith("value")]
    if len(given) != 1:
        keys.wrong("value", "is missing: give one value, or value with its type, such as valueCode")
    kind = given[0].removeprefix("value")
    primitive = kind[:1].lower() + kind[1:]
    known = primitive if primitive in definitions().primitives else kind
    if known and known not in definitions().primitives and (known in definitions().resource_types or not children(known)):
        keys.wrong(given[0], "has no type of R4 in its name, such as valueCode or valueCodeableConcept")
    value = _constant(keys, given[0], keys.tree.pop(given[0]))
    if isinstance(value, dict) and set(value) == {"expression"}:
        if not isinstance(value["expression"], str):
            keys.wrong(f"{given[0]}.expression", "must be a FHIRPath expression (put it in quotes)")
        _expression(keys, f"{given[0]}.expression", value["expression"], type)
        return Change(**common, operation=operation, type=known, expression=value["expression"])
    return Change(**common, operation=operation, type=known, value=value)


def _constant(keys: Keys, key: str, value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {str(name): _constant(keys, f"{key}.{name}", one) for name, one in value.items()}
    if isinstance(value, list):
        return [_constant(keys, key, one) for one in value]
    if isinstance(value, float):
        return Decimal(str(value))
    if not isinstance(value, str | int):
        keys.wrong(key, "must be a text, a number, true or false (put dates in quotes)")
    return value


def _numbers(action: str) -> tuple[str, ...]:
    return {"insert": ("index",), "move": ("source", "destination")}.get(action, ())


def _translate(keys: Keys, type: str, common: dict[str, Any], maps: dict[str, Artefact], action: str) -> Rule:
    path, url = _path(keys, "path", type), keys.text("map", "the URL of a ConceptMap", default=None)
    target = keys.text("to", "the URL of a code system", default=None)
    system = keys.text("system", "the URL of the code system of a primitive code", default=None)
    accepted = keys.take("equivalence", list, "a list of equivalences", ["equal", "equivalent"])
    for number, one in enumerate(accepted):
        if one not in EQUIVALENCES:
            keys.wrong(f"equivalence[{number}]", f"must be one of {', '.join(EQUIVALENCES)}")
    if url is None and target is None:
        keys.wrong("map", "is missing: give the URL of a ConceptMap, or `to`: the code system that is wanted")
    found = translator(maps, url, target, accepted)
    if found is None:
        keys.wrong("map" if url else "to", "leads to no ConceptMap: put one with this URL or target into concept-map/")
    return Translate(**common, path=path, translator=found, system=system)


def _rename(element: str, member: str) -> Callable[..., Rule]:
    def read(keys: Keys, type: str, common: dict[str, Any], maps: dict[str, Artefact], action: str) -> Rule:
        names = {name: keys.text(name, "a URI, in quotes where YAML needs them") for name in list(keys.tree)}
        if not names:
            keys.wrong("", "is empty: give the partner's name and the hub's")
        twice = [name for name in names.values() if list(names.values()).count(name) > 1 or name in names]
        if twice:
            keys.wrong("", f"has {twice[0]} twice, so that nothing could lead back; each name must stand once")
        return Rename(**common, element=element, member=member, names=names)

    return read


def _extension(keys: Keys, type: str, common: dict[str, Any], maps: dict[str, Artefact], action: str) -> Rule:
    if "element" not in keys.tree:
        return _rename("Extension", "url")(keys, type, common, maps, action)
    if type == EVERY:
        keys.wrong("element", "needs a resource type: write it under each type that it is for")
    path = _path(keys, "path", type)
    return Unfold(
        **common,
        path=path,
        url=keys.text("url", "the URL of an extension"),
        element=keys.text("element", "the name of an element", _NAMED),
    )


def _profile(keys: Keys, type: str, common: dict[str, Any], maps: dict[str, Artefact], action: str) -> Rule:
    listed = {one: keys.take(one, list, "a list of canonical URLs", []) for one in ("add", "remove")}
    for key, urls in listed.items():
        for number, url in enumerate(urls):
            if not isinstance(url, str) or not url.strip():
                keys.wrong(f"{key}[{number}]", "must be a canonical URL")
    if not any(listed.values()):
        keys.wrong("", "does nothing: give profiles to add or to remove")
    return Profile(**common, add=tuple(listed["add"]), remove=tuple(listed["remove"]))


_READ: dict[str, Callable[..., Rule]] = {
    **dict.fromkeys(_OPERATIONS, _change),
    "translate": _translate,
    "identifier-system": _rename("Identifier", "system"),
    "code-system": _rename("Coding", "system"),
    "extension": _extension,
    "profile": _profile,
}
