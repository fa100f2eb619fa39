"""`fhircm keys`: the keys with which the hub signs identity tokens, and with a PARTNER's name those with which it signs in there.

https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from fhircm import wiring
from fhircm.access.sealing import Seal, SealBroken
from fhircm.cli_noting import noted
from fhircm.exchange import client_keys
from fhircm.exchange.client_keys import HeldKey, KeyWrong
from fhircm.exchange.partners import Partner
from fhircm.settings import Settings
from fhircm.settings import load as load_settings
from fhircm.smart.keys import SigningKeys

app = typer.Typer(no_args_is_help=True, help="The keys with which the hub signs: identity tokens, and in at partners.")
err = Console(stderr=True)

_Partner = Annotated[str | None, typer.Argument(help="A partner's folder name; without it, the keys of identity tokens.")]


def _run(work: Callable[[Settings], int | None]) -> None:
    settings = load_settings()
    try:
        status = noted(settings, lambda: work(settings))
    except (KeyWrong, SealBroken) as error:
        err.print(str(error), style="red", highlight=False, soft_wrap=True)
        status = 1
    raise SystemExit(status)


@app.command("list")
def list_(partner: _Partner = None) -> None:
    """Name the keys, and since when each is in use or retired; of a partner: which signs, which waits, which is still published."""

    def go(settings: Settings) -> None:
        if partner is None:
            _of_identity_tokens(settings, _listed)
            return
        found, now = _partner(settings, partner), time.time()
        held = client_keys.held_keys(settings.keys_dir, found.name)
        signs = next((one for one in held if one.since <= now), None)
        for one in held:
            typer.echo("\t".join((one.kid, one.algorithm, one.path.name, _state(one, signs))))
        if not held:
            typer.echo("No key yet: it is made when the hub first signs in there")

    _run(go)


@app.command()
def rotate(
    partner: _Partner = None,
    algorithm: Annotated[
        str | None, typer.Option(help="RS256, RS384 or ES384; without it every key, or the one of partner.yaml.")
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Sign with the partner's next key at once; without it after FHIRCM_KEY_PUBLICATION.")
    ] = False,
) -> None:
    """Sign with new keys; those before stay published: of identity tokens while such live, of a partner until `keys retire`."""

    def go(settings: Settings) -> int:
        if partner is None:
            return _of_identity_tokens(settings, lambda keys: _rotated(keys, algorithm))
        found = _partner(settings, partner)
        wait = 0.0 if now else settings.key_publication.total_seconds()
        made = client_keys.rotate(settings.keys_dir, found.name, algorithm or found.algorithm, wait)
        typer.echo(f"{made.kid} is published and signs {'from now on' if now else f'from {_when(made.since)} on'}")
        return 0

    _run(go)


@app.command()
def retire(partner: Annotated[str, typer.Argument(help="A partner's folder name.")]) -> None:
    """Destroy the keys with which the hub does not sign in at a partner any more: they are published no longer."""

    def go(settings: Settings) -> None:
        found = _partner(settings, partner)
        for one in client_keys.retire(settings.keys_dir, found.name, found.algorithm):
            typer.echo(f"{one.kid} is destroyed")

    _run(go)


def _partner(settings: Settings, name: str) -> Partner:
    return wiring.partners(settings, [name])[0]


def _state(one: HeldKey, signs: HeldKey | None) -> str:
    if one is signs:
        return f"signs since {_when(one.since)}" if one.since else "signs"
    return "signed before, still published" if signs and one.since <= signs.since else f"signs from {_when(one.since)} on"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


# --- of identity tokens --------------------------------------------------------------------------------------------------------


def _of_identity_tokens(settings: Settings, work: Callable[[SigningKeys], Coroutine[Any, Any, int]]) -> int:
    async def go() -> int:
        async with wiring.open_store(settings) as store:
            return await work(SigningKeys(store.database, Seal.open(settings.keys_dir)))

    return asyncio.run(go())


async def _listed(keys: SigningKeys) -> int:
    for key in await keys.listed():
        state = f"retired {_when(key.retired)}" if key.retired is not None else "signs"
        typer.echo("\t".join((key.kid, key.algorithm, f"made {_when(key.created)}", state)))
    return 0


async def _rotated(keys: SigningKeys, algorithm: str | None) -> int:
    try:
        kids = await keys.rotate(algorithm)
    except ValueError as error:
        err.print(str(error), style="red", highlight=False)
        return 1
    for kid in kids:
        typer.echo(kid)
    if not kids:
        typer.echo("No key is in use yet: the first is made when an app first asks who a person is")
    return 0
