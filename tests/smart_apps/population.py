"""Two organisations with a clinician each, and their patients: Ada and Bo are cared for by Riverbend, Cy by Lakeside."""

from datetime import UTC, datetime

from fhircm.access.logins import new_id
from fhircm.access.passwords import Passwords
from fhircm.fhir.validation import check_tree
from fhircm.store.database import open_database
from fhircm.store.logins import Login, Logins
from fhircm.store.resources import Put, Store

PASSWORD = "three calm herons"
CATEGORY = "http://terminology.hl7.org/CodeSystem/observation-category"
LABORATORY = f"{CATEGORY}|laboratory"


def _patient(id, given, family):
    return {
        "resourceType": "Patient",
        "id": id,
        "name": [{"family": family, "given": [given]}],
        "birthDate": "1948-05-17",
        "gender": "female",
    }


def _team(patient, organization):
    return {
        "resourceType": "CareTeam",
        "id": f"team-{patient}",
        "status": "active",
        "subject": {"reference": f"Patient/{patient}"},
        "managingOrganization": [{"reference": f"Organization/{organization}"}],
    }


def _condition(id, patient, text, onset):
    return {
        "resourceType": "Condition",
        "id": id,
        "subject": {"reference": f"Patient/{patient}"},
        "code": {"text": text},
        "onsetDateTime": onset,
    }


def _observation(id, patient, category, text):
    return {
        "resourceType": "Observation",
        "id": id,
        "status": "final",
        "category": [{"coding": [{"system": CATEGORY, "code": category}]}],
        "code": {"text": text},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": "2026-02-01",
    }


RESOURCES = [
    {"resourceType": "Organization", "id": "riverbend", "name": "Riverbend Clinic"},
    {"resourceType": "Organization", "id": "lakeside", "name": "Lakeside Hospital"},
    {"resourceType": "Practitioner", "id": "cleo", "name": [{"family": "Clinician", "given": ["Cleo"]}]},
    {"resourceType": "Practitioner", "id": "dora", "name": [{"family": "Doctor", "given": ["Dora"]}]},
    _patient("ada", "Ada", "Abbott"),
    _patient("bo", "Bo", "Berg"),
    _patient("cy", "Cy", "Carver"),
    _team("ada", "riverbend"),
    _team("bo", "riverbend"),
    _team("cy", "lakeside"),
    _condition("asthma", "ada", "Asthma", "1990-01-01"),
    _condition("diabetes", "ada", "Type 2 diabetes", "2001-01-01"),
    _condition("failure", "ada", "Heart failure", "2019-01-01"),
    _condition("migraine", "cy", "Migraine", "1999-01-01"),
    _observation("potassium", "ada", "laboratory", "Potassium"),
    _observation("sodium", "ada", "laboratory", "Sodium"),
    _observation("pressure", "ada", "vital-signs", "Blood pressure"),
    _observation("potassium-bo", "bo", "laboratory", "Potassium"),
    {
        "resourceType": "Encounter",
        "id": "stay",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"reference": "Patient/ada"},
    },
]
PEOPLE = [("cleo", "Cleo Clinician", "riverbend"), ("dora", "Dora Doctor", "lakeside")]


async def populate(database_url):
    """Put everybody into a database; returns the ids of the logins."""
    store = Store(await open_database(database_url), clock=lambda: datetime.now(UTC))
    try:
        await store.transact([Put(check_tree(tree)) for tree in RESOURCES], origin="test")
        kept = await Passwords().hash(PASSWORD)
        made = [
            Login(
                id=new_id(),
                username=username,
                name=name,
                fhir_user=f"Practitioner/{username}",
                organization=f"Organization/{organization}",
                roles=frozenset({"clinician"}),
            )
            for username, name, organization in PEOPLE
        ]
        for one in made:
            await Logins(store.database).add(one, kept)
        return {one.username: one.id for one in made}
    finally:
        await store.close()
