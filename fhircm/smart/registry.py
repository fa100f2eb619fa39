"""What an operator does with clients: register them, change what is registered, shut them out, give them another secret.

The command line and the console do it by this, so that one cannot do what the other refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.access.roles import roles, unknown
from fhircm.fhir.references import parse_reference
from fhircm.smart.clients import SECRET_METHODS, Client, RegistrationWrong, checked, hashed, is_name, new_secret
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grants

_HINT = " (scopes are written system/Type.cruds, user/Type.rs or patient/Type.read)"
_METADATA = (  # what `checked` makes of what is asked for
    "token_endpoint_auth_method",
    "grant_types",
    "scope",
    "redirect_uris",
    "launch_uri",
    "logo_uri",
    "client_uri",
    "policy_uri",
    "tos_uri",
    "jwks",
    "jwks_uri",
    "id_token_signed_response_alg",
    "client_name",
    "software_id",
    "software_version",
    "contacts",
)


class NoSuchClient(Exception):
    """Nobody is registered under this name."""


@dataclass(frozen=True)
class Registry:
    """The clients, as an operator keeps them."""

    credentials: Credentials
    grants: Grants

    async def client(self, client_id: str) -> Client:
        """A client, also one that is shut out. Raises NoSuchClient."""
        registration = await self.credentials.client(client_id) if is_name(client_id) else None
        if registration is None:
            raise NoSuchClient(f"{client_id} is not known")
        return Client(client_id, registration)

    async def clients(self) -> list[Client]:
        """Every client, by its name."""
        return [Client(client_id, one) for client_id, one in (await self.credentials.clients()).items()]

    async def add(
        self,
        client_id: str,
        asked: Mapping[str, Any],
        codes: Sequence[str],
        organization: str | None,
        purpose: str | None = None,
        *,
        anew: bool = False,
    ) -> str | None:
        """Register a client, with `anew` also in place of one of the same name; returns its secret, which is kept nowhere.

        `purpose` is for what a backend system asks, a code of http://terminology.hl7.org/CodeSystem/v3-ActReason; None: treatment.
        Raises RegistrationWrong.
        """
        if not is_name(client_id):
            raise RegistrationWrong("", "A client's name is of ASCII characters, without spaces and colons")
        registration = _checked(asked, codes, organization, purpose) | {"created": int(time.time()), "registered_by": "operator"}
        secret = new_secret() if registration["token_endpoint_auth_method"] in SECRET_METHODS else None
        registration |= {"client_secret": hashed(secret)} if secret else {}
        if anew:
            await self.credentials.add_client(client_id, registration)
        elif not await self.credentials.create_client(client_id, registration):
            raise RegistrationWrong("", "A client of this name is registered already")
        return secret

    async def edit(self, client_id: str, changes: Mapping[str, Any]) -> Client:
        """Change what is registered, a member of `changes` that is None taken away: metadata, and also `roles`, `organization` and `purpose`.

        How a client proves who it is stays as it was. Raises NoSuchClient, RegistrationWrong.
        """
        before = (await self.client(client_id)).registration
        method = Client(client_id, before).method
        wanted = {**before, "token_endpoint_auth_method": method, **changes}
        asked = {name: wanted[name] for name in _METADATA if wanted.get(name) is not None}
        asked["grant_types"] = grant_types(str(asked.get("scope", "")).split(), asked.get("redirect_uris") or [], method)
        fresh = _checked(asked, wanted.get("roles") or [], wanted.get("organization"), wanted.get("purpose"))
        gone = {name: None for name in (*_METADATA, "organization", "purpose", "jwks_url") if name not in fresh}
        changed = await self.credentials.change_client(client_id, {**gone, **fresh})
        if changed is None:
            raise NoSuchClient(f"{client_id} is not known")
        return Client(client_id, changed)

    async def disable(self, client_id: str) -> None:
        """Shut a client out: no token any more, and those it has are worth nothing within seconds. Raises NoSuchClient."""
        await self._change(client_id, {"disabled": True})

    async def enable(self, client_id: str) -> None:
        """Let it in again. Raises NoSuchClient."""
        await self._change(client_id, {"disabled": None})

    async def rotate_secret(self, client_id: str) -> str:
        """Another secret; the one before is worth nothing from now on. Raises NoSuchClient, RegistrationWrong."""
        if (await self.client(client_id)).method not in SECRET_METHODS:
            raise RegistrationWrong("", f"{client_id} has no secret: it is registered to prove who it is in another way")
        secret = new_secret()
        await self._change(client_id, {"client_secret": hashed(secret)})
        return secret

    async def _change(self, client_id: str, changes: Mapping[str, Any]) -> None:
        if await self.credentials.change_client(client_id, changes) is None:
            raise NoSuchClient(f"{client_id} is not known")


def grant_types(scopes: Sequence[str], redirect_uris: Sequence[str], method: str) -> list[str]:
    """An app signs people in; who has scopes of systems and a key signs in by itself."""
    people = ["authorization_code", "refresh_token"] if redirect_uris else []
    alone = not people or (method == "private_key_jwt" and any(one.startswith("system/") for one in scopes))
    return [*people, *(["client_credentials"] if alone else [])]


def key_set(text: str | bytes) -> Any:
    """The JWKS that a text is. Raises RegistrationWrong."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RegistrationWrong("", "The key set is not JSON") from None


def _checked(asked: Mapping[str, Any], codes: Sequence[str], organization: str | None, purpose: str | None) -> dict[str, Any]:
    """A whole registration. Raises RegistrationWrong."""
    try:
        registration = checked(asked)
    except RegistrationWrong as error:
        hint = _HINT if "Scopes" in str(error) else ""
        raise RegistrationWrong(error.error, f"{error.description}{hint}") from None
    if nowhere := unknown(codes):
        raise RegistrationWrong("", f"{', '.join(nowhere)} is no role; there are: {', '.join(roles())}")
    if not organization and "custodian" not in codes and "client_credentials" in registration["grant_types"]:
        raise RegistrationWrong("", "A backend system belongs to an organisation: give one, such as Organization/123")
    if organization:
        found = parse_reference(organization)
        if found.kind != "local" or found.type != "Organization":
            raise RegistrationWrong("", f"{organization} is no reference such as Organization/123")
    if purpose and not (purpose.isascii() and purpose.isupper()):
        raise RegistrationWrong("", "A purpose is a code of capital letters, such as TREAT, HPAYMT or HOPERAT")
    registration |= {"purpose": purpose} if purpose else {}
    return registration | ({"roles": list(codes)} if codes else {}) | ({"organization": organization} if organization else {})
