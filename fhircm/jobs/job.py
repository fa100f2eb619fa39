"""A job is long work in the background: a Task that people and clients can read, and a timer that carries how far it has come.

https://hl7.org/fhir/R4/task.html. Whoever claims the timer does one slice; what the slice writes, how far it came, and the timer that
is set again commit together, or nothing does. So a job goes on after a SIGKILL, in any worker, and no slice counts twice. It ends when its Task
is cancelled (by `cancel`, or by an update or delete of the Task itself).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fhircm.coordination.build import edit, instant
from fhircm.coordination.codes import CLIENT, codings
from fhircm.coordination.task_states import is_open
from fhircm.fhir.artefacts import folder
from fhircm.fhir.outcome import Conflict, FhirError, NotFound
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import JOB
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import CancelTimer, KeepForJob, Op, Put, SetTimer, Store, Stored, Timer

if TYPE_CHECKING:
    from fhircm.jobs.import_progress import Imports

Tree = dict[str, Any]
KIND = "job:"  # the kind of a job's timer begins with it, and ends with the code of the job


class JobFailed(FhirError):
    """A job cannot go on, and trying again will not help; the text is for people and holds nothing of a patient."""

    status, code = 500, "processing"


@dataclass(frozen=True, slots=True)
class Means:
    """What every slice works with. `seconds` is how long it should take: it ends at the next good place behind."""

    store: Store
    base_url: str  # of the FHIR API, without a slash at its end
    seconds: float
    retention: timedelta = timedelta(hours=24)  # of the files of an export
    skew: timedelta = timedelta()  # by how much the clocks of the machines may differ
    imports: Imports | None = None  # what imports may read and write
    grace: timedelta = timedelta()  # for which a care relationship is good after its end


@dataclass(frozen=True, slots=True)
class Job:
    """A job as one slice finds it: what it was started with, and what the slice before left."""

    id: str  # of its Task
    code: str
    client: str | None  # the SMART client that started it; None: the operator
    parameters: Mapping[str, Any]
    state: Mapping[str, Any]  # of the slice before; empty at first
    done: int
    total: int | None
    attempt: int = 1  # at this slice


@dataclass(frozen=True, slots=True)
class Step:
    """What a slice comes to; all of it commits at once. `done` and `total` are what people read: any unit, resources as a rule."""

    state: Mapping[str, Any]  # as small as can be: JSON, written with every slice
    done: int = 0
    total: int | None = None
    operations: Sequence[Op] = ()
    finished: bool = False
    output: Sequence[Tree] = ()  # Task.output, when finished
    wait: timedelta = timedelta()  # until the next slice
    origin: str = "hub"  # of what it writes, in the change log


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job: `slice` does a bounded part of it; `undo` clears away what it wrote when it ends before it is finished."""

    slice: Callable[[Means, Job], Awaitable[Step]]
    undo: Callable[[str], Sequence[Op]] = field(default=lambda id: ())


def timer_key(id: str) -> str:
    """The key of the timer of a job."""
    return f"{KIND}Task/{id}"


def job_of(timer: Timer) -> Job:
    """The job whose timer this is."""
    kept = timer.payload
    code = timer.kind.removeprefix(KIND)
    return Job(kept["task"], code, kept["client"], kept["parameters"], kept["state"], kept["done"], kept["total"], timer.attempts)


async def start(
    store: Store,
    code: str,
    parameters: Mapping[str, Any],
    *,
    client: str | None = None,
    inputs: Sequence[tuple[str, str]] = (),
    operations: Sequence[Op] = (),
    keep: Sequence[tuple[str, str]] = (),
    id: str | None = None,
) -> str:
    """Start a job; returns the id of its Task. `parameters` (JSON) are for its slices, `inputs` for those who read the Task.

    `operations` commit with it, and may know it by an `id` that was chosen before; `keep` are resources (type, id) that it is about, kept for it until it ends. Whoever calls this has checked
    what the client may do.
    """
    id = id or str(uuid4())
    now = instant(store.clock())
    task = {
        "resourceType": "Task",
        "id": id,
        "status": "ready",  # nobody is asked whether they accept it
        "intent": "order",
        "code": _concept(code),
        "description": _displays()[code],
        "authoredOn": now,
        "lastModified": now,
        **_who(client),
        **({"input": [_input(name, value) for name, value in inputs]} if inputs else {}),
    }
    payload = {"task": id, "client": client, "parameters": dict(parameters), "state": {}, "done": 0, "total": None}
    timer = SetTimer(timer_key(id), KIND + code, store.clock(), payload)
    origin = f"client:{client}" if client else "hub"
    kept = [KeepForJob(id, targets=keep)] if keep else []
    await store.transact([Put(check_tree(task), if_version=0), timer, *kept, *operations], origin=origin)
    return id


async def cancel(store: Store, kinds: Mapping[str, Kind], id: str, reason: str = "Cancelled") -> None:
    """End a job that is not finished, and clear away what it wrote. Raises NotFound, and Conflict for one that has ended."""
    task = (await store.read_many([("Task", id)])).get(("Task", id))
    code = code_of(task)
    if task is None or code is None:
        raise NotFound(f"Task/{id} is no job")
    if not is_open(task.tree):
        raise Conflict(f"The job has ended: its Task is {task.tree['status']}")
    ended = edit(task, status="cancelled", statusReason={"text": reason}, lastModified=instant(store.clock()))
    await store.transact([ended, CancelTimer(timer_key(id)), *kinds[code].undo(id)], origin="hub")


def code_of(task: Stored | None) -> str | None:
    """Which job a Task is, if it is one."""
    found = codings(task.tree.get("code")) if task is not None else ()
    return next((code for system, code in found if system == JOB and code in _displays()), None)


@dataclass(frozen=True, slots=True)
class Listed:
    """A job in a list: its Task, and how far it has come."""

    task: Stored
    code: str
    done: int
    total: int | None
    attempts: int


async def listed(store: Store, count: int = 50) -> list[Listed]:
    """The newest jobs, the newest first."""
    codes = ",".join(f"{JOB}|{code}" for code in _displays())
    page = await store.search(parse_query("Task", [("code", codes), ("_count", str(count))]))
    found: list[Listed] = []
    for task in page.matches:
        timer = await store.timer(timer_key(task.id))
        kept = timer.payload if timer else {"done": 0, "total": None}
        found.append(Listed(task, code_of(task) or "", kept["done"], kept["total"], timer.attempts if timer else 0))
    return found


def told(row: Listed) -> list[str]:
    """A line of a list: the id, the code, the status, how far, when it began, and why it ended early."""
    tree = row.task.tree
    text = tree.get("businessStatus", {}).get("text", "")
    so_far = text if not is_open(tree) else progress(row.done, row.total)
    more = [tree["statusReason"]["text"]] if "statusReason" in tree else []
    more += [f"attempt {row.attempts}"] if row.attempts > 1 else []
    return [row.task.id, row.code, tree["status"], so_far, tree["authoredOn"], *more]


def progress(done: int, total: int | None) -> str:
    """How far a job has come, in words."""
    return f"{done:,} of {total:,}" if total is not None else f"{done:,}"


@cache
def _displays() -> dict[str, str]:
    tree = json.loads((folder("profiles") / "code-system" / "job.json").read_bytes())
    return {concept["code"]: concept["display"] for concept in tree["concept"]}


def _concept(code: str) -> Tree:
    return {"coding": [{"system": JOB, "code": code, "display": _displays()[code]}], "text": _displays()[code]}


def _who(client: str | None) -> Tree:
    if client is None:
        return {}
    reference = {"identifier": {"system": CLIENT, "value": client}, "display": client}
    return {"requester": reference, "owner": reference}


def _input(name: str, value: str) -> Tree:
    return {"type": {"text": name}, "valueString": value}
