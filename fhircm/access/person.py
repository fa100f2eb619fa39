"""A person who is signed in to the hub's own pages, as a principal: what their roles allow, with no app between."""

from __future__ import annotations

from fhircm.access.principal import Principal, within_roles
from fhircm.access.scopes import parse_scopes
from fhircm.store.logins import Login
from fhircm.store.principals import Principals

PAGES = "hub"  # in place of a client


async def principal_of(login: Login, principals: Principals, patient: str | None = None) -> Principal:
    """Who somebody is to the store. A patient is seen with the own record only, whatever the roles.

    `patient`: the id of the one Patient that an EHR launched the session for; of others nothing is seen then, whatever the roles allow.
    """
    kind, _, id = login.fhir_user.partition("/")
    known_as = await principals.known_as([name for name in (login.fhir_user, login.organization) if name])
    return Principal(
        client_id=PAGES,
        scopes=within_roles(parse_scopes("patient/*.cruds" if patient else "user/*.cruds"), login.roles),
        roles=login.roles,
        organization=login.organization or None,
        user=login.fhir_user,
        login=login.id,
        patient=id if kind == "Patient" else patient,
        known_as=known_as,
        relationships=await principals.count_relationships(known_as),
    )
