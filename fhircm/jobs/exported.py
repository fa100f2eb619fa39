"""What a client sees of the exports and imports that it started: how far they are, what there is to fetch, and how it gets rid of them.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-status-request
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhircm.coordination.task_states import is_open
from fhircm.fhir.outcome import NotFound
from fhircm.jobs import bulk_import
from fhircm.jobs.export import EXPIRY, NAMESPACE, export, forget
from fhircm.jobs.job import JobFailed, Kind, cancel, code_of, progress, timer_key
from fhircm.store.resources import CancelTimer, Op, Store, Stored, Timer
from fhircm.store.stored import moment

KINDS = {"export": Kind(export, forget), "import": Kind(bulk_import.bulk_import, bulk_import.undo)}
_UNKNOWN = "There is no such export or import"


@dataclass(frozen=True, slots=True)
class UnderWay:
    """One that goes on: how far it is, in words, and since when."""

    progress: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Exported:
    """One that is done."""

    request: str
    transaction_time: str
    expires: datetime
    since: bool  # whether what was deleted is told
    files: Sequence[Mapping[str, Any]]  # in order: kind (output, deleted, error), type, count, bytes, parts
    inputs: Sequence[Mapping[str, Any]] | None = (
        None  # of an import: type, url, imported, unchanged, rejected, errors (places of files)
    )


async def status(store: Store, client: str, id: str) -> UnderWay | Exported:
    """Where one of this client stands. Raises NotFound, also for one of another client, and JobFailed."""
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
            raise NotFound(_UNKNOWN)
        return _exported(known, client)
    done, total = timer.payload["done"], timer.payload["total"]
    return UnderWay(progress(done, total) + " resources", datetime.fromisoformat(task.tree["authoredOn"]))


async def remove(store: Store, client: str, id: str) -> None:
    """End one of this client, or remove its files. Raises NotFound."""
    known = await store.state(NAMESPACE, id)
    if known is not None:
        _exported(known, client)
        await store.transact([*forget(id), CancelTimer(f"{EXPIRY}:{id}")], origin=f"client:{client}")
        return
    task = await _task(store, client, id)
    if not is_open(task.tree):
        raise NotFound(_UNKNOWN)
    await cancel(store, KINDS, id, "Cancelled by the client")


async def expire(context: object, timer: Timer) -> list[Op]:
    """Timer handler: the files of an export or import are removed when their time is over."""
    return list(forget(timer.payload["task"]))


def _exported(known: Mapping[str, Any], client: str) -> Exported:
    if known["client"] != client:
        raise NotFound(_UNKNOWN)
    return Exported(
        known["request"], known["transactionTime"], moment(known["expires"]), known["since"], known["files"], known.get("inputs")
    )


async def _task(store: Store, client: str, id: str) -> Stored:
    task = (await store.read_many([("Task", id)])).get(("Task", id))
    if task is None or code_of(task) not in KINDS or task.tree["requester"].get("identifier", {}).get("value") != client:
        raise NotFound(_UNKNOWN)
    return task
