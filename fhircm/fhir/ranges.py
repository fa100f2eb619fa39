"""Written dates, numbers and words as what can be compared: ranges of time, ranges of numbers, folded text.

https://hl7.org/fhir/R4/search.html#prefix and https://hl7.org/fhir/R4/search.html#string
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import unicodedata
from datetime import date
from decimal import Decimal
from functools import lru_cache

EARLIEST, LATEST = -(2**63), 2**63 - 1  # the open ends of a period
BOUNDLESS = sys.float_info.max  # the open end of a range of numbers

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_EPOCH = date(1970, 1, 1).toordinal()
_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_EARTH = 6_371_008.8  # metres: the mean radius
_CLIPPED = 120
_LIMIT = 200
DROPPED = re.compile(r"['’`´]")  # noqa: RUF001 — O'Brien is written with any of them
_FOLDED = {
    code: None if chr(code) in "'`" else " " if unicodedata.category(chr(code))[0] in "PZC" else chr(code).casefold()
    for code in range(128)
}


@lru_cache(maxsize=8192)  # the times of one visit stand in all of its resources
def date_range(text: str) -> tuple[int, int]:
    """The time that a date, dateTime or instant stands for, as [low, high) in microseconds since the epoch, UTC.

    A partial date is the whole year, month or day; without a zone it is read as UTC. Raises ValueError.
    """
    found = _DATE.fullmatch(text)
    if not found:
        raise ValueError("not a date such as 2024, 2024-05, 2024-05-17 or 2024-05-17T09:30:00Z")
    year, month, day, hour, minute, second, fraction, zone = found.groups()
    if month is None:
        first = date(int(year), 1, 1).toordinal()
        return _span(first, date(int(year), 12, 31).toordinal() + 1)
    if day is None:
        first = date(int(year), int(month), 1)
        following = first.toordinal() + 31
        last = following - (date.fromordinal(following).day - 1) if following <= date.max.toordinal() else following
        return _span(first.toordinal(), last)
    ordinal = date(int(year), int(month), int(day)).toordinal()
    if hour is None:
        return _span(ordinal, ordinal + 1)
    if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 60:  # 60 is a leap second
        raise ValueError("not a time of the day")
    low = (ordinal - _EPOCH) * _DAY + (int(hour) * 3600 + int(minute) * 60 + int(second or 0)) * _SECOND - _offset(zone)
    if second is None:
        return low, low + 60 * _SECOND
    if fraction is None:
        return low, low + _SECOND
    digits = fraction[:6]
    low += int(digits.ljust(6, "0"))
    return low, low + 10 ** (6 - len(digits))


def _span(first: int, following: int) -> tuple[int, int]:
    return (first - _EPOCH) * _DAY, (following - _EPOCH) * _DAY


def _offset(zone: str | None) -> int:
    if zone is None or zone == "Z":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 14 or minutes > 59:
        raise ValueError("not a time zone")
    return (-1 if zone[0] == "-" else 1) * (hours * 3600 + minutes * 60) * _SECOND


def number_range(number: Decimal) -> tuple[Decimal, Decimal]:
    """What a written number stands for when it is searched: 5.4 is [5.35, 5.45), 100 is [99.5, 100.5)."""
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    half = Decimal(5).scaleb(exponent - 1)
    return number - half, number + half


def unit_vector(latitude: float, longitude: float) -> tuple[float, float, float]:
    """A place on the sphere, from degrees: distances are then the same everywhere, at the poles and at the date line too."""
    phi, lam = math.radians(latitude), math.radians(longitude)
    return math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)


def chord(metres: float) -> float:
    """The straight line, on a sphere of radius 1, under a way of so many metres over the surface of the earth."""
    return 2 * math.sin(min(metres / _EARTH, math.pi) / 2)


def normalise(text: str) -> str:
    """Text as string search compares it: without case, accents, punctuation and repeated spaces.

    Text that is nothing but punctuation keeps it, so that it can be found at all.
    """
    if text.isascii():  # the same by a table
        return " ".join(text.translate(_FOLDED).split()) or " ".join(text.casefold().split())
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    kept = DROPPED.sub("", bare)
    words = "".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in kept).split()
    return " ".join(words) or " ".join(bare.split())


def clip(text: str) -> str:
    """Text short enough for a database index; what is longer keeps its beginning and gets a hash of the whole."""
    if len(text) <= _LIMIT:
        return text
    return f"{text[:_CLIPPED]}…{hashlib.sha256(text.encode()).hexdigest()}"
