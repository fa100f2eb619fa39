"""What an administrator does with the people who may sign in. The command line and the console do it by this."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fhircm.access.logins import Now, PasswordUnfit, SignIn, new_id, normal
from fhircm.access.one_time_codes import OneTimeCodes
from fhircm.access.roles import roles, unknown
from fhircm.access.sessions import Sessions
from fhircm.fhir.outcome import Conflict, Invalid, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.store.logins import Login, Logins

PEOPLE = ("Practitioner", "PractitionerRole", "Patient", "RelatedPerson", "Person")


@dataclass(frozen=True)
class People:
    """The people who may sign in."""

    logins: Logins
    sign_in: SignIn
    sessions: Sessions
    codes: OneTimeCodes
    now: Now = time.time

    async def named(self, name: str) -> Login:
        """Who signs in under this name, or has this id. Raises NotFound."""
        login = await self.logins.by_username(normal(name)) or await self.logins.get(name)
        if login is None:
            raise NotFound(f"Nobody signs in as {normal(name)}")
        return login

    async def add(
        self,
        username: str,
        name: str,
        user: str,
        organization: str,
        codes: Iterable[str],
        *,
        password: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
    ) -> Login:
        """Somebody new, with a password or through a provider; without either a one-time code lets them choose one. Raises Invalid, Conflict."""
        login = checked(
            Login(
                id=new_id(),
                username=normal(username),
                name=name.strip(),
                fhir_user=user,
                organization=organization,
                roles=frozenset(codes),
                issuer=issuer,
                subject=subject,
                created=int(self.now()),
            )
        )
        await self.logins.add(login, None if password is None else await self._hashed(login, password))
        return login

    async def edit(self, login: Login, *, name: str, user: str, organization: str) -> None:
        """What somebody is called, who that is in FHIR, and for whom they work. Raises Invalid."""
        after = checked(replace(login, name=name.strip(), fhir_user=user, organization=organization))
        await self.logins.set_place(login.id, after.name, after.fhir_user, after.organization)

    async def set_roles(self, login: Login, codes: Iterable[str]) -> None:
        """These roles and no others. Raises Invalid."""
        after = checked(replace(login, roles=frozenset(codes)))
        await self.logins.set_roles(login.id, after.roles)

    async def disable(self, login: Login) -> None:
        """No sign-in any more: sessions end at once, tokens of apps within seconds."""
        await self.logins.set_disabled(login.id, True)
        await self.sessions.end_all(login)

    async def enable(self, login: Login) -> None:
        """Sign-in again."""
        await self.logins.set_disabled(login.id, False)

    async def unlock(self, login: Login) -> None:
        """No pause any more after failures."""
        await self.logins.unlock(login.id)

    async def new_password(self, login: Login, password: str) -> None:
        """This password from now on; sessions end, and a pause. Raises Conflict, Invalid."""
        _require_name(login)
        try:
            await self.sign_in.new_password(login, password)
        except PasswordUnfit as unfit:
            raise _invalid(str(unfit), "password") from None
        await self.sessions.end_all(login)

    async def one_time_code(self, login: Login) -> str:
        """A code with which the person chooses a password, told once; the old password is worth nothing. Raises Conflict."""
        _require_name(login)
        return await self.codes.give(login)

    async def reset_totp(self, login: Login) -> None:
        """No code of an authenticator app is asked for any more, until the person sets them up again; sessions end."""
        await self.sign_in.forget_codes(login)
        await self.sessions.end_all(login)

    async def _hashed(self, login: Login, password: str) -> str:
        try:
            return await self.sign_in.hashed(login, password)
        except PasswordUnfit as unfit:
            raise _invalid(str(unfit), "password") from None


def checked(login: Login) -> Login:
    """The same. Raises Invalid, whose expression names the field that is wrong."""
    if not login.username and login.subject is None:
        raise _invalid("The name to sign in with is empty", "username")
    if not login.name or len(login.name) > 200:
        raise _invalid("A name has 1 to 200 characters", "name")
    _reference(login.fhir_user, PEOPLE, "user")
    _reference(login.organization, ("Organization",), "organization")
    if wrong := unknown(sorted(login.roles)):
        raise _invalid(f"{', '.join(wrong)}: no such role. There are: {', '.join(roles())}", "roles")
    return login


def _require_name(login: Login) -> None:
    if login.username is None:
        raise Conflict("This person signs in through the organisation's provider only, and has no name to sign in with here")


def _reference(text: str, types: tuple[str, ...], field: str) -> None:
    found = parse_reference(text)
    if found.kind != "local" or found.type not in types or found.version is not None:
        raise _invalid(f"{text} is no reference such as {types[0]}/123", field)


def _invalid(text: str, field: str) -> Invalid:
    return Invalid(text, field)
