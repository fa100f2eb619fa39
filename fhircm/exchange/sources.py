"""Files that another system offers, read line by line in a stream, from where the reading before ended.

https://www.rfc-editor.org/rfc/rfc9110#section-14 (Range) and https://www.rfc-editor.org/rfc/rfc1952 (gzip). A file is fetched ahead of its
reader by a few chunks, and no more of it is ever held, however large it is. Only what the operator allows is fetched, redirects too.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urljoin

import httpx

from fhircm.exchange.errors import retry_after
from fhircm.exchange.source_address import Allowed, SourceChanged, SourceRefused, SourceUnavailable
from fhircm.exchange.trust import trust

CHUNK = 64 * 1024  # bytes
AHEAD = 16  # chunks
OPEN = 4  # files that are open at the same time
NEAR = 8 * 1024 * 1024  # bytes that are sooner passed over than asked for anew
IDLE = 60.0  # seconds that nobody reads on, before a file is closed
REDIRECTS = 5
TIMEOUT = httpx.Timeout(30.0)
_GZIP = b"\x1f\x8b"
_TOTAL = re.compile(r"bytes (?:\*|(\d+)-\d+)/(\d+|\*)")


class Place(NamedTuple):
    """How far a file was read: bytes (of what was packed, once it is unpacked) and lines; and how the file was recognised."""

    offset: int = 0
    line: int = 0
    packed: bool = False
    mark: str = ""  # its ETag, or its time and length


class Line(NamedTuple):
    """A line that is not blank; `body` is None for one that is too long."""

    number: int
    body: bytes | None


class Batch(NamedTuple):
    """The next lines, the place behind them, and whether the file ends there; `damaged`: what was packed breaks off."""

    lines: list[Line]
    place: Place
    ended: bool
    damaged: bool = False


@dataclass
class Sources:
    """The files that are being read; each stays open between two batches, if the same process takes both."""

    allowed: Allowed
    _open: dict[str, _Reader] = field(default_factory=dict)

    async def read(self, key: str, url: str, place: Place, *, count: int, size: int, limit: int, until: float) -> Batch:
        """Of the file that the caller calls `key`: at most `count` more lines and about `size` bytes from a place on, or what came `until` then (monotonic seconds).

        A line may have `limit` bytes. Raises Forbidden, SourceRefused, SourceChanged, SourceUnavailable.
        """
        reader = self._open.pop(key, None)
        if reader is None or not reader.goes_on(place):
            if reader is not None:
                await reader.close()
            reader = _Reader(self.allowed, url, place)
        try:
            batch = await reader.batch(count, size, limit, until)
        except BaseException:
            await reader.close()
            raise
        if batch.ended:
            await reader.close()
        else:
            self._open[key] = reader
        while len(self._open) > OPEN:
            await self._open.pop(next(iter(self._open))).close()
        return batch

    async def close(self) -> None:
        """Close all files."""
        while self._open:
            await self._open.popitem()[1].close()


class _Reader:
    """One file under way: a task fetches ahead, and lines are cut from what it fetched."""

    def __init__(self, allowed: Allowed, url: str, place: Place) -> None:
        self.allowed, self.url, self.place = allowed, url, place
        self._chunks: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(AHEAD)
        self._rest = bytearray()  # what was fetched and is not yet a line
        self._searched = 0  # bytes of it that hold no end of a line
        self._over = 0  # bytes of a line that is too long, thrown away already
        self._behind = 0  # bytes to come that others have read
        self._ended = self._damaged = False
        self._error: Exception | None = None  # to be raised when what came before it was taken
        self.given_up = False
        self._packed, self._mark = place.packed, place.mark
        self.pump = asyncio.create_task(self._fetch())

    async def close(self) -> None:
        self.pump.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self.pump

    def goes_on(self, place: Place) -> bool:
        """Whether it can give what is behind a place: its own, or one that others have read to meanwhile, when that is cheap."""
        ahead = place.offset - self.place.offset
        another = place.mark not in ("", self._mark)  # who has read nothing so far knows no mark
        if self.given_up or ahead < 0 or another or (ahead > NEAR and not place.packed):
            return False
        self._pass_over(ahead)
        self.place = place
        return True

    def _pass_over(self, size: int) -> None:
        known = self._over + len(self._rest)
        if size > 0:
            del self._rest[: max(0, size - self._over)]
            self._searched = self._over = 0
            self._behind += max(0, size - known)

    # --- lines ---------------------------------------------------------------------------------------------------------------

    async def batch(self, count: int, size: int, limit: int, until: float) -> Batch:
        if self._error is not None:
            raise self._error
        lines: list[Line] = []
        taken = 0
        while len(lines) < count and taken < size:
            line = self._cut(limit)
            if line is None:
                if self._ended or not await self._more(until, bool(lines)):
                    break
                continue
            taken += len(line.body or b"")
            if line.body is None or line.body.strip():
                lines.append(line)
        self.place = self.place._replace(packed=self._packed, mark=self._mark)
        return Batch(lines, self.place, self._ended and not self._rest and not self._over, self._damaged)

    def _cut(self, limit: int) -> Line | None:
        """The next line that is here as a whole; the last one may lack its end."""
        end = self._rest.find(b"\n", self._searched)
        behind = end + 1
        if end < 0 and self._ended and (self._rest or self._over):
            end = behind = len(self._rest)
        if end < 0:
            self._searched = len(self._rest)
            if self._searched > limit:
                self._over += self._searched
                self._rest.clear()
                self._searched = 0
            return None
        line = Line(self.place.line + 1, None if self._over + end > limit else bytes(self._rest[:end]))
        del self._rest[:behind]
        self.place = self.place._replace(offset=self.place.offset + self._over + behind, line=line.number)
        self._searched = self._over = 0
        return line

    async def _more(self, until: float, some: bool) -> bool:
        """Wait for the next chunk; false when it did not come in time. An error waits until `some` lines were taken."""
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                chunk = await self._chunks.get()
        except TimeoutError:
            return False
        if isinstance(chunk, Exception):
            if not some:
                raise chunk
            self._error = chunk
            return False
        if chunk is None:
            self._ended = True
            if self._damaged:  # the beginning of a line is no line
                del self._rest[self._rest.rfind(b"\n") + 1 :]
        else:
            self._rest += chunk[self._behind :]
            self._behind = max(0, self._behind - len(chunk))
        return True

    # --- bytes ---------------------------------------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        """Put the file's bytes from the place on into the queue, then None, or the error."""
        last: Exception | None = None
        try:
            async for chunk in self._bytes():
                async with asyncio.timeout(IDLE):
                    await self._chunks.put(chunk)
        except TimeoutError:
            self.given_up = True  # nobody reads on
            return
        except httpx.HTTPError as error:
            last = SourceUnavailable(f"The source broke off or cannot be reached ({type(error).__name__})")
        except Exception as error:
            last = error
        await self._chunks.put(last)

    async def _bytes(self) -> AsyncIterator[bytes]:
        """What follows behind the place, unpacked."""
        never_by_proxy: dict[str, None] = {"all://127.0.0.1": None, "all://[::1]": None}
        async with httpx.AsyncClient(timeout=TIMEOUT, mounts=never_by_proxy, verify=trust()) as http:
            answer = await self._answer(http)
            try:
                skip = self.place.offset - self._begins(answer)
                if answer.status_code == 416:  # it was read to its very end
                    return
                async for part in self._unpacked(answer.aiter_raw(CHUNK)):
                    if skip < len(part):
                        yield part[skip:]
                    skip = max(0, skip - len(part))
            finally:
                await answer.aclose()

    async def _unpacked(self, raw: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        unpack: _Unpacker | None = None
        begun = False
        async for chunk in raw:
            if not begun:
                begun = True
                self._packed = self._packed or (self.place.offset == 0 and chunk.startswith(_GZIP))
                unpack = _Unpacker() if self._packed else None
            for part in unpack.parts(chunk) if unpack else (chunk,):
                yield part
        self._damaged = unpack is not None and not unpack.whole

    async def _answer(self, http: httpx.AsyncClient) -> httpx.Response:
        """The answer to a GET of what is behind the place, behind all redirects."""
        url = self.url
        for _ in range(REDIRECTS + 1):
            self.allowed.check(url)
            there = httpx.URL(url)
            headers = {
                "Host": there.netloc.decode(),
                "Accept": "application/fhir+ndjson, */*;q=0.5",
                "Accept-Encoding": "identity",
            }
            if self.place.offset and not self.place.packed:
                headers["Range"] = f"bytes={self.place.offset}-"
            direct = there.copy_with(host=await self.allowed.address(there))
            request = http.build_request("GET", direct, headers=headers, extensions={"sni_hostname": there.host})
            answer = await http.send(request, stream=True, follow_redirects=False)
            if answer.status_code not in (301, 302, 303, 307, 308):
                return answer
            url = urljoin(url, answer.headers.get("Location", ""))
            await answer.aclose()
        raise SourceRefused("The source redirects again and again")

    def _begins(self, answer: httpx.Response) -> int:
        """Where the answer's bytes begin in the file. Raises what speaks against reading on."""
        status = answer.status_code
        found = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
        if status in (408, 425, 429) or status >= 500:
            raise SourceUnavailable(f"The source answered {status}", retry_after=retry_after(answer.headers))
        if status == 416 and found and found[2] == str(self.place.offset):
            return self.place.offset  # it was read to its very end
        if status in (412, 416):
            raise SourceChanged("The file is another one now than the one of which a part was read")
        if status not in (200, 206):
            raise SourceRefused(f"The source answered {status}")
        begins = int(found[1] or 0) if status == 206 and found else 0
        total = found[2] if found else answer.headers.get("Content-Length", "")
        mark = answer.headers.get("ETag") or f"{answer.headers.get('Last-Modified', '')} {total}"
        if self._mark not in ("", mark) or (status == 206 and begins != self.place.offset):
            raise SourceChanged("The file is another one now than the one of which a part was read")
        self._mark = mark
        return begins


class _Unpacker:
    """Unpacks gzip, also of several members; `whole` unless the last one breaks off or something is damaged."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._damaged = False

    @property
    def whole(self) -> bool:
        return self._inflate.eof and not self._damaged

    def parts(self, raw: bytes) -> Iterator[bytes]:
        """What these bytes hold, in small parts, however much it is. Nothing is read behind what is damaged."""
        while not self._damaged:
            if self._inflate.eof:  # another member, or what fills up a block
                raw = raw.lstrip(b"\0")
                if not raw:
                    return
                self._inflate = zlib.decompressobj(wbits=31)
            try:
                part = self._inflate.decompress(raw, CHUNK)
            except zlib.error:
                self._damaged = True
                return
            if part:
                yield part
            raw = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if not raw and len(part) < CHUNK:
                return
