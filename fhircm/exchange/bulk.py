"""Load records from a file: one FHIR resource, or one Bundle of them, a line; optionally gzipped.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-output-file-request (NDJSON). Each line that cannot be taken is reported
with its number and the reason, and the rest goes on. Lines may refer forward: what refers to something that was not seen yet waits
until the end of the file.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from fhircm.fhir import json
from fhircm.fhir.outcome import FhirError, Invalid, Issue
from fhircm.fhir.references import references
from fhircm.fhir.validation import Checked, check
from fhircm.store.resources import Put, Store

BATCH = 500  # resources a transaction
LINE_LIMIT = 64 * 1024 * 1024  # bytes; a Bundle of one patient's whole life stays far below


class Rejected(NamedTuple):
    """A line, or a resource of a Bundle on it, that was not taken."""

    line: int
    what: str  # Type/id as far as it could be read
    issues: list[Issue]


@dataclass
class LoadReport:
    """What became of a file."""

    lines: int = 0
    loaded: int = 0
    unchanged: int = 0
    rejected: list[Rejected] = field(default_factory=list)


class _Line(NamedTuple):
    number: int
    resource: Checked

    @property
    def key(self) -> tuple[str, str]:
        return self.resource.type, self.resource.id or ""


async def load(store: Store, path: Path, progress: Callable[[LoadReport], None] = lambda _: None) -> LoadReport:
    """Load a file into the store, each batch in one transaction; loading it again changes nothing.

    Raises OSError when the file cannot be read.
    """
    report = LoadReport()
    waiting: list[_Line] = []
    batch: dict[tuple[str, str], _Line] = {}
    for line in _lines(path, report):
        if line.key in batch:
            waiting += await _write(store, batch, report)
            batch = {}
        batch[line.key] = line
        if len(batch) >= BATCH:
            waiting += await _write(store, batch, report)
            batch = {}
            progress(report)
    waiting += await _write(store, batch, report)
    # What still waits may refer to one another, so it goes in together, without what refers to nowhere.
    left = await _write(store, {line.key: line for line in waiting}, report)
    for line in left:
        missing = await _missing(store, line, set())
        issues = [Issue("error", "not-found", f"{path} refers to a resource that does not exist", path) for path in missing]
        report.rejected.append(Rejected(line.number, "/".join(line.key), issues or [_dependent()]))
    report.rejected.sort()
    progress(report)
    return report


def _dependent() -> Issue:
    return Issue("error", "not-found", "refers to a resource of this file that was itself rejected")


async def _write(store: Store, batch: dict[tuple[str, str], _Line], report: LoadReport) -> list[_Line]:
    """Write what can be written; returns what refers to resources that are not there (yet)."""
    held: list[_Line] = []
    while batch:
        missing = [line for line in batch.values() if await _missing(store, line, set(batch))]
        if not missing:
            break
        held += missing
        for line in missing:
            del batch[line.key]
    present = await store.read_many(batch)
    fresh = [line for key, line in batch.items() if key not in present or not same(present[key].body, line.resource.tree)]
    report.unchanged += len(batch) - len(fresh)
    await _transact(store, fresh, report)
    return held


async def _transact(store: Store, lines: list[_Line], report: LoadReport) -> None:
    try:
        await store.transact([Put(line.resource) for line in lines], origin="load")
        report.loaded += len(lines)
    except FhirError:
        await _one_by_one(store, lines, report)


async def _one_by_one(store: Store, lines: list[_Line], report: LoadReport) -> None:
    """One of these is refused: take each by itself, those that refer to others again once the others are in."""
    while lines:
        refused: list[tuple[_Line, FhirError]] = []
        for line in lines:
            try:
                await store.transact([Put(line.resource)], origin="load")
                report.loaded += 1
            except FhirError as error:
                refused.append((line, error))
        if len(refused) == len(lines):
            report.rejected += [Rejected(line.number, "/".join(line.key), error.issues) for line, error in refused]
            return
        lines = [line for line, _ in refused]


async def _missing(store: Store, line: _Line, together: set[tuple[str, str]]) -> list[str]:
    wanted = {
        (ref.type, ref.id): ref.path for ref in references(line.resource.tree) if ref.kind == "local" and ref.type and ref.id
    }
    outside = {key: path for key, path in wanted.items() if key not in together}
    if not outside:
        return []
    present = await store.read_many(outside)
    return [path for key, path in outside.items() if key not in present]


def same(stored: bytes, new: dict[str, Any]) -> bool:
    """Whether a stored body says what a tree says, to the last digit, apart from what the store itself writes into meta."""
    return _content(json.loads(stored)) == _content(new)


def _content(tree: dict[str, Any]) -> bytes:
    meta = {name: value for name, value in tree.get("meta", {}).items() if name not in ("versionId", "lastUpdated")}
    return json.canonical({**tree, "meta": meta})


def _lines(path: Path, report: LoadReport) -> Iterator[_Line]:
    opened: IO[bytes] = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[assignment]  # noqa: SIM115
    with opened as file:
        while line := _next(file, report):
            report.lines += 1
            if len(line) > LINE_LIMIT:
                _reject(report, "", Issue("error", "too-long", f"longer than {LINE_LIMIT} bytes"))
                while line and not line.endswith(b"\n"):
                    line = _next(file, report)
                continue
            if line.strip():
                yield from _resources(line.strip(), report)


def _next(file: IO[bytes], report: LoadReport) -> bytes:
    """A line; none at the end, or where a compressed file is damaged or cut off, which is reported."""
    try:
        return file.readline(LINE_LIMIT + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        report.lines += 1
        _reject(report, "", Issue("error", "incomplete", "the file is damaged or cut off here; nothing behind it was read"))
        return b""


def _resources(line: bytes, report: LoadReport) -> Iterator[_Line]:
    try:
        tree = json.parse(line)
        bodies = _entries(tree) if tree.get("resourceType") == "Bundle" and tree.get("type") != "document" else [line]
    except FhirError as error:
        _reject(report, "", *error.issues)
        return
    for body in bodies:
        try:
            resource = check(body)
            if resource.id is None:
                raise Invalid("A resource to load needs an id", f"{resource.type}.id")
            yield _Line(report.lines, resource)
        except FhirError as error:
            _reject(report, _name(body), *error.issues)


def _entries(bundle: dict) -> list[bytes]:
    """The resources of a Bundle, its urn:uuid references made into Type/id."""
    entries = [entry for entry in bundle.get("entry", []) if isinstance(entry, dict) and isinstance(entry.get("resource"), dict)]
    local: dict[str, str] = {}
    for entry in entries:
        resource, full_url = entry["resource"], entry.get("fullUrl")
        if isinstance(full_url, str) and full_url.startswith("urn:"):
            resource.setdefault("id", str(uuid5(NAMESPACE_URL, full_url)))
            local[full_url] = f"{resource.get('resourceType')}/{resource['id']}"
    return [json.rewrite_references(json.dumps(entry["resource"]), lambda old: local.get(old, old)) for entry in entries]


def _reject(report: LoadReport, what: str, *issues: Issue) -> None:
    report.rejected.append(Rejected(report.lines, what, list(issues)))


def _name(body: bytes) -> str:
    tree = json.loads(body)
    return f"{str(tree.get('resourceType'))[:64]}/{str(tree.get('id'))[:64]}"
