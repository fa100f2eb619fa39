"""Who was shown what of a patient's record. https://www.ecfr.gov/current/title-45/section-164.528 and https://profiles.ihe.net/ITI/BALP"""

from __future__ import annotations

import csv
import io
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

from fhircm.access.audit import TERMS
from fhircm.fhir import json
from fhircm.fhir.query import Cursor, parse_query
from fhircm.fhir.systems import CLIENT, OPERATION
from fhircm.store.resources import Store
from fhircm.store.stored import instant

_ORGANIZATION = (f"{TERMS}/v3-RoleClass", "PROV")
_PEOPLE = frozenset({"IRCP", "AUT"})
_PAGE = "200"
COLUMNS = ("when", "who", "app", "organisation", "purpose", "what", "from")


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One access: `who` is a person if there was one, `app` the client; what they are called where it is known."""

    at: str
    who: str
    app: str
    organization: str
    purpose: str
    what: str
    address: str
    tree: dict[str, Any]  # the AuditEvent, without what it says of other patients


async def disclosures(store: Store, patient: str, since: datetime | None, until: datetime | None) -> list[Disclosure]:
    """All successful accesses to what belongs to a patient, and to the files of exports of everybody, the oldest first.

    Names are those of now.
    """
    ways = ([("patient", f"Patient/{patient}")], [("patient:missing", "true"), ("subtype", f"{OPERATION}|export-file")])
    found = [
        one for way in ways async for one in _found(store, patient, [*way, ("outcome", "0"), ("type", "rest")], since, until)
    ]
    return sorted(found, key=lambda one: one.at)


async def _found(
    store: Store, patient: str, asked: list[tuple[str, str]], since: datetime | None, until: datetime | None
) -> AsyncIterator[Disclosure]:
    asked += [("_sort", "date"), ("_count", _PAGE)]
    asked += [("date", f"ge{instant(since)}")] if since else []
    asked += [("date", f"lt{instant(until)}")] if until else []
    query = parse_query("AuditEvent", asked)
    while True:
        page = await store.search(query)
        found = [_alone(patient, json.loads(one.body)) for one in page.matches]
        names = await names_of(store, [reference for tree in found for reference in _references(tree)])
        for tree in found:
            yield _disclosure(tree, names)
        if page.next is None:
            return
        query = replace(query, cursor=page.next)


async def trail(
    store: Store, asked: Sequence[tuple[str, str]], since: datetime | None, until: datetime | None, cursor: Cursor | None = None
) -> tuple[list[Disclosure], Cursor | None]:
    """A page of what was recorded, the newest first, for who keeps the audit: whole, with refusals. `asked` narrows it: patient, agent …

    The cursor is of the next page.
    """
    within = [("date", f"ge{instant(since)}")] if since else []
    within += [("date", f"lt{instant(until)}")] if until else []
    query = parse_query("AuditEvent", [*asked, *within, ("_sort", "-date"), ("_count", "50")])
    page = await store.search(replace(query, cursor=cursor))
    trees = [json.loads(one.body) for one in page.matches]
    names = await names_of(store, [reference for tree in trees for reference in _references(tree)])
    return [_disclosure(tree, names) for tree in trees], page.next


def as_csv(listed: Sequence[Disclosure]) -> str:
    """The disclosures as a table for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    # What begins like a formula would be one in a spreadsheet: https://owasp.org/www-community/attacks/CSV_Injection
    writer.writerows([f"'{value}" if value[:1] in ("=", "+", "-", "@") else value for value in row(one)] for one in listed)
    return text.getvalue()


def row(one: Disclosure) -> tuple[str, ...]:
    """One access as cells below COLUMNS."""
    return one.at, one.who, one.app, one.organization, one.purpose, one.what, one.address


def bundle(listed: Sequence[Disclosure]) -> dict[str, Any]:
    """The events themselves, as a Bundle, without what they say of other patients."""
    tree: dict[str, Any] = {"resourceType": "Bundle", "type": "collection"}
    entries = [{"resource": one.tree} for one in listed]
    return tree | ({"entry": entries} if entries else {})


def _alone(patient: str, tree: dict[str, Any]) -> dict[str, Any]:
    """An event as this patient may see it: of a request that touched others, too, neither who they are, nor what was asked of them."""
    mine, others = [], False
    for entity in tree.get("entity", []):
        of = entity.get("what", {}).get("reference", "") if entity.get("role", {}).get("code") == "1" else None
        others |= of is not None and of != f"Patient/{patient}"
        if of in (None, f"Patient/{patient}"):
            mine.append(entity)
    if others:
        kept = [_names_only(one) if "query" in one else one for one in mine]
        mine = [one for one in kept if one.get("role", {}).get("code") != "4"]
    return tree | ({"entity": mine} if mine else {})


def _names_only(entity: dict[str, Any]) -> dict[str, Any]:
    """A query without its values, which may name others."""
    place, asked, query = b64decode(entity["query"]).decode(errors="replace").partition("?")
    if not asked:  # which file of an export it was
        return entity
    names = "&".join(dict.fromkeys(part.partition("=")[0] for part in query.split("&") if part))
    return entity | {"query": b64encode(f"{place}?{names}".encode()).decode()}


def _references(tree: dict[str, Any]) -> list[str]:
    return [who["reference"] for agent in tree["agent"] if "reference" in (who := agent.get("who", {}))]


async def names_of(store: Store, references: Sequence[str]) -> dict[str, str]:
    """What people and organisations are called, by their references."""
    wanted = {(type, id) for type, _, id in (one.partition("/") for one in set(references)) if "/" not in id}
    return {f"{type}/{id}": _name(one.tree) for (type, id), one in (await store.read_many(wanted)).items()}


def _name(tree: dict[str, Any]) -> str:
    name = tree.get("name")
    if isinstance(name, str):
        return name
    first = name[0] if name else {}
    return str(
        first.get("text") or " ".join([*first.get("prefix", []), *first.get("given", []), first.get("family", "")]).strip()
    )


def _disclosure(tree: dict[str, Any], names: dict[str, str]) -> Disclosure:
    who = app = organization = address = ""
    for agent in tree["agent"]:
        (coding,) = agent["type"]["coding"]
        known = agent.get("who", {})
        reference, identifier = known.get("reference", ""), known.get("identifier", {})
        if (coding["system"], coding["code"]) == _ORGANIZATION:
            organization = names.get(reference) or reference
        elif coding["code"] in _PEOPLE:
            who = names.get(reference) or reference or identifier.get("value", "")
        elif identifier.get("system") == CLIENT:
            app, address = identifier.get("value", ""), agent.get("network", {}).get("address", "")
    purposes = [coding["code"] for one in tree.get("purposeOfEvent", []) for coding in one["coding"]]
    return Disclosure(tree["recorded"], who, app, organization, ", ".join(purposes), _what(tree), address, tree)


def _what(tree: dict[str, Any]) -> str:
    """In words that a patient may read: what was done, to what."""
    done = tree["subtype"][-1]["code"] if tree.get("subtype") else tree["action"]
    about = []
    for entity in tree.get("entity", []):
        if "query" in entity:
            about.append(unquote_plus(b64decode(entity["query"]).decode(errors="replace")))
        elif entity.get("role", {}).get("code") in ("4", "20"):
            about.append(entity["what"]["reference"].partition("/_history/")[0])
        elif "name" in entity:
            about.append(entity["name"])
    if done == "export-file" and not any(one.get("role", {}).get("code") == "1" for one in tree.get("entity", [])):
        about.append("of everybody")
    return f"{done} {', '.join(dict.fromkeys(about))}".strip()
