"""How each partner is doing, in words that an interface analyst acts on: what is well, what is not, and what to do.

https://hl7.org/fhir/R4/http.html. Everything is read from what pulls, pushes and sign-ins keep; nothing is asked of the partner, and nothing
here tells of a patient. The command line and the console tell the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from fhircm.exchange import breaker, bulk_due, capabilities, dead_letters, drift, freshness, looks, tokens
from fhircm.exchange.capabilities import Capabilities
from fhircm.exchange.channels import HEARD, Channels, channels
from fhircm.exchange.due import queue
from fhircm.exchange.freshness import TypeFreshness
from fhircm.exchange.news import DUE
from fhircm.exchange.notifications import rows_at
from fhircm.exchange.partners import Partner
from fhircm.exchange.quarantine import KINDS
from fhircm.store.figures import Figures
from fhircm.store.resources import Store

PULLED = "pulled"  # namespace of how the last pull of each partner went
TOGETHER = 100  # partners that are read of at once; others have their turn between


class Verdict(StrEnum):
    """How it stands with a partner as a whole."""

    WELL = "well"
    WAITING = "waiting"  # nothing is wrong, and nothing can be done before some time
    ATTENTION = "attention"  # it works, and a human should look at something
    DOWN = "down"  # it does not work


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that a human should know, and what to do about it."""

    verdict: Verdict
    text: str
    remedy: str


@dataclass
class Status:
    """One partner at one moment. Times in UTC."""

    partner: str
    vendor: str
    at: datetime
    last_success: datetime | None  # a pull that came to its end
    last_attempt: datetime | None
    last_full: datetime | None  # when everything was looked at from end to end
    next_run: datetime | None
    types: list[TypeFreshness]
    queue: int  # deliveries in line
    oldest: datetime | None  # of these
    letters: Mapping[str, int]  # dead letters by kind
    held: Mapping[str, int]  # in quarantine by kind
    per_hour: int | None  # requests of the budget; None: there is none
    requests_left: float | None  # of these, now
    open_breakers: list[breaker.State]
    channels: Channels
    concerns: list[Concern] = field(default_factory=list)  # the worst first

    @property
    def verdict(self) -> Verdict:
        """The worst of its concerns."""
        order = list(Verdict)
        return max((one.verdict for one in self.concerns), key=order.index, default=Verdict.WELL)

    @property
    def lag(self) -> float | None:
        """Seconds within which half of the changes reached the hub, at the type that is slowest."""
        return max((one.lag for one in self.types if one.lag is not None), default=None)

    @property
    def age(self) -> float | None:
        """Seconds since half of the patients were looked at, at the type that is oldest."""
        return max((one.middle for one in self.types if one.middle is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of some partners, by name or by namespace and key."""

    facts: Mapping[str, Mapping[str, dict[str, Any]]]
    rounds: Mapping[str, datetime]  # by the key of their timer
    queues: Mapping[str, tuple[int, str]]
    letters: Mapping[str, Mapping[str, int]]
    held: Mapping[str, Mapping[tuple[str, str], int]]
    subscriptions: Mapping[str, Mapping[str, int]]
    sign_ins: Mapping[str, Sequence[Mapping[str, Any]]]

    def fact(self, namespace: str, partner: str) -> dict[str, Any] | None:
        """One fact of a partner in a namespace of all of them."""
        return self.facts[namespace].get(partner)


async def status(store: Store, partner: Partner) -> Status:
    """How it stands with a partner now."""
    return (await statuses(store, [partner]))[0]


async def statuses(store: Store, partners: Sequence[Partner]) -> list[Status]:
    """How it stands with each of them, in their order; they are read of many at a time."""
    found = []
    for start in range(0, len(partners), TOGETHER):
        some = partners[start : start + TOGETHER]
        kept = await _read(store, [one.name for one in some])
        # In a thread of its own: with large panels there is much to reckon, and others must have their turn.
        found += await asyncio.to_thread(_reckoned, kept, some, store.clock())
    return found


async def _read(store: Store, names: Sequence[str]) -> _Kept:
    figures = Figures(store.database)
    shared = {
        namespace: await store.states_of(namespace, names)
        for namespace in (PULLED, freshness.NAMESPACE, freshness.MISSING, capabilities.NAMESPACE, looks.LOOKED, HEARD)
    }
    own = await figures.states([of(name) for name in names for of in (breaker.namespace, bulk_due.namespace)])
    sign_ins: dict[str, list[Mapping[str, Any]]] = {}
    for row in (await store.states(tokens.NAMESPACE)).values():
        sign_ins.setdefault(row.get("partner", ""), []).append(row)
    return _Kept(
        facts={**own, **shared},
        rounds=await figures.due([f"{DUE}:{name}" for name in names]),
        queues=await figures.least([queue(name) for name in names], "queued"),
        letters=await figures.tallied([dead_letters.parked(name) for name in names], "why"),
        held=await figures.held(names),
        subscriptions=await figures.tallied([rows_at(name) for name in names], "state"),
        sign_ins=sign_ins,
    )


def _reckoned(kept: _Kept, partners: Sequence[Partner], now: datetime) -> list[Status]:
    return [_status(kept, one, now) for one in partners]


def _status(kept: _Kept, partner: Partner, now: datetime) -> Status:
    name = partner.name
    pulled = kept.fact(PULLED, name) or {}
    ledger = freshness.Ledger(partner, kept.fact(freshness.NAMESPACE, name), kept.fact(freshness.MISSING, name))
    looked = looks.looked(partner, kept.fact(looks.LOOKED, name))
    in_quarantine = kept.held.get(name, {})
    held: dict[str, int] = {}
    for (kind, _), number in in_quarantine.items():
        held[kind] = held.get(kind, 0) + number
    waiting, oldest = kept.queues.get(queue(name), (0, None))
    breakers = breaker.stand(kept.facts.get(breaker.namespace(name), {}))
    found = Status(
        partner=name,
        vendor=partner.vendor,
        at=now,
        last_success=_time(pulled.get("success")),
        last_attempt=_time(pulled.get("at")),
        last_full=_time((ledger.row.get("full") or {}).get("at")),
        next_run=kept.rounds.get(f"{DUE}:{name}"),
        types=freshness.by_type(ledger, looked, in_quarantine, now),
        queue=waiting,
        oldest=_time(oldest),
        letters=kept.letters.get(dead_letters.parked(name), {}),
        held=held,
        per_hour=partner.budget.per_hour,
        requests_left=partner.budget.allowance(ledger.row.get("budget"), now),
        open_breakers=[one for one in breakers if one.until is not None and one.until > now],
        channels=channels(
            kept.subscriptions.get(rows_at(name), {}), kept.facts.get(bulk_due.namespace(name), {}), kept.fact(HEARD, name)
        ),
    )
    found.concerns = [*_of_pull(found, partner, pulled), *_of_push(found), *_of_types(found), *_of_quarantine(found)]
    found.concerns += _of_channels(found)
    told = tokens.sentences(kept.sign_ins.get(name, ()))
    found.concerns += [Concern(Verdict.ATTENTION, text, "Tell the partner") for text in told]
    found.concerns += _of_drift(partner, kept.fact(capabilities.NAMESPACE, name))
    found.concerns.sort(key=lambda one: list(Verdict).index(one.verdict), reverse=True)
    return found


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _of_pull(found: Status, partner: Partner, pulled: Mapping[str, str]) -> list[Concern]:
    name = found.partner
    if partner.schedule.maintained(found.at):
        return [Concern(Verdict.WAITING, "It is maintained now: nothing is asked and nothing is sent", "Nothing to do")]
    if found.last_attempt is None:
        return [Concern(Verdict.ATTENTION, "It was never pulled", f"Run `fhircm partner check {name}`, then `fhircm work`")]
    told = []
    if pulled.get("why"):
        since = f", the last time that it did was {_when(found.last_success)}" if found.last_success else ", and never did"
        text = f"The last pull did not come to its end{since}: {pulled['why']}"
        told.append(Concern(Verdict.DOWN, text, f"Run `fhircm partner check {name}`: it says what to fix"))
    late = found.next_run is not None and found.at - found.next_run > timedelta(minutes=5)
    if late or found.next_run is None:
        text = f"Its next round was due {_when(found.next_run)}" if late else "No round is planned for it"
        told.append(Concern(Verdict.DOWN, text, "Is `fhircm work` running, with this partner among FHIRCM_PARTNERS?"))
    if found.requests_left is not None and found.requests_left < 1:
        told.append(
            Concern(
                Verdict.WAITING, "Its request budget is used up for now", "Raise budget in partner.yaml if the partner agrees"
            )
        )
    return told


def _of_push(found: Status) -> list[Concern]:
    told = []
    for one in found.open_breakers:
        what = "Nothing is sent to it" if one.what == breaker.WHOLE else f"{one.what} is not tried"
        text = f"{what} until {_when(one.until)}, after {one.failures} failures: {one.why}"
        verdict = Verdict.DOWN if one.what == breaker.WHOLE else Verdict.ATTENTION
        told.append(Concern(verdict, text, "It is tried again by itself; if it stays so, ask the partner"))
    for kind, number in found.letters.items():
        text = f"{several(number, 'delivery')}: {dead_letters.KINDS[kind]}"
        verdict = Verdict.WAITING if kind == "withheld" else Verdict.ATTENTION
        told.append(Concern(verdict, text, f"See `fhircm dead-letters list {found.partner} --kind {kind}`"))
    if found.oldest is not None and found.at - found.oldest > timedelta(hours=1):
        told.append(
            Concern(
                Verdict.ATTENTION,
                f"{several(found.queue, 'delivery')} in line, the oldest since {_when(found.oldest)}",
                "See the lines above",
            )
        )
    return told


def _of_types(found: Status) -> list[Concern]:
    told = []
    for one in found.types:
        if one.missing.get("refused"):
            remedy = f"Ask the partner for access to {one.type}, or leave it out of pull in partner.yaml"
            told.append(Concern(Verdict.ATTENTION, f"It refuses {one.type}", remedy))
        if one.missing.get("failed"):
            text = f"{one.type} of {one.missing['failed']} patients could not be read the last time"
            told.append(Concern(Verdict.ATTENTION, text, "It is tried again by itself; if it stays so, ask the partner"))
        if one.missing.get("unreadable"):
            text = f"{one.missing['unreadable']} patients of the panel cannot be read"
            told.append(Concern(Verdict.ATTENTION, text, "Ask the partner whether they are still its patients, or for access"))
        if one.late > one.never:
            text = f"{one.type} of {one.late} of {one.patients} patients was not looked at within {_span(one.promise)}"
            told.append(Concern(Verdict.ATTENTION, text, "Raise budget or limits, or lengthen schedule.full, in partner.yaml"))
        if one.distrusted:
            text = f"Its _lastUpdated for {one.type} hid {one.missed} changes, and is not believed any more"
            told.append(Concern(Verdict.ATTENTION, text, f"Set last_updated: false for {one.type}, and tell the partner"))
    return told


def _of_channels(found: Status) -> list[Concern]:
    told = []
    if found.channels.broken:
        text = f"{found.channels.broken} of {several(sum(found.channels.subscriptions.values()), 'Subscription')} at it bring nothing"
        remedy = "They are made anew by themselves, and until then it is asked for changes; if it stays so, ask the partner"
        told.append(Concern(Verdict.ATTENTION, text, remedy))
    for type, why in found.channels.failed.items():
        remedy = "It is exported again by itself; if it stays so, ask the partner, or leave it out of bulk in partner.yaml"
        told.append(Concern(Verdict.ATTENTION, f"{type} did not come with the last bulk export: {why}", remedy))
    return told


def _of_quarantine(found: Status) -> list[Concern]:
    return [
        Concern(
            Verdict.ATTENTION,
            f"{number} in quarantine: what {KINDS.get(kind, kind)}",
            f"See `fhircm quarantine list {found.partner} --kind {kind}`",
        )
        for kind, number in found.held.items()
    ]


def _of_drift(partner: Partner, snapshot: dict[str, Any] | None) -> list[Concern]:
    """What the partner stopped to support, and is asked for no more."""
    _, sentences = drift.followed(partner, Capabilities.from_json(snapshot) if snapshot else None)
    return [
        Concern(Verdict.ATTENTION, text, "Ask the partner whether it is meant so; it is used again when it returns")
        for text in sentences
    ]


# --- in words ---------------------------------------------------------------------------------------------------------------------


def rendered(found: Status) -> str:
    """A partner as text: a line of what it is, lines of what to do, and lines of its types."""
    lines = [f"{found.partner} ({found.vendor}): {found.verdict}"]
    lines.append(
        f"  last success {_when(found.last_success)}, last attempt {_when(found.last_attempt)}, next run {_when(found.next_run)}"
    )
    waits = f", the oldest since {_when(found.oldest)}" if found.oldest else ""
    lines.append(
        f"  {several(found.queue, 'delivery')} in line{waits}; {several(sum(found.letters.values()), 'dead letter')}; {sum(found.held.values())} in quarantine"
    )
    if found.requests_left is not None:
        lines.append(f"  {found.requests_left:.0f} requests of the budget left")
    lines += [f"  {name}: {told}" for name, told in channel_facts(found.channels, _when)]
    for one in found.concerns:
        lines += [f"  {one.verdict:<9} {one.text}", f"  {'':<9} -> {one.remedy}"]
    return "\n".join(lines)


def channel_facts(found: Channels, when: Callable[[datetime | None], str]) -> list[tuple[str, str]]:
    """What is told of each channel that is in use, under its name; `when` writes a time."""
    told = []
    if found.subscriptions:
        told.append(("Subscriptions", ", ".join(f"{number} {state}" for state, number in sorted(found.subscriptions.items()))))
    if found.export is not None:
        progress = f" ({found.progress})" if found.progress else ""
        told.append(("Bulk export", f"{found.export}{progress}, begun {when(found.begun)}"))
    if found.finished is not None:
        told.append(("Last bulk export", when(found.finished)))
    if found.message is not None:
        told.append(("Last HL7 v2 message", when(found.message)))
    return told


def several(number: int, noun: str) -> str:
    """So many of something."""
    return (
        f"{number} {noun}"
        if number == 1
        else f"{number} {noun.removesuffix('y')}ies"
        if noun.endswith("y")
        else f"{number} {noun}s"
    )


def _when(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "never"


def _span(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} days" if seconds >= 2 * 86_400 else f"{seconds / 3600:.0f} hours"
