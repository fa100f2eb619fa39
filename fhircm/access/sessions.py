"""Sessions: a new one at each sign-in, ended by idleness, by age, by signing out; and the proof that a form came from our own page.

https://cheatsheetseries.owasp.org/cheatsheets/Session_Management_Cheat_Sheet.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fhircm.access.logins import Now
from fhircm.store.logins import Login
from fhircm.store.sessions import SessionRecord, SessionRecords

_COOKIE = re.compile(r"[A-Za-z0-9_-]{43}")
_SEEN = 60  # seconds between two notes that somebody is there
PENDING = 600  # seconds in which a sign-in that was begun must be brought to its end


@dataclass(frozen=True, slots=True)
class Session:
    """A browser in which `login` is signed in. `signed_in` and `seen` are seconds since the epoch."""

    digest: bytes
    login: Login
    payload: Mapping[str, Any]
    signed_in: int
    seen: int

    @property
    def how(self) -> tuple[str, ...]:
        """How it was proved: https://www.rfc-editor.org/rfc/rfc8176"""
        return tuple(self.payload.get("amr", ()))

    @property
    def launch(self) -> Mapping[str, Any]:
        """What the EHR said that launched it; empty for a session that no EHR did."""
        told: Mapping[str, Any] = self.payload.get("launch", {})
        return told


def new_cookie() -> str:
    """A name for a browser that nobody can guess."""
    return secrets.token_urlsafe(32)


def well_formed(cookie: str | None) -> str | None:
    """The cookie, if it may be one of ours."""
    return cookie if cookie and _COOKIE.fullmatch(cookie) else None


def digest(cookie: str) -> bytes:
    """By what a session is kept."""
    return hashlib.sha256(cookie.encode()).digest()


def form_token(cookie: str) -> str:
    """What each form of a browser's pages must bring along: only who can read the cookie or the page knows it."""
    return hmac.new(cookie.encode(), b"form", hashlib.sha256).hexdigest()


class Sessions:
    """Begins sessions, finds them and ends them."""

    def __init__(
        self,
        records: SessionRecords,
        *,
        idle: timedelta = timedelta(minutes=30),
        longest: timedelta = timedelta(hours=12),
        now: Now = time.time,
    ) -> None:
        self._records, self._now = records, now
        self._idle, self._longest = int(idle.total_seconds()), int(longest.total_seconds())

    async def begin(
        self, login: Login, how: tuple[str, ...], before: str | None, agent: str = "", launch: Mapping[str, Any] | None = None
    ) -> str:
        """Somebody signed in: the cookie of a new session, which has nothing of the one before. `agent` names the browser.

        `launch` is what the EHR said that launched it: a session that has a `patient` there sees the record of that patient alone.
        """
        if before:
            await self._records.take(digest(before))
        cookie, now = new_cookie(), int(self._now())
        payload = {"amr": list(how), "agent": agent[:200], **({"launch": dict(launch)} if launch else {})}
        await self._records.add(digest(cookie), login.id, payload, now, now + min(self._idle, self._longest))
        return cookie

    async def find(self, cookie: str | None) -> Session | None:
        """The session of a cookie, while it lasts and its person may sign in; it lasts longer for that."""
        record = await self._records.find(digest(cookie)) if cookie else None
        session = self._living(record) if record else None
        if record and session:
            now = int(self._now())
            if record.last_seen + _SEEN <= now:
                await self._records.seen(session.digest, now, min(now + self._idle, record.created + self._longest))
        return session

    def _living(self, record: SessionRecord) -> Session | None:
        if record.expires <= self._now() or record.login is None or record.login.disabled:
            return None
        return Session(record.digest, record.login, record.payload, record.created, record.last_seen)

    async def of(self, login: Login) -> list[Session]:
        """The sessions of a person that last, the newest first."""
        return [session for record in await self._records.of(login.id) if (session := self._living(record))]

    async def tell(self, session: Session, **more: Any) -> None:
        """Keep something with a session."""
        await self._records.tell(session.digest, {**session.payload, **more})

    async def end(self, digest: bytes) -> None:
        """End a session, and the refresh tokens that live as long as it does."""
        await self._records.take(digest)

    async def end_all(self, login: Login, but: Session | None = None) -> None:
        """End the sessions of a person, all of them or all but one."""
        await self._records.end_all(login.id, but.digest if but else None)

    # --- before somebody is signed in ---

    async def begin_pending(self, payload: Mapping[str, Any], before: str | None) -> str:
        """A sign-in is under way: the cookie of what is known so far, which signs nobody in."""
        if before:
            await self._records.take(digest(before))
        cookie, now = new_cookie(), int(self._now())
        await self._records.add(digest(cookie), None, payload, now, now + PENDING)
        return cookie

    async def pending(self, cookie: str | None) -> Mapping[str, Any] | None:
        """What is known of a sign-in that is under way."""
        record = await self._records.find(digest(cookie)) if cookie else None
        if record is None or record.login_id is not None or record.expires <= int(self._now()):
            return None
        return record.payload

    async def take_pending(self, cookie: str | None) -> Mapping[str, Any] | None:
        """The same, once: whoever comes second finds nothing."""
        found = await self.pending(cookie)
        return found if found is not None and cookie and await self._records.take(digest(cookie)) else None
