"""`fhircm user`: the people who may sign in. A password is typed, or read from standard input; it is never an argument."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from fhircm import wiring
from fhircm.access.logins import PasswordUnfit, SignIn, new_id, normal
from fhircm.access.passwords import Passwords
from fhircm.access.roles import roles, unknown
from fhircm.access.sealing import Seal
from fhircm.access.sessions import Sessions
from fhircm.fhir.outcome import Conflict, Invalid, Issue, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.settings import load as load_settings
from fhircm.store.logins import Login, Logins
from fhircm.store.sessions import SessionRecords

user_app = typer.Typer(no_args_is_help=True, help="The people who may sign in: to let apps in, and to work in the console.")

_PEOPLE = ("Practitioner", "PractitionerRole", "Patient", "RelatedPerson", "Person")
_USERNAME = typer.Argument(help="The name that the person signs in with.")


@dataclass(frozen=True)
class _People:
    logins: Logins
    sign_in: SignIn
    sessions: Sessions

    async def named(self, username: str) -> Login:
        """Raises NotFound."""
        login = await self.logins.by_username(normal(username)) or await self.logins.get(username)
        if login is None:
            raise NotFound(f"Nobody signs in as {normal(username)}")
        return login


def _run(work: Callable[[_People], Awaitable[None]]) -> None:
    async def go() -> None:
        settings = load_settings()
        async with wiring.open_store(settings) as store:
            logins = Logins(store.database)
            sign_in = SignIn(logins, Passwords(), Seal.open(settings.keys_dir))
            await work(_People(logins, sign_in, Sessions(SessionRecords(store.database))))

    asyncio.run(go())


def _told(text: str) -> None:
    typer.echo(text)


def _typed(*, from_input: bool) -> str:
    """A password, typed twice or read as one line."""
    return (
        sys.stdin.readline().rstrip("\r\n") if from_input else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    )


def _checked(codes: list[str]) -> frozenset[str]:
    """Raises Invalid."""
    if wrong := unknown(codes):
        raise _invalid(f"{', '.join(wrong)}: no such role. There are: {', '.join(roles())}")
    return frozenset(codes)


def _reference(text: str, types: tuple[str, ...]) -> str:
    """Raises Invalid."""
    found = parse_reference(text)
    if found.kind != "local" or found.type not in types or found.version is not None:
        raise _invalid(f"{text} is no reference such as {types[0]}/123")
    return text


def _invalid(text: str) -> Invalid:
    return Invalid([Issue("error", "value", text)])


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
) -> None:
    """Let a person sign in, with a password or through the organisation's own OpenID Connect provider."""
    issuer = load_settings().provider_issuer
    if subject is not None and issuer is None:
        raise typer.BadParameter("--subject needs FHIRCM_PROVIDER_ISSUER")
    login = Login(
        id=new_id(),
        username=normal(username),
        name=name,
        fhir_user=_reference(user, _PEOPLE),
        organization=_reference(organization, ("Organization",)),
        roles=_checked(role),
        issuer=issuer if subject is not None else None,
        subject=subject,
        created=int(datetime.now(UTC).timestamp()),
    )
    if not login.username:
        raise typer.BadParameter("the name is empty")
    password = None if subject is not None and not password_stdin else _typed(from_input=password_stdin)

    async def go(people: _People) -> None:
        hashed = None if password is None else await _hashed(people, login, password)
        await people.logins.add(login, hashed)
        _told(f"{login.username} may sign in")

    _run(go)


async def _hashed(people: _People, login: Login, password: str) -> str:
    try:
        return await people.sign_in.hashed(login, password)
    except PasswordUnfit as unfit:
        raise _invalid(str(unfit)) from None


@user_app.command("list")
def list_() -> None:
    """Everybody who may sign in, or was disabled."""

    async def go(people: _People) -> None:
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

    async def go(people: _People) -> None:
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

    async def go(people: _People) -> None:
        one = await people.named(username)
        await people.logins.set_disabled(one.id, True)
        await people.sessions.end_all(one)
        _told(f"{one.username or one.id} may not sign in any more")

    _run(go)


@user_app.command()
def enable(username: Annotated[str, _USERNAME]) -> None:
    """Let a person sign in again who was disabled."""

    async def go(people: _People) -> None:
        one = await people.named(username)
        await people.logins.set_disabled(one.id, False)
        _told(f"{one.username or one.id} may sign in")

    _run(go)


@user_app.command()
def password(username: Annotated[str, _USERNAME], password_stdin: _FromInput = False) -> None:
    """Give a person a new password. It ends their sessions, and any pause after failures."""
    text = _typed(from_input=password_stdin)

    async def go(people: _People) -> None:
        one = await people.named(username)
        if one.username is None:
            raise Conflict("This person signs in through the organisation's provider only, and has no name to sign in with here")
        try:
            await people.sign_in.new_password(one, text)
        except PasswordUnfit as unfit:
            raise _invalid(str(unfit)) from None
        await people.sessions.end_all(one)
        _told(f"{one.username} signs in with the new password from now on")

    _run(go)


@user_app.command("totp-reset")
def totp_reset(username: Annotated[str, _USERNAME]) -> None:
    """Ask a person who lost their phone for no code any more. It ends their sessions; they can set up codes again."""

    async def go(people: _People) -> None:
        one = await people.named(username)
        await people.sign_in.forget_codes(one)
        await people.sessions.end_all(one)
        _told(f"{one.username or one.id} is asked for no code")

    _run(go)


@user_app.command("roles")
def roles_(
    username: Annotated[str, _USERNAME],
    role: Annotated[list[str], typer.Argument(help="All roles that the person is to have from now on.")],
) -> None:
    """Give a person other roles: these, and no others."""
    codes = _checked(role)

    async def go(people: _People) -> None:
        one = await people.named(username)
        await people.logins.set_roles(one.id, codes)
        _told(f"{one.username or one.id}: {', '.join(sorted(codes))}")

    _run(go)


@user_app.command()
def unlock(username: Annotated[str, _USERNAME]) -> None:
    """End the pause after failures to sign in."""

    async def go(people: _People) -> None:
        one = await people.named(username)
        await people.logins.unlock(one.id)
        _told(f"{one.username or one.id} may try again")

    _run(go)


def _ways(one: Login) -> list[str]:
    ways = ["a password"] if one.has_password else []
    ways += ["a code"] if one.has_password and one.has_totp else []
    return ways + ([f"{one.issuer} as {one.subject}"] if one.subject else [])


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
