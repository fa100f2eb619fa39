"""Data types of HL7 v2 as those of FHIR, as HL7's own guide has them.

https://build.fhir.org/ig/HL7/v2-to-fhir/datatype_maps.html. Each function takes one repetition of a field; None: nothing can be made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.exchange.hl7v2 import Repetition, fhir_time, part

Tree = dict[str, Any]
V2 = "http://terminology.hl7.org/CodeSystem/v2-"
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "I10": "http://hl7.org/fhir/sid/icd-10-cm",
    "I10C": "http://hl7.org/fhir/sid/icd-10-cm",
    "CDCREC": "urn:oid:2.16.840.1.113883.6.238",
    "NPI": "http://hl7.org/fhir/sid/us-npi",
}
_NAME_USE = {"L": "official", "D": "usual", "M": "maiden", "N": "nickname", "A": "anonymous", "T": "temp", "B": "official"}
_ADDRESS_USE = {"H": "home", "B": "work", "O": "work", "C": "temp", "BA": "old"}
_TELECOM_USE = {"PRN": "home", "ORN": "home", "WPN": "work", "VHN": "home", "PRS": "mobile"}
_TELECOM_SYSTEM = {
    "PH": "phone",
    "CP": "phone",
    "FX": "fax",
    "BP": "pager",
    "Internet": "email",
    "NET": "email",
    "X.400": "email",
}


@dataclass(frozen=True, slots=True)
class Around:
    """What a conversion needs to know besides: the systems of assigning authorities, and the sender's time zone."""

    systems: Mapping[str, str]
    zone: str


def _clean(tree: Tree) -> Tree | None:
    return {name: value for name, value in tree.items() if value not in ("", None, [], {})} or None


def authority(repetition: Repetition, component: int, around: Around) -> str | None:
    """The identifier system of an assigning authority (HD): by the table, else by its OID or URI."""
    namespace, universal, kind = (part(repetition, component, sub) for sub in (1, 2, 3))
    known = (
        around.systems.get(universal)
        or around.systems.get(namespace)
        or around.systems.get("*" if not (namespace or universal) else "")
    )
    if known or not universal:
        return known
    return f"urn:oid:{universal}" if kind in ("ISO", "") else universal if ":" in universal else None


def cx(one: Repetition, around: Around) -> Tree | None:
    """CX → Identifier; one whose authority nobody knows has no system."""
    value, kind = part(one, 1), part(one, 5)
    if not value:
        return None
    type = {"coding": [{"system": f"{V2}0203", "code": kind}]} if kind else None
    return _clean({"type": type, "system": authority(one, 4, around), "value": value})


def xpn(one: Repetition, around: Around) -> Tree | None:
    """XPN → HumanName."""
    given = [name for name in (part(one, 2), *part(one, 3).split()) if name]
    named = {"family": part(one, 1), "given": given, "suffix": [part(one, 4)] if part(one, 4) else []}
    if not any(named.values()):
        return None
    prefix = [part(one, 5)] if part(one, 5) else []
    return _clean({"use": _NAME_USE.get(part(one, 7), "official" if not part(one, 7) else None), **named, "prefix": prefix})


def xad(one: Repetition, around: Around) -> Tree | None:
    """XAD → Address."""
    lines = [line for line in (part(one, 1), part(one, 2)) if line]
    place = {
        "line": lines,
        "city": part(one, 3).strip(),
        "state": part(one, 4),
        "postalCode": part(one, 5),
        "country": part(one, 6),
    }
    return _clean({"use": _ADDRESS_USE.get(part(one, 7)), **place}) if any(place.values()) else None


def xtn(one: Repetition, around: Around) -> Tree | None:
    """XTN → ContactPoint."""
    system = _TELECOM_SYSTEM.get(part(one, 3), "phone")
    number = "-".join(filter(None, (part(one, 6), part(one, 7))))
    value = (part(one, 4) if system == "email" else "") or part(one, 12) or number or part(one, 1)
    use = "mobile" if part(one, 3) == "CP" else _TELECOM_USE.get(part(one, 2))
    return _clean({"system": system, "value": value, "use": use}) if value else None


def cwe(one: Repetition, around: Around, table: str = "") -> Tree | None:
    """CWE → CodeableConcept, both triplets; a code without a system is of the table that the field has."""
    codings = []
    for at in (1, 4):
        system = part(one, at + 2)
        url = around.systems.get(system) or _SYSTEMS.get(system) or (f"{V2}{system[3:]}" if system[:3] == "HL7" else None)
        url = url or (f"{V2}{table}" if not system and table and at == 1 else None)
        if part(one, at) and (url or at == 1):
            codings.append(_clean({"system": url, "code": part(one, at), "display": part(one, at + 1)}))
    return _clean({"coding": codings, "text": part(one, 9) or part(one, 2)})


def xcn(one: Repetition, around: Around) -> Tree | None:
    """XCN → Reference to a Practitioner, by identifier and name."""
    number, system = part(one, 1), authority(one, 9, around)
    if part(one, 13) == "NPI":
        system = _SYSTEMS["NPI"]
    name = " ".join(filter(None, (part(one, 6), part(one, 3), part(one, 2), part(one, 5))))
    identifier = _clean({"system": system, "value": number}) if number and system else None
    return _clean({"type": "Practitioner", "identifier": identifier, "display": name}) if identifier or name else None


def pl(one: Repetition, around: Around) -> Tree | None:
    """PL → Reference to a Location, by point of care, room and bed."""
    steps = [part(one, number) for number in (4, 1, 2, 3)]  # facility, point of care, room, bed
    return (
        {"identifier": {"value": "^".join(steps)}, "display": ", ".join(filter(None, steps[1:])) or steps[0]}
        if any(steps)
        else None
    )


def date(one: Repetition, around: Around) -> str | None:
    """DTM → date."""
    return fhir_time(part(one, 1), around.zone, date_only=True)


def date_time(one: Repetition, around: Around) -> str | None:
    """DTM → dateTime."""
    return fhir_time(part(one, 1), around.zone)


def flag(one: Repetition, around: Around) -> bool | None:
    """ID of table 0136 → boolean."""
    return {"Y": True, "N": False}.get(part(one, 1))


def string(one: Repetition, around: Around) -> str | None:
    """ST → string."""
    return part(one, 1) or None


CONVERSIONS: dict[str, Callable[..., Any]] = {
    "Identifier": cx,
    "HumanName": xpn,
    "Address": xad,
    "ContactPoint": xtn,
    "CodeableConcept": cwe,
    "Practitioner": xcn,
    "Location": pl,
    "date": date,
    "dateTime": date_time,
    "boolean": flag,
    "string": string,
    "code": string,
}
