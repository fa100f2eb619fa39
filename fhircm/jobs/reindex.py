"""Makes the search rows of resources anew from their stored bytes, after a search parameter came or changed.

https://hl7.org/fhir/R4/searchparameter.html. Nobody waits for it, and it waits for nobody: what is written meanwhile has its new rows
from its own write, and keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import NotSupported
from fhircm.jobs.job import Job, Means, Step, start
from fhircm.store.resources import RewriteSearchRows, Store

PAGE = 200  # resources; writers wait for as long as it takes to write their rows
_TOLD = 50  # resources that are named on the Task, of those whose values cannot be read


async def start_reindex(store: Store, types: Sequence[str] | None = None) -> str:
    """Start it for these resource types (None: all); returns the id of the Task. Raises NotSupported for a type that R4 has not."""
    for type in types or ():
        if type not in definitions().resource_types:
            raise NotSupported(f"'{type[:64]}' is not a resource type of FHIR R4")
    chosen = sorted(set(types or definitions().resource_types))
    return await start(store, "reindex", {"types": chosen}, inputs=[("type", type) for type in sorted(set(types or ()))])


async def reindex(means: Means, job: Job) -> Step:
    """One slice: the next resources of a type, or the types that have none left."""
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
