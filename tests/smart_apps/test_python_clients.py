"""Client libraries in Python that others wrote, with tokens of the hub."""

import asyncio
from contextlib import closing

import pytest
from fhirclient.client import FHIRClient
from fhirclient.models.condition import Condition
from fhirclient.models.observation import Observation
from fhirclient.models.patient import Patient
from fhirclient.server import FHIRNotFoundException, FHIRUnauthorizedException
from fhirpy import AsyncFHIRClient
from fhirpy.base.exceptions import MultipleResourcesFound, ResourceNotFound

from tests.rest.signing import assertion

from .population import LABORATORY
from .systems import system_token


async def test_fhirclient_signs_a_person_in_and_reads_a_record(hub, window):
    back = f"{hub.apps.origin}/desktop/"
    scope = "openid fhirUser offline_access patient/Patient.rs patient/Condition.rs"
    await hub.app("desktop", f"launch/patient {scope}", redirect_uris=[back])
    del hub.apps.configs["desktop"]  # it answers itself, no page does
    app = FHIRClient({"app_id": "desktop", "api_base": hub.fhir, "redirect_uri": back, "scope": scope})
    with closing(app.server.session):
        # Where to sign in it reads in the CapabilityStatement.
        address = await asyncio.to_thread(lambda: app.prepare() or app.authorize_url)
        await window.page.goto(address)
        await window.sign_in("cleo")
        await window.press("Ada Abbott")
        await window.press("Allow access")
        await window.page.wait_for_url(lambda url: url.startswith(back))
        await asyncio.to_thread(app.handle_callback, window.page.url)
        assert app.ready
        assert app.patient_id == "ada"
        await asyncio.to_thread(_reads, app)
        first = app.server.auth.access_token
        assert await asyncio.to_thread(app.reauthorize)
        assert app.server.auth.access_token != first
        await asyncio.to_thread(_reads, app)


def _reads(app):
    assert app.human_name(app.patient.name[0]) == "Ada Abbott"
    search = Condition.where({"patient": app.patient_id, "_sort": "onset-date", "_count": "2"})
    found = list(search.perform_resources_iter(app.server))
    assert [one.code.text for one in found] == ["Asthma", "Type 2 diabetes", "Heart failure"]
    with pytest.raises(FHIRNotFoundException):
        Patient.read("cy", app.server)


@pytest.mark.parametrize("alg", ["RS384", "ES384"])
async def test_fhirclient_reads_as_a_backend_system(hub, alg):
    signed = assertion(alg, client="system", aud=f"{hub.base}/oauth/token")
    settings = {
        "app_id": "system",
        "api_base": hub.fhir,
        "jwt_token": signed,
        "scope": "system/Observation.rs",
        "patient_id": "ada",
    }
    app = FHIRClient(settings)
    with closing(app.server.session):
        await asyncio.to_thread(app.prepare)
        await asyncio.to_thread(app.authorize)

        def read():
            search = Observation.where({"patient": "ada", "category": LABORATORY})
            return sorted(one.id for one in search.perform_resources_iter(app.server))

        assert await asyncio.to_thread(read) == ["potassium", "sodium"]
        app.server.auth.access_token = "not-a-token-of-this-hub"
        with pytest.raises(FHIRUnauthorizedException):
            await asyncio.to_thread(read)


@pytest.fixture
async def fhirpy(hub, http):
    token = await system_token(hub, http, "system/*.cruds")
    # To count, it sends a parameter that only another server has: the hub refuses such ones unless it is told to be lenient.
    return AsyncFHIRClient(hub.fhir, authorization=f"Bearer {token}", extra_headers={"Prefer": "handling=lenient"})


async def test_fhirpy_searches_with_includes_and_pages(fhirpy):
    conditions = fhirpy.resources("Condition").search(patient="Patient/ada").sort("onset-date")
    assert [one["code"]["text"] async for one in conditions.limit(1)] == ["Asthma", "Type 2 diabetes", "Heart failure"]
    assert await conditions.count() == 3
    bundle = await conditions.include("Condition", "subject").fetch_raw()
    assert {one.resource.resourceType for one in bundle.entry} == {"Condition", "Patient"}
    first = await fhirpy.resources("Patient").search(family="Abbott").has("Condition", "subject", code__text="asthma").first()
    assert first["name"][0]["given"] == ["Ada"]
    with pytest.raises(ResourceNotFound):
        await fhirpy.reference("Patient", "no-one").to_resource()


async def test_fhirpy_writes_and_is_told_of_a_conflict(hub, fhirpy):
    task = fhirpy.resource("Task", status="draft", intent="order", **{"for": {"reference": "Patient/ada"}})
    await task.save()
    assert task["meta"]["versionId"] == "1"
    task["description"] = "Call her"
    await task.save()
    again = await fhirpy.reference("Task", task.id).to_resource()
    assert (again["description"], again["meta"]["versionId"]) == ("Call her", "2")
    careful = AsyncFHIRClient(hub.fhir, authorization=fhirpy.authorization, extra_headers={"If-Match": 'W/"1"'})
    with pytest.raises(MultipleResourcesFound, match="version"):  # its name for every 412
        await careful.resource("Task", **task.serialize()).save()
    assert (await fhirpy.reference("Task", task.id).to_resource())["meta"]["versionId"] == "2"
    await again.delete()
    with pytest.raises(ResourceNotFound):
        await fhirpy.reference("Task", task.id).to_resource()
