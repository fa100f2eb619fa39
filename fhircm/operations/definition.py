"""An operation as its OperationDefinition says it is: where it may be called, and with what.

https://hl7.org/fhir/R4/operationdefinition.html
"""

from __future__ import annotations

import json as std_json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from fhircm.fhir.artefacts import folder
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Invalid, Issue, NotSupported
from fhircm.fhir.systems import HUB
from fhircm.operations.call import Answer, Argument, Call, Searchset

_AS_SENT = f"{HUB}StructureDefinition/as-sent"  # marks an operation that takes resources that may be wrong
PLAIN = f"{HUB}StructureDefinition/plain-json"  # marks an operation that also takes plain JSON

Function = Callable[[Call], Awaitable[Answer | Searchset]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that goes in; `max` None is `*`, `type` '' has parts."""

    name: str
    type: str
    min: int
    max: int | None
    parts: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation: `levels` are system, type and instance; `types` the resource types that have it (empty: all)."""

    code: str
    url: str
    levels: frozenset[str]
    types: frozenset[str]
    affects_state: bool
    parameters: tuple[Parameter, ...]
    function: Function
    as_sent: bool = False  # a resource that is passed to it may be wrong: it is not checked before
    plain: bool = False  # its parameters may also come as plain JSON

    @property
    def needs_body(self) -> bool:
        """Whether it must be given what no URL can hold."""
        return any(one.min and one.type not in definitions().primitives for one in self.parameters)

    def is_at(self, type: str | None, id: str | None) -> bool:
        """Whether it may be called there."""
        if type is None:
            return "system" in self.levels
        return ("type" if id is None else "instance") in self.levels and (not self.types or type in self.types)

    def of_query(self, query: Iterable[tuple[str, str]]) -> list[Argument]:
        """The arguments of a call by GET. Raises Invalid, NotSupported."""
        given = [(self.parameter(name), text) for name, text in query if name not in ("_format", "_pretty")]
        return self._complete([Argument(one.name, one.type, _from_text(one, text)) for one, text in given])

    def of_body(self, tree: dict[str, Any] | None) -> list[Argument]:
        """The arguments of a call by POST: a Parameters resource, or the one resource that the operation takes."""
        if tree is None:
            return self._complete([])
        type = str(tree.get("resourceType", ""))
        if type != "Parameters":
            one = next((one for one in self.parameters if one.type in (type, "Resource")), None)
            if one is None:
                raise NotSupported(f"${self.code} takes its parameters in a resource of the type Parameters")
            return self._complete([Argument(one.name, type, tree)])
        return self._complete(_arguments(self.code, self.parameters, tree.get("parameter", ()), "Parameters"))

    def of_plain(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Plain JSON as a Parameters resource. Raises NotSupported for a member that is no parameter."""
        given = list(_plain(self.code, self.parameters, tree))
        return {"resourceType": "Parameters"} | ({"parameter": given} if given else {})

    def has(self, name: str) -> bool:
        """Whether it has a parameter of this name."""
        return any(one.name == name for one in self.parameters)

    def parameter(self, name: str) -> Parameter:
        """The parameter of this name. Raises NotSupported, with those that there are."""
        return _named(self.code, self.parameters, name)

    def _complete(self, arguments: list[Argument]) -> list[Argument]:
        issues = list(_counted(self.parameters, arguments, "Parameters"))
        if issues:
            raise Invalid(issues[0].text, issues=issues)
        return arguments


def load(name: str, function: Function) -> Operation:
    """The operation that `profiles/operation/` defines under this name."""
    tree = std_json.loads((folder("profiles") / "operation" / f"{name}.json").read_text())
    levels = frozenset(level for level in ("system", "type", "instance") if tree[level])
    types = frozenset(tree.get("resource", ())) - {"Resource"}
    known = tuple(_defined(one) for one in tree.get("parameter", ()) if one["use"] == "in")
    as_sent = any(one["url"] == _AS_SENT for one in tree.get("extension", ()))
    plain = any(one["url"] == PLAIN and one["valueBoolean"] for one in tree.get("extension", ()))
    return Operation(
        tree["code"], tree["url"], levels, types, tree.get("affectsState", False), known, function, as_sent=as_sent, plain=plain
    )


def _defined(tree: dict[str, Any]) -> Parameter:
    most = tree["max"]
    parts = tuple(_defined(part) for part in tree.get("part", ()))
    return Parameter(tree["name"], tree.get("type", ""), tree["min"], None if most == "*" else int(most), parts)


def _named(code: str, known: Sequence[Parameter], name: str) -> Parameter:
    found = next((one for one in known if one.name == name), None)
    if found is None:
        names = ", ".join(one.name for one in known) or "none"
        raise NotSupported(f"${code} has no parameter '{name[:64]}'; it has: {names}")
    return found


def _plain(code: str, known: Sequence[Parameter], tree: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for name, value in tree.items():
        one = _named(code, known, name)
        for single in value if isinstance(value, list) else [value]:
            if one.parts and isinstance(single, dict):
                yield {"name": name, "part": list(_plain(code, one.parts, single))}
            else:
                yield {"name": name, f"value{one.type[:1].upper()}{one.type[1:]}": single}


def _counted(known: Sequence[Parameter], arguments: Sequence[Argument], path: str) -> Iterable[Issue]:
    for one in known:
        count = sum(argument.name == one.name for argument in arguments)
        if count < one.min:
            yield Issue("error", "required", f"The parameter '{one.name}' is required", path)
        if one.max is not None and count > one.max:
            yield Issue("error", "structure", f"The parameter '{one.name}' may be given {one.max} time(s) only", path)


def _arguments(code: str, known: Sequence[Parameter], given: Sequence[dict[str, Any]], path: str) -> list[Argument]:
    found: list[Argument] = []
    for index, tree in enumerate(given):
        at = f"{path}.parameter[{index}]" if path == "Parameters" else f"{path}.part[{index}]"
        one = _named(code, known, tree["name"])
        if "resource" in tree:
            found.append(Argument(one.name, str(tree["resource"].get("resourceType", "")), tree["resource"]))
        elif "part" in tree:
            parts = _arguments(code, one.parts, tree["part"], at)
            issues = list(_counted(one.parts, parts, at))
            if issues:
                raise Invalid(issues[0].text, issues=issues)
            found.append(Argument(one.name, "", None, tuple(parts)))
        else:
            member = next((name for name in tree if name.startswith("value")), None)
            if member is None:
                raise Invalid(f"{at} has no value", f"{at}.value")
            kind = member.removeprefix("value")
            if one.type not in ("", "Element", "*") and kind.lower() not in _spellings(one.type):
                raise Invalid(f"{at} must have a value of the type {one.type}", f"{at}.{member}")
            found.append(Argument(one.name, one.type or kind, tree[member]))
    return found


# A caller that writes a code or a URL as a plain string is understood.
_TEXTS = frozenset({"string", "code", "uri", "url", "canonical", "id", "markdown", "date", "datetime", "instant"})


def _spellings(type: str) -> frozenset[str]:
    lower = type.lower()
    return _TEXTS if lower in _TEXTS else frozenset({lower})


def _from_text(one: Parameter, text: str) -> Any:
    """The value of a parameter that came in the URL: only primitives can."""
    if "\0" in text:
        raise Invalid(f"The value of the parameter '{one.name}' holds the character U+0000", one.name)
    if one.type not in definitions().primitives:
        raise NotSupported(f"The parameter '{one.name}' must be sent by POST in a Parameters resource")
    try:
        match one.type:
            case "boolean":
                return {"true": True, "false": False}[text]
            case "integer" | "positiveInt" | "unsignedInt":
                return int(text)
            case "decimal":
                return Decimal(text)
    except (KeyError, ValueError, InvalidOperation):
        raise Invalid(f"The parameter '{one.name}' must be of the type {one.type}", one.name) from None
    return text
