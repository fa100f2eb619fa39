"""Apps of every kind, people who let them in, and the steps between them, over the real application."""

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from fhircm.smart.clients import hashed
from tests.rest.signing import BASE, KEYS, assertion

FHIR = f"{BASE}/fhir"
BACK = "https://app.example/back"
VERIFIER = "a-verifier-of-at-least-forty-three-characters"
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
SCOPES = (
    "openid fhirUser profile launch launch/patient launch/encounter offline_access online_access patient/*.cruds user/*.cruds"
)
SECRET = "correct-horse"
JWKS = {"keys": [key.as_dict(private=False) for key in KEYS.values()]}
APP = {
    "client_name": "An app",
    "scope": SCOPES,
    "redirect_uris": [BACK],
    "token_endpoint_auth_method": "none",
    "grant_types": ["authorization_code", "refresh_token"],
    "id_token_signed_response_alg": "ES384",
}
CLIENTS = {
    "public": APP | {"launch_uri": "https://app.example/launch"},
    "other": APP | {"redirect_uris": ["https://other.example/back"], "launch_uri": "https://other.example/launch"},
    "basic": APP | {"token_endpoint_auth_method": "client_secret_basic", "client_secret": hashed(SECRET)},
    "post": APP | {"token_endpoint_auth_method": "client_secret_post", "client_secret": hashed(SECRET)},
    "signed": APP | {"token_endpoint_auth_method": "private_key_jwt", "jwks": JWKS, "scope": f"{SCOPES} introspect"},
    "app": {"scope": "system/*.cruds introspect launcher", "jwks": JWKS, "roles": ["custodian"]},
}


@dataclass(frozen=True)
class Somebody:
    """A person with a login and a session."""

    id: str
    fhir_user: str
    roles: tuple = ("clinician",)
    organization: str = "Organization/clinic"
    session: bytes = field(default_factory=lambda: secrets.token_bytes(32))


ANNA = Somebody("anna", "Practitioner/anna")
BEN = Somebody("ben", "Practitioner/ben")
PAT = Somebody("pat", "Patient/pat", ("patient",))
PEOPLE = (ANNA, BEN, PAT)


async def settle(database):
    """Put the clients, the people and their sessions into a database."""
    now = int(time.time())
    async with database.writing() as connection:
        for client_id, registration in CLIENTS.items():
            await connection.execute(
                "INSERT INTO client (client_id, registration) VALUES ($1, $2)", client_id, json.dumps(registration)
            )
        for one in PEOPLE:
            await connection.execute(
                "INSERT INTO login (id, username, name, fhir_user, organization, roles, disabled, created)"
                " VALUES ($1, $1, $1, $2, $3, $4, FALSE, $5)",
                one.id,
                one.fhir_user,
                one.organization,
                json.dumps(one.roles),
                now,
            )
            await open_session(connection, one, now)


async def open_session(connection, person, created):
    await connection.execute(
        "INSERT INTO session (digest, login_id, payload, created, last_seen, expires) VALUES ($1, $2, '{}', $3, $3, $4)",
        person.session,
        person.id,
        created,
        created + 8 * 3600,
    )


def told(url):
    """The parameters of an address."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def request(client="public", scope="openid fhirUser launch/patient patient/*.rs", **changes):
    """The parameters of an authorization request; None takes one away."""
    asked = {
        "response_type": "code",
        "client_id": client,
        "redirect_uri": CLIENTS[client]["redirect_uris"][0] if client in CLIENTS else BACK,
        "scope": scope,
        "state": "a-state-that-nobody-guesses",
        "aud": FHIR,
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    } | changes
    return {name: value for name, value in asked.items() if value is not None}


class Hub:
    """The hub as apps and people meet it."""

    def __init__(self, app, http):
        self.app, self.http = app, http

    @property
    def server(self):
        return self.app.state.authorization

    @property
    def database(self):
        return self.app.state.store.database

    async def ask(self, client="public", scope="openid fhirUser launch/patient patient/*.rs", **changes):
        """The answer to an authorization request."""
        return await self.http.get("/oauth/authorize", params=request(client, scope, **changes))

    async def refused(self, *args, **changes):
        """The error that an app is sent back with."""
        answer = await self.ask(*args, **changes)
        assert answer.status_code == 303, answer.text
        assert answer.headers["Location"].startswith(BACK), answer.headers["Location"]
        return told(answer.headers["Location"])["error"]

    def waiting(self, asked):
        """The id of the request that waits for a person."""
        assert asked.headers["Location"].startswith(f"{BASE}/oauth/authorize/"), asked.headers["Location"]
        return asked.headers["Location"].removeprefix(f"{BASE}/oauth/authorize/")

    async def agree(self, asked, person=ANNA, scopes=None, patient="pat", encounter=None):
        """A person agrees; where the browser goes then."""
        assert asked.status_code == 303, asked.text
        id = self.waiting(asked)
        pending = await self.server.authorizations.pending(id)
        assert pending is not None, asked.headers["Location"]
        return await self.server.authorizations.complete(
            id,
            person,
            patient=patient,
            encounter=encounter,
            scopes=pending.scopes if scopes is None else scopes,
            session_digest=person.session,
        )

    async def code(self, client="public", scope="openid fhirUser launch/patient patient/*.rs", person=ANNA, **changes):
        """A code for a client."""
        chosen = {name: changes.pop(name) for name in ("patient", "encounter", "scopes") if name in changes}
        return told(await self.agree(await self.ask(client, scope, **changes), person, **chosen))["code"]

    async def exchange(self, code, client="public", **changes):
        """The answer to a code."""
        form = {"grant_type": "authorization_code", "code": code, "code_verifier": VERIFIER}
        form["redirect_uri"] = CLIENTS[client]["redirect_uris"][0]
        return await self.post("/oauth/token", client, form | changes)

    async def refresh(self, token, client="public", **changes):
        return await self.post("/oauth/token", client, {"grant_type": "refresh_token", "refresh_token": token} | changes)

    async def post(self, path, client, form):
        """A form from a client, which proves who it is in its way."""
        method = CLIENTS[client].get("token_endpoint_auth_method", "private_key_jwt") if client in CLIENTS else "none"
        auth = None
        if method == "client_secret_basic":
            auth = (client, SECRET)
        elif method == "client_secret_post":
            form = {"client_id": client, "client_secret": SECRET} | form
        elif method == "private_key_jwt":
            form = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion(client=client)} | form
        else:
            form = {"client_id": client} | form
        form = {name: value for name, value in form.items() if value is not None}
        return await self.http.post(path, data=form, **({"auth": auth} if auth else {}))

    async def tokens(self, client="public", scope="openid fhirUser launch/patient patient/*.rs", person=ANNA, **changes):
        """The answer to a whole flow."""
        answer = await self.exchange(await self.code(client, scope, person, **changes), client)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def system_token(self, scope):
        answer = await self.post("/oauth/token", "app", {"grant_type": "client_credentials", "scope": scope})
        assert answer.status_code == 200, answer.text
        return answer.json()["access_token"]

    async def introspect(self, token, client="signed"):
        answer = await self.post("/oauth/introspect", client, {"token": token})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def is_good(self, token):
        """Whether the FHIR API takes a token."""
        self.server.tokens.bearer.forget()
        answer = await self.http.get("/fhir/Patient/nobody", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code != 401

    async def forbid(self, sql, *arguments):
        async with self.database.writing() as connection:
            await connection.execute(sql, *arguments)
