"""What jobs keep in the database: the parts of their files, so that any process on any machine can go on with them and serve them.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-output-file-request
"""

from __future__ import annotations

from collections.abc import Sequence

from fhircm.fhir.outcome import NotFound
from fhircm.store.database import Connection
from fhircm.store.operations import KeepForJob
from fhircm.store.search_rows import ANY_PARAM

_ASKED = 400
_ADD = "INSERT INTO job_target (job, type, id)"
_ONCE = "ON CONFLICT (job, type, id) DO NOTHING"


async def keep(connection: Connection, kept: KeepForJob) -> None:
    """Write what a slice of a job made."""
    if kept.parts:
        rows = [(kept.job, *part) for part in kept.parts]
        await connection.executemany("INSERT INTO job_part (job, file, part, body) VALUES ($1, $2, $3, $4)", rows)
    if kept.targets:
        await connection.executemany(f"{_ADD} VALUES ($1, $2, $3) {_ONCE}", [(kept.job, *target) for target in kept.targets])
    for start in range(0, len(kept.referring), _ASKED):
        await _add_targets(connection, kept, kept.referring[start : start + _ASKED])
    if kept.closed:
        await _close(connection, kept)


async def _add_targets(connection: Connection, kept: KeepForJob, keys: Sequence[int]) -> None:
    listed = ", ".join(map(str, keys))  # numbers of ours
    await connection.execute(
        f"{_ADD} SELECT DISTINCT $1, s.target_type, s.target_id FROM search_reference s WHERE s.resource_key IN ({listed})"
        f" AND s.param = {ANY_PARAM} AND s.target_type IN ({_types(kept)}) {_ONCE}",
        kept.job,
        *kept.to,
    )


async def _close(connection: Connection, kept: KeepForJob) -> None:
    """What the targets refer to, what that refers to, until nothing new comes."""
    before, now = -1, await _count(connection, kept.job)
    while now > before:
        await connection.execute(
            f"{_ADD} SELECT DISTINCT $1, s.target_type, s.target_id FROM job_target t JOIN resource r ON r.type = t.type AND r.id = t.id"
            f" JOIN search_reference s ON s.resource_key = r.key AND s.param = {ANY_PARAM}"
            f" WHERE t.job = $1 AND t.type IN ({_types(kept)}) AND s.target_type IN ({_types(kept)}) {_ONCE}",
            kept.job,
            *kept.to,
        )
        before, now = now, await _count(connection, kept.job)


def _types(kept: KeepForJob) -> str:
    return ", ".join(f"${at}" for at in range(2, len(kept.to) + 2))


async def _count(connection: Connection, job: str) -> int:
    return int(await connection.fetchval("SELECT COUNT(*) FROM job_target WHERE job = $1", job))


async def drop(connection: Connection, job: str) -> None:
    """Remove everything of a job."""
    for table in ("job_part", "job_target"):
        await connection.execute(f"DELETE FROM {table} WHERE job = $1", job)


async def part(connection: Connection, job: str, file: int, number: int) -> bytes:
    """One part. Raises NotFound."""
    body = await connection.fetchval("SELECT body FROM job_part WHERE job = $1 AND file = $2 AND part = $3", job, file, number)
    if body is None:
        raise NotFound("This file is not there any more")
    return bytes(body)
