"""What a resource can be found by: the values of all its search parameters, as rows of a few kinds.

https://hl7.org/fhir/R4/search.html#ptypes and #composite. The official SearchParameter expressions say where the values stand;
values.py says what a value of each element type means for each parameter type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from fhircm.fhir import guides
from fhircm.fhir.definitions import SearchParameter, definitions
from fhircm.fhir.expressions import Branch, Getter, NotCompilable, compile_expression
from fhircm.fhir.outcome import Invalid, NotSupported
from fhircm.fhir.references import Reference, references
from fhircm.fhir.values import COMPONENT_CONVERTERS, CONVERTERS, Component, Converter, SearchValue, Target, component

# The parameter of the rows that hold every local reference, searchable or not; one to a version holds nobody, for versions stay for ever.
ANY_REFERENCE = "*"
OWN_COLUMNS = frozenset({"_id", "_lastUpdated"})  # the resource table itself answers these

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")  # of a guide's parameter: what begins with _ is R4's own, or the protocol's
_OF_RESOURCE = "%resource."
_SHARED_LIMIT = 20  # values of the resource that are kept with each of its elements


class Source(NamedTuple):
    """Where values stand, what makes rows of them, and the members of the resource without all of which there are none (None: not known)."""

    get: Getter
    convert: Converter
    roots: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Extractor:
    """A search parameter that works for one resource type: where its values stand, and of which types they are.

    `targets`: the resource types that its references can lead to; none: any. HL7's own list is wider than the elements are:
    CarePlan's `patient` leads to no Group. `components`: those of a composite, in the order of their values.
    """

    definition: SearchParameter
    types: frozenset[str]
    targets: tuple[str, ...]
    sources: tuple[Source, ...] = field(repr=False)
    components: tuple[Extractor, ...] = ()

    @property
    def exact_case(self) -> bool:
        """Whether tokens keep their case: identifiers do, codes are compared without it, as FHIR advises when in doubt."""
        return "Identifier" in self.types


class _Known(dict[str, Extractor]):
    """Parameters by code. A query that was understood a moment ago may name one whose guide has gone since."""

    def __missing__(self, code: str) -> Extractor:
        raise NotSupported(f"The search parameter '{code[:64]}' is not in force any more")


@dataclass(frozen=True, slots=True)
class Searchable:
    """What a resource type can be searched by, and why not by the rest. `written` are those that a resource is found by: the
    parameters of a guide are written before they answer, until all that was stored before has been indexed."""

    extractors: Mapping[str, Extractor]
    refused: Mapping[str, str]
    written: Mapping[str, Extractor]
    below: Mapping[
        str, tuple[tuple[Extractor, Source], ...]
    ]  # the sources of `written` by the member of the resource; '': by none


def searchable(type: str, around: guides.InForce | None = None) -> Searchable:
    """The search parameters of a resource type, compiled: R4's and those of the guides in force. `refused` names the others, each
    with its reason."""
    return _searchable(type, around or guides.in_force())


@lru_cache(maxsize=512)
def _searchable(type: str, around: guides.InForce) -> Searchable:
    written: dict[str, Extractor] = {}
    refused: dict[str, str] = {}
    of_guides = around.parameters[type]
    known = definitions().search_parameters[type] | of_guides
    for code, parameter in known.items():
        try:
            written[code] = _extractor(parameter, type, known)
        except NotCompilable as reason:
            refused[code] = str(reason)
    waiting = {code for code in written if code in of_guides and not around.is_indexed(type, of_guides[code])}
    refused |= dict.fromkeys(waiting, "what is stored is being indexed for it; try again when that is done")
    answering = _Known({code: one for code, one in written.items() if code not in waiting})
    below: dict[str, tuple[tuple[Extractor, Source], ...]] = {}
    for extractor in written.values():
        for source in extractor.sources:
            for root in sorted(source.roots) if source.roots is not None else [""]:
                below[root] = (*below.get(root, ()), (extractor, source))
    return Searchable(MappingProxyType(answering), MappingProxyType(refused), MappingProxyType(written), MappingProxyType(below))


def unindexed(around: guides.InForce) -> dict[str, str]:
    """The parameters by which resources must be indexed before they answer: `Patient.race`, and the digest of its definition."""
    return {
        f"{type}.{code}": guides.digest(parameter)
        for type, parameters in sorted(around.parameters.items())
        for code, parameter in sorted(parameters.items())
        if code in searchable(type, around).written and not around.is_indexed(type, parameter)
    }


def _extractor(parameter: SearchParameter, type: str, known: Mapping[str, SearchParameter]) -> Extractor:
    if not _CODE.fullmatch(parameter.code) and parameter.code not in definitions().search_parameters[type]:
        raise NotCompilable("its code cannot stand in a URL, or begins like a parameter of the protocol")
    if not parameter.expression:
        raise NotCompilable("its definition has no expression")
    if parameter.code in OWN_COLUMNS:
        return Extractor(parameter, frozenset({"id" if parameter.code == "_id" else "instant"}), (), ())
    branches = compile_expression(parameter.expression, type)
    if parameter.type == "composite":
        return _composite(parameter, type, branches, known)
    usable = _usable(parameter, branches)
    return _of_branches(parameter, usable, tuple(_source(branch, CONVERTERS[parameter.type]) for branch in usable))


def _source(branch: Branch, converters: Mapping[str, Converter]) -> Source:
    convert = converters.get(branch.type) or converters[branch.path]
    return Source(branch.get, convert, frozenset({branch.root}) if branch.root else None)


def _converter(parameter: SearchParameter, branch: Branch) -> Converter | None:
    converters = CONVERTERS[parameter.type]
    return converters.get(branch.type) or converters.get(branch.path)


def _usable(parameter: SearchParameter, branches: list[Branch]) -> list[Branch]:
    usable = [branch for branch in branches if _converter(parameter, branch)]
    if not usable:
        found = ", ".join(sorted({branch.type for branch in branches})) or "nothing"
        raise NotCompilable(f"a {parameter.type} parameter cannot be read from {found}")
    return usable


def _of_branches(parameter: SearchParameter, branches: list[Branch], sources: tuple[Source, ...]) -> Extractor:
    return Extractor(parameter, frozenset(branch.type for branch in branches), _targets(parameter, branches), sources)


def _targets(parameter: SearchParameter, branches: list[Branch]) -> tuple[str, ...]:
    known = [branch.targets for branch in branches if branch.type == "Reference"]
    if not known or not all(known):
        return parameter.targets
    return tuple(sorted({target for targets in known for target in targets}))


# --- composites


@dataclass(frozen=True, slots=True)
class _Part:
    """A component within one kind of element: `sources` are asked for values of the element, or of the resource."""

    of_resource: bool
    sources: tuple[Source, ...]
    branches: tuple[Branch, ...]

    def rows(self, key: str, tree: Any, element: Any) -> list[SearchValue]:
        start = tree if self.of_resource else element
        rows = [row for get, convert, _ in self.sources for value in get(start) for row in convert(key, value)]
        if self.of_resource and len(rows) > _SHARED_LIMIT:
            raise Invalid(
                f"At most {_SHARED_LIMIT} codes are taken here, for each is kept again with every element", self.branches[0].path
            )
        return rows


def component_key(code: str, number: int) -> str:
    """The parameter under which the rows of a component stand; those of the first stand under the composite's own."""
    return f"{code}${number}" if number else code


def _composite(parameter: SearchParameter, type: str, elements: list[Branch], known: Mapping[str, SearchParameter]) -> Extractor:
    by_url = {one.url: one for one in known.values()}
    members = [by_url[url] for url, _ in parameter.components if url in by_url]
    if len(members) != len(parameter.components) or len(members) < 2:
        raise NotCompilable("it does not have two components or more that are known here")
    expressions = [expression for _, expression in parameter.components]
    places = []
    for element in elements:
        own = [[expression, *expressions] for expression in expressions]
        places.append((element.get, [_part(one, tries, type, element) for one, tries in zip(members, own, strict=True)]))
    components = tuple(
        _of_branches(one, [branch for _, parts in places for branch in parts[number].branches], ())
        for number, one in enumerate(members)
    )
    roots = _needed(elements, [parts[-1] for _, parts in places])
    source = Source(lambda tree: [tree], _combiner(parameter.code, places), roots)
    return Extractor(parameter, frozenset(), (), (source,), components)


def _needed(elements: list[Branch], last: list[_Part]) -> frozenset[str] | None:
    """The members of the resource without all of which there is no such element that has the last, rarest component."""
    roots: set[str | None] = set()
    for element, part in zip(elements, last, strict=True):
        roots |= {element.root} if element.root else {branch.root for branch in part.branches}
    known = frozenset(root for root in roots if root)
    return known if len(known) == len(roots) else None


def _part(parameter: SearchParameter, expressions: list[str], type: str, element: Branch) -> _Part:
    """Read the component by the first of the expressions that fits: HL7 exchanged those of DocumentReference's `relationship`."""
    refusal: NotCompilable | None = None
    for expression in expressions:
        try:
            of_resource = expression.startswith(_OF_RESOURCE)
            path = f"{type}.{expression.removeprefix(_OF_RESOURCE)}" if of_resource else expression
            usable = _usable(parameter, compile_expression(path, type, None if of_resource else element))
        except NotCompilable as reason:
            refusal = refusal or reason
            continue
        converters = COMPONENT_CONVERTERS[parameter.type]
        sources = tuple(_source(branch, converters) for branch in usable)
        return _Part(of_resource, sources, tuple(usable))
    raise refusal or NotCompilable("it has no components")


def _combiner(code: str, places: list[tuple[Getter, list[_Part]]]) -> Converter:
    """The rows of all components of each element that has a value of every one."""
    # The later components are the rarer: every Observation has a code.
    backwards = [(get, [(component_key(code, number), part) for number, part in enumerate(parts)][::-1]) for get, parts in places]

    def convert(_: str, tree: Any) -> Iterator[Component]:
        at = 0
        for elements, parts in backwards:
            for element in elements(tree):
                found: list[SearchValue] = []
                for key, part in parts:
                    rows = part.rows(key, tree, element)
                    if not rows:
                        break
                    found += rows
                else:
                    yield from (component(at, row) for row in found)
                    at += 1

    return convert


# --- values


def search_values(tree: dict[str, Any], named: Sequence[Reference] | None = None) -> list[SearchValue]:
    """All that a resource can be found by, without repetition; `_id` and `_lastUpdated` are columns of their own.

    `named`: the references that it holds, when they are known. Raises Invalid for a value that cannot be read, for example a date that is not in the calendar.
    """
    values: list[SearchValue] = []
    below = searchable(str(tree["resourceType"])).below
    for member in (*tree, ""):
        for extractor, (get, convert, _) in below.get(member, ()):
            try:
                for value in get(tree):
                    values.extend(convert(extractor.definition.code, value))
            except (ValueError, OverflowError, AttributeError, TypeError):
                text = f"The value that the search parameter '{extractor.definition.code}' reads cannot be understood"
                raise Invalid(text, extractor.definition.expression) from None
    for reference in references(tree) if named is None else named:
        if reference.kind == "local" and reference.type and reference.id and not reference.version:
            values.append(Target(ANY_REFERENCE, reference.id, reference.type))
    return list({(value.__class__, value): value for value in values}.values())
