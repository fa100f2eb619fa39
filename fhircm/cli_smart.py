"""The command line of the authorization server: clients, and what people let them do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fhircm import wiring
from fhircm.access.sealing import SealBroken
from fhircm.cli_noting import noted
from fhircm.settings import Settings
from fhircm.settings import load as load_settings
from fhircm.smart.clients import METHODS, PUBLIC, Client, RegistrationWrong, is_name
from fhircm.smart.register import Registrations
from fhircm.smart.registry import NoSuchClient, Registry, grant_types, key_set
from fhircm.store.credentials import Credentials
from fhircm.store.grants import Grants
from fhircm.store.resources import Store

client_app = typer.Typer(no_args_is_help=True, help="The SMART apps and backend systems that may use the hub's FHIR API.")
grant_app = typer.Typer(no_args_is_help=True, help="What people let apps do.")
err = Console(stderr=True)

_NOT_TOLD = ("client_secret", "registration_token")
_ClientId = Annotated[str, typer.Argument(help="The client's name.")]


def add_commands(app: typer.Typer) -> None:
    """Hang the commands into the command line."""
    app.add_typer(client_app, name="client")
    app.add_typer(grant_app, name="grant")


def _run(work: Callable[[Settings, Store], Coroutine[Any, Any, int | None]]) -> None:
    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            return await work(settings, store) or 0

    try:
        settings = load_settings()
        status = noted(settings, lambda: asyncio.run(go(settings)))
    except (RegistrationWrong, NoSuchClient, SealBroken) as error:
        err.print(str(error), style="red", highlight=False)
        status = 1
    raise SystemExit(status)


def _tell(line: str) -> None:
    typer.echo(line)  # as it is: other programs split it at its tabs


def _nobody(what: str) -> int:
    err.print(f"{what} is not known", style="red", highlight=False)
    return 1


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


# --- clients -----------------------------------------------------------------------------------------------------------------


@client_app.command("add")
def client_add(
    client_id: Annotated[str, typer.Argument(help="The name that the client signs in with.")],
    scope: Annotated[list[str], typer.Option(help="A SMART scope, for example system/Task.rus; may be given again.")],
    jwks_url: Annotated[str | None, typer.Option(help="Where the client publishes its keys.")] = None,
    jwks_file: Annotated[Path | None, typer.Option(help="Or a file with its JWKS.", exists=True)] = None,
    organization: Annotated[
        str | None, typer.Option(help="The Organization it belongs to, for example Organization/123.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="What it is: system (the default: sees by care relationship), or custodian (sees everything)."),
    ] = None,
    redirect_uri: Annotated[
        list[str] | None, typer.Option(help="For an app that signs people in: where codes are sent; may be given again.")
    ] = None,
    launch_uri: Annotated[str | None, typer.Option(help="For such an app: where it is opened from a work list.")] = None,
    auth: Annotated[
        str, typer.Option(help=f"How it proves who it is: {', '.join(METHODS)} ({PUBLIC}: an app that can keep no secret).")
    ] = "private_key_jwt",
    name: Annotated[str | None, typer.Option(help="What people read when they are asked to let it in.")] = None,
    purpose: Annotated[
        str | None, typer.Option(help="For what a backend system asks: a v3 PurposeOfUse code such as HPAYMT; else TREAT.")
    ] = None,
    id_token_alg: Annotated[str | None, typer.Option(help="How identity tokens are signed: RS256, RS384 or ES384.")] = None,
) -> None:
    """Register a SMART app or backend system (or register it anew; one with a secret gets a new secret, printed once)."""
    if (jwks_url is None) == (jwks_file is None) if auth == "private_key_jwt" else jwks_url or jwks_file:
        raise typer.BadParameter("give either --jwks-url or --jwks-file (and neither with another --auth than private_key_jwt)")
    if not is_name(client_id):
        raise typer.BadParameter("a client's name is of ASCII characters, without spaces and colons")
    asked: dict[str, Any] = {
        "scope": " ".join(scope),
        "token_endpoint_auth_method": auth,
        "grant_types": grant_types(scope, redirect_uri or [], auth),
        "redirect_uris": redirect_uri,
        "launch_uri": launch_uri,
        "client_name": name,
        "jwks_uri": jwks_url,
        "jwks": key_set(jwks_file.read_bytes()) if jwks_file else None,
    } | ({"id_token_signed_response_alg": id_token_alg} if id_token_alg else {})

    async def go(settings: Settings, store: Store) -> None:
        secret = await _registry(store).add(client_id, asked, role or ["system"], organization, purpose, anew=True)
        _tell(f"{client_id} may sign in at {wiring.base_url(settings)}/oauth/token")
        if secret:
            _tell(f"Its secret, which is not told again: {secret}")

    _run(go)


def _registry(store: Store) -> Registry:
    return Registry(Credentials(store.database), Grants(store.database))


@client_app.command("edit")
def client_edit(
    client_id: _ClientId,
    scope: Annotated[list[str] | None, typer.Option(help="All scopes that it may have from now on; may be given again.")] = None,
    redirect_uri: Annotated[list[str] | None, typer.Option(help="All its redirect URIs from now on; may be given again.")] = None,
    launch_uri: Annotated[str | None, typer.Option(help="Where it is opened from a work list; '' for nowhere.")] = None,
    name: Annotated[str | None, typer.Option(help="What people read when they are asked to let it in.")] = None,
    jwks_url: Annotated[str | None, typer.Option(help="Where it publishes its keys from now on.")] = None,
    jwks_file: Annotated[Path | None, typer.Option(help="Or a file with its JWKS.", exists=True)] = None,
    organization: Annotated[str | None, typer.Option(help="The Organization that it belongs to.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="All its roles from now on; may be given again.")] = None,
    purpose: Annotated[str | None, typer.Option(help="For what it asks: a v3 PurposeOfUse code; '' for TREAT.")] = None,
) -> None:
    """Change what is registered of a client, and nothing else: its secret and its tokens stay good."""
    if jwks_url and jwks_file:
        raise typer.BadParameter("give either --jwks-url or --jwks-file")
    changes: dict[str, Any] = {}
    changes |= {"scope": " ".join(scope)} if scope else {}
    changes |= {"redirect_uris": redirect_uri} if redirect_uri else {}
    changes |= {"launch_uri": launch_uri or None} if launch_uri is not None else {}
    changes |= {"client_name": name or None} if name is not None else {}
    changes |= {"jwks_uri": jwks_url, "jwks": None} if jwks_url else {}
    changes |= {"jwks": key_set(jwks_file.read_bytes()), "jwks_uri": None} if jwks_file else {}
    changes |= {"organization": organization or None} if organization is not None else {}
    changes |= {"roles": role} if role else {}
    changes |= {"purpose": purpose or None} if purpose is not None else {}
    if not changes:
        raise typer.BadParameter("nothing is to be changed")

    async def go(settings: Settings, store: Store) -> None:
        await _registry(store).edit(client_id, changes)
        _tell(f"{client_id} is registered so")

    _run(go)


@client_app.command("token")
def client_token(
    client_id: _ClientId,
    key: Annotated[Path, typer.Option(help="Its private key, a JWK file; made when it does not exist.")],
    scope: Annotated[str, typer.Option(help="Scopes to ask for, separated by spaces.")] = "system/*.rs",
    url: Annotated[str | None, typer.Option(help="Base URL of the hub.")] = None,
) -> None:
    """Sign in as a backend client and print an access token, for use with curl."""
    base = (url or wiring.base_url(load_settings())).rstrip("/")
    _tell(asyncio.run(wiring.client_token(base, client_id, key, scope)))


@client_app.command("list")
def client_list() -> None:
    """Name the clients: how each proves who it is, what it may do, and whether it is disabled."""

    async def go(settings: Settings, store: Store) -> None:
        for client_id, registration in (await Credentials(store.database).clients()).items():
            client = Client(client_id, registration)
            state = "disabled" if client.disabled else "enabled"
            _tell("\t".join((client_id, state, client.method, ",".join(client.grant_types), client.scope)))

    _run(go)


@client_app.command("show")
def client_show(client_id: _ClientId) -> None:
    """Print the registration of a client as JSON, without secrets."""

    async def go(settings: Settings, store: Store) -> int:
        registration = await Credentials(store.database).client(client_id)
        if registration is None:
            return _nobody(client_id)
        told = {name: value for name, value in registration.items() if name not in _NOT_TOLD}
        _tell(json.dumps({"client_id": client_id, **told}, indent=2))
        return 0

    _run(go)


@client_app.command("disable")
def client_disable(client_id: _ClientId) -> None:
    """Shut a client out: it gets no token any more, and those it has are worth nothing within seconds."""

    async def go(settings: Settings, store: Store) -> None:
        await _registry(store).disable(client_id)
        _tell(f"{client_id} may no longer sign in, and its tokens are worth nothing (every process knows within seconds)")

    _run(go)


@client_app.command("enable")
def client_enable(client_id: _ClientId) -> None:
    """Let a client in again that was shut out."""

    async def go(settings: Settings, store: Store) -> None:
        await _registry(store).enable(client_id)
        _tell(f"{client_id} may sign in")

    _run(go)


@client_app.command("rotate-secret")
def client_rotate_secret(client_id: _ClientId) -> None:
    """Give a client a new secret, printed once; the one before is worth nothing from now on."""

    async def go(settings: Settings, store: Store) -> None:
        _tell(await _registry(store).rotate_secret(client_id))

    _run(go)


@client_app.command("initial-token")
def client_initial_token(
    hours: Annotated[int, typer.Option(min=1, max=24 * 90, help="How long it is good.")] = 24,
    organization: Annotated[str | None, typer.Option(help="The Organization of the clients that register with it.")] = None,
) -> None:
    """Print a token with which clients register themselves (at /oauth/register)."""

    async def go(settings: Settings, store: Store) -> None:
        url = f"{wiring.base_url(settings)}/oauth/register"
        grants, credentials = Grants(store.database), Credentials(store.database)
        registrations = Registrations(url, settings.registration_scopes, credentials, grants)
        _tell(await registrations.initial_token(int(timedelta(hours=hours).total_seconds()), organization))

    _run(go)


# --- grants ------------------------------------------------------------------------------------------------------------------


@grant_app.command("list")
def grant_list(
    client: Annotated[str | None, typer.Option(help="Only those to this client.")] = None,
    login: Annotated[str | None, typer.Option(help="Only those of this login, by its id.")] = None,
) -> None:
    """Name what people let apps do: grant, app, login, until when, and the scopes."""

    async def go(settings: Settings, store: Store) -> None:
        for one in await Grants(store.database).grants(int(time.time()), client_id=client, login_id=login):
            _tell("\t".join((one.id, one.client_id, one.login_id or "-", _when(one.expires), one.scope)))

    _run(go)


@grant_app.command("revoke")
def grant_revoke(grant: Annotated[str, typer.Argument(help="The grant, as `fhircm grant list` names it.")]) -> None:
    """End a grant with all its tokens; the person is asked again when the app comes again."""

    async def go(settings: Settings, store: Store) -> int:
        if not await Grants(store.database).revoke(grant, int(time.time())):
            return _nobody(f"A living grant {grant}")
        _tell("It is ended, with all its tokens")
        return 0

    _run(go)
