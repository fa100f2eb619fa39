"""What discharge planning goes by: profiles/discharge/planning.yaml.

https://www.ecfr.gov/current/title-42/section-482.43
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

from fhircm.coordination.codes import codings
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.fhir.artefacts import folder, read_yaml

Tree = dict[str, Any]
UNKNOWN, OTHER, DIED = "unknown", "other", "died"
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Screening:
    """Who is likely to do badly without planning."""

    age: int  # years
    risk: frozenset[str]
    stay_before: timedelta
    lives_alone: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """The file, read."""

    opens_within: timedelta  # of the beginning of a stay
    near_hours: int
    near_days: int  # business days
    without_date: int  # business days
    screening: Screening
    observation: frozenset[str]
    titles: Mapping[str, str]  # of dispositions
    _dispositions: Mapping[tuple[str, str], str]
    _medicare: tuple[tuple[str, ...], frozenset[str], frozenset[str]]
    _declined: Mapping[str, tuple[str, ...]]

    def disposition(self, *elements: Any) -> str:
        """The name of where somebody goes, from CodeableConcepts: `unknown` when nothing is said, `other` when it is not known here."""
        found = [self._dispositions[one] for one in codings(*elements) if one in self._dispositions]
        return found[0] if found else OTHER if any(elements) else UNKNOWN

    def near(self, expected: datetime, calendar: BusinessCalendar) -> datetime:
        """From when on (UTC) a discharge is near that is expected then."""
        day = days_before(calendar.day_of(expected), self.near_days, calendar)
        return min(expected - timedelta(hours=self.near_hours), calendar.start_of(day))

    def payer(self, coverages: Iterable[Tree]) -> str:
        """`medicare`, `other`, or `unknown`, of the Coverages of one human."""
        active = [one for one in coverages if one.get("status") == "active"]
        begins, codes, within = self._medicare
        for system, code in codings(*(one.get("type") for one in active)):
            if code in codes or (system in within and code.startswith(begins)):
                return "medicare"
        return "other" if active else UNKNOWN

    def declined(self, reason: str) -> str:
        """Whether words for a refusal are `clinical`, `non-clinical`, or `other`."""
        words = reason.lower()
        return next((kind for kind, parts in self._declined.items() if any(part in words for part in parts)), OTHER)


def days_before(day: date, number: int, calendar: BusinessCalendar | None = None) -> date:
    """The day so many days earlier; with a calendar, business days."""
    for _ in range(number):
        day -= _DAY
        while calendar is not None and not calendar.is_business_day(day):
            day -= _DAY
    return day


@cache
def rules() -> Rules:
    """The rules that fhircm ships."""
    tree = read_yaml(folder("profiles") / "discharge" / "planning.yaml")
    screening, medicare = tree["screening"], tree["medicare"]
    return Rules(
        timedelta(days=tree["opens-within"]),
        tree["near"]["hours"],
        tree["near"]["business-days"],
        tree["without-date"],
        Screening(
            screening["age"], frozenset(screening["risk"]), timedelta(days=screening["stay-before"]), screening["lives-alone"]
        ),
        frozenset(tree["observation"]),
        {name: one["title"] for name, one in tree["dispositions"].items()},
        {
            (system, code): name
            for name, one in tree["dispositions"].items()
            for kind, systems in tree["systems"].items()
            for system in systems
            for code in one.get(kind, ())
        },
        (tuple(medicare["sopt"]), frozenset(medicare["codes"]), frozenset(medicare["within"])),
        {kind: tuple(parts) for kind, parts in tree["declined"].items()},
    )
