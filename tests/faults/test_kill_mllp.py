"""`fhircm mllp` over TLS, killed between the commit of a message and its acknowledgement: who sends again writes nothing twice."""

import asyncio
import os
import signal
import ssl
import sys

import pytest

from fhircm.exchange.mllp import END, START, send
from fhircm.fhir.query import parse_query
from fhircm.store.database import open_database
from fhircm.store.resources import Store
from tests.edge.test_tls import certificate as signed_certificate
from tests.exchange.test_adt import code, message

MESSAGES = [
    message("A01", str(number), mrn=f"M{number}", visit=f"V{number}")
    .replace(b"NORTH", b"LAKESIDE")
    .replace(b"^NV^VN", b"^LAKESIDE-VISIT^VN")
    for number in range(8)
]
hub_certificate = pytest.fixture(scope="module", name="hub_certificate")(signed_certificate.__wrapped__)
sender_certificate = pytest.fixture(scope="module", name="sender_certificate")(signed_certificate.__wrapped__)


@pytest.fixture
async def listen(database_url, tmp_path, hub_certificate, sender_certificate):
    """Starts a listener, and gives its process and its port."""
    started = []
    settings = {
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_PARTNERS": '["lakeside-hospital"]',
        "FHIRCM_PARTNER_BASE_URLS": '{"lakeside-hospital": "http://127.0.0.1:9/fhir"}',
        "FHIRCM_KEYS_DIR": str(tmp_path / "keys"),
        "FHIRCM_MLLP_PORT": "0",
        "FHIRCM_MLLP_TLS_CERT": str(hub_certificate[0]),
        "FHIRCM_MLLP_TLS_KEY": str(hub_certificate[1]),
        "FHIRCM_MLLP_CLIENT_CA": str(sender_certificate[0]),
        "PYTHONUNBUFFERED": "1",
    }

    async def start():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fhircm.cli", "mllp", env=os.environ | settings, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        started.append(process)
        line = (await process.stdout.readline()).decode()
        assert line.startswith("Listening for HL7 v2 messages on 127.0.0.1:"), line
        return process, int(line.rpartition(":")[2])

    yield start
    for process in started:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await process.wait() in (0, -signal.SIGKILL)


async def test_a_message_is_taken_once_whenever_the_listener_is_killed(
    listen, database_url, clock, hub_certificate, sender_certificate
):
    unknown = ssl.create_default_context(cafile=hub_certificate[0])
    known = ssl.create_default_context(cafile=hub_certificate[0])
    known.load_cert_chain(*sender_certificate)
    store = Store(await open_database(database_url), clock=clock)

    async def patients():
        return (await store.search(parse_query("Patient", []))).matches

    process, port = await listen()
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await send("127.0.0.1", port, MESSAGES[:1], unknown)
    assert await patients() == []
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=known)
    writer.write(START + MESSAGES[0] + END)
    async with asyncio.timeout(60):
        while not await patients():  # until it is committed; nobody has read the acknowledgement
            await asyncio.sleep(0.005)
    process.kill()
    writer.transport.abort()
    await process.wait()
    process, port = await listen()
    assert [code(one) for one in await send("127.0.0.1", port, MESSAGES[:1], known)] == ["AA"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=known)
    writer.write(b"".join(START + one + END for one in MESSAGES))
    await reader.readuntil(END)
    process.kill()  # in the middle of the others
    writer.transport.abort()
    await process.wait()
    process, port = await listen()
    assert [code(one) for one in await send("127.0.0.1", port, MESSAGES, known)] == ["AA"] * len(MESSAGES)
    for type in ("Patient", "Encounter"):
        found = (await store.search(parse_query(type, []))).matches
        assert [one.version for one in found] == [1] * len(MESSAGES), type
    await store.close()
