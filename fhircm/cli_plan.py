"""`fhircm plan`: the longitudinal care plan of a person in words, with its sources and what they differ in."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.cli_noting import noted
from fhircm.settings import load as load_settings


def plan(
    patient: Annotated[str, typer.Argument(help="The id of a Patient at this hub; records linked to it count, too.")],
) -> None:
    """Tell the care plan of a person over all partners: what is in it, who says so, where they differ, and what was left out."""
    settings = load_settings()

    async def go() -> None:
        async with wiring.open_store(settings) as store:
            typer.echo(await wiring.plan_in_words(settings, store, patient.removeprefix("Patient/")))

    noted(settings, lambda: asyncio.run(go()))


def add_commands(app: typer.Typer) -> None:
    """Put the command among the others."""
    app.command()(plan)
