"""HL7 v2 messages over TCP: the Minimal Lower Layer Protocol, with limits on everything that a sender could use up.

https://www.hl7.org/documentcenter/public/wg/inm/mllp_transport_specification.PDF. A connection carries any number of messages, one after
the other; each is answered when it is committed. What is no frame ends the connection: nobody could say where the next message begins.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from fhircm.exchange.hl7v2 import LIMIT, MessageWrong

log = logging.getLogger("fhircm.exchange.mllp")

START, END = b"\x0b", b"\x1c\r"
Receive = Callable[[bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class MllpLimits:
    """How much a sender may use. Times in seconds."""

    message: int = LIMIT  # bytes
    connections: int = 100
    idle: float = 600.0  # between two messages
    whole: float = 30.0  # from the first byte of a message to its last, and for an acknowledgement to be taken


class MllpServer:
    """Listens, and hands every message to `receive`, whose answer is sent back. `refuse` answers what is too long."""

    def __init__(self, receive: Receive, refuse: Callable[[MessageWrong], bytes], limits: MllpLimits | None = None) -> None:
        self._receive, self._refuse, self.limits = receive, refuse, limits or MllpLimits()
        self._connections: dict[asyncio.Task[None], bool] = {}  # whether a message is being worked on
        self._server: asyncio.Server | None = None
        self._closing = False

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Begin to listen; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._connected, host, port, ssl=tls, limit=self.limits.message + len(END))
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take no more messages; those that are being worked on are finished and answered."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        for task, busy in list(self._connections.items()):
            if not busy:
                task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._closing or len(self._connections) >= self.limits.connections:
            log.warning("a connection was refused: there are %d", len(self._connections))
            writer.close()
            return
        self._connections[task] = False
        try:
            while not self._closing and (message := await self._next(reader, writer)) is not None:
                self._connections[task] = True
                await self._answer(writer, await self._receive(message))
                self._connections[task] = False
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError) as error:
            log.info("a connection ended: %s", type(error).__name__)
        except asyncio.CancelledError:
            if not self._closing:
                raise
        except Exception as error:  # of the store: the sender hears nothing and sends again
            log.error("a message could not be worked on: %s", type(error).__name__)
        finally:
            del self._connections[task]
            writer.close()
            with suppress(Exception):
                await writer.wait_closed()

    async def _next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        """The next message; None at the end of the connection, or of what can be understood."""
        while True:
            async with asyncio.timeout(self.limits.idle):
                first = await reader.read(1)
            if first in (b"\r", b"\n"):  # some senders end a frame with one too many
                continue
            if first != START:
                if first:
                    log.warning("a connection was closed: what came does not begin as a message does")
                return None
            try:
                async with asyncio.timeout(self.limits.whole):
                    return (await reader.readuntil(END))[: -len(END)]
            except asyncio.LimitOverrunError:
                error = MessageWrong(f"The message is longer than {self.limits.message} bytes", "MSH", "207")
                await self._answer(writer, self._refuse(error))
                return None

    async def _answer(self, writer: asyncio.StreamWriter, ack: bytes) -> None:
        async with asyncio.timeout(self.limits.whole):
            writer.write(START + ack + END)
            await writer.drain()


async def send(host: str, port: int, messages: list[bytes], tls: ssl.SSLContext | None = None) -> list[bytes]:
    """Send messages one after the other over one connection; returns the acknowledgements. Raises OSError, IncompleteReadError."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    answers = []
    try:
        for message in messages:
            writer.write(START + message + END)
            await writer.drain()
            answers.append((await reader.readuntil(END))[len(START) : -len(END)])
    finally:
        writer.close()
    return answers
