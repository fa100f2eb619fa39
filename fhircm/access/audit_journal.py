"""The audit journal: what happened, on disk before anybody is told of it. https://profiles.ihe.net/ITI/BALP/volume-1.html

Each process appends to a segment of its own, one line an event, by one write to the kernel: a process that is killed loses nothing that
it has answered. A segment is closed when it is large or a second old; then whoever comes first writes its events to the database and
removes the file. The lock on an open segment tells that its process lives: what a dead one leaves is closed by the next that looks.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec

from fhircm.fhir.outcome import FhirError

log = logging.getLogger("fhircm.audit")

SEGMENT = 256 * 1024  # bytes, from which on a segment is closed
_OPEN, _CLOSED, _BROKEN = ".open", ".closed", ".broken"


class AuditUnavailable(FhirError):
    """What happens cannot be recorded, so nothing may happen."""

    status, code = 503, "transient"


class Event(NamedTuple):
    """What is written at the moment: facts only; access/audit.py makes an AuditEvent of it later.

    `touched`: Type/id/version of every version that was shown or written. `target`: Type or Type/id that was asked for. `job`: whose
    files were fetched.
    """

    at: int  # microseconds since the epoch
    code: str  # the interaction; $ and the name of an operation; or ! and what happened to a client, a person or a grant
    status: int
    method: str = ""
    address: str | None = None
    request: str | None = None  # X-Request-Id
    client: str | None = None
    user: str | None = None
    login: str | None = None
    organization: str | None = None
    roles: tuple[str, ...] = ()
    purpose: str | None = None
    target: str | None = None
    query: str | None = None
    touched: tuple[str, ...] = ()
    job: str | None = None


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Event)


class Journal:
    """The journal of this process in a folder that the processes of one machine share. `limit`: of all of the folder, in bytes.

    `sync`: how many seconds a loss of power may take; 0: each line is on the disk before its request is answered.
    """

    def __init__(self, folder: Path, limit: int, sync: float = 1.0) -> None:
        self.folder, self.limit, self.sync_every = folder, limit, sync
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.written = 0  # events, by this process
        self._others = backlog(folder).size
        self._file, self._segment, self._size, self._begun = -1, "", 0, 0.0
        self._unsynced: list[int] = []  # descriptors of what was closed since the disk was last asked

    @property
    def size(self) -> int:
        """The bytes of the segment that is open."""
        return self._size

    def record(self, event: Event) -> None:
        """Append an event. Raises AuditUnavailable: then nobody may be told of what was done."""
        self.require_room()
        line = _encoder.encode(event) + b"\n"
        try:
            if self._file < 0:
                self._open()
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._size)
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError as error:
            raise self._unavailable(f"cannot be written: {error.strerror}") from None
        if not self.sync_every:
            os.fsync(self._file)
        self._size += len(line)
        self.written += 1
        if self._size >= SEGMENT:
            self.close_segment()

    def require_room(self) -> None:
        """Raises AuditUnavailable when the journal is as large as it may become: asked before something is done."""
        if self._others + self._size >= self.limit:
            self._others = backlog(self.folder).size - self._size  # it may have been written to the database meanwhile
            if self._others + self._size >= self.limit:
                raise self._unavailable(f"holds {self._others + self._size} bytes, and may hold {self.limit} (audit_limit)")

    def _unavailable(self, why: str) -> AuditUnavailable:
        log.error("the audit journal %s", why)
        return AuditUnavailable("Requests cannot be recorded at the moment, so none is answered; try again later")

    def _open(self) -> None:
        """Under a name that nobody adopts until the lock is held."""
        segment = uuid4().hex
        new = self.folder / f".{segment}"
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        new.rename(self.folder / f"{segment}{_OPEN}")
        self._file, self._segment, self._size, self._begun = file, segment, 0, time.monotonic()

    def sync(self) -> None:
        """Let the disk have what was written: for a loss of power. May run in a thread, one at a time."""
        closed, self._unsynced = self._unsynced, []
        if self._file >= 0:
            closed.append(os.dup(self._file))  # it may be closed meanwhile
        for file in closed:
            os.fsync(file)
            os.close(file)

    def close_segment(self, older: float = 0.0) -> None:
        """Close the open segment, if it is so many seconds old, so that its events can be written to the database."""
        if self._file >= 0 and time.monotonic() - self._begun >= older:
            path = self.folder / f"{self._segment}{_OPEN}"
            with suppress(FileNotFoundError):
                path.rename(path.with_suffix(_CLOSED))
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._unsynced.append(self._file)
            self._others += self._size
            self._file, self._size = -1, 0


# --- reading -------------------------------------------------------------------------------------------------------------------


class Backlog(NamedTuple):
    """What waits in a folder: files, their bytes, the seconds since the oldest was last written to; and files that cannot be read."""

    files: int
    size: int
    oldest: float
    broken: tuple[str, ...]


def backlog(folder: Path) -> Backlog:
    """What waits in a folder to be written to the database."""
    sizes, times = [], []
    for path in (*folder.glob(f"*{_OPEN}"), *folder.glob(f"*{_CLOSED}")):
        with suppress(FileNotFoundError):
            found = path.stat()
            sizes.append(found.st_size)
            times.append(found.st_mtime)
    broken = tuple(sorted(path.name for path in folder.glob(f"*{_BROKEN}")))
    return Backlog(len(sizes), sum(sizes), max(0.0, time.time() - min(times)) if times else 0.0, broken)


@dataclass(frozen=True, slots=True)
class Segment:
    """A closed segment that this process alone reads now. Each event has an id that is always the same."""

    path: Path
    events: list[tuple[str, Event]]

    def set_aside(self, event: Event) -> None:
        """Keep an event apart that cannot be written."""
        _set_aside(self.path, [_encoder.encode(event)])

    def done(self) -> None:
        """All of it is in the database: remove it."""
        self.path.unlink()


def adopt(folder: Path) -> None:
    """Close the segments of processes that died."""
    for path in folder.glob(f"*{_OPEN}"):
        file = _lock(path)
        if file is not None:
            with suppress(FileNotFoundError):
                path.rename(path.with_suffix(_CLOSED))
            os.close(file)


@contextmanager
def next_segment(folder: Path) -> Iterator[Segment | None]:
    """The oldest closed segment that nobody else works at; None when there is none."""
    for path in sorted(folder.glob(f"*{_CLOSED}"), key=_age):
        file = _lock(path)
        if file is None:
            continue
        try:
            if path.exists():
                yield Segment(path, _events(path))
                return
        finally:
            os.close(file)
    yield None


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _lock(path: Path) -> int | None:
    """Its descriptor, locked until it is closed or the process ends; None when another has it, or it is gone."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _events(path: Path) -> list[tuple[str, Event]]:
    """The events of a segment; a line that the disk lost a part of (a loss of power) is kept aside and told."""
    body = path.read_bytes()
    found, broken = [], []
    for number, line in enumerate(body.splitlines()):
        try:
            found.append((f"{path.stem}-{number}", _decoder.decode(line)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            broken.append(line)
    if broken:
        _set_aside(path, broken)
    return found


def _set_aside(path: Path, lines: list[bytes]) -> None:
    """What can become no AuditEvent is kept, and told by `fhircm audit status`: it must not hold up the others."""
    log.error("%d lines of the audit journal cannot be taken; they are kept in %s", len(lines), path.stem + _BROKEN)
    with path.with_suffix(_BROKEN).open("ab") as file:
        file.writelines(line + b"\n" for line in lines)
