"""What a search asks of a resource.

https://hl7.org/fhir/R4/search.html#ptypes, #modifiers and #prefix
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError

VALUES_LIMIT = 500  # alternatives in one parameter; more would be a table, not a question
LENGTH_LIMIT = 2000  # characters of one parameter's value


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

    `system` None: any unit; '': `code` is a code or a unit of any system. `canonical`: all is in the base units of UCUM.
    """

    prefix: str
    number: float
    low: float
    high: float
    system: str | None
    code: str
    canonical: bool = False


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
class NearTest:
    """A place at most `chord` away from this one, in a straight line through a sphere of radius 1."""

    x: float
    y: float
    z: float
    chord: float


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
    | NearTest
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
class Combined:
    """One element of the resource passes, in one of the alternatives, a test for each component of this composite parameter.

    Each test comes with the parameter of the rows that it is about.
    """

    type: str
    parameter: str
    alternatives: tuple[tuple[tuple[str, Test], ...], ...]


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


@dataclass(frozen=True, slots=True)
class Visible:
    """The resource may be seen by the viewer for whom a search is narrowed."""

    type: str


Condition = Visible | Matches | Combined | Missing | Chained | Linked | AnyOf | AllOf | Not


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
