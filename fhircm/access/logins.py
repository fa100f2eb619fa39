"""Signing in: a password, then a code where one was set up; who fails too often waits. Nothing tells whether a name exists.

https://cheatsheetseries.owasp.org/cheatsheets/Authentication_Cheat_Sheet.html
"""

from __future__ import annotations

import base64
import secrets
import time
import unicodedata
from collections.abc import Callable

from fhircm.access import totp
from fhircm.access.passwords import Passwords, fault
from fhircm.access.sealing import Seal
from fhircm.store.logins import Login, Logins

Now = Callable[[], float]  # seconds since the epoch
_NOBODY = ""  # an id that nobody has
_NAME = 200  # characters


class SignInRefused(Exception):
    """Not signed in. The message is one and the same whatever the reason, and is fit to be shown."""


class PasswordUnfit(Exception):
    """The password cannot be taken; the message says why, and is fit to be shown."""


class SignIn:
    """Checks who somebody is. `now` tells the seconds since the epoch."""

    def __init__(self, logins: Logins, passwords: Passwords, seal: Seal, now: Now = time.time) -> None:
        self._logins, self._passwords, self._seal, self._now = logins, passwords, seal, now

    async def by_password(self, username: str, password: str) -> Login:
        """Who this is; when `has_totp`, only after `by_code`. Raises SignInRefused.

        For a name that nobody has, for somebody without a password and during a pause the same is done and said.
        """
        login = await self._logins.by_username(normal(username))
        counted = await self._logins.attempt(login.id if login else _NOBODY, int(self._now()))
        kept = (await self._logins.secrets(login.id if login else _NOBODY)).password
        right = await self._passwords.verify(kept, password)
        if login is None or not (counted and right) or login.disabled:
            raise _refused()
        if login.has_totp:
            await self._logins.half_proved(login.id)
        else:
            await self._logins.unlock(login.id)
        if kept is not None and self._passwords.outdated(kept):
            await self._logins.set_password(login.id, await self._passwords.hash(password))
        return login

    async def by_code(self, login_id: str, code: str) -> Login:
        """The second step. Each code is good once. Raises SignInRefused."""
        counted = await self._logins.attempt(login_id, int(self._now()))
        login = await self._logins.get(login_id)
        sealed = (await self._logins.secrets(login_id)).totp
        if login is None or not counted or login.disabled or sealed is None:
            raise _refused_code()
        step = totp.matching_step(self._seal.unseal(sealed), code, self._now())
        if step is None or not await self._logins.use_code(login_id, step):
            raise _refused_code()
        await self._logins.unlock(login_id)
        return login

    async def hashed(self, login: Login, password: str) -> str:
        """What to keep of a password of this person. Raises PasswordUnfit."""
        if why := fault(password, login.username):
            raise PasswordUnfit(why)
        return await self._passwords.hash(password)

    async def new_password(self, login: Login, password: str) -> None:
        """Set a password. Raises PasswordUnfit."""
        await self._logins.set_password(login.id, await self.hashed(login, password))
        await self._logins.unlock(login.id)

    def new_secret(self) -> str:
        """A TOTP secret to be set up, sealed."""
        return base64.b64encode(self._seal.seal(totp.new_secret())).decode()

    def opened(self, sealed: str) -> bytes:
        """A TOTP secret that `new_secret` made. Raises SealBroken."""
        return self._seal.unseal(base64.b64decode(sealed))

    async def set_up_codes(self, login: Login, sealed: str, code: str) -> bool:
        """From now on this secret's codes are asked for; False when the code is not one of it."""
        step = totp.matching_step(self.opened(sealed), code, self._now())
        if step is None:
            return False
        await self._logins.set_totp(login.id, base64.b64decode(sealed), step)
        return True

    async def forget_codes(self, login: Login) -> None:
        """No code is asked for any more."""
        await self._logins.set_totp(login.id, None, None)


def normal(username: str) -> str:
    """A name as it is kept: names that differ in case or in width only are the same."""
    return unicodedata.normalize("NFKC", username).strip().casefold()[:_NAME]


def new_id() -> str:
    """An id for somebody new."""
    return secrets.token_hex(16)


def _refused() -> SignInRefused:
    return SignInRefused(
        "The user name or the password is not right. After five failures in a row, sign-in pauses for a while:"
        " wait, or ask your administrator."
    )


def _refused_code() -> SignInRefused:
    return SignInRefused("This code is not right, or it was used before. Wait for the next one in your app and type that.")
