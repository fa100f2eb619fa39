"""Patient/[id]/$timeline: what happened to a patient, in order, across organisations, each with its source.

https://hl7.org/fhir/R4/provenance.html. docs/reference/coordination-operations-worklist.md
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fhircm.coordination.timeline import Entry, timeline
from fhircm.fhir.conditions import InvalidValue
from fhircm.fhir.definitions import definitions
from fhircm.fhir.query import MAX_COUNT
from fhircm.fhir.ranges import date_range
from fhircm.operations.call import Answer, Call, parameters
from fhircm.store.stored import instant, moment

_COUNT = 100


async def story(call: Call) -> Answer:
    """A page of the timeline. Raises Forbidden, NotFound, InvalidValue, Malformed."""
    assert call.id is not None
    place = f"Patient/{call.id}/$timeline"
    given, after = [(one.name, str(one.value)) for one in call.arguments], None
    if (token := call.one("_page")) is not None:
        given, state = call.links.read(place, token)
        after = tuple(state["after"])
    call.store.principal.require("r", "Patient")
    since, until = (_moment(given, name) for name in ("since", "until"))
    types = _types(given)
    organizations = [value for name, value in given if name == "organization"]
    count = min(int(dict(given).get("_count", _COUNT)), MAX_COUNT)
    if count < 1:
        raise InvalidValue("'_count' takes a whole number of 1 or more")
    told = [
        one
        for one in await timeline(call.store, call.id, since=since, until=until)
        if (not types or one.reference.split("/")[0] in types) and (not organizations or _of(one, organizations))
    ]
    rest = [one for one in told if after is None or one.place > after]
    shown = rest[:count]
    said: list[dict[str, Any]] = [{"name": "entry", "part": _parts(one)} for one in shown]
    said.append({"name": "undated", "valueInteger": sum(one.at is None for one in told)})
    if len(rest) > count:
        page = call.links.write(place, given, {"after": shown[-1].place})
        said.append({"name": "next", "valueUri": f"{call.base_url}/{place}?_page={page}"})
    return parameters(*said)


def _moment(given: list[tuple[str, str]], name: str) -> datetime | None:
    try:
        return next((moment(date_range(value)[0]) for one, value in given if one == name), None)
    except (ValueError, OverflowError):
        raise InvalidValue(f"'{name}' takes a date or time such as 2024-05-17 or 2024-05-17T09:30:00Z") from None


def _types(given: list[tuple[str, str]]) -> set[str]:
    types = {type for name, value in given if name == "type" for type in value.split(",")}
    if unknown := sorted(types - definitions().resource_types):
        raise InvalidValue(f"'type' names '{unknown[0][:64]}', which is not a resource type of FHIR R4")
    return types


def _of(entry: Entry, organizations: list[str]) -> bool:
    return any((one or {}).get("reference") in organizations for one in (entry.organization, entry.actor))


def _parts(entry: Entry) -> list[dict[str, Any]]:
    """An entry as the parts of a parameter."""
    listed = [
        ("when", "DateTime", entry.written),
        ("at", "Instant", instant(entry.at) if entry.at else None),
        ("precision", "Code", entry.precision or "none"),
        ("what", "String", entry.what),
        ("who", "String", entry.who),
        ("actor", "Reference", entry.actor),
        ("organization", "Reference", entry.organization),
        ("about", "Reference", {"reference": entry.reference}),
        ("source", "Uri", entry.source),
        ("told-by", "Reference", {"reference": entry.told_by}),
    ]
    return [{"name": name, f"value{type}": value} for name, type, value in listed if value]
