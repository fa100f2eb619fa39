"""`fhircm emergency`: emergency accesses, and their review by the privacy officer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.person import principal_of
from fhircm.cli_noting import noted
from fhircm.coordination import emergency
from fhircm.settings import load as load_settings
from fhircm.store.logins import Login
from fhircm.store.principals import Principals
from fhircm.store.resources import Stored

app = typer.Typer(no_args_is_help=True, help="Emergency accesses (break-glass), and their review by the privacy officer.")

_Officer = Annotated[str, typer.Option("--as", help="The privacy officer, by the name that they sign in with.")]
_Id = Annotated[str, typer.Argument(help="The Task, as `fhircm emergency list` names it.")]


def _run(officer: str, work: Callable[[GuardedStore, Login], Awaitable[None]]) -> None:
    settings = load_settings()

    async def go() -> None:
        async with wiring.open_store(settings) as store:
            login = await wiring.people(settings, store).named(officer)
            principal = await principal_of(login, Principals(store.database))
            await work(GuardedStore(store, principal, settings.access_grace), login)

    noted(settings, lambda: asyncio.run(go()))


@app.command("list")
def list_(
    officer: _Officer, reviewed: Annotated[bool, typer.Option("--reviewed", help="Those that were reviewed, instead.")] = False
) -> None:
    """Emergency accesses that wait for a review: Task, when, until when, who, whom, status, and why."""

    async def go(store: GuardedStore, login: Login) -> None:
        cursor, any = None, False
        while True:
            page = await emergency.emergencies(store, reviewed=reviewed, count=200, cursor=cursor)
            for one in page.matches:
                any = True
                typer.echo("\t".join(_line(one)))
            if (cursor := page.next) is None:
                break
        if not any:
            typer.echo("None was reviewed yet" if reviewed else "None waits for a review")

    _run(officer, go)


def _line(task: Stored) -> tuple[str, ...]:
    tree = task.tree
    until = tree["restriction"]["period"]["end"]
    who, whom = tree["requester"]["reference"], tree["for"]["reference"]
    return task.id, tree["authoredOn"], until, who, whom, tree["status"], tree["reasonCode"]["text"]


@app.command()
def accept(id: _Id, officer: _Officer) -> None:
    """Take on the review of an emergency access."""

    async def go(store: GuardedStore, login: Login) -> None:
        await emergency.accept(store, id, login.name)
        typer.echo(f"{login.name} reviews it")

    _run(officer, go)


@app.command()
def review(
    id: _Id, officer: _Officer, found: Annotated[str, typer.Option(help="What the review found; it becomes a note of the Task.")]
) -> None:
    """End the review of an emergency access with what was found."""

    async def go(store: GuardedStore, login: Login) -> None:
        await emergency.review(store, id, login.name, found)
        typer.echo("The review is done")

    _run(officer, go)
