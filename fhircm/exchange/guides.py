"""Implementation guides: load one from its package, list what is loaded, take one out of force.

https://confluence.hl7.org/display/FHIR/NPM+Package+Specification. The definitions are stored as resources, in several transactions; a last
one makes them all the law together. docs/decisions/guides-in-every-process.md tells how all processes come to know of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any
from uuid import uuid4

from fhircm.fhir import json
from fhircm.fhir.extract import searchable, unindexed
from fhircm.fhir.guides import Artefact, Guide, InForce, digest, in_force, search_parameter, types_of
from fhircm.fhir.outcome import Conflict, NotFound
from fhircm.fhir.package import Definition, Package, read_package
from fhircm.fhir.profile_rules import builds_on
from fhircm.fhir.references import references
from fhircm.store.guides import GUIDE, INDEXED, INDEXING, LATE, new_generation
from fhircm.store.resources import Delete, Op, Put, SetState, Store

BATCH = 50  # definitions in one transaction
REMOVED = "guide-removed"  # namespace of guides that are out of force and whose definitions are being deleted
LEASE = 15.0  # seconds for which a process that fell silent keeps others from changing guides

# Starts the job that indexes these types and then makes the parameters answer; the operations commit with it.
Reindex = Callable[[Sequence[str], Mapping[str, str], Sequence[Op]], Awaitable[str]]


class GuidesBusy(Conflict):
    """Another process changes the guides at this moment."""


@dataclass
class LoadReport:
    """What became of a package."""

    guide: str
    stored: int = 0
    unchanged: int = 0
    profiles: int = 0
    parameters: list[str] = field(default_factory=list)  # new ones, as Patient.race
    as_r4: int = 0  # parameters that R4 has under the same code
    refused: list[str] = field(default_factory=list)  # parameters that cannot be searched by, with the reason
    left_out: list[str] = field(default_factory=list)  # definitions that were not stored, with the reason
    in_part: list[str] = field(default_factory=list)  # profiles that cannot be checked wholly, with the reason
    missing: list[str] = field(default_factory=list)  # guides that it depends on and that are not loaded
    job: str | None = None  # the Task of the job that indexes what is stored already


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a guide that was taken out; `kept` are the definitions that something else refers to."""

    guide: str
    deleted: int
    kept: list[str]
    job: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A guide as a list tells it."""

    guide: Guide
    title: str
    newest: bool
    indexing: list[str]


async def load(store: Store, file: IO[bytes], reindex: Reindex) -> LoadReport:
    """Load a package; loading it again changes nothing. Raises PackageWrong before anything is written, GuidesBusy."""
    package = await asyncio.to_thread(read_package, file)
    report = LoadReport(f"{package.name}#{package.version}")
    async with _alone(store):
        kept = await _storable(store, package, report)
        fact = _fact(package, kept, await _store(store, kept, report))
        guide = _guide(package, kept, fact)
        known = await store.state(GUIDE, guide.key)
        if known is not None and known["loaded"] == fact["loaded"]:
            report.job = await _indexed_at_last(store, reindex)
        else:
            report.job = await _change(store, reindex, [SetState(GUIDE, guide.key, fact)], out=guide.key, into=guide)
        _tell(report, package, guide, in_force())
    return report


async def remove(store: Store, key: str, reindex: Reindex) -> Removed:
    """Take one version of a guide (`name#version`) out of force, and delete the definitions that nothing else needs.

    One that was interrupted goes on when it is asked again. Raises NotFound, GuidesBusy.
    """
    async with _alone(store):
        fact, left, job = await store.state(GUIDE, key), await store.state(REMOVED, key), None
        if fact is not None:
            gone = [SetState(GUIDE, key, None, if_present=True), SetState(REMOVED, key, fact)]
            job = await _change(store, reindex, gone, out=key)
        elif left is not None:
            fact = left
        else:
            raise NotFound(f"The guide {key} is not loaded; loaded are: {', '.join(await store.states(GUIDE)) or 'none'}")
        needed = {_place(row) for other in (await store.states(GUIDE)).values() for row in other["artefacts"]}
        doomed = {_place(row) for row in fact["artefacts"]} - needed
        kept = await _delete(store, sorted(doomed))
        await store.transact([SetState(REMOVED, key, None)], origin="hub")
    return Removed(key, len(doomed) - len(kept), kept, job)


async def versions(store: Store, name: str) -> list[str]:
    """The guides of a name, or the one of a name and version, that are loaded or were not removed to the end."""
    known = {*await store.states(GUIDE), *await store.states(REMOVED)}
    return sorted(key for key in known if name in (key, key.rpartition("#")[0]))


async def _delete(store: Store, doomed: list[tuple[str, str]]) -> list[str]:
    """Delete definitions, those first that refer to others; returns those that something else refers to."""
    while True:
        kept = []
        for type, id in doomed:
            try:
                await store.transact([Delete(type, id)], origin="load")
            except Conflict:
                kept.append((type, id))
            except NotFound:
                continue
        if len(kept) in (0, len(doomed)):
            return ["/".join(one) for one in kept]
        doomed = kept


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["type"], row["id"]


async def listed(store: Store) -> list[Listed]:
    """The guides that are loaded, in order of their names and versions."""
    await store.guides.follow(now=True)
    around = in_force()
    facts = await store.states(GUIDE)
    waiting = unindexed(around)
    found = []
    for guide in sorted(around.guides, key=lambda one: one.key):
        own = {f"{type}.{one.code}" for one in guide.parameters for type in types_of(one)}
        newest = guide in around.newest
        indexing = sorted(own.intersection(waiting)) if newest else []
        found.append(Listed(guide, facts.get(guide.key, {}).get("title", guide.name), newest, indexing))
    return found


@asynccontextmanager
async def _alone(store: Store) -> AsyncIterator[None]:
    """Nobody else changes guides meanwhile, and this process knows what is in force. Raises GuidesBusy."""
    holder = uuid4().hex
    if not await store.lease("guides", holder, LEASE):
        raise GuidesBusy("Another process changes the implementation guides at this moment; try again when it is done")
    renewal = asyncio.create_task(_renew(store, holder))
    try:
        await store.guides.follow(now=True)
        yield
    finally:
        renewal.cancel()
        await store.release("guides", holder)


async def _renew(store: Store, holder: str) -> None:
    while await store.lease("guides", holder, LEASE):
        await asyncio.sleep(LEASE / 3)


# --- the definitions ---------------------------------------------------------------------------------------------------------


async def _storable(store: Store, package: Package, report: LoadReport) -> list[Definition]:
    """The definitions whose references lead somewhere: to one of this package, or to what is stored."""
    left = list(package.definitions)
    while True:
        together = {(one.resource.type, one.resource.id) for one in left}
        wanted = {one.member: _local(one) - together for one in left}
        present = await store.read_many({reference for found in wanted.values() for reference in found})
        dangling = {member: sorted(found - present.keys()) for member, found in wanted.items() if found - present.keys()}
        if not dangling:
            return left
        report.left_out += [f"{member}: refers to {'/'.join(found[0])}, which is not here" for member, found in dangling.items()]
        left = [one for one in left if one.member not in dangling]


def _local(definition: Definition) -> set[tuple[str, str]]:
    found = references(definition.resource.tree)
    return {(ref.type, ref.id) for ref in found if ref.kind == "local" and ref.type and ref.id}


async def _store(store: Store, wanted: Sequence[Definition], report: LoadReport) -> dict[str, int]:
    """Store what is not stored already; returns the version under which each is stored, by its URL."""
    locations: dict[str, int] = {}
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        present = await store.read_many((one.resource.type, one.resource.id or "") for one in batch)
        fresh: list[Definition] = []
        for one in batch:
            there = present.get((one.resource.type, one.resource.id or ""))
            if there is not None and _content(there.body) == _content(one.resource.body):
                locations[one.url] = there.version
            else:
                fresh.append(one)
        written = await store.transact([Put(one.resource) for one in fresh], origin="load") if fresh else []
        locations |= {one.url: stored.version for one, stored in zip(fresh, written, strict=True)}
        report.stored += len(fresh)
        report.unchanged += len(batch) - len(fresh)
    return locations


def _content(body: bytes) -> dict[str, Any]:
    tree = json.loads(body)
    meta = {name: value for name, value in tree.pop("meta", {}).items() if name not in ("versionId", "lastUpdated")}
    return {**tree, "meta": meta}


def _fact(package: Package, kept: Sequence[Definition], locations: Mapping[str, int]) -> dict[str, Any]:
    """What is written down of a guide: where its definitions are stored; `loaded` tells one content of it from another."""
    rows = [
        {
            "type": one.resource.type,
            "id": one.resource.id,
            "stored": locations[one.url],
            "url": one.url,
            "version": one.version,
            **({"constrains": one.resource.tree["type"]} if one.resource.type == "StructureDefinition" else {}),
        }
        for one in kept
    ]
    loaded = hashlib.sha256(json.dumps(rows)).hexdigest()[:16]
    return {"title": package.title, "loaded": loaded, "artefacts": rows}


def _guide(package: Package, kept: Sequence[Definition], fact: Mapping[str, Any]) -> Guide:
    artefacts = tuple(
        Artefact(row["type"], row["url"], row["version"], one.resource.body, row.get("constrains", ""))
        for one, row in zip(kept, fact["artefacts"], strict=True)
    )
    parameters = tuple(search_parameter(one.resource.tree) for one in kept if one.resource.type == "SearchParameter")
    return Guide(package.name, package.version, artefacts, parameters, fact["loaded"])


def _tell(report: LoadReport, package: Package, guide: Guide, after: InForce) -> None:
    report.profiles = sum(one.type == "StructureDefinition" for one in guide.artefacts)
    for parameter in guide.parameters:
        for type in sorted(types_of(parameter)):
            name = f"{type}.{parameter.code}"
            chosen = after.parameters[type].get(parameter.code)
            known = searchable(type, after)
            if chosen is None:
                report.as_r4 += 1
            elif digest(chosen) != digest(parameter):
                report.refused.append(f"{name}: another guide defines it differently, and was there first")
            elif parameter.code in known.written:
                report.parameters.append(name)
            else:
                report.refused.append(f"{name}: {known.refused[parameter.code]}")
    for one in package.definitions:
        base = builds_on(one.resource.tree) if one.resource.type == "StructureDefinition" else None
        if base is not None and base not in after.artefacts:
            report.in_part.append(f"{one.url}: it has no snapshot, and builds on {base}, which is not here")
    here = {one.name for one in after.guides} | {"hl7.fhir.r4.core"}
    report.missing = [f"{name}#{version}" for name, version in sorted(package.dependencies.items()) if name not in here]


# --- the law -----------------------------------------------------------------------------------------------------------------


def _answering(around: InForce) -> dict[str, str]:
    """The parameters of guides that answer, and their definitions."""
    return {
        f"{type}.{code}": digest(parameter)
        for type, parameters in around.parameters.items()
        for code, parameter in parameters.items()
        if around.is_indexed(type, parameter)
    }


async def _change(store: Store, reindex: Reindex, operations: Sequence[Op], *, out: str, into: Guide | None = None) -> str | None:
    """Make it the law that a guide goes out, or comes in, together with the job that indexes what is not indexed; returns its Task."""
    await _void(store)
    before = in_force()
    guides = [one for one in before.guides if one.key != out]
    after = replace(before, guides=(*guides, into) if into else tuple(guides))
    stays = _answering(after)
    stopped = [key for key, definition in _answering(before).items() if stays.get(key) != definition]
    if stopped:  # in every process, before rows are made otherwise
        await store.transact([*(SetState(INDEXED, key, None) for key in stopped), new_generation()], origin="hub")
        await asyncio.sleep(LATE)
    waiting = unindexed(replace(after, indexed=stays))
    job = await _commit(store, reindex, waiting, [*operations, new_generation()])
    await store.guides.follow(now=True)
    return job


async def _void(store: Store) -> None:
    """What is being indexed for guides is void: nothing comes to answer from here on."""
    if under_way := await store.states(INDEXING):
        await store.transact([SetState(INDEXING, key, None) for key in under_way], origin="hub")
    await store.guides.follow(now=True)


async def _commit(store: Store, reindex: Reindex, waiting: Mapping[str, str], operations: Sequence[Op]) -> str | None:
    if waiting:
        return await reindex(sorted({key.partition(".")[0] for key in waiting}), waiting, operations)
    await store.transact(operations, origin="hub")
    return None


async def _indexed_at_last(store: Store, reindex: Reindex) -> str | None:
    """Start the job again when parameters wait and no job that does it is open; returns the Task of the one that is."""
    waiting = unindexed(in_force())
    if not waiting:
        return None
    under_way = await store.states(INDEXING)
    tasks = await store.read_many(("Task", key) for key in under_way)
    open_ones = [id for (_, id), task in tasks.items() if task.tree["status"] in ("ready", "in-progress", "on-hold")]
    if open_ones:
        return open_ones[0]
    await _void(store)
    return await _commit(store, reindex, unindexed(in_force()), [new_generation()])
