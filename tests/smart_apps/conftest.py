"""`fhircm serve` as it runs for real, apps of other origins in a real browser, and the client libraries that others wrote."""

import asyncio
import base64
import hashlib
import shutil
import subprocess
import tarfile
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
from playwright.async_api import async_playwright

from fhircm.demo.processes import Processes, free_port
from fhircm.smart.launch import Launches
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.grants import Grants
from fhircm.store.principals import Principals
from tests.conftest import _named, _statement
from tests.edge.test_tls import certificate  # noqa: F401 a fixture
from tests.rest.signing import KEYS

from .app_server import AppServer
from .population import populate
from .window import Window

# The library that most browser apps are written with: fetched as it was published, and none other is taken.
LIBRARY = "fhirclient@2.6.3"
SHA512 = "CirZixcwWelbkIXxpxlNQx5+ZdJirl6F1s4y4yvA1X7hHAkr9n99aVHaMi0wX+97nATjKQ65X6NB5as/wZoJzg=="
JWKS = {"keys": [key.as_dict(private=False) for key in KEYS.values()]}
SYSTEM = "system/*.cruds introspect launcher"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The browser build of the client library."""
    folder = tmp_path_factory.mktemp("npm")
    npm = shutil.which("npm")
    assert npm, "npm is needed: apt-get install npm"
    command = [npm, "pack", LIBRARY, "--silent", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120, cwd=folder)
    (packed,) = folder.glob("*.tgz")
    assert base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode() == SHA512
    with tarfile.open(packed) as archive:
        archive.extract("package/build/fhir-client.js", folder, filter="data")
    return folder / "package/build/fhir-client.js"


@pytest.fixture(scope="session")
def apps(library):
    """The web server of the apps."""
    server = AppServer(library)
    yield server
    server.close()


@pytest.fixture(scope="session")
async def chromium():
    path = shutil.which("chromium")
    assert path, "Chromium is needed: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


class Hub:
    """A hub that runs, as others reach it; and its database, as an operator does."""

    def __init__(self, base, database, apps, logins, log):
        self.base, self.fhir, self.database, self.apps, self.logins, self.log = base, f"{base}/fhir", database, apps, logins, log

    async def app(self, name, scope, secret_key=None, **registration):
        """Register an app of the other origin, and put it there; returns the address where it is launched."""
        address = f"{self.apps.origin}/{name}"
        registered = {
            "client_name": name.replace("-", " ").capitalize(),
            "scope": scope,
            "redirect_uris": [f"{address}/"],
            "launch_uri": f"{address}/launch.html",
            "token_endpoint_auth_method": "private_key_jwt" if secret_key else "none",
            "organization": "Organization/riverbend",
        } | ({"jwks": JWKS} if secret_key else {})
        await Credentials(self.database).add_client(name, registered | registration)
        config = {"clientId": name, "scope": scope, "iss": self.fhir, "pkceMode": "required"}
        if secret_key:
            config["clientPrivateJwk"] = secret_key.as_dict(private=True) | {
                "alg": "ES384" if secret_key.kid == "es" else "RS384"
            }
        self.apps.configs[name] = config
        return f"{address}/launch.html"

    async def launch(self, name, username, **context):
        """What a click in a work list does: the address at which the browser of this person opens the app."""
        database = self.database
        launches = Launches(self.base, self.fhir, Grants(database), Credentials(database), Principals(database))
        return await launches.url(name, self.logins[username], context)


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def hub_database(request, tmp_path_factory):
    """The URL of the one database that all these tests share."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("hub") / "fhircm.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return f"sqlite:///{path}"
    server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_template")
    asyncio.run(_statement(server, f"CREATE DATABASE smart_apps TEMPLATE {template} STRATEGY file_copy"))
    return _named(server, "smart_apps")


@asynccontextmanager
async def running(folder, database_url, apps, tls=None):
    """`fhircm serve`, with people, patients, and apps to be."""
    logins = await populate(database_url)
    port = free_port()
    base = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    environment = {
        "FHIRCM_DATABASE_URL": database_url,
        "FHIRCM_PUBLIC_BASE_URL": base,
        "FHIRCM_PORT": str(port),
        "FHIRCM_KEYS_DIR": str(folder / "keys"),
        "FHIRCM_AUDIT_DIR": str(folder / "audit"),
        "FHIRCM_ORGANIZATION_NAME": "Riverbend Care",
        "FHIRCM_SIGN_IN_RATE": "0",
    }
    if tls:
        environment |= {"FHIRCM_TLS_CERT": str(tls[0]), "FHIRCM_TLS_KEY": str(tls[1])}
    database = await open_database(database_url)
    processes = Processes(folder / "logs", environment)
    try:
        system = {"scope": SYSTEM, "jwks": JWKS, "roles": ["custodian"]}
        await Credentials(database).add_client("system", system)
        # The origins of the apps are looked up every five seconds: theirs is known before the first of them comes.
        first = {"scope": "openid", "redirect_uris": [f"{apps.origin}/first/"], "token_endpoint_auth_method": "none"}
        await Credentials(database).add_client("first", first)
        processes.start("hub", "fhircm.cli", "serve")
        await listening(port, processes.running["hub"])
        yield Hub(base, database, apps, logins, folder / "logs" / "hub.log")
    finally:
        await asyncio.to_thread(processes.stop_all)
        await database.close()


async def listening(port, process):
    """Wait until a process listens on a port of this machine."""
    while process.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return
    raise AssertionError("the process ended before it listened")


@pytest.fixture(scope="session")
async def hub(hub_database, tmp_path_factory, apps):
    """The hub that all these tests share."""
    async with running(tmp_path_factory.mktemp("hub"), hub_database, apps) as one:
        yield one


@pytest.fixture
async def encrypted_hub(sqlite_url, tmp_path, apps, certificate):  # noqa: F811 the fixture
    """One that speaks TLS."""
    async with running(tmp_path, sqlite_url, apps, certificate) as one:
        yield one


@pytest.fixture
async def http(hub):
    """Whoever comes over the network, without cookies and without following redirects."""
    async with httpx.AsyncClient(base_url=hub.base, timeout=30) as client:
        yield client


@pytest.fixture
def open_window(chromium):
    """Opens browsers of people, each with cookies of its own."""

    @asynccontextmanager
    async def opened(hub):
        context = await chromium.new_context(reduced_motion="reduce", ignore_https_errors=True)
        try:
            yield await Window.open(context, hub)
        finally:
            await context.close()

    return opened


@pytest.fixture
async def window(open_window, hub):
    async with open_window(hub) as one:
        yield one


@pytest.fixture
def told(hub):
    """What the hub wrote into its log, since this test began."""
    start = hub.log.stat().st_size
    return SimpleNamespace(text=lambda: hub.log.read_bytes()[start:].decode())
