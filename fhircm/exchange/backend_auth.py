"""Sign in at a partner as a SMART backend service: a token on every request, fetched in time, and again when it is refused.

https://hl7.org/fhir/smart-app-launch/backend-services.html. When the partner refuses the client, what a hub can mend by itself is tried
once each: a clock that differs (the assertion is dated by the partner's), and a new key that the partner has not fetched yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx

from fhircm.exchange.client_keys import Key
from fhircm.exchange.discovery import Send, discovered, is_safe, sending
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerUnavailable, SignInRefused, harmless, retry_after, word
from fhircm.exchange.proof import Client
from fhircm.exchange.tokens import LEASE, OwnTokens, Token, Tokens

if TYPE_CHECKING:
    from fhircm.exchange.partners import Partner

log = logging.getLogger("fhircm.exchange.backend_auth")

_DISCOVERED = 3600.0  # seconds that a discovered token endpoint is good for
_OFF = 5.0  # seconds by which clocks may differ without consequence
_FAR = 86_400.0  # seconds: a clock that differs more is not believed
_AGAIN = 3600.0  # seconds after which a key that was refused is tried first again
_POLL = 0.1  # seconds between two looks whether another process has a token


class TokenRefused(SignInRefused):
    """The token endpoint gives no token. `error` is the code of OAuth; `date` the endpoint's own clock, in seconds since the epoch."""

    def __init__(self, text: str, *, answered: int, error: str, date: float | None) -> None:
        super().__init__(text, answered=answered)
        self.error, self.date = error, date

    @property
    def of_client(self) -> bool:
        """Whether it does not take who asks, or the proof of that."""
        return self.error == "invalid_client" or self.answered == 401


class BackendAuth(httpx.Auth):
    """Puts an access token on every request: fetched when first needed, again before it ends, and once more after a 401.

    Requests that need a token at the same time wait for one fetch, those of other processes too when `tokens` are shared. Without
    `token_url` the partner is asked where its token endpoint is. `name` is the partner's; `timeout` in seconds for each request.
    """

    def __init__(
        self,
        base_url: str,
        client: Client,
        scopes: Sequence[str],
        *,
        name: str = "",
        token_url: str | None = None,
        parameters: Mapping[str, str] | None = None,
        tokens: Tokens | None = None,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url, self.client, self.scopes, self.name = base_url, client, tuple(scopes), name
        self.token_url = token_url
        self._fixed, self._discovered = token_url, 0.0
        self._parameters, self._tokens = dict(parameters or {}), tokens or OwnTokens()
        self._timeout, self._transport = min(timeout, 0.8 * LEASE), transport  # the others wait no longer for an answer
        self._now, self._monotonic = now, monotonic
        self._holder, self._one = str(uuid4()), asyncio.Lock()
        self._held: Token | None = None
        self._refused: set[str] = set()  # marks of tokens that the partner did not take
        about = (name, base_url, client.id, client.method, token_url, sorted(self.scopes), sorted(self._parameters.items()))
        self._name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"BackendAuth({self.client.id} at {self.base_url})"

    @property
    def granted(self) -> tuple[str, ...] | None:
        """The scopes of the last token; None when its answer did not tell."""
        scope = self._held.scope if self._held else None
        return None if scope is None else tuple(scope.split())

    @property
    def skew(self) -> float:
        """By how many seconds the partner's clock is ahead, as far as that had to be found out."""
        return self._held.skew if self._held else 0.0

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Only the asynchronous client is served."""
        raise RuntimeError("BackendAuth needs an httpx.AsyncClient")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """httpx's way to let an Auth look at the answer, and send the request again."""
        for again in (True, False):
            token = await self.token()
            request.headers["Authorization"] = f"Bearer {token.value}"
            response = yield request
            if response.status_code != 401 or not again:
                return
            self._refused.add(token.mark)

    async def token(self) -> Token:
        """A token that is good for a while. Raises what the token endpoint's refusal raises, and KeyWrong."""
        async with self._one:
            if self._good(self._held):
                assert self._held is not None
                return self._held
            if self._held is not None:
                self._refused.add(self._held.mark)  # its time is up, whatever another machine's clock makes of it
            while not self._good(found := await self._tokens.find(self._name)):
                if await self._tokens.claim(self._name, self._holder):
                    found = await self._claimed()
                    break
                await asyncio.sleep(_POLL)
            assert found is not None
            self._held = found
            return found

    def _good(self, token: Token | None) -> bool:
        return token is not None and token.until > self._monotonic() and token.mark not in self._refused

    async def _claimed(self) -> Token:
        """Fetch, unless another process did just before."""
        try:
            found = await self._tokens.find(self._name)
            if not self._good(found):
                found = await self._fetched(found or self._held)
            assert found is not None
            return found
        finally:
            await self._tokens.release(self._name, self._holder)

    async def _fetched(self, before: Token | None) -> Token:
        try:
            async with sending(self._timeout, self._transport) as send:
                fresh = await self._fetch(send, before)
        except PartnerUnavailable:
            found = await self._tokens.find(self._name)  # it took too long, and another process took over
            if found is None or not self._good(found):
                raise
            return found
        self._refused.clear()
        await self._tokens.keep(self._name, fresh, self.name)
        return fresh

    async def _fetch(self, send: Send, before: Token | None) -> Token:
        """A new token; with another date or key when the partner refuses the client for what that may mend."""
        url = await self._endpoint(send)
        skew = before.skew if before else 0.0
        keys = self._keys(before)
        refused = before.refused_key if before and before.refused_key in {key.kid for key in keys[1:] if key} else None
        at = before.refused_at if before and refused else 0.0
        first: TokenRefused | None = None
        for key in keys:
            try:
                try:
                    return self._token(await self._ask(send, url, key, skew), skew, refused, at)
                except TokenRefused as error:
                    off = 0.0 if error.date is None else error.date - self._now()
                    if self.client.method != "private_key_jwt" or not _OFF < abs(off - skew) < _FAR:
                        raise
                    log.warning("%s: its clock differs from ours by %.0f s; signing in again by its clock", self.name, off)
                    skew = off
                    return self._token(await self._ask(send, url, key, skew), skew, refused, at)
            except TokenRefused as error:
                first = first or error
                if not error.of_client:
                    raise
                if key is not None and key is not keys[-1]:
                    refused, at = str(key.kid), self._now()
                    log.warning(
                        "%s: the key %s is refused; trying the one before it, which is still published", self.name, refused
                    )
        assert first is not None
        raise first

    def _keys(self, before: Token | None) -> list[Key | None]:
        """The keys in the order in which they are tried: one that was refused a short time ago comes last."""
        if self.client.method != "private_key_jwt":
            return [None]
        keys: list[Key] = list(self.client.keys())
        if before and before.refused_key and self._now() < before.refused_at + _AGAIN:
            keys.sort(key=lambda key: key.kid == before.refused_key)
        return list(keys)

    async def _endpoint(self, send: Send) -> str:
        if self._fixed is not None:
            if not is_safe(self._fixed, self.base_url):
                raise PartnerAnswerBroken("The token_endpoint of partner.yaml must be https, as the partner's address is")
            return self._fixed
        if self.token_url is None or self._monotonic() >= self._discovered:
            self.token_url = (await discovered(send, self.base_url)).token_endpoint
            self._discovered = self._monotonic() + _DISCOVERED
        assert self.token_url is not None
        return self.token_url

    async def _ask(self, send: Send, url: str, key: Key | None, skew: float) -> tuple[float, dict[str, Any]]:
        """The token endpoint's answer, and when it was asked (monotonic)."""
        fields, headers = self.client.proof(url, key, self._now() + skew)
        form = {"grant_type": "client_credentials", "scope": " ".join(self.scopes), **self._parameters, **fields}
        begun = self._monotonic()
        answer = await send(httpx.Request("POST", url, data=form, headers={"Accept": "application/json", **headers}))
        if answer.status_code in (404, 405, 410):
            self._discovered = 0.0  # it may have moved
        return begun, answered(answer)

    def _token(self, asked: tuple[float, dict[str, Any]], skew: float, refused: str | None, at: float) -> Token:
        begun, answer = asked
        seconds = answer.get("expires_in", 300)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < 10**9:
            seconds = 300
        lifetime = seconds - min(30.0, seconds * 0.2)  # the answer took a while, and so will the request that it is used for
        scope = answer.get("scope")
        return Token(bearer(answer), lifetime, begun + lifetime, scope if isinstance(scope, str) else None, skew, refused, at)


def backend_auth(partner: Partner, client: Client, tokens: Tokens | None = None) -> BackendAuth:
    """Sign-in at a partner as its partner.yaml says."""
    told = partner.credentials
    return BackendAuth(
        partner.base_url,
        client,
        partner.scopes,
        name=partner.name,
        token_url=told.token_endpoint,
        parameters=told.parameters,
        tokens=tokens,
        timeout=partner.limits.timeout,
    )


def bearer(answer: Mapping[str, Any]) -> str:
    """The access token of a token endpoint's answer. Raises PartnerAnswerBroken."""
    token, kind = answer.get("access_token"), answer.get("token_type")
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise PartnerAnswerBroken("The token endpoint's answer holds no bearer token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise PartnerAnswerBroken("The token endpoint's answer holds no bearer token")
    return token


def answered(answer: httpx.Response) -> dict[str, Any]:
    """What a token endpoint answered. Raises PartnerUnavailable, TokenRefused, PartnerAnswerBroken."""
    status, where = answer.status_code, "the token endpoint"
    if status == 429 or status >= 500:
        wait, throttled = retry_after(answer.headers), status == 429
        raise PartnerUnavailable(f"{where} answered {status}", retry_after=wait, sent=False, throttled=throttled)
    try:
        tree = json.loads(answer.content)
    except (ValueError, RecursionError):
        tree = None
    if status >= 400:
        error = tree.get("error") if isinstance(tree, dict) else None
        code = word(error) if isinstance(error, str) else ""
        raise TokenRefused(f"{where} answered {status}{_reason(tree)}", answered=status, error=code, date=_date(answer))
    if status != 200 or not isinstance(tree, dict):
        raise PartnerAnswerBroken(f"{where} answered {status} with what is not a JSON object")
    return tree


def _reason(tree: Any) -> str:
    """RFC 6749 section 5.2, as far as it may be told."""
    error, description = (tree.get("error"), tree.get("error_description")) if isinstance(tree, dict) else (None, None)
    told = [word(error) if isinstance(error, str) else "", harmless(description) if isinstance(description, str) else ""]
    return "".join(f": {text}" for text in told if text)


def _date(answer: httpx.Response) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


async def access_token(base_url: str, client: Client, scopes: Sequence[str]) -> str:
    """Sign in once and return the access token. Raises what the token endpoint's refusal raises."""
    return (await BackendAuth(base_url, client, scopes).token()).value
