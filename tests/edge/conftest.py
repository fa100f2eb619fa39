"""The application behind its door, over ASGI and over real sockets."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import httpx
import pytest

from fhircm.app import AppConfig, create_app
from fhircm.demo.processes import Processes, free_port
from fhircm.edge.config import EdgeConfig
from fhircm.rest.exchange import RestSettings
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from tests.rest.signing import BASE, register

REST = RestSettings(body_limit=1_000_000, bundle_limit=2_000_000, update_create=False, conditional_delete_limit=1)


class Monotonic:
    """A monotonic clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def monotonic():
    return Monotonic()


@pytest.fixture
def door(sqlite_url, clock, tmp_path):
    """Opens the application with an edge of one's own: a client of it."""

    @asynccontextmanager
    async def opened(now=None, address="192.0.2.1", **edge):
        await register(sqlite_url, "app", "system/*.cruds")
        app = create_app(AppConfig(sqlite_url, BASE, tmp_path / "keys", REST, False, clock, [], EdgeConfig(**edge)))
        if now is not None:
            for rate in app.door.rates.values():
                rate._now = now
            app.door._cors._origins._now = now
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, client=(address, 4711), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
                http.app = app
                yield http

    return opened


@pytest.fixture
async def registered(sqlite_url):
    """Registers a client with these members."""

    async def add(client_id, **registration):
        database = await open_database(sqlite_url)
        await Credentials(database).add_client(client_id, {"scope": "patient/*.rs", **registration})
        await database.close()

    return add


class Served:
    """`fhircm serve` as a process of its own."""

    def __init__(self, environment, folder, scheme="http"):
        self.port = free_port()
        self.base = f"{scheme}://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        with self.log.open("ab") as log:
            whole = {**os.environ, **environment, "FHIRCM_PORT": str(self.port)}
            self.process = Processes.launch("fhircm.cli", "serve", environment=whole, output=log, folder=folder)

    async def ready(self, **client):
        async with httpx.AsyncClient(timeout=5, **client) as http:
            for _ in range(1200):
                assert self.process.poll() is None, self.log.read_text()
                try:
                    if (await http.get(f"{self.base}/health/ready")).status_code == 200:
                        return self
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        raise AssertionError("it does not answer")

    async def raw(self, sent, *, seconds=30, end=False):
        """What is answered to these bytes, until the server closes the connection or keeps silent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        if end:
            writer.write_eof()
        got = b""
        try:
            async with asyncio.timeout(seconds):
                while part := await reader.read(65536):
                    got += part
        except (TimeoutError, ConnectionError):
            pass
        writer.close()
        return got

    def close(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def serve(tmp_path_factory, sqlite_template):
    """Starts `fhircm serve` with these settings, over a database of its own."""
    started = []

    def start(scheme="http", **settings):
        import shutil

        folder = tmp_path_factory.mktemp("served")
        shutil.copy(sqlite_template, folder / "hub.db")
        environment = {
            "FHIRCM_DATABASE_URL": f"sqlite:///{folder / 'hub.db'}",
            "FHIRCM_PUBLIC_BASE_URL": f"{scheme}://hub.example",
            "FHIRCM_KEYS_DIR": str(folder / "keys"),
            **{
                f"FHIRCM_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
                for name, value in settings.items()
            },
        }
        started.append(Served(environment, folder, scheme))
        started[-1].database_url = environment["FHIRCM_DATABASE_URL"]
        return started[-1]

    yield start
    for one in started:
        one.close()
