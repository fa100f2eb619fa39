"""What a rule of a map does to a resource, and how the rules that go both ways are turned round.

https://hl7.org/fhir/R4/fhirpatch.html for the element rules, https://hl7.org/fhir/R4/conceptmap.html for translations. A rule works on the
tree of one resource and knows by a look at the bytes when it has nothing to do. docs/reference/maps.md explains the words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fhircm.exchange.concept_maps import Translator
from fhircm.fhir.fhirpath import ExpressionWrong, evaluate
from fhircm.fhir.fhirpath_patch import Given, Operation, do
from fhircm.fhir.locations import Effort, parse_path
from fhircm.fhir.outcome import FhirError, Invalid
from fhircm.fhir.places import Place, lists, named, write_lists, write_one
from fhircm.fhir.walk import walk

Tree = dict[str, Any]
# https://hl7.org/fhir/extensions/StructureDefinition-alternate-codes.html: what a code was before, where R4 has room for one only.
ALTERNATE = "http://hl7.org/fhir/StructureDefinition/alternate-codes"


class MappingFailed(FhirError):
    """A rule of a map cannot be done on a resource; the text names file, rule and reason, and nothing of what the resource says."""

    status, code = 422, "processing"


class Unmapped(NamedTuple):
    """A code that a rule was to translate and no map has."""

    type: str
    path: str
    system: str
    code: str


@dataclass
class Notes:
    """What is noted while rules are done."""

    unmapped: Counter[Unmapped] = field(default_factory=Counter)
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. `at` is where it stands: the file, the type and its number, or the name it was given."""

    at: str
    when: str | None = None

    def touches(self, body: bytes) -> bool:
        """Whether it may have something to do with a body: never False when it has."""
        return True

    def do(self, tree: Tree, notes: Notes) -> None:
        """Do it. Raises FhirError."""
        raise NotImplementedError

    def turned(self) -> Rule | None:
        """The rule that takes it back; None when there is none."""
        return None


def done(rule: Rule, tree: Tree, notes: Notes) -> bool:
    """Do a rule when its condition holds; says whether it held. Raises MappingFailed."""
    try:
        if rule.when is not None and not holds(rule.when, tree):
            return False
        rule.do(tree, notes)
    except FhirError as error:
        raise MappingFailed(f"{rule.at}: {error}", str(tree.get("resourceType"))) from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise MappingFailed(f"{rule.at}: the resource is not built as R4 has it", str(tree.get("resourceType"))) from None
    return True


def holds(when: str, tree: Tree) -> bool:
    """Whether a condition is true: one thing that is not a flag counts as true, nothing at all does not."""
    found = evaluate(when, tree)
    return len(found) == 1 and found[0] is not False


def mentions(body: bytes, texts: tuple[bytes, ...]) -> bool:
    """Whether one of these may stand in a body: a string may be written with escapes."""
    return any(text in body for text in texts) or b"\\/" in body or b"\\u00" in body


# --- elements ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Rule):
    """An operation of FHIRPath Patch. `value` is a constant, or an expression whose result it is; `type` "" is that of the element."""

    operation: Operation
    type: str = ""
    value: Any = None
    expression: str | None = None

    def do(self, tree: Tree, notes: Notes) -> None:
        operation = self.operation
        if operation.type in ("add", "insert", "replace"):
            value = self.value
            if self.expression is not None:
                found = evaluate(self.expression, tree)
                if len(found) != 1:
                    raise ExpressionWrong(f"the expression of the value gives {len(found) or 'no'} values; it must give one")
                value = found[0]
            operation = replace(operation, value=Given(self.type or self._type(tree, notes.effort), value))
        do(tree, operation, notes.effort)

    def _type(self, tree: Tree, effort: Effort) -> str:
        """The type of the element that the value is for."""
        path = parse_path(self.operation.path, str(tree["resourceType"]))
        if self.operation.type == "insert":
            holders, name = path.collection(tree, effort)
            types = {child.type for one in holders for child in named(one.inner_type, name).values()}
        elif self.operation.type == "add":
            types = {
                child.type for one in path.places(tree, effort) for child in named(one.inner_type, self.operation.name).values()
            }
        else:
            types = {one.type for one in path.places(tree, effort)}
        if len(types) > 1:
            raise Invalid(f"the element may be of several types: write value{'/value'.join(sorted(types))} instead of value")
        return types.pop() if types else ""


# --- names: identifier systems, code systems, extensions ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rename(Rule):
    """Another name for the same thing, wherever it stands: the system of Identifiers or Codings, the url of Extensions."""

    element: str  # Identifier, Coding or Extension
    member: str  # system or url
    names: Mapping[str, str]

    def touches(self, body: bytes) -> bool:
        return mentions(body, tuple(name.encode() for name in self.names))

    def do(self, tree: Tree, notes: Notes) -> None:
        for node in walk(tree, frozenset({self.element})):
            name = node.value.get(self.member)
            if name in self.names:
                node.value[self.member] = self.names[name]

    def turned(self) -> Rule:
        return replace(self, names={there: here for here, there in self.names.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfold(Rule):
    """An extension becomes an element of what it stands on, where that element is not there."""

    path: str
    url: str
    element: str

    def touches(self, body: bytes) -> bool:
        return mentions(body, (self.url.encode(),))

    def do(self, tree: Tree, notes: Notes) -> None:
        for place in parse_path(self.path, str(tree["resourceType"])).places(tree, notes.effort):
            holder = place.inner or {}
            found = next((one for one in holder.get("extension", ()) if one.get("url") == self.url), None)
            if found is None or any(member in holder for member in named(place.inner_type, self.element)):
                continue
            member = next(name for name in found if name.startswith("value"))
            kind = member.removeprefix("value")
            element = next(
                (one for one, child in named(place.inner_type, self.element).items() if _named_alike(child.type, kind)), None
            )
            if element is None:
                raise Invalid(f"the extension has a {member}, which {self.element} cannot be")
            repeats = named(place.inner_type, self.element)[element].element.max != 1
            holder[element] = [found[member]] if repeats else found[member]
            holder["extension"] = [one for one in holder["extension"] if one is not found]
            if not holder["extension"]:
                del holder["extension"]

    def turned(self) -> Rule:
        return Fold(at=self.at, when=self.when, path=self.path, url=self.url, element=self.element)


def _named_alike(type: str, kind: str) -> bool:
    return type[:1].upper() + type[1:] == kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold(Rule):
    """An element becomes an extension of what it stands on."""

    path: str
    url: str
    element: str

    def do(self, tree: Tree, notes: Notes) -> None:
        for place in parse_path(self.path, str(tree["resourceType"])).places(tree, notes.effort):
            holder = place.inner or {}
            for member, child in named(place.inner_type, self.element).items():
                if member in holder:
                    values = holder.pop(member)
                    kind = f"value{child.type[:1].upper()}{child.type[1:]}"
                    folded = [{"url": self.url, kind: one} for one in (values if isinstance(values, list) else [values])]
                    holder["extension"] = [*holder.get("extension", ()), *folded]

    def turned(self) -> Rule:
        return Unfold(at=self.at, when=self.when, path=self.path, url=self.url, element=self.element)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Rule):
    """The profiles that a resource claims: some more, some not."""

    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def do(self, tree: Tree, notes: Notes) -> None:
        meta = tree.get("meta", {})
        before = meta.get("profile", [])
        claimed = [one for one in before if one not in self.remove]
        claimed += [one for one in self.add if one not in claimed]
        if claimed == before:
            return
        kept = {name: value for name, value in meta.items() if name != "profile"}
        tree["meta"] = {**kept, "profile": claimed} if claimed else kept
        if not tree["meta"]:
            del tree["meta"]

    def turned(self) -> Rule:
        return replace(self, add=self.remove, remove=self.add)


# --- translations ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Translate(Rule):
    """A local code gets the standard one beside it. In a Coding or a code, where there is room for one, the local one stays in an extension."""

    path: str
    translator: Translator
    system: str | None = None  # of a primitive code, which bears none

    def touches(self, body: bytes) -> bool:
        return self.system is not None or mentions(body, tuple(one.encode() for one in self.translator.sources))

    def do(self, tree: Tree, notes: Notes) -> None:
        for place in _places(self.path, tree, notes):
            if place.type == "CodeableConcept":
                self._concept(tree, place.value, notes)
            elif place.type == "Coding":
                self._coding(tree, place.value, notes)
            else:
                self._code(tree, place, notes)

    def _concept(self, tree: Tree, concept: Tree, notes: Notes) -> None:
        codings = concept.get("coding", [])
        if any(one.get("system") in self.translator.targets for one in codings):
            return
        for coding in list(codings):
            found = self._found(tree, (coding.get("system"), coding.get("code")), notes)
            if found is not None and not any(_same(found, one) for one in codings):
                codings.append(found)

    def _coding(self, tree: Tree, coding: Tree, notes: Notes) -> None:
        found = self._found(tree, (coding.get("system"), coding.get("code")), notes)
        if found is None:
            return
        local = dict(coding)
        kept = local.pop("extension", [])
        coding.clear()
        coding.update({"extension": [*kept, _alternate(local)], **found})

    def _code(self, tree: Tree, place: Place, notes: Notes) -> None:
        found = self._found(tree, (self.system, place.value), notes)
        if found is None or found["code"] == place.value:
            return
        local = {"system": self.system, "code": place.value}
        beside = (place.inner or {}) if place.value is not None else {}
        kept = [one for one in beside.get("extension", ()) if one.get("url") != ALTERNATE]
        _set_code(place, found["code"], {**beside, "extension": [*kept, _alternate(local)]})

    def _found(self, tree: Tree, code: tuple[Any, Any], notes: Notes) -> Tree | None:
        if code[0] not in self.translator.sources or not isinstance(code[1], str):
            return None
        found = self.translator.there((code[0], code[1]))
        if found is None:
            notes.unmapped[Unmapped(str(tree["resourceType"]), self.path, code[0], code[1])] += 1
            return None
        return dict(found.coding)

    def turned(self) -> Rule:
        return Localise(at=self.at, when=self.when, path=self.path, translator=self.translator, system=self.system)


@dataclass(frozen=True, slots=True, kw_only=True)
class Localise(Rule):
    """The way back: the local code stands for the standard one, which only the hub put beside it; one that no map has stays as it is."""

    path: str
    translator: Translator
    system: str | None = None

    def do(self, tree: Tree, notes: Notes) -> None:
        for place in _places(self.path, tree, notes):
            if place.type == "CodeableConcept":
                self._concept(tree, place.value, notes)
            elif place.type == "Coding":
                self._coding(tree, place, notes)
            else:
                self._code(tree, place, notes)

    def _concept(self, tree: Tree, concept: Tree, notes: Notes) -> None:
        codings = concept.get("coding", [])
        made = []
        for coding in codings:
            if coding.get("system") in self.translator.sources:
                made.append(self.translator.there((coding["system"], coding.get("code", ""))))
        stand_ins = [one.coding for one in made if one is not None]
        kept = [
            one
            for one in codings
            if not (any(_same(one, other) for other in stand_ins) and one.get("system") in self.translator.targets)
        ]
        if not made:
            kept = [self._local(tree, one, notes) or one for one in kept]
        concept["coding"] = kept

    def _local(self, tree: Tree, coding: Tree, notes: Notes) -> Tree | None:
        if coding.get("system") not in self.translator.targets or not isinstance(coding.get("code"), str):
            return None
        found = self.translator.back((coding["system"], coding["code"]))
        if found is None:
            notes.unmapped[Unmapped(str(tree["resourceType"]), self.path, coding["system"], coding["code"])] += 1
            return None
        there = self.translator.there((found.coding["system"], found.coding["code"]))
        # What would come back as another code is no translation.
        return dict(found.coding) if there is not None and _same(there.coding, coding) else None

    def _coding(self, tree: Tree, place: Place, notes: Notes) -> None:
        coding, (local, others) = place.value, _alternates(place.value, self.translator.sources)
        if local is None:
            local = self._local(tree, coding, notes)
        if local is not None:
            coding.clear()
            coding.update({**({"extension": others} if others else {}), **local})

    def _code(self, tree: Tree, place: Place, notes: Notes) -> None:
        beside = place.inner or {}
        local, others = _alternates(beside, self.translator.sources)
        for target in sorted(self.translator.targets) if local is None else ():
            local = local or self._local(tree, {"system": target, "code": place.value}, notes)
        if local is not None:
            kept = {name: value for name, value in beside.items() if name != "extension"}
            _set_code(place, local["code"], {**kept, **({"extension": others} if others else {})})

    def turned(self) -> Rule:
        return Translate(at=self.at, when=self.when, path=self.path, translator=self.translator, system=self.system)


def _places(path: str, tree: Tree, notes: Notes) -> list[Place]:
    return parse_path(path, str(tree["resourceType"])).places(tree, notes.effort)


def _same(one: Tree, other: Tree) -> bool:
    return one.get("system") == other.get("system") and one.get("code") == other.get("code")


def _alternate(local: Tree) -> Tree:
    return {"url": ALTERNATE, "valueCodeableConcept": {"coding": [local]}}


def _alternates(holder: Tree, sources: frozenset[str]) -> tuple[Tree | None, list[Tree]]:
    """The local coding that an extension keeps, and the other extensions."""
    for one in holder.get("extension", ()):
        codings = one.get("valueCodeableConcept", {}).get("coding", [{}]) if one.get("url") == ALTERNATE else [{}]
        if codings[0].get("system") in sources:
            return dict(codings[0]), [other for other in holder["extension"] if other is not one]
    return None, list(holder.get("extension", ()))


def _set_code(place: Place, code: str, beside: Tree) -> None:
    if place.index is None:
        write_one(place.holder, place.member, code, beside or None)
        return
    values, besides = lists(place.holder, place.member)
    values[place.index], besides[place.index] = code, beside or None
    write_lists(place.holder, place.member, values, besides)
