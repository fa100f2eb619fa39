"""Who somebody is here whom the organisation's provider, or a partner's EHR, vouches for; somebody new as the settings or partner.yaml say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhircm.access.logins import new_id
from fhircm.exchange.launch import Launched
from fhircm.fhir.references import parse_reference
from fhircm.smart.provider import Identity, ProviderSettings
from fhircm.store.logins import Login, Logins, UsernameTaken

_PEOPLE = frozenset({"Practitioner", "PractitionerRole", "Patient", "RelatedPerson", "Person"})


class NotKnown(Exception):
    """The provider vouches for somebody whom the hub does not let in; the message is fit to be shown."""


async def login_of(identity: Identity, settings: ProviderSettings, logins: Logins, now: int) -> Login:
    """Who this is here; roles that the provider's claims name replace those that are kept. Raises NotKnown."""
    login = await logins.by_identity(identity.issuer, identity.subject)
    if login is None:
        login = await _provisioned(identity, settings, logins, now)
    if login.disabled:
        raise NotKnown("You may not sign in here at the moment. Ask your administrator.")
    told = _roles(identity.claims, settings)
    if settings.roles and told != login.roles:
        if not told:
            raise NotKnown("Your organisation gives you no role here. Ask your administrator.")
        await logins.set_roles(login.id, told)
        login = await logins.get(login.id) or login
    return login


async def _provisioned(identity: Identity, settings: ProviderSettings, logins: Logins, now: int) -> Login:
    if not settings.provision:
        raise NotKnown("Your organisation knows you, but you have no account here yet. Ask your administrator.")
    claims, roles = identity.claims, _roles(identity.claims, settings)
    user = _user(claims.get(settings.user_claim))
    if not roles or user is None:
        raise NotKnown("Your organisation does not say who you are here, or in which role. Ask your administrator.")
    named = claims.get(settings.name_claim)
    name = "".join(letter for letter in named[:200] if letter.isprintable()).strip() if isinstance(named, str) else ""
    known = (identity.issuer, identity.subject)
    return await _added(logins, known, name or user, user, settings.organization, roles, now)


async def launched_login(launched: Launched, copied_name: str, logins: Logins, now: int) -> Login:
    """Who this is here whom an EHR launched; somebody new gets the roles of partner.yaml. Raises NotKnown.

    Later on the roles are the administrator's. `copied_name`: by the hub's copy of the practitioner, empty without one.
    """
    partner, known = launched.partner, (launched.issuer, launched.subject)
    login = await logins.by_identity(*known)
    if login is None:
        user, registration = launched.fhir_user, partner.launch
        if user is None or registration is None:
            raise NotKnown("The EHR does not say which practitioner you are (fhirUser). Ask your administrator.")
        name = launched.name or copied_name or f"Somebody of {partner.organization.name}"
        login = await _added(logins, known, name, user, launched.organization, registration.roles, now)
    if login.disabled:
        raise NotKnown("You may not sign in here at the moment. Ask your administrator.")
    if not login.roles:
        raise NotKnown(
            f"You are known here now, as “{login.name}” of {partner.organization.name}, but nobody gave you a role yet."
            f" Ask your administrator: in the console, under people, you are {login.id}. Then open this again from the EHR."
        )
    return login


async def _added(
    logins: Logins, known: tuple[str, str], name: str, user: str, organization: str, roles: frozenset[str], now: int
) -> Login:
    issuer, subject = known
    login = Login(new_id(), None, name, user, organization, roles, issuer, subject, created=now)
    try:
        await logins.add(login)
    except UsernameTaken:  # another request made it just now
        return await logins.by_identity(issuer, subject) or login
    return login


def _roles(claims: Mapping[str, Any], settings: ProviderSettings) -> frozenset[str]:
    told = claims.get(settings.roles_claim)
    values = told if isinstance(told, list) else [told]
    return frozenset(role for value in values if isinstance(value, str) and (role := (settings.roles or {}).get(value)))


def _user(value: Any) -> str | None:
    """The reference of a person, from `Practitioner/1` or the whole address of it."""
    if not isinstance(value, str):
        return None
    type, _, id = value.rpartition("/")
    reference = f"{type.rpartition('/')[2]}/{id}"
    found = parse_reference(reference)
    return reference if found is not None and found.type in _PEOPLE and found.id == id else None
