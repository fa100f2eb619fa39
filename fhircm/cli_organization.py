"""`fhircm organization`: the organisations that people and clients belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.cli_noting import noted
from fhircm.coordination import organizations
from fhircm.coordination.build import npi as npi_of
from fhircm.fhir.query import parse_query
from fhircm.settings import load as load_settings
from fhircm.store.resources import Put, Store, Stored

app = typer.Typer(no_args_is_help=True, help="The organisations that people and clients belong to.")

_Id = Annotated[str, typer.Argument(help="The id of the Organization.")]
_PAGE = "200"


def _run(work: Callable[[Store], Awaitable[None]]) -> None:
    settings = load_settings()

    async def go() -> None:
        async with wiring.open_store(settings) as store:
            await work(store)

    noted(settings, lambda: asyncio.run(go()))


@app.command("list")
def list_(find: Annotated[str | None, typer.Option(help="Only those whose name begins with this.")] = None) -> None:
    """Every Organization: reference, name, NPI, and whether it is active."""

    async def go(store: Store) -> None:
        asked = [("_sort", "name"), ("_count", _PAGE), *([("name", find)] if find else [])]
        query = parse_query("Organization", asked)
        while True:
            page = await store.search(query)
            for one in page.matches:
                tree = one.tree
                state = "inactive" if tree.get("active") is False else "active"
                typer.echo("\t".join((f"Organization/{one.id}", tree.get("name", ""), npi_of(tree) or "-", state)))
            if page.next is None:
                return
            query = replace(query, cursor=page.next)

    _run(go)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    npi: Annotated[str | None, typer.Option(help="Its National Provider Identifier.")] = None,
) -> None:
    """Add an Organization, and print its reference."""

    async def go(store: Store) -> None:
        (stored,) = await store.transact([organizations.new(name, npi)], origin="hub")
        typer.echo(f"Organization/{stored.id}")

    _run(go)


@app.command()
def edit(
    id: _Id,
    name: Annotated[str | None, typer.Option(help="What it is called from now on.")] = None,
    npi: Annotated[str | None, typer.Option(help="Its NPI from now on; '' for none.")] = None,
) -> None:
    """Change the name or the NPI of an Organization."""
    _edit(id, lambda stored: organizations.edited(stored, name=name, npi=npi), "is changed")


@app.command()
def disable(id: _Id) -> None:
    """Mark an Organization as not in use any more."""
    _edit(id, lambda stored: organizations.edited(stored, active=False), "is inactive")


@app.command()
def enable(id: _Id) -> None:
    """Mark an Organization as in use."""
    _edit(id, lambda stored: organizations.edited(stored, active=True), "is active")


def _edit(id: str, change: Callable[[Stored], Put], done: str) -> None:
    async def go(store: Store) -> None:
        await store.transact([change(await store.read("Organization", id.removeprefix("Organization/")))], origin="hub")
        typer.echo(f"Organization/{id.removeprefix('Organization/')} {done}")

    _run(go)
