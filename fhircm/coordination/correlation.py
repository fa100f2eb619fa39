"""Which referral a number belongs to: what both sides call it (placer and filler), and what quotes it.

http://hl7.org/fhir/us/bser (Task.identifier PLAC and FILL), https://hl7.org/fhir/R4/datatypes.html#Identifier. A number counts with its
system; one that was typed without a system counts when it is the hub's own, or when both sides name the same assigner. So the same
number of two assigners is two numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fhircm.coordination.build import npi
from fhircm.coordination.codes import FILLER, PLACER, codings
from fhircm.coordination.context import Record, any_of, token
from fhircm.coordination.people import organization_of
from fhircm.coordination.task_states import is_referral
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import DELIVERY, REFERRAL
from fhircm.store.operations import Write, WriteRule
from fhircm.store.resources import Stored

Tree = dict[str, Any]
# Where a resource quotes the number of a referral, and where it refers to the order or the Task of one.
_QUOTES = {
    "Appointment": ("identifier", "basedOn.identifier"),
    "Composition": ("identifier",),
    "DiagnosticReport": ("identifier", "basedOn.identifier"),
    "DocumentReference": ("context.related.identifier",),  # not its own: the hub's letters and copies bear the number, too
    "Encounter": ("identifier", "basedOn.identifier"),
    "ServiceRequest": ("identifier",),
    "Task": ("identifier", "focus.identifier"),
}
_REFERS = {
    "Appointment": ("basedOn",),
    "DiagnosticReport": ("basedOn",),
    "DocumentReference": ("context.related",),
    "Encounter": ("basedOn",),
}


def _at(tree: Any, path: str) -> Iterator[Tree]:
    """The objects at a path of names; lists are gone through."""
    if isinstance(tree, list):
        for one in tree:
            yield from _at(one, path)
    elif isinstance(tree, dict):
        name, _, rest = path.partition(".")
        if not path:
            yield tree
        elif name in tree:
            yield from _at(tree[name], rest)


def quoted(tree: Tree) -> list[Tree]:
    """The Identifiers by which a resource may mean a referral."""
    found = [one for path in _QUOTES.get(tree["resourceType"], ()) for one in _at(tree, path)]
    return [one for one in found if one.get("value") and one.get("system") != DELIVERY]


def referred(tree: Tree, *types: str) -> set[tuple[str, str]]:
    """The orders and Tasks that a resource says it is about: (type, id)."""
    elements = (one for path in _REFERS.get(tree["resourceType"], ()) for one in _at(tree, path))
    parsed = (parse_reference(one.get("reference", "")) for one in elements)
    return {(to.type, to.id) for to in parsed if to.kind == "local" and to.type in types and to.id}


def numbers_of(task: Tree, order: Tree | None) -> list[Tree]:
    """All that a referral is called, on either side."""
    typed = [*task.get("identifier", []), *(order or {}).get("identifier", [])]
    return [one for one in typed if one.get("value") and one.get("system") != DELIVERY]


def searched(numbers: Iterable[Tree]) -> str:
    """The search value for what may quote one of these; whether it does is for `same` to say."""
    values = {token(system, one["value"]) for one in numbers for system in (one.get("system", ""), "")}
    return any_of(sorted(values))


async def same(record: Record, own: Tree, other: Tree) -> bool:
    """Whether two Identifiers are one number of one assigner."""
    if own["value"] != other["value"]:
        return False
    systems = own.get("system"), other.get("system")
    if systems[0] != systems[1] and all(systems):
        return False
    if REFERRAL in systems:
        return True
    agree = await _assigners_agree(record, own.get("assigner"), other.get("assigner"))
    return agree if agree is not None else systems[0] == systems[1] and systems[0] is not None


async def _assigners_agree(record: Record, one: Tree | None, other: Tree | None) -> bool | None:
    """Whether both name the same assigner; None when one of them names none."""
    names = [await _names(record, element) for element in (one, other)]
    return bool(names[0] & names[1]) if all(names) else None


async def _names(record: Record, assigner: Tree | None) -> set[str]:
    if assigner is None:
        return set()
    identifier = assigner.get("identifier", {})
    found = {assigner.get("reference", ""), identifier.get("value", "")}
    organization = await organization_of(record, assigner) if "reference" in assigner else None
    if organization is not None:
        found.add(npi(organization.tree) or "")
    return (found - {""}) or ({assigner["display"].casefold()} if assigner.get("display") else set())


async def quotes_any(record: Record, tree: Tree, numbers: list[Tree]) -> bool:
    """Whether a resource quotes one of these numbers."""
    return any([await same(record, own, other) for other in quoted(tree) for own in numbers if own["value"] == other["value"]])


async def quoted_tasks(record: Record, tree: Tree) -> list[Stored]:
    """The Tasks that a resource means by a number, or by a reference to them or their order; by requisition when only one bears it."""
    found: dict[str, Stored] = {}
    typed = quoted(tree)
    if typed:
        values = {token(system, one["value"]) for one in typed for system in (one.get("system", REFERRAL), "")}
        values |= {_bare(one["value"]) for one in typed if "system" not in one and "assigner" in one}
        for task in await record.find("Task", ("identifier", any_of(sorted(values)))):
            if await quotes_any(record, tree, numbers_of(task.tree, None)):
                found[task.id] = task
        if not found and tree["resourceType"] not in ("Task", "ServiceRequest"):
            orders = await of_requisition(record, typed)
            found = {task.id: task for task in (await record.find("Task", ("focus", orders)) if orders else [])}
    about = referred(tree, "ServiceRequest", "Task")
    orders = sorted(f"ServiceRequest/{id}" for type, id in about if type == "ServiceRequest")
    if orders:
        found |= {task.id: task for task in await record.find("Task", ("focus", any_of(orders)))}
    for stored in (await record.store.read_many([one for one in about if one[0] == "Task"])).values():
        found[stored.id] = stored
    return [found[id] for id in sorted(found)]


async def of_requisition(record: Record, typed: list[Tree]) -> str | None:
    """The one order that bears one of these as the number of its requisition; of several nobody knows which is meant."""
    told = [one for one in typed if one.get("system")]
    orders = await record.find("ServiceRequest", ("requisition", searched(told))) if told else []
    return f"ServiceRequest/{orders[0].id}" if len(orders) == 1 else None


def _bare(value: str) -> str:
    return token("", value)[1:]


# --- what a Task is called ---------------------------------------------------------------------------------------------------


def learned(task: Tree, order: Tree | None, heard: Iterable[Stored]) -> Tree:
    """The members of a Task that tell the numbers of both sides: those of the order, and those that the addressee gave (`heard`)."""
    known = list(task.get("identifier", []))
    for one in (order or {}).get("identifier", []):
        _add(known, one, PLACER, task.get("requester"))
    for stored in heard:
        for one in stored.tree.get("identifier", []) if isinstance(stored.tree.get("identifier"), list) else []:
            if stored.type in ("Task", "ServiceRequest") or FILLER in codings(one.get("type")):
                _add(known, one, FILLER, task.get("owner"))
    return {"identifier": known} if known != task.get("identifier", []) else {}


def _add(known: list[Tree], one: Tree, side: tuple[str, str], assigner: Tree | None) -> None:
    system = one.get("system")
    if not one.get("value") or system in (DELIVERY, REFERRAL) or (system is None and "assigner" not in one):
        return
    if any(there.get("system") == system and there.get("value") == one["value"] for there in known):
        return
    kind = next(iter(set(codings(one.get("type"))) & {PLACER, FILLER}), side)
    organization = assigner if (assigner or {}).get("reference", "").startswith("Organization/") else None
    by = one.get("assigner") or (organization if kind == side else None)
    if kind == FILLER and by is None:
        return
    typed = {**one, "type": {"coding": [{"system": kind[0], "code": kind[1]}]}}
    known.append({**typed, "assigner": by} if by else typed)


def _check(write: Write) -> None:
    """The addressee's number says who gave it: another's may be the same."""
    assert write.new is not None
    if not is_referral(write.new):
        return
    for at, one in enumerate(write.new.get("identifier", [])):
        if FILLER in codings(one.get("type")) and not one.get("assigner"):
            place = f"Task.identifier[{at}].assigner"
            raise Invalid(
                "An identifier of the type FILL says who assigned it: give assigner, the organisation that fulfils the referral",
                place,
            )


RULE = WriteRule(frozenset({"Task"}), _check)
