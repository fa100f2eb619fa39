"""Units of measure in base units, so that 5.4 mg and 0.0054 g are the same.

https://ucum.org/ucum and https://hl7.org/fhir/R4/search.html#quantity. The units are data (tables/ucum.json). Apart from UCUM, what
cannot stand for each other in care has a dimension of its own: moles, equivalents and osmoles (UCUM counts all as mere numbers), units of
an assay, and fields under a microscope. Logarithmic units (pH, decibel) are not read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Context, Decimal
from fractions import Fraction
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

UCUM = "http://unitsofmeasure.org"

_LONGEST = 100  # characters of a unit that is read
_DIGITS = Context(prec=100, traps=[])  # of a number; a million of them would take minutes
_LARGEST = 400  # decimal places before or behind the point; more is beyond any floating point number
_PART = re.compile(r"(10[*^]|(?:[^\W\d]|[%'\"]|\[[!-Z\\^-~]+\])+)([+-]?\d{1,2})?|(\d{1,9})", re.ASCII)
_ANNOTATION = re.compile(r"\{[ -z|~]*\}")  # with spaces too, which UCUM does not allow and HL7 writes
_MILES = {"mi": "[mi_i]", "miles": "[mi_i]"}  # what people write for a distance


class Unit(NamedTuple):
    """What a unit measures (`code`: the base units, in UCUM's words), and (number + offset) · factor of a number of it in these."""

    code: str
    factor: Fraction
    offset: Fraction = Fraction(0)

    def canonical(self, number: Decimal | int | float) -> float:
        """A number of this unit in base units. Raises OverflowError when no floating point number holds it."""
        if isinstance(number, Decimal):
            if not -_LARGEST < number.adjusted() < _LARGEST:
                raise OverflowError
            number = _DIGITS.plus(number)
        return float((Fraction(number) + self.offset) * self.factor)


class _Product(NamedTuple):
    factor: Fraction
    powers: Counter[str]

    def times(self, other: _Product, power: int) -> _Product:
        powers = Counter(self.powers)
        for base, one in other.powers.items():
            powers[base] += one * power
        return _Product(self.factor * other.factor**power, powers)


_ONE = _Product(Fraction(1), Counter())


class _Unread(Exception):
    """Not a unit that is known here."""


@lru_cache(maxsize=4096)
def unit(code: str) -> Unit | None:
    """Read a UCUM code, for example mg/dL or 10*3/uL; None when it cannot be read."""
    if not code or len(code) > _LONGEST:
        return None
    try:
        special = _special(code)
        return special or _named(_Reader(_ANNOTATION.sub("{}", code)).whole())
    except _Unread:
        return None


def length(number: Decimal, code: str) -> float | None:
    """A distance in metres; None when the unit measures no length. Miles and mi are read too. Raises OverflowError."""
    read = unit(_MILES.get(code, code))
    return read.canonical(number) if read and read.code == "m" else None


def _named(product: _Product) -> Unit:
    powers = sorted((base, power) for base, power in product.powers.items() if power)
    return Unit(".".join(base + (str(power) if power != 1 else "") for base, power in powers) or "1", product.factor)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("fhircm.fhir") / "tables" / "ucum.json").read_bytes())
    return table


def _special(code: str) -> Unit | None:
    """A temperature: its zero is elsewhere, so it stands alone, with a prefix at most (mCel)."""
    bare = _ANNOTATION.sub("", code)
    for prefix, factor in (("", "1"), *_table()["prefixes"].items()):
        if bare.startswith(prefix) and (scale := _table()["special"].get(bare[len(prefix) :])) and (not prefix or "Cel" in bare):
            offset, to_kelvin = map(Fraction, scale)
            size = Fraction(factor)
            return Unit("K", to_kelvin * size, offset / size)
    return None


@lru_cache(maxsize=1024)
def _atom(name: str) -> _Product:
    """A unit by its name, with or without a prefix."""
    table = _table()
    if (definition := table["without_prefix"].get(name)) is not None:
        return _defined(definition)
    if name in table["base_without_prefix"]:
        return _Product(Fraction(1), Counter({name: 1}))
    for prefix, factor in (("", "1"), *table["prefixes"].items()):
        rest = name[len(prefix) :]
        if name.startswith(prefix) and (found := _metric(rest)):
            return _Product(found.factor * Fraction(factor), found.powers)
    raise _Unread


def _metric(name: str) -> _Product | None:
    if name in _table()["base"]:
        return _Product(Fraction(1), Counter({name: 1}))
    definition = _table()["metric"].get(name)
    return None if definition is None else _defined(definition)


def _defined(definition: str) -> _Product:
    """A definition of the table: a number, a unit, or both."""
    number, _, code = definition.rpartition(" ")
    if not number:
        try:
            return _Product(Fraction(code), Counter())
        except ValueError:
            return _Reader(code).whole()
    product = _Reader(code).whole()
    return _Product(product.factor * Fraction(number), product.powers)


class _Reader:
    """Recursive descent over a code: products and quotients from left to right, brackets, exponents, annotations."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.at = 0

    def whole(self) -> _Product:
        product = self.term()
        if self.at < len(self.code):
            raise _Unread
        return product

    def next_is(self, text: str) -> bool:
        found = self.code.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def term(self) -> _Product:
        product = _ONE.times(self.component(), -1) if self.next_is("/") else self.component()
        while True:
            if self.next_is("."):
                product = product.times(self.component(), 1)
            elif self.next_is("/"):
                product = product.times(self.component(), -1)
            else:
                return product

    def component(self) -> _Product:
        if self.next_is("{}"):
            return _ONE
        if self.next_is("("):
            inner = self.term()
            if not self.next_is(")"):
                raise _Unread
            self.next_is("{}")
            return inner
        found = _PART.match(self.code, self.at)
        if not found:
            raise _Unread
        self.at = found.end()
        name, exponent, number = found.groups()
        product = _Product(Fraction(number), Counter()) if number else _atom(name)
        self.next_is("{}")
        if not product.factor:
            raise _Unread
        return _ONE.times(product, int(exponent or 1))
