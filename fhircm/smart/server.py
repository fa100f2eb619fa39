"""The parts of the authorization server, put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fhircm.access.bearer import Bearer
from fhircm.access.sealing import Seal
from fhircm.exchange.jwks import PublishedKeys
from fhircm.smart.authorize import Authorizations
from fhircm.smart.client_auth import ClientAuthentication
from fhircm.smart.identity import Identities
from fhircm.smart.introspect import Introspection
from fhircm.smart.keys import SigningKeys
from fhircm.smart.launch import Launches
from fhircm.smart.register import Registrations
from fhircm.smart.revoke import Revocation
from fhircm.smart.token import TokenEndpoint
from fhircm.store.credentials import Credentials
from fhircm.store.database import Database
from fhircm.store.grants import Grants
from fhircm.store.principals import Principals

SELF_REGISTERED = (
    "openid fhirUser profile launch launch/patient launch/encounter offline_access online_access patient/*.rs user/*.rs"
)


@dataclass(frozen=True)
class SmartSettings:
    """`access_token_lifetime`: seconds that a token of an app is good for; `refresh_lifetime`: seconds of a grant with offline_access.

    `registration_scopes`: what clients that register themselves may get.
    """

    access_token_lifetime: int = 900
    refresh_lifetime: int = 90 * 86_400
    registration_scopes: str = SELF_REGISTERED
    allow_private_jwks: bool = False


@dataclass(frozen=True)
class AuthorizationServer:
    """What answers below /oauth."""

    tokens: TokenEndpoint
    authorizations: Authorizations
    introspection: Introspection
    revocation: Revocation
    registrations: Registrations
    launches: Launches
    keys: SigningKeys


def authorization_server(
    database: Database, bearer: Bearer, keys_dir: Path, base_url: str, settings: SmartSettings
) -> AuthorizationServer:
    """The authorization server at `base_url`, without a slash at its end."""
    fhir_base = f"{base_url}/fhir"
    credentials, grants, principals = Credentials(database), Grants(database), Principals(database)
    published = PublishedKeys(allow_private=settings.allow_private_jwks)
    authentication = ClientAuthentication(f"{base_url}/oauth/token", credentials, published)
    keys = SigningKeys(database, Seal.open(keys_dir))
    identities = Identities(base_url, fhir_base, keys)
    return AuthorizationServer(
        TokenEndpoint(authentication, bearer, grants, identities, settings.access_token_lifetime),
        Authorizations(base_url, fhir_base, grants, credentials, settings.refresh_lifetime, settings.access_token_lifetime),
        Introspection(authentication, principals, grants, identities),
        Revocation(authentication, grants, bearer),
        Registrations(
            f"{base_url}/oauth/register", settings.registration_scopes, credentials, grants, settings.allow_private_jwks
        ),
        Launches(base_url, fhir_base, grants, credentials, principals),
        keys,
    )
