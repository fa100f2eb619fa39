"""Makes the search rows of resources anew from their stored bytes, after a search parameter came or changed.

A parameter of an implementation guide answers from the moment that it ends: docs/decisions/guides-in-every-process.md.
https://hl7.org/fhir/R4/searchparameter.html. Nobody waits for it, and it waits for nobody: what is written meanwhile has its new rows
from its own write, and keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import NotSupported
from fhircm.jobs.job import Job, Means, Step, start
from fhircm.store.guides import INDEXED, INDEXING, LATE, new_generation
from fhircm.store.resources import Op, RewriteSearchRows, SetState, Store

PAGE = 200  # resources; writers wait for as long as it takes to write their rows
_TOLD = 50  # resources that are named on the Task, of those whose values cannot be read


async def start_reindex(store: Store, types: Sequence[str] | None = None) -> str:
    """Start it for these resource types (None: all); returns the id of the Task. Raises NotSupported for a type that R4 has not."""
    for type in types or ():
        if type not in definitions().resource_types:
            raise NotSupported(f"'{type[:64]}' is not a resource type of FHIR R4")
    chosen = sorted(set(types or definitions().resource_types))
    return await start(store, "reindex", {"types": chosen}, inputs=[("type", type) for type in sorted(set(types or ()))])


async def start_indexing(store: Store, types: Sequence[str], answering: Mapping[str, str], operations: Sequence[Op]) -> str:
    """Start it for parameters of guides that answer when it is done (`Patient.race`, and the digest of its definition).

    The operations, which put them in force, commit with it.
    """
    id = str(uuid4())
    mine = SetState(INDEXING, id, {"answering": dict(answering)})
    parameters = {"types": list(types), "answering": dict(answering)}
    inputs = [("search parameter", name) for name in answering]
    return await start(store, "reindex", parameters, inputs=inputs, operations=[*operations, mine], id=id)


async def reindex(means: Means, job: Job) -> Step:
    """One slice: the next resources of a type, or the types that have none left."""
    if "answering" not in job.parameters:
        return await _slice(means, job)
    if await means.store.state(INDEXING, job.id) is None:  # the guides changed again, and another job does it all
        return Step(job.state, job.done, job.total, finished=True)
    if waiting := await _until_everybody_knows(means.store, job):
        return waiting
    step = await _slice(means, job)
    return replace(step, operations=[*step.operations, *_made_to_answer(job)]) if step.finished else step


async def _until_everybody_knows(store: Store, job: Job) -> Step | None:
    """No resource is read before every process knows the parameters, and what was in flight before that has ended.

    What is written from then on has the rows of the new parameters by its own write.
    """
    if not job.state:
        return Step({"knows": True}, wait=timedelta(seconds=LATE))
    if "in flight" not in job.state and "type" not in job.state:
        return Step({"in flight": await store.in_flight()})
    if "in flight" in job.state and not await store.has_settled(job.state["in flight"]):
        return Step(job.state, wait=timedelta(seconds=0.5))
    return None


def _made_to_answer(job: Job) -> list[Op]:
    """From now on the parameters answer, unless the guides were changed in between: then the whole slice is refused."""
    answering = job.parameters["answering"]
    facts = [SetState(INDEXED, name, {"definition": definition}) for name, definition in answering.items()]
    return [SetState(INDEXING, job.id, None, if_present=True), *facts, new_generation()]


async def _slice(means: Means, job: Job) -> Step:
    types: list[str] = job.parameters["types"]
    at, after, refused = job.state.get("type", 0), job.state.get("after", 0), list(job.state.get("refused", []))
    total = job.total if job.total is not None else await means.store.count(types)
    end = time.monotonic() + means.seconds
    done = job.done
    while at < len(types) and time.monotonic() < end:
        page = await means.store.to_reindex(types[at], after, PAGE)
        if page.after is None:
            at, after = at + 1, 0
            continue
        refused = [*refused, *page.refused][:_TOLD]
        done += len(page.resources) + len(page.refused)
        state = {"type": at, "after": page.after, "refused": refused}
        return Step(state, done, max(total, done), [RewriteSearchRows(page.resources)])
    output = [{"type": {"text": "not readable"}, "valueString": name} for name in refused]
    return Step(
        {"type": at, "after": after, "refused": refused}, done, max(total, done), finished=at == len(types), output=output
    )
