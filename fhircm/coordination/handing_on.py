"""A whole caseload handed over: each batch all or nothing, and whoever asks again goes on with what is left.

https://hl7.org/fhir/R4/task.html
"""

from __future__ import annotations

from typing import Any

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination import away
from fhircm.coordination.build import concept, instant, new
from fhircm.coordination.caseload import OPEN
from fhircm.coordination.changing_hands import message_id
from fhircm.coordination.claiming import giver, handed_over
from fhircm.coordination.claims import person
from fhircm.coordination.context import Record, any_of
from fhircm.coordination.people import named
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.outcome import VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Put, Stored

Tree = dict[str, Any]
BATCH = 200
_ATTEMPTS = 5  # of a batch of which somebody wrote a Task meanwhile


async def handed_on(store: GuardedStore, practitioner: str, to: Tree, note: str) -> int:
    """Hand every open Task that a Practitioner owns to somebody, as far as the caller sees them; returns how many.

    Raises InvalidValue, Forbidden, Claimed, VersionConflict. The receiver is told once.
    """
    record = Record(store)
    who = f"Practitioner/{practitioner}"
    await store.read("Practitioner", practitioner)
    names = [who, *(f"PractitionerRole/{one.id}" for one in await away.roles_of(record, who))]
    found = parse_reference(to.get("reference", ""))
    receiver = await record.get(str(found.type), str(found.id)) if found.kind == "local" and person(to) else None
    if receiver is None or to["reference"] in names:
        raise InvalidValue("'to' is a reference to somebody else who is known here, for example Practitioner/123")
    to = await named(record, receiver)
    done, told = 0, False
    for attempt in range(_ATTEMPTS):
        try:
            while batch := await _next(store, names):
                await _write(store, batch, who, to, note, told=told)
                done, told = done + len(batch), True
            return done
        except VersionConflict:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


async def _next(store: GuardedStore, names: list[str]) -> list[Stored]:
    owned = [("owner", any_of(names)), ("status", any_of(OPEN)), ("_source:missing", "true")]
    page = await store.search(parse_query("Task", [*owned, ("_sort", "_id"), ("_count", str(BATCH))]))
    return page.matches


async def _write(store: GuardedStore, batch: list[Stored], who: str, to: Tree, note: str, *, told: bool) -> None:
    now = store.now
    writes = [handed_over(one, to, giver(store), note, now) for one in batch]
    needs = [("u", "Task")]
    if not told:
        writes.append(_message(message_id(who, to["reference"], instant(now)), to, giver(store), note, instant(now)))
        needs.append(("c", "Communication"))
    await store.transact(writes, needs)


def _message(id: str, to: Tree, by: Tree | None, note: str, at: str) -> Put:
    """What the receiver is told, once for all of it. It is on its way (in-progress) until somebody says that it arrived."""
    return new(
        {
            "resourceType": "Communication",
            "id": id,
            "status": "in-progress",
            "topic": concept("hand-over"),
            "sent": at,
            "recipient": [to],
            "sender": by,
            "payload": [{"contentString": f"A caseload was handed over to you: its tasks are on your work list. {note}"}],
        }
    )
