"""`fhircm user`: the people who may sign in. A password is typed, or read from standard input; it is never an argument."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.access.people import People
from fhircm.cli_noting import noted
from fhircm.settings import load as load_settings
from fhircm.store.logins import Login

user_app = typer.Typer(no_args_is_help=True, help="The people who may sign in: to let apps in, and to work in the console.")

_USERNAME = typer.Argument(help="The name that the person signs in with.")


def _run(work: Callable[[People], Awaitable[None]]) -> None:
    settings = load_settings()

    async def go() -> None:
        async with wiring.open_store(settings) as store:
            await work(wiring.people(settings, store))

    noted(settings, lambda: asyncio.run(go()))


def _told(text: str) -> None:
    typer.echo(text)


def _typed(*, from_input: bool) -> str:
    """A password, typed twice or read as one line."""
    return (
        sys.stdin.readline().rstrip("\r\n") if from_input else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    )


_FromInput = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


@user_app.command()
def add(
    username: Annotated[str, _USERNAME],
    name: Annotated[str, typer.Option(help="What the person is called on pages.")],
    user: Annotated[str, typer.Option(help="Who that is in FHIR, for example Practitioner/123 or Patient/123.")],
    organization: Annotated[str, typer.Option(help="The Organization that the person works for or is with: Organization/123.")],
    role: Annotated[list[str], typer.Option(help="A role, such as clinician; may be given again.")],
    subject: Annotated[
        str | None, typer.Option(help="Who that is at the organisation's own provider (its sub); then no password is asked for.")
    ] = None,
    password_stdin: _FromInput = False,
    one_time_code: Annotated[
        bool,
        typer.Option("--one-time-code", help="Print a code with which the person chooses a password, instead of asking for one."),
    ] = False,
) -> None:
    """Let a person sign in, with a password or through the organisation's own OpenID Connect provider."""
    issuer = load_settings().provider_issuer
    if subject is not None and issuer is None:
        raise typer.BadParameter("--subject needs FHIRCM_PROVIDER_ISSUER")
    if one_time_code and password_stdin:
        raise typer.BadParameter("either a password or a one-time code")
    by_provider = issuer if subject is not None else None
    asks = not one_time_code and (subject is None or password_stdin)
    password = _typed(from_input=password_stdin) if asks else None

    async def go(people: People) -> None:
        login = await people.add(username, name, user, organization, role, password=password, issuer=by_provider, subject=subject)
        _told(f"{login.username} may sign in")
        if one_time_code:
            _told(f"One-time code, which is not told again: {await people.one_time_code(login)}")

    _run(go)


@user_app.command("list")
def list_() -> None:
    """Everybody who may sign in, or was disabled."""

    async def go(people: People) -> None:
        listed = await people.logins.all()
        for one in listed:
            state = "disabled" if one.disabled else "may sign in"
            _told(
                "\t".join((one.username or one.id, one.name, one.fhir_user, one.organization, ",".join(sorted(one.roles)), state))
            )
        if not listed:
            _told("Nobody may sign in yet: fhircm user add")

    _run(go)


@user_app.command()
def show(username: Annotated[str, _USERNAME]) -> None:
    """What is known of a person, and where they are signed in."""

    async def go(people: People) -> None:
        one = await people.named(username)
        now = datetime.now(UTC).timestamp()
        lines = {
            "name": one.name,
            "id": one.id,
            "user": one.fhir_user,
            "organization": one.organization,
            "roles": ", ".join(sorted(one.roles)),
            "created": _when(one.created),
            "disabled": "yes" if one.disabled else "no",
            "signs in": " and ".join(_ways(one)) or "in no way: give a password",
            "paused until": _when(one.locked_until) if one.locked_until > now else "not paused",
            "failures in a row": str(one.failed),
            "sessions": str(len(await people.sessions.of(one))),
        }
        for label, value in lines.items():
            _told(f"{label}\t{value}")

    _run(go)


@user_app.command()
def disable(username: Annotated[str, _USERNAME]) -> None:
    """Let a person sign in no more. Sessions end at once, tokens of apps within seconds."""

    async def go(people: People) -> None:
        one = await people.named(username)
        await people.disable(one)
        _told(f"{one.username or one.id} may not sign in any more")

    _run(go)


@user_app.command()
def enable(username: Annotated[str, _USERNAME]) -> None:
    """Let a person sign in again who was disabled."""

    async def go(people: People) -> None:
        one = await people.named(username)
        await people.enable(one)
        _told(f"{one.username or one.id} may sign in")

    _run(go)


@user_app.command()
def password(username: Annotated[str, _USERNAME], password_stdin: _FromInput = False) -> None:
    """Give a person a new password. It ends their sessions, and any pause after failures."""
    text = _typed(from_input=password_stdin)

    async def go(people: People) -> None:
        one = await people.named(username)
        await people.new_password(one, text)
        _told(f"{one.username} signs in with the new password from now on")

    _run(go)


@user_app.command("one-time-code")
def one_time_code_(username: Annotated[str, _USERNAME]) -> None:
    """Print a code with which a person chooses a new password. The old one, and their sessions, are worth nothing from now on."""

    async def go(people: People) -> None:
        one = await people.named(username)
        _told(await people.one_time_code(one))

    _run(go)


@user_app.command()
def edit(
    username: Annotated[str, _USERNAME],
    name: Annotated[str | None, typer.Option(help="What the person is called on pages.")] = None,
    user: Annotated[str | None, typer.Option(help="Who that is in FHIR, for example Practitioner/123.")] = None,
    organization: Annotated[str | None, typer.Option(help="The Organization that the person works for or is with.")] = None,
) -> None:
    """Change what a person is called, who that is in FHIR, or for whom they work."""

    async def go(people: People) -> None:
        one = await people.named(username)
        at = organization or one.organization
        await people.edit(one, name=name or one.name, user=user or one.fhir_user, organization=at)
        _told(f"{one.username or one.id} is {name or one.name}, {user or one.fhir_user} of {at}")

    _run(go)


@user_app.command("totp-reset")
def totp_reset(username: Annotated[str, _USERNAME]) -> None:
    """Ask a person who lost their phone for no code any more. It ends their sessions; they can set up codes again."""

    async def go(people: People) -> None:
        one = await people.named(username)
        await people.reset_totp(one)
        _told(f"{one.username or one.id} is asked for no code")

    _run(go)


@user_app.command("roles")
def roles_(
    username: Annotated[str, _USERNAME],
    role: Annotated[list[str], typer.Argument(help="All roles that the person is to have from now on.")],
) -> None:
    """Give a person other roles: these, and no others."""

    async def go(people: People) -> None:
        one = await people.named(username)
        await people.set_roles(one, role)
        _told(f"{one.username or one.id}: {', '.join(sorted(set(role)))}")

    _run(go)


@user_app.command()
def unlock(username: Annotated[str, _USERNAME]) -> None:
    """End the pause after failures to sign in."""

    async def go(people: People) -> None:
        one = await people.named(username)
        await people.unlock(one)
        _told(f"{one.username or one.id} may try again")

    _run(go)


def _ways(one: Login) -> list[str]:
    ways = ["a password"] if one.has_password else []
    ways += ["a code"] if one.has_password and one.has_totp else []
    return ways + ([f"{one.issuer} as {one.subject}"] if one.subject else [])


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
