"""Clients that are slow, large or malformed on purpose: each is answered and let go, and everybody else is served meanwhile."""

import asyncio
import socket
from contextlib import suppress

import httpx
import pytest

from tests.rest.signing import BASE, assertion, form, register


@pytest.fixture(scope="module")
def hub(serve):
    """A hub that is soon tired of slow clients."""
    return serve(slow_client="PT2S", head_limit=8192, connection_limit=50)


@pytest.fixture
async def at_work(hub):
    """That hub; it goes on serving after whatever the test did to it."""
    yield await hub.ready()
    await hub.ready()
    assert hub.process.poll() is None


async def token(hub):
    await register(hub.database_url, "app", "system/*.cruds")
    signed = form(assertion(aud=f"{BASE}/oauth/token"))
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{hub.base}/oauth/token", data=signed)
    return answer.json()["access_token"]


async def test_one_that_says_nothing_is_let_go(at_work):
    assert (await at_work.raw(b"")).startswith(b"HTTP/1.1 408 ")


async def test_one_whose_head_never_ends_is_let_go_however_it_drips(at_work):
    reader, writer = await asyncio.open_connection("127.0.0.1", at_work.port)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
    got = b""

    async def drip():
        while True:
            writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(30):
        while part := await reader.read(1000):
            got += part
    dripping.cancel()
    writer.close()
    assert got.startswith(b"HTTP/1.1 408 ")


async def test_one_whose_body_never_ends_is_let_go(at_work):
    bearer = await token(at_work)
    head = f"POST /fhir/Patient HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {bearer}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", at_work.port)
    writer.write(f"{head}Content-Length: 5000\r\n\r\n{{".encode())
    got = b""

    async def drip():
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    with suppress(ConnectionResetError):  # when another drop was on its way as the connection was closed
        async with asyncio.timeout(30):
            while part := await reader.read(1000):
                got += part
    dripping.cancel()
    writer.close()
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in got


async def test_one_that_was_answered_already_may_not_go_on_sending_for_ever(at_work):
    reader, writer = await asyncio.open_connection("127.0.0.1", at_work.port)
    writer.write(b"POST /fhir/Patient HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
    assert (await reader.read(1000)).startswith(b"HTTP/1.1 401 ")

    async def drip():
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(30):
        while await _more(reader):
            pass
    dripping.cancel()
    writer.close()


async def _more(reader):
    try:
        return await reader.read(1000)
    except ConnectionError:
        return b""


async def test_one_that_does_not_read_what_it_asked_for_is_let_go(at_work):
    asked = b"GET /fhir/metadata HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", at_work.port))
        sock.setblocking(False)
        ended = False
        for _ in range(1500):
            try:
                sock.send(asked)
            except BlockingIOError:
                pass
            except ConnectionError:
                ended = True
                break
            await asyncio.sleep(0.02)
    assert ended


async def test_many_slow_ones_keep_nobody_else_out_for_long(at_work):
    slow = [await asyncio.open_connection("127.0.0.1", at_work.port) for _ in range(45)]
    for _, writer in slow:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{at_work.base}/health/live")).status_code == 200
    for _, writer in slow:
        writer.close()


async def test_more_connections_than_the_limit_are_told_so(at_work):
    held = [await asyncio.open_connection("127.0.0.1", at_work.port) for _ in range(60)]
    answers = []
    for reader, writer in held:
        async with asyncio.timeout(30):
            answers.append((await reader.read(200))[9:12])
        writer.close()
    assert answers.count(b"503") >= 10
    assert answers.count(b"408") >= 40


HEADS = {
    "one header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 5_000 + b"\r\n",
    "one header that never ends": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 2_000_000,
    "a path": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a query": b"GET /fhir/Patient?" + b"name=a&" * 5_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
async def test_a_head_that_is_too_large_is_refused(at_work, head):
    assert (await at_work.raw(head))[:12] in (b"HTTP/1.1 431", b""), "or cut off while it was still being sent"


MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 30 + b"\r\n\r\n",
    "two lengths": b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is no number": b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "a header over two lines": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-A: b\r\n c\r\nX-B: \x00\r\n\r\n",
    "a space before the colon": b"GET /health/live HTTP/1.1\r\nHost : x\r\n\r\n",
    "a connection elsewhere": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
async def test_what_two_readers_could_read_differently_is_refused(at_work, sent):
    got = await at_work.raw(sent, seconds=5)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1 ") == 1


async def test_no_web_socket_is_opened(at_work):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    got = await at_work.raw(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n", seconds=3)
    assert b" 101 " not in got


async def test_several_requests_sent_at_once_are_answered_in_order(at_work):
    one = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    got = await at_work.raw(one * 3 + last)
    assert got.count(b"HTTP/1.1 200 OK") == 3
    assert got.rpartition(b"HTTP/1.1 ")[2].startswith(b"404")


async def test_a_body_that_comes_in_good_time_is_taken(at_work):
    bearer = await token(at_work)
    head = f"POST /fhir/Patient HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {bearer}\r\n"
    body = b'{"resourceType": "Patient", "gender": "other"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", at_work.port)
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:20])
    await asyncio.sleep(0.2)
    writer.write(body[20:])
    assert (await reader.read(100)).startswith(b"HTTP/1.1 201")
    writer.close()
