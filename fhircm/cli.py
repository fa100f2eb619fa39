"""The command line: one command for each thing an operator does; `fhircm --help` teaches them.

Exit status: 0 all is well, 1 something was refused or does not work (and was told), 2 the command was called wrongly.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fhircm import (
    cli_audit,
    cli_bulk,
    cli_delivery,
    cli_emergency,
    cli_exchange,
    cli_identity,
    cli_keys,
    cli_loops,
    cli_mapping,
    cli_operation,
    cli_organization,
    cli_partner,
    cli_people,
    cli_plan,
    cli_quarantine,
    cli_smart,
    partnering,
    wiring,
)
from fhircm.exchange.client import connect
from fhircm.exchange.partners import PartnerWrong
from fhircm.fhir.outcome import FhirError
from fhircm.jobs import JOBS, job
from fhircm.jobs.reindex import start_reindex
from fhircm.log_lines import log_to_stderr
from fhircm.settings import Settings, SettingsWrong
from fhircm.settings import load as load_settings
from fhircm.store.migrations import migrate as migrate_database

if TYPE_CHECKING:
    from fastapi import FastAPI

app = typer.Typer(
    name="fhircm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Care coordination between EHRs, payers and SMART apps, in FHIR. Start with: fhircm demo",
    epilog="Every setting can be given as an environment variable FHIRCM_…; docs/reference/settings.md lists them.",
)
partner_app = typer.Typer(no_args_is_help=True, help="The EHRs and other systems that the hub exchanges with.")
app.add_typer(partner_app, name="partner")
partner_app.command("new")(cli_partner.new)
cli_smart.add_commands(app)
app.add_typer(cli_keys.app, name="keys")
cli_plan.add_commands(app)
cli_loops.add_commands(app)
app.add_typer(cli_people.user_app, name="user")
app.add_typer(cli_organization.app, name="organization")
app.add_typer(cli_quarantine.app, name="quarantine")
app.add_typer(cli_delivery.app, name="dead-letters")
partner_app.command("explain")(cli_delivery.explain)
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_bulk.app, name="bulk")
app.add_typer(cli_emergency.app, name="emergency")
app.add_typer(cli_mapping.app, name="mapping")
app.add_typer(cli_operation.app, name="operation")
app.command()(cli_exchange.reconcile)
app.command()(cli_exchange.push)
partner_app.command("status")(cli_exchange.status)
app.add_typer(cli_identity.app, name="identity")
guide_app = typer.Typer(no_args_is_help=True, help="Implementation guides: profiles and search parameters beside FHIR R4 itself.")
app.add_typer(guide_app, name="ig")

out = Console()
err = Console(stderr=True)


def main() -> None:
    """Entry point: runs a command and turns errors into one clear line and an exit status."""
    try:
        app()
    except SettingsWrong as error:
        err.print(str(error), style="red", highlight=False)
        raise SystemExit(2) from None
    except FhirError as error:
        for issue in error.issues:
            err.print(f"{issue.expression + ': ' if issue.expression else ''}{issue.text}", style="red", highlight=False)
        raise SystemExit(1) from None
    except (OSError, PartnerWrong) as error:
        err.print(str(error), style="red", highlight=False)
        raise SystemExit(1) from None


def _log(settings: Settings, *, running: bool) -> None:
    """Lines to stderr: a process that runs on logs as the settings say, a command that ends tells only what went wrong."""
    level = logging.getLevelNamesMapping()[settings.log_level]
    level = level if running else max(level, logging.WARNING)
    log_to_stderr(level)


def _run(work: Callable[[Settings], Coroutine[Any, Any, int | None]], *, running: bool = False) -> None:
    settings = load_settings()
    _log(settings, running=running)
    if settings.host not in ("127.0.0.1", "localhost") and settings.allow_private_jwks:
        err.print("Warning: FHIRCM_ALLOW_PRIVATE_JWKS is meant for loopback only", style="yellow")
    raise SystemExit(asyncio.run(work(settings)) or 0)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


@app.command()
def serve() -> None:
    """Serve the FHIR API and the authorization server (listens on FHIRCM_HOST and FHIRCM_PORT).

    FHIRCM_PROCESSES says how many processes answer here; any number of these may run on one PostgreSQL, on any number of machines.
    `fhircm work` does what happens in the background.
    """
    import uvicorn

    from fhircm.edge import tls
    from fhircm.edge.connection import Limits, connections

    settings = load_settings()
    _log(settings, running=True)
    limits = Limits(settings.slow_client.total_seconds(), settings.head_limit, settings.connection_limit)
    uvicorn.run(
        "fhircm.cli:application",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.processes,
        access_log=False,
        log_level="warning",
        log_config=None,
        proxy_headers=False,  # fhircm/edge/forwarded.py reads them
        server_header=False,
        http=connections(limits),
        ws="none",
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        ssl_context_factory=tls.context if settings.tls_cert else None,
    )


def application() -> FastAPI:
    """The application of one process of `fhircm serve`."""
    settings = load_settings()
    _log(settings, running=True)
    return wiring.application(settings)


@app.command()
def work(
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do now.")] = False,
) -> None:
    """Run the background work: reactions, deadlines, and the exchange with every partner.

    Any number of these may run; what one does is never done twice.
    """

    async def go(settings: Settings) -> int:
        async with wiring.worker(settings) as worker:
            if until_idle:
                await wiring.audit_drain(settings, worker.store).drain()
                out.print(f"{await worker.run_until_idle()} done, nothing left")
                return 0
            task = asyncio.create_task(worker.run())
            audit = asyncio.create_task(wiring.audit_drain(settings, worker.store).run())
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            await asyncio.gather(task, return_exceptions=True)
            audit.cancel()
            if not task.cancelled() and (error := task.exception()):
                raise error
            return 0

    _run(go, running=True)


@app.command()
def mllp() -> None:
    """Listen for the HL7 v2 messages of the partners (on FHIRCM_MLLP_HOST and FHIRCM_MLLP_PORT), and acknowledge each when it is committed.

    Any number of these may run; a message that was taken is not taken again.
    """

    async def go(settings: Settings) -> int:
        async with wiring.mllp(settings) as (_, port):
            stopped = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stopped.set)
            out.print(f"Listening for HL7 v2 messages on {settings.mllp_host}:{port}", highlight=False)
            await stopped.wait()
        return 0

    _run(go, running=True)


@app.command()
def migrate() -> None:
    """Bring the database to the schema of this version; does nothing when it is there already."""

    async def go(settings: Settings) -> None:
        await migrate_database(settings.database_url)
        out.print("The database is up to date")

    _run(go)


@app.command()
def pull(
    name: Annotated[str | None, typer.Argument(help="A partner's folder name; without it, all of them.")] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="Have the partner export in bulk instead of searching.")] = False,
) -> None:
    """Read what changed at a partner, now. A pull that was interrupted goes on where it stopped."""

    async def go(settings: Settings) -> int:
        status = 0
        async with wiring.open_store(settings) as store:
            for partner in wiring.partners(settings, [name] if name else None):
                if bulk:
                    status = max(status, await cli_bulk.pull_in_bulk(settings, store, partner))
                    continue
                with _bar() as bar:
                    task = bar.add_task(f"{partner.name}: patients", total=None)
                    advance = partial(_advance, bar, task)
                    async with connect(partner, settings.keys_dir, wiring.tokens(settings, store)) as client:
                        report = await partnering.pull_partner(settings, store, client, advance)
                out.print(f"{partner.name}: {report.summary()}", highlight=False, soft_wrap=True)
                for refused in report.refused:
                    err.print(f"  refused {refused}", style="yellow", highlight=False, soft_wrap=True)
                status = 1 if report.refused or report.failed else status
        return status

    _run(go)


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


@app.command()
def load(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="NDJSON: a resource or a Bundle a line; .gz too.")],
) -> None:
    """Load records from a file. Each line that cannot be taken is reported; the rest is loaded."""

    async def go(settings: Settings) -> int:
        from fhircm.exchange import bulk

        async with wiring.open_store(settings) as store:
            with _bar() as bar:
                task = bar.add_task("resources", total=None)
                report = await bulk.load(store, file, lambda so_far: bar.update(task, completed=so_far.loaded + so_far.unchanged))
        for line, what, issues in report.rejected:
            for issue in issues:
                place = " ".join(part for part in (f"line {line}", what, issue.expression or "") if part)
                err.print(f"{place}: {issue.text}", style="yellow", highlight=False, soft_wrap=True)
        out.print(
            f"{report.lines} lines: {report.loaded} resources loaded, {report.unchanged} unchanged, {len(report.rejected)} rejected"
        )
        return 1 if report.rejected else 0

    _run(go)


@app.command()
def timeline(
    patient: Annotated[str, typer.Argument(help="The id of a Patient at this hub; records linked to it are told too.")],
    since: Annotated[datetime | None, typer.Option(help="Only from this day on.", formats=["%Y-%m-%d"])] = None,
) -> None:
    """Tell what happened to a patient, in order, and who did it."""

    async def go(settings: Settings) -> None:
        async with wiring.open_store(settings) as store:
            out.print(await wiring.told(settings, store, patient, since), highlight=False, soft_wrap=True)

    _run(go)


@app.command()
def replay(
    where: Annotated[
        str | None, typer.Argument(help="A reaction, a kind of timer, or push:PARTNER; as the list names it.")
    ] = None,
    key: Annotated[str | None, typer.Argument(help="What to do again.")] = None,
) -> None:
    """List what was given up on after the last attempt, or do one of it again.

    Without arguments everything that waits is listed: where, key and reason. Each has a Task that tells a human too.
    """

    async def go(settings: Settings) -> int:
        if where and key:
            out.print(await wiring.replay(settings, where, key))
            return 0
        async with wiring.open_store(settings) as store:
            listed = [row for row in await wiring.waiting(settings, store) if where in (None, row[0])]
        for row in listed:
            out.print("\t".join(row), highlight=False, soft_wrap=True)
        if not listed:
            out.print("Nothing was given up on")
        return 0

    _run(go)


@app.command()
def reindex(
    types: Annotated[list[str] | None, typer.Argument(help="Resource types; without any, all of them.")] = None,
) -> None:
    """Make the search rows of resources anew from what is stored, after a search parameter came or changed.

    Starts a job; `fhircm work` does it, beside everything else, and `fhircm jobs` tells how far it is.
    """

    async def go(settings: Settings) -> None:
        async with wiring.open_store(settings) as store:
            id = await start_reindex(store, types)
        out.print(f"Started: Task/{id}; `fhircm work` does it, and `fhircm jobs` tells how far it is", highlight=False)

    _run(go)


@app.command()
def jobs(
    cancel: Annotated[str | None, typer.Option(help="End the job of this Task id.")] = None,
) -> None:
    """List the newest jobs with their state and progress, or cancel one."""

    async def go(settings: Settings) -> None:
        async with wiring.open_store(settings) as store:
            if cancel is not None:
                await job.cancel(store, JOBS, cancel.removeprefix("Task/"))
            rows = await job.listed(store)
        for row in rows:
            out.print("\t".join(job.told(row)), highlight=False, soft_wrap=True)
        if not rows:
            out.print("There are no jobs")

    _run(go)


@app.command()
def sandbox(
    vendor: Annotated[
        str, typer.Option(help="The shape of EHR: athenahealth, eclinicalworks, epic, hapi, meditech, oracle or r4.")
    ],
    port: Annotated[int, typer.Option(help="Loopback port.")] = 8081,
    jwks_url: Annotated[str | None, typer.Option(help="Where the client publishes its keys.")] = None,
    jwks_file: Annotated[Path | None, typer.Option(help="Or a file with the client's JWKS.", exists=True)] = None,
    client_id: Annotated[str, typer.Option(help="The client that may sign in.")] = "fhircm",
    seed: Annotated[int, typer.Option(help="Of the synthetic population.")] = 7,
    humans: Annotated[int, typer.Option(help="How many people the synthetic population has.")] = 140,
    data: Annotated[Path | None, typer.Option(help="Real records instead: Bundles, one a line; .gz too.", exists=True)] = None,
    state: Annotated[Path | None, typer.Option(help="Folder that keeps what is written, over restarts.")] = None,
    token_lifetime: Annotated[int, typer.Option(help="Seconds.")] = 300,
    client_secret_file: Annotated[
        Path | None, typer.Option(help="File with a secret that the client has in place of keys.", exists=True)
    ] = None,
    app_redirect_uri: Annotated[
        str | None, typer.Option(help="Of an app that this EHR launches, such as the hub: its address of return.")
    ] = None,
) -> None:
    """Start an EHR with a vendor's habits, for demos, tests and integration work without a vendor."""
    from fhircm.sandbox.__main__ import main as start

    arguments = ["--vendor", vendor, "--port", str(port), "--client-id", client_id, "--seed", str(seed)]
    arguments += ["--humans", str(humans), "--token-lifetime", str(token_lifetime)]
    for option, value in (
        ("--jwks-url", jwks_url),
        ("--jwks-file", jwks_file),
        ("--data", data),
        ("--state", state),
        ("--app-redirect-uri", app_redirect_uri),
        ("--client-secret-file", client_secret_file),
    ):
        arguments += [option, str(value)] if value else []
    start(arguments)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End when the story is told instead of serving on.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Real records: Bundles, one a line; .gz too.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Tell the whole story on two sandbox EHRs: a discharge and a referral, until each loop is closed."""
    from fhircm.demo.tell import tell

    raise SystemExit(asyncio.run(tell(once=once, data=data, database_url=os.environ.get("FHIRCM_DATABASE_URL"), out=out)))


@partner_app.command("list")
def partner_list() -> None:
    """Name the partners and where they are."""
    settings = load_settings()
    for partner in wiring.partners(settings, None):
        out.print(f"{partner.name}\t{partner.vendor}\t{partner.base_url}", highlight=False)


@partner_app.command("check")
def partner_check(name: Annotated[str, typer.Argument(help="The partner's folder name.")]) -> None:
    """Tell in plain words what works with a partner, what it cannot do, and what to fix."""

    async def go(settings: Settings) -> int:
        async with wiring.open_store(settings) as store:
            report = await partnering.check_partner(settings, store, wiring.partners(settings, [name])[0])
        out.print(report.render(), highlight=False, soft_wrap=True)
        return 0 if report.ok else 1

    _run(go)


@guide_app.command("load")
def guide_load(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The package of the guide, a .tgz file.")],
) -> None:
    """Load an implementation guide: all processes know its profiles and search parameters a moment later.

    A search parameter answers when what is stored has been indexed by it; `fhircm work` does that, and `fhircm jobs` tells how far it is.
    """

    async def go(settings: Settings) -> None:
        async with wiring.open_store(settings) as store:
            report = await wiring.load_guide(store, file)
        out.print(
            f"{report.guide}: {report.stored} definitions stored, {report.unchanged} unchanged; {report.profiles} profiles and"
            f" extensions, {len(report.parameters)} new search parameters, {report.as_r4} that FHIR R4 has too",
            highlight=False,
            soft_wrap=True,
        )
        warnings = [*(f"not searchable: {one}" for one in report.refused), *(f"not stored: {one}" for one in report.left_out)]
        warnings += [f"checked in part: {one}" for one in report.in_part]
        if report.missing:
            warnings.append(f"depends on guides that are not loaded: {', '.join(report.missing)}")
        for line in warnings:
            err.print(f"  {line}", style="yellow", highlight=False, soft_wrap=True)
        if report.job:
            waiting = ", ".join(report.parameters)
            out.print(
                f"  Task/{report.job} indexes what is stored; then these answer: {waiting}", highlight=False, soft_wrap=True
            )

    _run(go)


@guide_app.command("list")
def guide_list() -> None:
    """Name the guides that are in force, and the search parameters that do not answer yet."""

    async def go(settings: Settings) -> None:
        async with wiring.open_store(settings) as store:
            rows = await wiring.guides.listed(store)
        for one in rows:
            state = "in force" if one.newest else "replaced by a newer version; its profiles are claimed by url|version"
            state = f"being indexed: {', '.join(one.indexing)}" if one.indexing else state
            out.print(f"{one.guide.key}\t{one.title}\t{state}", highlight=False, soft_wrap=True)
        if not rows:
            out.print("No implementation guide is loaded")

    _run(go)


@guide_app.command("remove")
def guide_remove(name: Annotated[str, typer.Argument(help="The guide's name, or one version of it: name#version.")]) -> None:
    """Take a guide out of force, and delete its definitions that nothing else refers to."""

    async def go(settings: Settings) -> None:
        async with wiring.open_store(settings) as store:
            removed = await wiring.remove_guide(store, name)
        for one in removed:
            out.print(f"{one.guide}: out of force, {one.deleted} definitions deleted", highlight=False)
            for kept in one.kept:
                out.print(f"  kept, for others refer to it: {kept}", highlight=False)

    _run(go)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
