"""What went to a partner about one record because it was linked to another: nothing of it can be unsent, so a human gets the list.

https://hl7.org/fhir/R4/provenance.html. Read from the Provenance that every delivery leaves (fhircm/exchange/sending.py).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from fhircm.exchange import human
from fhircm.fhir.outcome import NotFound
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import COORDINATION, DELIVERY
from fhircm.store.resources import Store, Stored

SENT, DISPLAY = "delivered", "Delivered to a partner"
_PAGE = 200


async def told_while_linked(store: Store, person: Stored, a: str, b: str) -> list[dict[str, Any]]:
    """Inputs of a Task, one for each delivery about `a` to the partner of `b`, or about `b` to that of `a`, since they were last linked."""
    since = await _linked_since(store, person, a, b)
    if since is None:
        return []
    patients = await store.read_many([("Patient", a), ("Patient", b)])
    bases = {id: stored.tree.get("meta", {}).get("source", "").rpartition("/Patient/")[0] for (_, id), stored in patients.items()}
    found: list[dict[str, Any]] = []
    for about, other in ((a, b), (b, a)):
        if base := bases.get(other):
            found += [one async for one in _deliveries(store, about, base, since)]
    return found


async def _linked_since(store: Store, person: Stored, a: str, b: str) -> datetime | None:
    """When the Person came to link both, the last time that it did."""
    wanted = {f"Patient/{a}", f"Patient/{b}"}
    since = None
    try:
        versions = await store.history("Person", person.id)
    except NotFound:
        return None
    for version in versions:  # the newest first
        linked = not version.deleted and wanted <= {link["target"].get("reference") for link in version.tree.get("link", [])}
        if not linked and since is not None:
            break
        since = version.last_updated if linked else since
    return since


async def _deliveries(store: Store, about: str, base: str, since: datetime) -> Any:
    query = parse_query("Provenance", [("target", f"Patient/{about}"), ("_count", str(_PAGE))])
    while True:
        page = await store.search(query)
        for stored in page.matches:
            tree = stored.tree
            codings = tree.get("activity", {}).get("coding", [])
            if not any(one.get("system") == COORDINATION and one.get("code") == SENT for one in codings):
                continue
            if datetime.fromisoformat(tree["recorded"]) < since.replace(microsecond=0):
                continue
            for entity in tree.get("entity", []):
                what = entity["what"]
                if what.get("identifier", {}).get("system") == DELIVERY and what.get("reference", "").startswith(f"{base}/"):
                    yield {"type": human.concept(SENT, DISPLAY), "valueReference": what}
        if page.next is None:
            return
        query = replace(query, cursor=page.next)
