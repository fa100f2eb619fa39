"""`fhircm dead-letters` and `fhircm partner explain`: what partners could not be told, and why they are told the way they are."""

from __future__ import annotations

import getpass
import json
from typing import Annotated

import typer

from fhircm import partnering, wiring
from fhircm.cli_noting import with_store
from fhircm.exchange import dead_letters
from fhircm.exchange.dead_letters import KINDS
from fhircm.fhir.outcome import Invalid
from fhircm.settings import Settings
from fhircm.store.resources import Store

app = typer.Typer(no_args_is_help=True, help="What partners could not be told: with the reason, to be tried again or let go.")

_Partner = Annotated[str, typer.Argument(help="The partner's folder name.")]
_Key = Annotated[str, typer.Argument(help="What it is, as the list names it.")]
_Kind = Annotated[str | None, typer.Option(help=f"Only these: {', '.join(KINDS)}.")]


def _checked(kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise Invalid(f"'{kind}' is no kind of dead letter; there are: {', '.join(KINDS)}")
    return kind


@app.command("list")
def list_(
    partner: Annotated[str | None, typer.Argument(help="A partner's folder name; without it, all of them.")] = None,
    kind: _Kind = None,
) -> None:
    """Every dead letter: partner, key, kind, first and last attempt, how many, and why. Nothing of what is in it."""

    async def go(settings: Settings, store: Store) -> None:
        lines = 0
        for one in wiring.partners(settings, [partner] if partner else None):
            for key, row in (await dead_letters.letters(store, one.name, _checked(kind))).items():
                lines += 1
                again = "in line again" if row.get("replay") else ""
                times = (row.get("first", ""), row.get("last", ""), f"{row.get('attempts', 1)}x")
                typer.echo("\t".join((one.name, key, row["why"], *times, row["reason"], again)).rstrip("\t"))
        if not lines:
            typer.echo("There are no dead letters")

    with_store(go, note=False)


@app.command()
def show(partner: _Partner, key: _Key) -> None:
    """Tell all that is known of one."""

    async def go(_: Settings, store: Store) -> None:
        row = await dead_letters.letter(store, partner, key)
        typer.echo(f"{row['why']}: {KINDS.get(row['why'], '')}")
        typer.echo(json.dumps(row, indent=2, ensure_ascii=False))

    with_store(go)


@app.command()
def replay(
    partner: _Partner,
    key: Annotated[str | None, typer.Argument(help="What to try again.")] = None,
    kind: _Kind = None,
    everything: Annotated[bool, typer.Option("--all", help="All of the partner.")] = False,
    prefer: Annotated[str | None, typer.Option(help="In a conflict, whose change wins: hub or partner. Only with a key.")] = None,
) -> None:
    """Put one, those of a kind, or all in line again, after what was wrong is mended; `fhircm work` delivers them."""

    async def go(settings: Settings, store: Store) -> None:
        (chosen,) = wiring.partners(settings, [partner])
        if prefer not in (None, "hub", "partner"):
            raise Invalid("--prefer is hub or partner")
        if (key is None) == (kind is None and not everything) or (prefer and key is None):
            raise Invalid("Give the key of one, or --kind, or --all; --prefer goes with a key alone")
        keys = [key] if key else list(await dead_letters.letters(store, chosen.name, _checked(kind)))
        for one in keys:
            await dead_letters.replay(store, chosen.name, one, prefer)
        typer.echo(f"{len(keys)} in line again")

    with_store(go)


@app.command()
def discard(
    partner: _Partner,
    key: _Key,
    reason: Annotated[str, typer.Option(help="Why the partner is not to be told; it is kept.")],
) -> None:
    """Let one go: it will not be told. Why, and who said so, stays in the record."""

    async def go(_: Settings, store: Store) -> None:
        await dead_letters.discard(store, partner, key, reason, {"display": f"Operator {_operator()}"})
        typer.echo(f"{key} will not be told")

    with_store(go)


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "without a name"


def explain(
    name: _Partner,
    resource: Annotated[str, typer.Argument(help="A resource at this hub, such as CarePlan/123.")],
) -> None:
    """Tell which way a partner would be told of a resource, why not by a better one, and what became of it. Nothing is sent."""

    async def go(settings: Settings, store: Store) -> None:
        told = await partnering.explain_delivery(settings, store, wiring.partners(settings, [name])[0], resource)
        for one in told:
            typer.echo(f"{one.occasion}, {one.number}: {one.standing}")
            for rung in one.rungs:
                typer.echo(f"  {rung.verdict:<10}  {rung.way:<20}{rung.why}")
        if not told:
            typer.echo(f"{name} asks for no news of a {resource.partition('/')[0]}")

    with_store(go)
