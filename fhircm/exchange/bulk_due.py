"""What is to be exported next: for each type since when, and who is new in the panel. A type moves on only when all of it was written.

https://hl7.org/fhir/uv/bulkdata/group.html. An export with `_since` tells nothing of what is older, so whoever joined the panel since is
asked for without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from fhircm.exchange.bulk_shape import Bulk
from fhircm.exchange.partners import Partner
from fhircm.store.resources import SetState, Store

TYPES, REQUEST, LAST = "types", "request", "last"
FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=10), timedelta(days=1)  # before a type that failed is asked for again


@dataclass(frozen=True, slots=True)
class Standing:
    """How one type stands. Times are ISO 8601 in UTC."""

    since: str | None = None  # the partner's instant up to which all is written
    at: str | None = None  # when that was
    members: str = ""  # name of the list of whom it covers
    failures: int = 0  # in a row
    again: str | None = None  # when a failure is tried again
    why: str = ""


@dataclass(frozen=True, slots=True)
class Errand:
    """One export to be made."""

    types: tuple[str, ...]
    since: datetime | None
    patients: tuple[str, ...] | None  # only these
    members: tuple[str, ...] | None  # whom the panel has now; None: whoever comes


def namespace(partner: str) -> str:
    """Where the facts of a partner's exports are."""
    return f"bulk:{partner}"


async def standings(store: Store, partner: str) -> dict[str, Standing]:
    """How every type stands that was ever asked for."""
    kept = await store.state(namespace(partner), TYPES)
    return {type: Standing(**row) for type, row in (kept or {}).items()}


async def is_due(store: Store, partner: Partner, bulk: Bulk) -> bool:
    """Whether any type is due."""
    return bool(await _due(store, partner, bulk))


async def _due(store: Store, partner: Partner, bulk: Bulk) -> dict[str, Standing]:
    known, now = await standings(store, partner.name), store.clock()
    request = await store.state(namespace(partner.name), REQUEST)
    asked = datetime.fromisoformat(request["at"]) if request else None
    found = {}
    for type in bulk.of(partner.types):
        one = known.get(type, Standing())
        at = datetime.fromisoformat(one.at) if one.at else None
        again = datetime.fromisoformat(one.again) if one.again else None
        wanted = asked is not None and (at is None or at < asked) and (again is None or again <= now or one.failures == 0)
        timely = bulk.every is not None and (at is None or at + bulk.every <= now)
        if (again is not None and again <= now) or (again is None and timely) or wanted:
            found[type] = one
    return found


async def next_errand(store: Store, partner: Partner, bulk: Bulk, members: tuple[str, ...] | None) -> Errand | None:
    """The next export, for types that stand alike; None when nothing is due."""
    groups: dict[tuple[str | None, str], list[str]] = {}
    for type, one in (await _due(store, partner, bulk)).items():
        honest = bulk.since or bulk.filtered_since(type)
        groups.setdefault((one.since if honest else None, one.members), []).append(type)
    if not groups:
        return None
    since_text, covered = min(groups, key=lambda group: (group[0] or "", group[1]))
    types = tuple(sorted(groups[since_text, covered]))
    since = datetime.fromisoformat(since_text) - bulk.overlap if since_text else None
    new = tuple(sorted(set(members or ()) - await _covered(store, partner.name, covered)))
    if since is None or not new:
        return Errand(types, since, None, members)
    if bulk.new_members == "patient":
        return Errand(types, None, new, members)
    return Errand(types, None, None, members)


async def _covered(store: Store, partner: str, name: str) -> set[str]:
    kept = await store.state(namespace(partner), f"members:{name}")
    return set(kept["of"]) if kept else set()


async def finished(
    store: Store, partner: Partner, bulk: Bulk, errand: Errand, transaction_time: str | None, failed: Mapping[str, str]
) -> list[SetState]:
    """The facts that an export came to its end: how each of its types stands now."""
    known, now, where = await standings(store, partner.name), store.clock(), namespace(partner.name)
    facts = []
    name = ""
    if errand.members is not None:
        covered = set(errand.members)
        name = hashlib.sha256("\n".join(sorted(covered)).encode()).hexdigest()[:16]
        facts.append(SetState(where, f"members:{name}", {"of": sorted(covered)}))
    for type in errand.types:
        before = known.get(type, Standing())
        if type in failed:
            wait = min(FIRST_WAIT * 2 ** min(before.failures, 10), LONGEST_WAIT)
            known[type] = replace(before, failures=before.failures + 1, again=(now + wait).isoformat(), why=failed[type])
        elif errand.patients is not None:  # the new ones are covered; the others' turn is next
            known[type] = replace(before, members=name, failures=0, again=now.isoformat(), why="")
        else:
            known[type] = Standing(transaction_time, now.isoformat(), name)
    used = {one.members for one in known.values()}
    lists = await store.states(where, "members:")
    facts += [
        SetState(where, key, None) for key in lists if key.removeprefix("members:") not in used and key != f"members:{name}"
    ]
    return [*facts, SetState(where, TYPES, {type: asdict(one) for type, one in known.items()})]


def request(store: Store, partner: str) -> SetState:
    """The fact that somebody wants an export now."""
    return SetState(namespace(partner), REQUEST, {"at": store.clock().isoformat()})


def told(known: Mapping[str, Standing], types: Iterable[str]) -> list[tuple[str, str, str]]:
    """How each type stands: its name, up to when all is written, and what is wrong."""
    rows: list[tuple[str, str, str]] = []
    for type in sorted(types):
        one: Any = known.get(type, Standing())
        rows.append((type, one.since or ("whole, " + one.at if one.at else "never"), one.why))
    return rows
