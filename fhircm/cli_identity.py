"""`fhircm identity`: which records are of one person, for a data steward."""

from __future__ import annotations

from typing import Annotated

import typer

from fhircm import wiring
from fhircm.cli_noting import operator, with_store
from fhircm.coordination import build
from fhircm.exchange import review, steward
from fhircm.settings import Settings
from fhircm.store.resources import Store

app = typer.Typer(no_args_is_help=True, help="Which records of the partners are of one person.")

_One = Annotated[str, typer.Argument(help="A Patient of the hub, by its id.")]
_Other = Annotated[str, typer.Argument(help="The other Patient.")]


@app.command("review")
def review_() -> None:
    """The questions that wait for a human, those that are nearly sure first: Task, bits, both records, and why it is asked."""

    async def go(settings: Settings, store: Store) -> None:
        found = [stored.tree for stored in await review.waiting(store)]
        rows = [(float(next((one["valueString"] for one in task.get("input", [])), "0")), task) for task in found]
        for bits, task in sorted(rows, key=lambda row: (-row[0], row[1]["id"])):
            typer.echo("\t".join((task["id"], f"{bits:.1f}", *review.pair_of(task), task["reasonCode"]["text"])))
        if not rows:
            typer.echo("Nothing waits for a decision")

    with_store(go)


@app.command()
def explain(one: _One, other: _Other) -> None:
    """What speaks for and against two records being of one person: levels of agreement, never values."""

    async def go(settings: Settings, store: Store) -> None:
        for line in await steward.explain(store, one, other, wiring.thresholds(settings)):
            typer.echo(line)

    with_store(go)


@app.command()
def link(one: _One, other: _Other) -> None:
    """Say that two records are of one person; `unlink` takes it back."""
    _decide(one, other, "same", "They are one person from now on")


@app.command()
def unlink(one: _One, other: _Other) -> None:
    """Say that two records are of two people: nothing flows between them any more, and what was sent is listed for a human."""
    _decide(one, other, "different", "They are two people from now on")


def _decide(one: str, other: str, said: str, done: str) -> None:
    async def go(settings: Settings, store: Store) -> None:
        owner = build.coordinating_organization(settings.organization_name)
        task = await steward.decide(
            store, one, other, said, wiring.thresholds(settings), owner=f"Organization/{owner.id}", who=operator()
        )
        typer.echo(f"{done}; Task/{task.id} tells who said so, and `fhircm work` carries it out")

    with_store(go)
