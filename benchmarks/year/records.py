"""What is on record when the year begins: the places with what they offer, and the patients with who pays and what they have."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from benchmarks.year.network import POST_ACUTE, SERVICES, START, Network, Person, Place

Tree = dict[str, Any]
SCT = "http://snomed.info/sct"
_NPI = "http://hl7.org/fhir/sid/us-npi"
_MRN = "https://network.example/mrn"
_STATUS = "http://terminology.hl7.org/CodeSystem/condition-clinical"
_FAMILIES = ("Garcia", "Nguyen", "Okafor", "Smith", "Ivanova", "Haddad", "Kim", "Silva", "Novak", "Jensen")
_PROBLEMS = (("84114007", "Heart failure"), ("13645005", "COPD"), ("44054006", "Type 2 diabetes"), ("38341003", "Hypertension"))


def records(network: Network) -> Iterator[list[Tree]]:
    """In loads of many resources, what others refer to first."""
    yield [_organization(place) for place in network.places]
    able = [_service(place, f"{place.id}-{one.able}", one.able, one.name) for one in SERVICES for place in network.able(one)]
    after = [_service(place, place.id, "", f"After the hospital: {place.name}") for place in network.of("post-acute")]
    yield [*able, *after]
    for start in range(0, len(network.people), 200):
        yield [tree for person in network.people[start : start + 200] for tree in _person(person)]


def kinds_of(place: Place) -> list[str]:
    """The dispositions after which a post-acute place takes patients: each of the eight takes two of three."""
    number = int(place.id.rpartition("-")[2])
    return [code for index, code in enumerate(POST_ACUTE) if index != number % 3]


def _organization(place: Place) -> Tree:
    return {
        "resourceType": "Organization",
        "id": place.id,
        "active": True,
        "name": place.name,
        "identifier": [{"system": _NPI, "value": place.npi}],
    }


def _service(place: Place, id: str, type: str, name: str) -> Tree:
    return {
        "resourceType": "HealthcareService",
        "id": id,
        "active": True,
        "providedBy": {"reference": place.reference},
        "name": name,
        "type": [{"coding": [{"system": SCT, "code": type}]}] if type else [{"text": POST_ACUTE[one]} for one in kinds_of(place)],
    }


def _person(person: Person) -> list[Tree]:
    draw, number = Random(person.number), person.number
    patient = {
        "resourceType": "Patient",
        "id": f"person-{number}",
        "identifier": [{"system": _MRN, "value": f"M{number:06}"}],
        "name": [{"family": _FAMILIES[number % 10], "given": [f"Given{number}"]}],
        "birthDate": f"{START.year - person.age}-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}",
        "gender": draw.choice(("male", "female")),
        "managingOrganization": {"reference": person.clinic.reference},
        "generalPractitioner": [{"reference": person.clinic.reference}],
    }
    coverage = {
        "resourceType": "Coverage",
        "id": f"coverage-{number}",
        "status": "active",
        "type": {"coding": [{"system": "https://nahdo.org/sopt", "code": "1" if person.age >= 65 else "5"}]},
        "beneficiary": {"reference": person.reference},
        "payor": [{"reference": person.payer.reference}],
    }
    problems = [
        {
            "resourceType": "Condition",
            "id": f"condition-{number}-{code}",
            "clinicalStatus": {"coding": [{"system": _STATUS, "code": "active"}]},
            "subject": {"reference": person.reference},
            "code": {"coding": [{"system": SCT, "code": code}], "text": text},
        }
        for code, text in _PROBLEMS
        if draw.random() < person.frailty
    ]
    return [patient, coverage, *problems]
