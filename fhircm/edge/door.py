"""The door of the HTTP process: one ASGI layer around everything that answers.

It finds out who calls, gives the request its id, turns away who asks too often, and sees to it that no answer leaves without the headers
that protect a browser's user and a patient's record. https://owasp.org/www-project-secure-headers/
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fhircm import correlation
from fhircm.edge.config import EdgeConfig
from fhircm.edge.cors import Cors, Header, Origins, is_public
from fhircm.edge.forwarded import Proxies
from fhircm.edge.rates import Rate, TooManyRequests, caller
from fhircm.edge.slow import paced
from fhircm.rest.errors import answer_to

log = logging.getLogger("fhircm.edge")

_ALWAYS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # not no-referrer: with that a browser hides where a form comes from, also from us
    (b"x-frame-options", b"DENY"),
)
_HSTS: Header = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")
_NO_STORE: Header = (b"cache-control", b"no-store")
_NO_CONTENT: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_FRAME: Header = (b"content-security-policy", b"frame-ancestors 'none'")
# Path, and what is below it: the rate that it is counted by.
_COUNTED = {
    "/signin": "sign_in",
    "/account": "sign_in",
    "/launch": "sign_in",
    "/oauth/authorize": "sign_in",
    "/oauth/token": "token",
    "/oauth/introspect": "token",
    "/oauth/revoke": "token",
    "/oauth/launch": "token",
    "/oauth/register": "register",
}


class Door:
    """An ASGI application around another. `addresses` gives the web addresses of the registered clients."""

    def __init__(
        self,
        inside: ASGIApp,
        config: EdgeConfig,
        addresses: Callable[[], Awaitable[Iterable[str]]],
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._inside, self._slow_seconds = inside, config.slow_seconds
        self._proxies = Proxies(config.trusted_proxies)
        self._cors = Cors(Origins(addresses, config.cors_origins, now))
        self._always = [*_ALWAYS, *([_HSTS] if config.https else [])]
        self.rates = {
            "sign_in": Rate(config.sign_in_rate, now),
            "token": Rate(config.token_rate, now),
            "register": Rate(config.register_rate, now),
            "refused": Rate(config.refused_rate, now),
            "fhir": Rate(config.fhir_rate, now),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inside(scope, receive, send)
            return
        scope = self._proxies.told(scope)
        given = dict(scope["headers"])
        id = correlation.accepted(given.get(b"x-request-id", b"").decode("latin-1"))
        bound = correlation.current.set(id)
        answer = _Answer(send, scope, [(b"x-request-id", id.encode()), *self._always])
        try:
            await self._pass(scope, given, receive, answer)
        except Exception as error:
            log.error("unexpected %s", type(error).__name__, exc_info=log.isEnabledFor(logging.DEBUG))
            if answer.status:  # half of an answer must not look like a whole one
                raise
            await _refusal(scope, error)(scope, receive, answer)
        finally:
            correlation.current.reset(bound)

    async def _pass(self, scope: Scope, given: dict[bytes, bytes], receive: Receive, answer: _Answer) -> None:
        path = scope["path"]
        origin = given[b"origin"].decode("latin-1") if b"origin" in given else None
        if scope["method"] == "OPTIONS" and origin and b"access-control-request-method" in given:
            allowed = await self._cors.preflight(path, origin)
            answer.more += allowed or []
            await Response(status_code=403 if allowed is None else 204)(scope, receive, answer)
            return
        answer.more += await self._cors.headers(path, origin)
        who = caller((scope.get("client") or ("unknown",))[0])
        fhir = is_fhir(path)
        try:
            if counted := _counted(path):
                self.rates[counted].take(who)
            elif fhir:
                self.rates["refused"].left(who)
        except TooManyRequests as error:
            await _refusal(scope, error)(scope, receive, answer)
            return
        await self._inside(scope, paced(receive, self._slow_seconds) if self._slow_seconds else receive, answer)
        if fhir and answer.status == 401:
            try:
                self.rates["refused"].take(who)
            except TooManyRequests:  # several came at once: the next hears of it
                log.info("too many requests without a good token")


class _Answer:
    """What is sent, with the headers that it lacks."""

    def __init__(self, send: Send, scope: Scope, more: list[Header]) -> None:
        self._send, self.more, self.status = send, more, 0
        self._path = scope["path"]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message["headers"])
            there = dict(headers)
            headers += [one for one in self.more if one[0] not in there or one[0] == b"vary"]
            if b"cache-control" not in there and is_fhir(self._path) and not is_public(self._path):
                headers.append(_NO_STORE)
            if b"content-security-policy" not in there:
                headers.append(_NO_FRAME if there.get(b"content-type", b"").startswith(b"text/html") else _NO_CONTENT)
            message = {**message, "headers": headers}
        await self._send(message)


def is_fhir(path: str) -> bool:
    """Whether it is an address of the FHIR API."""
    return path.startswith("/fhir/") or path == "/fhir"


def _counted(path: str) -> str | None:
    for start, name in _COUNTED.items():
        if path == start or path.startswith(f"{start}/"):
            return name
    return None


def _refusal(scope: Scope, error: Exception) -> Response:
    """An error as the caller understands it: an OperationOutcome, OAuth's JSON, or text."""
    if is_fhir(scope["path"]):
        return answer_to(error)
    status, headers = (error.status, dict(error.headers)) if isinstance(error, TooManyRequests) else (500, {})
    text = str(error) if status == 429 else f"Something went wrong here; the operator finds it by {correlation.current.get()}"
    if scope["path"].startswith("/oauth/"):
        code = "temporarily_unavailable" if status == 429 else "server_error"
        return JSONResponse({"error": code, "error_description": text}, status, headers | {"Cache-Control": "no-store"})
    return PlainTextResponse(text, status, headers)
