"""The network: who takes part, and what befalls its patients in a year. All of it follows from a seed.

Rates are those of a general population in the order of magnitude, not of any real place: they are here to make the hub work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Literal

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)  # a Monday, before the offices open
Kind = Literal["hospital", "clinic", "specialist", "post-acute", "payer", "coordinator"]
How = Literal["direct", "in turn", "first-accept", "open"]
_NUMBERS: tuple[tuple[Kind, int], ...] = (("hospital", 3), ("clinic", 8), ("specialist", 4), ("post-acute", 8), ("payer", 2))


@dataclass(frozen=True, slots=True)
class Service:
    """What can be asked for: codes of SNOMED CT for the request and for who is able, and the numbers of the specialists that are."""

    name: str
    code: str
    able: str
    specialists: tuple[int, ...]


SERVICES = (
    Service("Referral to cardiology service", "183519002", "394579002", (1, 2, 3)),
    Service("Referral to psychiatry service", "183524004", "394587001", (2, 4)),
    Service("Referral to diabetes education", "306206005", "394583002", (1, 2, 3, 4)),
)
# The disposition of a stay (NUBC) and how many in a hundred end so: home, home health, nursing facility, rehabilitation, against advice, died
ENDS = {"01": 66, "06": 14, "03": 11, "62": 3, "07": 2, "20": 4}
POST_ACUTE = {"06": "Home health", "03": "Skilled nursing", "62": "Inpatient rehabilitation"}


@dataclass(frozen=True, slots=True)
class Place:
    """An organisation. `answers`: how likely it answers by itself; `accepts`: with yes; `slow`: mean days to an answer; `diligence`: works in time."""

    id: str
    kind: Kind
    name: str
    npi: str = ""
    answers: float = 0.93
    accepts: float = 0.85
    slow: float = 1.2
    diligence: float = 0.9

    @property
    def reference(self) -> str:
        """As resources name it."""
        return f"Organization/{self.id}"


@dataclass(frozen=True, slots=True)
class Person:
    """A patient: who looks after them, who pays, and how ill they are (0 to 1)."""

    number: int
    age: int
    clinic: Place
    payer: Place
    frailty: float

    @property
    def reference(self) -> str:
        """As resources name them."""
        return f"Patient/person-{self.number}"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befalls a patient, when and where. Of a stay: how long, how it ends and what was written wrongly; of a referral: for what, and how."""

    at: datetime
    kind: Literal["stay", "emergency visit", "referral"]
    person: Person
    place: Place
    days: float = 0.0
    ends: str = ""
    wrong: Literal["", "never was", "begun earlier", "came back"] = ""
    service: Service = SERVICES[0]
    how: How = "direct"


@dataclass
class Network:
    """Everybody, out of a seed. `pace` makes things happen so many times as often as in a year like any other."""

    seed: int
    patients: int
    pace: float = 1.0
    random: Random = field(init=False)
    places: list[Place] = field(init=False)
    people: list[Person] = field(init=False)

    def __post_init__(self) -> None:
        draw = self.random = Random(self.seed)
        self.places = []
        for kind, count in _NUMBERS:
            for number in range(1, count + 1):
                npi, diligence = f"1{len(self.places) + 1:09}", draw.uniform(0.8, 0.97)
                id, name = f"{kind}-{number}", f"{kind.capitalize()} {number}"
                if kind == "post-acute":  # most requests are declined, soon
                    self.places.append(Place(id, kind, name, npi, 0.85, 0.3, 0.3, diligence))
                else:
                    self.places.append(Place(id, kind, name, npi, diligence=diligence))
        self.people = []
        for number in range(self.patients):
            frailty = draw.betavariate(1.2, 5)
            age = int(18 + 75 * min(1.0, frailty + draw.random() * 0.6))
            clinic, payer = draw.choice(self.of("clinic")), draw.choice(self.of("payer"))
            self.people.append(Person(number, age, clinic, payer, frailty))

    def of(self, *kinds: Kind) -> list[Place]:
        """The places of these kinds."""
        return [place for place in self.places if place.kind in kinds]

    def able(self, service: Service) -> list[Place]:
        """The specialists that offer a service."""
        return [self.of("specialist")[number - 1] for number in service.specialists]

    def year(self, days: int) -> list[Happening]:
        """What befalls everybody, in order of time."""
        found: list[Happening] = []
        for person in self.people:
            found += self._stays(person, days) + self._visits(person, days) + self._referrals(person, days)
        return sorted(found, key=lambda one: (one.at, one.person.number, one.kind))

    def _times(self, a_year: float, days: int) -> list[datetime]:
        """Times of what happens so often a year, at any hour."""
        often = a_year * self.pace / 365
        times, at = [], self.random.expovariate(often)
        while at < days:
            times.append(START + timedelta(days=at))
            at += self.random.expovariate(often)
        return times

    def _stays(self, person: Person, days: int) -> list[Happening]:
        found, draw, free, over = [], self.random, START, START + timedelta(days=days)
        for first in self._times(0.02 + 0.4 * person.frailty, days):
            at: datetime | None = first
            while at is not None and free <= at < over:
                length = min(30.0, draw.lognormvariate(1.2, 0.7))
                (ends,) = draw.choices(tuple(ENDS), tuple(ENDS.values()))
                (wrong,) = draw.choices(("", "never was", "begun earlier", "came back"), (94, 2, 2, 2))
                found.append(Happening(at, "stay", person, draw.choice(self.of("hospital")), length, ends, wrong))
                free = at + timedelta(days=length + 2)
                if ends == "20" and not wrong:
                    return found
                back = draw.random() < 0.08 + 0.25 * person.frailty
                at = free + timedelta(days=draw.uniform(1, 27)) if back else None
        return found

    def _visits(self, person: Person, days: int) -> list[Happening]:
        often = 6.0 if self.random.random() < 0.01 else 0.15 + 0.8 * person.frailty  # a few come again and again
        places, draw = self.of("hospital"), self.random
        return [
            Happening(at, "emergency visit", person, draw.choice(places), draw.uniform(0.1, 0.6))
            for at in self._times(often, days)
        ]

    def _referrals(self, person: Person, days: int) -> list[Happening]:
        found, draw = [], self.random
        for at in self._times(0.25 + 0.9 * person.frailty, days):
            office = at.replace(hour=15 + at.hour % 6)  # written in office hours
            service = draw.choice(SERVICES)
            (how,) = draw.choices(("direct", "in turn", "first-accept", "open"), (55, 15, 15, 15))
            found.append(Happening(office, "referral", person, draw.choice(self.able(service)), service=service, how=how))
        return found
