"""The Patients that are one human: linked to each other, or members of one Person.

https://hl7.org/fhir/R4/patient.html#linking and https://hl7.org/fhir/R4/person.html. The hub keeps a Patient for each partner;
fhircm/exchange/identity.py joins them by a Person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fhircm.access.guarded_store import GuardedStore
from fhircm.fhir.conditions import AnyOf, IdTest, Matches, TargetTest
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.query import Query

LIMIT = 100  # Patients who are linked to those asked for
_FOUND = 1000  # that link to them


class TooManyLinked(FhirError):
    """So many Patients are linked that they are nobody's record."""

    status, code = 403, "too-costly"


async def joined(store: GuardedStore, ids: Sequence[str]) -> list[set[str]]:
    """These Patients and all that are linked to them, in groups of one human each. Links to what the caller may not see are not followed.

    Raises TooManyLinked.
    """
    together = {id: {id} for id in ids}
    waiting = list(ids)
    while waiting:
        pairs = await _linked(store, waiting)
        waiting = []
        for one, other in pairs:
            waiting += [id for id in (one, other) if id not in together]
            _join(together, one, other)
        if len(together) > LIMIT + len(ids):
            raise TooManyLinked(f"More than {LIMIT} Patients are linked with each other here")
        waiting = sorted(set(waiting))
    distinct = {id(group): group for group in together.values()}
    return list(distinct.values())


def _join(together: dict[str, set[str]], one: str, other: str) -> None:
    group = together.setdefault(one, {one}) | together.setdefault(other, {other})
    for member in group:
        together[member] = group


async def _linked(store: GuardedStore, ids: Sequence[str]) -> list[tuple[str, str]]:
    """The links of these Patients, in both directions."""
    if not store.principal.may("s", "Patient"):
        return []
    tests = tuple(TargetTest(id, ("Patient",)) for id in ids)
    around = AnyOf((Matches("Patient", "_id", tuple(map(IdTest, ids))), Matches("Patient", "link", tests)))
    patients = await store.search(Query("Patient", (around,), count=_FOUND))
    pairs = [(one.id, other) for one in patients.matches for other in _patients(one.tree.get("link", []), "other")]
    if store.principal.may("s", "Person"):
        persons = await store.search(Query("Person", (Matches("Person", "patient", tests),), count=_FOUND))
        for person in persons.matches:
            tree = person.tree
            members = _patients(tree.get("link", []), "target") if tree.get("active", True) else []
            pairs += [(members[0], other) for other in members[1:]]
    return pairs


def _patients(links: Iterable[dict[str, Any]], element: str) -> list[str]:
    targets = (link.get(element, {}).get("reference", "") for link in links)
    return [target.removeprefix("Patient/") for target in targets if target.startswith("Patient/")]
