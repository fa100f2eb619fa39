"""Runs jobs, slice by slice, beside everything else that a worker does.

https://hl7.org/fhir/R4/task.html#statemachine. A slice that fails is tried again, later each time; after the last attempt the Task is
`failed` and says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta

from fhircm.coordination.build import edit, instant
from fhircm.coordination.task_states import is_open
from fhircm.fhir.outcome import FhirError
from fhircm.jobs.job import KIND, Job, JobFailed, Kind, Means, Step, job_of, progress
from fhircm.store.resources import FinishTimer, Op, RepeatTimer, Stored, Timer
from fhircm.store.timers import StaleClaim

log = logging.getLogger("fhircm.jobs")

ATTEMPTS = 5  # of one slice, before the job has failed
RETRY = 1.0  # seconds before the second attempt; doubled each time
DEATHS = 2 * ATTEMPTS  # claims of one slice that nobody lived to finish
HELD = timedelta(seconds=10)  # how often a job that is on hold looks whether it may go on


async def run_jobs(means: Means, kinds: Mapping[str, Kind], lease: timedelta) -> int:
    """Do one slice of the job that has waited longest. Returns 0 when none is due."""
    claimed = await means.store.claim_timers(frozenset(KIND + code for code in kinds), limit=1, lease=lease)
    for timer in claimed:
        job = job_of(timer)
        holding = asyncio.create_task(_hold(means, timer, lease))
        try:
            await _claimed(means, kinds[job.code], job, timer)
        except StaleClaim:
            log.info("job %s was taken over or cancelled", job.id)
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
    return len(claimed)


async def _hold(means: Means, timer: Timer, lease: timedelta) -> None:
    """Hold a claim for as long as its slice takes: a slow one is no dead one."""
    while True:
        await asyncio.sleep(lease.total_seconds() / 3)
        if not await means.store.extend_timer(timer, lease):
            return


async def _claimed(means: Means, kind: Kind, job: Job, timer: Timer) -> None:
    store = means.store
    task = (await store.read_many([("Task", job.id)])).get(("Task", job.id))
    if task is None or not is_open(task.tree):  # somebody ended it by its Task
        await store.transact([FinishTimer(timer), *kind.undo(job.id)], origin="hub")
        return
    if task.tree["status"] == "on-hold":
        await store.transact([RepeatTimer(timer, store.clock() + HELD, timer.payload)], origin="hub")
        return
    try:
        if task.tree["status"] != "in-progress":
            now = instant(store.clock())
            begun = edit(task, status="in-progress", lastModified=now, executionPeriod={"start": now})
            task = (await store.transact([begun], origin="hub"))[0]
        if timer.attempts > DEATHS:
            raise JobFailed("A worker that did it ended again and again before it was done")
        step = await kind.slice(means, job)
        await store.transact([*step.operations, *_onward(means, job, timer, task, step)], origin=step.origin)
    except StaleClaim:
        raise
    except Exception as error:
        if timer.attempts < ATTEMPTS and not isinstance(error, JobFailed):
            log.warning("job %s: attempt %d of a slice failed with %s", job.id, timer.attempts, type(error).__name__)
            await store.retry_timer(timer, store.clock() + timedelta(seconds=RETRY * 2 ** (timer.attempts - 1)))
            return
        await _fail(means, kind, job, timer, error)


def _onward(means: Means, job: Job, timer: Timer, task: Stored, step: Step) -> Sequence[Op]:
    """The timer set again, or the end. The Task tells every tenth of the way: each of its versions is a change for all to read."""
    store = means.store
    if step.finished:
        return [FinishTimer(timer), _ended(means, task, status="completed", output=list(step.output) or None, **_told(step))]
    payload = {**timer.payload, "state": dict(step.state), "done": step.done, "total": step.total}
    onward: list[Op] = [RepeatTimer(timer, store.clock() + step.wait, payload)]
    if step.total and step.done * 10 // step.total > job.done * 10 // step.total:
        onward.append(edit(task, lastModified=instant(store.clock()), **_told(step)))
    return onward


def _told(step: Step) -> dict[str, dict[str, str]]:
    return {"businessStatus": {"text": progress(step.done, step.total)}}


def _ended(means: Means, task: Stored, **members: object) -> Op:
    now = instant(means.store.clock())
    period = {**task.tree.get("executionPeriod", {}), "end": now}
    return edit(task, lastModified=now, executionPeriod=period, **members)


async def _fail(means: Means, kind: Kind, job: Job, timer: Timer, error: Exception) -> None:
    log.error("job %s failed after %d attempts (%s)", job.id, timer.attempts, type(error).__name__)
    why = str(error) if isinstance(error, FhirError) else type(error).__name__
    task = await means.store.read("Task", job.id)  # as it is now: a conflict may be what failed
    ended = _ended(means, task, status="failed", statusReason={"text": why[:1000]})
    await means.store.transact([ended, FinishTimer(timer), *kind.undo(job.id)], origin="hub")
