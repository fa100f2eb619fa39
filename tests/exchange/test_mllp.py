"""MLLP: frames as they come in pieces, several on a connection, and what is none or too much ends it."""

import asyncio

import pytest

from fhircm.exchange.hl7v2 import refusal
from fhircm.exchange.mllp import END, START, MllpLimits, MllpServer, send


@pytest.fixture
async def listening(clock):
    """Starts servers that answer with what came, in capitals."""
    servers, got = [], []

    async def receive(raw):
        got.append(raw)
        if raw == b"broken":
            raise OSError("the database is away")
        await asyncio.sleep(0)
        return raw.upper()

    async def start(**limits):
        server = MllpServer(receive, lambda error: refusal(clock(), error), MllpLimits(**limits))
        servers.append(server)
        return await server.start("127.0.0.1", 0), server, got

    yield start
    for server in servers:
        await server.close()


async def test_several_messages_on_a_connection(listening):
    port, _, got = await listening()
    assert await send("127.0.0.1", port, [b"one", b"two\rmore"]) == [b"ONE", b"TWO\rMORE"]
    assert got == [b"one", b"two\rmore"]


async def test_a_frame_in_pieces_and_two_at_once(listening):
    port, _, _ = await listening()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in (b"\x0bfi", b"rst", b"\x1c", b"\r\r\n\x0bsecond\x1c\r\x0bthi"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    assert await reader.readexactly(17) == START + b"FIRST" + END + START + b"SECOND" + END
    writer.close()


@pytest.mark.parametrize("wrong", [b"MSH|no frame", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01 a TLS hello"])
async def test_what_does_not_begin_as_a_frame_ends_the_connection(listening, wrong):
    port, _, got = await listening()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(wrong)
    assert await reader.read() == b""
    writer.close()
    assert got == []


async def test_what_is_too_long_is_refused_and_ends_the_connection(listening):
    port, _, got = await listening(message=1000)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(START + b"x" * 5000 + END)
    answer = await reader.read()
    assert b"MSA|AR" in answer and b"longer than 1000 bytes" in answer and got == []
    writer.close()


async def test_half_a_frame_is_not_waited_for_without_end(listening):
    port, _, got = await listening(whole=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(START + b"half")
    assert await reader.read() == b""
    writer.close()
    assert got == []


async def test_a_silent_connection_is_closed(listening):
    port, _, _ = await listening(idle=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()


async def test_too_many_connections(listening):
    port, _, _ = await listening(connections=1)
    first = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.01)
    second = await asyncio.open_connection("127.0.0.1", port)
    assert await second[0].read() == b""
    first[1].write(START + b"still served" + END)
    assert await first[0].readuntil(END) == START + b"STILL SERVED" + END
    for _, writer in (first, second):
        writer.close()


async def test_without_the_database_nothing_is_acknowledged(listening):
    port, _, _ = await listening()
    with pytest.raises(asyncio.IncompleteReadError):
        await send("127.0.0.1", port, [b"broken"])
    assert await send("127.0.0.1", port, [b"next"]) == [b"NEXT"]
