"""Chains that must not come back to where they began: a Task that is part of itself, an order that is based on itself.

https://hl7.org/fhir/R4/task-definitions.html#Task.partOf. Looked at inside the transaction, when its search rows are written: so it sees
what the transaction wrote, and two transactions that would close a cycle together come one after the other. What adds no such reference
costs nothing, and a new resource is asked of only what the transaction itself holds, for nobody else can refer to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.definitions import param_key
from fhircm.fhir.outcome import Invalid, Issue
from fhircm.fhir.references import parse_reference
from fhircm.store.database import Connection
from fhircm.store.operations import Chains, Write

Identity = tuple[str, str]
LONGEST = 1000  # resources that lie above one: nobody breaks up work so far


@dataclass(frozen=True, slots=True)
class Grown:
    """A resource that refers further up than before: by which element, to what; `there`: others may refer to it already."""

    element: str
    to: frozenset[Identity]
    there: bool


def grown(writes: Mapping[Identity, Write], chains: Chains) -> dict[Identity, Grown]:
    """What the transaction adds to the chains."""
    found = {}
    for identity, write in writes.items():
        for element in chains.get(identity[0], ()):
            if write.new is None or element not in write.new:
                continue
            added = _leads(write.new, element) - _leads(write.previous or {}, element)
            before = found[identity].to if identity in found else frozenset()
            if added:
                found[identity] = Grown(element, before | added, write.previous is not None)
    return found


def needs_a_look(found: Mapping[Identity, Grown]) -> bool:
    """Whether a chain could come back through what is there already."""
    return any(one.there for one in found.values())


def require_none_within(found: Mapping[Identity, Grown]) -> None:
    """No cycle among what the transaction adds. Raises Invalid."""
    for start, one in found.items():
        seen: set[Identity] = set()
        ahead = set(one.to)
        while ahead:
            if start in ahead:
                raise _comes_back(start, one)
            seen |= ahead
            ahead = {to for at in ahead if at in found for to in found[at].to} - seen


async def require_none(connection: Connection, found: Mapping[Identity, Grown], chains: Chains) -> None:
    """No cycle through what is there, once the transaction's search rows are written. Raises Invalid."""
    params = ", ".join(str(param_key(type, name)) for type, elements in chains.items() for name in elements.values())
    step = f"JOIN search_reference s ON s.resource_key = r.key AND s.param IN ({params})"
    for (type, id), one in found.items():
        if not one.there:
            continue
        rows = await connection.fetch(
            "WITH RECURSIVE above(type, id) AS ("
            f"SELECT s.target_type, s.target_id FROM resource r {step} WHERE r.type = $1 AND r.id = $2"
            f" UNION SELECT s.target_type, s.target_id FROM above a JOIN resource r ON r.type = a.type AND r.id = a.id {step}"
            f") SELECT type, id FROM above LIMIT {LONGEST + 1}",
            type,
            id,
        )
        if any((row["type"], row["id"]) == (type, id) for row in rows):
            raise _comes_back((type, id), one)
        if len(rows) > LONGEST:
            text = f"{type}.{one.element} leads to more than {LONGEST} resources, one above the other"
            raise Invalid(text, issues=[Issue("error", "too-long", text, f"{type}.{one.element}", (type, id))])


def _leads(tree: Mapping[str, Any], element: str) -> frozenset[Identity]:
    value = tree.get(element, ())
    targets = [parse_reference(one.get("reference", "")) for one in ([value] if isinstance(value, dict) else value)]
    return frozenset((to.type, to.id) for to in targets if to.kind == "local" and to.type and to.id)


def _comes_back(identity: Identity, one: Grown) -> Invalid:
    place = f"{identity[0]}.{one.element}"
    text = f"{place} leads back to this {identity[0]}: nothing comes, directly or by what lies between, out of itself"
    return Invalid(text, issues=[Issue("error", "business-rule", text, place, identity)])
