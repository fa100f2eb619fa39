"""A resource of the hub's as a resource of the partner's own: created there once, then kept alike for ever.

https://hl7.org/fhir/R4/http.html#update and https://hl7.org/fhir/R4/http.html#patch. The row of a counterpart holds what the hub last sent
and what the partner then had, the bases of the three-way merge (fhircm/exchange/three_way.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhircm.exchange.case import Case, Unfit, counterpart_key
from fhircm.exchange.disclosure import without_withheld
from fhircm.exchange.repoint import repoint
from fhircm.fhir.disclosure import may_tell
from fhircm.fhir.systems import DELIVERY
from fhircm.store.resources import Store

_LEFT_OUT = ("id", "meta", "text", "contained", "implicitRules")


class Clash(Exception):
    """The hub and the partner changed the same elements; `names` are theirs."""

    def __init__(self, names: tuple[str, ...], text: str) -> None:
        super().__init__(text)
        self.names = names


@dataclass(frozen=True, slots=True)
class Native:
    """A resource to be kept at the partner as it is at the hub. `how` is the interaction: create, update or patch."""

    key: str
    tree: dict[str, Any]
    version: int  # at the hub
    how: str
    prefer: str | None = None  # whose changes win where both changed the same: "hub", "partner"; None: a human is asked

    @property
    def type(self) -> str:
        """Its resource type."""
        return str(self.tree["resourceType"])


async def counterpart(store: Store, rows: str, about: str) -> dict[str, Any] | None:
    """That row; None when the hub never made one there."""
    return await store.state(rows, counterpart_key(about))


async def native(case: Case, how: str, row: dict[str, Any] | None) -> Native:
    """The resource for the partner. Raises Unfit when there is nothing to be updated, or something that must not be made again."""
    there = row is not None and row["state"] == "done"
    if how == "create" and there:
        raise Unfit("it is there already")
    if how != "create" and not there:
        raise Unfit("there is none of the hub's there yet")
    case.need_patient()
    if not may_tell(case.disclosure, case.tree):
        raise Unfit("it is marked confidential, so a human must decide whether it may be handed on")
    return Native(counterpart_key(case.about), await written(case), case.stored.version, how, case.prefer)


async def written(case: Case) -> dict[str, Any]:
    """The tree as it is written for the partner: references lead to what the partner has, contained resources and narrative stay here."""
    told = await without_withheld(case.store, case.disclosure, case.tree)
    kept = {name: value for name, value in told.items() if name not in _LEFT_OUT}
    own = {"system": DELIVERY, "value": counterpart_key(case.about)}
    tree = await repoint(case.store, case.partner, kept)
    for name in ("subject", "for", "patient"):
        if name in kept:
            tree[name] = {"reference": f"Patient/{case.need_patient()}"}
    return {**tree, "identifier": [own, *tree.get("identifier", [])]}
