"""`fhircm quarantine`: what partners sent and the hub could not take."""

from __future__ import annotations

from typing import Annotated

import typer

from fhircm import wiring
from fhircm.cli_noting import with_store
from fhircm.exchange.quarantine import KINDS
from fhircm.exchange.release import release as release_held
from fhircm.fhir.outcome import NotFound
from fhircm.settings import Settings
from fhircm.store.resources import Held, LetGo, Store

app = typer.Typer(no_args_is_help=True, help="What partners sent and the hub could not take: kept as it came, with the reason.")

_Partner = Annotated[str, typer.Argument(help="The partner's folder name.")]
_Name = Annotated[str, typer.Argument(help="What it is, as the list names it.")]
_Kind = Annotated[str | None, typer.Option(help=f"Only these: {', '.join(KINDS)}.")]
_PAGE = 500


async def _all(store: Store, partner: str | None, kind: str | None) -> list[Held]:
    found: list[Held] = []
    after = ("", "")
    while page := await store.held_page(partner, kind, after=after, limit=_PAGE):
        found += page
        after = (page[-1].partner, page[-1].name)
    return found


@app.command("list")
def list_(
    partner: Annotated[str | None, typer.Argument(help="A partner's folder name; without it, all of them.")] = None,
    kind: _Kind = None,
) -> None:
    """Everything in quarantine: partner, name, kind, since when, how often it came, and why. Nothing of what is in it."""

    async def go(_: Settings, store: Store) -> None:
        held = await _all(store, partner, kind)
        for one in held:
            since = one.first_seen.isoformat(timespec="seconds")
            typer.echo("\t".join((one.partner, one.name, one.kind, since, f"{one.times}x", one.reason)))
        if not held:
            typer.echo("Nothing is in quarantine")

    with_store(go, note=False)


@app.command()
def show(partner: _Partner, name: _Name) -> None:
    """Print one thing as the partner sent it. It may tell of a patient: who looks is in the audit."""

    async def go(_: Settings, store: Store) -> None:
        body = await store.held_body(partner, name)
        if body is None:
            raise NotFound(f"Nothing of {partner} is in quarantine under {name}")
        typer.echo(body.decode("utf-8", "backslashreplace"))

    with_store(go)


@app.command()
def release(
    partner: _Partner,
    name: Annotated[str | None, typer.Argument(help="What to try again; without it, everything of the partner.")] = None,
    kind: _Kind = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Take versions that went back and times in the future as they are.")
    ] = False,
) -> None:
    """Try again, after a map or a rule was mended: what can be taken now comes into the record, the rest stays."""

    async def go(settings: Settings, store: Store) -> int:
        (chosen,) = wiring.partners(settings, [partner])
        names = [name] if name else [one.name for one in await _all(store, partner, kind)]
        tried = await release_held(store, chosen, names, trusted=trust)
        for one in tried:
            typer.echo(f"{one.name}\t{'is in the record now' if one.reason is None else f'stays: {one.reason}'}")
        typer.echo(f"{sum(one.reason is None for one in tried)} of {len(tried)} released")
        return 0 if all(one.reason is None for one in tried) else 1

    with_store(go)


@app.command()
def discard(partner: _Partner, name: _Name) -> None:
    """Forget one thing. It comes back with the next pull if the partner still sends it so."""

    async def go(_: Settings, store: Store) -> None:
        if name not in await store.held(partner, [name]):
            raise NotFound(f"Nothing of {partner} is in quarantine under {name}")
        await store.transact([LetGo(partner, name)], origin="hub")
        typer.echo(f"{name} is forgotten")

    with_store(go)
