"""A synthetic population, the same for the same seed: a hospital's and a clinic's record of partly the same humans.

The shapes are those of https://hl7.org/fhir/us/core/STU6.1/; the humans are invented, and their numbers belong to no real issuer. Among them
are twins, a father and a son of one name, and namesakes, whom nobody should take for one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any

Tree = dict[str, Any]

NPI = "http://hl7.org/fhir/sid/us-npi"
HOSPITAL_NPI, CLINIC_NPI = "1234567893", "1982736450"
_SNOMED = "http://snomed.info/sct"
_GIVEN = {
    "female": [
        "Aisha",
        "Beatriz",
        "Chloë",
        "Dolores",
        "Erin",
        "Fatima",
        "Grace",
        "Hannah",
        "Inés",
        "Joan",
        "Keiko",
        "Lucía",
        "Maren",
        "Nadia",
        "Olga",
        "Priya",
        "Quinn",
        "Rosa",
        "Siobhán",
        "Tamara",
    ],
    "male": [
        "Andrés",
        "Boris",
        "Carl",
        "Diego",
        "Elias",
        "Farid",
        "Gustav",
        "Henry",
        "Ivan",
        "José",
        "Kenji",
        "Liam",
        "Mateo",
        "Noah",
        "Omar",
        "Pavel",
        "Raúl",
        "Sven",
        "Tomás",
        "Wei",
    ],
}
_FAMILY = [
    "Abernathy",
    "Bergström",
    "Castillo",
    "Dvořák",
    "Eriksen",
    "Fitzgerald",
    "Grünwald",
    "Hernández",
    "Ibarra",
    "Jankowski",
    "Kowalczyk",
    "Lindqvist",
    "Müller",
    "Nakamura",
    "O'Connell",
    "Petrov",
    "Quispe",
    "Rasmussen",
    "Santos",
    "Thompson",
    "Urbina",
    "Vásquez",
    "Whitaker",
    "Ximénez",
    "Yamamoto",
    "Zielinski",
]
_TOWNS = (("Springfield", "62701"), ("Naperville", "60540"), ("Peoria", "61602"), ("Rockford", "61101"), ("Evanston", "60201"))
_CONDITIONS = (
    ("84114007", "Heart failure"),
    ("44054006", "Type 2 diabetes mellitus"),
    ("13645005", "COPD"),
    ("38341003", "Hypertension"),
)
_ROLES = (
    ("768832004", "Case manager"),
    ("446050000", "Primary care provider"),
    ("46255001", "Pharmacist"),
    ("768820003", "Care coordinator"),
)
_STAFF = {
    "lakeside": (("Dana", "Ortiz"), ("Miriam", "Feld"), ("Teo", "Lam"), ("Ruth", "Baines")),
    "riverbend": (("Alex", "Okoye"), ("Helen", "Marsh"), ("Iris", "Novak"), ("Sam", "Whitford")),
}


@dataclass(frozen=True)
class Human:
    """Somebody, as the population knows them; `number` is the ground truth."""

    number: int
    given: str
    family: str
    gender: str
    born: date
    street: str
    town: tuple[str, str]
    phone: str
    suffix: str | None = None


@dataclass(frozen=True)
class Population:
    """Two records, and for tests the truth: human number by patient id."""

    hospital: list[Tree]
    clinic: list[Tree]
    truth: dict[str, int]


def population(seed: int, humans: int, today: date) -> Population:
    """The humans of a seed: five in six go to the hospital, half to the clinic, a third to both. Those in bed came five days ago."""
    random = Random(seed)  # noqa: S311 a story, not a secret
    people = _people(random, humans)
    hospital, clinic = organization_resources("hospital"), organization_resources("clinic")
    truth: dict[str, int] = {}
    panels: dict[str, list[str]] = {"hospital": [], "clinic": []}
    for human in people:
        at_hospital, at_clinic = human.number % 6 != 5, human.number % 6 in (0, 2, 5)
        for name, here, record in (("hospital", at_hospital, hospital), ("clinic", at_clinic, clinic)):
            if here:
                id = f"{name[0]}{human.number:04d}"
                truth[id] = human.number
                panels[name].append(id)
                record += person_record(human, id, name, today)
    hospital.append(group(panels["hospital"]))
    clinic.append(group(panels["clinic"]))
    return Population(hospital, clinic, truth)


def _people(random: Random, count: int) -> list[Human]:
    people: list[Human] = []
    while len(people) < count:
        number = len(people)
        gender = random.choice(("female", "male"))
        one = Human(
            number,
            random.choice(_GIVEN[gender]),
            random.choice(_FAMILY),
            gender,
            date(1931, 1, 1) + timedelta(days=random.randrange(25_000)),
            f"{random.randrange(1, 999)} {random.choice(('Oak', 'Maple', 'Second', 'River', 'Church'))} St",
            random.choice(_TOWNS),
            f"555-{random.randrange(200, 999)}-{random.randrange(1000, 9999)}",
        )
        people.append(one)
        if number % 12 == 5 and len(people) < count:  # somebody who is easily taken for the one before
            people.append(_double(one, len(people), random))
    return people


def _double(one: Human, number: int, random: Random) -> Human:
    kind = (number // 12) % 3
    if kind == 0:  # a twin
        other = random.choice([name for name in _GIVEN[one.gender] if name != one.given])
        return Human(number, other, one.family, one.gender, one.born, one.street, one.town, one.phone)
    if kind == 1:  # a son of the same name
        later = one.born + timedelta(days=365 * 27)
        return Human(number, one.given, one.family, one.gender, later, one.street, one.town, one.phone, "Jr")
    town = next(town for town in _TOWNS if town != one.town)  # a namesake, born on the same day
    return Human(number, one.given, one.family, one.gender, one.born, "12 Elsewhere Ave", town, f"555-111-{number:04d}")


def organization_resources(name: str) -> list[Tree]:
    """The organisation that runs an EHR, its directory, its place and its staff."""
    hospital = name == "hospital"
    own = "lakeside" if hospital else "riverbend"
    title, npi = ("Lakeside Hospital", HOSPITAL_NPI) if hospital else ("Riverbend Clinic", CLINIC_NPI)
    made = [_organization(own, title, npi)]
    if hospital:
        made.append(_organization("dir-riverbend", "Riverbend Clinic (directory)", CLINIC_NPI))
    made.append({"resourceType": "Location", "id": f"{own}-main", "status": "active", "name": title})
    for index, ((code, role), (given, family)) in enumerate(zip(_ROLES, _STAFF[own], strict=True)):
        made.append(
            {
                "resourceType": "Practitioner",
                "id": f"{own}-p{index}",
                "active": True,
                "name": [{"family": family, "given": [given]}],
            }
        )
        if hospital:
            made.append(
                {
                    "resourceType": "PractitionerRole",
                    "id": f"{own}-r{index}",
                    "active": True,
                    "practitioner": {"reference": f"Practitioner/{own}-p{index}", "display": f"{given} {family}"},
                    "organization": {"reference": f"Organization/{own}"},
                    "code": [_concept(code, role)],
                }
            )
    return made


def person_record(human: Human, id: str, at: str, today: date) -> list[Tree]:
    """Everything that one EHR has about somebody."""
    own = "lakeside" if at == "hospital" else "riverbend"
    subject = {"reference": f"Patient/{id}"}
    code, display = _CONDITIONS[human.number % len(_CONDITIONS)]
    return [
        _patient(human, id, at),
        *story(id, own, subject, (code, display), today, inpatient=human.number % 9 == 0),
    ]


def story(id: str, own: str, subject: Tree, condition: tuple[str, str], today: date, *, inpatient: bool) -> list[Tree]:
    """A condition, a visit or a stay, and the plan, team, goal and orders that follow from it."""

    def ago(days: int) -> str:
        return (today - timedelta(days=days)).isoformat()

    hospital = own == "lakeside"
    stay = inpatient and hospital
    member = [f"PractitionerRole/{own}-r{index}" if hospital else f"Practitioner/{own}-p{index}" for index in range(len(_ROLES))]
    encounter: Tree = {
        "resourceType": "Encounter",
        "id": f"{id}-e1",
        "status": "in-progress" if stay else "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP" if stay else "AMB"},
        "type": [_concept("32485007", "Hospital admission") if stay else _concept("308335008", "Patient encounter procedure")],
        "subject": subject,
        "period": {"start": f"{ago(5)}T09:30:00-06:00"}
        if stay
        else {"start": f"{ago(540)}T09:00:00-06:00", "end": f"{ago(540)}T09:30:00-06:00"},
        "location": [{"location": {"reference": f"Location/{own}-main"}}],
        "serviceProvider": {"reference": f"Organization/{own}"},
    }
    made: list[Tree] = [
        {
            "resourceType": "Condition",
            "id": f"{id}-c1",
            "clinicalStatus": _concept("active", None, "http://terminology.hl7.org/CodeSystem/condition-clinical"),
            "category": [_concept("problem-list-item", None, "http://terminology.hl7.org/CodeSystem/condition-category")],
            "code": _concept(*condition),
            "subject": subject,
        },
        encounter,
        {
            "resourceType": "CarePlan",
            "id": f"{id}-cp1",
            "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">Care plan</div>'},
            "status": "active",
            "intent": "plan",
            "category": [_concept("assess-plan", None, "http://hl7.org/fhir/us/core/CodeSystem/careplan-category")],
            "subject": subject,
            "careTeam": [{"reference": f"CareTeam/{id}-ct1"}],
            "goal": [{"reference": f"Goal/{id}-g1"}],
        },
        {
            "resourceType": "CareTeam",
            "id": f"{id}-ct1",
            "status": "active",
            "category": [_concept("longitudinal", None, "urn:oid:2.16.840.1.113883.4.642.3.155")],
            "subject": subject,
            "participant": [
                {"role": [_concept(code, role)], "member": {"reference": member[index]}}
                for index, (code, role) in enumerate(_ROLES[:3])
            ],
        },
        {
            "resourceType": "Goal",
            "id": f"{id}-g1",
            "lifecycleStatus": "active",
            "description": {"text": "Walks 30 minutes on most days"},
            "subject": subject,
            "startDate": ago(320),
            "target": [{"dueDate": ago(-40)}],
        },
        {
            "resourceType": "RelatedPerson",
            "id": f"{id}-rp1",
            "active": True,
            "patient": subject,
            "relationship": [_concept("FAMMEMB", None, "http://terminology.hl7.org/CodeSystem/v3-RoleCode")],
        },
        {
            "resourceType": "Coverage",
            "id": f"{id}-cov1",
            "status": "active",
            "beneficiary": subject,
            "payor": [{"reference": f"Organization/{own}"}],
        },
        {
            "resourceType": "ServiceRequest",
            "id": f"{id}-sr1",
            "status": "draft",
            "intent": "order",
            "category": [_concept("3457005", "Patient referral")],
            "code": _concept("183519002", "Referral to cardiology service"),
            "subject": subject,
            "authoredOn": ago(4),
            "requester": {"reference": f"PractitionerRole/{own}-r1" if hospital else f"Practitioner/{own}-p1"},
            "performer": [{"reference": "Organization/dir-riverbend" if hospital else "Organization/riverbend"}],
        },
    ]
    if hospital:
        made.append(
            {
                "resourceType": "Task",
                "id": f"{id}-t1",
                "status": "requested",
                "intent": "order",
                "code": {"text": "Check home glucose readings"},
                "for": subject,
                "authoredOn": f"{ago(22)}T10:00:00-06:00",
            }
        )
    return made


def group(members: list[str]) -> Tree:
    """The panel: whom the hub coordinates."""
    return {
        "resourceType": "Group",
        "id": "panel",
        "type": "person",
        "actual": True,
        "member": [{"entity": {"reference": f"Patient/{id}"}} for id in members],
    }


def _patient(human: Human, id: str, at: str) -> Tree:
    clinic = at == "clinic"
    name: Tree = {"use": "official", "family": human.family, "given": [human.given.upper() if clinic else human.given]}
    if human.suffix:
        name["suffix"] = [human.suffix]
    identifiers = [_numbered("MR", f"https://{at}.example/mrn", id)]
    if (
        not clinic or human.number % 4
    ):  # the clinic did not ask everybody for the card: those must be known by what they are called
        identifiers.append(_numbered("MB", "https://plan.example/member", f"M{human.number:06d}"))
    digits = "".join(character for character in human.phone if character.isdigit())
    return {
        "resourceType": "Patient",
        "id": id,
        "identifier": identifiers,
        "active": True,
        "name": [name],
        "telecom": [
            {"system": "phone", "value": f"({digits[:3]}) {digits[3:6]}-{digits[6:]}" if clinic else human.phone, "use": "home"}
        ],
        "gender": human.gender,
        "birthDate": human.born.isoformat(),
        "address": [
            {
                "use": "home",
                "line": [human.street.replace(" St", " Street") if clinic else human.street],
                "city": human.town[0],
                "state": "IL",
                "postalCode": human.town[1],
            }
        ],
    }


def _concept(code: str, display: str | None, system: str = _SNOMED) -> Tree:
    coding = {"system": system, "code": code} | ({"display": display} if display else {})
    return {"coding": [coding]} | ({"text": display} if display else {})


def _numbered(type: str, system: str, value: str) -> Tree:
    return {"type": _concept(type, None, "http://terminology.hl7.org/CodeSystem/v2-0203"), "system": system, "value": value}


def _organization(id: str, name: str, npi: str) -> Tree:
    return {"resourceType": "Organization", "id": id, "identifier": [{"system": NPI, "value": npi}], "active": True, "name": name}
