"""Dynamic registration: a client that was given an initial access token registers itself, and keeps its registration up to date.

https://www.rfc-editor.org/rfc/rfc7591 and https://www.rfc-editor.org/rfc/rfc7592
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fhircm.smart.clients import SECRET_METHODS, Client, RegistrationWrong, checked, find, hashed, new_secret
from fhircm.smart.refusal import TokenRefused
from fhircm.smart.scopes import for_people, for_systems
from fhircm.store.credentials import Credentials, TokenRecord
from fhircm.store.grants import Grants

REGISTER = "register"  # the scope of an initial access token, which no client can ask for
_KEPT_BACK = frozenset(
    {"client_secret", "registration_token", "roles", "organization", "purpose", "created", "registered_by", "disabled"}
)


@dataclass(frozen=True)
class Registrations:
    """The registration endpoint. `url` is its address; clients that register themselves get of `scope` at most."""

    url: str
    scope: str
    credentials: Credentials
    grants: Grants
    allow_private: bool = False

    async def initial_token(self, lifetime: int, organization: str | None) -> str:
        """A token with which clients of an organisation may register themselves, as often as they want until it expires."""
        token, now = secrets.token_urlsafe(32), int(time.time())
        record = TokenRecord(REGISTER, REGISTER, now + lifetime, None, {"organization": organization})
        await self.credentials.save_token(token, record, now)
        return token

    async def create(self, authorization: str | None, body: bytes) -> dict[str, Any]:
        """Register a client. Raises TokenRefused, RegistrationWrong."""
        record = await self.credentials.token(_bearer(authorization))
        if record is None or record.scope != REGISTER or record.client_id != REGISTER or record.expires <= time.time():
            raise _refused("Registering takes an initial access token: `fhircm client initial-token` makes one")
        registration = self._checked(body)
        token = secrets.token_urlsafe(32)
        registration |= {"created": int(time.time()), "registered_by": "the client itself", "registration_token": hashed(token)}
        if record.context.get("organization"):
            registration["organization"] = record.context["organization"]
        secret = _secret_for(registration)
        client_id = secrets.token_hex(16)
        await self.credentials.create_client(client_id, registration)
        return self._told(client_id, registration, secret) | self._management(client_id, token)

    async def read(self, client_id: str, authorization: str | None) -> dict[str, Any]:
        """What is registered. Raises TokenRefused."""
        client, token = await self._own(client_id, authorization)
        return self._told(client.id, client.registration, None) | self._management(client_id, token)

    async def update(self, client_id: str, authorization: str | None, body: bytes) -> dict[str, Any]:
        """Register anew, under the same name. Raises TokenRefused, RegistrationWrong."""
        client, token = await self._own(client_id, authorization)
        asked = _tree(body)
        if asked.get("client_id") != client_id:
            raise RegistrationWrong("invalid_client_metadata", "client_id is the name of this client")
        if "client_secret" in asked and not client.has_secret(str(asked["client_secret"])):
            raise RegistrationWrong("invalid_client_metadata", "client_secret cannot be chosen")
        fresh = self._checked(body)
        secret = None
        if fresh["token_endpoint_auth_method"] in SECRET_METHODS:
            if client.method not in SECRET_METHODS:
                secret = _secret_for(fresh)
            else:
                fresh["client_secret"] = client.registration["client_secret"]
        replaced = {name: None for name in client.registration if name not in _KEPT_BACK}
        if "client_secret" not in fresh:
            replaced["client_secret"] = None
        changed = await self.credentials.change_client(client_id, {**replaced, **fresh})
        return self._told(client_id, changed or {}, secret) | self._management(client_id, token)

    async def delete(self, client_id: str, authorization: str | None) -> None:
        """Forget the client; its grants and tokens end. Raises TokenRefused."""
        await self._own(client_id, authorization)
        await self.grants.revoke_client(client_id, int(time.time()))
        await self.credentials.remove_client(client_id)

    async def _own(self, client_id: str, authorization: str | None) -> tuple[Client, str]:
        """The client, when it comes with its own registration access token. Raises TokenRefused."""
        token = _bearer(authorization)
        client = await find(self.credentials, client_id)
        kept = client.registration.get("registration_token") if client else None
        if client is None or not isinstance(kept, str) or not hmac.compare_digest(kept, hashed(token)):
            raise _refused("This is not the registration access token of the client")
        return client, token

    def _checked(self, body: bytes) -> dict[str, Any]:
        """What is asked for, as far as clients may have it that register themselves. Raises RegistrationWrong."""
        registration = checked({"scope": self.scope, **_tree(body)})
        asked, grants = registration["scope"], registration["grant_types"]
        scopes = for_people(asked, self.scope) if "authorization_code" in grants else []
        scopes += for_systems(asked, self.scope) if "client_credentials" in grants else []
        if not scopes:
            raise RegistrationWrong(
                "invalid_client_metadata", "None of these scopes is given to clients that register themselves"
            )
        registration["scope"] = " ".join(scopes)
        uri = registration.get("jwks_uri")
        if uri is not None and urlsplit(uri).scheme != "https" and not self.allow_private:
            raise RegistrationWrong("invalid_client_metadata", "jwks_uri is an https address")
        return registration

    def _told(self, client_id: str, registration: Mapping[str, Any], secret: str | None) -> dict[str, Any]:
        told = {name: value for name, value in registration.items() if name not in _KEPT_BACK}
        told |= {"client_id": client_id, "client_id_issued_at": registration["created"]}
        if "authorization_code" in registration["grant_types"]:
            told["response_types"] = ["code"]
        return told | ({"client_secret": secret, "client_secret_expires_at": 0} if secret else {})

    def _management(self, client_id: str, token: str) -> dict[str, str]:
        return {"registration_client_uri": f"{self.url}/{client_id}", "registration_access_token": token}


def _secret_for(registration: dict[str, Any]) -> str | None:
    """A secret for a client that needs one; only its digest is kept."""
    if registration["token_endpoint_auth_method"] not in SECRET_METHODS:
        return None
    secret = new_secret()
    registration["client_secret"] = hashed(secret)
    return secret


def _tree(body: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise RegistrationWrong("invalid_client_metadata", "The body is not a JSON object")
    return tree


def _bearer(authorization: str | None) -> str:
    kind, _, token = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise _refused("A bearer token is needed")
    return token.strip()


def _refused(description: str) -> TokenRefused:
    return TokenRefused("invalid_token", description, scheme="Bearer")
