"""Words over HTTP: with the setting searched like anything else, without it refused. https://hl7.org/fhir/R4/search.html#content"""

from dataclasses import replace

import pytest

from .conftest import REST, hub
from .signing import signed_in

JSON = {"Content-Type": "application/fhir+json"}


@pytest.fixture(params=[True])
async def anonymous(request, database_url, clock, tmp_path):
    async with hub(database_url, clock, tmp_path, replace(REST, full_text=request.param)) as http:
        yield http


async def made(http, type, **members):
    answer = await http.post(f"/fhir/{type}", json={"resourceType": type, **members}, headers=JSON)
    return f"{type}/{answer.json()['id']}"


async def listed(http, path, **headers):
    answer = await http.get(f"/fhir/{path}", headers=headers)
    assert answer.status_code == 200, answer.text
    entries = [one["resource"] for one in answer.json().get("entry", ())]
    return {f"{one['resourceType']}/{one['id']}" for one in entries if one["resourceType"] != "OperationOutcome"}


def narrative(text):
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{text}</p></div>'}


@pytest.fixture
async def charts(http):
    one, other = [await made(http, "Patient", text=narrative(name)) for name in ("Zoë Bone", "Ann")]
    of_one, of_other = ({"reference": one}, {"reference": other})
    mine = await made(http, "Condition", text=narrative("Bone metastases"), subject=of_one)
    theirs = await made(http, "Condition", code={"text": "Liver, metastases"}, subject=of_other)
    return one, other, mine, theirs


async def test_words_are_searched_everywhere(http, charts):
    one, other, mine, theirs = charts
    assert await listed(http, "Condition?_text=(bone OR liver) and metastases") == {mine}
    assert await listed(http, "Condition?_content=(bone OR liver) and metastases") == {mine, theirs}
    assert await listed(http, "Patient?_text=zoe") == {one}
    assert await listed(http, "?_content=bone") == {one, mine}
    assert await listed(http, "?_type=Patient,Condition&_text=bone&_sort=_id") == {one, mine}
    assert await listed(http, f"{one}/*?_content=metastases") == {mine}
    assert await listed(http, f"{other}/Condition?_content=metastases -bone") == {theirs}
    assert await listed(http, "Condition?subject._text=ann") == {theirs}
    assert await listed(http, "Patient?_has:Condition:subject:_content=liver") == {other}
    assert await listed(http, "Condition?_content=metastases&_filter=subject._id eq none") == set()
    posted = await http.post("/fhir/Condition/_search", data={"_content": '"liver met"*'})
    assert [entry["resource"]["id"] for entry in posted.json()["entry"]] == [theirs.partition("/")[2]]
    narrow = {"Authorization": f"Bearer {await signed_in(http, 'reader', 'system/Patient.rs')}"}
    assert await listed(http, "?_content=bone", **narrow) == {one}
    assert await listed(http, "Patient?_has:Condition:subject:_content=liver", **narrow) == set()


async def test_words_decide_a_conditional_create_and_pages_keep_them(http, charts):
    one, _, mine, theirs = charts
    twin = {"resourceType": "Condition", "subject": {"reference": one}}
    known = await http.post("/fhir/Condition", json=twin, headers=JSON | {"If-None-Exist": "_text=bone"})
    assert (known.status_code, known.json()["id"]) == (200, mine.partition("/")[2])
    page = (await http.get("/fhir/Condition?_content=metastases&_count=1")).json()
    following = next(link["url"] for link in page["link"] if link["relation"] == "next")
    first = page["entry"][0]["resource"]["id"]
    second = (await http.get(following)).json()["entry"][0]["resource"]["id"]
    assert {f"Condition/{first}", f"Condition/{second}"} == {mine, theirs}


async def test_metadata_tells_of_words(http):
    (first, *_) = (await http.get("/fhir/metadata")).json()["rest"][0]["resource"]
    named = {one["name"]: one["type"] for one in first["searchParam"]}
    assert (named["_text"], named["_content"]) == ("string", "string")
    assert (await http.get("/fhir/Patient?_text=(a")).status_code == 400


@pytest.mark.parametrize("anonymous", [False], indirect=True)
async def test_without_the_setting_words_are_refused(http):
    one = await made(http, "Patient", text=narrative("Bone"))
    for parameter in ("_text", "_content"):
        refused = await http.get(f"/fhir/Patient?{parameter}=bone")
        assert refused.status_code == 400
        assert "FHIRCM_FULL_TEXT" in refused.json()["issue"][0]["diagnostics"]
        assert await listed(http, f"Patient?{parameter}=none", Prefer="handling=lenient") == {one}
    (first, *_) = (await http.get("/fhir/metadata")).json()["rest"][0]["resource"]
    assert not {"_text", "_content"} & {one["name"] for one in first["searchParam"]}
