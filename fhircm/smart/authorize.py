"""The authorization endpoint: an app asks for access, a person decides, and the app gets a code.

https://hl7.org/fhir/smart-app-launch/app-launch.html#obtain-authorization-code, https://www.rfc-editor.org/rfc/rfc6749#section-4.1,
https://www.rfc-editor.org/rfc/rfc7636 (PKCE), https://www.rfc-editor.org/rfc/rfc9207 (iss) and https://www.rfc-editor.org/rfc/rfc9700.
Pages for people are not made here: they show what `pending` tells, and end in `complete` or `refuse`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlencode

from fhircm.smart.clients import Client, find
from fhircm.smart.scopes import for_people, within, without
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grant, Grants

WAITS = 600  # seconds that a person has to decide
CODE_LIFETIME = 60  # seconds; https://hl7.org/fhir/smart-app-launch/app-launch.html#response-4
ONLINE = 86_400  # seconds after which also a session that never ends has to be asked again
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")  # a SHA-256 in base64url
_PROMPTS = ("none", "login", "consent", "select_account")
_LONG = 2048  # characters of a state or nonce
REASONS = ("access_denied", "login_required", "consent_required", "interaction_required", "server_error", "unauthorized_client")


class AuthorizationWrong(Exception):
    """The request is answered where it came from and redirected nowhere: who sent it, or where to answer it, is not certain."""


class RequestGone(Exception):
    """The request of the app was decided already, or waited too long."""


class Person(Protocol):
    """Who decides."""

    @property
    def id(self) -> str: ...
    @property
    def fhir_user(self) -> str: ...
    @property
    def organization(self) -> str: ...
    @property
    def roles(self) -> Iterable[str]: ...


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that is good and waits for a person.

    `scopes`: what the app may get. `context`: what the launch told. `login`: the person it was launched for, when that is certain.
    """

    id: str
    client_id: str
    redirect_uri: str
    state: str
    scopes: tuple[str, ...]
    code_challenge: str
    nonce: str | None
    context: Mapping[str, Any]
    login: str | None
    needs_patient: bool
    needs_encounter: bool
    prompt: tuple[str, ...]
    max_age: int | None
    asked: int

    def needs_sign_in(self, signed_in: int | None) -> bool:
        """Whether a person who signed in at this time (None: did not) must do so again for this request."""
        if signed_in is None:
            return True
        if "login" in self.prompt and signed_in < self.asked:
            return True
        return self.max_age is not None and signed_in + self.max_age < int(time.time())


@dataclass(frozen=True)
class Authorizations:
    """Checks requests of apps, and ends them with a code or an error.

    `issuer` is the address of the hub, `fhir_base` that of its FHIR API. A grant with `offline_access` lives `offline` seconds, the
    tokens of others `lifetime` seconds.
    """

    issuer: str
    fhir_base: str
    grants: Grants
    credentials: Credentials
    offline: int = field(default=90 * 86_400)
    lifetime: int = field(default=900)

    async def ask(self, parameters: Sequence[tuple[str, str]]) -> str:
        """Where to send the browser of an app that asks: to the page where the person decides, or back with an error.

        Raises AuthorizationWrong.
        """
        asked = dict(parameters)
        twice = {name for name, _ in parameters if sum(other == name for other, _ in parameters) > 1}
        if twice & {"client_id", "redirect_uri"}:
            raise AuthorizationWrong("client_id and redirect_uri are given once")
        client = await find(self.credentials, asked.get("client_id"))
        if client is None:
            raise AuthorizationWrong("The app is not registered here, or may no longer be used")
        redirect_uri = asked.get("redirect_uri", "")
        if not client.redirects_to(redirect_uri):
            raise AuthorizationWrong("The app asks to be answered at an address that it is not registered with")
        back = {"redirect_uri": redirect_uri, "state": asked.get("state")}
        try:
            if twice:
                raise _Wrong("invalid_request", "A parameter is given more than once")
            return await self._accepted(client, asked)
        except _Wrong as error:
            return self._error(back, error.error, error.description)

    async def pending(self, request_id: str) -> Pending | None:
        """A request that waits for a person, or None."""
        payload = await self.grants.request(request_id, int(time.time()))
        if payload is None:
            return None
        lists = {"scopes": tuple(payload["scopes"]), "prompt": tuple(payload["prompt"])}
        return Pending(**{**payload, **lists, "id": request_id})

    async def complete(
        self,
        request_id: str,
        login: Person,
        *,
        patient: str | None = None,
        encounter: str | None = None,
        scopes: Iterable[str],
        session_digest: bytes,
    ) -> str:
        """Where to send the browser of a person who agreed to these scopes: back to the app, with a code.

        Raises RequestGone.
        """
        pending = await self.pending(request_id)
        if pending is None:
            raise RequestGone
        now = int(time.time())
        client = await find(self.credentials, pending.client_id)
        signed_in = await self.grants.signed_in(session_digest, login.id, now)
        if client is None:
            return await self.refuse(request_id, "unauthorized_client")
        if pending.login not in (None, login.id):
            return await self.refuse(request_id, "access_denied")
        if pending.needs_sign_in(signed_in):
            return await self.refuse(request_id, "login_required")
        context = _context(pending, login, patient, encounter)
        agreed = frozenset(scopes)
        kept = within(_fitting([scope for scope in pending.scopes if scope in agreed], context), login.roles)
        if not kept:
            return await self.refuse(request_id, "access_denied")
        code = secrets.token_urlsafe(32)
        expires = now + self._life(kept)
        grant = Grant(secrets.token_hex(16), client.id, login.id, " ".join(kept), context, now, expires)
        payload = {
            "redirect_uri": pending.redirect_uri,
            "code_challenge": pending.code_challenge,
            "nonce": pending.nonce,
            "auth_time": signed_in,
            "session": session_digest.hex(),
        }
        if not await self.grants.decide(request_id, grant, code, payload, now + CODE_LIFETIME, now):
            raise RequestGone
        return self._answer(pending.redirect_uri, {"code": code, "state": pending.state})

    async def refuse(self, request_id: str, error: str) -> str:
        """Where to send the browser of a person who did not agree (or could not): back to the app, with an error. Raises RequestGone."""
        if error not in REASONS:
            raise ValueError(f"{error} is none of {', '.join(REASONS)}")
        payload = await self.grants.drop_request(request_id, int(time.time()))
        if payload is None:
            raise RequestGone
        return self._error(payload, error, None)

    async def _accepted(self, client: Client, asked: Mapping[str, str]) -> str:
        """Keep a request whose client and redirect URI are certain, and return the page where a person decides. Raises _Wrong."""
        _check_form(client, asked)
        if _resource(asked).rstrip("/") != self.fhir_base:
            raise _Wrong("invalid_target" if "aud" not in asked else "invalid_request", f"aud must be {self.fhir_base}")
        prompt = tuple(asked.get("prompt", "").split())
        if any(one not in _PROMPTS for one in prompt) or ("none" in prompt and len(prompt) > 1):
            raise _Wrong("invalid_request", f"prompt is one of {', '.join(_PROMPTS)}")
        max_age = asked.get("max_age", "")
        if max_age and not (max_age.isascii() and max_age.isdigit() and len(max_age) < 10):
            raise _Wrong("invalid_request", "max_age is a number of seconds")
        scopes = for_people(asked.get("scope", ""), client.scope)
        login, context = await self._launch(client, asked, scopes)
        if "launch" in scopes and "launch" not in asked:
            scopes.remove("launch")
        if not [scope for scope in scopes if scope not in ("offline_access", "online_access")]:
            raise _Wrong("invalid_scope", "None of the requested scopes can be granted to this app")
        about_patient = "launch/patient" in scopes or any(scope.startswith("patient/") for scope in scopes)
        id, now = secrets.token_urlsafe(32), int(time.time())
        payload = {
            "client_id": client.id,
            "redirect_uri": asked["redirect_uri"],
            "state": asked["state"],
            "scopes": scopes,
            "code_challenge": asked["code_challenge"],
            "nonce": asked.get("nonce"),
            "context": context,
            "login": login,
            "needs_patient": about_patient and "patient" not in context,
            "needs_encounter": "launch/encounter" in scopes and "encounter" not in context,
            "prompt": prompt,
            "max_age": int(max_age) if max_age else None,
            "asked": now,
        }
        await self.grants.ask(id, client.id, payload, now + WAITS, now)
        return f"{self.issuer}/oauth/authorize/{id}"

    async def _launch(self, client: Client, asked: Mapping[str, str], scopes: list[str]) -> tuple[str | None, dict[str, Any]]:
        """The person and the context that a launch stands for. Raises _Wrong."""
        if "launch" not in asked:
            return None, {}
        if "launch" not in scopes:
            raise _Wrong("invalid_scope", "A launch needs the scope launch, and the app registered with it")
        found = await self.grants.take_launch(asked["launch"], int(time.time()))
        if found is None or found["client_id"] != client.id:
            raise _Wrong(
                "invalid_request", "The launch is not known: it was used, is older than five minutes, or is of another app"
            )
        return found["login"], found["context"]

    def _life(self, scopes: Sequence[str]) -> int:
        """How long a grant lives, in seconds."""
        if "offline_access" in scopes:
            return self.offline
        return ONLINE if "online_access" in scopes else CODE_LIFETIME + self.lifetime

    def _answer(self, redirect_uri: str, told: Mapping[str, str]) -> str:
        """https://www.rfc-editor.org/rfc/rfc9207: whose answer this is, so that an app of several servers does not mix them up."""
        return f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode({**told, 'iss': self.issuer})}"

    def _error(self, back: Mapping[str, Any], error: str, description: str | None) -> str:
        told = {"error": error, "error_description": description, "state": back.get("state")}
        return self._answer(back["redirect_uri"], {name: value for name, value in told.items() if value is not None})


class _Wrong(Exception):
    """The request is not granted, and the app is told; `error` is one of RFC 6749 section 4.1.2.1."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description


def _check_form(client: Client, asked: Mapping[str, str]) -> None:
    """Raises _Wrong for what every request must have, and for what is not supported."""
    if "authorization_code" not in client.grant_types:
        raise _Wrong("unauthorized_client", "The app is not registered to sign people in")
    if "request" in asked or "request_uri" in asked:
        raise _Wrong(
            "request_not_supported" if "request" in asked else "request_uri_not_supported", "Request objects are not taken"
        )
    if asked.get("response_type") != "code":
        error = "unsupported_response_type" if "response_type" in asked else "invalid_request"
        raise _Wrong(error, "response_type must be code")
    if asked.get("response_mode", "query") != "query":
        raise _Wrong("invalid_request", "response_mode must be query")
    if not asked.get("state"):
        raise _Wrong("invalid_request", "state is needed")
    if any(len(asked.get(name, "")) > _LONG for name in ("state", "nonce", "launch")):
        raise _Wrong("invalid_request", f"state, nonce and launch have at most {_LONG} characters")
    if asked.get("code_challenge_method") != "S256":
        raise _Wrong("invalid_request", "code_challenge_method must be S256")
    if not _CHALLENGE.fullmatch(asked.get("code_challenge", "")):
        raise _Wrong("invalid_request", "code_challenge must be a SHA-256 in base64url")


def _resource(asked: Mapping[str, str]) -> str:
    """For whose data the app asks: `resource` is a synonym of `aud`, and must not contradict it."""
    aud = asked.get("aud") or asked.get("resource", "")
    return aud if asked.get("resource", aud) == aud else ""


def _context(pending: Pending, login: Person, patient: str | None, encounter: str | None) -> dict[str, Any]:
    """What a token is about: what the launch told goes before what the person chose."""
    context = {"login": login.id, "user": login.fhir_user, **pending.context}
    kind, _, own = login.fhir_user.partition("/")
    chosen = own if kind == "Patient" else patient  # a patient is about nobody else
    if pending.needs_patient and chosen:
        context["patient"] = chosen
    if kind == "Patient" and context.get("patient", own) != own:
        del context["patient"]
    if pending.needs_encounter and encounter:
        context["encounter"] = encounter
    if pending.login is not None or pending.context:
        context.setdefault("tenant", login.organization.partition("/")[2])
    return context


def _fitting(scopes: list[str], context: Mapping[str, Any]) -> list[str]:
    """The scopes without those that need a context that there is not."""
    if "patient" not in context:
        scopes = [scope for scope in without(scopes, "patient") if scope != "launch/patient"]
    if "encounter" not in context:
        scopes = [scope for scope in scopes if scope != "launch/encounter"]
    return scopes
