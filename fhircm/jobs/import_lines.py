"""What becomes of the lines of an import: written, unchanged, refused, or waiting for what they refer to.

https://github.com/smart-on-fhir/bulk-import/blob/master/import.md. Nothing is written here; all that could refuse a line when it is
written is asked before, so that one bad line does not hold up the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fhircm.exchange.bulk import same
from fhircm.exchange.sources import Line
from fhircm.fhir import json
from fhircm.fhir.extract import search_values
from fhircm.fhir.outcome import FhirError, Invalid, Issue
from fhircm.fhir.references import Reference
from fhircm.fhir.validation import Checked, check
from fhircm.store.resources import Head, Put, Store, Stored
from fhircm.store.transaction import is_there

ORIGIN = "load"  # in the change log: what others have recorded is taken as it is, states of a workflow too
Key = tuple[str, str]  # type and id


class Written(NamedTuple):
    """A line that holds a legal resource; `file` is the place of its file among the inputs."""

    file: int
    number: int
    resource: Checked

    @property
    def key(self) -> Key:
        """Type and id."""
        return self.resource.type, self.resource.id or ""


class Refused(NamedTuple):
    """A line that is not taken: which, what it is as far as it could be read, and why."""

    file: int
    number: int
    what: str
    issues: Sequence[Issue]


@dataclass
class Taken:
    """What becomes of some lines. `missing` tells, of those that wait, what they refer to that is not there."""

    puts: list[Put] = field(default_factory=list)
    fresh: list[Written] = field(default_factory=list)  # those of the puts
    unchanged: list[Written] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    waiting: list[Written] = field(default_factory=list)
    missing: dict[Key, list[Reference]] = field(default_factory=dict)


def refused(line: Written, *issues: Issue) -> Refused:
    """This line, refused."""
    return Refused(line.file, line.number, "/".join(line.key), issues)


class Lines(NamedTuple):
    """Lines as they were read: the resources on them, those that say once more what another says, and those that hold none."""

    found: dict[Key, Written]
    repeated: list[Written]
    wrong: list[Refused]


def read(lines: Iterable[Line], file: int, type: str, limit: int, source: str | None) -> Lines:
    """The resources on lines that must hold some of a type. Of two with one id, the later counts."""
    all = Lines({}, [], [])
    for line in lines:
        try:
            one = Written(file, line.number, _resource(line, type, limit, source))
        except FhirError as error:
            all.wrong.append(Refused(file, line.number, _name(line.body), error.issues))
            continue
        if before := all.found.get(one.key):
            if json.canonical(before.resource.tree) == json.canonical(one.resource.tree):
                all.repeated.append(before)
            else:
                all.wrong.append(superseded(before, one))
        all.found[one.key] = one
    return all


def superseded(before: Written, after: Written) -> Refused:
    """A line whose id stands again, further on."""
    where = f"line {after.number}" if before.file == after.file else "another file"
    return refused(before, Issue("error", "duplicate", f"This id stands again in {where}, which is taken in its place"))


def _resource(line: Line, type: str, limit: int, source: str | None) -> Checked:
    if line.body is None:
        raise Invalid("", issues=[Issue("error", "too-long", f"The line is longer than {limit} bytes")])
    resource = check(line.body.strip())
    if resource.type != type:
        raise Invalid(f"The line holds a {resource.type}, and the file was said to hold {type}", "resourceType")
    if resource.id is None:
        raise Invalid("A resource to import needs an id, so that it can be imported again", f"{type}.id")
    return from_source(resource, source)


def from_source(resource: Checked, source: str | None) -> Checked:
    """The resource, saying where it came from unless it does so itself."""
    meta = resource.tree.get("meta", {})
    if source is None or "source" in meta:
        return resource
    return replace(resource, tree={**resource.tree, "meta": {**meta, "source": source}})


def _name(body: bytes | None) -> str:
    """Type/id of a line that is no legal resource, as far as it is JSON that says so."""
    try:
        tree = json.parse(body or b"")
    except FhirError:
        return ""
    type, id = tree.get("resourceType"), tree.get("id")
    return f"{type}/{id}" if isinstance(type, str) and isinstance(id, str) and type.isalpha() and len(id) <= 64 else ""


def local(line: Written) -> list[Reference]:
    """What it refers to on this server."""
    return [one for one in line.resource.references if one.kind == "local"]


def target(reference: Reference) -> Key:
    """The resource that a local reference names."""
    return reference.type or "", reference.id or ""


async def take(store: Store, lines: Mapping[Key, Written], *, may_create: bool, careful: bool) -> Taken:
    """Decide. `careful` tries what costs time and hardly ever fails; it is for lines that could not be written together."""
    taken = Taken()
    wanted = {key: local(line) for key, line in lines.items()}
    heads = await store.heads({*lines, *(target(one) for found in wanted.values() for one in found)})
    present = await store.read_many([key for key in lines if (head := heads.get(key)) and head.exists])
    fresh: dict[Key, Written] = {}
    for key, line in lines.items():
        stored = present.get(key)
        if stored is not None and same(stored.body, line.resource.tree):
            taken.unchanged.append(line)
        elif issues := list(_refusals(store, line, stored, may_create, careful)):
            taken.refused.append(refused(line, *issues))
        else:
            fresh[key] = line
    while True:
        taken.missing = _unresolved(fresh, wanted, heads)
        together = {key: line for key, line in fresh.items() if key not in taken.missing}
        taken.puts = [Put(line.resource, present[key].version if key in present else 0) for key, line in together.items()]
        wrong = await _wrong_together(store, taken.puts) if careful else None
        if wrong is None or wrong[0] not in together:
            break
        taken.refused.append(refused(fresh.pop(wrong[0]), *wrong[1]))
    taken.waiting = [fresh[key] for key in taken.missing]
    taken.fresh = list(together.values())
    return taken


async def _wrong_together(store: Store, puts: Sequence[Put]) -> tuple[Key, Sequence[Issue]] | None:
    """Which of these could not be written with the others, and why: a chain that comes back is seen only when all are there."""
    try:
        await store.rehearse(puts, origin=ORIGIN)
    except FhirError as error:
        about = error.issues[0].resource
        return (about, error.issues) if about else None
    return None


def _refusals(store: Store, line: Written, stored: Stored | None, may_create: bool, careful: bool) -> Iterator[Issue]:
    if stored is None and not may_create:
        text = "It does not exist here, and this server does not let others choose ids (FHIRCM_UPDATE_CREATE)"
        yield Issue("error", "business-rule", text)
        return
    try:
        store.check_rules(stored, line.resource, ORIGIN)
        if careful:
            search_values(line.resource.tree)
    except FhirError as error:
        yield from error.issues


def _unresolved(
    lines: Mapping[Key, Written], wanted: Mapping[Key, list[Reference]], heads: Mapping[Key, Head]
) -> dict[Key, list[Reference]]:
    """Of which lines the references lead nowhere, or only to others of which that is so."""
    together = set(lines)
    missing: dict[Key, list[Reference]] = {}

    def leads(reference: Reference) -> bool:
        head = heads.get(target(reference), Head(0, exists=False))
        if target(reference) in together:
            return is_there(reference, head.version + 1, True)
        return is_there(reference, head.version, head.exists)

    while True:
        found = {key: gone for key in together if (gone := [one for one in wanted[key] if not leads(one)])}
        if not found:
            return missing
        missing |= found
        together -= found.keys()
