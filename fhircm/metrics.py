"""What a monitoring system watches: partners and the hub's own work, as GET /metrics tells it to who shows the token.

https://prometheus.io/docs/instrumenting/exposition_formats/. All of it is read from the store, so every process tells the same, and
counters go on where they were after a restart. There is nothing of a patient in it, and no id.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fhircm.coordination import open_loops
from fhircm.exchange.breaker import WHOLE
from fhircm.exchange.freshness import TypeFreshness
from fhircm.exchange.news import CURSOR
from fhircm.exchange.partners import Partner
from fhircm.exchange.status import Status, Verdict, statuses
from fhircm.fhir.outcome import FhirError
from fhircm.jobs.job import KIND as JOB
from fhircm.lately import Lately
from fhircm.reactions import REACTIONS
from fhircm.store.figures import Behind, Figures, Overdue
from fhircm.store.operations import Position
from fhircm.store.resources import Store

__all__ = ["CONTENT_TYPE", "Metrics", "MetricsHidden", "Unwatched"]

_VERDICTS = {one: float(number) for number, one in enumerate(Verdict)}


class MetricsHidden(FhirError):
    """No token is set with which metrics may be read."""

    status, code = 404, "not-found"


class Unwatched(FhirError):
    """Who asks shows no token, or not the one that is set."""

    status, code = 401, "login"


@dataclass(frozen=True, slots=True)
class _Hub:
    """The hub's own work at one moment."""

    at: datetime
    head: Position
    behind: dict[str, Behind]  # by reaction
    timers: dict[str, Overdue]  # by kind
    loops: dict[str, Any]  # of the last whole round of the check of open loops; empty before the first


class Metrics:
    """Metrics over a store, for those who show `token`; without one, for nobody."""

    def __init__(self, store: Store, partners: Sequence[Partner], token: str | None) -> None:
        self._store, self._partners, self._token = store, partners, token
        self._text = Lately(self.made)

    async def text(self, authorization: str | None) -> bytes:
        """In Prometheus's text format. Raises MetricsHidden, Unwatched, and what the database raises."""
        if self._token is None:
            raise MetricsHidden("Metrics are not given: set FHIRCM_METRICS_TOKEN")
        kind, _, shown = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self._token.encode()):
            raise Unwatched("Metrics are for those who show the token of FHIRCM_METRICS_TOKEN as a bearer token")
        return await self._text.get()

    async def made(self) -> bytes:
        """The text, read now."""
        found = await statuses(self._store, self._partners)
        figures, now = Figures(self._store.database), self._store.clock()
        behind = await figures.behind([*REACTIONS, CURSOR])
        checked = await self._store.state(open_loops.NAMESPACE, open_loops.ROUND) or {}
        hub = _Hub(now, await figures.head(), behind, await figures.overdue(now), checked)
        return await asyncio.to_thread(exposed, [*_of_partners(found), *_of_types(found), *_of_hub(hub), *_of_loops(hub.loops)])


def exposed(metrics: Sequence[Metric]) -> bytes:
    """Metrics as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(metrics))
    return generate_latest(registry)


class _Collected:
    """Metrics that were made already, as the library asks for them."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._metrics


Row = tuple[Sequence[str], float | int | None]


def _gauge(name: str, about: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    family = GaugeMetricFamily(f"fhircm_{name}", about, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _counter(name: str, about: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    family = CounterMetricFamily(f"fhircm_{name}", about, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _stamp(at: datetime | None) -> float | None:
    return at.timestamp() if at else None


# --- partners ---------------------------------------------------------------------------------------------------------------------------


def _of_partners(found: Sequence[Status]) -> Iterator[Metric]:
    def each(name: str, about: str, rows: Iterable[Row]) -> Metric:
        return _gauge(f"partner_{name}", about, ["partner"], rows)

    yield each(
        "verdict",
        "How it stands with a partner: 0 well, 1 waiting, 2 attention, 3 down",
        (([one.partner], _VERDICTS[one.verdict]) for one in found),
    )
    yield each(
        "last_success_timestamp_seconds",
        "When a pull came to its end last",
        (([one.partner], _stamp(one.last_success)) for one in found),
    )
    yield each(
        "next_run_timestamp_seconds", "When the next round is due", (([one.partner], _stamp(one.next_run)) for one in found)
    )
    yield each("queue_length", "Deliveries in line", (([one.partner], one.queue) for one in found))
    yield each(
        "queue_oldest_seconds",
        "For how long the oldest delivery in line has waited",
        (([one.partner], (one.at - one.oldest).total_seconds() if one.oldest else 0) for one in found),
    )
    yield each(
        "budget_requests_left",
        "Requests of the budget that may be made now; absent without a budget",
        (([one.partner], one.requests_left) for one in found),
    )
    for name, about in (("dead_letters", "Deliveries that were given up"), ("quarantine", "Resources in quarantine")):
        rows = (
            ([one.partner, kind], number)
            for one in found
            for kind, number in (one.letters if name == "dead_letters" else one.held).items()
        )
        yield _gauge(f"partner_{name}", f"{about}, by kind", ["partner", "kind"], rows)
    yield _gauge(
        "partner_subscriptions",
        "Subscriptions at the partner, by state: those that are active bring changes",
        ["partner", "state"],
        (([one.partner, state], number) for one in found for state, number in one.channels.subscriptions.items()),
    )
    yield each(
        "bulk_export_begun_timestamp_seconds",
        "When the bulk export that is under way was begun; absent when there is none",
        (([one.partner], _stamp(one.channels.begun)) for one in found),
    )
    yield each(
        "bulk_export_finished_timestamp_seconds",
        "When the last bulk export ended; absent without one",
        (([one.partner], _stamp(one.channels.finished)) for one in found),
    )
    yield each(
        "bulk_export_failed_types",
        "Types that did not come with the last bulk export; absent without one",
        (([one.partner], len(one.channels.failed) if one.channels.finished else None) for one in found),
    )
    yield each(
        "last_message_timestamp_seconds",
        "When the last HL7 v2 message was taken, to the minute; absent without one",
        (([one.partner], _stamp(one.channels.message)) for one in found),
    )
    yield _gauge(
        "partner_breaker_open",
        "Whether nothing is sent for now: to the partner as a whole (*), or of a type and interaction",
        ["partner", "what"],
        (row for one in found for row in _breakers(one)),
    )


def _breakers(one: Status) -> Iterator[Row]:
    open_now = {each.what for each in one.open_breakers}
    yield [one.partner, WHOLE], WHOLE in open_now
    for what in sorted(open_now - {WHOLE}):
        yield [one.partner, what], 1


_TYPE_GAUGES = {
    "freshness_seconds": ("For how long half of the patients were not looked at", "middle"),
    "late_patients": ("Patients who were not looked at as soon as promised; told up to 3 % of the promise later", "late"),
}
_TYPE_COUNTERS = {
    "requests": ("Requests that were made", "requests"),
    "received_bytes": ("Bytes that were received", "bytes"),
    "waited_seconds": ("Time waited because the partner or its limits asked for it", "waited"),
}


def _of_types(found: Sequence[Status]) -> Iterator[Metric]:
    types: list[tuple[str, TypeFreshness]] = [(one.partner, each) for one in found for each in one.types]
    labels = ["partner", "type"]
    for name, (about, member) in _TYPE_GAUGES.items():
        planned = ((one, each) for one, each in types if each.patients)
        yield _gauge(f"partner_{name}", about, labels, (([one, each.type], getattr(each, member)) for one, each in planned))
    for name, (about, member) in _TYPE_COUNTERS.items():
        spent = ((one, each) for one, each in types if each.requests)
        yield _counter(
            f"partner_{name}", about, labels, (([one, each.type], getattr(each, member) or None) for one, each in spent)
        )
    yield _counter(
        "partner_changes",
        "Changes that were found, by the means that found them",
        [*labels, "means"],
        (([one, each.type, means], number) for one, each in types for means, number in each.found.items()),
    )
    yield _gauge(
        "partner_missing",
        "What is missing: refused (the type), failed and unreadable (patients), quarantined and gap (resources)",
        [*labels, "kind"],
        (([one, each.type, kind], number) for one, each in types for kind, number in each.missing.items()),
    )
    yield _gauge(
        "partner_lag_seconds",
        "Within how long half of the changes reached the hub after they were made, to the next power of two",
        labels,
        (([one, each.type], each.lag) for one, each in types),
    )


# --- the hub ----------------------------------------------------------------------------------------------------------------------------


def _of_hub(hub: _Hub) -> Iterator[Metric]:
    yield _gauge("change_log_head", "The number of the newest change", [], [([], hub.head.number)])
    yield _gauge(
        "reaction_lag_changes",
        "Changes that a reaction has not looked at, of any type; more than 10,000 are not counted",
        ["reaction"],
        (([name], one.changes) for name, one in hub.behind.items()),
    )
    yield _gauge(
        "reaction_lag_seconds",
        "For how long the first of these waits",
        ["reaction"],
        (([name], _since(one.since, hub.at)) for name, one in hub.behind.items()),
    )
    timers = {kind: one for kind, one in hub.timers.items() if not kind.startswith(JOB)}
    yield _gauge("timers", "Timers that are set", ["kind"], (([kind], one.timers) for kind, one in timers.items()))
    yield _gauge(
        "timers_overdue",
        "Timers whose time has come and that are not done yet",
        ["kind"],
        (([kind], one.overdue) for kind, one in timers.items()),
    )
    yield _gauge(
        "timers_overdue_seconds",
        "For how long the first of these is due",
        ["kind"],
        (([kind], _since(one.since, hub.at)) for kind, one in timers.items()),
    )
    jobs = {kind.removeprefix(JOB): one for kind, one in hub.timers.items() if kind.startswith(JOB)}
    yield _gauge("jobs", "Jobs that are not ended", ["job"], (([kind], one.timers) for kind, one in jobs.items()))


def _of_loops(checked: dict[str, Any]) -> Iterator[Metric]:
    wrong = checked.get("wrong", {})
    yield _gauge("open_loops", "Loops that are open, at the last check of all", [], [([], checked.get("loops"))])
    yield _gauge(
        "open_loops_wrong",
        "Those of them that nobody has, or to which nothing happens next, by what is wrong",
        ["kind"],
        (([code], wrong.get(code, 0)) for code in open_loops.WRONG if checked),
    )
    ended = _stamp(datetime.fromisoformat(checked["at"])) if checked else None
    yield _gauge("open_loops_checked_timestamp_seconds", "When the last check of all open loops ended", [], [([], ended)])


def _since(at: datetime | None, now: datetime) -> float:
    return max(0.0, (now - at).total_seconds()) if at else 0.0
