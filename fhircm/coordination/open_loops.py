"""No open loop without somebody who has it and a next due time: the standing check that finds, tells and mends what breaks that.

https://hl7.org/fhir/R4/task.html, https://hl7.org/fhir/R4/servicerequest.html. The reaction to Tasks gives each an owner, a due time and a
timer within moments; this looks whether it did. It goes over the open Tasks, then over the active orders, a page at a time by the index of
their status: a page costs the same however many there are, and what is closed costs nothing. After the last page it waits and
begins anew. What breaks the rule is mended where that needs no judgement, and told to a human, once for each version of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination.agenda import is_whole
from fhircm.coordination.build import for_a_human, stable_id
from fhircm.coordination.codes import member
from fhircm.coordination.context import Context, any_of
from fhircm.coordination.discharge.plan import EVENT as ADMISSION
from fhircm.coordination.discharge.plan import PRESENT
from fhircm.coordination.escalation import REACTION, key, settle
from fhircm.coordination.people import patient_of
from fhircm.coordination.task_states import is_open, is_referral, machine, mirrored
from fhircm.coordination.task_times import due_of, is_loop
from fhircm.fhir.references import parse_reference
from fhircm.store.along import along
from fhircm.store.figures import Figures
from fhircm.store.operations import Op, SetState, SetTimer, Timer
from fhircm.store.resources import Store, Stored

Tree = dict[str, Any]
KIND = "open-loops"
NAMESPACE, ROUND = "open-loops", "round"  # where the figures of the last whole round are
PAGE = 200
GRACE = timedelta(minutes=5)  # for the reactions to what was written just now
BETWEEN = timedelta(seconds=1)  # pages
PAUSE = timedelta(minutes=5)  # rounds
LATE = timedelta(minutes=5)  # that a timer may be behind its time
_TERMINAL = machine("Task").terminal

_NEW: Tree = {"stretch": 0, "place": 0, "wrong": {}, "loops": 0, "away": False}  # where a round begins

WRONG = {
    "no-owner": "nobody has it: it has neither an owner nor a role that may take it",
    "no-due-time": "it has no due time",
    "no-timer": "nothing happens to it by itself: no timer is set",
    "timer-late": "its timer was due long ago and did nothing",
    "whole-closed": "it is a step of something that is closed",
    "steps-closed": "all of its steps are closed, and it is open",
    "order-lost": "the order is active, its tasks have ended without a result, and nobody has it",
    "order-unanswered": "the order is active, and there is no task for it",
}
# The stretches of a round: a type and the value of its status whose index is gone along.
_STRETCHES = (
    *(("Task", state) for state in sorted(machine("Task").next) if state not in _TERMINAL),
    ("ServiceRequest", "active"),
)


@dataclass(frozen=True, slots=True)
class Loop:
    """An open loop: who has it, when something happens to it next (UTC), and what is wrong with it (codes of WRONG)."""

    stored: Stored
    owner: str
    next: datetime | None
    wrong: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is at the hub."""
        return f"{self.stored.type}/{self.stored.id}"


# --- the standing check ------------------------------------------------------------------------------------------------------------


async def begin(store: Store) -> None:
    """Set the timer of the check, unless it is set: a worker does it when it starts."""
    if await store.timer(KIND) is None:
        await store.transact([SetTimer(KIND, KIND, store.clock(), _NEW)], origin="hub")


async def check(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: look at the next page of what is open; mend and tell what has no owner, no next due time or no way on."""
    said, now = timer.payload, context.now()
    wrong, loops = Counter(said["wrong"]), int(said["loops"])
    away = bool(said["away"]) or timer.due < now - LATE  # nobody worked for a while: that timers are late tells nothing of them
    found, place = await page(context, _STRETCHES[said["stretch"]], said["place"])
    operations: list[Op] = []
    for loop in found:
        codes = tuple(code for code in loop.wrong if not (away and code == "timer-late"))
        wrong.update(codes)
        operations += await _mended(context, replace(loop, wrong=codes)) if codes else []
    stretch = said["stretch"] + (place is None)
    if stretch < len(_STRETCHES):
        between = BETWEEN if found else timedelta()
        goes_on = {"stretch": stretch, "place": place or 0, "wrong": dict(wrong), "loops": loops + len(found), "away": away}
        return [*operations, SetTimer(KIND, KIND, now + between, goes_on)]
    figures = {"at": now.isoformat(), "loops": loops + len(found), "wrong": dict(wrong)}
    return [*operations, SetState(NAMESPACE, ROUND, figures), SetTimer(KIND, KIND, now + PAUSE, _NEW)]


async def _mended(context: Context, loop: Loop) -> list[Op]:
    operations = await settle(context, loop.stored) if loop.stored.type == "Task" and "timer-late" not in loop.wrong else []
    for code in loop.wrong:
        id = stable_id("open-loop", code, loop.name, str(loop.stored.version))
        if await context.get("Task", id) is None:
            operations.append(
                for_a_human(
                    id,
                    "open-loop",
                    f"{loop.name}: {WRONG[code]}",
                    owner=context.coordinator,
                    focus=loop.name,
                    patient=loop.stored.tree.get("for") or loop.stored.tree.get("subject") if _of_patient(loop) else None,
                    at=context.now(),
                    priority="urgent",
                )
            )
    return operations


def _of_patient(loop: Loop) -> bool:
    return patient_of(loop.stored.tree) is not None


async def everything(context: Context) -> list[Loop]:
    """Every open loop, for who asks now; what a page of the standing check finds, for all pages."""
    found: list[Loop] = []
    for stretch in _STRETCHES:
        place: int | None = 0
        while place is not None:
            loops, place = await page(context, stretch, place)
            found += loops
    return found


# --- what is wrong -----------------------------------------------------------------------------------------------------------------


async def page(context: Context, stretch: tuple[str, str], place: int) -> tuple[list[Loop], int | None]:
    """The loops on a page of a stretch, and where the next one begins; None at the end. What is new has a moment to be set right."""
    type, status = stretch
    found, following = await along(context.store.database, type, "status", status, place, PAGE)
    loops = await (_tasks if type == "Task" else _orders)(context, found)
    settled = await _settled(context)
    return [loop if loop.stored.last_updated <= settled else replace(loop, wrong=()) for loop in loops], following


async def _settled(context: Context) -> datetime:
    """What was written before has been seen by the reaction that makes it right."""
    seen = await context.store.cursor(REACTION)
    waiting = (await context.store.changes(seen, types=frozenset({"Task"}), limit=1)).changes
    return min([context.now() - GRACE, *(change.at - timedelta(microseconds=1) for change in waiting)])


async def _tasks(context: Context, stored: Sequence[Stored]) -> list[Loop]:
    tasks = [one for one in stored if is_loop(one.tree)]
    timers = await Figures(context.store.database).due([key(one.id) for one in tasks])
    above = await context.store.read_many(
        [("Task", id) for one in tasks for id in _ids(one.tree.get("partOf", []), "Task")],
    )
    wholes = [one for one in tasks if is_whole(context, one.tree)]
    going_on = await _with_open_steps(context, wholes)
    going_on |= await _of_stays_that_go_on(context, [one for one in wholes if one.id not in going_on])
    loops = []
    for one in tasks:
        tree, timer = one.tree, timers.get(key(one.id))
        whole = is_whole(context, tree)
        wrong = {
            "no-owner": not tree.get("owner") and not tree.get("performerType") and not is_referral(tree),
            "no-due-time": not whole and tree["status"] != "on-hold" and due_of(tree, context.calendar) is None,
            "no-timer": not whole and timer is None,
            "timer-late": timer is not None and timer < context.now() - LATE,
            "whole-closed": any(
                ("Task", id) in above and is_whole(context, above["Task", id].tree) and not is_open(above["Task", id].tree)
                for id in _ids(tree.get("partOf", []), "Task")
            ),
            "steps-closed": whole and one.id not in going_on,
        }
        loops.append(Loop(one, _owner(tree), timer, tuple(code for code, is_so in wrong.items() if is_so)))
    return loops


def _ids(references: Iterable[Tree], type: str) -> list[str]:
    targets = (parse_reference(element.get("reference", "")) for element in references)
    return [to.id for to in targets if to.kind == "local" and to.type == type and to.id]


def _owner(tree: Tree) -> str:
    """Who has a Task, or may take it, in words."""
    owner = tree.get("owner", {})
    roles = [
        role.get("text") or next((one.get("display") for one in role.get("coding", [])), None)
        for role in tree.get("performerType", [])
    ]
    queue = "any " + " or ".join(filter(None, roles)) if any(roles) else None
    return owner.get("display") or owner.get("reference") or queue or ("any that may take it" if is_referral(tree) else "nobody")


async def _with_open_steps(context: Context, wholes: Sequence[Stored]) -> set[str]:
    steps = await _referring(context, ("part-of",), [f"Task/{one.id}" for one in wholes])
    return {id for step in steps if is_open(step.tree) for id in _ids(step.tree.get("partOf", []), "Task")}


async def _of_stays_that_go_on(context: Context, wholes: Sequence[Stored]) -> set[str]:
    """Those by which a discharge is planned that is still to come: all may be done by then, and more may come up."""
    stays = {one.id: _ids([one.tree.get("encounter", {})], "Encounter") for one in wholes if _plans_a_discharge(context, one)}
    there = await context.store.read_many([("Encounter", id) for ids in stays.values() for id in ids])
    present = {id for (_, id), stay in there.items() if stay.tree["status"] in PRESENT}
    return {task for task, ids in stays.items() if not present.isdisjoint(ids)}


def _plans_a_discharge(context: Context, whole: Stored) -> bool:
    pathway = context.pathway_of(whole.tree)
    return pathway is not None and pathway.event == ADMISSION


async def _referring(context: Context, parameters: Sequence[str], to: Sequence[str]) -> list[Stored]:
    """The Tasks that refer to any of these by any of the parameters."""
    found: dict[str, Stored] = {}
    for parameter in parameters if to else ():
        for one in await context.find("Task", (parameter, any_of(to))):
            found[one.id] = one
    return list(found.values())


async def _orders(context: Context, stored: Sequence[Stored]) -> list[Loop]:
    """The active referral orders whose loop is nobody's: those of partners only when the hub took them up, for others are their own."""
    orders = [
        one
        for one in stored
        if one.tree["intent"] == "order" and member("referral-order", one.tree.get("category"), one.tree.get("code"))
    ]
    tasks = await _referring(context, ("based-on", "focus"), [f"ServiceRequest/{one.id}" for one in orders])
    about = await _open_about(context, [one.id for one in tasks])
    asked, answered = set(), set()  # orders: that have a Task; that have one which is looked after, or was done
    for task in tasks:
        tree = task.tree
        of = _ids([*tree.get("basedOn", []), tree.get("focus", {})], "ServiceRequest")
        asked.update(of)
        if is_open(tree) or task.id in about or tree["status"] == "completed":
            answered.update(of)
    loops = []
    for order in orders:
        if order.id in answered:
            continue
        if order.id in asked:
            loops.append(Loop(order, "nobody", None, ("order-lost",)))
        elif not mirrored(order.tree):
            loops.append(Loop(order, "nobody", None, ("order-unanswered",)))
    return loops


async def _open_about(context: Context, tasks: Sequence[str]) -> set[str]:
    """Those Tasks that an open Task is about: a human looks after them."""
    found = await _referring(context, ("focus",), [f"Task/{id}" for id in tasks])
    return {id for one in found if is_open(one.tree) for id in _ids([one.tree.get("focus", {})], "Task")}
