"""The files of an export on the disk of the machine that fetches them: resumed where the fetching ended, and sorted by patient.

https://www.rfc-editor.org/rfc/rfc9110#section-14 (Range), https://www.rfc-editor.org/rfc/rfc1952 (gzip). However large an export is, only
one part of it is in memory. Everything here can be fetched or made anew, and is removed when the export is done: it holds patients' records.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from fhircm.exchange.client import PartnerClient
from fhircm.exchange.errors import PartnerAnswerBroken, PartnerRefused, PartnerUnavailable, retry_after
from fhircm.fhir.outcome import FhirError

SYNC = 8 * 1024 * 1024  # bytes that a power cut may cost
PART = 8 * 1024 * 1024  # bytes of a part, if there are not too many
PARTS = 256
SHARED, STRANGE = 0, -1  # the parts of what belongs to no patient, and of what cannot be told
_GZIP = b"\x1f\x8b"


class FileLost(PartnerRefused):
    """The partner does not give a file of an export any more: it expired, or it is another one than the one that was begun."""


class Line(NamedTuple):
    """A line of the export: of which file, its number there, and the line."""

    file: int
    number: int
    body: bytes


@dataclass
class Sorted:
    """What sorting found: the lines of each file, those that are too long to be taken, and the files that are not whole."""

    lines: dict[int, int] = field(default_factory=dict)
    too_long: list[tuple[int, int]] = field(default_factory=list)  # file and line
    broken: dict[int, str] = field(default_factory=dict)
    left_out: int = 0


class Spool:
    """The folder of one export."""

    def __init__(self, root: Path, partner: str, export: str) -> None:
        self._of_partner, self.folder = root / partner, root / partner / export

    def open(self) -> None:
        """Make the folder, and remove those of exports that are over. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for other in self._of_partner.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._of_partner, ignore_errors=True)

    def file(self, number: int) -> Path:
        """A fetched file."""
        return self.folder / f"{number:06}.ndjson"

    def has(self, number: int) -> bool:
        """Whether a file was fetched to its end."""
        return self._note(number).get("whole") is True

    def forget(self, number: int) -> None:
        """Fetch a file anew from its beginning."""
        self._note_path(number).unlink(missing_ok=True)

    # --- fetching ------------------------------------------------------------------------------------------------------------

    async def fetch(self, client: PartnerClient, number: int, url: str, *, signed_in: bool, accept: str) -> None:
        """Fetch what is missing of a file. Raises FileLost, PartnerUnavailable, SignInRefused, OSError (the disk is full)."""
        note = self._note(number)
        if note.get("whole"):
            return
        begun, mark = int(note.get("synced", 0)), str(note.get("mark", ""))
        headers = {"Accept": accept} | ({"Range": f"bytes={begun}-"} if begun else {})
        async with client.stream(url, headers, signed_in=signed_in) as answer:
            if answer.status_code == 416 and begun and answer.headers.get("Content-Range", "").endswith(f"/{begun}"):
                self._keep(number, begun, mark, whole=True)
                return
            begins = self._begins(answer.status_code, answer.headers, begun, mark)
            mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            expected = answer.headers.get("Content-Length", "")
            end = begins + int(expected) if expected.isdigit() else None
            with os.fdopen(os.open(self.file(number), os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                file.truncate(begins)
                file.seek(begins)
                size = synced = begins
                async for chunk in answer.aiter_raw():
                    file.write(chunk)
                    size += len(chunk)
                    if size - synced >= SYNC:
                        synced = self._synced(file, number, size, mark)
                if end is not None and size < end:
                    self._synced(file, number, size, mark)
                    raise PartnerUnavailable(f"A file broke off after {size} of {end} bytes")
                self._synced(file, number, size, mark)
        self._keep(number, size, mark, whole=True)

    def _begins(self, status: int, headers: Mapping[str, str], begun: int, mark: str) -> int:
        """Where the answer's bytes begin. Raises what speaks against going on."""
        if status in (408, 425, 429) or status >= 500:
            wait = retry_after(headers)
            raise PartnerUnavailable(f"A file was answered {status}", retry_after=wait, throttled=status == 429)
        if status not in (200, 206):
            raise FileLost(f"A file was answered {status}", answered=status)
        if status == 200:
            return 0  # it knows no Range: from the beginning
        same = mark in ("", headers.get("ETag") or headers.get("Last-Modified") or "")
        if not same or not headers.get("Content-Range", "").startswith(f"bytes {begun}-"):
            raise FileLost("A file is another one than the one that was begun", answered=status)
        return begun

    def _synced(self, file: IO[bytes], number: int, size: int, mark: str) -> int:
        file.flush()
        os.fsync(file.fileno())
        self._keep(number, size, mark)
        return size

    def _note_path(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"

    def _note(self, number: int) -> dict[str, Any]:
        try:
            note = json.loads(self._note_path(number).read_text())
            return note if self.file(number).stat().st_size >= note["synced"] else {}
        except (OSError, ValueError, KeyError):
            return {}

    def _keep(self, number: int, synced: int, mark: str, *, whole: bool = False) -> None:
        fresh = self._note_path(number).with_suffix(".new")
        fresh.write_text(json.dumps({"synced": synced, "mark": mark, "whole": whole}))
        fresh.replace(self._note_path(number))

    # --- sorting -------------------------------------------------------------------------------------------------------------

    def lines(self, number: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
        """The lines of a file that are not blank, by their number; None for one of more than `limit` bytes.

        Raises PartnerAnswerBroken where a file breaks off.
        """
        path = self.file(number)
        with path.open("rb") as start:
            packed = start.read(2) == _GZIP
        opened: IO[bytes] = gzip.open(path) if packed else path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
        with opened as file:
            try:
                yield from _cut(file, limit)
            except (EOFError, gzip.BadGzipFile, zlib.error):
                raise PartnerAnswerBroken("it is packed, and damaged or breaks off") from None

    def sort(self, files: Iterable[int], parts: int, limit: int, belongs: Callable[[bytes], str | None]) -> Sorted:
        """Put every line of these files into the part of its patient.

        `belongs` names the patient of a line: "" for none, None to leave the line out; it raises FhirError for what is strange. Raises OSError.
        """
        found, fresh, made = Sorted(), self.folder / "parts.new", self.folder / "parts"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        with ExitStack() as stack:
            opened: dict[int, IO[bytes]] = {}
            for number in files:
                try:
                    for line, body in self.lines(number, limit):
                        found.lines[number] = found.lines.get(number, 0) + 1
                        part = _part(found, belongs, parts, number, line, body)
                        if part is not None:
                            if part not in opened:
                                opened[part] = stack.enter_context((fresh / str(part)).open("wb"))
                            opened[part].write(b"%d %d %s\n" % (number, line, body))
                except PartnerAnswerBroken as error:
                    found.broken[number] = str(error)
        fresh.rename(made)
        return found

    def is_sorted(self) -> bool:
        """Whether the lines are in their parts."""
        return (self.folder / "parts").is_dir()

    def part(self, number: int) -> Iterator[Line]:
        """The lines of a part, in the order of the files."""
        path = self.folder / "parts" / str(number)
        if path.exists():
            with path.open("rb") as file:
                for row in file:
                    of_file, line, body = row.rstrip(b"\n").split(b" ", 2)
                    yield Line(int(of_file), int(line), body)

    def size(self, files: Iterable[int]) -> int:
        """The bytes of these files, as they came."""
        return sum(self.file(number).stat().st_size for number in files)


def parts_for(size: int) -> int:
    """Into how many parts beside the shared one so many bytes are sorted."""
    return max(1, min(PARTS, size // PART + 1))


def part_of(patient: str, parts: int) -> int:
    """The part of a patient."""
    return 1 + int.from_bytes(hashlib.sha256(patient.encode()).digest()[:4]) % parts


def _part(
    found: Sorted, belongs: Callable[[bytes], str | None], parts: int, file: int, line: int, body: bytes | None
) -> int | None:
    if body is None:
        found.too_long.append((file, line))
        return None
    try:
        patient = belongs(body)
    except FhirError:
        return STRANGE
    if patient is None:
        found.left_out += 1
        return None
    return part_of(patient, parts) if patient else SHARED


def _cut(file: IO[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        if len(line) > limit and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(limit + 1)
            yield number, None
        elif not line.endswith(b"\n") and not line.rstrip().endswith(b"}"):
            raise PartnerAnswerBroken(f"it breaks off in line {number}")
        elif stripped := line.strip():
            yield number, stripped
