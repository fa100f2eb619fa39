"""Speak FHIR with one partner: reads, searches through all their pages, creates and updates, with every bad answer named.

https://hl7.org/fhir/R4/http.html and https://hl7.org/fhir/R4/search.html. Resources are handed out as the very bytes that the partner
sent: they are cut out of the page, not written again. A GET is tried again when that can help; a POST never is, because nobody knows
whether the one before arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from fhircm.exchange.backend_auth import backend_auth
from fhircm.exchange.credentials import client_at
from fhircm.exchange.errors import (
    AnswerTooLarge,
    PartnerAnswerBroken,
    PartnerRefused,
    PartnerUnavailable,
    SignInRefused,
    issues,
    plainly,
    retry_after,
    summary,
)
from fhircm.exchange.pages import Page, Received, cut, newest, next_page, page, within
from fhircm.exchange.partners import Partner
from fhircm.exchange.tokens import Tokens
from fhircm.exchange.trust import trust
from fhircm.fhir import json

__all__ = [
    "Answer",
    "Got",
    "PartnerAnswerBroken",
    "PartnerClient",
    "PartnerRefused",
    "PartnerUnavailable",
    "Received",
    "SignInRefused",
    "connect",
]

log = logging.getLogger("fhircm.exchange.client")

FHIR_JSON = "application/fhir+json"
BACKOFF = 0.5  # seconds before the second attempt; doubled each time
SMALLER = 5  # how many times smaller the pages are that are asked for when one is too large


@dataclass(frozen=True, slots=True)
class Answer:
    """What a partner answered to a create or an update. `resource` is None when it sent no body back."""

    status: int
    id: str | None
    etag: str | None
    resource: Received | None


@dataclass(frozen=True, slots=True)
class Got:
    """An answer with whatever status, read to its end."""

    status: int
    headers: Mapping[str, str]  # by any case
    body: bytes
    where: str  # method and path


@dataclass(slots=True)
class Spent:
    """What one type cost so far."""

    requests: int = 0
    bytes: int = 0  # of answers
    seconds: float = 0.0  # until they were there
    waited: float = 0.0  # between attempts


@dataclass(slots=True)
class Counts:
    """What a client did so far."""

    requests: int = 0
    pages: int = 0
    waited: float = 0.0  # seconds between attempts
    by_type: dict[str, Spent] = field(default_factory=dict)  # by the first step of the path
    date: str | None = None  # the partner's own clock, from its last answer

    @property
    def clock(self) -> datetime | None:
        """The partner's own clock in UTC, as of its last answer; None when it told none that can be read."""
        return _instant(self.date) if self.date else None


@lru_cache(maxsize=64)  # the same second is told by many answers
def _instant(date: str) -> datetime | None:
    try:
        return parsedate_to_datetime(date).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


# HAPI FHIR answers a search that it answered within the last minute as it did then: what changed meanwhile would not be seen, and what was
# just created would be created twice. https://hapifhir.io/hapi-fhir/docs/server_jpa/configuration.html#search-result-caching
_AS_IT_IS_NOW = {"Cache-Control": "no-cache"}


class PartnerClient:
    """One partner over HTTP. Use as an async context manager, or call aclose().

    Every method raises PartnerUnavailable, PartnerRefused or PartnerAnswerBroken.
    """

    def __init__(
        self,
        partner: Partner,
        auth: httpx.Auth | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.partner, self.auth, self.counts = partner, auth, Counts()
        self.given = partner  # as its file says; `partner` may be what of it can be asked now
        limits = partner.limits
        self._http = httpx.AsyncClient(
            headers={**_AS_IT_IS_NOW, **partner.headers, "Accept": FHIR_JSON, "User-Agent": "fhircm"},
            timeout=limits.timeout,
            limits=httpx.Limits(max_connections=limits.concurrency + 1, max_keepalive_connections=limits.concurrency + 1),
            follow_redirects=False,
            mounts={"all://127.0.0.1": None, "all://localhost": None},  # never through a proxy of the environment
            transport=transport,
            verify=trust(),
        )
        self._base_path = urlsplit(partner.base_url).path
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._pace = 1.0 / limits.requests_per_second
        self._next = 0.0
        self._sleep = sleep

    async def __aenter__(self) -> PartnerClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # --- reading -------------------------------------------------------------------------------------------------------------

    async def read(self, type: str, id: str) -> Received:
        """The current version of a resource. PartnerRefused with `answered` 404 or 410 when there is none."""
        url = f"{self.partner.base_url}/{type}/{quote(id, safe='')}"

        async def attempt() -> Received:
            return _expect(await self._fetch(url, {}, True), type)

        return await self._again(attempt, type)

    async def search(self, type: str, parameters: Sequence[tuple[str, str]] = ()) -> AsyncIterator[list[Received]]:
        """The pages of a search, each as the resources on it: outcomes are left out, and `total` is not believed.

        One resource may come twice; `newest` puts a whole search together. When a page is too large, smaller ones are asked for.
        """
        size = self.partner.limits.page_size
        while True:
            try:
                async for resources in self._pages(type, parameters, size):
                    yield resources
                return
            except AnswerTooLarge:
                if size is None or size == 1:
                    raise
                size = max(1, size // SMALLER)

    async def _pages(self, type: str, parameters: Sequence[tuple[str, str]], size: int | None) -> AsyncIterator[list[Received]]:
        parameters = [*parameters, *self.partner.search_parameters]
        if size is not None:
            parameters = [*parameters, ("_count", str(size))]
        url: str | None = str(httpx.URL(f"{self.partner.base_url}/{type}", params=list(parameters)))
        headers = self.handling
        seen: set[str] = set()
        while url is not None:
            if url in seen:
                raise PartnerAnswerBroken(f"The pages of {type} go round in a circle")
            if len(seen) >= self.partner.limits.pages:
                raise PartnerAnswerBroken(f"A search of {type} has more than {len(seen)} pages")
            seen.add(url)
            one = await self._page(url, type, headers)
            self.counts.pages += 1
            yield one.resources
            url = (
                next_page(self.partner.base_url, url, one.following, rebase=self.partner.rebase_links) if one.following else None
            )

    async def search_all(self, type: str, parameters: Sequence[tuple[str, str]] = ()) -> list[Received]:
        """All resources of a search, each once, the newest of those that came twice."""
        return newest([received async for page in self.search(type, parameters) for received in page])

    @property
    def handling(self) -> dict[str, str]:
        """The header that says how strictly the partner shall take a search."""
        handling = self.partner.prefer_handling
        return {"Prefer": f"handling={handling}"} if handling else {}

    async def get_json(self, path: str, *, signed_in: bool = False, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """A JSON object below the base URL, such as `metadata`; without a token unless `signed_in`."""
        sent = {"Accept": FHIR_JSON if path == "metadata" else "application/json", **(headers or {})}

        async def attempt() -> dict[str, Any]:
            got = await self._fetch(f"{self.partner.base_url}/{path}", sent, signed_in)
            try:
                tree = json.loads(got.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                tree = None
            if not isinstance(tree, dict):
                raise PartnerAnswerBroken(f"{path} was answered with {_what(got)} in place of a JSON object")
            return tree

        return await self._again(attempt, path.partition("/")[0])

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def create(self, type: str, body: bytes, *, if_none_exist: str | None = None) -> Answer:
        """POST a resource, once. After PartnerUnavailable with `sent`, or PartnerAnswerBroken, it may exist: search before sending again."""
        headers = {"If-None-Exist": if_none_exist} if if_none_exist else {}
        return await self._write("POST", f"{self.partner.base_url}/{type}", body, headers, type)

    async def update(self, type: str, id: str, body: bytes, *, if_match: str | None = None) -> Answer:
        """PUT a resource, once; `if_match` is the ETag that it was read with. PartnerRefused with 409 or 412 when it has changed."""
        headers = {"If-Match": if_match} if if_match else {}
        return await self._write("PUT", f"{self.partner.base_url}/{type}/{quote(id, safe='')}", body, headers, type)

    async def patch(self, type: str, id: str, edits: list[dict[str, Any]], *, if_match: str | None = None) -> Answer:
        """PATCH a resource with a JSON Patch (RFC 6902), once. PartnerRefused with 409 or 412 when it has changed."""
        headers = {"Content-Type": "application/json-patch+json", **({"If-Match": if_match} if if_match else {})}
        url = f"{self.partner.base_url}/{type}/{quote(id, safe='')}"
        return await self._write("PATCH", url, msgspec.json.encode(edits), headers, type)

    async def _write(self, method: str, url: str, body: bytes, headers: dict[str, str], type: str) -> Answer:
        headers = {"Content-Type": FHIR_JSON, "Prefer": "return=representation", **headers}
        got = await self._send(method, url, headers, body, signed_in=True)
        self._raise_for(got)
        resource = _expect(got, type) if got.body.strip() and issues(got.body) is None else None
        return Answer(got.status, resource.id if resource else _location_id(got, type), got.headers.get("ETag"), resource)

    # --- what is neither a read nor a write of a resource ---------------------------------------------------------------------

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Got:
        """One request at the partner's own address, and its answer whatever its status: an operation, or how far a long one is.

        Raises PartnerUnavailable when there is no answer, PartnerAnswerBroken for an address elsewhere, where the token must not go.
        """
        self._stay_here(url)
        return await self._send(method, url, headers, body, signed_in=True)

    @asynccontextmanager
    async def stream(self, url: str, headers: Mapping[str, str], *, signed_in: bool) -> AsyncIterator[httpx.Response]:
        """The answer to a GET of a file, to be read bit by bit: its `timeout` is that of each bit. No redirect is followed.

        Raises PartnerUnavailable. Whether the token may go there is for the caller to know.
        """
        name = self.partner.name
        request = self._http.build_request("GET", url, headers={"Accept-Encoding": "identity", **headers})
        async with self._slots:
            await self._wait_for_turn()
            self.counts.requests += 1
            try:
                answer = await self._http.send(request, auth=self.auth if signed_in else None, stream=True)
                try:
                    yield answer
                finally:
                    await answer.aclose()
            except httpx.TimeoutException as error:
                raise PartnerUnavailable(f"A file of {name} does not go on ({type(error).__name__})") from None
            except httpx.HTTPError as error:
                raise PartnerUnavailable(f"A file of {name} broke off or cannot be reached ({type(error).__name__})") from None

    def _stay_here(self, url: str) -> None:
        if not within(self.partner.base_url, url):
            raise PartnerAnswerBroken("An address elsewhere than the partner's own, where its token must not go")

    # --- one request ---------------------------------------------------------------------------------------------------------

    async def _fetch(self, url: str, headers: Mapping[str, str], signed_in: bool) -> Got:
        got = await self._send("GET", url, headers, None, signed_in=signed_in)
        self._raise_for(got)
        if got.body.lstrip()[:1] == b"<":
            raise PartnerAnswerBroken(f"{got.where} was answered with {_what(got)} in place of JSON")
        return got

    async def _page(self, url: str, type: str, headers: Mapping[str, str]) -> Page:
        async def attempt() -> Page:
            got = await self._fetch(url, headers, True)
            return page(got.body, type)

        return await self._again(attempt, type)

    async def _again(self, attempt: Callable[[], Awaitable[Any]], type: str) -> Any:
        """Try a read until it succeeds, the attempts are used up, or the partner asks for more patience than there is."""
        limits = self.partner.limits
        for number in range(1, limits.attempts + 1):
            try:
                return await attempt()
            except (PartnerUnavailable, PartnerAnswerBroken) as error:
                if isinstance(error, AnswerTooLarge):
                    raise
                wait = BACKOFF * 2 ** (number - 1)
                asked = error.retry_after if isinstance(error, PartnerUnavailable) else None
                if number == limits.attempts or (asked is not None and asked > limits.patience):
                    raise
                wait = max(wait, asked or 0.0)
                log.info("%s: attempt %d failed (%s); again in %.1f s", self.partner.name, number, error, wait)
                self.counts.waited += wait
                self._spent(type).waited += wait
                await self._sleep(wait)
        raise AssertionError("unreachable")

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, signed_in: bool) -> Got:
        """One request and its whole answer, within the absolute time that the partner is given."""
        name, limits = self.partner.name, self.partner.limits
        request = self._http.build_request(method, url, headers=dict(headers), content=body)
        async with self._slots:
            await self._wait_for_turn()
            self.counts.requests += 1
            spent, begun = self._spent(request.url.path[len(self._base_path) :].strip("/").partition("/")[0]), monotonic()
            spent.requests += 1
            try:
                async with asyncio.timeout(limits.timeout):
                    got = await self._exchange(request, limits.body, signed_in)
            except (TimeoutError, httpx.TimeoutException) as error:
                sent = not isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
                raise PartnerUnavailable(f"{name} does not answer within {limits.timeout:g} s", sent=sent) from None
            except httpx.HTTPError as error:
                sent = not isinstance(error, httpx.ConnectError)
                raise PartnerUnavailable(f"{name} cannot be reached ({type(error).__name__})", sent=sent) from None
            finally:
                spent.seconds += monotonic() - begun
        spent.bytes += len(got.body)
        self.counts.date = got.headers.get("Date", self.counts.date)
        return got

    async def _exchange(self, request: httpx.Request, limit: int, signed_in: bool) -> Got:
        answer = await self._http.send(request, auth=self.auth if signed_in else None, stream=True)
        where = f"{request.method} {request.url.path}"  # never the query: it may hold what a patient is searched by
        try:
            body = bytearray()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > limit:
                    raise AnswerTooLarge(f"{where} was answered with more than {limit} bytes")
        finally:
            await answer.aclose()
        return Got(answer.status_code, answer.headers, bytes(body), where)

    def _spent(self, type: str) -> Spent:
        known = type in self.partner.types or type in ("Group", "metadata")
        return self.counts.by_type.setdefault(type if known else "other", Spent())  # a page may be at any address

    async def _wait_for_turn(self) -> None:
        now = monotonic()
        self._next = max(self._next, now) + self._pace
        if (wait := self._next - self._pace - now) > 0:
            await asyncio.sleep(wait)

    def _raise_for(self, got: Got) -> None:
        status, name = got.status, self.partner.name
        if 200 <= status < 300:
            return
        if status in (408, 425, 429) or (status >= 500 and status != 501):
            wait = retry_after(got.headers)
            sent, throttled = status not in (425, 429), status == 429  # a 5xx may come after the work was done
            told = f"{name} answered {status} to {got.where}"
            raise PartnerUnavailable(told, retry_after=wait, sent=sent, throttled=throttled, answered=status)
        if status < 400:
            raise PartnerAnswerBroken(f"{name} answered {status} to {got.where}: redirects are not followed")
        told = issues(got.body)
        reason = summary(told) if told else plainly(got.body) or _what(got)
        refused = SignInRefused if status == 401 else PartnerRefused
        raise refused(f"{name} answered {status} to {got.where}: {reason}", answered=status, told=told or ())


@asynccontextmanager
async def connect(partner: Partner, keys_dir: Path, tokens: Tokens | None = None) -> AsyncIterator[PartnerClient]:
    """A client that signs in as partner.yaml says, with tokens shared with whoever has the same `tokens`. Raises KeyWrong."""
    if partner.credentials.method == "none":
        async with PartnerClient(partner) as connected:
            yield connected
        return
    client = client_at(partner, keys_dir)
    client.keys()  # a key that is wrong, or cannot be made, is told before anything is asked
    async with PartnerClient(partner, backend_auth(partner, client, tokens)) as connected:
        yield connected


def _expect(got: Got, type: str) -> Received:
    """The resource of this type that an answer must hold."""
    received = cut(got.body)
    if received.type == type:
        return replace(received, etag=got.headers.get("ETag") or received.etag)
    if received.type == "OperationOutcome":
        told = issues(got.body) or []
        raise PartnerRefused(f"{got.where} was answered: {summary(told)}", answered=got.status, told=told)
    raise PartnerAnswerBroken(f"{got.where} was answered with {_what(got)} in place of a resource of type {type}")


def _location_id(got: Got, type: str) -> str | None:
    """The id in the Location of an answer that has no body: …/Type/id or …/Type/id/_history/version."""
    parts = urlsplit(got.headers.get("Location", "")).path.split("/")
    return next((id for name, id in pairwise(parts) if name == type and id), None)


def _what(got: Got) -> str:
    start = got.body.lstrip()[:200].lower()
    if not start:
        return "an empty body"
    if start.startswith(b"<"):
        return "HTML" if b"<html" in start or b"<!doctype html" in start else "XML"
    return "JSON of another kind" if start[:1] in b"{[" else "text"
