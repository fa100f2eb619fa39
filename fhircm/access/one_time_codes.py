"""Codes with which a person chooses a password: for somebody new, and for who forgot theirs. An administrator gives one out.

https://cheatsheetseries.owasp.org/cheatsheets/Forgot_Password_Cheat_Sheet.html: random, kept by its SHA-256, good once and for a day. It
never stands in an address. A later one of the same person takes the place of an earlier one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from fhircm.access.logins import Now, SignIn, SignInRefused, normal
from fhircm.store.logins import Login, Logins
from fhircm.store.sessions import SessionRecords

LIFETIME = 86_400  # seconds
_NOBODY = ""  # an id that nobody has


@dataclass(frozen=True)
class OneTimeCodes:
    """Makes codes, and takes them. They are kept among the sign-ins that are under way."""

    records: SessionRecords
    logins: Logins
    sign_in: SignIn
    now: Now = time.time

    async def give(self, login: Login) -> str:
        """A code for this person. From now on neither the old password nor an open session is worth anything."""
        code, now = _new(), int(self.now())
        await self.logins.set_password(login.id, None)
        await self.logins.unlock(login.id)
        await self.records.end_all(login.id)
        await self.records.take(_place(login.id))
        await self.records.add(_place(login.id), None, {"one_time": _digest(code)}, now, now + LIFETIME)
        return code

    async def use(self, username: str, code: str, password: str) -> Login:
        """Who has this code signs in with this password from now on. Raises SignInRefused, PasswordUnfit (and then the code stays good)."""
        login = await self.logins.by_username(normal(username))
        id, now = login.id if login else _NOBODY, int(self.now())
        counted = await self.logins.attempt(id, now)
        record = await self.records.find(_place(id))
        kept = str(record.payload.get("one_time", "")) if record is not None and record.expires > now else ""
        right = hmac.compare_digest(kept, _digest(code))
        if login is None or login.disabled or not (counted and right):
            raise SignInRefused(
                "The user name or the one-time code is not right, or the code is used up or older than a day."
                " After five failures in a row you must wait for a while."
            )
        await self.logins.half_proved(login.id)  # who has the right code did not fail, whatever the password is
        hashed = await self.sign_in.hashed(login, password)
        if not await self.records.take(_place(id)):
            raise SignInRefused("This code is used up. Ask your administrator for another one.")
        await self.logins.set_password(login.id, hashed)
        await self.logins.unlock(login.id)
        return login


def _new() -> str:
    """A hundred random bits, in letters and digits that can be read aloud."""
    text = base64.b32encode(secrets.token_bytes(13)).decode().rstrip("=")[:20]
    return "-".join(text[at : at + 5] for at in range(0, 20, 5))


def _place(login_id: str) -> bytes:
    return hashlib.sha256(f"one-time code of {login_id}".encode()).digest()


def _digest(code: str) -> str:
    plain = "".join(character for character in code.upper() if character.isalnum())
    return hashlib.sha256(plain.encode()).hexdigest()
