"""`fhircm audit`: is the chain whole, who saw a patient's record, and what waits to be written. docs/how-to/audit.md"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fhircm import wiring
from fhircm.access.audit_head import ALGORITHM, HeadWrong, read, signed
from fhircm.access.audit_journal import backlog
from fhircm.access.disclosures import Disclosure, as_csv, bundle, disclosures, row, trail
from fhircm.cli_noting import noted
from fhircm.exchange.client_keys import signing_key
from fhircm.fhir.systems import SERVER
from fhircm.settings import Settings
from fhircm.settings import load as load_settings
from fhircm.store import audit as chains
from fhircm.store.resources import Store

app = typer.Typer(no_args_is_help=True, help="Who did what: verify the record, tell a patient who saw theirs.")
out = Console()
err = Console(stderr=True)

_DAY = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]


def _run(work: Callable[[Settings], Coroutine[Any, Any, int]], *, told: bool = False) -> None:
    """Carry it out; `told`: in the audit too, for who asks whom others saw sees it himself."""
    settings = load_settings()

    def go() -> int:
        return asyncio.run(work(settings))

    raise SystemExit(noted(settings, go) if told else go())


def _key(settings: Settings) -> Any:
    return signing_key(settings.keys_dir, "audit", ALGORITHM)


async def _written(settings: Settings, store: Store) -> None:
    """What waits in the journal of this machine goes into the database first, so that nothing is missed."""
    if wiring.audit_folder(settings).is_dir():
        await wiring.audit_drain(settings, store).drain()


@app.command()
def verify(
    since: Annotated[datetime | None, typer.Option(help="Only what was written from this day on.", formats=_DAY)] = None,
    expect: Annotated[
        str | None, typer.Option(help="A head that `fhircm audit head` printed: what it stands for must still be there.")
    ] = None,
) -> None:
    """Walk the chain of audit: names the first entry that was changed, removed or put in, and ends with 1."""

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            await _written(settings, store)
            first, last = await chains.length(store, since.replace(tzinfo=UTC) if since else None)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
                task = bar.add_task("entries", total=max(last - first + 1, 0))
                reached = first - 1
                async for step in chains.verified(store, first):
                    if isinstance(step, chains.Broken):
                        return _broken(step)
                    reached = step
                    bar.update(task, completed=reached - first + 1)
            for id in await chains.strays(store, SERVER):
                err.print(f"AuditEvent/{id} is in no chain: it was put in, or its link was removed", style="red", highlight=False)
                return 1
            if expect is not None and (why := await _unexpected(settings, store, expect)):
                err.print(why, style="red", highlight=False, soft_wrap=True)
                return 1
        out.print(f"{reached - first + 1} entries are whole, from {first} to {reached}", highlight=False)
        return 0

    _run(go)


def _broken(step: chains.Broken) -> int:
    named = f" (AuditEvent/{step.id})" if step.id else ""
    err.print(f"The chain breaks at entry {step.number}{named}: {step.why}", style="red", highlight=False, soft_wrap=True)
    return 1


async def _unexpected(settings: Settings, store: Store, expected: str) -> str | None:
    try:
        number, hash = read(expected, _key(settings))
    except HeadWrong as error:
        return str(error)
    found = await chains.link(store, number) if number else chains.BEGIN
    if found is None:
        return f"The end was cut off: entry {number}, which the head stands for, is not there"
    return None if found == hash else f"Entry {number} is not the one that the head stands for: the chain was written anew"


@app.command()
def head() -> None:
    """Print the end of the chain, signed by the hub: keep it elsewhere, and give it to `verify --expect` later."""

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            await _written(settings, store)
            number, hash = await chains.head(store)
        print(signed(number, hash, _key(settings)))
        return 0

    _run(go)


@app.command()
def status() -> None:
    """Tell what waits in the journal of this machine, and how long the chain is. Ends with 1 when a line could not be read."""

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            newest = await chains.head(store)
        folder = wiring.audit_folder(settings)
        waiting = backlog(folder)
        out.print(f"{newest.number} entries are in the chain", highlight=False)
        out.print(
            f"{waiting.files} files of {waiting.size} bytes wait in {folder}"
            f" (limit {settings.audit_limit}); the oldest for {waiting.oldest:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        for name in waiting.broken:
            err.print(f"{folder / name} holds lines that could not be read", style="red", highlight=False, soft_wrap=True)
        for other in sorted(settings.audit_dir.glob("*/")):
            if other != folder and (left := backlog(other)).files:
                text = f"{left.files} files wait in {other}: they are of another database"
                err.print(text, style="yellow", highlight=False, soft_wrap=True)
        return 1 if waiting.broken else 0

    _run(go)


@app.command("disclosures")
def told(
    patient: Annotated[str, typer.Argument(help="The id of a Patient at this hub.")],
    since: Annotated[datetime | None, typer.Option(help="Only from this time on (UTC).", formats=_DAY)] = None,
    until: Annotated[datetime | None, typer.Option(help="Only before this time (UTC).", formats=_DAY)] = None,
    format: Annotated[str, typer.Option(help="text, csv or fhir.")] = "text",
    file: Annotated[Path | None, typer.Option(help="Write it here instead of to the terminal.")] = None,
) -> None:
    """Tell who was shown what of a patient's record: when, who, of which organisation, for what purpose."""
    if format not in ("text", "csv", "fhir"):
        raise typer.BadParameter("text, csv or fhir", param_hint="--format")

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            await _written(settings, store)
            known = await store.read_many([("Patient", patient)]) or await store.heads([("Patient", patient)])
            if not known:
                err.print(f"Patient/{patient} is not known", style="red", highlight=False)
                return 1
            low, high = (at.replace(tzinfo=UTC) if at else None for at in (since, until))
            listed = await disclosures(store, patient, low, high)
        text = {"text": _text, "csv": _csv, "fhir": _fhir}[format](patient, listed)
        if file is not None:
            file.write_text(text)
        else:
            print(text, end="")
        return 0

    _run(go, told=True)


@app.command("trail")
def trail_(
    who: Annotated[str, typer.Argument(help="Patient/ID: who looked at that record. Practitioner/ID …: what that person did.")],
    since: Annotated[datetime | None, typer.Option(help="Only from this time on (UTC).", formats=_DAY)] = None,
    until: Annotated[datetime | None, typer.Option(help="Only before this time (UTC).", formats=_DAY)] = None,
) -> None:
    """Tell everything that was recorded of a patient or a person, refusals too, the newest first."""
    kind, _, id = who.partition("/")
    if not id:
        raise typer.BadParameter("a reference such as Patient/123 or Practitioner/123")

    async def go(settings: Settings) -> int:
        low, high = (at.replace(tzinfo=UTC) if at else None for at in (since, until))
        asked = [("patient" if kind == "Patient" else "agent", who)]
        async with wiring.open_store(settings) as store:
            await _written(settings, store)
            print(f"{who}: what was recorded, the newest first\n")
            cursor = None
            while True:
                listed, cursor = await trail(store, asked, low, high, cursor)
                for one in listed:
                    print("\t".join((*row(one), "" if one.tree.get("outcome") == "0" else "refused or failed")).rstrip())
                if cursor is None:
                    return 0

    _run(go, told=True)


def _text(patient: str, listed: Sequence[Disclosure]) -> str:
    lines = [f"Patient/{patient}: {len(listed)} times something of the record was shown, written or asked for", ""]
    for one in listed:
        at, who, app, organization, purpose, what, address = row(one)
        of = f" of {organization}" if organization else ""
        why = f", for {purpose}" if purpose else ""
        lines.append(f"{at}  {who or app}{of}{f' with {app}' if who else ''}{why}: {what}  [{address or 'address unknown'}]")
    return "\n".join(lines) + "\n"


def _csv(patient: str, listed: Sequence[Disclosure]) -> str:
    return as_csv(listed)


def _fhir(patient: str, listed: Sequence[Disclosure]) -> str:
    return json.dumps(bundle(listed), indent=2) + "\n"
