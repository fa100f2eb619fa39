"""Dead letters: what a partner could not be told, with the reason, to be tried again or let go by a human.

https://hl7.org/fhir/R4/provenance.html. Each that a human can do something about has a Task too (fhircm/exchange/human.py).
"""

from __future__ import annotations

from typing import Any

from fhircm.exchange import human
from fhircm.exchange.due import Due, idle, queue
from fhircm.exchange.human import concept, instant, stable_id
from fhircm.exchange.news import due as due_at
from fhircm.fhir.outcome import Invalid, NotFound
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Op, Put, SetState, Store

UNDELIVERED = "undelivered"
KINDS = {
    "refused": "the partner said no, to every way that there is",
    "conflict": "hub and partner changed the same; a human decides who is right",
    "withheld": "a consent of the patient keeps it from this partner",
    "unavailable": "the partner did not answer, or failed, too often",
    "invalid": "what would be sent breaks the specification",
    "no-record": "the patient has no record there that the hub knows of",
    "unsure": "it may have arrived, and the partner cannot be asked whether it did",
    "failed": "the hub itself failed at it",
}


def parked(partner: str) -> str:
    """The namespace of what a partner could not be told: key, reason and how to find it again."""
    return f"parked:push:{partner}"


async def letters(store: Store, partner: str, kind: str | None = None) -> dict[str, dict[str, Any]]:
    """The dead letters of a partner by key; `why` is the kind, `first`, `last` and `attempts` tell of the tries."""
    rows = await store.states(parked(partner))
    return {key: row for key, row in rows.items() if kind in (None, row["why"])}


async def letter(store: Store, partner: str, key: str) -> dict[str, Any]:
    """One of them. Raises NotFound."""
    row = await store.state(parked(partner), key)
    if row is None:
        raise NotFound(f"Nothing waits for {partner} under {key}")
    return row


def in_line(partner: str, key: str, row: dict[str, Any], replay: str, now: str, prefer: str | None = None) -> list[Op]:
    """What puts a dead letter in line again, at the place that it had."""
    place = row.get("place", "0")
    again = Due(
        key=f"{place}:{key}",
        lane=row.get("lane") or row.get("patient") or f"{row['type']}/{row['id']}",
        type=row["type"],
        id=row["id"],
        version=row["version"],
        occasion=row.get("occasion"),
        queued=now,
        letter=key,
        number=row.get("number"),
        replay=replay,
        prefer=prefer,
    )
    return [again.put(partner), SetState(parked(partner), key, {**row, "replay": replay}), SetState(*idle(partner), None)]


async def replay(store: Store, partner: str, key: str, prefer: str | None = None) -> None:
    """Put one in line again; `prefer`: in a conflict "hub" or "partner" wins. Raises NotFound for a key that nothing waits under."""
    row = await letter(store, partner, key)
    now = store.clock()
    again = in_line(partner, key, row, "asked", now.isoformat(), prefer)
    await store.transact([*again, due_at(partner, now)], origin="hub")


def withdraw_row(partner: str, key: str) -> SetState:
    """Forget one."""
    return SetState(parked(partner), key, None)


async def withdraw(store: Store, partner: str, key: str, why: str) -> list[Op]:
    """Forget one whose reason is gone, and end its Task."""
    return [withdraw_row(partner, key), *await human.take_back(store, (UNDELIVERED, partner, key), why)]


async def discard(store: Store, partner: str, key: str, reason: str, who: dict[str, Any]) -> None:
    """Let one go: it will not be told. Why, and who said so, is kept as a Provenance. Raises NotFound, Invalid without a reason."""
    row = await letter(store, partner, key)
    if not reason.strip():
        raise Invalid("Say why it is not to be told: that is kept")
    patient = [{"reference": row["patient"]}] if row.get("patient") else []
    tree = {
        "resourceType": "Provenance",
        "id": stable_id("Provenance", "discarded", partner, key, instant(store.clock())),
        "target": [{"reference": f"{row['type']}/{row['id']}/_history/{row['version']}"}, *patient],
        "recorded": instant(store.clock()),
        "activity": {**concept("discarded", "Not to be delivered"), "text": f"{partner} is not told of it: {reason.strip()}"},
        "agent": [{"who": who}],
    }
    gone: list[Op] = [Put(check_tree(tree)), *await withdraw(store, partner, key, f"It was let go: {reason.strip()}")]
    waiting = f"{row.get('place', '0')}:{key}"
    await store.transact([*gone, SetState(queue(partner), waiting, None)], origin="hub")
