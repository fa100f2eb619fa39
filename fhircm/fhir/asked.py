"""How the written value of one search parameter becomes a condition.

https://hl7.org/fhir/R4/search.html#ptypes, #modifiers, #prefix, #quantity and #composite; `near` is of https://hl7.org/fhir/R4/location.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from fhircm.fhir.conditions import (
    LENGTH_LIMIT,
    VALUES_LIMIT,
    AmountTest,
    AnyOf,
    Combined,
    Condition,
    IdTest,
    InvalidValue,
    Matches,
    MemberTest,
    Missing,
    NearTest,
    SpanTest,
    SubsumedTest,
    TargetTest,
    Test,
    TextTest,
    TokenTest,
    UriTest,
)
from fhircm.fhir.extract import Extractor, component_key
from fhircm.fhir.outcome import NotSupported
from fhircm.fhir.ranges import chord, clip, date_range, normalise, number_range, unit_vector
from fhircm.fhir.references import parse_reference
from fhircm.fhir.ucum import UCUM, length, unit
from fhircm.fhir.values import canonical_key, of_type

NEAR = 50_000.0  # metres: what counts as near when no distance is said

_PREFIXED = re.compile(r"(eq|ne|gt|lt|ge|le|sa|eb|ap)?(.+)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,2})?", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_BARE_CODES = frozenset({"code", "boolean", "string", "id", "uri"})
_OF_CODES = frozenset({"Coding", "CodeableConcept", "code"})  # element types that value sets and code systems speak of
_TERMINOLOGY = frozenset({"in", "not-in", "above", "below"})
_MODIFIERS = {
    "string": ("exact", "contains"),
    "token": ("not", "text", "in", "not-in", "above", "below"),
    "reference": ("identifier",),
    "uri": ("below", "above"),
}


def value_condition(type: str, code: str, modifier: str, extractor: Extractor, text: str, base_url: str | None) -> Condition:
    """The condition that `code:modifier=text` asks. Raises NotSupported for the modifier, InvalidValue for the value."""
    if not text:
        raise InvalidValue(f"The search parameter '{code}' has no value")
    if "\0" in text:
        raise InvalidValue(f"The value of the search parameter '{code}' holds the character U+0000")
    if len(text) > LENGTH_LIMIT:
        raise InvalidValue(f"The value of the search parameter '{code}' is longer than {LENGTH_LIMIT} characters")
    kind = extractor.definition.type
    if modifier == "missing" and extractor.sources:
        if text not in ("true", "false"):
            raise InvalidValue(f"'{code}:missing' takes true or false")
        return Missing(type, code, text == "true")
    _check_modifier(code, modifier, extractor)
    values = _split(text, ",")
    if len(values) > VALUES_LIMIT:
        raise InvalidValue(f"The search parameter '{code}' takes at most {VALUES_LIMIT} values at once")
    if kind == "composite":
        return Combined(type, code, tuple(_alternative(code, extractor, value, base_url) for value in values))
    reader = _Reader(code, modifier, extractor, base_url)
    read: Callable[[str], Test] = reader.token if modifier == "identifier" else getattr(reader, kind)
    by_rows: dict[str, list[Test]] = {}
    for test in map(read, values):
        by_rows.setdefault(f"{code}:of-type" if modifier == "of-type" else _rows_of(code, test), []).append(test)
    listed = tuple(Matches(type, rows, tuple(tests), negated=modifier in ("not", "not-in")) for rows, tests in by_rows.items())
    return listed[0] if len(listed) == 1 else AnyOf(listed)


def _rows_of(code: str, test: Test) -> str:
    """The parameter of the rows that a test is about."""
    return canonical_key(code) if isinstance(test, AmountTest) and test.canonical else code


def _alternative(code: str, extractor: Extractor, text: str, base_url: str | None) -> tuple[tuple[str, Test], ...]:
    """One value of a composite parameter: a test for each component."""
    parts = _split(text, "$")
    names = [one.definition.code for one in extractor.components]
    if len(parts) != len(names) or not all(parts):
        raise InvalidValue(f"The search parameter '{code}' takes {len(names)} values joined by '$': {'$'.join(names)}")
    tests = []
    for number, (component, part) in enumerate(zip(extractor.components, parts, strict=True)):
        try:
            test = getattr(_Reader(names[number], "", component, base_url), component.definition.type)(part)
        except InvalidValue as error:
            raise InvalidValue(f"In part {number + 1} of '{code}': {error}") from None
        tests.append((_rows_of(component_key(code, number), test), test))
    return tuple(tests)


def _check_modifier(code: str, modifier: str, extractor: Extractor) -> None:
    kind = extractor.definition.type
    possible = list(_MODIFIERS.get(kind, ())) if extractor.sources else ["not"] if code == "_id" else []
    if kind == "token" and not extractor.types & _OF_CODES:
        possible = [one for one in possible if one not in _TERMINOLOGY]
    if kind == "token" and "Identifier" in extractor.types:
        possible.append("of-type")
    if kind == "reference":
        possible += extractor.targets
    if extractor.sources:
        possible.append("missing")
    if modifier and modifier not in possible:
        raise NotSupported(f"'{code}' has no modifier ':{modifier[:64]}'; it has: {', '.join(possible) or 'none'}")


def _split(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash escapes; the escapes stay."""
    parts, current, escaped = [], "", False
    for character in text:
        if character == separator and not escaped:
            parts.append(current)
            current = ""
        else:
            current += character
        escaped = character == "\\" and not escaped
    return [*parts, current]


def _plain(text: str) -> str:
    r"""Take the escapes away: \, \| \$ and \\ stand for the character."""
    return re.sub(r"\\([,|$\\])", r"\1", text)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one value of a parameter; the methods are named after the parameter types."""

    code: str
    modifier: str
    extractor: Extractor
    base_url: str | None

    def wrong(self, expected: str) -> InvalidValue:
        return InvalidValue(f"The search parameter '{self.code}' takes {expected}")

    def token(self, value: str) -> Test:
        parts = [_plain(part) for part in _split(value, "|")]
        if self.modifier == "text":
            return self.string(value)
        if self.modifier in ("in", "not-in"):
            return MemberTest(self.code, _plain(value), "code" in self.extractor.types)
        if self.modifier in ("above", "below"):
            return self._subsumed(parts)
        if self.modifier == "of-type":
            if len(parts) != 3 or not all(parts):
                raise self.wrong("system|code|value behind ':of-type'")
            row = of_type(self.code, *parts)
            return TokenTest((row.code,), row.system)
        if len(parts) > 2 or not any(parts):
            raise self.wrong("code, system|code, system| or |code")
        system = parts[0] if len(parts) == 2 else None
        code = parts[-1]
        if self.code == "_id":
            return IdTest(code)
        if system and self.extractor.types <= _BARE_CODES:
            raise self.wrong("a code without a system, for its codes have none in the resource")
        if self.extractor.types == {"boolean"} and code not in ("true", "false"):
            raise self.wrong("true or false")
        codes = (code,) if self._exact_case else (code.casefold(),)
        return TokenTest(tuple(clip(one) for one in codes) if code else None, clip(system) if system is not None else None)

    def _subsumed(self, parts: list[str]) -> Test:
        if len(parts) == 1 and parts[0] and self.extractor.types <= _BARE_CODES:
            # Of a code system without a hierarchy, or of one that is not named: the code itself.
            return TokenTest((clip(parts[0].casefold()),), None)
        if len(parts) != 2 or not all(parts):
            raise self.wrong(f"system|code behind ':{self.modifier}'")
        return SubsumedTest(self.code, parts[0], parts[1], self.modifier == "above", "code" in self.extractor.types)

    @property
    def _exact_case(self) -> bool:
        return self.extractor.exact_case or self.modifier == "identifier"

    def reference(self, value: str) -> Test:
        text = _plain(value)
        targets = (self.modifier,) if self.modifier else self.extractor.targets
        if _ID.fullmatch(text):
            return TargetTest(text, tuple(targets) if len(targets) == 1 else None)
        reference = parse_reference(text, self.base_url)
        if reference.kind == "local" and reference.version is None and reference.type and reference.id:
            if targets and reference.type not in targets:
                raise self.wrong(f"a reference to {' or '.join(targets)}")
            return TargetTest(reference.id, (reference.type,))
        if reference.kind in ("absolute", "canonical", "urn"):
            return TargetTest(clip(text), ("",))
        raise self.wrong("an id, Type/id or a URL")

    def string(self, value: str) -> Test:
        text = _plain(value)
        if self.modifier == "exact":
            return TextTest(text, "exact")
        folded = normalise(text)
        if not folded:
            raise self.wrong("some text")
        return TextTest(folded, "contains" if self.modifier == "contains" else "start")

    def date(self, value: str) -> Test:
        found = _PREFIXED.fullmatch(value)
        try:
            low, high = date_range(found[2] if found else "")
        except ValueError as error:
            raise self.wrong(f"a date or time, with or without a prefix such as ge; this is {error}") from None
        prefix = (found and found[1]) or "eq"
        if prefix == "ap":  # as far again on both sides as the value was precise: no clock is needed
            low, high = low - (high - low), high + (high - low)
        return SpanTest(prefix, low, high)

    def number(self, value: str) -> Test:
        return self._amount(value, None, "")

    def quantity(self, value: str) -> Test:
        parts = [_plain(part) for part in _split(value, "|")]
        if len(parts) == 1:
            return self._amount(parts[0], None, "")
        if len(parts) != 3 or not parts[2]:
            raise self.wrong("number, number|system|code or number||code")
        return self._amount(parts[0], clip(parts[1]), clip(parts[2]))

    def _amount(self, text: str, system: str | None, code: str) -> Test:
        found = _PREFIXED.fullmatch(text)
        if not found or not _NUMBER.fullmatch(found[2]):
            raise self.wrong("a number, with or without a prefix such as ge")
        number, prefix = Decimal(found[2]), found[1] or "eq"
        read = unit(code) if system == UCUM else None
        to_number = read.canonical if read else float
        low, high = number_range(number)
        if prefix == "ap":
            low, high = number - abs(number) / 10, number + abs(number) / 10
        try:
            ends = to_number(number), to_number(low), to_number(high)
        except OverflowError:
            raise self.wrong("a number of usual size") from None
        return AmountTest(prefix, *ends, system, read.code if read else code, canonical=read is not None)

    def special(self, value: str) -> Test:
        """`near`, the only one: latitude|longitude|distance|unit of length."""
        parts = [_plain(part) for part in _split(value, "|")]
        latitude, longitude, distance, measure = [*parts, "", "", "", ""][:4]
        if len(parts) > 4 or not all(map(_NUMBER.fullmatch, (latitude, longitude, distance or "0"))):
            raise self.wrong("latitude|longitude, and perhaps |distance|unit: numbers, and a unit such as km, m or mi")
        if abs(float(latitude)) > 90 or abs(float(longitude)) > 180:
            raise self.wrong("a latitude from -90 to 90 and a longitude from -180 to 180")
        metres = self._metres(distance, measure or "km") if distance else NEAR
        return NearTest(*unit_vector(float(latitude), float(longitude)), chord(metres))

    def _metres(self, distance: str, measure: str) -> float:
        with suppress(OverflowError):
            metres = length(Decimal(distance), measure)
            if metres is not None and metres >= 0:
                return metres
        raise self.wrong("a distance of 0 or more in km, m, mi or another unit of length of UCUM")

    def uri(self, value: str) -> Test:
        text = _plain(value)
        if self.modifier == "below":
            return UriTest((clip(text),), text.rstrip("/") + "/")
        if self.modifier == "above":
            scheme, separator, rest = text.rstrip("/").partition("://")
            parts = rest.split("/") if separator else []
            above = [scheme + separator + "/".join(parts[:length]) for length in range(1, len(parts) + 1)]
            return UriTest(tuple(clip(end) for uri in above or [text] for end in (uri, uri + "/")))
        return UriTest((clip(text),))
