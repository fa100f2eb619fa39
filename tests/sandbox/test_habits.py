"""The rules that each vendor's sandbox enforces, met by a client that knows nothing of them."""

import json

import pytest

from fhircm.exchange.client import PartnerRefused
from fhircm.sandbox.ehr import vendors
from tests.sandbox.ehrs import InProcess

JSON = {"Accept": "application/fhir+json"}


def order(patient, **more):
    return {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "subject": {"reference": f"Patient/{patient}"},
        **more,
    }


def document(patient, **more):
    attachment = {"contentType": "text/plain", "data": "YQ=="}
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "subject": {"reference": f"Patient/{patient}"},
        "content": [{"attachment": attachment}],
        **more,
    }


async def pages(http, url):
    """The Bundles of a search, by its next links."""
    found = []
    while url:
        answer = await http.get(url, headers=JSON)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        url = next((link["url"] for link in found[-1].get("link", []) if link["relation"] == "next"), "")
    return found


def ids(bundle):
    return [entry["resource"].get("id") for entry in bundle.get("entry", [])]


def several(ehr, type="Encounter", count=5):
    """More of a type for the first patient; returns that patient."""
    patient = ehr.panel[0]
    tree = ehr.chart.of_patient(type, patient)[0]
    for number in range(count - 1):
        ehr.chart.write(tree, f"{tree['id']}-{number}")
    return patient


# --- what is sent back ---------------------------------------------------------------------------------------------------------


async def test_epic_sends_xml_to_whoever_does_not_ask_for_json_and_a_page_of_html_for_what_it_does_not_know():
    ehr = InProcess("epic")
    async with ehr.http() as http:
        assert (
            (await http.get(f"/Patient/{ehr.panel[0]}", headers={"Accept": "*/*"}))
            .headers["Content-Type"]
            .startswith("application/fhir+xml")
        )
        unknown = await http.get("/Flag?patient=x", headers=JSON)
        assert (unknown.status_code, unknown.headers["Content-Type"].split(";")[0]) == (404, "text/html")
        export = await http.get("/$export", headers=JSON)
        assert (export.status_code, export.headers["Content-Type"].split(";")[0]) == (404, "text/html")


async def test_epic_says_nothing_of_when_and_counts_only_the_page():
    ehr = InProcess("epic")
    patient = several(ehr)
    async with ehr.http() as http:
        first, *_ = await pages(http, f"/Encounter?patient={patient}&_count=2")
        assert first["total"] == 2
        assert first["entry"][-1]["search"]["mode"] == "outcome"
        assert all("lastUpdated" not in entry["resource"].get("meta", {}) for entry in first["entry"])
        assert "page=2" in first["link"][0]["url"]
        everything = (await http.get(f"/Encounter?patient={patient}&colour=red&_lastUpdated=ge2999", headers=JSON)).json()
        assert len(ids(everything)) == 6
        empty = (await http.get("/Encounter?patient=nobody", headers=JSON)).json()
        assert [entry["search"]["mode"] for entry in empty["entry"]] == ["outcome"]


async def test_epic_speaks_in_its_own_codes():
    ehr = InProcess("epic")
    async with ehr.http() as http:
        answer = await http.get("/CarePlan?status=active", headers=JSON)
    coding = answer.json()["issue"][0]["details"]["coding"][0]
    assert coding["system"].startswith("urn:oid:1.2.840.114350")


async def test_oracle_speaks_json_alone_repeats_an_entry_and_hides_its_search_in_the_cursor():
    ehr = InProcess("oracle")
    patient = several(ehr)
    async with ehr.http() as http:
        refused = await http.get(f"/Encounter?patient={patient}", headers={"Accept": "application/xml"})
        assert (refused.status_code, refused.content) == (406, b"")
        bundles = await pages(http, f"/Encounter?patient={patient}&_count=2")
        assert "patient" not in bundles[0]["link"][0]["url"]
        assert "total" not in bundles[0]
        assert ids(bundles[0])[-1] == ids(bundles[1])[0]
        assert len({id for bundle in bundles for id in ids(bundle)}) == 5
        wanted = ",".join(tree["id"] for tree in ehr.chart.of_patient("Encounter", patient))
        assert len(ids((await http.get(f"/Encounter?_id={wanted}&_count=1", headers=JSON)).json())) == 5
        broken = await http.get("/Encounter?-pageContext=bm90aGluZw==", headers=JSON)
        assert broken.status_code == 400


async def test_oracle_wants_one_id_at_a_time_of_plans_and_everything_at_once_of_messages():
    ehr = InProcess("oracle")
    async with ehr.http(**JSON) as http:
        assert (await http.get("/CarePlan?_id=a,b")).status_code == 400
        assert (await http.get("/CarePlan?_id=a")).status_code == 200
        assert (await http.get("/Communication?category=notification&recipient=Practitioner/x")).status_code == 400
        whole = "category=notification&received=ge2026-01-01&recipient=Practitioner/x&-email-status=sent"
        assert (await http.get(f"/Communication?{whole}")).status_code == 200
        assert (await http.get("/Encounter?status=planned")).status_code == 400


async def test_meditech_tells_what_is_wrong_in_its_own_form_and_the_client_understands_it(tmp_path):
    ehr = InProcess("meditech")
    async with ehr.http(**JSON) as http:
        answer = await http.get("/CarePlan?status=active")
        assert (answer.status_code, answer.json().keys()) == (400, {"resource", "detail"})
        assert (await http.delete(f"/Encounter/{ehr.panel[0]}-e1")).status_code == 405
        assert "ETag" not in (await http.get(f"/Patient/{ehr.panel[0]}")).headers
    async with ehr.client(tmp_path) as client:
        with pytest.raises(PartnerRefused, match=r"a search for CarePlan needs _id or patient\+category"):
            await client.search_all("CarePlan", [("patient", "x")])


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("athenahealth", "cursor="),
        ("meditech", "continue="),
        ("eclinicalworks", "page="),
        ("r4", "page="),
        ("hapi", "_getpages="),
    ],
)
async def test_pages_follow_one_another_in_the_vendors_way(name, parameter):
    ehr = InProcess(name)
    patient = several(ehr)
    sent = f"/Encounter?patient={patient}&_count=2" + ("&ah-practice=a-1.Practice-195900" if name == "athenahealth" else "")
    async with ehr.http(**JSON) as http:
        first = (await http.get(sent)).json()
        link = first["link"][0]["url"]
        assert parameter in link
        assert ("patient" in link) is (name in ("athenahealth", "eclinicalworks", "r4"))
        assert link.startswith("http://hapi.internal:8080/fhir?" if name == "hapi" else ehr.base_url)


async def test_a_page_of_a_search_that_hapi_forgot_is_gone():
    ehr = InProcess("hapi")
    async with ehr.http(**JSON) as http:
        assert (await http.get("?_getpages=nothing")).status_code == 410


async def test_athena_holds_several_practices_and_its_patience_is_short():
    ehr = InProcess("athenahealth", rate={"burst": 3, "per_second": 1, "retry_after": 1})
    patient = ehr.panel[0]
    async with ehr.http(**JSON) as http:
        crossed = ids((await http.get(f"/Encounter?patient={patient}")).json())
        own = ids((await http.get(f"/Encounter?patient={patient}&ah-practice=a-1.Practice-195900")).json())
        assert set(own) < set(crossed)
        assert (await http.get(f"/Encounter?patient={patient}&ah-practice=a-1.Practice-2")).status_code == 403
        limited = await http.get(f"/Patient/{patient}")
        assert (limited.status_code, limited.headers["Retry-After"]) == (429, "1")
        ehr.now += 1
        assert (await http.get(f"/Patient/{patient}")).status_code == 200


# --- scopes --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scopes", "searched", "written"),
    [
        ("epic", "system/ServiceRequest.read", 200, 403),
        ("epic", "system/ServiceRequest.write", 403, 201),
        ("r4", "system/ServiceRequest.r", 403, 403),
        ("r4", "system/ServiceRequest.cs", 200, 201),
        ("r4", "system/CarePlan.cruds", 403, 403),
    ],
)
async def test_scopes_are_held_to_the_letter(name, scopes, searched, written):
    ehr = InProcess(name, scopes)
    async with ehr.http(**JSON) as http:
        assert (await http.get(f"/ServiceRequest?patient={ehr.panel[0]}")).status_code == searched
        assert (await http.post("/ServiceRequest", json=order(ehr.panel[0]))).status_code == written


async def test_a_type_may_be_withheld_in_spite_of_its_scope():
    ehr = InProcess("oracle", withheld=["Coverage"])
    async with ehr.http(**JSON) as http:
        assert (await http.get(f"/Coverage?patient={ehr.panel[0]}")).status_code == 403
        assert (await http.get(f"/Goal?patient={ehr.panel[0]}")).status_code == 200


@pytest.mark.parametrize("name", vendors())
async def test_nothing_is_served_without_a_token_but_what_it_says_of_itself(name):
    ehr = InProcess(name)
    ehr.token = "stolen"
    async with ehr.http(**JSON) as http:
        assert (await http.get("/metadata")).json()["software"]["name"] == ehr.habits["software"][0]
        refused = await http.get(f"/Patient/{ehr.panel[0]}")
        assert (refused.status_code, refused.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
        assert (await http.get("?_getpages=x")).status_code == 401


# --- writes --------------------------------------------------------------------------------------------------------------------


async def test_oracle_updates_only_what_is_known_to_be_current_and_takes_no_modifier():
    ehr = InProcess("oracle")
    patient = ehr.panel[0]
    async with ehr.http(**JSON) as http:
        made = await http.post("/DocumentReference", json=document(patient))
        assert (made.status_code, made.content) == (201, b"")
        id, etag = made.headers["Location"].rpartition("/")[2], made.headers["ETag"]
        changed = document(patient, id=id, description="x")
        assert (await http.put(f"/DocumentReference/{id}", json=changed)).status_code == 428
        assert (await http.put(f"/DocumentReference/{id}", json=changed, headers={"If-Match": etag})).status_code == 200
        assert (await http.put(f"/DocumentReference/{id}", json=changed, headers={"If-Match": etag})).status_code == 409
        modified = document(patient, modifierExtension=[{"url": "https://x.example", "valueBoolean": True}])
        assert (await http.post("/DocumentReference", json=modified)).status_code == 422
        assert (await http.post("/DocumentReference", json=document(patient))).headers["Location"].rpartition("/")[2] != id
        assert (await http.post("/CarePlan", json={"resourceType": "CarePlan"})).status_code == 405


async def test_a_patch_changes_what_it_names_where_it_is_declared():
    ehr = InProcess("r4")
    patient = ehr.panel[0]
    patch = [{"op": "replace", "path": "/status", "value": "finished"}]
    body = {"headers": {"Content-Type": "application/json-patch+json"}, "content": json.dumps(patch)}
    async with ehr.http(**JSON) as http:
        answer = await http.patch(f"/Encounter/{patient}-e1", **body)
        assert (answer.status_code, answer.json()["status"]) == (200, "finished")
    async with InProcess("epic").http(**JSON) as http:
        assert (await http.patch(f"/Encounter/{patient}-e1", **body)).status_code == 405


async def test_plain_r4_creates_on_condition_updates_on_condition_keeps_history_and_deletes():
    ehr = InProcess("r4")
    one = order(ehr.panel[0], identifier=[{"system": "urn:x", "value": "7"}])
    async with ehr.http(**JSON) as http:
        made = await http.post("/ServiceRequest", json=one, headers={"If-None-Exist": "identifier=urn:x|7"})
        again = await http.post("/ServiceRequest", json=one, headers={"If-None-Exist": "identifier=urn:x|7"})
        assert (made.status_code, again.status_code, made.json()["id"]) == (201, 200, again.json()["id"])
        id = made.json()["id"]
        assert (await http.put(f"/ServiceRequest/{id}", json={**one, "id": id}, headers={"If-Match": 'W/"9"'})).status_code == 412
        assert (await http.put(f"/ServiceRequest/{id}", json={**one, "id": id}, headers={"If-Match": 'W/"1"'})).status_code == 200
        assert (await http.put("/ServiceRequest/own-id", json={**one, "id": "own-id"})).status_code == 201
        several = await http.post("/ServiceRequest", json=one, headers={"If-None-Exist": "identifier=urn:x|7"})
        assert several.status_code == 412
        assert (await http.get(f"/ServiceRequest/{id}/_history")).json()["total"] == 2
        assert (await http.get(f"/ServiceRequest/{id}/_history/1")).json()["meta"]["versionId"] == "1"
        assert (await http.delete(f"/ServiceRequest/{id}")).status_code == 204
        assert (await http.get(f"/ServiceRequest/{id}")).status_code == 410
        assert id not in ids((await http.get("/ServiceRequest?identifier=urn:x|7")).json())


async def test_a_transaction_is_done_whole_or_not_at_all(tmp_path):
    ehr = InProcess("r4")
    good = {"request": {"method": "POST", "url": "ServiceRequest"}, "resource": order(ehr.panel[0], id="x")}
    bad = {"request": {"method": "POST", "url": "ServiceRequest"}, "resource": {"resourceType": "ServiceRequest"}}
    before = len(ehr.chart.of_type("ServiceRequest"))
    async with ehr.http(**JSON) as http:
        broken = await http.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": [good, bad]})
        assert (broken.status_code, len(ehr.chart.of_type("ServiceRequest")), ehr.ehr.received) == (422, before, [])
        whole = await http.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": [good, good]})
        assert [entry["response"]["status"] for entry in whole.json()["entry"]] == ["201", "201"]
        batch = await http.post("", json={"resourceType": "Bundle", "type": "batch", "entry": [good, bad]})
        assert [entry["response"]["status"] for entry in batch.json()["entry"]] == ["201", "422"]
    async with InProcess("oracle").http(**JSON) as http:
        assert (await http.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": []})).status_code == 422


async def test_last_updated_and_dates_are_honest_where_they_are_served():
    ehr = InProcess("r4")
    patient = ehr.panel[0]
    ehr.chart.write(ehr.chart.of_patient("Encounter", patient)[0], "fresh")
    async with ehr.http(**JSON) as http:
        assert ids((await http.get(f"/Encounter?patient={patient}&_lastUpdated=ge2026-02-01")).json()) == ["fresh"]
        assert len(ids((await http.get(f"/Encounter?patient={patient}&_lastUpdated=lt2026-02-01")).json())) == 1
        assert ids((await http.get(f"/Encounter?patient={patient}&date=lt1999")).json()) == []
        assert len(ids((await http.get(f"/Encounter?patient={patient}&date=ge1999")).json())) == 2
        assert (await http.get(f"/Encounter?patient={patient}&date=soon")).status_code == 400
