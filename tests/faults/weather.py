"""What goes wrong in a storm: with the hub's process, with its database, and on the network between it and the EHRs."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from random import Random

import asyncpg
import httpx

LOUD = 0.05  # how likely a request or a transaction meets a fault while it storms
WRITES = 6.0  # so many times as likely for one that writes: there are few of them, and what they leave in doubt is the hard part
BEFORE = ("cut before", "timeout before", "429", "500", "html", "kill before")  # the EHR hears nothing of the request
AFTER = ("cut after", "timeout after", "503 after", "truncated", "kill after")  # it has done what was asked
PAGES = ("pages repeated", "pages reordered", "a stranger in a page", "pages in a circle", "a page elsewhere")
STORED = ("kill before commit", "kill after commit", "disk full", "database restart")


class Killed(BaseException):
    """The hub's process ends here."""


@dataclass
class Life:
    """One life of the hub's process."""

    dead: bool = False

    def end(self) -> None:
        self.dead = True
        raise Killed

    def check(self) -> None:
        if self.dead:
            raise Killed


@dataclass
class Weather:
    """What goes wrong, and how often; `quiet` ends it."""

    random: Random
    loud: float = LOUD
    happened: Counter = field(default_factory=Counter)

    def quiet(self) -> None:
        self.loud = 0.0

    def strikes(self, often: float = 1.0) -> bool:
        return self.loud > 0 and self.random.random() < self.loud * often

    def one_of(self, *kinds: str) -> str:
        kind = self.random.choice(kinds)
        self.happened[kind] += 1
        return kind


class MortalDatabase:
    """The database as one life of the hub sees it."""

    def __init__(self, database, life: Life, weather: Weather, storm) -> None:
        self.inner, self.life, self.weather, self.storm = database, life, weather, storm
        self.dialect = database.dialect

    @asynccontextmanager
    async def reading(self, *, one_moment=False):
        self.life.check()
        async with self.inner.reading(one_moment=one_moment) as connection:
            yield connection
            self.life.check()

    @asynccontextmanager
    async def writing(self):
        self.life.check()
        kind = self.weather.one_of(*STORED) if self.weather.strikes(0.5) else None
        if kind == "database restart":
            await self.storm.restart_database()
        async with self.full() if kind == "disk full" else self.inner.writing() as connection:
            yield connection
            self.life.check()
            if kind == "kill before commit":
                self.life.end()
        if kind == "kill after commit":
            self.life.end()

    @asynccontextmanager
    async def full(self):
        """A transaction on a disk with no room left."""
        if self.dialect == "postgresql":  # as its server would say it
            async with self.inner.writing() as connection:
                yield connection
                raise asyncpg.DiskFullError("could not extend file: No space left on device")
        raw = self.inner._writer.raw
        raw.execute(f"PRAGMA max_page_count = {raw.execute('PRAGMA page_count').fetchone()[0]}")
        try:
            async with self.inner.writing() as connection:
                yield connection
        finally:
            raw.execute("PRAGMA max_page_count = 1073741823")

    async def wait(self, seconds):
        self.life.check()

    async def close(self):
        await self.inner.close()


class Wire(httpx.AsyncBaseTransport):
    """The network between one life of the hub and one EHR."""

    def __init__(self, app, life: Life, weather: Weather, storm, party: str) -> None:
        self.inner = httpx.ASGITransport(app=app)
        self.life, self.weather, self.storm, self.party = life, weather, storm, party

    async def handle_async_request(self, request):
        self.life.check()
        writes = "json" in request.headers.get("Content-Type", "")  # a sign-in and a search by POST are forms
        if not self.weather.strikes(WRITES if writes else 1.0):
            return await self.through(request)
        kind = self.weather.one_of(*AFTER, *BEFORE, *(() if writes else PAGES), "tokens expire")
        match kind:
            case "cut before":
                raise httpx.ConnectError("refused")
            case "timeout before":
                raise httpx.ReadTimeout("slow")
            case "429":
                return httpx.Response(429, headers={"Retry-After": "1"})
            case "500":
                return httpx.Response(500)
            case "html":
                return httpx.Response(200, html="<html><body>Service temporarily unavailable</body></html>")
            case "kill before":
                self.life.end()
            case "tokens expire":
                self.storm.ehrs[self.party].sign_in.expire_all()
        answer = await self.through(request)
        match kind:
            case "cut after":
                raise httpx.ReadError("reset")
            case "timeout after":
                raise httpx.ReadTimeout("slow")
            case "503 after":
                return httpx.Response(503)
            case "kill after":
                self.life.end()
            case "truncated":
                return httpx.Response(answer.status_code, content=answer.content[: len(answer.content) // 2])
        return self.turned(request, answer, kind) if kind in PAGES else answer

    def turned(self, request, answer, kind):
        """A page that is not as it was: in another order, twice, with somebody else in it, or with a wrong way on."""
        try:
            tree = answer.json()
        except ValueError:
            return answer
        if not isinstance(tree, dict) or tree.get("type") != "searchset":
            return answer
        entries = tree.get("entry", [])
        match kind:
            case "pages reordered":
                tree["entry"] = entries[::-1]
            case "pages repeated":
                tree["entry"] = [*entries, *entries[:2]]
            case "a stranger in a page":
                tree["entry"] = [*entries, *self.stranger(entries)]
            case "pages in a circle":
                tree["link"] = [{"relation": "next", "url": str(request.url)}]
            case "a page elsewhere":
                tree["link"] = [{"relation": "next", "url": "http://elsewhere.example/fhir/Patient?page=2"}]
        if not tree.get("entry"):
            tree.pop("entry", None)
        return httpx.Response(answer.status_code, json=tree, headers={"Date": answer.headers["Date"]})

    def stranger(self, entries):
        """A resource of the same type that may be about another patient."""
        types = {one["resource"]["resourceType"] for one in entries} - {"OperationOutcome"}
        found = self.storm.ehrs[self.party].chart.of_type(types.pop()) if len(types) == 1 else []
        return [{"resource": self.weather.random.choice(found), "search": {"mode": "match"}}] if found else []

    async def through(self, request):
        answer = await self.inner.handle_async_request(request)
        content = await answer.aread()
        self.life.check()
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        headers["Date"] = format_datetime(self.storm.there, usegmt=True)
        return httpx.Response(answer.status_code, headers=headers, content=content)
