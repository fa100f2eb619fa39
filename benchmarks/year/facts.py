"""What the hub's own records say at the end of the year, and whether it kept its promises: every Task is read, with its history."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from benchmarks.year.hub import Hub
from benchmarks.year.referring import is_referral
from benchmarks.year.world import World
from fhircm.coordination import distribution, open_loops
from fhircm.coordination.codes import displays, own
from fhircm.coordination.context import Record
from fhircm.coordination.open_loops import Loop
from fhircm.coordination.task_states import is_open, protocol_of
from fhircm.coordination.task_times import due_of, level_of
from fhircm.coordination.times import moment
from fhircm.coordination.wording import text_of
from fhircm.store.resources import Stored
from fhircm.worker import parked_at

Tree = dict[str, Any]
_UNANSWERED = ("draft", "requested", "received")


@dataclass(frozen=True, slots=True)
class Line:
    """One Task: what it is, when it was first due, and each status with the time at which it came to it."""

    tree: Tree
    kind: str
    due: datetime | None
    steps: tuple[tuple[str, datetime], ...]
    level: int  # the highest to which it was escalated

    @property
    def made(self) -> datetime:
        """When it was made."""
        return self.steps[0][1]

    def first(self, *statuses: str) -> datetime | None:
        """When it first came to one of these."""
        return next((at for status, at in self.steps if status in statuses), None)

    @property
    def answered(self) -> datetime | None:
        """When its owner first said yes or no."""
        return next((at for status, at in self.steps if status not in (*_UNANSWERED, "cancelled", "entered-in-error")), None)

    @property
    def closed(self) -> datetime | None:
        """When it ended."""
        return None if is_open(self.tree) else self.steps[-1][1]

    @property
    def step(self) -> str:
        """Which step of a pathway it is."""
        return str(self.tree.get("instantiatesUri", "")).rpartition("#")[2]


@dataclass
class Year:
    """What there is to tell."""

    now: datetime
    lines: list[Line] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    plans: list[Tree] = field(default_factory=list)  # answers of $discharge-plan, by name of the part
    flags: Counter[str] = field(default_factory=Counter)
    names: dict[str, str] = field(default_factory=dict)  # of organisations, by reference
    broken: list[str] = field(default_factory=list)

    @property
    def referrals(self) -> list[Line]:
        """The Tasks that ask to fulfil an order."""
        return [one for one in self.lines if is_referral(one.tree)]

    def by_order(self, orders: list[str]) -> list[list[Line]]:
        """The referrals of each of these orders, the oldest first."""
        found: dict[str, list[Line]] = defaultdict(list)
        for line in sorted(self.referrals, key=lambda one: one.made):
            found[line.tree["focus"]["reference"]].append(line)
        return [found[f"ServiceRequest/{one}"] for one in orders if f"ServiceRequest/{one}" in found]

    def broadcasts(self) -> list[list[Line]]:
        """The Tasks of each request that was given to several at once."""
        found: dict[str, list[Line]] = defaultdict(list)
        for line in self.referrals:
            if distribution.of(line.tree).how in (distribution.FIRST_ACCEPT, distribution.OFFERS):
                found[line.tree["groupIdentifier"]["value"]].append(line)
        return [group for group in found.values() if len(group) > 1]


async def gather(world: World) -> Year:
    """Read it all."""
    hub = world.hub
    year, record = Year(world.now), Record(hub.store)
    year.names = {place.reference: place.name for place in world.network.places}
    year.names[f"Organization/{hub.around.organization}"] = hub.around.organization_name
    ordered: set[str] = set()
    for id in await _ids(hub, "Task"):
        history = [one for one in reversed(await hub.store.history("Task", id)) if not one.deleted]
        year.lines.append(_line(history))
        year.broken += _illegal(history)
        if is_open(history[-1].tree):
            year.broken += _out_of_sight(hub, history[-1].tree)
        ordered.add(history[-1].tree.get("focus", {}).get("reference", ""))
    for order in world.ledger.orders:
        stored = await record.get("ServiceRequest", order)
        if f"ServiceRequest/{order}" not in ordered and stored is not None and stored.tree["status"] == "active":
            year.broken.append(f"ServiceRequest/{order} has no Task")
    year.loops = await open_loops.everything(hub.around)
    year.broken += [f"{loop.name}: {open_loops.WRONG[code]}" for loop in year.loops for code in loop.wrong]
    for where in [one.name for one in hub.worker.reactions] + [one.kind for one in (*hub.worker.timers, *hub.checking.timers)]:
        year.broken += [f"{where}: {what} is parked ({why['reason']})" for what, why in await hub.store.states(parked_at(where))]
    for id in await _ids(hub, "Flag"):
        flag = await record.get("Flag", id)
        year.flags[text_of(flag.tree["code"]) or "?" if flag else "?"] += 1
    for stay in world.ledger.stays:
        answer = await world.ask(hub.feed, "GET", f"/Encounter/{stay}/$discharge-plan")
        if answer is not None:
            year.plans.append({part["name"]: part.get("valueInteger", part.get("valueCode")) for part in answer["parameter"]})
    return year


async def _ids(hub: Hub, type: str) -> list[str]:
    async with hub.store.database.reading() as connection:
        rows = await connection.fetch("SELECT id FROM resource WHERE type = $1 AND NOT deleted ORDER BY id", type)
    return [row["id"] for row in rows]


def _line(history: list[Stored]) -> Line:
    first, newest = history[0].tree, history[-1].tree
    steps = [(history[0].tree["status"], history[0].last_updated)]
    for before, after in pairwise(history):
        if before.tree["status"] != after.tree["status"]:
            steps.append((after.tree["status"], after.last_updated))
    due = due_of({name: value for name, value in newest.items() if name != "extension"})
    due = moment(first.get("restriction", {}).get("period", {}).get("end")) or due
    return Line(newest, _kind(newest), due, tuple(steps), max(level_of(one.tree) for one in history))


def _kind(tree: Tree) -> str:
    code = own(tree.get("code"))
    if code == "discharge-item":
        return f"Before the discharge: {tree.get('description')}"
    return displays().get(code or "", "") or ("Referral" if is_referral(tree) else text_of(tree.get("code")) or "Other")


def _illegal(history: list[Stored]) -> list[str]:
    found = []
    for before, after in pairwise(history):
        start, end = before.tree["status"], after.tree["status"]
        if start != end and end not in protocol_of(before.tree).machine.next.get(start, ()):
            found.append(f"Task/{after.id}: from {start} to {end} is no step")
    return found


def _out_of_sight(hub: Hub, tree: Tree) -> list[str]:
    name, found = f"Task/{tree['id']} ({_kind(tree)})", []
    if not tree.get("owner") and not tree.get("performerType") and not tree.get("restriction", {}).get("recipient"):
        found.append(f"{name} is open, and nobody has it or may take it")
    if due_of(tree, hub.around.calendar) is None:
        found.append(f"{name} is open and has no due time")
    return found
