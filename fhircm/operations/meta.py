"""$meta, $meta-add and $meta-delete: the profiles, tags and security labels of a resource, or those in use.

https://hl7.org/fhir/R4/resource-operation-meta.html, resource-operation-meta-add.html and resource-operation-meta-delete.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.outcome import NotFound, NotSupported, VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check
from fhircm.operations.call import Answer, Call, parameters
from fhircm.store.operations import Plan, Put
from fhircm.store.stored import Stored

Labels = dict[str, list[Any]]  # profile, tag and security, each a set
_SETS = ("profile", "security", "tag")


async def meta(call: Call) -> Answer:
    """The meta element of a resource or of one of its versions; of a type or of everything, all labels that are in use there."""
    if call.type and call.id:
        stored = await _read(call, call.type, call.id)
        return _answer(stored.tree["meta"])
    found: Labels = {}
    for stored in await call.store.labels(call.type):
        found = added(found, stored.tree["meta"])
    return _answer({name: sorted(found[name], key=_identity) for name in _SETS if found.get(name)})


async def meta_add(call: Call) -> Answer:
    """Add labels to a resource; those that it has already are not doubled."""
    return await _changed(call, added)


async def meta_delete(call: Call) -> Answer:
    """Take labels from a resource; those that it does not have are no error."""
    return await _changed(call, without)


def added(has: Labels, given: Labels) -> Labels:
    """The labels of both: a tag is the same when system and code are, a profile when its URL is."""
    made = dict(has)
    for name in _SETS:
        listed = {_identity(label): label for label in [*given.get(name, ()), *has.get(name, ())]}  # those that are there win
        before = [_identity(label) for label in has.get(name, ())]
        order = dict.fromkeys([*before, *listed])
        if order:
            made[name] = [listed[identity] for identity in order]
    return made


def without(has: Labels, given: Labels) -> Labels:
    """The labels without the given ones."""
    made = dict(has)
    for name in _SETS:
        gone = {_identity(label) for label in given.get(name, ())}
        left = [label for label in has.get(name, ()) if _identity(label) not in gone]
        made.pop(name, None)
        if left:
            made[name] = left
    return made


def _identity(label: Any) -> tuple[str, str]:
    return (label, "") if isinstance(label, str) else (label.get("system", ""), label.get("code", ""))


async def _read(call: Call, type: str, id: str) -> Stored:
    if call.version is None:
        return await call.store.read(type, id)
    if not call.version.isdigit():
        raise NotFound(f"{type}/{id} has no such version")
    return await call.store.vread(type, id, int(call.version))


async def _changed(call: Call, change: Callable[[Labels, Labels], Labels]) -> Answer:
    """Write the resource with other labels, every other byte as it is; when nothing changes, no version is made."""
    assert call.type
    assert call.id
    type, id, given = call.type, call.id, call.one("meta")
    if call.version is not None:
        raise NotSupported(f"A version stays as it was written; call this at {type}/{id}, which makes a new version")
    current: list[Stored] = []

    def make(found: list[list[Stored]]) -> list[Put]:
        current[:] = found[0]
        if not current:
            raise NotFound(f"{type}/{id} is not there to be changed")
        (stored,) = current
        if call.if_version not in (None, stored.version):
            raise VersionConflict(f"{type}/{id} is at version {stored.version}, not {call.if_version}")
        before = stored.tree["meta"]
        after = change(before, given)
        return [] if after == before else [Put(check(json.splice(stored.body, {"meta": after}), type), stored.version)]

    written = await call.store.transact(Plan([parse_query(type, [("_id", id)])], make), [("u", type)])
    (stored,) = written or current
    return _answer(stored.tree["meta"], {"ETag": f'W/"{stored.version}"'})


def _answer(labels: Labels, headers: dict[str, str] | None = None) -> Answer:
    # An element cannot be empty: where nothing is in use, the parameter stands without a value.
    return parameters({"name": "return", **({"valueMeta": labels} if labels else {})}, headers=headers)
