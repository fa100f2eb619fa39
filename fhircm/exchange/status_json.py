"""How partners are doing as JSON, for scripts: the names of its members stay as they are.

https://www.rfc-editor.org/rfc/rfc8259. Times are ISO 8601 in UTC, spans in seconds; what is not known is null.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.exchange.freshness import TypeFreshness
from fhircm.exchange.status import Status


def as_json(found: Status) -> dict[str, Any]:
    """One partner."""
    return {
        "partner": found.partner,
        "vendor": found.vendor,
        "verdict": found.verdict.value,
        "at": _time(found.at),
        "last_success": _time(found.last_success),
        "last_attempt": _time(found.last_attempt),
        "last_full": _time(found.last_full),
        "next_run": _time(found.next_run),
        "freshness_seconds": found.age,
        "lag_seconds": found.lag,
        "queue": {"length": found.queue, "oldest": _time(found.oldest)},
        "dead_letters": dict(found.letters),
        "quarantine": dict(found.held),
        "budget": {"requests_per_hour": found.per_hour, "requests_left": found.requests_left},
        "breakers": [
            {"what": one.what, "failures": one.failures, "until": _time(one.until), "why": one.why} for one in found.open_breakers
        ],
        "subscriptions": dict(found.channels.subscriptions),
        "bulk_export": {
            "phase": found.channels.export.value if found.channels.export else None,
            "begun": _time(found.channels.begun),
            "progress": found.channels.progress or None,
            "last_finished": _time(found.channels.finished),
            "last_failed": dict(found.channels.failed),
        },
        "last_message": _time(found.channels.message),
        "concerns": [{"verdict": one.verdict.value, "text": one.text, "remedy": one.remedy} for one in found.concerns],
        "types": [_type(one) for one in found.types],
    }


def _type(one: TypeFreshness) -> dict[str, Any]:
    return {
        "type": one.type,
        "patients": one.patients,
        "never_looked_at": one.never,
        "late": one.late,
        "promise_seconds": one.promise,
        "newest_seconds": one.newest,
        "median_seconds": one.middle,
        "oldest_seconds": one.oldest,
        "missing": dict(one.missing),
        "changes": dict(one.found),
        "requests": one.requests,
        "bytes": one.bytes,
        "seconds": one.seconds,
        "waited_seconds": one.waited,
        "lag_seconds": one.lag,
        "lag_95_seconds": one.lag_95,
        "last_updated": {"believed": not one.distrusted, "missed": one.missed},
    }


def _time(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
