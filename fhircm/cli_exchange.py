"""`fhircm reconcile`, `fhircm push` and `fhircm partner status`: do the work with partners now, and tell how it stands."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.exchange.client import connect
from fhircm.exchange.freshness import freshness, rendered
from fhircm.exchange.status import Verdict
from fhircm.exchange.status import rendered as told
from fhircm.exchange.status import status as stands
from fhircm.settings import Settings
from fhircm.settings import load as load_settings


def reconcile(name: Annotated[str, typer.Argument(help="The partner's folder name.")]) -> None:
    """Look at everything of a partner now, believing nothing that it said of changes, and tell what is gone, merged or missing."""
    raise typer.Exit(asyncio.run(_reconcile(load_settings(), name)))


async def _reconcile(settings: Settings, name: str) -> int:
    async with wiring.open_store(settings) as store:
        partner = wiring.partners(settings, [name])[0]
        async with connect(partner, settings.keys_dir, wiring.tokens(settings, store)) as client:
            report = await wiring.reconcile_partner(settings, store, client)
        typer.echo(f"{partner.name}: {report.summary()}")
        for line in report.findings():
            typer.echo(f"  found: {line}")
        for refused in report.refused:
            typer.echo(f"  refused: {refused}")
        for failed in report.failed:
            typer.echo(f"  left: {failed}")
        typer.echo(rendered(partner, await freshness(store, partner)))
    return 1 if report.refused or report.failed else 0


def push(
    name: Annotated[str | None, typer.Argument(help="A partner's folder name; without it, all of them.")] = None,
) -> None:
    """Tell partners now what is due for them: what each cannot take becomes a dead letter, and a Task for a human."""
    raise typer.Exit(asyncio.run(_push(load_settings(), name)))


async def _push(settings: Settings, name: str | None) -> int:
    status = 0
    async with wiring.open_store(settings) as store:
        for partner in wiring.partners(settings, [name] if name else None):
            report = await wiring.push_partner(settings, store, partner)
            waits = f"; more from {report.waiting_until:%Y-%m-%d %H:%M:%S} UTC on" if report.waiting_until else ""
            counts = f"{len(report.delivered)} delivered, {len(report.undelivered)} left to a human"
            typer.echo(f"{partner.name}: {counts}, {len(report.withheld)} withheld by consent{waits}")
            status = 1 if report.undelivered or report.waiting_until else status
    return status


def status(
    name: Annotated[str | None, typer.Argument(help="A partner's folder name; without it, all of them.")] = None,
    types: Annotated[
        bool, typer.Option("--types", help="Tell of each resource type, too: how fresh, what is missing, what it cost.")
    ] = False,
) -> None:
    """Tell how each partner is doing, and what to do about what is not well. Ends with 1 when something is down."""
    raise typer.Exit(asyncio.run(_status(load_settings(), name, types=types)))


async def _status(settings: Settings, name: str | None, *, types: bool) -> int:
    worst = 0
    async with wiring.open_store(settings) as store:
        for partner in wiring.partners(settings, [name] if name else None):
            found = await stands(store, partner)
            typer.echo(told(found))
            if types:
                typer.echo(rendered(partner, found.types).partition("\n")[2])
            worst = 1 if found.verdict is Verdict.DOWN else worst
    return worst
