"""The files of an export: NDJSON in compressed parts, from which it is served as one gzip stream or as plain text.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-output-file-request and https://www.rfc-editor.org/rfc/rfc1952. Each part is raw DEFLATE that
ends on a byte and needs no other part; their concatenation between a gzip header and trailer is one stream that every client can read.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fhircm.store.resources import Store

PART = 1024 * 1024  # bytes of text; a longer line stands in a part of its own
FILE = 256 * 1024 * 1024  # bytes of text, behind which a new file begins
FULL = 16 * PART  # bytes of text that one slice writes at most, and a little
_LEVEL = 1  # three times as fast as the usual 6, and a tenth larger
_RAW = -zlib.MAX_WBITS
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST = b"\x03\x00"  # an empty last block


class Files:
    """What one slice writes, behind what those before it wrote; `known` tells of each file its kind, type, count, and how to go on."""

    def __init__(self, job: str, known: list[dict[str, Any]]) -> None:
        self.job, self.known = job, known
        self._waiting: dict[int, list[bytes]] = {}
        self._size: dict[int, int] = {}
        self._parts: list[tuple[int, int, bytes]] = []
        self._written = 0

    @property
    def full(self) -> bool:
        """Whether the slice has written enough."""
        return self._written + sum(self._size.values()) >= FULL

    async def add_all(self, kind: str, type: str, lines: Sequence[bytes]) -> None:
        """Add lines to the file of a kind (output, deleted or error) and type that is being written."""
        for line in lines:
            number = self._current(kind, type)
            self.known[number]["count"] += 1
            self.known[number]["bytes"] += len(line) + 1
            self._waiting.setdefault(number, []).append(line)
            self._size[number] = self._size.get(number, 0) + len(line) + 1
            if self._size[number] >= PART:
                await self._end_part(number)

    async def parts(self) -> list[tuple[int, int, bytes]]:
        """All parts of this slice, as (file, part, body)."""
        for number in list(self._waiting):
            await self._end_part(number)
        return self._parts

    def _current(self, kind: str, type: str) -> int:
        for number in range(len(self.known) - 1, -1, -1):
            file = self.known[number]
            if (file["kind"], file["type"]) == (kind, type):
                if file["bytes"] < FILE:
                    return number
                break
        self.known.append({"kind": kind, "type": type, "count": 0, "bytes": 0, "parts": 0, "crc": 0})
        return len(self.known) - 1

    async def _end_part(self, number: int) -> None:
        text = b"\n".join([*self._waiting.pop(number), b""])
        self._written += self._size.pop(number)
        file = self.known[number]
        body, file["crc"] = await asyncio.to_thread(_deflated, text, file["crc"])
        self._parts.append((number, file["parts"], body))
        file["parts"] += 1


def _deflated(text: bytes, crc: int) -> tuple[bytes, int]:
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW)
    return compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH), zlib.crc32(text, crc)


async def as_gzip(store: Store, job: str, number: int, file: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """A file as one gzip stream, a part at a time. Raises NotFound when it is removed meanwhile: half a file must not look whole."""
    yield _HEADER
    for part in range(file["parts"]):
        yield await store.job_part(job, number, part)
    yield _LAST + struct.pack("<LL", file["crc"], file["bytes"] % 2**32)


async def as_text(store: Store, job: str, number: int, file: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """A file as it is, a part at a time. Raises NotFound likewise."""
    for part in range(file["parts"]):
        yield zlib.decompressobj(_RAW).decompress(await store.job_part(job, number, part))
