"""A web server of files that can break off, redirect, know ranges or not, and change."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class File:
    """A file, and how it is served. `cuts`: after how many bytes of the body each of the next answers breaks off."""

    body: bytes = b""
    ranges: bool = True
    etag: bool = True
    status: int = 200
    location: str | None = None
    cuts: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Files:
    base: str
    files: dict[str, File]
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of each request

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"


@asynccontextmanager
async def served():
    """The server, on a port of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            sent = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
            path = head[0].split(" ")[1].lstrip("/").partition("?")[0]
            files.asked.append((path, sent.get("range")))
            with suppress(ConnectionError):
                await _write(files.files.get(path, File(status=404)), sent.get("range"), writer)
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    files = Files(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {})
    async with server:
        yield files


async def _write(file: File, wanted: str | None, writer: asyncio.StreamWriter) -> None:
    status, body, headers = file.status, file.body, dict(file.headers)
    if file.etag:
        headers["ETag"] = f'"{hashlib.md5(file.body).hexdigest()}"'
    if file.location:
        headers["Location"] = file.location
    if file.ranges and wanted and status == 200:
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        status, body = (206, body[start:]) if start < len(body) else (416, b"")
        last = f"{start}-{len(file.body) - 1}" if body else "*"
        headers["Content-Range"] = f"bytes {last}/{len(file.body)}"
    cut = file.cuts.pop(0) if file.cuts else None
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    for start in range(0, len(body) if cut is None else cut, 65536):
        writer.write(body[start : start + 65536] if cut is None else body[start : min(start + 65536, cut)])
        await writer.drain()
