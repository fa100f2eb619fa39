"""$import: takes NDJSON files of another system, slice by slice: each slice is one transaction with the progress that it makes.

https://github.com/smart-on-fhir/bulk-import/blob/master/import.md. Files are read in an order in which few lines refer forward. A line that
refers to what is not there yet is held as a fact of the store until all files were read; then it is written together with what it waits
for, in circles too, or refused. So what refers to nowhere is never written, and order does not matter.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from fhircm.exchange.source_address import SourceChanged, SourceRefused, SourceUnavailable
from fhircm.exchange.sources import Place
from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Forbidden, Issue, outcome
from fhircm.fhir.validation import check
from fhircm.jobs.export import ended, forget
from fhircm.jobs.export_files import Files
from fhircm.jobs.import_lines import (
    ORIGIN,
    Key,
    Refused,
    Taken,
    Written,
    from_source,
    local,
    refused,
    superseded,
    take,
    target,
)
from fhircm.jobs.import_progress import Imports, Progress, held_lines, progress_of
from fhircm.jobs.job import Job, JobFailed, Means, Step, start
from fhircm.store.resources import ClearStates, KeepForJob, Op, SetState, Store

PAGE = 200  # lines that are held, to begin with
GROUP, GROUP_BYTES = 5000, 16 * 1024 * 1024  # lines that are written together because they refer to one another
WALKS = 100  # slices that may follow references without coming to an end
_ASKED = 100  # held lines in one look
_K = TypeVar("_K")
_ERROR = "error:"  # the kind of the file of errors of an input
FAILURES = 12  # of a source in a row: about twenty minutes
LONGEST_WAIT = 300.0  # seconds


class Input(NamedTuple):
    """A file to import: the type of its resources, where it is, and the ETag that it must have, if any."""

    type: str
    url: str
    etag: str = ""


async def start_import(store: Store, client: str, inputs: Sequence[Input], *, source: str | None, request: str) -> str:
    """Start one of these files; returns the id of its Task. Whoever calls this has checked all of them."""
    numbered = [{"number": number, **one._asdict()} for number, one in enumerate(inputs)]
    ordered = sorted(numbered, key=lambda one: -_uses()[str(one["type"])])  # what many types refer to comes first
    # A query may be a signature, so nobody but the client that sent it sees it.
    told = [(one.type, urlsplit(one.url)._replace(query="", fragment="").geturl()) for one in inputs]
    return await start(store, "import", {"inputs": ordered, "source": source, "request": request}, client=client, inputs=told)


@cache
def _uses() -> Counter[str]:
    """How many elements of other types may refer to a type."""
    return Counter(
        target
        for path, element in definitions().elements.items()
        for kind in element.types
        for target in kind.targets
        if target != path.partition(".")[0]
    )


def undo(id: str) -> list[Op]:
    """Forget what is held back and what was told; what was written stays."""
    return [ClearStates(held_lines(id)), *forget(id)]


async def bulk_import(means: Means, job: Job) -> Step:
    """One slice: the next lines of a file, or of those that are held."""
    assert means.imports is not None
    progress = progress_of(job)
    if progress.file < len(job.parameters["inputs"]):
        return await _read(means, means.imports, job, progress)
    if progress.held:
        return await _settle(means, means.imports, job, progress)
    step = await _step(job, progress, Taken(), [])
    return replace(step, finished=True, operations=_ending(means, job, progress), output=_output(job, progress))


async def _step(job: Job, progress: Progress, taken: Taken, operations: Iterable[Op], wait: float = 0.0) -> Step:
    for line in taken.fresh:
        progress.counts[line.file][0] += 1
    for line in taken.unchanged:
        progress.counts[line.file][1] += 1
    for one in taken.refused:
        progress.counts[one.file][2] += 1
    errors = await _errors(job, progress, taken.refused)
    state = asdict(progress) | {"place": list(progress.place)}
    return Step(state, progress.done, operations=[*taken.puts, *operations, *errors], wait=timedelta(seconds=wait), origin=ORIGIN)


async def _errors(job: Job, progress: Progress, wrong: Sequence[Refused]) -> list[Op]:
    """What is told of lines that were not taken, behind what the slices before told; a file for each input."""
    if not wrong:
        return []
    files = Files(job.id, progress.files)
    for one in wrong:
        await files.add_all(f"{_ERROR}{one.file}", "OperationOutcome", [json.dumps(_told(one))])
    return [KeepForJob(job.id, parts=await files.parts())]


def _told(one: Refused) -> dict[str, Any]:
    """An OperationOutcome that says which line it was, by its number and the id on it."""
    where = f"Line {one.number}" + (f" ({one.what})" if one.what else "")
    return outcome(replace(issue, text=f"{where}: {issue.text}") for issue in one.issues)


def _ending(means: Means, job: Job, progress: Progress) -> list[Op]:
    """The fact that tells the client what became of each input, in the order in which it named them."""
    inputs = [
        {
            "type": file["type"],
            "url": file["url"],
            "imported": progress.counts[at][0],
            "unchanged": progress.counts[at][1],
            "rejected": progress.counts[at][2],
            "errors": [number for number, kept in enumerate(progress.files) if kept["kind"] == f"{_ERROR}{at}"],
        }
        for at, file in sorted(enumerate(job.parameters["inputs"]), key=lambda one: one[1]["number"])
    ]
    return ended(means, job, {"request": job.parameters["request"], "since": False, "files": progress.files, "inputs": inputs})


def _output(job: Job, progress: Progress) -> list[dict[str, Any]]:
    """What the Task tells for everybody: numbers, by type."""
    names = ("imported", "unchanged", "rejected")
    total: Counter[str] = Counter()
    for file, counts in zip(job.parameters["inputs"], progress.counts, strict=True):
        total.update({f"{file['type']} {name}": count for name, count in zip(names, counts, strict=True) if count})
    return [{"type": {"text": name}, "valueInteger": count} for name, count in sorted(total.items())]


# --- lines of a file


async def _read(means: Means, imports: Imports, job: Job, progress: Progress) -> Step:
    number = progress.file
    file = job.parameters["inputs"][number]
    try:
        batch, lines = await imports.next_lines(means, job, progress)
    except SourceUnavailable as error:
        return await _later(job, progress, error)
    except (SourceRefused, SourceChanged, Forbidden) as error:
        raise JobFailed(f"Input {file['number'] + 1} cannot be read at line {progress.place.line + 1}: {error}") from None
    taken = await take(means.store, lines.found, may_create=imports.may_create, careful=job.attempt > 1)
    taken.refused += lines.wrong
    taken.unchanged += lines.repeated
    if batch.damaged and batch.ended:
        text = "The file is damaged or cut off here; nothing behind it was read"
        taken.refused.append(Refused(number, batch.place.line + 1, "", [Issue("error", "incomplete", text)]))
    operations = await _hold(means.store, job, progress, lines.found, taken)
    progress.place = Place() if batch.ended else batch.place
    progress.file += batch.ended
    progress.failures = 0
    return await _step(job, progress, taken, operations)


async def _later(job: Job, progress: Progress, error: SourceUnavailable) -> Step:
    """The source is left alone for a while, longer each time."""
    progress.failures += 1
    if progress.failures >= FAILURES:
        number = job.parameters["inputs"][progress.file]["number"] + 1
        raise JobFailed(f"Input {number} cannot be read at line {progress.place.line + 1}: {error}")
    wait = max(min(2.0 ** (progress.failures - 1), LONGEST_WAIT), min(error.retry_after or 0.0, 12 * LONGEST_WAIT))
    return await _step(job, progress, Taken(), [], wait)


async def _hold(store: Store, job: Job, progress: Progress, lines: Mapping[Key, Written], taken: Taken) -> list[Op]:
    """Keep the lines that wait. A line that was held before and stands again is superseded, whatever becomes of the later one."""
    operations: list[Op] = []
    if progress.held:
        before = await _before(store, job, lines)
        for key, (line, same) in before.items():
            taken.unchanged += [line] if same else []
            taken.refused += [] if same else [superseded(line, lines[key])]
        operations += [SetState(held_lines(job.id), "/".join(key), None) for key in before if key not in taken.missing]
        progress.held -= len(before)
    for line in taken.waiting:
        kept = {"file": line.file, "line": line.number, "body": line.resource.body.decode()}
        operations.append(SetState(held_lines(job.id), "/".join(line.key), kept))
    progress.held += len(taken.waiting)
    return operations


async def _before(store: Store, job: Job, lines: Mapping[Key, Written]) -> dict[Key, tuple[Written, bool]]:
    """Those of these that are held from before: which lines they were, and whether they said the same."""
    found: dict[Key, tuple[Written, bool]] = {}
    for keys in _portions(list(lines)):
        kept = await store.states_of(held_lines(job.id), list(map("/".join, keys)))
        for key in keys:
            if row := kept.get("/".join(key)):
                same = row["body"] == lines[key].resource.body.decode()
                found[key] = lines[key]._replace(file=row["file"], number=row["line"]), same
    return found


async def _held(store: Store, job: Job, keys: Iterable[str]) -> tuple[dict[Key, Written], bool]:
    """Those of these lines that are held, and whether they are all: no more than so many bytes of them are read at a time."""
    found: dict[Key, Written] = {}
    size = 0
    for wanted in _portions(sorted(keys)):
        if size > GROUP_BYTES:
            return found, False
        for key, row in (await store.states_of(held_lines(job.id), wanted)).items():
            type, _, id = key.partition("/")
            resource = from_source(check(row["body"].encode()), job.parameters["source"])
            found[type, id] = Written(row["file"], row["line"], resource)
            size += len(resource.body)
    return found, True


def _portions(keys: list[_K]) -> Iterator[list[_K]]:
    return (keys[at : at + _ASKED] for at in range(0, len(keys), _ASKED))


# --- lines that are held


async def _settle(means: Means, imports: Imports, job: Job, progress: Progress) -> Step:
    """Take some lines that are held, with those that they wait for; write what refers to nowhere no more, refuse the rest."""
    store, until = means.store, time.monotonic() + 3 * means.seconds
    keys = progress.walk or await store.state_keys(held_lines(job.id), max(1, PAGE // 8 ** (job.attempt - 1)))
    group, _ = await _held(store, job, keys)
    more = group
    while more and progress.walks < WALKS:
        more, all = await _held(store, job, await _awaited(store, more, group))
        if more and (not all or time.monotonic() > until or _too_much(group, more)):  # the group waits for them: they come first
            progress.walk, progress.walks = _some(sorted(map("/".join, more)), progress.walks), progress.walks + 1
            return await _step(job, progress, Taken(), [])
        group |= more
    taken = await take(store, group, may_create=imports.may_create, careful=job.attempt > 1)
    taken.refused += [_dangling(line, taken) for line in taken.waiting]
    progress.held = progress.held - len(group) if group or progress.walk else 0
    progress.walk, progress.walks = [], 0
    return await _step(job, progress, taken, [SetState(held_lines(job.id), "/".join(key), None) for key in group])


def _some(keys: list[str], walks: int) -> list[str]:
    """Some of these to go on with, fewer and others each time: so what hangs on a circle is told from the circle and comes first."""
    at = walks * 7919 % len(keys)
    return (keys[at:] + keys[:at])[: max(1, PAGE >> (walks + 1))]


async def _awaited(store: Store, lines: Mapping[Key, Written], group: Mapping[Key, Written]) -> set[str]:
    """What these lines refer to that is neither there nor in the group."""
    targets = {target(one) for line in lines.values() for one in local(line)} - group.keys()
    heads = await store.heads(targets)
    return {"/".join(key) for key in targets if key not in heads or not heads[key].exists}


def _too_much(group: Mapping[Key, Written], more: Mapping[Key, Written]) -> bool:
    together = [*group.values(), *more.values()]
    return len(together) > GROUP or sum(len(line.resource.body) for line in together) > 2 * GROUP_BYTES


def _dangling(line: Written, taken: Taken) -> Refused:
    """A line that refers to what is nowhere, or was refused, or to so many others that they cannot be written together."""
    paths = [one.path for one in taken.missing[line.key]]
    text = "refers to a resource that does not exist, neither here nor as one of this import that was taken"
    return refused(line, *(Issue("error", "not-found", f"{path} {text}", path) for path in paths))
