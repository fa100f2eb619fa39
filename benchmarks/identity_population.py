"""Made-up humans with their families and moves, and how several registration desks wrote each of them down: the labelled set for identity.

Everything follows from the seed. Real traps are in it: twins, father and son of one name, namesakes, couples with one phone, homes in which a
hundred elderly share an address and a number, marriages, moves, the insured person's number on a child's record, and what desks fill in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from benchmarks.identity_names import PEOPLES
from fhircm.exchange.features import tables

SSN, MBI = "http://hl7.org/fhir/sid/us-ssn", "http://hl7.org/fhir/sid/us-mbi"
TODAY = date(2026, 3, 1)
Tree = dict[str, Any]


@dataclass(frozen=True)
class Errors:
    """How often a desk writes each thing otherwise than it is. The default is the main set; `scaled` makes more or less of it."""

    nickname: float = 0.06
    name_typo: float = 0.01  # of a family and of a given name, each
    middle_name_used: float = 0.005
    middle_missing: float = 0.45
    middle_initial: float = 0.30
    names_swapped: float = 0.002
    one_surname: float = 0.2  # of two
    maiden_name: float = 0.25  # of those who changed it: the desk knew them before
    birth_date_slip: float = 0.006
    day_month_swapped: float = 0.003
    gender_wrong: float = 0.002
    gender_missing: float = 0.01
    old_address: float = 0.5  # of those who moved: the desk knew them before
    address_typo: float = 0.04
    address_missing: float = 0.02
    old_phone: float = 0.35  # of those who changed it
    phone_slip: float = 0.015
    phone_missing: float = 0.06
    ssn_slip: float = 0.006
    ssn_of_another: float = 0.003  # the insured person's
    ssn_masked: float = 0.03
    placeholder: float = 0.01
    suffix_missing: float = 0.5

    def scaled(self, factor: float) -> Errors:
        """So many times as often."""
        return Errors(**{name: min(0.95, rate * factor) for name, rate in vars(self).items()})


@dataclass(frozen=True)
class Population:
    """Whom and how many. `peoples`: shares of the peoples of identity_names; `homes`: share of those over 75 who live in homes."""

    humans: int = 9000
    peoples: tuple[tuple[str, float], ...] = (("wide", 0.74), ("hispanic", 0.18), ("asian", 0.08))
    partners: int = 4
    visits: float = 0.56  # chance of a human to be at each partner
    ssn: tuple[float, ...] = (0.75, 0.55, 0.85, 0.35)  # how many records of each partner bear one
    email: float = 0.45
    homes: float = 0.2
    duplicates: float = 0.0  # share of records that a desk made a second time
    moved: float = 0.18
    phone_changed: float = 0.15
    towns: int = 60
    errors: Errors = field(default_factory=Errors)


class Record(NamedTuple):
    """One Patient, whose it is, and what was done to it."""

    tree: Tree
    human: int
    partner: int
    kinds: frozenset[str]


@dataclass
class Human:
    """What is true of somebody."""

    number: int
    family: str
    given: str
    middle: str
    gender: str
    born: date
    home: tuple[str, str, str]  # line, city, postal code
    before: tuple[str, str, str] | None = None  # where they lived
    phone: str = ""
    phone_before: str = ""
    maiden: str = ""
    suffix: str = ""
    email: str = ""
    ssn: str = ""
    mbi: str = ""
    insured: Human | None = None  # whose number a desk may write
    twin: bool = False
    in_home: bool = False
    namesake: bool = False  # bears the name of a parent


class _Draw:
    """Weighted choices that are quick."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._sums = {
            (name, at): list(accumulate(weights)) for name, lists in PEOPLES.items() for at, (_, weights) in enumerate(lists)
        }

    def chance(self, rate: float) -> bool:
        return self.random.random() < rate

    def name(self, people: str, at: int) -> str:
        return self.random.choices(PEOPLES[people][at][0], cum_weights=self._sums[people, at])[0]


def records(population: Population, seed: int) -> list[Record]:
    """The records of all partners, in an order of chance."""
    draw = _Draw(seed)
    humans = list(_humans(population, draw))
    found = []
    for human in humans:
        for partner in range(population.partners):
            if draw.chance(population.visits):
                found.append(_written(human, partner, population, draw))
                if draw.chance(population.duplicates):
                    found.append(_twice(_written(human, partner, population, draw)))
    draw.random.shuffle(found)
    return found


def _twice(record: Record) -> Record:
    """The second record of one human at one desk."""
    tree = record.tree
    tree["id"] += "-2"
    tree["meta"]["source"] += "-2"
    return record._replace(kinds=record.kinds | {"duplicate"})


# --- who there is --------------------------------------------------------------------------------------------------------------

_STREETS = [
    "Maple",
    "Oak",
    "Elm",
    "Cedar",
    "Pine",
    "Washington",
    "Lake",
    "Hill",
    "Park",
    "Main",
    "Church",
    "Harbor",
    "Mill",
    "River",
    "Spring",
    "Walnut",
    "Chestnut",
    "Sunset",
    "Lincoln",
    "Jackson",
    "Franklin",
    "Highland",
    "Dogwood",
    "Meadow",
    "Forest",
]
_KINDS = ("Street", "Avenue", "Road", "Drive", "Lane", "Court")


def _humans(population: Population, draw: _Draw) -> Iterator[Human]:
    made: list[Human] = []
    towers = [_house(population, draw) for _ in range(max(1, population.humans // 300))]
    homes = [(_house(population, draw), _phone(draw)) for _ in range(max(1, population.humans // 2500))]
    while len(made) < population.humans:
        for human in _family(population, draw, towers):
            human.number = len(made)
            if human.born.year < TODAY.year - 75 and draw.chance(population.homes):
                human.in_home, (human.home, human.phone) = True, draw.random.choice(homes)
            _numbers(human, population, draw)
            made.append(human)
    yield from made[: population.humans]


def _family(population: Population, draw: _Draw, towers: list[tuple[str, str, str]]) -> list[Human]:
    people = draw.random.choices([name for name, _ in population.peoples], [share for _, share in population.peoples])[0]
    home, phone = _house(population, draw), _phone(draw)
    if draw.chance(0.3):
        line, city, code = draw.random.choice(towers)
        home = (f"{line} Apt {draw.random.randrange(1, 400)}", city, code)
    family = _surname(people, draw)
    born = TODAY - timedelta(days=draw.random.randrange(20 * 365, 92 * 365))
    first = _human(people, family, draw.random.choice(("male", "female")), born, home, phone, draw)
    if not draw.chance(0.6):
        return [first]
    other = _human(
        people, family, "female" if first.gender == "male" else "male", born + timedelta(days=draw.random.randrange(-2500, 2500)), home, phone, draw
    )  # fmt: skip
    wife = first if first.gender == "female" else other
    own = _surname(people, draw)
    wife.maiden = own
    wife.family = draw.random.choices([family, f"{own}-{family}", own], [6, 1, 2])[0] if people == "wide" else own
    if wife.family == own:
        wife.maiden = ""
    other.insured = first
    children = []
    old = (TODAY - born).days // 365
    for _ in range(draw.random.choice((0, 1, 1, 2, 2, 3, 4)) if 22 < old < 60 else 0):
        age = draw.random.randrange(0, min(old - 18, 25) + 1)
        day = TODAY - timedelta(days=365 * age + draw.random.randrange(365))
        child = _human(people, family, draw.random.choice(("male", "female")), day, home, phone, draw)
        child.insured = first
        if child.gender == "male" and people != "asian" and draw.chance(0.06):
            father = first if first.gender == "male" else other
            child.given, child.middle, child.suffix, child.namesake = father.given, father.middle, "Jr", True
            father.suffix = draw.random.choice(("Sr", ""))
        children.append(child)
        if draw.chance(0.035):
            twin = _human(
                people,
                family,
                child.gender if draw.chance(0.66) else draw.random.choice(("male", "female")),
                day,
                home,
                phone,
                draw,
            )
            twin.insured, twin.twin, child.twin = first, True, True
            if twin.gender == child.gender and draw.chance(0.4):
                twin.given = _alike(child.given, people, twin.gender, draw)
            if twin.given == child.given:
                twin.middle = next(name for name in iter(lambda: draw.name(people, 1), None) if name != child.middle)
            children.append(twin)
    return [first, other, *children]


def _alike(given: str, people: str, gender: str, draw: _Draw) -> str:
    """How parents name a twin: the same beginning, or a letter apart, or, in Spanish, the same first name."""
    if people == "hispanic" and gender == "female" and draw.chance(0.5):
        return given
    if draw.chance(0.3):
        return given[:-1] + ("e" if given[-1] != "e" else "a")
    names = [name for name in PEOPLES[people][1 if gender == "female" else 2][0] if name[0] == given[0] and name != given]
    return draw.random.choice(names) if names else draw.name(people, 1)


def _human(people: str, family: str, gender: str, born: date, home: tuple[str, str, str], phone: str, draw: _Draw) -> Human:
    at = 1 if gender == "female" else 2
    return Human(0, family, draw.name(people, at), draw.name(people, at), gender, min(born, TODAY), home, phone=phone)


def _surname(people: str, draw: _Draw) -> str:
    name = draw.name(people, 0)
    return f"{name} {draw.name(people, 0)}" if people == "hispanic" and draw.chance(0.7) else name


def _house(population: Population, draw: _Draw) -> tuple[str, str, str]:
    town = int(population.towns * draw.random.random() ** 2)
    line = f"{draw.random.randrange(1, 2500)} {draw.random.choice(_STREETS)} {draw.random.choice(_KINDS)}"
    return line, f"Town{town}", f"{60000 + town:05}"


def _phone(draw: _Draw) -> str:
    return f"{draw.random.choice((312, 708, 773, 847))}{draw.random.randrange(200, 999)}{draw.random.randrange(10000):04}"


def _numbers(human: Human, population: Population, draw: _Draw) -> None:
    human.ssn = f"{draw.random.randrange(100, 700)}{draw.random.randrange(1, 99):02}{draw.random.randrange(1, 9999):04}"
    if (TODAY - human.born).days > 65 * 365:
        letters = "ACDEFGHJKMNPQRTUVWXY"
        human.mbi = "".join(draw.random.choice(letters if at % 3 == 1 else "123456789") for at in range(11))
    if draw.chance(population.moved) and not human.in_home:
        human.before = _house(population, draw)
    if (TODAY - human.born).days > 16 * 365 and draw.chance(0.7) and not human.in_home:
        human.phone = _phone(draw)  # one of their own; the rest give the family's
    if draw.chance(population.phone_changed) and not human.in_home:
        human.phone_before = _phone(draw)
    if draw.chance(population.email):
        human.email = f"{human.given}{human.family}{draw.random.randrange(10**4)}@mail.example".replace(" ", "").lower()


# --- how it is written down ------------------------------------------------------------------------------------------------------


def _written(human: Human, partner: int, population: Population, draw: _Draw) -> Record:
    errors, chance, kinds = population.errors, draw.chance, set()

    def happens(kind: str, rate: float | None = None) -> bool:
        if chance(getattr(errors, kind) if rate is None else rate):
            kinds.add(kind)
            return True
        return False

    kinds |= {kind for kind in ("twin", "in_home", "namesake") if getattr(human, kind)}
    family, given, middle = human.family, human.given, human.middle
    if human.maiden and happens("maiden_name"):
        family = human.maiden
    if " " in family and not family.startswith("de ") and happens("one_surname"):
        family = draw.random.choice(family.split(" ")) if chance(0.2) else family.split(" ")[0]
    short = _nicknames().get(given.casefold())
    if short and happens("nickname"):
        given = draw.random.choice(short).title()
    if chance(errors.middle_missing):
        middle = ""
    elif chance(errors.middle_initial):
        middle = middle[:1]
    elif happens("middle_name_used"):
        given, middle = middle, ""
    if happens("name_typo"):
        family = _slip(family, draw)
    if happens("name_typo"):
        given = _slip(given, draw)
    if happens("names_swapped"):
        family, given, middle = given, family, ""
    if chance(0.15):
        family, given = family.upper(), given.upper()
    name: Tree = {"family": family, "given": [given, middle] if middle else [given]}
    if human.suffix and not happens("suffix_missing"):
        name["suffix"] = [human.suffix]
    tree: Tree = {"resourceType": "Patient", "name": [name], "birthDate": _born(human, happens, draw)}
    gender = human.gender
    if happens("gender_wrong"):
        gender = "male" if gender == "female" else "female"
    if not happens("gender_missing"):
        tree["gender"] = gender
    if human.twin and partner == 0 and chance(0.3):
        tree["multipleBirthBoolean"] = True
    _reached(tree, human, population, happens, draw)
    tree["identifier"] = _identified(human, partner, population, happens, draw)
    base = f"https://partner{partner}.example/fhir"
    id = f"{partner}-{human.number}"
    tree |= {"id": id, "meta": {"source": f"{base}/Patient/{id}"}}
    return Record(tree, human.number, partner, frozenset(kinds))


def _born(human: Human, happens: Any, draw: _Draw) -> str:
    text = human.born.isoformat()
    if human.born.day <= 12 and human.born.day != human.born.month and happens("day_month_swapped"):
        return f"{text[:4]}-{text[8:]}-{text[5:7]}"
    if happens("birth_date_slip"):
        for _ in range(20):
            moved = human.born + timedelta(days=draw.random.choice((-10, -1, 1, 10, 365, -365, 30, -3650)))
            if moved != human.born and moved <= TODAY:
                return moved.isoformat()
    if happens("placeholder", 0.003):
        return "1900-01-01"
    return text


def _reached(tree: Tree, human: Human, population: Population, happens: Any, draw: _Draw) -> None:
    errors, chance = population.errors, draw.chance
    line, city, code = human.before if human.before and happens("old_address") else human.home
    if not happens("address_missing"):
        if happens("address_typo"):
            line = _slip(line, draw)
        elif chance(0.3):
            line = line.replace("Street", "St").replace("Avenue", "Ave").replace("Road", "Rd").replace("Drive", "Dr")
        tree["address"] = [{"line": [line], "city": city, "postalCode": code}]
    phone = human.phone_before if human.phone_before and happens("old_phone") else human.phone
    telecom = []
    if happens("placeholder"):
        telecom.append({"system": "phone", "value": "555-555-5555"})
    elif not chance(errors.phone_missing):
        if happens("phone_slip"):
            phone = _digit(phone, draw)
        telecom.append({"system": "phone", "value": f"({phone[:3]}) {phone[3:6]}-{phone[6:]}" if chance(0.5) else phone})
    if human.email and chance(0.6):
        telecom.append({"system": "email", "value": human.email})
    if telecom:
        tree["telecom"] = telecom


def _identified(human: Human, partner: int, population: Population, happens: Any, draw: _Draw) -> list[Tree]:
    errors = population.errors
    found: list[Tree] = [
        {"type": {"coding": [{"code": "MR"}]}, "system": f"urn:mrn:{partner}", "value": str(draw.random.randrange(10**7))}
    ]
    if draw.chance(population.ssn[partner % len(population.ssn)]):
        number = human.ssn
        if human.insured and happens("ssn_of_another"):
            number = human.insured.ssn
        elif happens("ssn_slip"):
            number = _digit(number, draw)
        elif draw.chance(errors.placeholder):
            number = "999999999"
        text = f"{number[:3]}-{number[3:5]}-{number[5:]}"
        found.append({"system": SSN, "value": f"XXX-XX-{number[5:]}" if happens("ssn_masked") else text})
    if human.mbi and draw.chance(0.5):
        found.append({"system": MBI, "value": human.mbi})
    return found


def _nicknames() -> dict[str, list[str]]:
    if not _SHORT:
        _SHORT.update({line[0]: line[1:] for line in tables()["nicknames"]})
    return _SHORT


_SHORT: dict[str, list[str]] = {}


def _slip(text: str, draw: _Draw) -> str:
    """One key beside another, one too few, one too many, or two in the wrong order."""
    if len(text) < 3:
        return text
    at = draw.random.randrange(1, len(text) - 1)
    letter = draw.random.choice("aeinorstl")
    return draw.random.choice(
        (
            text[:at] + letter + text[at + 1 :],
            text[:at] + text[at + 1 :],
            text[:at] + letter + text[at:],
            text[:at] + text[at + 1] + text[at] + text[at + 2 :],
        )
    )


def _digit(number: str, draw: _Draw) -> str:
    at = draw.random.randrange(len(number) - 1)
    if draw.chance(0.4):
        return number[:at] + number[at + 1] + number[at] + number[at + 2 :]
    return number[:at] + str((int(number[at]) + draw.random.randrange(1, 9)) % 10) + number[at + 1 :]
