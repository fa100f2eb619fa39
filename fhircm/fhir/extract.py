"""What a resource can be found by: the values of all its search parameters, as rows of six kinds.

https://hl7.org/fhir/R4/search.html#ptypes. The official SearchParameter expressions say where the values stand; the converters
below say what a value of each element type means for each parameter type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from fhircm.fhir import guides
from fhircm.fhir.definitions import SearchParameter, definitions
from fhircm.fhir.expressions import Branch, Getter, NotCompilable, compile_expression
from fhircm.fhir.outcome import Invalid, NotSupported
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST, clip, date_range, normalise
from fhircm.fhir.references import parse_reference, references

# The parameter of the rows that hold every local reference, searchable or not; one to a version holds nobody, for versions stay for ever.
ANY_REFERENCE = "*"
START = 100  # characters of a normalised string that stand in the index
OWN_COLUMNS = frozenset({"_id", "_lastUpdated"})  # the resource table itself answers these

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")  # of a guide's parameter: what begins with _ is R4's own, or the protocol's
_CURRENCIES = "urn:iso:std:iso:4217"
_UNSEARCHABLE = {
    "composite": "composite parameters are not searched yet",
    "special": "special parameters are not searched yet",
}


class Token(NamedTuple):
    """A code, identifier, flag or contact. Without a system it is ''. `code` is folded unless `exact_case(…)`."""

    parameter: str
    code: str
    system: str


class Target(NamedTuple):
    """What a reference points to: type and id of a local resource, or '' and the URL."""

    parameter: str
    target_id: str
    target_type: str


class Text(NamedTuple):
    """A string; also the words that belong to a code (:text)."""

    parameter: str
    start: str
    normalised: str
    exact: str


class Span(NamedTuple):
    """A time, [low, high) in microseconds since the epoch, UTC."""

    parameter: str
    low: int
    high: int


class Amount(NamedTuple):
    """A number or a quantity, [low, high]; the bounds differ for a Range and where a comparator leaves one side open."""

    parameter: str
    low: float
    high: float
    system: str
    code: str
    unit: str


class Uri(NamedTuple):
    """A URI as it is."""

    parameter: str
    uri: str


SearchValue = Token | Target | Text | Span | Amount | Uri
_Converter = Callable[[str, Any], Iterable[SearchValue]]


def _text(parameter: str, text: Any) -> Iterator[Text]:
    if isinstance(text, str) and (folded := normalise(text)):
        yield Text(parameter, folded[:START], folded, text)


def _human_name(parameter: str, name: dict[str, Any]) -> Iterator[Text]:
    for part in ("family", "given", "prefix", "suffix", "text"):
        values = name.get(part)
        for value in values if isinstance(values, list) else [values]:
            yield from _text(parameter, value)


def _address(parameter: str, address: dict[str, Any]) -> Iterator[Text]:
    for part in ("line", "city", "district", "state", "postalCode", "country", "text"):
        values = address.get(part)
        for value in values if isinstance(values, list) else [values]:
            yield from _text(parameter, value)


def _coding(parameter: str, coding: dict[str, Any]) -> Iterator[SearchValue]:
    code, system = coding.get("code", ""), coding.get("system", "")
    if code or system:
        yield Token(parameter, clip(code.casefold()), clip(system))
    yield from _text(parameter, coding.get("display"))


def _concept(parameter: str, concept: dict[str, Any]) -> Iterator[SearchValue]:
    for coding in concept.get("coding", ()):
        yield from _coding(parameter, coding)
    yield from _text(parameter, concept.get("text"))


def _identifier(parameter: str, identifier: dict[str, Any]) -> Iterator[SearchValue]:
    value = identifier.get("value", "")
    if value or identifier.get("system"):
        yield Token(parameter, clip(value), clip(identifier.get("system", "")))
    kind = identifier.get("type", {})
    yield from _text(parameter, kind.get("text"))
    for coding in kind.get("coding", ()):
        if value and coding.get("code"):
            yield of_type(parameter, coding.get("system", ""), coding["code"], value)


def of_type(parameter: str, system: str, code: str, value: str) -> Token:
    """The row by which `identifier:of-type=system|code|value` finds."""
    return Token(f"{parameter}:of-type", clip(f"{code}|{value}"), clip(system))


def _contact(parameter: str, contact: dict[str, Any]) -> Iterator[Token]:
    if value := contact.get("value"):
        yield Token(parameter, clip(value.casefold()), contact.get("use", ""))


def _reference(parameter: str, value: dict[str, Any]) -> Iterator[SearchValue]:
    text = value.get("reference")
    if isinstance(text, str):
        yield from _url_reference(parameter, text)
    identifier = value.get("identifier")
    if identifier:
        yield from (row for row in _identifier(parameter, identifier) if type(row) is Token)
    elif text is None:  # a display alone can be looked for with :missing only
        yield Target(parameter, "", "")


def _url_reference(parameter: str, text: str) -> Iterator[Target]:
    reference = parse_reference(text)
    if reference.kind == "local" and reference.type and reference.id:
        yield Target(parameter, reference.id, reference.type)
    elif reference.kind == "absolute" and reference.version:
        yield Target(parameter, clip(text.partition("/_history/")[0]), "")
    else:
        yield Target(parameter, clip(text), "")
        bare = text.partition("|")[0]
        if bare != text:
            yield Target(parameter, clip(bare), "")


def _held_resource(parameter: str, tree: dict[str, Any]) -> Iterator[Target]:
    if tree.get("id"):
        yield Target(parameter, str(tree["id"]), str(tree.get("resourceType", "")))


def _moment(parameter: str, text: str) -> Iterator[Span]:
    yield Span(parameter, *date_range(text))


def _period(parameter: str, period: dict[str, Any]) -> Iterator[Span]:
    start, end = period.get("start"), period.get("end")
    if start or end:
        yield Span(parameter, date_range(start)[0] if start else EARLIEST, date_range(end)[1] if end else LATEST)


def _timing(parameter: str, timing: dict[str, Any]) -> Iterator[Span]:
    """Only the outer limits of a timing count; the pattern between them does not."""
    ranges = [date_range(event) for event in timing.get("event", ())]
    ranges += [(low, high) for _, low, high in _period(parameter, timing.get("repeat", {}).get("boundsPeriod", {}))]
    if ranges:
        yield Span(parameter, min(low for low, _ in ranges), max(high for _, high in ranges))


def _real(number: Any) -> float:
    """The nearest number that a database and JSON hold: infinity is beyond JSON."""
    return min(max(float(number), -BOUNDLESS), BOUNDLESS)


def _number(parameter: str, number: Any) -> Iterator[Amount]:
    yield Amount(parameter, _real(number), _real(number), "", "", "")


def _quantity(parameter: str, quantity: dict[str, Any]) -> Iterator[Amount]:
    if (number := quantity.get("value")) is not None:
        comparator = quantity.get("comparator", "")
        low = -BOUNDLESS if comparator.startswith("<") else _real(number)
        high = BOUNDLESS if comparator.startswith(">") else _real(number)
        system, code, unit = (clip(quantity.get(name, "")) for name in ("system", "code", "unit"))
        yield Amount(parameter, low, high, system, code, unit)


def _money(parameter: str, money: dict[str, Any]) -> Iterator[Amount]:
    if (number := money.get("value")) is not None:
        currency = money.get("currency", "")
        yield Amount(parameter, _real(number), _real(number), _CURRENCIES if currency else "", currency, currency)


def _quantities(parameter: str, bounds: dict[str, Any]) -> Iterator[Amount]:
    low, high = bounds.get("low", {}), bounds.get("high", {})
    if low or high:
        unit = [clip(low.get(name) or high.get(name) or "") for name in ("system", "code", "unit")]
        yield Amount(parameter, _real(low.get("value", -BOUNDLESS)), _real(high.get("value", BOUNDLESS)), *unit)


def _code(parameter: str, code: Any) -> Iterator[Token]:
    yield Token(parameter, clip(str(code).casefold()), "")


def _flag(parameter: str, flag: bool) -> Iterator[Token]:
    yield Token(parameter, "true" if flag else "false", "")


def _uri(parameter: str, uri: str) -> Iterator[Uri]:
    yield Uri(parameter, clip(uri))


_TOKENS: dict[str, _Converter] = {
    "Coding": _coding,
    "CodeableConcept": _concept,
    "Identifier": _identifier,
    "ContactPoint": _contact,
    "boolean": _flag,
    **dict.fromkeys(("code", "string", "id", "uri"), _code),
}
_REFERENCES: dict[str, _Converter] = {
    "Reference": _reference,
    "Resource": _held_resource,
    **dict.fromkeys(("canonical", "uri"), _url_reference),
}
_STRINGS: dict[str, _Converter] = {
    "HumanName": _human_name,
    "Address": _address,
    **dict.fromkeys(("string", "markdown"), _text),
}
_DATES: dict[str, _Converter] = {
    "Period": _period,
    "Timing": _timing,
    **dict.fromkeys(("date", "dateTime", "instant"), _moment),
}
_NUMBERS: dict[str, _Converter] = {
    "Range": _quantities,
    **dict.fromkeys(("decimal", "integer", "positiveInt", "unsignedInt"), _number),
}
_QUANTITIES: dict[str, _Converter] = {
    "Money": _money,
    "Range": _quantities,
    **dict.fromkeys(("Quantity", "SimpleQuantity", "Age", "Duration", "Count", "Distance"), _quantity),
}
_URIS: dict[str, _Converter] = dict.fromkeys(("uri", "url", "canonical", "oid", "uuid"), _uri)
_CONVERTERS: Mapping[str, dict[str, _Converter]] = {
    "token": _TOKENS,
    "reference": _REFERENCES,
    "string": _STRINGS,
    "date": _DATES,
    "number": _NUMBERS,
    "quantity": _QUANTITIES,
    "uri": _URIS,
}


@dataclass(frozen=True, slots=True)
class Extractor:
    """A search parameter that works for one resource type: where its values stand, and of which types they are.

    `targets`: the resource types that its references can lead to; none: any. HL7's own list is wider than the elements are:
    CarePlan's `patient` leads to no Group.
    """

    definition: SearchParameter
    types: frozenset[str]
    targets: tuple[str, ...]
    sources: tuple[tuple[Getter, _Converter], ...] = field(repr=False)

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


def searchable(type: str, around: guides.InForce | None = None) -> Searchable:
    """The search parameters of a resource type, compiled: R4's and those of the guides in force. `refused` names the others, each
    with its reason."""
    return _searchable(type, around or guides.in_force())


@lru_cache(maxsize=512)
def _searchable(type: str, around: guides.InForce) -> Searchable:
    written: dict[str, Extractor] = {}
    refused: dict[str, str] = {}
    of_guides = around.parameters[type]
    for code, parameter in (definitions().search_parameters[type] | of_guides).items():
        try:
            written[code] = _extractor(parameter, type)
        except NotCompilable as reason:
            refused[code] = str(reason)
    waiting = {code for code in written if code in of_guides and not around.is_indexed(type, of_guides[code])}
    refused |= dict.fromkeys(waiting, "what is stored is being indexed for it; try again when that is done")
    answering = _Known({code: one for code, one in written.items() if code not in waiting})
    return Searchable(MappingProxyType(answering), MappingProxyType(refused), MappingProxyType(written))


def unindexed(around: guides.InForce) -> dict[str, str]:
    """The parameters by which resources must be indexed before they answer: `Patient.race`, and the digest of its definition."""
    return {
        f"{type}.{code}": guides.digest(parameter)
        for type, parameters in sorted(around.parameters.items())
        for code, parameter in sorted(parameters.items())
        if code in searchable(type, around).written and not around.is_indexed(type, parameter)
    }


def _extractor(parameter: SearchParameter, type: str) -> Extractor:
    if parameter.type in _UNSEARCHABLE:
        raise NotCompilable(_UNSEARCHABLE[parameter.type])
    if not _CODE.fullmatch(parameter.code) and parameter.code not in definitions().search_parameters[type]:
        raise NotCompilable("its code cannot stand in a URL, or begins like a parameter of the protocol")
    if not parameter.expression:
        raise NotCompilable("its definition has no expression")
    if parameter.code in OWN_COLUMNS:
        return Extractor(parameter, frozenset({"id" if parameter.code == "_id" else "instant"}), (), ())
    branches = compile_expression(parameter.expression, type)
    converters = _CONVERTERS[parameter.type]
    usable = [branch for branch in branches if branch.type in converters]
    if not usable:
        found = ", ".join(sorted({branch.type for branch in branches})) or "nothing"
        raise NotCompilable(f"a {parameter.type} parameter cannot be read from {found}")
    return Extractor(
        parameter,
        frozenset(branch.type for branch in usable),
        _targets(parameter, usable),
        tuple((branch.get, converters[branch.type]) for branch in usable),
    )


def _targets(parameter: SearchParameter, branches: list[Branch]) -> tuple[str, ...]:
    known = [branch.targets for branch in branches if branch.type == "Reference"]
    if not known or not all(known):
        return parameter.targets
    return tuple(sorted({target for targets in known for target in targets}))


def search_values(tree: dict[str, Any]) -> list[SearchValue]:
    """All that a resource can be found by, without repetition; `_id` and `_lastUpdated` are columns of their own.

    Raises Invalid for a value that cannot be read, for example a date that is not in the calendar.
    """
    values: list[SearchValue] = []
    for code, extractor in searchable(str(tree["resourceType"])).written.items():
        try:
            for get, convert in extractor.sources:
                for value in get(tree):
                    values.extend(convert(code, value))
        except (ValueError, OverflowError, AttributeError, TypeError):
            text = f"The value that the search parameter '{code}' reads cannot be understood"
            raise Invalid(text, extractor.definition.expression) from None
    for reference in references(tree):
        if reference.kind == "local" and reference.type and reference.id and not reference.version:
            values.append(Target(ANY_REFERENCE, reference.id, reference.type))
    seen = dict.fromkeys((type(value), value) for value in values)
    return [value for _, value in seen]
