"""`fhircm loops`: everything that is open at the hub, who has it, and when something happens to it next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from fhircm import wiring
from fhircm.cli_noting import with_store
from fhircm.coordination.open_loops import WRONG, Loop
from fhircm.settings import Settings
from fhircm.store.resources import Store

_LAST = datetime.max.replace(tzinfo=UTC)


def loops(
    wrong: Annotated[bool, typer.Option("--wrong", help="Only those that nobody has, or to which nothing happens next.")] = False,
) -> None:
    """List the open loops, the next due first: what it is, its status, who has it, when something happens next; then what is wrong with it.

    Ends with 1 when anything is wrong: no open loop may be without somebody who has it and a next due time.
    """

    async def go(settings: Settings, store: Store) -> int:
        found = sorted(await wiring.open_loops(settings, store), key=lambda loop: (loop.next or _LAST, loop.name))
        zone = ZoneInfo(settings.time_zone)
        for loop in found:
            if loop.wrong or not wrong:
                typer.echo("\t".join(_columns(loop, zone)))
        broken = sum(bool(loop.wrong) for loop in found)
        typer.echo(f"{len(found)} open, {broken} wrong", err=True)
        return int(broken > 0)

    with_store(go)


def _columns(loop: Loop, zone: ZoneInfo) -> list[str]:
    when = loop.next.astimezone(zone).isoformat(timespec="minutes") if loop.next else "-"
    return [loop.name, loop.stored.tree["status"], loop.owner, when, "; ".join(WRONG[code] for code in loop.wrong)]


def add_commands(app: typer.Typer) -> None:
    """Put the command among the others."""
    app.command()(loops)
