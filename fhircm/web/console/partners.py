"""The partners in the console: how each is doing, what to do about what is not well, and what it cost. Nothing of a patient is shown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from starlette.applications import Starlette
from starlette.responses import Response

from fhircm.exchange.breaker import WHOLE
from fhircm.exchange.freshness import TypeFreshness, age, size
from fhircm.exchange.status import Status, Verdict, channel_facts, several, status
from fhircm.web.console.asking import add, found_in, part
from fhircm.web.pages import Problem, Visit
from fhircm.web.parts import parts

_WORST = {verdict: -number for number, verdict in enumerate(Verdict)}
PILLS = {Verdict.WELL: "", Verdict.WAITING: "", Verdict.ATTENTION: "look", Verdict.DOWN: "off"}
_COLUMNS = ("Type", "Looked at", "Late", "Missing", "Changes", "Arrive", "Cost")


def add_routes(app: Starlette) -> None:
    """The addresses of this module."""
    add(app, "/console/partners", show_all, "GET", "POST")
    add(app, "/console/partners/show", show)


async def show_all(visit: Visit) -> Response:
    """Every partner, or those in whose name, vendor or verdict a text is found; the worst first. As it was seconds ago."""
    find = visit.field("find")
    found = [one for one in await parts(visit).stand.get() if not find or found_in(find, one.partner, one.vendor, one.verdict)]
    found.sort(key=lambda one: (_WORST[one.verdict], one.partner))
    return visit.page("console/partners.html", part=part(visit, found), find=find, facts=_facts, pills=PILLS)


async def show(visit: Visit) -> Response:
    """One of them, as it is now."""
    name = visit.asked("partner")
    partner = next((one for one in parts(visit).partners if one.name == name), None)
    if partner is None:
        raise Problem("There is no such partner", "Perhaps FHIRCM_PARTNERS does not name it any more.", 404)
    found = await status(parts(visit).store, partner)
    return visit.page(
        "console/partner.html",
        found=found,
        pills=PILLS,
        told=_told(visit, found),
        columns=_COLUMNS,
        rows=[_row(one) for one in found.types],
    )


def _facts(one: Status) -> list[str]:
    """What stands in the list, in a few words each."""
    return [
        one.vendor,
        f"last success {_ago(one.last_success, one.at)}",
        f"half of its patients looked at within {age(one.age)}" if one.age is not None else "no patient looked at yet",
        *([f"changes arrive within {age(one.lag)}"] if one.lag is not None else []),
        f"{one.queue} in line",
        several(sum(one.letters.values()), "dead letter"),
        f"{sum(one.held.values())} in quarantine",
        f"next run {_when(one.next_run, one.at)}",
    ]


def _told(visit: Visit, one: Status) -> list[tuple[str, str]]:
    def minute(at: datetime | None, never: str) -> str:
        return f"{visit.pages.minute(at.timestamp())} ({_when(at, one.at)})" if at else never

    left_alone = [f"{_whole(each.what)} until {minute(each.until, '')}" for each in one.open_breakers]
    waits = f", the oldest since {minute(one.oldest, '')}" if one.oldest else ""
    return [
        ("Vendor", one.vendor),
        ("Last success", minute(one.last_success, "never")),
        ("Last attempt", minute(one.last_attempt, "never")),
        ("Everything looked at", minute(one.last_full, "never yet")),
        ("Next run", minute(one.next_run, "none is planned")),
        ("Deliveries in line", f"{one.queue}{waits}"),
        ("Left alone", "; ".join(left_alone) or "no"),
        ("Dead letters", _counted(one.letters)),
        ("In quarantine", _counted(one.held)),
        ("Request budget", f"{one.requests_left:.0f} of {one.per_hour} an hour are left" if one.per_hour else "none is set"),
        *channel_facts(one.channels, lambda at: minute(at, "")),
    ]


def _row(one: TypeFreshness) -> list[str]:
    """A cell for each column; what is as it should be, or says nothing for this type, is empty."""
    looked = f"half within {age(one.middle)}, the oldest {age(one.oldest)} ago" if one.middle is not None else "not yet"
    cost = f"{several(one.requests, 'request')}, {size(one.bytes)}" + (f", waited {one.waited:.0f} s" if one.waited >= 1 else "")
    return [
        one.type,
        looked if one.planned else "as needed",
        f"{one.late} of {one.patients}" if one.late else "",
        ", ".join(f"{number} {kind}" for kind, number in one.missing.items()),
        ", ".join(f"{number} {means}" for means, number in one.found.items()),
        f"half within {age(one.lag)}" if one.lag is not None else "",
        cost if one.requests else "",
    ]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "none"


def _whole(what: str) -> str:
    return "as a whole" if what == WHOLE else what


def _ago(at: datetime | None, now: datetime) -> str:
    return f"{age((now - at).total_seconds())} ago" if at else "never"


def _when(at: datetime | None, now: datetime) -> str:
    """A time as seen from now."""
    if at is None:
        return "not planned"
    ahead = (at - now).total_seconds()
    return f"in {age(ahead)}" if ahead >= 1 else "now" if ahead > -1 else f"{age(-ahead)} ago"
