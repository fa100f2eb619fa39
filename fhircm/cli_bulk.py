"""The command line of bulk exports: have a partner export, see how far it is, end it.

https://hl7.org/fhir/uv/bulkdata/export.html
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fhircm import partnering, wiring
from fhircm.exchange import bulk_due, bulk_export
from fhircm.exchange.bulk_state import Export
from fhircm.exchange.client import connect
from fhircm.exchange.partners import Partner
from fhircm.settings import Settings
from fhircm.settings import load as load_settings
from fhircm.store.resources import Store

app = typer.Typer(no_args_is_help=True, help="Bulk exports at partners: `fhircm pull PARTNER --bulk` starts one.")
out = Console()
err = Console(stderr=True)
PATIENCE = timedelta(minutes=1)  # the longest wait that the command itself waits


async def pull_in_bulk(settings: Settings, store: Store, partner: Partner) -> int:
    """Have a partner export, and tell what came of it. Returns the exit status."""
    if partner.bulk is None:
        err.print(
            f"{partner.name} does not export in bulk: {partner.folder / 'partner.yaml'} has no section bulk",
            style="red",
            highlight=False,
        )
        return 1
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"{partner.name}: waiting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{partner.name}: {what}", completed=done, total=total)

        async with connect(partner, settings.keys_dir) as client:
            ended, step = await partnering.pull_in_bulk(settings, store, client, tell, PATIENCE)
    for figures in ended:
        out.print(f"{partner.name}: {bulk_export.told(figures)}", highlight=False, soft_wrap=True)
        for text in (*figures["told"], *(f"refused {one}" for one in figures["refusals"])):
            err.print(f"  {text}", style="yellow", highlight=False, soft_wrap=True)
    if step.export is not None:
        out.print(
            f"{partner.name}: {standing(step.export)}; `fhircm work` goes on, or this command", highlight=False, soft_wrap=True
        )
    return 1 if any(figures["failed"] or figures.get("refused") for figures in ended) else 0


def standing(export: Export) -> str:
    """How an export stands, in one line."""
    parts = [f"the export of {len(export.types)} types begun {export.begun[:19]}Z is {export.phase}"]
    parts += [export.progress] if export.progress else []
    return "; ".join([*parts, f"goes on at {export.due[:19]}Z"])


@app.command("status")
def status(name: Annotated[str | None, typer.Argument(help="A partner; without it, all that export in bulk.")] = None) -> None:
    """Tell the export that is under way, what the last one came to, and up to when each type is written."""

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            for partner in wiring.partners(settings, [name] if name else None):
                if partner.bulk is None:
                    continue
                export = await bulk_export.kept(store, partner.name)
                out.print(
                    f"{partner.name}: {standing(export) if export else 'no export is under way'}", highlight=False, soft_wrap=True
                )
                last = await store.state(bulk_due.namespace(partner.name), bulk_due.LAST)
                if last:
                    out.print(
                        f"  last: {bulk_export.told(last)}; ended {last['finished'][:19]}Z", highlight=False, soft_wrap=True
                    )
                known = await bulk_due.standings(store, partner.name)
                for type, since, why in bulk_due.told(known, partner.bulk.of(partner.types)):
                    out.print(f"  {type}\t{since}" + (f"\t{why}" if why else ""), highlight=False, soft_wrap=True)
        return 0

    raise SystemExit(asyncio.run(go(load_settings())))


@app.command("cancel")
def cancel(name: Annotated[str, typer.Argument(help="A partner's folder name.")]) -> None:
    """End the export that is under way, at the partner too. What was written of it stays."""

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            (partner,) = wiring.partners(settings, [name])
            ended = await partnering.cancel_bulk(settings, store, partner)
        out.print(f"{name}: {'ended' if ended else 'no export is under way'}", highlight=False)
        return 0

    raise SystemExit(asyncio.run(go(load_settings())))
