"""The plan of a person in words, for those who reach all of it: what is in it, who says so, where sources differ, what was left out.

https://hl7.org/fhir/R4/careplan.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fhircm.coordination.context import Context
from fhircm.coordination.longitudinal.conflicts import Conflict, members
from fhircm.coordination.longitudinal.plan import Entry, Plan
from fhircm.coordination.longitudinal.sources import Source
from fhircm.coordination.people import named
from fhircm.coordination.wording import text_of

Tree = dict[str, Any]


async def told(context: Context, plan: Plan) -> str:
    """The plan as lines of text."""
    lines = [f"Longitudinal care plan of Patient/{plan.anchor}"]
    lines += [f"  the same person: Patient/{id}" for id in plan.records.patients[1:]]
    lines += _part("Problems", (_entry(plan, one) for one in plan.problems))
    lines += _part("Goals", (_entry(plan, one) for one in plan.goals))
    lines += _part("Activities", _activities(plan))
    lines += _part("Care team", [await _seats(context, plan, group) for group in plan.seats])
    lines += _part("Sources differ", (_conflict(plan, one) for one in plan.conflicts))
    lines += _part("Possibly the same", ([f"{a} and {b}"] for a, b in plan.possible))
    lines += _part("Left out", ([f"{one.reference}: {one.reason}"] for one in plan.left))
    return "\n".join(lines)


def _part(title: str, entries: Iterable[list[str]]) -> Iterator[str]:
    found = list(entries)
    if found:
        yield f"\n{title}"
        for first, *more in found:
            yield f"  {first}"
            yield from (f"      {one}" for one in more)


def _words(one: Source) -> str:
    return text_of(one.tree.get("code") or one.tree.get("description")) or "without words"


def _state(one: Source) -> str:
    state = one.tree.get("status") or one.tree.get("lifecycleStatus") or text_of(_bare(one.tree.get("clinicalStatus")))
    return str(state or "state not stated")


def _bare(element: Any) -> Any:
    """A concept whose codes stand for words where it has none."""
    coding = next(iter((element or {}).get("coding", [])), {})
    return (element or {}).get("text") or coding.get("display") or coding.get("code")


def _entry(plan: Plan, entry: Entry) -> list[str]:
    leader = plan.records.sources.get(entry.leader, entry.thing.sources[0])
    merged = plan.merged.get(entry.leader.removeprefix("Goal/"))
    state = merged["lifecycleStatus"] if merged else _state(leader)
    return [f"{_words(leader)} ({state})", *(_said(one) for one in entry.thing.sources)]


def _said(one: Source) -> str:
    return f"{one.voice}: {_words(one)}, {_state(one)} [{one.reference}]"


def _activities(plan: Plan) -> Iterator[list[str]]:
    yield from (_entry(plan, one) for one in plan.activities)
    for to, sources in plan.requests:
        what = text_of(plan.records.others[to].get("code")) or to
        yield [what, *(f"{one.voice}: named by {one.reference} [{to}]" for one in sources)]
    for one, at in plan.inline:
        what = text_of(one.tree["activity"][at]["detail"].get("code")) or one.tree["activity"][at]["detail"].get("description")
        yield [
            f"{what or 'without words'} ({one.tree['activity'][at]['detail']['status']})",
            f"{one.voice}: in {one.reference}, activity {at}",
        ]


async def _seats(context: Context, plan: Plan, group: Iterable[Any]) -> list[str]:
    seats = list(group)
    who = await context.follow(seats[0].tree.get("member"))
    name = (await named(context, who)).get("display") if who else None
    lines = [
        f"{seat.team.voice}: {', '.join(filter(None, map(text_of, seat.tree.get('role', [])))) or 'role not stated'} [{seat.team.reference}]"
        for seat in seats
    ]
    return [name or seats[0].member, *lines]


def _conflict(plan: Plan, one: Conflict) -> list[str]:
    if one.chosen:
        how = f"by the rule '{one.rule}' {one.chosen} stands" if one.rule != "human" else f"a human chose {one.chosen}"
    elif one.rule == "human":
        how = "a human decided to keep both"
    else:
        how = "a human is asked" if one.asks else "no rule could tell; both stand"
    sides = [f"{plan.records.sources[to].voice}: {_value(plan.records.sources[to], one.element)} [{to}]" for to in one.sources]
    return [f"{one.type}.{one.element.removesuffix('[x]')}: {how}", *sides]


def _value(one: Source, element: str) -> str:
    value = next(iter(members(one.tree, element).values()))
    if isinstance(value, dict):
        return str(_bare(value) or value)
    if isinstance(value, list):
        return "; ".join(filter(None, map(_target, value))) or "said"
    return str(value)


def _target(one: Any) -> str:
    """A target as people write it."""
    if not isinstance(one, dict):
        return str(one)
    quantity, span = one.get("detailQuantity", {}), one.get("detailRange", {})
    amount = " ".join(str(quantity[name]) for name in ("comparator", "value", "unit") if name in quantity)
    if span:
        low, high = span.get("low", {}), span.get("high", {})
        amount = f"{low.get('value', '')} to {high.get('value', '')} {high.get('unit') or low.get('unit') or ''}".strip()
    due = f"by {one['dueDate']}" if "dueDate" in one else ""
    return " ".join(filter(None, (text_of(one.get("measure")), amount, due)))
