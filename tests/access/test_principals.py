"""As whom somebody is known, what is bound to a person and not to an app, and who reads the audit trail."""

from dataclasses import replace

import pytest

from fhircm.store.principals import Principals

from .test_probes import Asked
from .world import ACT, LOINC, Someone, World, admitted, concept, ref, write

NPI = "http://hl7.org/fhir/sid/us-npi"
CLINIC = Someone("clinic-of-npi", "system/*.cruds", "Organization/clinic")
PAYER = Someone("payer-of-npi", "system/*.rs", "Organization/payer")
ANNA = Someone("chart", "user/*.cruds", "Organization/clinic", "Practitioner/anna", ("clinician",))
KEEPER = Someone("console", "user/*.cruds", "Organization/clinic", "Practitioner/anna", ("administrator",))


def identifier(value):
    return [{"system": NPI, "value": value}]


def directory(clock):
    one = World(clock.now, None)
    one.add("Organization", "clinic", plain=True, identifier=identifier("1"))
    one.add("Organization", "clinic-at-partner", plain=True, identifier=identifier("1"))
    one.add("Organization", "ward", plain=True, name="ward", partOf=ref("Organization/clinic-at-partner"))
    one.add("Organization", "rival", plain=True, identifier=identifier("2"))
    one.add("Organization", "payer", plain=True, name="payer")
    one.add("Practitioner", "anna", plain=True, identifier=identifier("3"))
    one.add("Practitioner", "anna-at-partner", plain=True, identifier=identifier("3"))
    one.add("PractitionerRole", "annas", plain=True, practitioner=ref("Practitioner/anna-at-partner"))
    one.add("PractitionerRole", "somebodys", plain=True, code=[concept("x")])
    one.add("Patient", "p", plain=True, managingOrganization=ref("Organization/ward"))
    one.add("Patient", "of-rival", plain=True, managingOrganization=ref("Organization/rival"))
    one.add("Coverage", "c", plain=True, status="active", beneficiary=ref("Patient/p"), payor=[ref("Organization/payer")])
    one.add("Condition", "x", plain=True, subject=ref("Patient/p"))
    return one.resources


@pytest.fixture
async def world(opened, clock):
    async with opened() as (store, http):
        await write(store, directory(clock))

        async def of(someone):
            return Asked(http, await admitted(store.database, someone))

        yield store, of


async def put(asked, path, tree):
    return (await asked.http.put(f"/fhir/{path}", json=tree, headers=asked.headers)).status_code


async def test_copies_departments_and_roles_are_the_same_somebody(world):
    store, of = world
    known = await Principals(store.database).known_as(["Organization/clinic", "Practitioner/anna"])
    organizations = {"Organization/clinic", "Organization/clinic-at-partner", "Organization/ward"}
    assert known == organizations | {"Practitioner/anna", "Practitioner/anna-at-partner", "PractitionerRole/annas"}
    assert (await (await of(CLINIC)).get("Patient/p")).status_code == 200
    assert (await (await of(CLINIC)).get("Patient/of-rival")).status_code == 404


async def test_nobody_becomes_somebody_else_by_writing_the_directory(world):
    _, of = world
    clinic = await of(CLINIC)
    for path, change in (
        ("Organization/clinic", {"identifier": identifier("2")}),
        ("Organization/rival", {"partOf": ref("Organization/clinic")}),
        ("Organization/rival", {"identifier": identifier("1")}),
        ("Practitioner/anna", {"identifier": identifier("4")}),
        ("PractitionerRole/somebodys", {"practitioner": ref("Practitioner/anna")}),
    ):
        tree = (await clinic.get(path)).json()
        assert await put(clinic, path, tree | change) == 403, path
        assert await put(clinic, path, tree | {"active": True}) == 200, path
    assert (await clinic.get("Patient/of-rival")).status_code == 404
    keeper = await of(KEEPER)
    tree = (await keeper.get("Organization/ward")).json()
    assert await put(keeper, "Organization/ward", tree | {"identifier": identifier("9")}) == 200


async def test_an_export_belongs_to_the_person_for_whom_the_app_asked(world):
    store, of = world
    anna = await of(ANNA)
    started = await anna.get("Patient/$export?_type=Patient", Prefer="respond-async")
    assert started.status_code == 202, started.text
    status = started.headers["Content-Location"]
    assert (await anna.http.get(status, headers=anna.headers)).status_code == 202
    await admitted(store.database, ANNA)
    async with store.database.writing() as connection:  # another person at the same app
        await connection.execute("UPDATE authorization_grant SET login_id = 'ben' WHERE client_id = 'chart'")
        await connection.execute(
            "INSERT INTO login (id, name, fhir_user, organization, roles, disabled, created)"
            " VALUES ('ben', 'ben', 'Practitioner/anna', 'Organization/clinic', '[\"clinician\"]', false, 0)"
        )
    token = await admitted(store.database, replace(ANNA, name="chart"))
    ben = Asked(anna.http, token)
    assert (await ben.http.get(status, headers=ben.headers)).status_code == 404


async def test_a_purpose_that_a_consent_denies(world, clock):
    store, of = world
    one = World(clock.now, None)
    one.add(
        "Consent",
        "not-for-payment",
        plain=True,
        status="active",
        scope=concept("patient-privacy", "http://terminology.hl7.org/CodeSystem/consentscope"),
        category=[concept("59284-0", LOINC)],
        patient=ref("Patient/p"),
        policyRule=concept("OPTIN", ACT),
        provision={
            "type": "deny",
            "purpose": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HPAYMT"}],
        },
    )
    payer = await of(PAYER)
    assert (await payer.get("Patient/p")).status_code == 200
    await write(store, one.resources)
    assert (await payer.get("Patient/p")).status_code == 200, "it asks for treatment"
    staff = replace(PAYER, name="portal", scope="user/*.rs", user="Practitioner/anna", roles=("payer-staff",))
    assert (await (await of(staff)).get("Patient/p")).status_code == 404
    tree = (await (await of(CLINIC)).get("Consent/not-for-payment")).json()
    assert await put(await of(CLINIC), "Consent/not-for-payment", tree | {"status": "inactive"}) == 200
    assert (await (await of(staff)).get("Patient/p")).status_code == 200, "withdrawn at once"


async def test_who_looked_is_told_to_the_patient_and_the_privacy_officer_alone(world, clock):
    store, of = world
    one = World(clock.now, None)
    for id, patients in (("one", ["p"]), ("two", ["p", "of-rival"])):
        one.add(
            "AuditEvent",
            id,
            plain=True,
            type={"code": "rest"},
            recorded="2026-01-01T00:00:00Z",
            agent=[{"requestor": True, "who": ref("Organization/clinic")}],
            source={"observer": ref("Organization/clinic")},
            entity=[{"what": ref(f"Patient/{patient}")} for patient in patients],
        )
    await write(store, one.resources)
    patient = Someone("portal-of-p", "patient/*.rs", None, "Patient/p", ("patient",), {"patient": "p"})
    officer = Someone("officer", "user/*.rs", "Organization/clinic", "Practitioner/anna", ("privacy-officer",))
    seen = {
        who.name: [(await (await of(who)).get(f"AuditEvent/{id}")).status_code for id in ("one", "two")]
        for who in (patient, officer, CLINIC, ANNA)
    }
    assert seen == {
        "portal-of-p": [200, 404],
        "officer": [200, 200],
        "clinic-of-npi": [404, 404],
        "chart": [404, 404],
    }


async def test_who_reaches_everything_in_one_role_reaches_no_record_in_another_by_it(world):
    _, of = world
    both = Someone("both", "user/*.cruds", "Organization/clinic", "Practitioner/anna", ("clinician", "privacy-officer"))
    assert (await (await of(both)).get("Patient/p")).status_code == 200
    assert (await (await of(both)).get("Patient/of-rival")).status_code == 404
