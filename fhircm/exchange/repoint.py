"""Write a resource for a partner: every reference leads to what the partner has itself, or becomes a name and a number.

https://hl7.org/fhir/R4/references.html#logical. A reference to something that the partner lacks would lead nowhere there, so it is
turned into the identifier and display of what it meant. A Patient is never named so: another's patient is nobody's business.
"""

from __future__ import annotations

from typing import Any

from fhircm.exchange.case import NPI, concept_text, name_of, npi, patient_at, read, source_at
from fhircm.exchange.partners import Partner
from fhircm.fhir.query import parse_query
from fhircm.fhir.references import parse_reference, references
from fhircm.store.resources import Store

_MEMBERS = ("type", "identifier", "display")


async def repoint(store: Store, partner: Partner, tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree for the partner. What refers to nothing that can be said is left out."""
    targets = {reference.url: await target(store, partner, reference.url, "contained" in tree) for reference in references(tree)}
    return rewrite(tree, targets)


async def target(store: Store, partner: Partner, url: str, contained: bool = False) -> dict[str, Any]:
    """The members of a Reference that says the same to the partner; none when nothing can be said."""
    parsed = parse_reference(url, partner.base_url)
    if parsed.kind == "contained":
        return {"reference": url} if contained else {}
    if url.startswith(partner.base_url + "/"):
        return {"reference": url.removeprefix(partner.base_url + "/")}
    if parsed.kind != "local" or not parsed.type or not parsed.id:
        return {}
    stored = (await store.read_many([(parsed.type, parsed.id)])).get((parsed.type, parsed.id))
    if stored is None:
        return {}
    target = stored.tree
    if parsed.type == "Patient":
        there = await patient_at(store, target, partner)
        return {"reference": f"Patient/{there}"} if there else {}
    named = await known_as(store, partner, target)
    if parsed.type == "PractitionerRole" and "display" not in named and (holder := await read(store, target.get("practitioner"))):
        named = await known_as(store, partner, holder)  # a role has no name of its own
    return {"reference": named["reference"]} if "reference" in named else named


async def known_as(store: Store, partner: Partner, tree: dict[str, Any]) -> dict[str, Any]:
    """A Reference to this resource, or to the partner's own record of it, with its name; else one that names it alone."""
    named = logical(tree)
    own = source_at(tree, partner) or await _counterpart(store, partner, tree)
    if own is None:
        return named
    display = {"display": named["display"]} if "display" in named else {}
    return {"reference": f"{tree['resourceType']}/{own}", **display}


async def _counterpart(store: Store, partner: Partner, tree: dict[str, Any]) -> str | None:
    """The partner's own record of the same organisation or practitioner, known by its NPI."""
    number = npi(tree)
    if number is None or tree["resourceType"] not in ("Organization", "Practitioner"):
        return None
    page = await store.search(parse_query(tree["resourceType"], [("identifier", f"{NPI}|{number}")]))
    there = sorted(id for stored in page.matches if (id := source_at(stored.tree, partner)))
    return there[0] if there else None


def logical(tree: dict[str, Any]) -> dict[str, Any]:
    """A Reference that names a resource without leading to it."""
    identifiers = tree.get("identifier", [])
    identifiers = identifiers if isinstance(identifiers, list) else [identifiers]
    numbered = [one for one in identifiers if one.get("system") and one.get("value")]
    best = next((one for one in numbered if one["system"] == NPI), numbered[0] if numbered else None)
    display = name_of(tree) or tree.get("description") or concept_text(tree.get("type"))
    members: dict[str, Any] = {"type": tree["resourceType"]}
    if best:
        members["identifier"] = {"system": best["system"], "value": best["value"]}
    if isinstance(display, str) and display:
        members["display"] = display
    return members if len(members) > 1 else {}


def rewrite(node: Any, targets: dict[str, dict[str, Any]]) -> Any:
    """A copy with every Reference replaced; an element of which nothing is left is left out."""
    if isinstance(node, list):
        return [new for one in node if (new := rewrite(one, targets)) not in ({}, [])]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("reference"), str) and node["reference"] in targets:
        kept = {name: value for name, value in node.items() if name in _MEMBERS}
        new = {**kept, **targets[node["reference"]]}
        return new if new.keys() - {"type"} else {}
    return {name: new for name, value in node.items() if (new := rewrite(value, targets)) not in ({}, [])}
