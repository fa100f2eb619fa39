"""Which patients of a partner have an open loop at the hub: an order, a Task or a visit that is not over, in any record of that human.

https://hl7.org/fhir/R4/person.html (links) and https://hl7.org/fhir/R4/task.html. What counts as open is in mappings/crawl.yaml.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import replace

from fhircm.exchange.mapping import hub_id
from fhircm.exchange.partners import Partner
from fhircm.exchange.plan import rules
from fhircm.fhir.query import parse_query
from fhircm.store.resources import Store, Stored

TOGETHER = 40  # patients in one search: what a parameter may hold is limited
PAGE = "500"


async def open_loops(store: Store, partner: Partner, patients: Sequence[str]) -> frozenset[str]:
    """Those of these patients (ids at the partner) who have an open loop."""
    here = {f"Patient/{hub_id(partner.base_url, f'Patient/{id}')}": id for id in patients}
    whose: dict[str, set[str]] = {reference: {id} for reference, id in here.items()}
    async for person in _of(store, "Person", sorted(here), []):
        links = {link.get("target", {}).get("reference", "") for link in person.tree.get("link", [])}
        ours = {here[link] for link in links & here.keys()}
        for link in links:
            if link.startswith("Patient/"):
                whose.setdefault(link, set()).update(ours)
    found: set[str] = set()
    for type, (status, within) in rules().loops.items():
        asked = [("status", status)]
        if within is not None:
            asked.append(("_lastUpdated", f"ge{(store.clock() - within).strftime('%Y-%m-%dT%H:%M:%SZ')}"))
        async for stored in _of(store, type, sorted(whose), asked):
            for reference in _patients(stored):
                found |= whose.get(reference, set())
    return frozenset(found)


async def _of(store: Store, type: str, patients: Sequence[str], asked: Collection[tuple[str, str]]) -> AsyncIterator[Stored]:
    """The resources of a type of these patients."""
    for start in range(0, len(patients), TOGETHER):
        some = ",".join(patients[start : start + TOGETHER])
        async for stored in _found(store, type, [("patient", some), *asked]):
            yield stored


async def _found(store: Store, type: str, asked: Collection[tuple[str, str]]) -> AsyncIterator[Stored]:
    query = parse_query(type, [*asked, ("_count", PAGE)])
    while True:
        page = await store.search(query)
        for stored in page.matches:
            yield stored
        if page.next is None:
            return
        query = replace(query, cursor=page.next)


def _patients(stored: Stored) -> Iterable[str]:
    tree = stored.tree
    return (str(tree[name].get("reference", "")) for name in ("for", "subject", "patient") if isinstance(tree.get(name), dict))
