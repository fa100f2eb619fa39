"""Mark the hub's copy of what a partner does not have any more: it stays, says so, and a human hears of it when an open Task hangs on it.

https://hl7.org/fhir/R4/resource.html#Meta (tag). A copy that comes back loses the tag, because it is written as the partner sends it.
docs/decisions/what-is-gone-at-its-source-stays.md
"""

from __future__ import annotations

from collections.abc import Collection

from fhircm.exchange import human
from fhircm.exchange.mapping import Source, hub_id
from fhircm.exchange.partners import Partner
from fhircm.fhir import json
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import check
from fhircm.store.resources import Op, Put, Store, Stored

CODE = "gone-at-source"
TAG = {"system": COORDINATION, "code": CODE, "display": "The partner does not have this any more"}
DISPLAY = "Look into what is gone at its source"
_DEPENDED_ON = ("ServiceRequest", "Task", "Encounter")


def marked(stored: Stored) -> Put | None:
    """The copy with its tag; None when it has it."""
    meta = stored.tree["meta"]
    tags = meta.get("tag", [])
    if any((tag.get("system"), tag.get("code")) == (COORDINATION, CODE) for tag in tags):
        return None
    kept = {name: value for name, value in meta.items() if name not in ("versionId", "lastUpdated")}
    body = json.splice(stored.body, {"meta": {**kept, "tag": [*tags, TAG]}})
    return Put(check(body, by_guides=False), if_version=stored.version)


async def told(store: Store, partner: Partner, gone: Collection[Source], owner: str | None) -> list[Op]:
    """What tells a human of what is gone, where an open Task of the hub's hangs on it."""
    operations: list[Op] = []
    for one in sorted(one for one in gone if one.type in _DEPENDED_ON):
        reference = f"{one.type}/{hub_id(partner.base_url, str(one))}"
        page = await store.search(parse_query("Task", [("focus", reference), ("status", ",".join(human.OPEN))]))
        tasks = [task for task in page.matches if not task.tree["meta"].get("source")]
        if tasks:
            reason = f"{partner.organization.name} does not have this {one.type} any more, and a Task that is open hangs on it"
            patient = tasks[0].tree.get("for", {}).get("reference")
            about = {"focus": f"Task/{tasks[0].id}", "patient": patient, "owner": owner}
            operations += await human.tell(store, (CODE, partner.name, str(one)), CODE, DISPLAY, reason, **about)
    return operations


async def came_back(store: Store, partner: Partner, back: Collection[Source]) -> list[Op]:
    """What ends the Tasks that told of what is there again."""
    operations: list[Op] = []
    for one in sorted(one for one in back if one.type in _DEPENDED_ON):
        operations += await human.take_back(store, (CODE, partner.name, str(one)), "The partner has it again")
    return operations
