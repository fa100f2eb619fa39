"""What the year came to, for a coordinator to read, and whether the hub kept its promises."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

from benchmarks.year.hub import Hub
from benchmarks.year.work import Ledger
from fhircm.coordination.context import Record
from fhircm.coordination.task_states import is_open, machine
from fhircm.coordination.times import moment
from fhircm.store.resources import Stored

Tree = dict[str, Any]


@dataclass
class Loop:
    """One referral from the order to the end."""

    task: Stored
    answered: float | None  # days
    closed: float | None  # days


@dataclass
class Year:
    """What the hub's own records say at the end."""

    loops: list[Loop] = field(default_factory=list)
    transitions: Counter[str] = field(default_factory=Counter)
    tasks: Counter[tuple[str, str]] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    in_time: Counter[str] = field(default_factory=Counter)
    escalated: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


async def gather(hub: Hub, ledger: Ledger, now: datetime) -> Year:
    """Read every Task with its history, and look whether each step was legal and each open one has an owner and a due time."""
    year, record = Year(), Record(hub.store)
    fulfilled: set[str] = set()
    for id in await _all(hub):
        history = [one for one in reversed(await hub.store.history("Task", id)) if not one.deleted]
        newest = history[-1]
        tree = newest.tree
        code = _code(tree)
        year.tasks[code, tree["status"]] += 1
        _legal(year, history)
        if is_open(tree):
            _kept_in_sight(year, tree)
        if code == "fulfill":
            year.loops.append(_loop(newest, history))
            fulfilled.add(tree["focus"]["reference"].partition("/")[2])
        _timely(year, code, tree)
        year.escalated[_level(tree)] += 1
    for order in sorted(ledger.referrals.keys() - fulfilled):
        stored = await record.get("ServiceRequest", order)
        if stored is not None and stored.tree["status"] == "active":
            year.broken.append(f"ServiceRequest/{order} has no Task")
    return year


async def _all(hub: Hub) -> list[str]:
    async with hub.store.database.reading() as connection:
        rows = await connection.fetch("SELECT id FROM resource WHERE type = 'Task' AND NOT deleted ORDER BY id")
    return [row["id"] for row in rows]


def _code(tree: Tree) -> str:
    return next((one["code"] for one in tree.get("code", {}).get("coding", [])), "") or "other"


def _legal(year: Year, history: list[Stored]) -> None:
    table = machine("Task")
    for before, after in pairwise(history):
        start, end = before.tree["status"], after.tree["status"]
        if start in table.terminal and end not in (start, "entered-in-error"):
            year.broken.append(f"Task/{after.id}: from {start} to {end}")


def _kept_in_sight(year: Year, tree: Tree) -> None:
    if not tree.get("owner") and not tree.get("performerType"):
        year.broken.append(f"Task/{tree['id']} ({_code(tree)}) is open and nobody has it")
    if not tree.get("restriction", {}).get("period", {}).get("end"):
        year.broken.append(f"Task/{tree['id']} ({_code(tree)}) is open and has no due time")


def _loop(newest: Stored, history: list[Stored]) -> Loop:
    sent = moment(history[0].tree["authoredOn"]) or history[0].last_updated
    answer = next((one for one in history if one.tree["status"] not in ("draft", "requested")), None)
    end = next((one for one in history if not is_open(one.tree)), None)
    return Loop(newest, _days(sent, answer), _days(sent, end))


def _days(since: datetime, stored: Stored | None) -> float | None:
    return None if stored is None else (stored.last_updated - since).total_seconds() / 86_400


def _timely(year: Year, code: str, tree: Tree) -> None:
    due, done = (
        moment(tree.get("restriction", {}).get("period", {}).get("end")),
        moment(tree.get("executionPeriod", {}).get("end")),
    )
    if tree["status"] == "completed" and due and done and code != "fulfill":
        (year.in_time if done <= due else year.late)[code] += 1


def _level(tree: Tree) -> int:
    for one in tree.get("extension", []):
        if one["url"].endswith("/task-escalation"):
            return next((part["valueInteger"] for part in one["extension"] if part["url"] == "level"), 0)
    return 0


def rendered(year: Year, ledger: Ledger, facts: Tree) -> str:
    """The report in Markdown."""
    ended = Counter(loop.task.tree["status"] for loop in year.loops)
    answered = [one.answered for one in year.loops if one.answered is not None]
    closed = [one.closed for one in year.loops if one.task.tree["status"] == "completed" and one.closed is not None]
    declined = Counter(
        one.task.tree.get("statusReason", {}).get("text", "?") for one in year.loops if one.task.tree["status"] == "rejected"
    )
    lines = [
        f"# The year of a network: {facts['patients']:,} patients, {facts['days']} days, seed {facts['seed']}",
        "",
        f"{ledger.stays:,} hospital stays, {ledger.visits:,} emergency visits, {len(ledger.referrals):,} referrals; {sum(ledger.requests.values()):,} requests over HTTP, "
        f"{facts['reactions']:,} changes and timers worked on. {facts['seconds']:,.0f} s for {facts['days']} days: {facts['times']:,.0f} times as fast as they pass.",
        "",
        "## Referrals",
        "",
        *_rows(("how they ended", "referrals"), [(status, number) for status, number in ended.most_common()]),
        "",
        f"Answered after {_spread(answered)}; closed with a report after {_spread(closed)}.",
        "",
        *_rows(("declined because", "referrals"), declined.most_common(8)),
        "",
        "## Work",
        "",
        *_rows(
            ("task", "in time", "late", "in time, %"),
            [
                (
                    code,
                    year.in_time[code],
                    year.late[code],
                    f"{100 * year.in_time[code] / (year.in_time[code] + year.late[code]):.0f}",
                )
                for code in sorted({*year.in_time, *year.late})
            ],
        ),
        "",
        *_rows(
            ("escalated", "tasks"),
            [(f"level {level}" if level else "never", number) for level, number in sorted(year.escalated.items())],
        ),
        "",
        "## All tasks at the end of the year",
        "",
        *_rows(("task", "status", "number"), [(code, status, number) for (code, status), number in sorted(year.tasks.items())]),
        "",
        "## Promises",
        "",
        f"Every open task has somebody and a due time, no step left an end, every order has its task: {'kept' if not year.broken else f'BROKEN {len(year.broken)} times'}.",
        *[f"- {one}" for one in year.broken[:20]],
        "",
        "## What was refused",
        "",
        *_rows(("request", "times"), ledger.refused.most_common(15)),
    ]
    return "\n".join(lines) + "\n"


def _rows(head: tuple[str, ...], rows: Any) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def _spread(days: list[float]) -> str:
    if len(days) < 2:
        return "no time that could be told"
    return f"{median(days):.1f} days (median; {quantiles(days, n=10)[8]:.1f} days for nine in ten)"
