"""Clients in the console: registered, changed, shut out, given another secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.access.roles import roles
from fhircm.fhir.references import parse_reference
from fhircm.smart.clients import ID_TOKEN_ALGORITHMS, PUBLIC, SECRET_METHODS, Client, RegistrationWrong
from fhircm.smart.registry import NoSuchClient, grant_types, key_set
from fhircm.web.console.asking import add, asked_again, found_in, part, registry, server, told
from fhircm.web.noting import note_done
from fhircm.web.pages import Problem, Visit
from fhircm.web.parts import parts

KINDS = {
    PUBLIC: "keeps no secret (in a browser, on a phone)",
    "private_key_jwt": "signs with keys of its own",
    "client_secret_basic": "has a secret, told in the header",
    "client_secret_post": "has a secret, told in the form",
}
_TEXTS = (
    "client",
    "name",
    "kind",
    "scope",
    "redirect_uris",
    "launch_uri",
    "jwks_uri",
    "jwks",
    "organization",
    "role",
    "purpose",
    "alg",
)
_DONE = {
    "edited": "It is registered so from now on.",
    "disabled": "It is shut out: its tokens are worth nothing within seconds.",
    "enabled": "It may sign in again.",
}
_HOURS = {"1": "an hour", "24": "a day", "168": "a week", "720": "30 days"}


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    add(app, "/console/clients", show_all, "GET", "POST")
    add(app, "/console/clients/add", ask_new)
    add(app, "/console/clients/add", add_new, "POST")
    add(app, "/console/clients/show", show)
    add(app, "/console/clients/edit", edit, "POST")
    add(app, "/console/clients/disable", disable, "POST")
    add(app, "/console/clients/enable", enable, "POST")
    add(app, "/console/clients/rotate-secret", rotate_secret, "POST")
    add(app, "/console/clients/initial-token", ask_initial_token)
    add(app, "/console/clients/initial-token", initial_token, "POST")


async def show_all(visit: Visit) -> Response:
    """Every client, or those in which a text is found."""
    find = visit.field("find")
    found = [
        one
        for one in await registry(visit).clients()
        if not find or found_in(find, one.id, one.name, one.scope, one.registration.get("organization"))
    ]
    found.sort(key=lambda one: (one.name.casefold(), one.id))
    return visit.page("console/clients.html", part=part(visit, found), find=find, kinds=KINDS)


async def ask_new(visit: Visit) -> Response:
    """The form for a client that there is not yet."""
    return _new_form(visit, {"kind": PUBLIC, "role": "system", "alg": ID_TOKEN_ALGORITHMS[0]})


async def add_new(visit: Visit) -> Response:
    """The form was sent: a secret is shown on the answer, and nowhere again."""
    typed = {name: visit.field(name) for name in _TEXTS}
    try:
        metadata = _metadata(typed)
        method = typed["kind"]
        if method in (PUBLIC, *SECRET_METHODS) and not metadata["redirect_uris"]:
            raise RegistrationWrong("", "Give a redirect URI: only a client that signs with keys of its own does without")
        asked = {name: value for name, value in metadata.items() if value is not None}
        asked |= {"token_endpoint_auth_method": method, "id_token_signed_response_alg": typed["alg"] or ID_TOKEN_ALGORITHMS[0]}
        asked["grant_types"] = grant_types(metadata["scope"].split(), metadata["redirect_uris"] or [], method)
        secret = await registry(visit).add(
            typed["client"], asked, _codes(typed["role"]), typed["organization"] or None, typed["purpose"] or None
        )
    except RegistrationWrong as error:
        return _new_form(visit, typed, f"{error}.")
    note_done(visit, "client", f"{typed['client']} added")
    if secret is None:
        return visit.go(_at(typed["client"], "added"))
    return _secret(visit, typed["client"], secret)


async def show(visit: Visit) -> Response:
    """One client, and the form to change it."""
    client = await _client(visit, visit.asked("client"))
    return _page(visit, client, _typed(client))


async def edit(visit: Visit) -> Response:
    """Another registration. What it takes away is asked again."""
    client = await _client(visit, visit.field("client"))
    typed = _typed(client) | {name: visit.field(name) for name in _TEXTS if name in visit.form}
    try:
        metadata = _metadata(typed)
        changes = metadata | {"roles": _codes(typed["role"]), "organization": typed["organization"] or None}
        changes["purpose"] = typed["purpose"] or None
        gone = [one for one in client.scope.split() if one not in metadata["scope"].split()]
        gone += [uri for uri in client.redirect_uris if uri not in (metadata["redirect_uris"] or [])]
        if gone:
            text = f"{client.name} will not have this any more:"
            if page := asked_again(visit, "Take this away?", text, "Take it away", _at(client.id), again=gone):
                return page
        await registry(visit).edit(client.id, changes)
    except RegistrationWrong as error:
        return _page(visit, client, typed, f"{error}.")
    parts(visit).bearer.forget()
    note_done(visit, "client", f"{client.id} edited")
    return visit.go(_at(client.id, "edited"))


async def disable(visit: Visit) -> Response:
    """Shut a client out."""
    client = await _client(visit, visit.field("client"))
    text = f"{client.name} gets no token any more, and those that it has are worth nothing within seconds."
    if page := asked_again(visit, f"Shut {client.name} out?", text, "Shut it out", _at(client.id)):
        return page
    await registry(visit).disable(client.id)
    parts(visit).bearer.forget()
    note_done(visit, "client", f"{client.id} disabled")
    return visit.go(_at(client.id, "disabled"))


async def enable(visit: Visit) -> Response:
    """Let a client in again."""
    client = await _client(visit, visit.field("client"))
    await registry(visit).enable(client.id)
    parts(visit).bearer.forget()
    note_done(visit, "client", f"{client.id} enabled")
    return visit.go(_at(client.id, "enabled"))


async def rotate_secret(visit: Visit) -> Response:
    """Another secret, shown once."""
    client = await _client(visit, visit.field("client"))
    text = f"The secret that {client.name} has is worth nothing from that moment on."
    if page := asked_again(visit, "Make a new secret?", text, "Make a new secret", _at(client.id)):
        return page
    try:
        secret = await registry(visit).rotate_secret(client.id)
    except RegistrationWrong as error:
        raise Problem("It has no secret", f"{error}.", 409) from None
    note_done(visit, "client", f"{client.id} has another secret")
    return _secret(visit, client.id, secret)


async def ask_initial_token(visit: Visit) -> Response:
    """The form for a token with which clients register themselves."""
    return visit.page("console/initial_token.html", hours=_HOURS, error="", organization="")


async def initial_token(visit: Visit) -> Response:
    """The token, shown once."""
    organization, hours = visit.field("organization"), visit.field("hours")
    found = parse_reference(organization) if organization else None
    if hours not in _HOURS or (found is not None and (found.kind != "local" or found.type != "Organization")):
        error = "Type a reference such as Organization/123, or nothing."
        return visit.page("console/initial_token.html", status=422, hours=_HOURS, error=error, organization=organization)
    token = await server(visit).registrations.initial_token(int(hours) * 3600, organization or None)
    note_done(visit, "client", f"initial access token for {organization or 'any organisation'}")
    text = f"Clients register themselves with it for {_HOURS[hours]}, at {visit.pages.base_url}/oauth/register."
    return visit.page("console/once.html", title="Initial access token", text=text, secret=token, back="/console/clients")


# --- the pages ---


def _new_form(visit: Visit, typed: Mapping[str, str], error: str = "") -> Response:
    typed = dict.fromkeys(_TEXTS, "") | dict(typed)
    choices = {"kinds": list(KINDS.items()), "algorithms": [(one, one) for one in ID_TOKEN_ALGORITHMS]}
    status = 422 if error else 200
    return visit.page("console/client_add.html", status=status, typed=typed, error=error, roles=_roles(typed["role"]), **choices)


def _page(visit: Visit, client: Client, typed: Mapping[str, str], error: str = "") -> Response:
    facts = [
        ("Name to sign in with", client.id),
        ("How it proves who it is", KINDS.get(client.method, client.method)),
        ("Grants", ", ".join(client.grant_types)),
        ("Registered by", str(client.registration.get("registered_by", "operator"))),
    ]
    if created := client.registration.get("created"):
        facts.append(("Since", visit.pages.day(created)))
    return visit.page(
        "console/client.html",
        status=422 if error else 200,
        told=told(visit, _DONE | {"added": "It may sign in from now on."}),
        client=client,
        typed=typed,
        error=error,
        facts=facts,
        has_secret=client.method in SECRET_METHODS,
        has_keys=client.method == "private_key_jwt",
        roles=_roles(typed["role"]),
    )


def _secret(visit: Visit, client_id: str, secret: str) -> Response:
    text = f"{client_id} proves with it who it is, at {visit.pages.base_url}/oauth/token."
    return visit.page("console/once.html", title="The secret of the client", text=text, secret=secret, back=_at(client_id))


def _at(client_id: str, done: str = "") -> str:
    return f"/console/clients/show?client={quote(client_id, safe='')}" + (f"&done={done}" if done else "")


async def _client(visit: Visit, client_id: str) -> Client:
    try:
        return await registry(visit).client(client_id)
    except NoSuchClient:
        raise Problem("There is no such client", "Perhaps it was removed meanwhile.", 404) from None


def _roles(chosen: str) -> list[tuple[str, str]]:
    offered = [(code, roles()[code].title) for code in ("system", "custodian")]
    return offered if chosen in ("system", "custodian") else [(chosen, chosen or "none"), *offered]


def _codes(typed: str) -> list[str]:
    return [one for one in typed.split(",") if one]


def _typed(client: Client) -> dict[str, str]:
    """The fields of the form, as they are registered."""
    registration = client.registration
    keys = registration.get("jwks")
    return {
        "client": client.id,
        "name": str(registration.get("client_name", "")),
        "scope": "\n".join(client.scope.split()),
        "redirect_uris": "\n".join(client.redirect_uris),
        "launch_uri": client.launch_uri or "",
        "jwks_uri": client.jwks_uri or "",
        "jwks": json.dumps(keys, indent=2) if keys else "",
        "organization": str(registration.get("organization") or ""),
        "role": ",".join(registration.get("roles") or []),
        "purpose": str(registration.get("purpose") or ""),
    }


def _metadata(typed: Mapping[str, str]) -> dict[str, Any]:
    """What is typed, as registration metadata: None for what was left empty. Raises RegistrationWrong."""
    return {
        "client_name": typed["name"] or None,
        "scope": " ".join(typed["scope"].split()),
        "redirect_uris": typed["redirect_uris"].split() or None,
        "launch_uri": typed["launch_uri"] or None,
        "jwks_uri": typed["jwks_uri"] or None,
        "jwks": key_set(typed["jwks"]) if typed["jwks"] else None,
    }
