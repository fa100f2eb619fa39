"""History of a resource, a type and everything: in order, of one moment over all pages. https://hl7.org/fhir/R4/http.html#history"""

from datetime import timedelta

import pytest

JSON = {"Content-Type": "application/fhir+json"}


async def make(http, type="Patient", **members):
    return (await http.post(f"/fhir/{type}", json={"resourceType": type, **members}, headers=JSON)).json()


async def change(http, tree, **members):
    tree |= members
    return (await http.put(f"/fhir/{tree['resourceType']}/{tree['id']}", json=tree, headers=JSON)).json()


async def pages(http, url, between=None):
    """The (id, version) of every entry, page after page."""
    seen = []
    while url:
        bundle = (await http.get(url)).json()
        assert bundle["type"] == "history"
        seen += [
            (entry["fullUrl"].rpartition("/")[2], entry["response"]["etag"], entry["request"]["method"])
            for entry in bundle.get("entry", [])
        ]
        url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
        if between and url:
            await between()
    return seen


@pytest.fixture
async def past(http):
    """Two patients with three versions each, and an organization."""
    first, second = await make(http), await make(http)
    await make(http, "Organization", name="A")
    for gender in ("male", "female"):
        for tree in (first, second):
            await change(http, tree, gender=gender)
    await http.delete(f"/fhir/Patient/{second['id']}")
    return first["id"], second["id"]


async def test_each_level_lists_the_newest_first(http, past):
    first, second = past
    own = await pages(http, f"/fhir/Patient/{first}/_history")
    assert own == [(first, 'W/"3"', "PUT"), (first, 'W/"2"', "PUT"), (first, 'W/"1"', "POST")]
    of_type = await pages(http, "/fhir/Patient/_history")
    assert len(of_type) == 7
    assert of_type[0] == (second, 'W/"4"', "DELETE")
    assert [one for one in of_type if one[0] == first] == own
    everything = await pages(http, "/fhir/_history")
    assert len(everything) == 8
    assert [one for one in everything if one in of_type] == of_type


@pytest.mark.parametrize("place", ["Patient/_history", "_history", "Patient/{}/_history"])
async def test_pages_show_one_moment_while_others_write(http, past, place):
    url = f"/fhir/{place.format(past[0])}"
    whole = await pages(http, url)
    tree = (await http.get(f"/fhir/Patient/{past[0]}")).json()

    async def write():
        await change(http, tree, active=not tree.get("active", False))
        await make(http)

    assert await pages(http, f"{url}?_count=2", between=write) == whole


async def test_since_and_at(http, clock):
    tree = await make(http)
    clock.advance(timedelta(hours=1))  # 16:00
    await change(http, tree, active=True)
    clock.advance(timedelta(hours=1))  # 17:00
    await change(http, tree, active=False)
    url = f"/fhir/Patient/{tree['id']}/_history"

    async def found(query):
        return [version for _, version, _ in await pages(http, f"{url}?{query}")]

    assert await found("_since=2026-03-02T16:00:00Z") == ['W/"3"', 'W/"2"']
    assert await found("_since=2026-03-02T16:00:01Z") == ['W/"3"']
    assert await found("_since=2027") == []
    assert await found("_at=2026-03-02T16:30:00Z") == ['W/"2"']
    assert await found("_at=2026-03-02T15:30:00Z") == ['W/"1"']
    assert await found("_at=2026-03-02") == ['W/"3"', 'W/"2"', 'W/"1"']
    assert await found("_at=2026-03-01") == []


async def test_what_a_history_does_not_have_is_refused(http, past):
    for query in ("_sort=a", "_since=yesterday", "_count=x", "_count=1&_count=2", "_page=AAAA"):
        assert (await http.get(f"/fhir/Patient/_history?{query}")).status_code == 400, query
    assert (await http.get("/fhir/Patient/none/_history")).status_code == 404
    link = next(
        one["url"] for one in (await http.get("/fhir/Patient/_history?_count=1")).json()["link"] if one["relation"] == "next"
    )
    assert (await http.get(link.replace("/Patient/", "/"))).status_code == 400


async def test_the_history_of_everything_needs_the_right_to_read_everything(anonymous):
    from .signing import signed_in

    narrow = {"Authorization": f"Bearer {await signed_in(anonymous, 'reader', 'system/Patient.rs')}"}
    assert (await anonymous.get("/fhir/Patient/_history", headers=narrow)).status_code == 200
    for path in ("_history", "Task/_history", "Task/x/_history"):
        assert (await anonymous.get(f"/fhir/{path}", headers=narrow)).status_code == 403
