"""The year as a coordinator reads it: Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from statistics import median, quantiles
from typing import Any

from benchmarks.year.facts import Line, Year
from benchmarks.year.world import World
from fhircm.coordination import distribution
from fhircm.coordination.task_states import is_open
from fhircm.coordination.wording import text_of

_SHOWN = 25  # of the loops that are open
ABOUT = (
    "Real: the application behind a socket, its REST API with tokens and what each organisation may see, the worker with its reactions and timers, the"
    " database, and the clock that all of them share. Every figure below is read from the hub's records.",
    "Simulated: the patients and what befalls them, and the people, who follow a seed: they look at their Tasks at ten and at three on business days, answer"
    " half of them by operations and half by plain updates, some late, some never until somebody asks. Time jumps from one thing to the next, an hour at most.",
)


def rendered(year: Year, world: World, days: int, seconds: float) -> str:
    """The report of a year that took so many seconds."""
    network, ledger = world.network, world.ledger
    pace = "" if network.pace == 1 else f", things happen {network.pace:g} times as often"
    lines = [
        f"# The year of a network: {network.patients:,} patients, {days} days, seed {network.seed}{pace}",
        "",
        f"{len(network.of('hospital'))} hospitals, {len(network.of('clinic', 'specialist'))} clinics ({len(network.of('specialist'))} of specialists),"
        f" {len(network.of('post-acute'))} post-acute facilities, {len(network.of('payer'))} payers. {ledger.requests.total():,} requests over HTTP,"
        f" {world.hub.done:,} changes and timers looked at, {len(year.lines):,} Tasks. {seconds:,.0f} s for {days} days:"
        f" {days * 86_400 / seconds:,.0f} times as fast as they pass.",
        "",
        *(f"- {one}" for one in ABOUT),
        "",
        "## What happened",
        "",
        *_table(("what", "times"), ledger.happened.most_common()),
        *_referrals(year, ledger.orders),
        *_broadcasts(year),
        *_discharges(year),
        *_planning(year),
        *_work(year),
        *_open(year),
        "## Payers",
        "",
        *_table(("two payers, once a week", "number"), ledger.payers_saw.most_common()),
        "## Promises",
        "",
        f"Each open Task has somebody who has it or may take it, and a due time; nothing is parked; every step was legal; every order has its Task; the standing"
        f" check finds nothing: **{'kept' if not year.broken else f'broken {len(year.broken)} times'}**, for {len(year.lines):,} Tasks"
        f" with {sum(len(one.steps) for one in year.lines):,} statuses.",
        "",
        *[f"- {one}" for one in year.broken[:_SHOWN]],
        "",
        "## What was refused",
        "",
        *_table(("request, and why", "times"), ledger.refused.most_common(_SHOWN)),
    ]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _referrals(year: Year, orders: list[str]) -> list[str]:
    months: dict[str, list[list[Line]]] = defaultdict(list)
    for loop in year.by_order(orders):
        months[f"{loop[0].made:%Y-%m}"].append(loop)
    everything = [loop for loops in months.values() for loop in loops]
    rows = [_month(name, loops) for name, loops in sorted(months.items())]
    if len(rows) > 1:
        rows.append(_month("all", everything))
    head = (
        "month",
        "orders",
        "taken",
        "report back",
        "ended without",
        "open",
        "answer, days",
        "nine in ten",
        "report, days",
        "nine in ten",
    )
    declined = Counter(
        _reason(one)
        for one in year.referrals
        if one.tree["status"] == "rejected" and one.tree["focus"]["reference"][15:] in set(orders)
    )
    return [
        "## Referrals of the clinics",
        "",
        "Days from the first Task of an order to the first yes or no, and to the report; medians, and within how many days nine in ten had it.",
        "",
        *_table(head, rows),
        *_table(("declined because", "times"), declined.most_common()),
    ]


def _month(name: str, loops: Sequence[Sequence[Line]]) -> tuple[Any, ...]:
    taken = sum(any(one.first("accepted") for one in loop) for loop in loops)
    back = sum(any(one.first("completed") for one in loop) for loop in loops)
    open_now = sum(any(is_open(one.tree) for one in loop) for loop in loops)
    answers = [
        _days(loop[0].made, min(at for one in loop if (at := one.answered)))
        for loop in loops
        if any(one.answered for one in loop)
    ]
    reports = [
        _days(loop[0].made, at)
        for loop in loops
        if (at := next((one.first("completed") for one in loop if one.first("completed")), None))
    ]
    return name, len(loops), taken, back, len(loops) - back - open_now, open_now, *_spread(answers), *_spread(reports)


def _broadcasts(year: Year) -> list[str]:
    rows = []
    kinds: dict[tuple[str, str], list[list[Line]]] = defaultdict(list)
    for group in year.broadcasts():
        post_acute = any("post-acute" in one.tree.get("owner", {}).get("reference", "") for one in group)
        how = "first who accepts" if distribution.of(group[0].tree).how == distribution.FIRST_ACCEPT else "offers"
        kinds["post-acute" if post_acute else "specialist", how].append(group)
    for (kind, how), groups in sorted(kinds.items()):
        firsts = [
            24 * _days(min(one.made for one in group), min(yes))
            for group in groups
            if (yes := [at for one in group if (at := one.first("accepted"))])
        ]
        taken = sum(any(distribution.has_it(one.tree) or one.first("in-progress") for one in group) for group in groups)
        rows.append(
            (
                kind,
                how,
                len(groups),
                f"{sum(map(len, groups)) / len(groups):.1f}",
                _percent(sum(one.first("rejected") is not None for group in groups for one in group), sum(map(len, groups))),
                taken,
                *_spread(firsts),
            )
        )
    head = ("to", "how", "requests", "asked each", "declined, %", "found somebody", "first yes, hours", "nine in ten")
    return [
        "## Given to several at once",
        "",
        "Exactly one has each of those that found somebody; the others were withdrawn.",
        "",
        *_table(head, rows),
    ]


def _discharges(year: Year) -> list[str]:
    steps = ("contact", "follow-up-visit", "medication-reconciliation", "arrival", "discharge-summary", "summary-acknowledged")
    rows = []
    for line_kind in dict.fromkeys(one.kind for code in steps for one in year.lines if _code(one) == code):
        found = [
            one for one in year.lines if one.kind == line_kind and one.tree["status"] not in ("cancelled", "entered-in-error")
        ]
        due = [one for one in found if one.due and (one.closed or one.due < year.now)]
        in_time = [one for one in due if (at := one.first("completed")) and one.due and at <= one.due]
        done = sum(one.tree["status"] == "completed" for one in due)
        rows.append((line_kind, len(due), done, len(in_time), _percent(len(in_time), len(due))))
    return [
        "## After a discharge or an emergency visit",
        "",
        "Of the steps that were not called off and whose time has come (the call within 2 business days, the visit within 7 or 14 days):",
        "",
        *_table(("step", "due", "done", "in time", "in time, %"), rows),
        *_table(("flag", "raised"), year.flags.most_common()),
    ]


def _planning(year: Year) -> list[str]:
    slips, lost = [one["slips"] for one in year.plans], [one["daysLost"] for one in year.plans]
    barriers: dict[str, list[float]] = defaultdict(list)
    for one in year.lines:
        if _code(one) == "discharge-barrier":
            barriers[text_of(one.tree.get("reasonCode")) or "?"].append(_days(one.made, one.closed or year.now))
    slipped = Counter(f"{number} times" if number else "never" for number in slips)
    return [
        "## Discharge planning",
        "",
        f"{len(year.plans):,} stays were planned. The expected date was put off {sum(slips):,} times; barriers cost {sum(lost):,} nights.",
        "",
        *_table(("date put off", "stays"), sorted(slipped.items(), key=lambda one: (one[0] != "never", one[0]))),
        *_table(
            ("barrier", "times", "days until it was gone (median)"),
            [(name, len(days), f"{median(days):.1f}") for name, days in sorted(barriers.items(), key=lambda one: -len(one[1]))],
        ),
    ]


def _work(year: Year) -> list[str]:
    rows, kinds = [], Counter(one.kind for one in year.lines)
    for kind, number in kinds.most_common():
        of = [one for one in year.lines if one.kind == kind]
        due = [one for one in of if one.due and one.tree["status"] not in ("cancelled", "entered-in-error")]
        late = [one for one in due if one.due and (one.closed or year.now) > one.due]
        ended = Counter("open" if is_open(one.tree) else one.tree["status"] for one in of)
        up = sum(one.level > 0 for one in of)
        rows.append(
            (
                kind,
                number,
                ended["completed"],
                ended["open"],
                ended["cancelled"],
                ended["failed"] + ended["rejected"],
                len(late),
                up,
            )
        )
    levels = Counter(one.level for one in year.lines)
    head = ("task", "all", "done", "open", "called off", "failed or declined", "late", "escalated")
    return [
        "## Work",
        "",
        *_table(head, rows),
        *_table(("went up so often", "tasks"), [(level or "never", number) for level, number in sorted(levels.items())]),
    ]


def _open(year: Year) -> list[str]:
    who = Counter(_who(year, loop.owner) for loop in year.loops)
    ahead = sorted(year.loops, key=lambda loop: loop.next or year.now + timedelta(days=999))
    kinds = {one.tree["id"]: one for one in year.lines}
    rows = [
        (
            kinds[loop.stored.id].kind if loop.stored.id in kinds else loop.stored.type,
            _who(year, loop.owner),
            *_when(kinds.get(loop.stored.id), loop.next),
        )
        for loop in ahead[:_SHOWN]
    ]
    more = f"The next {len(rows)} of {len(ahead):,} to which something happens" if len(ahead) > len(rows) else "All of them"
    return [
        "## Who has how much at the end",
        "",
        *_table(("who", "open"), who.most_common()),
        "## What is open at the end",
        "",
        f"{more}; of a whole pathway its steps have due times of their own.",
        "",
        *_table(("what", "who has it", "due", "next"), rows),
    ]


# --- words -------------------------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    written = [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    if not written:
        return ["Nothing.", ""]
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *written, ""]


def _spread(values: list[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    return f"{median(values):.1f}", f"{quantiles(values, n=10)[8]:.1f}" if len(values) > 9 else ""


def _days(start: datetime, end: datetime) -> float:
    return (end - start) / timedelta(days=1)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else ""


def _code(line: Line) -> str:
    return next((str(one["code"]) for one in line.tree.get("code", {}).get("coding", [])), "")


def _reason(line: Line) -> str:
    return text_of(line.tree.get("statusReason")) or "no reason"


def _who(year: Year, owner: str) -> str:
    return year.names.get(owner, owner)


def _when(line: Line | None, next: datetime | None) -> tuple[str, str]:
    due = line.due if line else None
    return f"{due:%Y-%m-%d %H:%M}" if due else "", f"{next:%Y-%m-%d %H:%M}" if next else "with its steps"
