"""What a value of each element type means for each type of search parameter: rows of a few kinds.

https://hl7.org/fhir/R4/search.html#ptypes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST, clip, date_range, normalise, unit_vector
from fhircm.fhir.references import parse_reference
from fhircm.fhir.ucum import UCUM, unit

START = 100  # characters of a normalised string that stand in the index

_CURRENCIES = "urn:iso:std:iso:4217"


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


class Place(NamedTuple):
    """A point on the earth as a unit vector from its centre."""

    parameter: str
    x: float
    y: float
    z: float


class Component(NamedTuple):
    """A value of one component of a composite parameter, in the fields of its kind; `at` numbers the element that holds it.

    The times of a Span stand in `low` and `high` as floating point: to the microsecond until the year 2255, to the second for ever.
    """

    parameter: str
    at: int
    code: str | None = None
    system: str | None = None
    target_id: str | None = None
    target_type: str | None = None
    start: str | None = None
    normalised: str | None = None
    exact: str | None = None
    low: float | None = None
    high: float | None = None
    unit: str | None = None


SearchValue = Token | Target | Text | Span | Amount | Uri | Place | Component
Converter = Callable[[str, Any], Iterable[SearchValue]]


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
    yield from _bare_coding(parameter, coding)
    yield from _text(parameter, coding.get("display"))


def _bare_coding(parameter: str, coding: dict[str, Any]) -> Iterator[Token]:
    code, system = coding.get("code", ""), coding.get("system", "")
    if code or system:
        yield Token(parameter, clip(code.casefold()), clip(system))


def _bare_concept(parameter: str, concept: dict[str, Any]) -> Iterator[Token]:
    for coding in concept.get("coding", ()):
        yield from _bare_coding(parameter, coding)


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


def _referred_to(parameter: str, value: dict[str, Any]) -> Iterator[Target]:
    if isinstance(text := value.get("reference"), str):
        yield from _url_reference(parameter, text)


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
        system, code, written = (clip(quantity.get(name, "")) for name in ("system", "code", "unit"))
        yield Amount(parameter, low, high, system, code, written)
        yield from _canonical(
            parameter, system, code, low=None if low == -BOUNDLESS else number, high=None if high == BOUNDLESS else number
        )


def canonical_key(parameter: str) -> str:
    """The parameter of the rows that hold quantities in the base units of UCUM, beside those that hold them as written."""
    return f"{parameter}:canonical"


def _canonical(parameter: str, system: str, code: str, *, low: Any, high: Any) -> Iterator[Amount]:
    """The same amount in base units; None is an open end."""
    if system == UCUM and (read := unit(code)):
        with suppress(OverflowError):  # too large or too small for a unit: it is found as written
            least = -BOUNDLESS if low is None else _in_base_units(low, code)
            most = BOUNDLESS if high is None else _in_base_units(high, code)
            yield Amount(canonical_key(parameter), least, most, UCUM, read.code, "")


@lru_cache(maxsize=1024)  # one value stands in the rows of several parameters
def _in_base_units(number: Any, code: str) -> float:
    read = unit(code)
    assert read
    return read.canonical(number)


def _money(parameter: str, money: dict[str, Any]) -> Iterator[Amount]:
    if (number := money.get("value")) is not None:
        currency = money.get("currency", "")
        yield Amount(parameter, _real(number), _real(number), _CURRENCIES if currency else "", currency, currency)


def _quantities(parameter: str, bounds: dict[str, Any]) -> Iterator[Amount]:
    low, high = bounds.get("low", {}), bounds.get("high", {})
    if low or high:
        system, code, written = (clip(low.get(name) or high.get(name) or "") for name in ("system", "code", "unit"))
        yield Amount(parameter, _real(low.get("value", -BOUNDLESS)), _real(high.get("value", BOUNDLESS)), system, code, written)
        yield from _canonical(parameter, system, code, low=low.get("value"), high=high.get("value"))


def _code(parameter: str, code: Any) -> Iterator[Token]:
    yield Token(parameter, clip(str(code).casefold()), "")


def _flag(parameter: str, flag: bool) -> Iterator[Token]:
    yield Token(parameter, "true" if flag else "false", "")


def _uri(parameter: str, uri: str) -> Iterator[Uri]:
    yield Uri(parameter, clip(uri))


def _position(parameter: str, position: dict[str, Any]) -> Iterator[Place]:
    latitude, longitude = _real(position.get("latitude", 91)), _real(position.get("longitude", 181))
    if abs(latitude) <= 90 and abs(longitude) <= 180:  # anything else is no place on earth
        yield Place(parameter, *unit_vector(latitude, longitude))


_TOKENS: dict[str, Converter] = {
    "Coding": _coding,
    "CodeableConcept": _concept,
    "Identifier": _identifier,
    "ContactPoint": _contact,
    "boolean": _flag,
    **dict.fromkeys(("code", "string", "id", "uri"), _code),
}
_REFERENCES: dict[str, Converter] = {
    "Reference": _reference,
    "Resource": _held_resource,
    **dict.fromkeys(("canonical", "uri"), _url_reference),
}
_STRINGS: dict[str, Converter] = {
    "HumanName": _human_name,
    "Address": _address,
    **dict.fromkeys(("string", "markdown"), _text),
}
_DATES: dict[str, Converter] = {
    "Period": _period,
    "Timing": _timing,
    **dict.fromkeys(("date", "dateTime", "instant"), _moment),
}
_NUMBERS: dict[str, Converter] = {
    "Range": _quantities,
    **dict.fromkeys(("decimal", "integer", "positiveInt", "unsignedInt"), _number),
}
_QUANTITIES: dict[str, Converter] = {
    "Money": _money,
    "Range": _quantities,
    **dict.fromkeys(("Quantity", "SimpleQuantity", "Age", "Duration", "Count", "Distance"), _quantity),
}
_SPECIAL: dict[str, Converter] = {"Location.position": _position}
_URIS: dict[str, Converter] = dict.fromkeys(("uri", "url", "canonical", "oid", "uuid"), _uri)
CONVERTERS: Mapping[str, dict[str, Converter]] = {
    "token": _TOKENS,
    "reference": _REFERENCES,
    "string": _STRINGS,
    "date": _DATES,
    "number": _NUMBERS,
    "quantity": _QUANTITIES,
    "uri": _URIS,
    "special": _SPECIAL,
}


# What a component of a composite parameter is compared with: it has no modifiers that would ask for more.
COMPONENT_CONVERTERS: Mapping[str, dict[str, Converter]] = {
    **CONVERTERS,
    "token": {**_TOKENS, "Coding": _bare_coding, "CodeableConcept": _bare_concept},
    "reference": {"Reference": _referred_to},
}
_COMPONENTS: dict[type, Callable[[int, Any], Component]] = {
    Token: lambda at, row: Component(row.parameter, at, code=row.code, system=row.system),
    Target: lambda at, row: Component(row.parameter, at, target_id=row.target_id, target_type=row.target_type),
    Text: lambda at, row: Component(row.parameter, at, start=row.start, normalised=row.normalised, exact=row.exact),
    Span: lambda at, row: Component(row.parameter, at, low=row.low, high=row.high),
    Amount: lambda at, row: Component(
        row.parameter, at, code=row.code, system=row.system, low=row.low, high=row.high, unit=row.unit
    ),
}


def component(at: int, row: SearchValue) -> Component:
    """The row of a value that belongs to the element number `at` of a composite parameter."""
    return _COMPONENTS[row.__class__](at, row)
