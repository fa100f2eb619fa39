"""`fhircm mapping`: try what becomes of a partner's resources, and see what its map does not know."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.exchange import map_cases
from fhircm.exchange.maps import MapWrong
from fhircm.exchange.unmapped import unmapped as report
from fhircm.fhir import json
from fhircm.fhir.outcome import FhirError
from fhircm.settings import load as load_settings

app = typer.Typer(
    no_args_is_help=True, help="The maps of partners: code systems, identifiers, extensions, and whatever else differs."
)

_Partner = Annotated[str, typer.Argument(help="The name of the partner's folder in mappings/.")]
_Out = Annotated[bool, typer.Option("--outbound", help="As it is sent to the partner, not as it comes from there.")]


@app.command()
def test(partner: Annotated[str | None, typer.Argument(help="Only this partner.")] = None) -> None:
    """Run the cases in mappings/PARTNER/tests; no partner is asked."""
    failed = count = 0
    for one in wiring.partners(load_settings(), [partner] if partner else None):
        try:
            listed = map_cases.cases(one.folder)
        except MapWrong as error:
            raise _refused(str(error)) from None
        for case in listed:
            count += 1
            if why := map_cases.wrong(one.maps, case):
                failed += 1
                typer.echo(f"{one.name}/tests/{case.file.name}: {case.name}\n  {why}")
    typer.echo(f"{count} cases, {failed} failed")
    if failed:
        raise typer.Exit(1)


@app.command("try")
def try_(
    partner: _Partner,
    file: Annotated[Path, typer.Argument(help="A resource as JSON, as the partner sends it.")],
    outbound: _Out = False,
) -> None:
    """Print what a resource becomes, and on stderr what each rule did."""
    (one,) = wiring.partners(load_settings(), [partner])
    try:
        seen = map_cases.trace(one.maps, file.read_bytes(), map_cases.OUTBOUND if outbound else map_cases.INBOUND)
    except FhirError as error:
        raise _refused(f"{file}: {error}") from None
    for step in seen.steps:
        typer.echo(f"{step.at}: {'' if step.held else 'not for this resource'}{_told(step) if step.held else ''}", err=True)
    for code in seen.unmapped:
        typer.echo(f"unmapped: {code.type} {code.path} {code.system}|{code.code}", err=True)
    if seen.result is None:
        raise _refused(seen.failed)
    typer.echo(json.dumps(seen.result).decode() if outbound else seen.body.decode())


def _told(step: map_cases.Step) -> str:
    return ", ".join(f"{one['op']} {one['path']}" for one in step.changes) or "nothing to do"


@app.command()
def unmapped(partner: _Partner) -> None:
    """The codes that came and that the map does not know: resources, direction, element, code. They went through with their local codes."""
    settings = load_settings()
    (one,) = wiring.partners(settings, [partner])

    async def go() -> None:
        async with wiring.open_store(settings) as store:
            for line in await report(store, one):
                code = line.unmapped
                typer.echo(f"{line.resources}\t{line.direction}\t{code.type}: {code.path}\t{code.system}|{code.code}")

    asyncio.run(go())


def _refused(why: str) -> typer.Exit:
    typer.echo(why, err=True)
    return typer.Exit(1)
