"""The network: who takes part, and what befalls its patients in a year. All of it follows from a seed.

Rates are those of a general population in the order of magnitude, not of any real place: they are here to make the hub work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

Tree = dict[str, Any]
NPI = "http://hl7.org/fhir/sid/us-npi"
MRN = "https://network.example/mrn"
START = datetime(2026, 1, 5, 6, 0, tzinfo=UTC)  # a Monday
FAMILIES = ("Garcia", "Nguyen", "Okafor", "Smith", "Ivanova", "Haddad", "Kim", "Silva", "Novak", "Jensen")
PROBLEMS = (("84114007", "Heart failure"), ("13645005", "COPD"), ("44054006", "Type 2 diabetes"), ("38341003", "Hypertension"))
REFERRALS = (
    ("183519002", "Referral to cardiology service"),
    ("183524004", "Referral to psychiatry service"),
    ("306206005", "Referral to service"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """An organisation. `answers`: how likely it answers a referral by itself; `accepts`: how likely with yes; `slow`: mean days to an answer."""

    id: str
    kind: str  # hospital, clinic, specialist, post-acute, payer
    name: str
    npi: str
    answers: float = 0.93
    accepts: float = 0.88
    slow: float = 1.2
    diligence: float = 0.9  # how likely a piece of work is done in time

    @property
    def reference(self) -> str:
        """As resources name it."""
        return f"Organization/{self.id}"


@dataclass(frozen=True, slots=True)
class Person:
    """A patient: who looks after them, who pays, and how ill they are (0 to 1)."""

    id: str
    born: str
    clinic: Place
    payer: Place
    frailty: float
    number: int

    @property
    def reference(self) -> str:
        """As resources name them."""
        return f"Patient/{self.id}"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befalls a patient: `stay`, `ed` or `referral`, when, where, and how it ends."""

    at: datetime
    kind: str
    person: Person
    place: Place
    days: float = 0.0
    ends: str = ""  # the disposition of a stay
    what: tuple[str, str] = ("", "")


@dataclass
class Network:
    """Everybody, out of a seed. `share` shrinks it for a short look."""

    seed: int
    patients: int
    random: Random = field(init=False)
    places: list[Place] = field(init=False)
    people: list[Person] = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        draw = self.random
        self.places = []
        for kind, count in (("hospital", 3), ("clinic", 8), ("specialist", 4), ("post-acute", 8), ("payer", 2)):
            for number in range(1, count + 1):
                index = len(self.places) + 1
                more = {"answers": 0.85, "accepts": 0.3, "slow": 0.3} if kind == "post-acute" else {}  # most requests are denied
                self.places.append(
                    Place(
                        f"{kind}-{number}",
                        kind,
                        f"{kind.title()} {number}",
                        f"1{index:09}",
                        diligence=draw.uniform(0.8, 0.97),
                        **more,
                    )
                )
        self.people = []
        for number in range(self.patients):
            frailty = draw.betavariate(1.2, 5)
            born = f"{2026 - int(18 + 75 * min(1.0, frailty + draw.random() * 0.6))}-{draw.randrange(1, 13):02}-{draw.randrange(1, 28):02}"
            self.people.append(
                Person(f"person-{number}", born, draw.choice(self.of("clinic")), draw.choice(self.of("payer")), frailty, number)
            )

    def of(self, *kinds: str) -> list[Place]:
        """The places of these kinds."""
        return [place for place in self.places if place.kind in kinds]

    def records(self) -> Iterator[list[Tree]]:
        """What is on record at the beginning, in loads of many resources."""
        yield [_organization(place) for place in self.places]
        for start in range(0, len(self.people), 200):
            yield [tree for person in self.people[start : start + 200] for tree in _record(person)]

    def year(self, days: int) -> list[Happening]:
        """What befalls everybody, in order of time."""
        found: list[Happening] = []
        for person in self.people:
            found += self._stays(person, days) + self._visits(person, days) + self._referrals(person, days)
        return sorted(found, key=lambda one: (one.at, one.person.number, one.kind))

    def _times(self, a_year: float, days: int) -> list[datetime]:
        """Times of what happens so often a year, at any hour."""
        times, at = [], self.random.expovariate(a_year / 365)
        while at < days:
            times.append(START + timedelta(days=at))
            at += self.random.expovariate(a_year / 365)
        return times

    def _stays(self, person: Person, days: int) -> list[Happening]:
        found, draw, free = [], self.random, START
        for at in self._times(0.02 + 0.4 * person.frailty, days):
            while at is not None and at < START + timedelta(days=days):
                if at < free:
                    break
                length = min(30.0, draw.lognormvariate(1.2, 0.7))
                ends = draw.choices(("01", "06", "03", "07", "20"), (68, 14, 12, 2, 4))[
                    0
                ]  # home, home health, nursing, against advice, died
                found.append(Happening(at, "stay", person, draw.choice(self.of("hospital")), length, ends))
                free = at + timedelta(days=length)
                if ends == "20":
                    return found
                back = draw.random() < 0.08 + 0.25 * person.frailty
                at = free + timedelta(days=draw.uniform(1, 29)) if back else None  # type: ignore[assignment]
        return found

    def _visits(self, person: Person, days: int) -> list[Happening]:
        often = 6.0 if self.random.random() < 0.01 else 0.15 + 0.8 * person.frailty  # a few come again and again
        places = self.of("hospital")
        return [
            Happening(at, "ed", person, self.random.choice(places), self.random.uniform(0.1, 0.6))
            for at in self._times(often, days)
        ]

    def _referrals(self, person: Person, days: int) -> list[Happening]:
        found = []
        for at in self._times(0.25 + 0.9 * person.frailty, days):
            office = at.replace(hour=15 + at.hour % 6)  # written in office hours
            found.append(
                Happening(
                    office, "referral", person, self.random.choice(self.of("specialist")), what=self.random.choice(REFERRALS)
                )
            )
        return found


def _organization(place: Place) -> Tree:
    return {
        "resourceType": "Organization",
        "id": place.id,
        "active": True,
        "name": place.name,
        "identifier": [{"system": NPI, "value": place.npi}],
    }


def _record(person: Person) -> list[Tree]:
    draw = Random(person.number)
    patient = {
        "resourceType": "Patient",
        "id": person.id,
        "identifier": [{"system": MRN, "value": f"M{person.number:06}"}],
        "name": [{"family": FAMILIES[person.number % 10], "given": [f"Given{person.number}"]}],
        "birthDate": person.born,
        "gender": draw.choice(("male", "female")),
        "managingOrganization": {"reference": person.clinic.reference},
    }
    coverage = {
        "resourceType": "Coverage",
        "id": f"coverage-{person.number}",
        "status": "active",
        "beneficiary": {"reference": person.reference},
        "payor": [{"reference": person.payer.reference}],
    }
    problems = [
        {
            "resourceType": "Condition",
            "id": f"condition-{person.number}-{code}",
            "clinicalStatus": {
                "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}]
            },
            "subject": {"reference": person.reference},
            "code": {"coding": [{"system": "http://snomed.info/sct", "code": code}], "text": text},
        }
        for code, text in PROBLEMS
        if draw.random() < person.frailty
    ]
    return [patient, coverage, *problems]
