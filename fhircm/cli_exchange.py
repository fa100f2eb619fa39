"""`fhircm reconcile`: look at everything of a partner, and tell what was found and how it stands."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.exchange.client import connect
from fhircm.exchange.freshness import freshness, rendered
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
