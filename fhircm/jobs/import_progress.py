"""How far an import has come, and the lines that it reads next.

https://github.com/smart-on-fhir/bulk-import/blob/master/import.md
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from fhircm.exchange.sources import Batch, Place, Sources
from fhircm.jobs.import_lines import Lines, read
from fhircm.jobs.job import Job, Means

BATCH = 500  # lines a slice
BATCH_BYTES = 4 * 1024 * 1024
_JOBS = 4  # of which lines are read ahead


@dataclass
class Progress:
    """How far an import has come; the state of its job."""

    file: int = 0  # in the order in which they are read
    place: Place = field(default_factory=Place)
    counts: list[list[int]] = field(default_factory=list)  # of each file: imported, unchanged, rejected
    held: int = 0
    failures: int = 0  # of the source, in a row
    files: list[dict[str, Any]] = field(default_factory=list)  # of errors, as the files of an export are kept
    walk: list[str] = field(default_factory=list)  # held lines to go on with
    walks: int = 0

    @property
    def done(self) -> int:
        """Lines of which it is known what became of them."""
        return sum(map(sum, self.counts))


def progress_of(job: Job) -> Progress:
    """What the slice before left."""
    kept = dict(job.state) or {"counts": [[0, 0, 0] for _ in job.parameters["inputs"]]}
    return Progress(**{**kept, "place": Place(*kept.get("place", ()))})


def held_lines(id: str) -> str:
    """The namespace of the lines that an import holds back."""
    return f"import:{id}"


_Prepared = tuple[Batch, Lines]


@dataclass
class Imports:
    """What an operator chooses: the sources, the longest line in bytes, and whether a client may choose ids."""

    sources: Sources
    line_limit: int
    may_create: bool
    _ahead: dict[str, tuple[Place, asyncio.Task[_Prepared] | None]] = field(default_factory=dict)

    async def next_lines(self, means: Means, job: Job, progress: Progress) -> _Prepared:
        """The next lines of a file, read and checked. While they are written those behind them are, if this process does the next slice too."""
        key = f"{job.id}/{progress.file}"
        expected, task = self._ahead.pop(key, (None, None))
        again = expected == progress.place
        if task is not None and not (again and job.attempt == 1):
            task.cancel()
            task = None
        prepared = await (task or self._prepare(key, means, job, progress, progress.place))
        place, ended = prepared[0].place, prepared[0].ended
        if not ended:
            onward = asyncio.create_task(self._prepare(key, means, job, progress, place)) if again else None
            self._ahead[key] = place, onward
        while len(self._ahead) > _JOBS:
            _, task = self._ahead.pop(next(iter(self._ahead)))
            if task is not None:
                task.cancel()
        return prepared

    async def _prepare(self, key: str, means: Means, job: Job, progress: Progress, place: Place) -> _Prepared:
        """Read and check; the checking is done in a thread, since it takes long and others in this process must not wait for it."""
        number = progress.file
        file = job.parameters["inputs"][number]
        less = 8 ** (job.attempt - 1)  # fewer when it could not be done with more
        batch = await self.sources.read(
            key,
            file["url"],
            place if place.mark else place._replace(mark=file["etag"]),
            count=max(1, BATCH // less),
            size=max(1, BATCH_BYTES // less),
            limit=self.line_limit,
            until=time.monotonic() + means.seconds,
        )
        return batch, await asyncio.to_thread(read, batch.lines, number, file["type"], self.line_limit, job.parameters["source"])
