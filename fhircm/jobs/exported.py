"""What a client sees of the exports that it started: how far they are, what there is to fetch, and how it gets rid of them.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-status-request
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhircm.coordination.task_states import is_open
from fhircm.fhir.outcome import NotFound
from fhircm.jobs.export import EXPIRY, NAMESPACE, export, undo
from fhircm.jobs.job import JobFailed, Kind, cancel, code_of, progress, timer_key
from fhircm.store.resources import CancelTimer, Op, Store, Stored, Timer
from fhircm.store.stored import moment

KIND = Kind(export, undo)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An export that goes on: how far it is, in words, and since when."""

    progress: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Exported:
    """An export that is done."""

    request: str
    transaction_time: str
    expires: datetime
    since: bool  # whether what was deleted is told
    files: Sequence[Mapping[str, Any]]  # in order: kind (output, deleted, error), type, count, bytes, parts


async def status(store: Store, client: str, id: str) -> UnderWay | Exported:
    """Where an export of this client stands. Raises NotFound, also for one of another client, and JobFailed."""
    known = await store.state(NAMESPACE, id)
    if known is not None:
        return _exported(known, client)
    task = await _task(store, client, id)
    if task.tree["status"] == "failed":
        raise JobFailed(task.tree["statusReason"]["text"])
    timer = await store.timer(timer_key(id))
    if timer is None or not is_open(task.tree):
        known = await store.state(NAMESPACE, id)  # it may have ended just now
        if known is None:
            raise NotFound("There is no such export")
        return _exported(known, client)
    done, total = timer.payload["done"], timer.payload["total"]
    return UnderWay(progress(done, total) + " resources", datetime.fromisoformat(task.tree["authoredOn"]))


async def remove(store: Store, client: str, id: str) -> None:
    """End an export of this client, or remove its files. Raises NotFound."""
    known = await store.state(NAMESPACE, id)
    if known is not None:
        _exported(known, client)
        await store.transact([*undo(id), CancelTimer(f"{EXPIRY}:{id}")], origin=f"client:{client}")
        return
    task = await _task(store, client, id)
    if not is_open(task.tree):
        raise NotFound("There is no such export")
    await cancel(store, {"export": KIND}, id, "Cancelled by the client")


async def expire(context: object, timer: Timer) -> list[Op]:
    """Timer handler: the files of an export are removed when their time is over."""
    return list(undo(timer.payload["task"]))


def _exported(known: Mapping[str, Any], client: str) -> Exported:
    if known["client"] != client:
        raise NotFound("There is no such export")
    return Exported(known["request"], known["transactionTime"], moment(known["expires"]), known["since"], known["files"])


async def _task(store: Store, client: str, id: str) -> Stored:
    task = (await store.read_many([("Task", id)])).get(("Task", id))
    if task is None or code_of(task) != "export" or task.tree["requester"].get("identifier", {}).get("value") != client:
        raise NotFound("There is no such export")
    return task
