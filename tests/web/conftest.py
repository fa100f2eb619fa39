"""The hub with its pages, people who may sign in, and a browser without a window."""

import re
from contextlib import asynccontextmanager
from time import time as now

import httpx
import pytest
from argon2 import PasswordHasher

from fhircm.access.logins import new_id
from fhircm.access.passwords import Passwords
from fhircm.app import AppConfig, create_app
from fhircm.coordination.rules import RULES
from fhircm.fhir.validation import check_tree
from fhircm.rest.exchange import RestSettings
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grants
from fhircm.store.logins import Login, Logins
from fhircm.store.resources import Put
from fhircm.web.routes import WebSettings

BASE = "http://hub.example"
PASSWORD = "three calm herons"
REST = RestSettings(body_limit=20_000, bundle_limit=2_000_000, update_create=False, conditional_delete_limit=1)
APP = {
    "client_name": "Growth charts",
    "scope": "openid fhirUser launch launch/patient launch/encounter offline_access online_access patient/*.cruds user/*.cruds",
    "redirect_uris": ["https://app.example/back"],
    "token_endpoint_auth_method": "none",
    "organization": "Organization/clinic",
}
PATIENTS = [
    ("ada", "Abbott", "Ada", "1948-05-17", "MRN-1"),
    ("bo", "Berg", "Bo", "1950-01-02", "MRN-2"),
    ("cy", "Carver, Jr.", "Cy", "1948-05-17", "MRN-3"),
]


class Time:
    """Seconds since the epoch, which stand still from the start of a test until they are told to go on."""

    def __init__(self):
        self.now = now()

    def __call__(self):
        return self.now


def quick():
    """Passwords whose hashes cost little."""
    return Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


class Browser(httpx.AsyncClient):
    """Keeps cookies, sends forms as a browser does, and does not follow redirects by itself."""

    def __init__(self, app, base=BASE):
        super().__init__(transport=httpx.ASGITransport(app), base_url=base)
        self.base = base

    async def send_form(self, path, fields, page=None, **headers):
        """Send a form from the page that it stands on, with the token of that page."""
        shown = page if page is not None else await self.get(path)
        token = re.search(r'name="form" value="([0-9a-f]+)"', shown.text)
        assert token, shown.text
        return await self.post(path, data={"form": token[1], **fields}, headers={"Origin": self.base, **headers})

    async def sign_in(self, username="cleo", password=PASSWORD, onward="/account"):
        page = await self.get("/signin", params={"next": onward})
        fields = {"username": username, "password": password, "next": onward}
        return await self.send_form("/signin", fields, page)


def login(username, user="Practitioner/cleo", roles=("clinician",), **more):
    told = {"name": f"{username.title()} Example", "organization": "Organization/clinic"} | more
    return Login(id=new_id(), username=username, fhir_user=user, roles=frozenset(roles), **told)


@pytest.fixture
def time():
    return Time()


@asynccontextmanager
async def running(database_url, clock, tmp_path, time, base=BASE, audit=None, partners=(), **settings):
    """The application, started."""
    web = WebSettings(passwords=quick, now=time, organization_name="Riverbend Care", **settings)
    app = create_app(
        AppConfig(database_url, base, tmp_path / "keys", REST, False, clock, RULES, web=web, audit=audit, partners=partners)
    )
    async with app.router.lifespan_context(app):
        yield app


async def populate(store):
    """People who may sign in, an app, and patients."""
    logins = Logins(store.database)
    kept = await quick().hash(PASSWORD)
    for one in (
        login("cleo"),
        login("custos", user="Practitioner/custos", roles=("custodian",)),
        login("ada", user="Patient/ada", roles=("patient",), name="Ada Abbott"),
        login("root", user="Practitioner/root", roles=("administrator",), name="Rae Root"),
        login("prio", user="Practitioner/prio", roles=("privacy-officer",), name="Priya Officer"),
    ):
        await logins.add(one, kept)
    await Credentials(store.database).add_client("growth", APP)
    directory = [
        {"resourceType": "Organization", "id": "clinic", "name": "Riverbend Clinic"},
        {"resourceType": "Practitioner", "id": "cleo", "name": [{"family": "Example"}]},
        {"resourceType": "Practitioner", "id": "prio", "name": [{"family": "Officer", "given": ["Priya"]}]},
    ]
    people = [
        {
            "resourceType": "Patient",
            "id": id,
            "name": [{"family": family, "given": [given]}],
            "birthDate": born,
            "gender": "female",
            "identifier": [{"system": "urn:mrn", "value": number}],
        }
        for id, family, given, born, number in PATIENTS
    ]
    await store.transact([Put(check_tree(tree)) for tree in (*directory, *people)], origin="test")


@pytest.fixture
async def hub(database_url, clock, tmp_path, time):
    async with running(database_url, clock, tmp_path, time) as app:
        await populate(app.state.store)
        yield app


@pytest.fixture
async def browser(hub):
    async with Browser(hub) as one:
        yield one


@pytest.fixture
async def admin(hub):
    """The browser of an administrator."""
    async with Browser(hub) as one:
        await one.sign_in("root")
        yield one


@pytest.fixture
async def officer(hub):
    """The browser of the privacy officer."""
    async with Browser(hub) as one:
        await one.sign_in("prio")
        yield one


@pytest.fixture
def parts(hub):
    return hub.state.parts


@pytest.fixture
def ask(hub):
    """An app asks for access: returns the path of the page where its person decides."""

    async def asked(scope="launch/patient patient/Observation.rs openid", client="growth", **more):
        parameters = {
            "response_type": "code",
            "client_id": client,
            "redirect_uri": "https://app.example/back",
            "scope": scope,
            "state": "state-of-the-app",
            "aud": f"{BASE}/fhir",
            "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
            "code_challenge_method": "S256",
            **more,
        }
        url = await hub.state.parts.authorizations.ask(list(parameters.items()))
        assert url.startswith(f"{BASE}/oauth/authorize/"), url
        return url.removeprefix(BASE)

    return asked


@pytest.fixture
def grants(hub):
    return Grants(hub.state.store.database)
