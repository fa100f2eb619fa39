"""What a search asks of a resource, and how the written value of one parameter becomes it.

https://hl7.org/fhir/R4/search.html#ptypes, #modifiers and #prefix
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import Extractor, of_type
from fhircm.fhir.outcome import FhirError, NotSupported
from fhircm.fhir.ranges import clip, date_range, normalise, number_range
from fhircm.fhir.references import parse_reference

VALUES_LIMIT = 500  # alternatives in one parameter; more would be a table, not a question
LENGTH_LIMIT = 2000  # characters of one parameter's value

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


class InvalidValue(FhirError):
    """The value of a search parameter cannot be read as what the parameter takes."""

    status, code = 400, "value"


@dataclass(frozen=True, slots=True)
class TokenTest:
    """A token of one of these codes (None: of any). `system` None: of any system, '': of none."""

    codes: tuple[str, ...] | None
    system: str | None


@dataclass(frozen=True, slots=True)
class MemberTest:
    """A token that is in a value set: its canonical URL or ValueSet/id. The store makes it a CodesTest.

    `bare`: the element can be a plain code, whose row has no system.
    """

    parameter: str
    value_set: str
    bare: bool


@dataclass(frozen=True, slots=True)
class SubsumedTest:
    """A token of the code or of one `above` (or below) it. The store makes it a CodesTest; `bare` as in MemberTest."""

    parameter: str
    system: str
    code: str
    above: bool
    bare: bool


@dataclass(frozen=True, slots=True)
class CodesTest:
    """A token of one of any number of codes, by their systems, folded as the rows are.

    `beside`: it is asked of the few rows of one resource, for which looking up every code in an index would be the long way.
    """

    codes: tuple[tuple[str, tuple[str, ...]], ...]
    beside: bool = False


@dataclass(frozen=True, slots=True)
class TargetTest:
    """A reference to this id of one of these types (None: of any type); types ('',): to this URL."""

    target_id: str
    types: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class TextTest:
    """A string that compares with this; gt, lt, ge and le go by code points. `text` is normalised except for "exact"."""

    text: str
    how: str  # start | contains | end | equal | exact | gt | lt | ge | le


@dataclass(frozen=True, slots=True)
class SpanTest:
    """A time that compares by `prefix` with [low, high), microseconds since the epoch; "co" contains it, "po" overlaps with it."""

    prefix: str
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class AmountTest:
    """A number that compares by `prefix`: with [low, high) for eq, ne and ap, with `number` for the others.

    `system` None: any unit; '': `code` is a code or a unit of any system.
    """

    prefix: str
    number: float
    low: float
    high: float
    system: str | None
    code: str


@dataclass(frozen=True, slots=True)
class UriTest:
    """One of these URIs; `below` is a path that counts too, with all that stands under it."""

    uris: tuple[str, ...]
    below: str | None = None


@dataclass(frozen=True, slots=True)
class IdTest:
    """The logical id."""

    id: str


@dataclass(frozen=True, slots=True)
class WordsTest:
    """A text that holds all these words, words that begin with each of `starts`, and each of `phrases` (with a space at both ends)."""

    words: tuple[str, ...]
    starts: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unlike:
    """A value that there is, and that does not pass the test."""

    test: TokenTest | TextTest | UriTest | IdTest


Test = (
    TokenTest
    | MemberTest
    | SubsumedTest
    | CodesTest
    | TargetTest
    | TextTest
    | SpanTest
    | AmountTest
    | UriTest
    | IdTest
    | WordsTest
    | Unlike
)


@dataclass(frozen=True, slots=True)
class Matches:
    """The resource has a value of this parameter that passes one of the tests; `negated`: it has none that does."""

    type: str
    parameter: str
    tests: tuple[Test, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """The resource has no value of this parameter at all (or, when not `missing`, has one)."""

    type: str
    parameter: str
    missing: bool


@dataclass(frozen=True, slots=True)
class Chained:
    """The resource refers by this parameter to one that fulfils the condition; one alternative for each target type."""

    type: str
    parameter: str
    targets: tuple[tuple[str, Condition], ...]


@dataclass(frozen=True, slots=True)
class Linked:
    """A resource of type `source` refers to this one by `parameter` and fulfils the condition (_has)."""

    type: str
    source: str
    parameter: str
    condition: Condition


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of the conditions holds; of none: nothing does."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of the conditions hold; of none: everything does."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The condition does not hold."""

    condition: Condition


Condition = Matches | Missing | Chained | Linked | AnyOf | AllOf | Not


def all_of(conditions: Iterable[Condition]) -> Condition:
    """Conditions that all hold, as flat as can be."""
    flat = [part for one in conditions for part in (one.conditions if isinstance(one, AllOf) else (one,))]
    return flat[0] if len(flat) == 1 else AllOf(tuple(flat))


def any_of(conditions: Iterable[Condition]) -> Condition:
    """Conditions of which one holds, as flat as can be."""
    flat = [part for one in conditions for part in (one.conditions if isinstance(one, AnyOf) else (one,))]
    return flat[0] if len(flat) == 1 else AnyOf(tuple(flat))


def opposite(condition: Condition) -> Condition:
    """What holds when the condition does not: the negation stands at what is asked, not around it."""
    match condition:
        case Not(inner):
            return inner
        case Matches(negated=negated):
            return replace(condition, negated=not negated)
        case Missing(missing=missing):
            return replace(condition, missing=not missing)
        case AllOf(conditions):
            return any_of(opposite(one) for one in conditions)
        case AnyOf(conditions):
            return all_of(opposite(one) for one in conditions)
    return Not(condition)


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
    parameter = f"{code}:of-type" if modifier == "of-type" else code
    reader = _Reader(code, modifier, extractor, base_url)
    read: Callable[[str], Test] = reader.token if modifier == "identifier" else getattr(reader, kind)
    return Matches(type, parameter, tuple(read(value) for value in values), negated=modifier in ("not", "not-in"))


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
        try:
            number = Decimal(found[2])
            low, high = number_range(number)
        except (InvalidOperation, OverflowError):
            raise self.wrong("a number of usual size") from None
        prefix = found[1] or "eq"
        if prefix == "ap":
            low, high = float(number - abs(number) / 10), float(number + abs(number) / 10)
        return AmountTest(prefix, float(number), low, high, system, code)

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


def in_compartment(compartment: str, ids: tuple[str, ...], type: str) -> Condition | None:
    """The condition that a resource of this type is in one of these compartments; None when no resource of the type ever is.

    https://hl7.org/fhir/R4/compartmentdefinition.html
    """
    own: tuple[Condition, ...] = ()
    if type == compartment:
        own = (Matches(type, "_id", tuple(IdTest(id) for id in ids)),)
    codes = definitions().compartments[compartment].get(type, ())
    tests = tuple(TargetTest(id, (compartment,)) for id in ids)
    linked = tuple(Matches(type, code, tests) for code in codes if code in definitions().search_parameters[type])
    if not own and not linked:
        return None
    return AnyOf(own + linked if ids else ())
