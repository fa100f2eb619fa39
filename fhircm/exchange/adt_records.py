"""What an ADT message says of each record, and what the record is when all that was said is put in order.

https://build.fhir.org/ig/HL7/v2-to-fhir. Every element has the time of the message that said it last, so a late message never overrides a
newer one, and the order in which messages come makes no difference. Status, period and locations of an Encounter follow from all its events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from fhircm.exchange.adt_map import AdtMap, ElementMap, ResourceMap
from fhircm.exchange.hl7v2 import DELETE, Message, part
from fhircm.exchange.hl7v2_types import CONVERSIONS, V2, Around, cx
from fhircm.exchange.map_rules import Notes, Unmapped
from fhircm.exchange.pages import Received
from fhircm.fhir import json

Tree = dict[str, Any]
Stamp = list[str]  # when it was recorded, when it was sent (UTC), and the control id, so that no two are equal
EVENTS = 200  # of one Encounter that are remembered
MESSAGES = 200  # of one patient


@dataclass
class Said:
    """What a message says of one record: by path; None: it is to be deleted. A path ends with #key for one of a list."""

    map: ResourceMap
    key: str  # what tells it from others of its type: "" for Patient and Encounter
    elements: dict[str, Any] = field(default_factory=dict)


def said(message: Message, adt: AdtMap, around: Around, notes: Notes, *, patient_only: bool) -> list[Said]:
    """What the message says of every record. Raises MappingFailed."""
    found: dict[tuple[str, str], Said] = {}
    for one in adt.resources:
        if patient_only and one.type in ("Encounter", "Condition"):
            continue
        for segment in message.all(one.segment)[: 1 if one.type in ("Patient", "Encounter") else None]:
            fields = [repr(message.field(segment, number)) for number in one.known_by]
            if (one.known_by and not any(field != "[]" for field in fields)) or not all(
                message.field(segment, n) for n in one.needs
            ):
                continue
            key = sha256("|".join(fields).encode()).hexdigest()[:24] if one.known_by else ""
            found[one.type, key] = _said(message, segment, one, key, adt, around, notes)
    return list(found.values())


def _said(message: Message, segment: Any, one: ResourceMap, key: str, adt: AdtMap, around: Around, notes: Notes) -> Said:
    tree: Tree = {"resourceType": one.type, "id": "x"}
    deleted: list[str] = []
    for element in one.elements:
        repetitions = message.field(segment, element.field)
        if repetitions == [[[DELETE]]]:
            deleted.append(element.element)
            continue
        values = [value for each in repetitions if (value := _converted(each, element, one.type, around, notes)) is not None]
        if values:
            _put(tree, element, values)
            deleted += element.instead_of
    body = json.dumps(tree)
    mapped = json.loads(adt.maps.inbound(Received(one.type, "x", body), notes).body)
    elements: dict[str, Any] = dict.fromkeys(deleted)
    keyed = {element.element: element.key for element in one.elements if element.key is not None}
    nested = {element.element.split(".")[0] for element in one.elements if "." in element.element}
    for name, value in mapped.items():
        if name in ("resourceType", "id", "meta"):
            continue
        if name in keyed:
            elements |= {f"{name}#{_key(each, keyed[name])}": each for each in value}
        elif name in nested and isinstance(value, dict):
            elements |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            elements[name] = value
    return Said(one, key, elements)


def _key(item: Tree, members: tuple[str, ...] | None) -> str:
    return json.canonical({member: item.get(member) for member in members or ()}).decode()


def _converted(repetition: Any, element: ElementMap, type: str, around: Around, notes: Notes) -> Any:
    if element.kind == "CodeableConcept":
        value: Any = CONVERSIONS["CodeableConcept"](repetition, around, element.table)
    elif element.kind in ("Coding", "code"):
        value = _code(part(repetition, 1), element, type, notes)
    else:
        value = CONVERSIONS[element.kind](repetition, around)
    return value if value is None or element.template is None else _filled(element.template, value)


def _code(code: str, element: ElementMap, type: str, notes: Notes) -> Any:
    """By the ConceptMap; a Coding that it does not know stays the local one, a code that FHIR does not know is not set. Both are told."""
    system = f"{V2}{element.table}"
    if not code:
        return None
    found = element.translator.there((system, code)) if element.translator else None
    if found is None and element.translator is not None:
        notes.unmapped[Unmapped(type, f"{type}.{element.element}", system, code)] += 1
    if element.kind == "code":
        return found.coding["code"] if found else None if element.translator else code
    return dict(found.coding) if found else {"system": system, "code": code}


def _filled(template: Any, value: Any) -> Any:
    if template == "{value}":
        return value
    if isinstance(template, dict):
        return {name: _filled(one, value) for name, one in template.items()}
    return [_filled(one, value) for one in template] if isinstance(template, list) else template


def _put(tree: Tree, element: ElementMap, values: list[Any]) -> None:
    *holders, name = element.element.split(".")
    for holder in holders:
        tree = tree.setdefault(holder, {})
    if element.repeats:
        tree[name] = [*tree.get(name, []), *values]
    else:
        tree[name] = values[0]


def numbers(message: Message, adt_field: tuple[str, int], types: tuple[str, ...], around: Around) -> list[Tree]:
    """The identifiers in a field, the one by which the record is known first."""
    found = [
        one
        for segment in message.all(adt_field[0])[:1]
        for each in message.field(segment, adt_field[1])
        if (one := cx(each, around))
    ]
    usable = [one for one in found if "system" in one]

    def rank(one: Tree) -> int:
        type = one.get("type", {}).get("coding", [{}])[0].get("code")
        return types.index(type) if type in types else len(types)

    return sorted(usable, key=rank)


# --- putting it in order -----------------------------------------------------------------------------------------------------


def taken(record: Tree, elements: Mapping[str, Any], stamp: Stamp) -> dict[str, tuple[Any, Any]]:
    """What changes in a record by a message, which is noted in it: path → what it is now, and what a message had said before."""
    known, changes = record.setdefault("elements", {}), dict[str, tuple[Any, Any]]()
    for path, value in elements.items():
        before = known.get(path)
        whole = known.get(path.partition("#")[0]) if "#" in path else None
        if (before is not None and stamp <= before[0]) or (whole is not None and stamp <= whole[0]):
            continue
        known[path] = [stamp, value]
        changes[path] = (value, before[1] if before else None)
        if value is None and "#" not in path:  # a whole list; what was said of it later stays
            for other in [one for one in known if one.startswith(f"{path}#")]:
                if known[other][0] > stamp:
                    changes[other] = (known[other][1], None)
                else:
                    del known[other]
    return changes


def happened(record: Tree, event: list[Any], adt: AdtMap) -> dict[str, tuple[Any, Any]]:
    """What changes in an Encounter by an event: [stamp, trigger, location, start, end]."""
    events = record.setdefault("events", [])
    before = _course(events, adt)
    events.append(event)
    events.sort(key=lambda one: one[0])
    del events[:-EVENTS]
    after = _course(events, adt)
    return {path: (after.get(path), before.get(path)) for path in {**before, **after} if after.get(path) != before.get(path)}


def _course(events: list[list[Any]], adt: AdtMap) -> dict[str, Any]:
    """What became of an Encounter by all its events, in the order in which they happened."""
    undone: set[int] = set()
    for number, (_, trigger, *_rest) in enumerate(events):
        cancels = adt.events[trigger].cancels if trigger in adt.events else ()
        earlier = (one for one in range(number - 1, -1, -1) if one not in undone and events[one][1] in cancels)
        undone.add(next(earlier, -1))
    found: dict[str, Any] = {}
    places: list[Tree] = []
    for number, (stamp, trigger, location, start, end) in enumerate(events):
        rule = adt.events.get(trigger)
        if rule is None or number in undone:
            continue
        if rule.status is not None:
            found["status"] = rule.status
            found.pop("period.end", None)
        if start is not None or (rule.begins and "period.start" not in found):
            found["period.start"] = start or stamp[0]
        if rule.ends or end is not None:
            found["period.end"] = end or stamp[0]
        if location is not None and (not places or places[-1]["location"] != location):
            if places:
                places[-1] = {**places[-1], "status": "completed", "period": {**places[-1]["period"], "end": stamp[0]}}
            places.append({"location": location, "status": "active", "period": {"start": stamp[0]}})
    if places:
        if found.get("status") in ("finished", "cancelled"):
            places[-1] = {**places[-1], "status": "completed"}
        found["location"] = places
    return found


def applied(tree: Tree, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Change a resource: what is not named stays, and so does what says the same and more."""
    for path, (value, before) in sorted(changes.items(), key=lambda one: ("#" in one[0], one[1][0] is not None)):
        name, sharp, _ = path.partition("#")
        *holders, last = name.split(".")
        holder = tree
        for inner in holders:
            holder = holder.setdefault(inner, {})
        if sharp:
            _set_item(holder, last, path, value, before)
        elif value is None:
            holder.pop(last, None)
            holder.pop(f"_{last}", None)
        elif not _says(holder.get(last), value) or holder.get(last) == before:
            holder[last] = value
        if holders and not tree.get(holders[0]):
            del tree[holders[0]]


def _set_item(holder: Tree, name: str, path: str, value: Any, before: Any) -> None:
    listed = list(holder.get(name, []))
    key = json.loads(path.partition("#")[2].encode())
    at = next((number for number, one in enumerate(listed) if all(one.get(member) == told for member, told in key.items())), None)
    if at is None:
        listed.append(value)
    elif listed[at] == before or not _says(listed[at], value):
        listed[at] = value
    holder[name] = listed


def _says(known: Any, new: Any) -> bool:
    """Whether what is known says what is new, and perhaps more."""
    if isinstance(known, dict) and isinstance(new, dict):
        return all(name in known and _says(known[name], value) for name, value in new.items())
    if isinstance(known, list) and isinstance(new, list):
        return all(any(_says(one, other) for one in known) for other in new)
    return bool(known == new)
