"""An EHR that launches the hub: the sandbox's door of apps behind respx, which lies when it is told to."""

from dataclasses import replace
from functools import cache
from time import time as now
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from fhircm.exchange.launch import Registration
from fhircm.exchange.partners import load_partners
from fhircm.sandbox.authorize import App, AppDoor
from fhircm.sandbox.signin import Refused, SignIn

KEY = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)  # takes a while: one for all


@cache
def shipped():
    """A partner to begin from."""
    return load_partners()[0]


class LaunchingEhr:
    """One EHR of a name, at https://<name>.example. `lie` changes claims of its id_tokens, `about` its discovery, `extra` token answers."""

    def __init__(self, name, hub, method="none", secret="", server=None):
        self.name, self.server = name, server or f"https://{name}.example"
        self.base_url = f"{self.server}/fhir"
        app = App("the hub", (f"{hub}/launch/callback/{name}",), method, secret)
        sign_in = SignIn("the hub", self.no_keys, f"{self.server}/oauth2/token", "RS384", "v2", 300)
        self.now = now()
        self.door = AppDoor(app, sign_in, self.server, self.base_url, now=lambda: self.now, key=KEY)
        self.door.id_token = self.id_token
        self.lie, self.about, self.extra, self.key, self.header = {}, {}, {}, None, {}
        self.asked, self.down, self.token = [], False, None

    async def no_keys(self):
        return []

    def mount(self, network):
        network.route(host=urlsplit(self.server).hostname).mock(side_effect=self.answer)

    async def answer(self, request):
        """What the hub hears from it."""
        self.asked.append(request)
        if self.down:
            raise httpx.ConnectError("down")
        async with self.screen() as http:
            return await http.request(request.method, request.url.path, content=request.content, headers=request.headers)

    @property
    def app(self):
        """The EHR itself."""
        return Starlette(
            routes=[
                *self.door.routes(),
                Route("/fhir/.well-known/smart-configuration", self._configuration),
                Route("/.well-known/openid-configuration", self._openid),
                Route("/oauth2/token", self._token, methods=["POST"]),
            ]
        )

    async def _configuration(self, _):
        told = self.door.configuration() | {"token_endpoint": f"{self.server}/oauth2/token"} | self.about
        return JSONResponse({name: value for name, value in told.items() if value is not None})

    async def _openid(self, _):
        return JSONResponse({"issuer": self.server, "jwks_uri": f"{self.server}/oauth2/jwks"})

    async def _token(self, request):
        form = dict(parse_qsl((await request.body()).decode()))
        try:
            answer = await self.door.token(form, request.headers.get("authorization", ""))
        except Refused as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(answer | self.extra)

    def screen(self):
        """The EHR over HTTP, without a browser."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=self.server)

    def id_token(self, asked, user, names_user):
        """As the door makes it, with the lies."""
        if self.token is not None:
            return self.token
        honest = jwt.decode(AppDoor.id_token(self.door, asked, user, names_user), self.door.key, algorithms=["RS256"]).claims
        claims = {name: value for name, value in (honest | self.lie).items() if value is not None}
        key = self.key or self.door.key
        header = {"alg": "RS256", "kid": self.door.key.kid} | self.header
        return jwt.encode(header, claims, key, algorithms=[header["alg"]])

    async def authorized(self, url):
        """The browser goes to the authorization endpoint: where it is sent then."""
        parts = urlsplit(url)
        assert f"{parts.scheme}://{parts.netloc}" == self.server
        async with self.screen() as http:
            answer = await http.get(f"{parts.path}?{parts.query}")
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def partner(self, **registration):
        """The hub's partner that this EHR is."""
        told = {"client_id": "the hub", "roles": frozenset({"clinician"}), **registration}
        return replace(shipped(), name=self.name, base_url=self.base_url, launch=Registration(**told))


def query(url):
    """The parameters of an address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
