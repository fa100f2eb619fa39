"""A file is read in order, each line once, whatever the source does meanwhile; only what the operator allows is asked for."""

import asyncio
import gzip
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhircm.exchange.source_address import Allowed, SourceChanged, SourceRefused, SourceUnavailable
from fhircm.exchange.sources import Place, Sources
from fhircm.fhir.outcome import Forbidden

from .files import File, served

LINES = [f'{{"n":{n},"pad":"{"x" * (n % 300)}"}}'.encode() for n in range(3000)]
BODY = b"\n".join(LINES) + b"\n"
START = Place()


@pytest.fixture
async def files():
    async with served() as running:
        yield running


@pytest.fixture
async def sources(files):
    opened = Sources(Allowed((files.base,), private=True))
    yield opened
    await opened.close()


async def some(sources, url, place=START, count=500, size=10**9, limit=10_000, seconds=5.0, key="k"):
    return await sources.read(key, url, place, count=count, size=size, limit=limit, until=time.monotonic() + seconds)


async def everything(sources, url, reopen=False, retries=0, **how):
    place, lines, ended, damaged = Place(), [], False, False
    while not ended:
        try:
            more, place, ended, damaged = await some(sources, url, place, **how)
            lines += more
        except SourceUnavailable:
            retries -= 1
            assert retries >= 0
        if reopen:
            await sources.close()
    return lines, damaged


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("packed", [False, True])
async def test_each_line_once_also_where_the_reading_goes_on_elsewhere(sources, files, reopen, ranges, packed):
    files.files["f"] = File(gzip.compress(BODY) if packed else BODY, ranges=ranges)
    lines, damaged = await everything(sources, files.url("f"), reopen)
    assert not damaged
    assert [line.body for line in lines] == LINES
    assert [line.number for line in lines] == list(range(1, 3001))
    asked = [wanted for _, wanted in files.asked]
    assert len(asked) == (7 if reopen else 1)
    assert all(asked[1:]) is not packed or not reopen


@given(
    st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    st.booleans(),
    st.integers(1, 7),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_lines_in_any_portions(sources, files, lines, ends, count, reopen, members):
    body = b"\n".join(lines) + (b"\n" if ends else b"")
    packed = b"".join(gzip.compress(body[len(body) * n // members : len(body) * (n + 1) // members]) for n in range(members))
    files.files["f"] = File(packed if members else body)
    found, damaged = await everything(sources, files.url("f"), reopen, count=count, limit=30)
    wanted = [(n, line if len(line) <= 30 else None) for n, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    assert ([tuple(line) for line in found], damaged) == (wanted, False)


async def test_what_breaks_off_goes_on_where_it_was(sources, files):
    files.files["f"] = File(BODY, cuts=[0, 100_000, 150_000, 10])
    lines, _ = await everything(sources, files.url("f"), retries=4)
    assert [line.body for line in lines] == LINES
    assert [wanted is not None for _, wanted in files.asked] == [False, False, True, True, True]


@pytest.mark.parametrize("packed", [False, True])
async def test_two_that_take_turns_pass_over_what_the_other_has_read(sources, files, packed):
    files.files["f"] = File(gzip.compress(BODY) if packed else BODY)
    other = Sources(sources.allowed)
    place, lines, ended, turn = START, [], False, 0
    while not ended:
        more, place, ended, _ = await some((sources, other, other)[turn % 3], files.url("f"), place, count=37)
        lines += more
        turn += 1
    await other.close()
    assert [tuple(line) for line in lines] == list(enumerate(LINES, 1))
    assert len(files.asked) == 2


async def test_a_file_that_changed_meanwhile_is_told(sources, files):
    for etag in (True, False):
        files.files["f"] = File(BODY, etag=etag)
        place = (await some(sources, files.url("f"))).place
        await sources.close()
        files.files["f"] = File(BODY + b"{}\n", etag=etag)
        with pytest.raises(SourceChanged):
            await some(sources, files.url("f"), place)


async def test_what_is_packed_and_breaks_off_or_is_damaged_ends_there_and_says_so(sources, files):
    packed = gzip.compress(BODY)
    for broken in (packed[:4000], packed[:4000] + b"\xff" * 400 + packed[4400:]):
        files.files["f"] = File(broken)
        lines, damaged = await everything(sources, files.url("f"))
        assert damaged
        assert [line.body for line in lines[:500]] == LINES[:500]


async def test_a_line_that_is_too_long_is_passed_over_without_being_held(sources, files):
    files.files["f"] = File(b"{}\n" + b"x" * 3_000_000 + b"\n{}\n" + b"y" * 300_000)
    lines, _ = await everything(sources, files.url("f"), limit=1000)
    assert [tuple(line) for line in lines] == [(1, b"{}"), (2, None), (3, b"{}"), (4, None)]


async def test_nothing_is_read_ahead_without_bound(sources, files):
    bomb = gzip.compress(b"{}\n" + b"\n" * 200_000_000 + b"{}\n", 1)
    files.files["f"] = File(bomb)
    await some(sources, files.url("f"), count=1)
    await asyncio.sleep(0)
    (reader,) = sources._open.values()
    assert len(reader._rest) + sum(map(len, reader._chunks._queue)) < 2_000_000


async def test_it_waits_no_longer_than_it_is_told(sources, files):
    started = asyncio.Event()

    async def silent(reader, writer):
        started.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/f"
    sources.allowed = Allowed((url,), private=True)
    async with server:
        assert await some(sources, url, seconds=0.05) == ([], Place(), False, False)
        await asyncio.wait_for(started.wait(), 10)
        await sources.close()


async def test_what_came_after_nobody_waited_any_more_is_not_asked_for_again(sources, files):
    files.files["f"] = File(BODY)
    batch = await some(sources, files.url("f"), seconds=0.0)
    assert batch.lines == [] and not batch.ended
    async with asyncio.timeout(5):
        while sources._open["k"]._chunks.empty():  # until the source has answered
            await asyncio.sleep(0)
    batch = await some(sources, files.url("f"), batch.place, count=1)
    assert [line.body for line in batch.lines] == LINES[:1]
    assert files.asked == [("f", None)]


@pytest.mark.parametrize(
    ("status", "error"), [(404, SourceRefused), (403, SourceRefused), (503, SourceUnavailable), (429, SourceUnavailable)]
)
async def test_a_refusal_and_a_source_that_is_down_differ(sources, files, status, error):
    files.files["f"] = File(status=status, headers={"Retry-After": "7"})
    with pytest.raises(error) as caught:
        await some(sources, files.url("f"))
    assert getattr(caught.value, "retry_after", 7.0) == 7.0
    assert "127.0.0.1" not in str(caught.value)


# --- what may be asked -----------------------------------------------------------------------------------------------------------

BASE = "https://files.example/exports"
REFUSED = [
    "https://files.example/other/f",
    "https://files.example/exports-of-others/f",
    "https://files.example/exports/../other/f",
    "https://files.example/exports/%2e%2e/other/f",
    "https://files.example.evil.example/exports/f",
    "https://user@files.example/exports/f",
    "https://files.example:8443/exports/f",
    "http://files.example/exports/f",
    "ftp://files.example/exports/f",
    "file:///etc/passwd",
    "https://[::1/exports/f",
    "https://files.example\\@evil.example/exports/f",
    "",
]


@pytest.mark.parametrize("url", REFUSED)
def test_what_the_operator_does_not_allow_is_refused_without_quoting_it(url):
    for private in (False, True):
        with pytest.raises(Forbidden) as caught:
            Allowed((BASE,), private).check(url)
        assert not url or url not in str(caught.value)


def test_what_he_allows_is_taken_and_by_default_nothing():
    for prefix in (BASE, BASE + "/"):
        Allowed((prefix,)).check("https://files.example/exports/a/b.ndjson?sig=x")
    with pytest.raises(Forbidden):
        Allowed().check("https://files.example/exports/f")


async def test_an_address_inside_is_asked_only_where_the_operator_says_so(files):
    for url in (
        "https://127.0.0.1/f",
        "https://localhost/f",
        "https://10.0.0.1/f",
        "https://[::1]/f",
        "https://169.254.169.254/f",
    ):
        sources = Sources(Allowed((url,)))
        with pytest.raises(Forbidden, match="private"):
            await some(sources, url)


async def test_a_redirect_goes_no_further_than_the_rest(sources, files):
    files.files["moved"] = File(status=307, location="/f")
    files.files["f"] = File(BODY)
    assert len((await some(sources, files.url("moved"))).lines) == 500
    files.files["away"] = File(status=302, location="http://127.0.0.1:1/f")
    files.files["round"] = File(status=302, location="/round")
    with pytest.raises(Forbidden):
        await some(sources, files.url("away"), key="away")
    with pytest.raises(SourceRefused, match="redirects"):
        await some(sources, files.url("round"), key="round")
