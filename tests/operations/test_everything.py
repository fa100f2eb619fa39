"""$everything over HTTP. https://hl7.org/fhir/R4/patient-operation-everything.html"""

import asyncio
from datetime import timedelta

import pytest

from tests.rest.signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}


async def made(http, type, /, **members):
    answer = await http.post(f"/fhir/{type}", json={"resourceType": type, **members}, headers=JSON)
    assert answer.status_code == 201, answer.text
    return f"{type}/{answer.json()['id']}"


def to(reference):
    return {"reference": reference}


def observation(subject=None, **members):
    about = {"subject": to(subject)} if subject else {}
    return {"status": "final", "code": {"text": "a"}, **about, **members}


async def pages(http, path, **parameters):
    """The entries of every page, as (Type/id, mode), and how many pages there were."""
    found, count, answer = [], 0, await http.get(f"/fhir/{path}", params=parameters)
    while True:
        assert answer.status_code == 200, answer.text
        bundle = answer.json()
        count += 1
        found += [(entry["fullUrl"].split("/fhir/")[1], entry["search"]["mode"]) for entry in bundle.get("entry", [])]
        following = [link["url"] for link in bundle["link"] if link["relation"] == "next"]
        if not following:
            return found, count
        answer = await http.get(following[0])


async def everything(http, path, **parameters):
    found, _ = await pages(http, path, **parameters)
    matches = [reference for reference, mode in found if mode == "match"]
    assert len(matches) == len(set(matches)), "no match twice"
    assert not set(matches) & {reference for reference, mode in found if mode == "include"}
    return {reference for reference, _ in found}


@pytest.fixture
async def chart(http):
    """Two humans: one with a record at two partners and one that was merged, another who shares the clinic."""
    made_here = {}

    async def note(name, type, /, **members):
        made_here[name] = await made(http, type, **members)
        return made_here[name]

    clinic = await note("clinic", "Organization", name="Clinic")
    doctor = await note("doctor", "Practitioner")
    role = await note("role", "PractitionerRole", practitioner=to(doctor), organization=to(clinic))
    a = await note("a", "Patient", managingOrganization=to(clinic))
    b = await note("b", "Patient")
    old = await note("old", "Patient", active=False, link=[{"other": to(b), "type": "replaced-by"}])
    await note("person", "Person", link=[{"target": to(a)}, {"target": to(b)}])
    visit = await note(
        "visit",
        "Encounter",
        status="finished",
        **{"class": {"code": "AMB"}},
        subject=to(a),
        period={"start": "2024-03-01", "end": "2024-03-02"},
    )
    await note(
        "weight", "Observation", **observation(a, effectiveDateTime="2024-03-01", encounter=to(visit), performer=[to(role)])
    )
    await note("early", "Observation", **observation(b, effectiveDateTime="2020-01-01"))
    await note("undated", "Observation", **observation(old))
    loose = await note("loose", "Observation", **observation())
    other = await note("other", "Patient", managingOrganization=to(clinic))
    theirs = await note("theirs", "Observation", **observation(other, effectiveDateTime="2024-03-01"))
    await note("report", "DiagnosticReport", status="final", code={"text": "r"}, subject=to(a), result=[to(loose), to(theirs)])
    await note("problem", "Condition", subject=to(b), onsetDateTime="2019", recordedDate="2019-02-01")
    await note("healed", "Condition", subject=to(b), onsetDateTime="2019", abatementDateTime="2020")
    await note("task", "Task", status="requested", intent="order", **{"for": to(a)}, owner=to(clinic))
    return made_here


def those(chart, *names):
    return {chart[name] for name in names}


OF_A = ("a", "b", "old", "person", "visit", "weight", "early", "undated", "report", "problem", "healed", "task")
ALONG = ("clinic", "doctor", "role", "loose")


async def test_the_record_of_one_human_at_all_partners_and_what_it_refers_to(http, chart):
    for start in ("a", "b", "old"):
        assert await everything(http, f"{chart[start]}/$everything") == those(chart, *OF_A, *ALONG), start
    assert await everything(http, f"{chart['other']}/$everything") == those(chart, "other", "theirs", "clinic")
    posted = await http.post(f"/fhir/{chart['other']}/$everything")
    assert posted.json()["total"] == len(("other", "theirs"))
    assert "total" not in (await http.get(f"/fhir/{chart['a']}/$everything?_count=2")).json()
    assert {entry["resource"]["resourceType"] for entry in posted.json()["entry"]} == {"Patient", "Observation", "Organization"}


async def test_pages_of_any_size_list_the_same(http, chart):
    for count in (1, 5):
        found, number = await pages(http, f"{chart['a']}/$everything", _count=count)
        assert number == -(-len(OF_A) // count)
        assert sorted(reference for reference, mode in found if mode == "match") == sorted(those(chart, *OF_A))
        assert {reference for reference, mode in found if mode == "include"} == those(chart, *ALONG)


async def test_pages_show_one_moment(http, chart):
    first = (await http.get(f"/fhir/{chart['a']}/$everything?_count=1")).json()
    await made(http, "Observation", **observation(chart["a"]))
    await http.delete(f"/fhir/{chart['early']}")
    second = (
        await http.post(
            f"/fhir/{chart['b']}/$everything",
            json={"resourceType": "Parameters", "parameter": [{"name": "_type", "valueCode": "Observation"}]},
            headers=JSON,
        )
    ).json()
    assert len(second["entry"]) == 3
    seen, url = [entry["fullUrl"] for entry in first["entry"] if entry["search"]["mode"] == "match"], None
    while url := next((link["url"] for link in first["link"] if link["relation"] == "next"), None):
        first = (await http.get(url)).json()
        seen += [entry["fullUrl"] for entry in first["entry"] if entry["search"]["mode"] == "match"]
    assert sorted(one.split("/fhir/")[1] for one in seen) == sorted(those(chart, *OF_A))


async def test_a_time_of_care(http, chart):
    recent = await everything(http, f"{chart['a']}/$everything", start="2024-03-02")
    assert recent == those(chart, *OF_A, *ALONG) - those(chart, "weight", "early", "healed", "role", "doctor")
    long_ago = await everything(http, f"{chart['a']}/$everything", end="2020-06-01")
    assert long_ago == those(chart, *OF_A, *ALONG) - those(chart, "weight", "visit", "role", "doctor")
    between = await everything(http, f"{chart['a']}/$everything", start="2021", end="2023-12")
    assert between == those(chart, *OF_A, *ALONG) - those(chart, "weight", "visit", "early", "healed", "role", "doctor")


async def test_what_changed_since(http, chart, clock):
    clock.advance(timedelta(hours=1))
    since = clock().isoformat().replace("+00:00", "Z")
    assert await everything(http, f"{chart['a']}/$everything", _since=since) == set()
    new = await made(http, "Observation", **observation(chart["b"], performer=[to(chart["doctor"])]))
    assert await everything(http, f"{chart['a']}/$everything", _since=since) == {new, chart["doctor"]}


async def test_some_types(http, chart):
    at = f"{chart['a']}/$everything"
    assert await everything(http, at, _type="Patient,Task") == those(chart, "a", "b", "old", "task")
    assert await everything(http, at, _type="Organization") == those(chart, "clinic")
    assert await everything(http, at, _type=["Encounter", "PractitionerRole"]) == those(chart, "visit", "role")


async def test_whence_it_came_for_those_who_ask(http, chart):
    told = await made(
        http, "Provenance", target=[to(chart["task"])], recorded="2026-03-02T15:00:00Z", agent=[{"who": to(chart["doctor"])}]
    )
    other = await made(
        http, "Provenance", target=[to(chart["theirs"])], recorded="2026-03-02T15:00:00Z", agent=[{"who": to(chart["doctor"])}]
    )
    assert told not in await everything(http, f"{chart['a']}/$everything")
    assert await everything(http, f"{chart['a']}/$everything", _type="Provenance") == {told}
    assert await everything(http, f"{chart['a']}/$everything", _type="Provenance,Task") == {told, chart["task"]}
    assert await everything(http, f"{chart['visit']}/$everything", _type="Provenance") == set()
    assert await everything(http, "Patient/$everything", _type="Provenance", _count=1) == {told, other}


async def test_attachments_that_are_kept_here(http, chart):
    scan = await made(http, "Binary", contentType="text/plain", data="YQ==")
    await made(http, "Binary", contentType="text/plain", data="Yg==")
    content = [{"attachment": {"url": scan}}, {"attachment": {"url": "https://elsewhere.example/Binary/b"}}]
    letter = await made(http, "DocumentReference", status="current", subject=to(chart["other"]), content=content)
    assert await everything(http, f"{chart['other']}/$everything") == those(chart, "other", "theirs", "clinic") | {scan, letter}
    assert scan not in await everything(http, f"{chart['other']}/$everything", _type="DocumentReference")


async def test_in_a_batch(http, chart):
    entry = {"request": {"method": "GET", "url": f"{chart['other']}/$everything?_count=1"}}
    answer = (await http.post("/fhir", json={"resourceType": "Bundle", "type": "batch", "entry": [entry]}, headers=JSON)).json()
    inner = answer["entry"][0]["resource"]
    assert (inner["type"], [link["relation"] for link in inner["link"]]) == ("searchset", ["self", "next"])


async def test_all_patients(http, chart):
    assert await everything(http, "Patient/$everything") == set(chart.values())
    assert await everything(http, "Patient/$everything", _type="Patient", _count=2) == those(chart, "a", "b", "old", "other")


async def test_of_an_encounter_and_an_episode(http, chart):
    assert await everything(http, f"{chart['visit']}/$everything") == those(
        chart, "visit", "weight", "role", "doctor", "clinic", "a"
    )
    episode = await made(http, "EpisodeOfCare", status="active", patient=to(chart["b"]), careManager=to(chart["doctor"]))
    visit = (await http.get(f"/fhir/{chart['visit']}")).json() | {"episodeOfCare": [to(episode)]}
    assert (await http.put(f"/fhir/{chart['visit']}", json=visit, headers=JSON)).status_code == 200
    found = await everything(http, f"{episode}/$everything", _count=2)
    assert found == {episode} | those(chart, "visit", "weight", "role", "doctor", "clinic", "a", "b")


async def test_of_a_group_each_human_once(http, chart):
    strangers = [await made(http, "Patient") for _ in range(45)]
    for stranger in strangers:
        await made(http, "Observation", **observation(stranger))
    listed = [chart["a"], *strangers, chart["b"], chart["a"]]
    members = [{"entity": to(one)} for one in listed] + [{"entity": to(chart["other"]), "inactive": True}]
    group = await made(http, "Group", type="person", actual=True, member=members)
    found, number = await pages(http, f"{group}/$everything", _type="Patient,Observation")
    matches = [reference for reference, mode in found if mode == "match"]
    assert number == 3
    assert len(matches) == len(set(matches)) == 2 * 45 + len(("a", "b", "old", "weight", "early", "undated"))
    assert chart["other"] not in matches


async def test_of_a_group_of_nobody(http, chart):
    empty = await made(http, "Group", type="person", actual=True)
    staff = await made(http, "Group", type="practitioner", actual=True, member=[{"entity": to(chart["doctor"])}])
    for group in (empty, staff):
        assert await everything(http, f"{group}/$everything") == set()
        assert await everything(http, f"{group}/$everything", _type="Provenance") == set()


async def test_links_in_a_circle_and_to_what_is_gone(http):
    one = await made(http, "Patient")
    two = await made(http, "Patient", link=[{"other": to(one), "type": "replaces"}])
    tree = (await http.get(f"/fhir/{one}")).json() | {
        "link": [{"other": to(two), "type": "refer"}, {"other": to(one), "type": "seealso"}]
    }
    assert (await http.put(f"/fhir/{one}", json=tree, headers=JSON)).status_code == 200
    assert await everything(http, f"{one}/$everything") == await everything(http, f"{two}/$everything") == {one, two}
    gone = await made(http, "Patient")
    await http.delete(f"/fhir/{gone}")
    assert (await http.get(f"/fhir/{gone}/$everything")).status_code == 410
    assert (await http.get("/fhir/Patient/none/$everything")).status_code == 404


async def test_only_what_one_may_search(anonymous, http, chart):
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"
    assert await everything(anonymous, f"{chart['b']}/$everything") == those(chart, "b", "old"), "a Person is not for this caller"
    assert (await anonymous.get(f"/fhir/{chart['visit']}/$everything")).status_code == 403
    token = await signed_in(anonymous, "app", "system/Patient.r system/Observation.s")
    anonymous.headers["Authorization"] = f"Bearer {token}"
    assert await everything(anonymous, f"{chart['a']}/$everything") == those(chart, "weight"), "links cannot be looked for"
    anonymous.headers["Authorization"] = f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"
    assert (await anonymous.get(f"/fhir/{chart['b']}/$everything?_type=Observation")).status_code == 403


async def test_what_cannot_be_asked(http):
    patient = await made(http, "Patient")
    asked = (
        "_type=Nonsense",
        "start=yesterday",
        "_since=2024-13",
        "_count=0",
        "_count=x",
        "start=2024-02&end=2024-01",
        "colour=red",
        "_page=x",
    )
    for query in asked:
        answer = await http.get(f"/fhir/{patient}/$everything?{query}")
        assert answer.status_code in (400, 422), (query, answer.text)
        assert answer.json()["resourceType"] == "OperationOutcome"


async def test_a_page_link_is_good_at_its_own_address_only(http, chart):
    bundle = (await http.get(f"/fhir/{chart['a']}/$everything?_count=1")).json()
    url = next(link["url"] for link in bundle["link"] if link["relation"] == "next")
    answers = await asyncio.gather(http.get(url), http.get(url.replace(chart["a"], chart["other"])))
    assert [answer.status_code for answer in answers] == [200, 400]


async def test_as_many_linked_as_there_may_be_and_more(http):
    entries = [{"resource": {"resourceType": "Patient"}, "request": {"method": "POST", "url": "Patient"}} for _ in range(101)]
    answer = await http.post("/fhir", json={"resourceType": "Bundle", "type": "transaction", "entry": entries}, headers=JSON)
    patients = ["/".join(entry["response"]["location"].split("/")[-4:-2]) for entry in answer.json()["entry"]]
    person = await made(http, "Person", link=[{"target": to(one)} for one in patients])
    at = f"{patients[0]}/$everything"
    assert await everything(http, at, start="2020", _since="2020-01-01T00:00:00Z") == {person, *patients}
    other = await made(http, "Patient", link=[{"other": to(patients[0]), "type": "seealso"}])
    refused = await http.get(f"/fhir/{other}/$everything")
    assert (refused.status_code, refused.json()["issue"][0]["code"]) == (403, "too-costly")
