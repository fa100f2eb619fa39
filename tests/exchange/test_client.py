"""Every way in which a partner can answer badly has a name, and the bytes of a good answer stay as they came."""

import asyncio
import gzip
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhircm.exchange.client import (
    PartnerAnswerBroken,
    PartnerClient,
    PartnerRefused,
    PartnerUnavailable,
    SignInRefused,
)
from fhircm.exchange.errors import AnswerTooLarge
from fhircm.exchange.pages import Received, newest, within
from fhircm.exchange.partners import Calendar, Limits, Organization, Partner

BASE = "https://ehr.example/fhir"


def partner(**changes):
    limits = Limits(**{"requests_per_second": 10_000.0, **changes.pop("limits", {})})
    return Partner(
        name="north-clinic",
        folder=Path("north-clinic"),
        vendor="epic",
        base_url=BASE,
        client_id="fhircm",
        algorithm="ES384",
        scopes=("system/*.rs",),
        organization=Organization("o1", "North Clinic", "1234567893"),
        time_zone="America/Chicago",
        calendar=Calendar("US", None, (), (5, 6)),
        group="panel",
        pull=(),
        limits=limits,
        **changes,
    )


def client(answer, waits=None, **changes):
    """A client whose partner answers with a function of the request, and which notes the waits instead of waiting."""

    async def sleep(seconds):
        (waits if waits is not None else []).append(seconds)

    async def handle(request):
        result = answer(request)
        return await result if asyncio.iscoroutine(result) else result

    return PartnerClient(partner(**changes), transport=httpx.MockTransport(handle), sleep=sleep)


def in_turn(*answers):
    """Answers in turn; the last one stays."""
    left = list(answers)

    def answer(request):
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, Exception):
            raise one
        return one if isinstance(one, httpx.Response) else one(request)

    return answer


def patient(id="p1", **more):
    return {"resourceType": "Patient", "id": id, **more}


def bundle(*resources, following=None):
    entries = [one if "resource" in one else {"resource": one, "search": {"mode": "match"}} for one in resources]
    links = [{"relation": "self", "url": BASE}] + ([{"relation": "next", "url": following}] if following else [])
    return {"resourceType": "Bundle", "type": "searchset", "total": 99, "link": links, "entry": entries}


def outcome(text="no", code="forbidden", **more):
    return {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code, "diagnostics": text, **more}]}


async def test_a_read_keeps_the_bytes():
    body = b'{ "id" : "p1",\n "resourceType":"Patient", "extension":[{"url":"x","valueDecimal":2.50}], "meta":{"versionId":"7"}}'
    async with client(lambda request: httpx.Response(200, content=body)) as ehr:
        got = await ehr.read("Patient", "p1")
    assert (got.body, got.version, got.etag) == (body, "7", 'W/"7"')


async def test_what_every_request_carries():
    seen = []
    answer = httpx.Response(200, json=bundle())
    async with client(lambda request: seen.append(request) or answer, headers={"Epic-Client-ID": "x"}) as ehr:
        await ehr.search_all("CarePlan", [("patient", "p/1"), ("category", "a|b")])
    assert seen[0].headers["Accept"] == "application/fhir+json"
    assert seen[0].headers["Prefer"] == "handling=strict"
    assert seen[0].headers["Epic-Client-ID"] == "x"
    assert dict(seen[0].url.params) == {"patient": "p/1", "category": "a|b", "_count": "100"}
    assert seen[0].headers["Cache-Control"] == "no-cache"  # HAPI FHIR otherwise answers as it did within the last minute


async def test_ids_of_a_vendor_cannot_leave_the_path():
    seen = []
    async with client(lambda request: seen.append(request.url.raw_path) or httpx.Response(404)) as ehr:
        with pytest.raises(PartnerRefused):
            await ehr.read("Practitioner", "a/../../b?c")
    assert seen == [b"/fhir/Practitioner/a%2F..%2F..%2Fb%3Fc"]


async def test_outcomes_within_a_page_are_no_results_and_the_bytes_of_each_entry_stay():
    raw = b'{"resourceType" :"Patient","id":"p1", "multipleBirthInteger": 2,"x":[1.10,2e3]}'
    page = (
        b'{"resourceType":"Bundle","type":"searchset","total":1,"entry":[{"fullUrl":"x","resource":'
        + raw
        + b'},{"resource":'
        + json.dumps(outcome("nothing more", "informational")).encode()
        + b',"search":{"mode":"outcome"}},{"resource":'
        + json.dumps(outcome("nothing more", "informational")).encode()
        + b'},{"fullUrl":"nothing"}]}'
    )
    async with client(lambda request: httpx.Response(200, content=page)) as ehr:
        got = await ehr.search_all("Patient")
    assert [one.body for one in got] == [raw]


async def test_pages_are_followed_also_through_relative_links():
    pages = {
        "/fhir/Patient?_count=100": bundle(patient("a"), following="Patient?page=2"),
        "/fhir/Patient?page=2": bundle(patient("b"), following=f"{BASE}?pageContext=xyz"),
        "/fhir?pageContext=xyz": bundle(patient("a", meta={"lastUpdated": "2026-01-02T00:00:00Z"}), patient("c")),
    }
    async with client(lambda request: httpx.Response(200, json=pages[request.url.raw_path.decode()])) as ehr:
        got = await ehr.search_all("Patient")
        assert ehr.counts.pages == 3
    assert [one.id for one in got] == ["a", "b", "c"]
    assert got[0].last_updated == "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    "following",
    [
        "https://evil.example/fhir/Patient?page=2",
        "http://ehr.example/fhir/Patient?page=2",
        "https://ehr.example:8443/fhir/Patient",
        "https://ehr.example/other/Patient",
        "https://ehr.example/fhirs/Patient",
        "https://ehr.example/fhir/../admin",
        "https://ehr.example/fhir/%2e%2e/admin",
        "https://me@ehr.example/fhir/Patient",
        "//evil.example/fhir/Patient",
        "https://[bad/fhir",
    ],
)
async def test_a_token_follows_no_link_to_another_place(following):
    asked = []

    def answer(request):
        asked.append(str(request.url))
        return httpx.Response(200, json=bundle(patient(), following=following))

    async with client(answer) as ehr:
        with pytest.raises(PartnerAnswerBroken, match=r"another address|no URL"):
            await ehr.search_all("Patient")
    assert len(asked) == 1


async def test_pages_that_go_round_in_a_circle_end():
    answers = in_turn(
        httpx.Response(200, json=bundle(following=f"{BASE}/Patient?page=2")),
        httpx.Response(200, json=bundle(following=f"{BASE}/Patient?page=3")),
        httpx.Response(200, json=bundle(following=f"{BASE}/Patient?page=2")),
    )
    async with client(answers) as ehr:
        with pytest.raises(PartnerAnswerBroken, match="circle"):
            await ehr.search_all("Patient")


async def test_pages_without_end_end():
    numbers = iter(range(10_000))

    def answer(request):
        return httpx.Response(200, json=bundle(following=f"{BASE}/Patient?page={next(numbers)}"))

    async with client(answer, limits={"pages": 5}) as ehr:
        with pytest.raises(PartnerAnswerBroken, match="more than 5 pages"):
            await ehr.search_all("Patient")


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 429])
async def test_a_partner_in_trouble_is_asked_again(status):
    waits = []
    answers = in_turn(httpx.Response(status), httpx.Response(status), httpx.Response(200, json=patient()))
    async with client(answers, waits) as ehr:
        assert (await ehr.read("Patient", "p1")).id == "p1"
        assert ehr.counts.requests == 3
    assert waits == [0.5, 1.0]


async def test_and_not_for_ever():
    waits = []
    async with client(in_turn(httpx.Response(500, text="oops")), waits) as ehr:
        with pytest.raises(PartnerUnavailable, match="north-clinic answered 500 to GET /fhir/Patient/p1"):
            await ehr.read("Patient", "p1")
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_obeyed_as_seconds_and_as_date(as_date):
    waits = []
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True) if as_date else "20"
    answers = in_turn(httpx.Response(429, headers={"Retry-After": value}), httpx.Response(200, json=patient()))
    async with client(answers, waits) as ehr:
        await ehr.read("Patient", "p1")
    assert waits[0] == pytest.approx(20, abs=1.5)


async def test_a_retry_after_beyond_patience_is_told_to_whoever_asks():
    waits = []
    async with client(in_turn(httpx.Response(429, headers={"Retry-After": "7200"})), waits) as ehr:
        with pytest.raises(PartnerUnavailable) as told:
            await ehr.read("Patient", "p1")
    assert (told.value.retry_after, told.value.throttled, waits) == (7200.0, True, [])


@pytest.mark.parametrize("value", ["soon", "-5", "1.5", "Wed, 99 Foo 2026", ""])
async def test_a_retry_after_that_cannot_be_read_is_as_none(value):
    waits = []
    answers = in_turn(httpx.Response(503, headers={"Retry-After": value}), httpx.Response(200, json=patient()))
    async with client(answers, waits) as ehr:
        await ehr.read("Patient", "p1")
    assert waits == [0.5]


async def test_a_partner_that_is_down():
    async with client(in_turn(httpx.ConnectError("refused"))) as ehr:
        with pytest.raises(PartnerUnavailable, match="cannot be reached") as told:
            await ehr.create("Task", b"{}")
    assert told.value.sent is False


async def test_a_partner_that_is_slow_is_cut_off_by_the_clock():
    async def trickle():
        yield b'{"resourceType":'
        await asyncio.Event().wait()

    answer = lambda request: httpx.Response(200, content=trickle())  # noqa: E731
    async with client(answer, limits={"timeout": 0.05, "attempts": 1}) as ehr:
        with pytest.raises(PartnerUnavailable, match=r"does not answer within 0.05 s"):
            await ehr.read("Patient", "p1")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html>Sign in, John Smith</html>", "HTML"),
        (b"<Patient xmlns='http://hl7.org/fhir'/>", "XML"),
        (b'{"resourceType":"Patient","id":"p1","name":[{"fam', "truncated"),
        (b"", "truncated or no JSON"),
        (b"[]", "JSON of another kind"),
        (b'{"resourceType":"Observation","id":"p1"}', "in place of a resource of type Patient"),
        (b'{"resourceType":"Patient","id":7}', "JSON of another kind"),
        (b"\xff\xfe", "no JSON"),
    ],
)
async def test_a_read_that_is_no_such_resource_is_told_and_asked_again(content, told):
    waits = []
    async with client(in_turn(httpx.Response(200, content=content)), waits) as ehr:
        with pytest.raises(PartnerAnswerBroken, match=told) as error:
            await ehr.read("Patient", "p1")
    assert "Smith" not in str(error.value)
    assert len(waits) == 3
    answers = in_turn(httpx.Response(200, content=content), httpx.Response(200, json=patient()))
    async with client(answers) as ehr:
        assert (await ehr.read("Patient", "p1")).id == "p1"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"<html/>", PartnerAnswerBroken),
        (b'{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Pat', PartnerAnswerBroken),
        (b'{"resourceType":"Patient","id":"p1"}', PartnerAnswerBroken),
        (b'{"resourceType":"Bundle","entry":{}}', PartnerAnswerBroken),
        (b'{"resourceType":"Bundle","entry":[null]}', PartnerAnswerBroken),
        (json.dumps(outcome()).encode(), PartnerRefused),
    ],
)
async def test_a_page_that_is_no_bundle_is_told(content, error):
    async with client(in_turn(httpx.Response(200, content=content))) as ehr:
        with pytest.raises(error):
            await ehr.search_all("Patient")


async def test_an_entry_without_type_or_id_is_handed_on_as_such():
    page = bundle(
        {"resource": {"id": "x"}}, {"resource": {"resourceType": "Patient"}}, {"resource": {"resourceType": 5}}, patient()
    )
    async with client(in_turn(httpx.Response(200, json=page))) as ehr:
        got = await ehr.search_all("Patient")
    assert [(one.type, one.id) for one in got] == [(None, "x"), ("Patient", None), (None, None), ("Patient", "p1")]


@pytest.mark.parametrize("status", [301, 302, 307])
async def test_redirects_are_not_followed(status):
    asked = []

    def answer(request):
        asked.append(request.url.host)
        return httpx.Response(status, headers={"Location": "https://evil.example/"})

    async with client(answer, limits={"attempts": 1}) as ehr:
        with pytest.raises(PartnerAnswerBroken, match="redirects are not followed"):
            await ehr.read("Patient", "p1")
    assert asked == ["ehr.example"]


async def test_an_answer_without_end_is_cut_off():
    async def flood():
        while True:
            yield b" " * 100_000

    answer = lambda request: httpx.Response(200, content=flood())  # noqa: E731
    async with client(answer, limits={"attempts": 1, "body": 1_000_000}) as ehr:
        with pytest.raises(PartnerAnswerBroken, match="more than 1000000 bytes"):
            await ehr.read("Patient", "p1")


async def test_a_page_that_is_too_large_is_asked_for_in_smaller_ones():
    asked = []

    def answer(request):
        size, start = int(request.url.params["_count"]), int(request.url.params.get("page", 0))
        asked.append(size)
        shown = range(start, min(10, start + size))
        entries = [{"resource": {"resourceType": "Task", "id": str(n), "note": [{"text": "x" * 1000}]}} for n in shown]
        following = f"{BASE}/Task?_count={size}&page={start + size}"
        link = [{"relation": "next", "url": following}] if start + size < 10 else []
        return httpx.Response(200, json={"resourceType": "Bundle", "link": link, "entry": entries})

    async with client(answer, limits={"page_size": 10, "body": 5000}) as ehr:
        found = await ehr.search_all("Task", [("patient", "p")])
        assert (sorted(one.id for one in found), asked) == ([str(n) for n in range(10)], [10, 2, 2, 2, 2, 2])
    asked.clear()
    async with client(answer, limits={"page_size": 10, "body": 500}) as ehr:
        with pytest.raises(AnswerTooLarge):
            await ehr.search_all("Task", [("patient", "p")])
        assert asked == [10, 2, 1]  # each once: the same question gets the same answer


@pytest.mark.parametrize("status", [400, 403, 404, 406, 409, 410, 412, 422, 501])
async def test_a_no_is_not_asked_again(status):
    async with client(in_turn(httpx.Response(status, json=outcome("Not allowed: 'category' is missing")))) as ehr:
        with pytest.raises(PartnerRefused, match="'category' is missing") as told:
            await ehr.read("Patient", "p1")
        assert ehr.counts.requests == 1
    assert told.value.answered == status
    assert told.value.told[0].code == "forbidden"


async def test_a_401_is_a_matter_of_signing_in():
    async with client(in_turn(httpx.Response(401))) as ehr:
        with pytest.raises(SignInRefused):
            await ehr.read("Patient", "p1")


async def test_an_html_404_is_a_404():
    async with client(in_turn(httpx.Response(404, text="<html>IIS</html>"))) as ehr:
        with pytest.raises(PartnerRefused, match="404 to GET /fhir/Foo/1: HTML"):
            await ehr.read("Foo", "1")


@pytest.mark.parametrize(
    "secret",
    [
        "'John Smith'",
        '"Smith"',
        "1980-02-03",
        "555-123-4567",
        "john@smith.example",
        "123456789",
        "02/03/1980",
        "\u2018Smith\u2019",
    ],
)
async def test_what_a_partner_says_of_a_patient_is_not_repeated(secret):
    text = f"Patient {secret} was not found\r\nin 'identifier'\x1b[31m"
    async with client(in_turn(httpx.Response(422, json=outcome(text)))) as ehr:
        with pytest.raises(PartnerRefused) as told:
            await ehr.search_all("Patient", [("name", "Smith")])
    words = str(told.value)
    assert secret.strip("'\"") not in words
    assert "Smith" not in words
    assert "was not found in 'identifier'" in words
    assert words.isprintable()


async def test_coded_reasons_are_told_also_when_they_are_a_vendors_own():
    reason = {"coding": [{"system": "urn:oid:1.2.840", "code": "4102"}], "text": "Unsupported"}
    body = outcome("", details=reason, location=["/f:category"], expression=["CarePlan.category"])
    async with client(in_turn(httpx.Response(400, json=body))) as ehr:
        with pytest.raises(PartnerRefused, match=r"4102, Unsupported at CarePlan\.category"):
            await ehr.search_all("CarePlan")


@pytest.mark.parametrize("failure", [httpx.Response(503), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("gone")])
async def test_a_post_is_never_sent_twice(failure):
    sent = []

    def answer(request):
        sent.append(request.method)
        return in_turn(failure)(request)

    async with client(answer) as ehr:
        with pytest.raises(PartnerUnavailable) as told:
            await ehr.create("Communication", b"{}")
        with pytest.raises(PartnerUnavailable):
            await ehr.update("Task", "t1", b"{}")
    assert sent == ["POST", "PUT"]
    assert told.value.sent


async def test_a_create_answered_with_a_location_alone():
    answer = httpx.Response(201, headers={"Location": f"{BASE}/Communication/c7/_history/1", "ETag": 'W/"1"'})
    async with client(in_turn(answer)) as ehr:
        got = await ehr.create("Communication", b"{}", if_none_exist="identifier=x|1")
    assert (got.id, got.etag, got.resource) == ("c7", 'W/"1"', None)


async def test_a_create_answered_with_the_resource():
    seen = []
    answer = httpx.Response(201, json={"resourceType": "Communication", "id": "c8"}, headers={"ETag": 'W/"3"'})
    async with client(lambda request: seen.append(request) or answer) as ehr:
        got = await ehr.create("Communication", b'{"resourceType":"Communication"}')
    assert (got.id, got.etag) == ("c8", 'W/"3"')
    assert seen[0].headers["Content-Type"] == "application/fhir+json"
    assert seen[0].headers["Prefer"] == "return=representation"


async def test_an_update_names_the_version_that_it_knew():
    seen = []
    async with client(lambda request: seen.append(request) or httpx.Response(412, json=outcome(code="conflict"))) as ehr:
        with pytest.raises(PartnerRefused) as told:
            await ehr.update("Task", "t1", b"{}", if_match='W/"3"')
    assert (seen[0].headers["If-Match"], told.value.answered) == ('W/"3"', 412)


async def test_no_more_requests_are_in_flight_than_the_partner_allows():
    flying = highest = 0
    go = asyncio.Event()

    async def answer(request):
        nonlocal flying, highest
        flying += 1
        highest = max(highest, flying)
        if flying == 3:
            go.set()
        await go.wait()
        flying -= 1
        return httpx.Response(200, json=patient())

    async with client(answer, limits={"concurrency": 3}) as ehr:
        await asyncio.gather(*(ehr.read("Patient", "p1") for _ in range(12)))
    assert highest == 3


async def test_requests_keep_the_pace():
    async with client(in_turn(httpx.Response(200, json=patient())), limits={"requests_per_second": 50.0}) as ehr:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(ehr.read("Patient", "p1") for _ in range(6)))
        assert asyncio.get_running_loop().time() - begun >= 5 / 50


async def over_tcp(respond, ask, **changes):
    """Let a client ask a server that writes raw bytes; a server of None is a port that nobody listens on."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await respond(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if respond is None:
        server.close()
        await server.wait_closed()
    try:
        limits = Limits(attempts=1, timeout=changes.pop("timeout", 5))
        async with PartnerClient(replace(partner(), base_url=f"http://127.0.0.1:{port}/fhir", limits=limits)) as ehr:
            return await ask(ehr)
    finally:
        server.close()


async def test_over_real_sockets():
    body = json.dumps(patient()).encode()

    async def whole(writer):
        packed = gzip.compress(body)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed)
        await writer.drain()

    async def cut_off(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + body[:20])
        await writer.drain()

    async def trickle(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)

    async def nonsense(writer):
        writer.write(b"\x15\x03\x01 this is not HTTP\r\n\r\n")

    def read(ehr):
        return ehr.read("Patient", "p1")

    assert (await over_tcp(whole, read)).body == body
    for respond, told, timeout in (
        (cut_off, "cannot be reached", 5),
        (trickle, "does not answer within 0.1 s", 0.1),
        (nonsense, "cannot be reached", 5),
        (None, "cannot be reached", 5),
    ):
        with pytest.raises(PartnerUnavailable, match=told):
            await over_tcp(respond, read, timeout=timeout)


def test_the_newest_of_two_is_kept():
    def one(version=None, at=None, body=b""):
        return Received("Task", "t", body, version, at)

    old, new = one("1", "2026-01-01T23:00:00-05:00"), one("2", "2026-01-02T05:00:00Z")
    assert newest([new, old]) == [new]
    assert newest([one("9", body=b"9"), one("10", body=b"10")])[0].body == b"10"
    assert newest([one("10", body=b"10"), one("9", body=b"9")])[0].body == b"10"
    assert newest([one(body=b"first"), one(body=b"last")])[0].body == b"last"
    assert newest([one(at="nonsense", body=b"x"), new])[0] is new


ids = st.lists(st.sampled_from("abcdefghij"), max_size=30)


@given(ids, st.lists(st.integers(0, 30), max_size=8), st.randoms())
async def test_any_paging_gives_exactly_what_there_is(found, cuts, random):
    """Random pages, with doubles on other pages and outcomes anywhere: each resource once, none lost."""
    entries = [patient(id) for id in found]
    entries += [one for one in entries if random.random() < 0.3]
    for _ in range(random.randrange(4)):
        note = {"resource": outcome("note", "informational"), "search": {"mode": "outcome"}}
        entries.insert(random.randrange(len(entries) + 1), note)
    edges = [*sorted({0, *(min(cut, len(entries)) for cut in cuts)}), len(entries)]
    parts = [entries[low:high] for low, high in pairwise(edges)]

    def answer(request):
        number = int(request.url.params.get("page", 0))
        following = f"{BASE}/Patient?page={number + 1}" if number + 1 < len(parts) else None
        return httpx.Response(200, json=bundle(*parts[number], following=following))

    async with client(answer) as ehr:
        got = [one.id for one in await ehr.search_all("Patient")]
    assert len(got) == len(set(got))
    assert set(got) == set(found)


@given(st.text(max_size=40))
def test_no_text_passes_as_an_address_within(text):
    if within(BASE, text):
        assert text.lower().startswith("https://ehr.example")
