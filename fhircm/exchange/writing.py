"""The planner: which way a partner is told of something, and why not by a better one.

https://hl7.org/fhir/R4/capabilitystatement.html and https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html. The ways stand in
a ladder, best first (partner.yaml `deliver`, or the default of mappings/occasions.yaml). A rung is taken when the partner declares what it
needs, the hub was granted it, and the case allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fhircm.exchange.breaker import Breakers
from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.case import Case, Unfit, gather
from fhircm.exchange.dead_letters import KINDS, parked
from fhircm.exchange.disclosure import disclosure
from fhircm.exchange.due import lanes
from fhircm.exchange.granted import allows
from fhircm.exchange.outbound import NOBODY, PORTAL, check_deliver, fulfils, occasions
from fhircm.exchange.partners import Partner
from fhircm.exchange.ways import WAYS, sent
from fhircm.store.resources import Store, Stored

LACKS = {
    "create": "it takes no new {}",
    "update": "it does not let its {} be changed",
    "patch": "it does not let its {} be patched",
}


@dataclass(frozen=True, slots=True)
class Planner:
    """What a partner allows: what it declares, and the scopes of the last token (`asked`, before there is one)."""

    capabilities: Capabilities
    asked: Sequence[str]

    def against(self, name: str, resource: str) -> str | None:
        """Why a way cannot be gone whatever the case, in words for a human; None when nothing stands against it."""
        if name in (NOBODY, PORTAL):
            return None
        type, interaction = WAYS[name].needs(resource)
        if not self.capabilities.declares(type, interaction):
            return LACKS[interaction].format(type)
        if not allows(self.capabilities.granted or self.asked, type, interaction):
            return f"the hub is not granted to {interaction} a {type} there"
        return None


@dataclass(frozen=True, slots=True)
class Rung:
    """One way on the ladder: `verdict` is taken, not taken or not needed."""

    way: str
    verdict: str
    why: str


@dataclass
class Explained:
    """One thing wanted on one occasion: how it stands, and the ladder."""

    occasion: str
    number: int
    standing: str
    rungs: list[Rung] = field(default_factory=list)


async def explain(
    store: Store, partner: Partner, capabilities: Capabilities, stored: Stored, now: datetime, breakers: Breakers
) -> list[Explained]:
    """What the planner would do with the newest version of a resource, and what became of it. Nothing is sent."""
    deliver = check_deliver(partner.deliver)
    planner = Planner(capabilities, partner.scopes)
    told: list[Explained] = []
    for name, wanted in deliver.items():
        occasion = occasions()[name]
        if occasion.resource != stored.type:
            continue
        why = await _no_occasion(store, partner, stored, name)
        if why:
            told.append(Explained(name, 1, why))
            continue
        case = await gather(store, partner, occasion, stored)
        if case is None:
            told.append(Explained(name, 1, "it does not concern this partner"))
            continue
        case.disclosure = await disclosure(store, partner, case.patient, now)
        for number, ways in enumerate(wanted, 1):
            standing = await _standing(store, partner, case, number)
            told.append(Explained(name, number, standing, [rung async for rung in _ladder(planner, case, ways, breakers)]))
    return told


async def _no_occasion(store: Store, partner: Partner, stored: Stored, name: str) -> str | None:
    tree = stored.tree
    if tree.get("meta", {}).get("source"):
        return "it was pulled from a partner, which tells of it itself"
    if not fulfils(tree, occasions()[name].when):
        wanted = ", ".join(f"{element} one of {'/'.join(codes)}" for element, codes in occasions()[name].when.items())
        return f"no occasion: that takes {wanted}"
    return None


async def _standing(store: Store, partner: Partner, case: Case, number: int) -> str:
    """How it stands with the delivery."""
    key = f"{case.key}/{number}"
    if row := await store.state(sent(partner.name), key):
        return f"{row['state']} by {row['way']}" if row["state"] == "done" else f"left to {row['way']}"
    if row := await store.state(parked(partner.name), key):
        return f"dead letter, {row['why']} ({KINDS[row['why']]}): {row['reason']}"
    async for found in lanes(store, partner.name):
        for due in (one for lane in found.values() for one in lane):
            if due.about == case.about and due.occasion == case.occasion.name:
                return f"waits in line since {due.queued}, after {due.attempts} attempts"
    return "not due: it was not seen yet, or is overtaken"


async def _ladder(planner: Planner, case: Case, ways: Sequence[str], breakers: Breakers) -> Any:
    taken = False
    for name in ways:
        if taken:
            yield Rung(name, "not needed", "a better way is there")
            continue
        why = planner.against(name, case.tree["resourceType"]) or await _unfit(case, name)
        if why:
            yield Rung(name, "not taken", why)
            continue
        taken = True
        yield Rung(name, "taken", await _taken(case, name, breakers))


async def _unfit(case: Case, name: str) -> str | None:
    if case.disclosure is not None and not case.disclosure.permits(case.tree):
        return "a consent of the patient keeps it from this partner"
    if name in (NOBODY, PORTAL):
        return None
    try:
        await WAYS[name].build(case, None)
    except Unfit as error:
        return str(error)
    return None


async def _taken(case: Case, name: str, breakers: Breakers) -> str:
    if name == NOBODY:
        return "nothing is sent"
    if name == PORTAL:
        return "a human enters it in the partner's own system, by a Task"
    type, interaction = WAYS[name].needs(case.tree["resourceType"])
    until = breakers.wait() or breakers.wait(f"{type} {interaction}")
    waits = f"; it is left alone until {until:%Y-%m-%d %H:%M:%S}" if until else ""
    return f"the partner declares {interaction} of {type}, and it is granted{waits}"
