"""Faults on demand: at the nth request that fits, the EHR misbehaves, or ends the process that called.

They serve the tests of whoever talks to the sandbox; a fault counts from the moment in which it was set.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


class Late:
    """An application that answers every request so many seconds later, as one that is far away or busy."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer."""
        if scope["type"] == "http":
            await asyncio.sleep(self.seconds)
        await self.app(scope, receive, send)


@dataclass
class Fault:
    """What happens to which request. `action` is a status, html, truncate, delay, lose (the answer) or kill:before / kill:after."""

    method: str
    path: str  # what the path contains
    action: str
    nth: int = 1
    times: int = 1
    seconds: float = 0.0
    pid: int = 0
    seen: int = 0

    def fits(self, request: Request) -> bool:
        """Whether it is this one's turn."""
        if self.method not in ("*", request.method) or self.path not in request.url.path:
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times

    async def happen(self, request: Request, handle: Handler) -> Response:
        """Misbehave."""
        match self.action:
            case "html":
                return Response("<html><body>Service temporarily unavailable</body></html>", 200, media_type="text/html")
            case "truncate":
                whole = await handle(request)
                return Response(bytes(whole.body)[: len(whole.body) // 2], whole.status_code, media_type=whole.media_type)
            case "delay":
                await asyncio.sleep(self.seconds)
                return await handle(request)
            case "lose":
                await handle(request)
                return Response("gateway timeout", 504, media_type="text/plain")
            case "kill:before":
                os.kill(self.pid, signal.SIGKILL)
                return Response(status_code=503)
            case "kill:after":
                answer = await handle(request)
                os.kill(self.pid, signal.SIGKILL)
                return answer
        headers = {"Retry-After": str(int(self.seconds))} if self.action == "429" else {}
        return Response("", int(self.action), headers)
