"""A sandbox EHR in this process: no port, no signing, and a clock that only waiting moves."""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import yaml

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.partners import load_partner
from fhircm.sandbox.__main__ import sandbox
from fhircm.sandbox.chart import Chart
from fhircm.sandbox.ehr import Ehr, vendor
from fhircm.sandbox.population import population
from fhircm.sandbox.signin import SignIn
from fhircm.sandbox.staff import Staff

SERVER = "http://ehr.example"
# What each shape needs to know of a partner.
PARAMETERS = {
    "oracle": {"tenant": "riverbend-tenant"},
    "athenahealth": {"practice": "a-1.Practice-195900"},
    "eclinicalworks": {"practice": "FFBJCD"},
}
OWN = {
    "client_id": "fhircm",
    "organization": {"id": "riverbend", "name": "Riverbend Clinic", "npi": "1982736450"},
    "time_zone": "America/Chicago",
    "calendar": {"country": "US", "subdivision": "IL"},
    "panel": {"group": "panel"},
    "limits": {"requests_per_second": 10_000},
}


class Bearer(httpx.Auth):
    """A token that the EHR gave out already."""

    def __init__(self, token: str) -> None:
        self.token = token

    def auth_flow(self, request):
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


class InProcess:
    """One vendor's sandbox. `habits` replace those of its file; what waits moves `now`."""

    def __init__(self, name: str, scopes: str | None = None, humans: int = 6, **habits) -> None:
        self.now = 0.0
        self.habits = {**vendor(name), **habits}
        self.shape = name
        self.base_url = SERVER + self.habits["base_path"]
        resources = _population(humans).hospital if self.habits["chart"] == "hospital" else _population(humans).clinic
        self.chart = Chart(resources)
        self.sign_in = SignIn("fhircm", None, f"{SERVER}/oauth2/token", self.habits["algorithm"], self.habits["scopes"], 300)
        self.ehr = Ehr(self.habits, self.base_url, self.chart, self.sign_in, clock=lambda: self.now)
        self.app = sandbox(self.ehr, Staff(self.chart, set()), SERVER)
        self.requests: list[httpx.Request] = []
        self.token = self.granted(scopes or "system/*.cruds")

    @property
    def panel(self) -> list[str]:
        """The ids of the Patients in its panel."""
        members = self.chart.get("Group", "panel")["member"]
        return [member["entity"]["reference"].removeprefix("Patient/") for member in members]

    def granted(self, scopes: str) -> str:
        """A token for scopes, as its token endpoint would give it."""
        given = [found for scope in scopes.split() if (found := self.sign_in._scope(scope))]
        if self.habits["scopes"] == "v1" and scopes == "system/*.cruds":
            given = [("*", "cruds")]
        token = f"token-{len(self.sign_in._tokens)}"
        self.sign_in._tokens[token] = float("inf"), given
        return token

    def transport(self) -> httpx.AsyncBaseTransport:
        """Into the application, past every proxy; a host behind its proxy cannot be reached."""
        inner, requests = httpx.ASGITransport(self.app), self.requests

        class Transport(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request):
                if request.url.host != "ehr.example":
                    raise httpx.ConnectError("no such host", request=request)
                requests.append(request)
                return await inner.handle_async_request(request)

        return Transport()

    async def sleep(self, seconds: float) -> None:
        """The waiting of a client."""
        self.now += seconds

    def http(self, **headers) -> httpx.AsyncClient:
        """A client that knows nothing of this vendor."""
        return httpx.AsyncClient(transport=self.transport(), base_url=self.base_url, auth=Bearer(self.token), headers=headers)

    def partner(self, folder: Path, **changes):
        """The partner that is this EHR by its shape, with some keys of partner.yaml changed."""
        tree = {**OWN, "shape": self.shape, "base_url": self.base_url}
        if self.shape in PARAMETERS:
            tree["parameters"] = PARAMETERS[self.shape]
            del tree["base_url"]  # the shape knows it
        if self.habits["chart"] == "hospital":
            tree["organization"] = {"id": "lakeside", "name": "Lakeside Hospital", "npi": "1234567893"}
        for key, value in changes.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) and key != "panel" else value
        path = folder / f"{self.shape}-partner" / "partner.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(tree))
        return load_partner(path, SERVER + urlsplit(load_partner(path).base_url).path)

    def client(self, folder: Path, **changes) -> PartnerClient:
        """The hub's client for that partner."""
        return PartnerClient(self.partner(folder, **changes), Bearer(self.token), transport=self.transport(), sleep=self.sleep)


@cache
def _population(humans: int):
    return population(7, humans, date(2026, 3, 2))
