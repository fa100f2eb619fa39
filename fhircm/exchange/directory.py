"""Which entries of the partners are of one organisation, practitioner, place or role: by NPI first, by name with address and telephone else.

https://hl7.org/fhir/R4/organization.html, practitioner.html, practitionerrole.html and location.html;
https://www.cms.gov/regulations-and-guidance/administrative-simplification/nationalprovidentstand. A name alone links nothing. What is known
is kept as facts, so that nobody searches for it again: an entry's entity, and the entries of each entity. A human answers a
`directory-match` Task as they answer one about two Patients. Words and limits are in mappings/identity.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rapidfuzz.fuzz import token_sort_ratio

from fhircm.exchange import human
from fhircm.exchange.candidates import escape
from fhircm.exchange.features import place, spellings, tables, telephone
from fhircm.exchange.partners import Partner
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import COORDINATION
from fhircm.store.changes import Change
from fhircm.store.resources import Op, SetState, Store, Stored

TYPES = ("Organization", "Practitioner", "PractitionerRole", "Location")
ENTRIES, ENTITIES = "directory", "directory-entity"  # namespaces: entry -> entity, and entity/entry -> where it is
CODE, DISPLAY = "directory-match", "Decide whether two entries are of one organisation, place or practitioner"
NPI = "http://hl7.org/fhir/sid/us-npi"
_FEW = 20  # candidates of one search
_ROLES = 500  # of one practitioner, or at one organisation, that are noted when it is

Tree = dict[str, Any]


async def enlist(store: Store, change: Change, *, owner: str | None = None) -> list[Op]:
    """Reaction to an Organization, Practitioner, PractitionerRole or Location of a partner, and to a human's decision (Task): note whose entry it is."""
    if change.type == "Task":
        changed = await _decided(store, change.id)
    else:
        changed = [(change.type, change.id)]
    operations: list[Op] = []
    for identity in changed:
        stored = (await store.read_many([identity])).get(identity)
        noted = await _noted(store, identity, stored)
        operations += noted
        if noted and identity[0] in ("Practitioner", "Organization"):
            operations += await _roles(store, identity, noted)
        if stored is not None and _base(stored.tree) and stored.type != "PractitionerRole":
            operations += await _others(store, stored, owner)
    return operations


async def at_partner(store: Store, tree: Tree, partner: Partner) -> str | None:
    """The id at the partner of its own entry for the same organisation, practitioner, place or role; None when it has none that is known."""
    row = await store.state(ENTRIES, f"{tree['resourceType']}/{tree['id']}")
    entity = row["entity"] if row else _by_number(tree)
    if entity is None:
        return None
    entries = await store.states(ENTITIES, f"{entity}/")
    there = sorted(entry["id"] for entry in entries.values() if entry["base"] == partner.base_url)
    return there[0] if there else None


def number(tree: Tree) -> str | None:
    """The NPI of an entry."""
    return next((one.get("value") for one in tree.get("identifier", []) if one.get("system") == NPI), None)


def _by_number(tree: Tree) -> str | None:
    npi = number(tree)
    return f"{tree['resourceType']}:npi:{npi}" if npi else None


def _base(tree: Tree) -> str:
    """The base URL of the partner whose entry it is; nothing for one of the hub's own."""
    return tree.get("meta", {}).get("source", "").rpartition(f"/{tree['resourceType']}/")[0]


async def _noted(store: Store, identity: tuple[str, str], stored: Stored | None, new: dict[str, Any] | None = None) -> list[Op]:
    """The facts about one entry as they must be; `new` are facts that will be written with these."""
    entry = "/".join(identity)
    before = await store.state(ENTRIES, entry)
    tree = stored.tree if stored else None
    entity = await _entity(store, tree, new or {}) if tree and _base(tree) else None
    if entity == (before["entity"] if before else None):
        return []
    gone = [SetState(ENTITIES, f"{before['entity']}/{entry}", None)] if before else []
    if entity is None or tree is None:
        return [*gone, SetState(ENTRIES, entry, None)]
    where = {"base": _base(tree), "id": tree["meta"]["source"].rpartition("/")[2]}
    return [*gone, SetState(ENTRIES, entry, {"entity": entity}), SetState(ENTITIES, f"{entity}/{entry}", where)]


async def _entity(store: Store, tree: Tree, new: dict[str, Any]) -> str | None:
    """Whose entry it is: by its number, by that of an entry which is surely of the same, or its own."""
    if tree["resourceType"] == "PractitionerRole":
        return await _role(store, tree, new)
    if entity := _by_number(tree):
        return entity
    sure = [other for other in await _candidates(store, tree) if await _same(store, tree, other) is True]
    if not sure:
        return f"{tree['resourceType']}:{tree['id']}"
    numbered = sorted({entity for other in sure if (entity := _by_number(other))})
    if len(numbered) > 1:
        return f"{tree['resourceType']}:{tree['id']}"  # of two that are not the same
    return numbered[0] if numbered else f"{tree['resourceType']}:{min(tree['id'], *(other['id'] for other in sure))}"


async def _roles(store: Store, identity: tuple[str, str], noted: list[Op]) -> list[Op]:
    """The facts about the roles of a practitioner or at an organisation of which something new was noted."""
    new = {one.key: one.value for one in noted if isinstance(one, SetState) and one.namespace == ENTRIES}
    parameters = [(identity[0].lower(), "/".join(identity)), ("_count", str(_ROLES))]
    page = await store.search(parse_query("PractitionerRole", parameters))
    return [one for stored in page.matches for one in await _noted(store, (stored.type, stored.id), stored, new)]


async def _role(store: Store, role: Tree, new: dict[str, Any]) -> str | None:
    """A role is a practitioner at an organisation with a code or specialty; what is not known of it is no one's."""
    parts = []
    for element in ("practitioner", "organization"):
        entry = role.get(element, {}).get("reference", "")
        row = new[entry] if entry in new else await store.state(ENTRIES, entry)
        if row is None:
            return None
        parts.append(row["entity"])
    codes = sorted(
        {
            f"{coding.get('system', '')}|{coding['code']}"
            for concept in [*role.get("code", []), *role.get("specialty", [])]
            for coding in concept.get("coding", [])
            if coding.get("code")
        }
    )
    return "PractitionerRole:" + human.stable_id(*parts, *codes)


# --- without a number --------------------------------------------------------------------------------------------------------


async def _candidates(store: Store, tree: Tree) -> list[Tree]:
    """Entries of other partners of a like name: few, whatever the directory holds."""
    words = [_folded(name) for name in _names(tree)]
    first = words[0].split() if words and words[0] else []
    if not first:
        return []
    type = tree["resourceType"]
    parameter = "family" if type == "Practitioner" else "name"
    page = await store.search(
        parse_query(type, [(parameter, escape(first[-1] if type == "Practitioner" else first[0])), ("_count", str(_FEW))])
    )
    return [
        other for stored in page.matches if (other := stored.tree)["id"] != tree["id"] and _base(other) not in ("", _base(tree))
    ]


async def _same(store: Store, one: Tree, other: Tree) -> bool | None:
    """Whether two entries are of the same: surely, surely not, or None for a human."""
    task, _ = await human.latest(store, CODE, *_pair(one, other))
    if task is not None and (said := _answer(task.tree)):
        return said == "same"
    numbers = {number(one), number(other)} - {None}
    limits = tables()["directory"]
    if (
        len(numbers) > 1
        or max((token_sort_ratio(a, b) for a in map(_folded, _names(one)) for b in map(_folded, _names(other))), default=0)
        < limits["name"]
    ):
        return False
    agree = sum(bool(ours & theirs) for ours, theirs in zip(_around(one), _around(other), strict=True))
    if one["resourceType"] == "Practitioner":
        return None if agree else False  # a name and a telephone are of many in one practice
    return True if agree >= limits["link"] else None if agree >= limits["ask"] else False


def _pair(one: Tree, other: Tree) -> tuple[str, str]:
    first, second = sorted(f"{tree['resourceType']}/{tree['id']}" for tree in (one, other))
    return first, second


def _names(tree: Tree) -> list[str]:
    name = tree.get("name", [])
    if isinstance(name, str):
        return [name, *tree.get("alias", [])]
    return [" ".join([*one.get("given", []), one.get("family", "")]).strip() for one in name]


def _folded(name: str) -> str:
    words = [min(spelled) for word in re.split(r"[\s,.;/&()\-]+", name) if (spelled := spellings(word))]
    left_out = set(tables()["directory"]["words"])
    return " ".join([word for word in words if word not in left_out] or words)


def _around(tree: Tree) -> tuple[set[Any], set[Any]]:
    addresses = tree.get("address", [])
    addresses = addresses if isinstance(addresses, list) else [addresses]
    points = [
        point
        for point in tree.get("telecom", [])
        if point.get("value") and point.get("system") in ("phone", "fax", "email", "url")
    ]
    phones = {telephone(point) or point["value"].casefold() for point in points}
    return {found for address in addresses if (found := place(address))}, phones


async def _others(store: Store, stored: Stored, owner: str | None) -> list[Op]:
    """What a changed entry means for those like it: they are of its entity now, or a human is asked."""
    operations: list[Op] = []
    tree = stored.tree
    for other in await _candidates(store, tree):
        same = await _same(store, tree, other)
        pair = _pair(tree, other)
        if same is None:
            reason = "The names agree, and not enough besides: address, telephone or number"
            operations += await human.tell(store, (CODE, *pair), CODE, DISPLAY, reason, focus=pair[0], patient=None, owner=owner)
            continue
        operations += await human.take_back(store, (CODE, *pair), "It settled itself")
        identity = (other["resourceType"], other["id"])
        operations += await _noted(store, identity, (await store.read_many([identity])).get(identity))
    return operations


async def _decided(store: Store, task: str) -> list[tuple[str, str]]:
    stored = (await store.read_many([("Task", task)])).get(("Task", task))
    if stored is None or _answer(stored.tree) is None:
        return []
    type, _, id = stored.tree.get("focus", {}).get("reference", "").partition("/")
    return [(type, id)] if type in TYPES else []


def _answer(task: Tree) -> str | None:
    codings: Iterable[Tree] = task.get("code", {}).get("coding", [])
    if task["status"] != "completed" or not any(one.get("system") == COORDINATION and one.get("code") == CODE for one in codings):
        return None
    return next((entry["valueCode"] for entry in task.get("output", []) if entry.get("valueCode") in ("same", "different")), None)
