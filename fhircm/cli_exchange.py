"""`fhircm reconcile`, `fhircm push` and `fhircm partner status`: do the work with partners now, and tell how it stands."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from fhircm import partnering, wiring
from fhircm.exchange import status_json
from fhircm.exchange.client import connect
from fhircm.exchange.freshness import freshness, rendered
from fhircm.exchange.status import Verdict, statuses
from fhircm.exchange.status import rendered as told
from fhircm.settings import Settings
from fhircm.settings import load as load_settings


def reconcile(name: Annotated[str, typer.Argument(help="The partner's folder name.")]) -> None:
    """Look at everything of a partner now, believing nothing that it said of changes, and tell what is gone, merged or missing."""
    raise typer.Exit(asyncio.run(_reconcile(load_settings(), name)))


async def _reconcile(settings: Settings, name: str) -> int:
    async with wiring.open_store(settings) as store:
        partner = wiring.partners(settings, [name])[0]
        async with connect(partner, settings.keys_dir, wiring.tokens(settings, store)) as client:
            report = await partnering.reconcile_partner(settings, store, client)
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
            report = await partnering.push_partner(settings, store, partner)
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
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list with everything, for scripts.")] = False,
) -> None:
    """Tell how each partner is doing, and what to do about what is not well. Ends with 1 when something is down."""
    raise typer.Exit(asyncio.run(_status(load_settings(), name, types=types, as_json=as_json)))


async def _status(settings: Settings, name: str | None, *, types: bool, as_json: bool) -> int:
    chosen = wiring.partners(settings, [name] if name else None)
    async with wiring.open_store(settings) as store:
        found = await statuses(store, chosen)
    if as_json:
        typer.echo(json.dumps([status_json.as_json(one) for one in found], indent=2))
    else:
        for partner, one in zip(chosen, found, strict=True):
            typer.echo(told(one))
            if types:
                typer.echo(rendered(partner, one.types).partition("\n")[2])
    return int(any(one.verdict is Verdict.DOWN for one in found))
