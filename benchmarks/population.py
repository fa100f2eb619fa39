"""Seeded records shaped like care coordination: one transaction Bundle a patient, about twenty resources each."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

MRN = "https://benchmark.example/mrn"
STAFF = "https://benchmark.example/staff"
CATEGORY = {"coding": [{"system": "http://hl7.org/fhir/us/core/CodeSystem/careplan-category", "code": "assess-plan"}]}
FAMILIES = ("Garcia", "Nguyen", "Okafor", "Smith", "Ivanova", "Haddad", "Kim", "Silva", "Novak", "Jensen")
Tree = dict[str, Any]


class Records:
    """The records of a seed. Two of the same seed are equal, byte for byte."""

    def __init__(self, seed: int = 7) -> None:
        self.random = random.Random(seed)

    def staff(self, count: int, first: int = 0) -> bytes:
        """The organization and the practitioners that the patients refer to, numbered from `first`."""
        listed: list[Tree] = [
            {"resourceType": "Organization", "identifier": [{"system": STAFF, "value": f"o{first}"}], "name": "Benchmark Clinic"}
        ]
        listed += [
            {
                "resourceType": "Practitioner",
                "identifier": [{"system": STAFF, "value": f"p{n}"}],
                "name": [{"family": FAMILIES[n % 10]}],
            }
            for n in range(first, first + count)
        ]
        return bundle([(self._urn(), tree) for tree in listed])

    def patients(self, count: int, staff: list[str], first: int = 0) -> Iterator[bytes]:
        """One transaction for each patient, numbered from `first`; `staff` are references, the organization first."""
        for number in range(first, first + count):
            yield bundle(self.patient(number, staff))

    def patient(self, number: int, staff: list[str]) -> list[tuple[str, Tree]]:
        """The resources of one patient, each with its fullUrl."""
        urn, draw = self._urn(), self.random
        of = {"reference": urn}
        nurse = {"reference": draw.choice(staff[1:])}
        day = f"2026-{draw.randrange(1, 13):02}-{draw.randrange(1, 28):02}"
        made: list[tuple[str, Tree]] = [
            (
                urn,
                {
                    "resourceType": "Patient",
                    "identifier": [{"system": MRN, "value": f"m{number}"}],
                    "name": [{"family": draw.choice(FAMILIES), "given": [f"G{number % 500}"]}],
                    "gender": draw.choice(("male", "female")),
                    "birthDate": f"{draw.randrange(1930, 2010)}-{draw.randrange(1, 13):02}-11",
                    "managingOrganization": {"reference": staff[0]},
                },
            )
        ]

        def add(type: str, **members: Any) -> str:
            made.append((self._urn(), {"resourceType": type, **members}))
            return made[-1][0]

        stay = {"start": f"{day}T08:00:00Z", "end": f"{day}T18:00:00Z"}
        visit = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
        encounter = add("Encounter", status="finished", **{"class": visit}, subject=of, period=stay)
        problem = add(
            "Condition", subject=of, code=code("38341003", "Hypertension"), encounter={"reference": encounter}, onsetDateTime=day
        )
        goal = add(
            "Goal", lifecycleStatus="active", description={"text": "Blood pressure below 130/80"}, subject=of, startDate=day
        )
        role = {"role": [{"text": "Case manager"}], "member": nurse}
        team = add("CareTeam", status="active", subject=of, participant=[role])
        for status in ("active", "completed"):
            links = {"careTeam": [{"reference": team}], "goal": [{"reference": goal}], "addresses": [{"reference": problem}]}
            add("CarePlan", status=status, intent="plan", category=[CATEGORY], subject=of, period={"start": day}, **links)
        for _ in range(2):
            status = draw.choice(("active", "on-hold"))
            by = {"requester": nurse, "authoredOn": day}
            order = add("ServiceRequest", status=status, intent="order", code=code("183519002", "Referral"), subject=of, **by)
            due = f"2026-12-{draw.randrange(1, 28):02}"
            work = {"owner": {"reference": draw.choice(staff[1:])}, "requester": nurse, "authoredOn": day}
            work |= {"restriction": {"period": {"end": due}}, "executionPeriod": {"start": due}}
            add(
                "Task",
                status=draw.choice(("requested", "ready", "draft")),
                intent="order",
                focus={"reference": order},
                **{"for": of},
                **work,
            )
        for n in range(8):
            amount = {
                "value": round(draw.uniform(90, 180), 1),
                "unit": "mmHg",
                "system": "http://unitsofmeasure.org",
                "code": "mm[Hg]",
            }
            about = {"encounter": {"reference": encounter}, "effectiveDateTime": f"{day}T09:{n:02}:00Z"}
            add(
                "Observation",
                status="final",
                code=code("8480-6", "Systolic blood pressure"),
                subject=of,
                valueQuantity=amount,
                **about,
            )
        return made

    def _urn(self) -> str:
        return f"urn:uuid:{UUID(int=self.random.getrandbits(128), version=4)}"


def code(value: str, text: str) -> Tree:
    """A CodeableConcept."""
    return {"coding": [{"system": "http://snomed.info/sct", "code": value, "display": text}], "text": text}


def bundle(resources: list[tuple[str, Tree]]) -> bytes:
    """A transaction that creates them."""
    entries = [
        {"fullUrl": urn, "resource": tree, "request": {"method": "POST", "url": tree["resourceType"]}} for urn, tree in resources
    ]
    return json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}).encode()
