"""What is held back is kept as it came, counted, and forgotten in the transaction that says so."""

from datetime import timedelta

import pytest

from fhircm.fhir.outcome import Conflict
from fhircm.store.resources import Hold, LetGo, SetState

BODY = b'{"resourceType": "Patient",  "bad": \xff}'


def hold(name, body=BODY, kind="invalid", partner="north"):
    return Hold(partner, name, kind, "d1", "Patient.bad: is not an element", body, "Patient/1")


async def test_it_is_kept_byte_for_byte_and_counts_how_often_it_came(store, other, clock):
    began = clock()
    await store.transact([hold("Patient/1")], origin="partner:north")
    clock.advance(timedelta(hours=1))
    await other.transact([hold("Patient/1", BODY + b" ", "misplaced")], origin="partner:north")
    (held,) = await store.held_page("north")
    assert (held.name, held.kind, held.batch, held.times) == ("Patient/1", "misplaced", "Patient/1", 2)
    assert (held.first_seen, held.last_seen) == (began, clock())
    assert await store.held_body("north", "Patient/1") == BODY + b" "
    assert await store.held_body("south", "Patient/1") is None


async def test_it_commits_with_what_goes_with_it_or_not_at_all(store):
    await store.transact([SetState("done", "x", {})], origin="hub")
    with pytest.raises(Conflict):
        await store.transact([hold("Patient/1"), SetState("done", "x", {}, if_absent=True)], origin="hub")
    assert await store.held_page() == []
    await store.transact([hold("Patient/1"), hold("Patient/2")], origin="hub")
    await store.transact([LetGo("north", "Patient/1"), LetGo("north", "Patient/9")], origin="hub")
    assert set(await store.held("north", ["Patient/1", "Patient/2"])) == {"Patient/2"}


async def test_it_is_listed_in_pages_by_partner_and_kind(store):
    await store.transact(
        [hold(f"Task/{n}", kind="ab"[n % 2]) for n in range(5)] + [hold("Task/0", partner="south")], origin="hub"
    )
    first = await store.held_page(limit=4)
    rest = await store.held_page(after=(first[-1].partner, first[-1].name), limit=4)
    assert [(one.partner, one.name) for one in first + rest] == [*(("north", f"Task/{n}") for n in range(5)), ("south", "Task/0")]
    assert [one.name for one in await store.held_page("north", "b")] == ["Task/1", "Task/3"]
    assert await store.held_counts("north") == {"a": 3, "b": 2}
