"""Who somebody is here whom the organisation's provider vouches for; somebody new is let in when the settings say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhircm.access.logins import new_id
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
    login = Login(
        id=new_id(),
        username=None,
        name=name or user,
        fhir_user=user,
        organization=settings.organization,
        roles=roles,
        issuer=identity.issuer,
        subject=identity.subject,
        created=now,
    )
    try:
        await logins.add(login)
    except UsernameTaken:  # another request made it just now
        return await logins.by_identity(identity.issuer, identity.subject) or login
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
