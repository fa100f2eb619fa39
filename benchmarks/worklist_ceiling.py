"""The ceiling of a work list: a bare ASGI application that reads the first page of a person's own list by index, with the bare driver.

Without signing in, visibility, risk, names, next steps and audit. Served by `uvicorn benchmarks.worklist_ceiling:app`, as benchmarks/worklist.py does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.worklist_network import PEOPLE, person
from fhircm.store.database import connect_sqlite

_PAGE = (
    "SELECT v.body FROM (SELECT resource_key, due, priority FROM work_line WHERE list = $1 ORDER BY due, priority, resource_key LIMIT 21) w"
    " JOIN resource r ON r.key = w.resource_key JOIN version v ON v.resource_key = r.key AND v.version = r.version ORDER BY w.due, w.priority"
)
_NUMBERS = iter(range(10**12))
_open: dict[str, Any] = {}


async def _bodies(who: str) -> list[bytes]:
    url = os.environ["WORKLIST_URL"]
    if url.startswith("sqlite:///"):
        if not _open:
            _open["file"] = connect_sqlite(Path(url.removeprefix("sqlite:///")))
        return [row[0] for row in _open["file"].execute(_PAGE.replace("$1", "?1"), (who,)).fetchall()]
    if not _open:
        _open["pool"] = await asyncpg.create_pool(url, min_size=1, max_size=16)
    async with _open["pool"].acquire() as connection:
        return [row[0] for row in await connection.fetch(_PAGE, who)]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Any path: the list of the next person."""
    if scope["type"] != "http":
        return
    users = int(os.environ["WORKLIST_USERS"])
    bodies = await _bodies(person(next(_NUMBERS) % users * (PEOPLE // users))[0]) if scope["path"] != "/" else []
    answer = b'{"resourceType":"Bundle","type":"searchset","entry":[%s]}' % b",".join(b'{"resource":%s}' % one for one in bodies)
    headers = [(b"content-type", b"application/fhir+json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
