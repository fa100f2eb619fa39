"""The hub's own pages as an app that an EHR launches: from the EHR's screen, or started here, to somebody whom the EHR vouches for.

https://hl7.org/fhir/smart-app-launch/app-launch.html and
https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html. Only the address of a known partner is ever asked anything, whatever
`iss` says. Each partner has its own address of return, so an answer of one is never taken for that of another
(https://www.rfc-editor.org/rfc/rfc9700#section-4.4.2). The access token is not kept: what the hub reads, it reads as a backend service.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from fhircm.access.roles import roles
from fhircm.exchange import human
from fhircm.exchange.authorization_code import AnswerRefused, Started, begin, code_in, redemption
from fhircm.exchange.backend_auth import TokenRefused, answered
from fhircm.exchange.client_keys import KeyWrong, signing_keys
from fhircm.exchange.credentials import ALGORITHMS as CLIENT_ALGORITHMS
from fhircm.exchange.credentials import METHODS, Secret, read_secret
from fhircm.exchange.discovery import Send, SmartConfiguration, discovered, get, is_safe, sending
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerUnavailable
from fhircm.exchange.id_token import Expected, IdTokenRefused, verified
from fhircm.exchange.jwks import JwksUnavailable, PublishedKeys
from fhircm.exchange.mapping import Source, hub_id, source
from fhircm.exchange.proof import Client
from fhircm.exchange.yaml_keys import Keys
from fhircm.store.resources import Store

if TYPE_CHECKING:
    from fhircm.exchange.partners import Partner

ALGORITHMS = ("RS256", "RS384", "ES256", "ES384")  # of id_tokens
NOT_COPIED = "record-not-copied"
_KEPT = 3600.0  # seconds that discovery is good for
_TIMEOUT = 10.0
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # https://www.rfc-editor.org/rfc/rfc6749#section-3.3
_PEOPLE = ("Practitioner", "PractitionerRole")


class LaunchRefused(Exception):
    """The EHR vouches for nobody, or not in a way that can be believed; the message is for the log of the operator."""


class LaunchUnavailable(Exception):
    """The EHR does not answer as it should; the message is for the log of the operator."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The `launch` of a partner.yaml: as which app the EHR registered the hub, and which roles somebody new gets who comes from there."""

    client_id: str
    method: str = "none"  # or one of METHODS
    algorithm: str | None = None  # of assertions; None: the one of partner.yaml's top level
    secret: Secret | None = None
    scopes: tuple[str, ...] = ("launch", "openid", "fhirUser")
    roles: frozenset[str] = frozenset()


def read(keys: Keys) -> Registration | None:
    """The `launch` of a partner.yaml; None without one. Raises YamlWrong."""
    section = keys.keys("launch", "a mapping: client_id, method, secret, scopes, roles", {})
    if not section.names:
        return None
    method = section.choice("method", ("none", *METHODS), "none")
    registration = Registration(
        client_id=section.text("client_id", "the id under which the EHR registered the app", re.compile(r"\S+")),
        method=method,
        algorithm=section.choice("algorithm", CLIENT_ALGORITHMS, None),
        secret=read_secret(section, needed=method.startswith("client_secret")),
        scopes=tuple(_list(section, "scopes", _SCOPE, ["launch", "openid", "fhirUser"])),
        roles=frozenset(_list(section, "roles", re.compile(r"[a-z][a-z-]*"), [])),
    )
    if missing := [scope for scope in ("openid", "fhirUser") if scope not in registration.scopes]:
        section.wrong("scopes", f"must hold {' and '.join(missing)}: without, the EHR does not say who somebody is")
    if wrong := sorted(registration.roles - _given_by_ehrs()):
        may = ", ".join(sorted(_given_by_ehrs()))
        section.wrong("roles", f"must not hold {', '.join(wrong)}: an EHR may give these roles only: {may}")
    section.done()
    return registration


@dataclass(frozen=True, slots=True)
class Launched:
    """Who was launched by an EHR, and for whom: `user` and `patient` are at the partner. `banner`: whether the page must name the patient."""

    partner: Partner
    subject: str
    user: Source | None
    name: str
    patient: str | None
    banner: bool

    @property
    def issuer(self) -> str:
        """By what, with the subject, somebody is known again: by the partner, for two may use one identity provider."""
        return f"partner:{self.partner.name}"

    @property
    def organization(self) -> str:
        """The partner's Organization at the hub."""
        return f"Organization/{hub_id(self.partner.base_url, f'Organization/{self.partner.organization.id}')}"

    @property
    def fhir_user(self) -> str | None:
        """Who that is at the hub, whether or not the copy of it came already."""
        return f"{self.user.type}/{hub_id(self.partner.base_url, str(self.user))}" if self.user else None

    @property
    def hub_patient(self) -> str | None:
        """The id at the hub of the patient in context, whether or not the copy of it came already."""
        return hub_id(self.partner.base_url, f"Patient/{self.patient}") if self.patient else None


class EhrLaunches:
    """Launches by the partners that have a `launch` section. `base_url` is the hub's own; `now` tells seconds since the epoch."""

    def __init__(
        self,
        partners: Sequence[Partner],
        keys_dir: Path,
        base_url: str,
        now: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._partners = {partner.name: partner for partner in partners if partner.launch is not None}
        self._keys_dir, self._base_url, self._now, self._transport = keys_dir, base_url, now, transport
        self._published = PublishedKeys(allow_private=True)
        self._found: dict[str, tuple[float, SmartConfiguration]] = {}

    def by_address(self, iss: str) -> Partner | None:
        """The partner whose FHIR API is at exactly this address; a slash at its end is forgiven."""
        return next((one for one in self._partners.values() if iss in (one.base_url, f"{one.base_url}/")), None)

    def by_name(self, name: str) -> Partner | None:
        """The partner of this name."""
        return self._partners.get(name)

    def names(self) -> list[tuple[str, str]]:
        """The partners by name, with what their organisations are called."""
        return [(one.name, one.organization.name) for one in self._partners.values()]

    def address_of_return(self, partner: Partner) -> str:
        """To where the EHR sends the browser back: to be registered there."""
        return f"{self._base_url}/launch/callback/{partner.name}"

    async def start(self, partner: Partner, launch: str | None, iss: str | None = None) -> Started:
        """Begin: an EHR launch with its `launch` and `iss`, a standalone one without. Raises LaunchUnavailable."""
        told = _registration(partner)
        async with sending(_TIMEOUT, self._transport) as send:
            about = await self._about(send, partner)
        if about.authorization_endpoint is None:
            raise LaunchUnavailable(f"{partner.name} names no authorization_endpoint that can be used")
        scopes = [scope for scope in told.scopes if scope != "launch"]
        asked = {
            "client_id": told.client_id,
            "redirect_uri": self.address_of_return(partner),
            "scope": " ".join(["launch", *scopes] if launch is not None else scopes),
            "aud": iss or partner.base_url,
            **({"launch": launch} if launch is not None else {}),
        }
        started = begin(about.authorization_endpoint, asked)
        return Started(started.url, {**started.kept, "partner": partner.name})

    async def finish(self, kept: Mapping[str, str], answer: Mapping[str, str]) -> Launched:
        """Whom the EHR vouches for, from the parameters of its answer. Raises LaunchRefused, LaunchUnavailable."""
        partner = self._partners.get(kept["partner"])
        if partner is None:
            raise LaunchRefused("The partner is not known any more")
        try:
            async with sending(_TIMEOUT, self._transport) as send:
                about = await self._about(send, partner)
                issuer = about.issuer or partner.base_url
                code = code_in(answer, kept, issuer, names_issuer=about.names_issuer)
                tokens = await self._redeem(send, partner, about, code, kept)
                jwks = about.jwks_uri or await self._jwks_uri(send, partner, issuer)
            expected = Expected(issuer, _registration(partner).client_id, kept["nonce"], jwks, ALGORITHMS)
            claims = await verified(tokens.get("id_token"), expected, self._published, self._now())
        except (AnswerRefused, IdTokenRefused, TokenRefused) as error:
            raise LaunchRefused(str(error)) from None
        except (JwksUnavailable, KeyWrong, PartnerUnavailable, PartnerAnswerBroken) as error:
            raise LaunchUnavailable(str(error)) from None
        return _launched(partner, tokens, claims)

    async def _about(self, send: Send, partner: Partner) -> SmartConfiguration:
        until, about = self._found.get(partner.name, (0.0, None))
        if about is None or self._now() >= until:
            try:
                about = await discovered(send, partner.base_url)
            except (PartnerUnavailable, PartnerAnswerBroken) as error:
                raise LaunchUnavailable(str(error)) from None
            self._found[partner.name] = self._now() + _KEPT, about
        return about

    async def _redeem(
        self, send: Send, partner: Partner, about: SmartConfiguration, code: str, kept: Mapping[str, str]
    ) -> dict[str, Any]:
        told = _registration(partner)
        assert about.token_endpoint is not None
        keys = partial(signing_keys, self._keys_dir, partner.name, told.algorithm or partner.algorithm)
        client = Client(told.client_id, told.method, keys, told.secret.read if told.secret else str)
        fields, headers = client.proof(about.token_endpoint)
        form = redemption(code, self.address_of_return(partner), kept) | fields
        headers = {"Accept": "application/json", **headers}
        return answered(await send(httpx.Request("POST", about.token_endpoint, data=form, headers=headers)))

    async def _jwks_uri(self, send: Send, partner: Partner, issuer: str) -> str:
        """Where the issuer's keys are, when the SMART configuration does not say so. Raises LaunchUnavailable."""
        answer = await send(get(f"{issuer.rstrip('/')}/.well-known/openid-configuration"))
        try:
            tree = json.loads(answer.content) if answer.status_code == 200 else {}
        except (ValueError, RecursionError):
            tree = {}
        jwks = tree.get("jwks_uri") if isinstance(tree, dict) and tree.get("issuer") == issuer else None
        if not is_safe(jwks, partner.base_url):
            raise LaunchUnavailable(f"{partner.name} does not say where the keys are that sign its id_tokens")
        return str(jwks)


def _launched(partner: Partner, tokens: Mapping[str, Any], claims: Mapping[str, Any]) -> Launched:
    user = claims.get("fhirUser", claims.get("profile"))  # `profile` is how SMART 1.0 said the same
    person = source(partner.base_url, user) if isinstance(user, str) else None
    patient = tokens.get("patient")
    if patient is not None and not (isinstance(patient, str) and _ID.fullmatch(patient)):
        raise LaunchRefused("The patient in context is no id")
    name = claims.get("name")
    told = "".join(letter for letter in name[:200] if letter.isprintable()).strip() if isinstance(name, str) else ""
    banner = tokens.get("need_patient_banner") is not False
    return Launched(partner, claims["sub"], person if person and person.type in _PEOPLE else None, told, patient, banner)


async def ask_for(store: Store, partner: Partner, patient: str, owner: str) -> None:
    """Tell a human that somebody opened a patient of a partner whom the hub does not copy. `owner` is the organisation that coordinates."""
    reason = (
        f"Patient/{patient} of {partner.organization.name} was opened from its EHR, and is not copied: ask"
        f" {partner.organization.name} to add the patient to its panel; the next pull brings the record"
    )
    parts = (NOT_COPIED, partner.name, patient)
    told = await human.tell(store, parts, NOT_COPIED, "A record is asked for", reason, focus=None, patient=None, owner=owner)
    if told:
        await store.transact(told, origin="hub")


def _registration(partner: Partner) -> Registration:
    assert partner.launch is not None
    return partner.launch


def _given_by_ehrs() -> frozenset[str]:
    """The roles of people who see a record because they care for the patient: no EHR makes an administrator."""
    return frozenset(code for code, role in roles().items() if role.reach == "relationship" and role.pages == ("worklist",))


def _list(keys: Keys, name: str, pattern: re.Pattern[str], default: list[str]) -> list[str]:
    listed = keys.take(name, list, "a list of texts", default)
    for number, one in enumerate(listed):
        if not isinstance(one, str) or not pattern.fullmatch(one):
            keys.wrong(f"{name}[{number}]", "is not one")
    return listed
