"""Whether a patient's consents let the hub tell a partner of something.

https://hl7.org/fhir/R4/consent.html and docs/explanation/access.md: the same rules by which people see the record
(fhircm/fhir/disclosure.py), for the partner's organisation as who looks. What cannot be told apart is read in the patient's favour.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.exchange.case import NPI
from fhircm.exchange.partners import Partner
from fhircm.fhir.consent_rules import ConsentRule, consent_rules
from fhircm.fhir.disclosure import Disclosure, may_tell
from fhircm.fhir.query import parse_query
from fhircm.fhir.references import parse_reference, references
from fhircm.store.resources import Store, Stored


async def disclosure(store: Store, partner: Partner, patient: dict[str, Any] | None, now: datetime) -> Disclosure:
    """What the consents of this human, on any of their records, say of the partner's organisation."""
    return await _disclosure(store, partner.organization.npi, None, patient, now)


async def disclosure_to(store: Store, organization: Stored | None, patient: dict[str, Any] | None, now: datetime) -> Disclosure:
    """The same of any organisation; of one that is not known, what they say of everybody."""
    numbers = (
        [one.get("value") for one in organization.tree.get("identifier", []) if one.get("system") == NPI] if organization else []
    )
    return await _disclosure(store, next(iter(numbers), None), organization, patient, now)


async def _disclosure(
    store: Store, npi: str | None, organization: Stored | None, patient: dict[str, Any] | None, now: datetime
) -> Disclosure:
    consents: list[tuple[ConsentRule, ...]] = []
    for reference in await records(store, patient):
        page = await store.search(parse_query("Consent", [("patient", reference), ("status", "active")]))
        consents += [tuple(rules) for stored in page.matches if (rules := consent_rules(stored.tree))]
    known_as = await _known_as(store, npi) if consents and npi else frozenset()
    if organization is not None:
        known_as |= {f"Organization/{organization.id}"}
    return Disclosure(tuple(consents), known_as, int(now.timestamp() * 1_000_000))


async def records(store: Store, patient: dict[str, Any] | None) -> list[str]:
    """The records of the same human, as local references: this one, and those that an active Person links to it."""
    if patient is None:
        return []
    own = f"Patient/{patient['id']}"
    page = await store.search(parse_query("Person", [("patient", own)]))
    persons = [person.tree for person in page.matches if person.tree.get("active")]
    linked = {link["target"].get("reference", "") for person in persons for link in person.get("link", [])}
    return sorted({own, *(one for one in linked if one.startswith("Patient/"))})


async def _known_as(store: Store, npi: str) -> frozenset[str]:
    page = await store.search(parse_query("Organization", [("identifier", f"{NPI}|{npi}")]))
    return frozenset(f"Organization/{stored.id}" for stored in page.matches)


async def without_withheld(store: Store, disclosure: Disclosure | None, tree: dict[str, Any]) -> dict[str, Any]:
    """A copy without references to what is kept back: what a reference displays tells of it, too."""
    parsed = {reference.url: parse_reference(reference.url) for reference in references(tree)}
    keys = {url: (one.type, one.id) for url, one in parsed.items() if one.kind == "local" and one.type and one.id}
    found = await store.read_many(keys.values())
    hidden = {url for url, key in keys.items() if key in found and not may_tell(disclosure, found[key].tree)}
    return _without(tree, hidden) if hidden else tree


def _without(node: Any, hidden: set[str]) -> Any:
    if isinstance(node, list):
        return [new for one in node if (new := _without(one, hidden)) not in ({}, [])]
    if not isinstance(node, dict):
        return node
    if node.get("reference") in hidden:
        return {}
    return {name: new for name, value in node.items() if (new := _without(value, hidden)) not in ({}, [])}
