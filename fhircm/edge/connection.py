"""One connection of a client: its heads must come soon and be small, and it must read what it asked for.

https://www.rfc-editor.org/rfc/rfc9112 and https://www.rfc-editor.org/rfc/rfc6585#section-5. uvicorn and its parser wait for ever for a head, take
one of any size, and keep an answer for whoever does not read it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_READ = 16 * 1024  # bytes that a client must take off an answer in the time that it has


@dataclass(frozen=True)
class Limits:
    """What a client may take."""

    seconds: float = 20.0  # for a head, and to go on reading
    head: int = 32 * 1024  # bytes of a request line and its headers
    connections: int = 2_000  # of one process


class HeadTooLarge(Exception):
    """The head of a request is larger than the limit."""


class Connection(HttpToolsProtocol):
    """uvicorn's own, with limits."""

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head, self._size = True, 0
        self._refusal = HTTPStatus.BAD_REQUEST

    # --- the head ----------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        self._wait_for_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._size = True, 0
        if self._head is None:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, or of a body."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._size += len(data)  # also what the parser holds back until a line is whole
            if self._size > self._limits.head:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._stop(self._head)
        self._head = None
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.head:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise HeadTooLarge
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request has come."""
        super().on_message_complete()
        self._stop(self._head)
        self._head = None

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is answered in the name of the reason that is known."""
        self._refuse(self._refusal)

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(self._limits.seconds, self._no_head)

    def _no_head(self) -> None:
        self._head = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_for_head()  # an answer is on its way, and the next request may wait for it
        elif self._in_head and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        """Tell why, and end the connection."""
        text = status.phrase.encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\nx-content-type-options: nosniff\r\n\r\n" + text)
        self.transport.close()

    # --- the answer --------------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._stop(self._unread)
        self._unread = None

    def on_response_complete(self) -> None:
        """The whole answer is written; what of it is not yet on its way is watched too."""
        unfinished = self.cycle.response_complete and self.cycle.more_body  # of requests in a row it is the last
        super().on_response_complete()
        if unfinished and self._head is None:  # it was answered before its body had come, and must not go on for ever
            self._head = self.loop.call_later(self._limits.seconds, self.transport.close)
        if self._unread is None and self.transport.get_write_buffer_size():
            self._watch_reading()

    def _watch_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self._limits.seconds, self._still_unread, left)

    def _still_unread(self, before: int) -> None:
        self._unread = None
        left = self.transport.get_write_buffer_size()
        if left and before - left < _READ:
            self.transport.abort()
        elif left:
            self._watch_reading()

    # --- the end -----------------------------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop(self._head)
        self._head = None
        super().connection_lost(exc)
        self._stop(self._unread)
        self._unread = None

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def connections(limits: Limits) -> Any:
    """What uvicorn makes its connections with."""
    return partial(Connection, limits)
