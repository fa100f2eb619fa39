"""The organisations that people and clients belong to: an Organization each, named, with its NPI when it has one.

https://hl7.org/fhir/R4/organization.html and https://www.cms.gov/regulations-and-guidance/administrative-simplification/nationalprovidentstand
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fhircm.coordination import build
from fhircm.coordination.codes import NPI
from fhircm.fhir.outcome import Invalid
from fhircm.store.resources import Put, Stored

_LUHN_OF_80840 = 24  # what the prefix of American health identifiers adds to the sum


def new(name: str, npi: str | None = None) -> Put:
    """An Organization that there is not yet. Raises Invalid."""
    tree = {"resourceType": "Organization", "id": str(uuid4()), "active": True, "name": _name(name)}
    return build.new(tree | ({"identifier": [{"system": NPI, "value": _npi(npi)}]} if npi else {}))


def edited(organization: Stored, *, name: str | None = None, npi: str | None = None, active: bool | None = None) -> Put:
    """An edit; what is None stays as it is, an empty NPI is taken away. Raises Invalid."""
    changes: dict[str, Any] = {}
    if name is not None:
        changes["name"] = _name(name)
    if active is not None:
        changes["active"] = active
    if npi is not None:
        kept = [one for one in organization.tree.get("identifier", []) if one.get("system") != NPI]
        changes["identifier"] = ([{"system": NPI, "value": _npi(npi)}] if npi else []) + kept or None
    return build.edit(organization, **changes)


def _name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > 200:
        raise Invalid("A name has 1 to 200 characters", "name")
    return name


def _npi(text: str) -> str:
    """The number, if its check digit is right."""
    digits = [int(one) for one in text] if text.isascii() and text.isdigit() and len(text) == 10 else None
    if digits is None or (_LUHN_OF_80840 + sum(_doubled(one) for one in digits[-2::-2]) + sum(digits[-1::-2])) % 10:
        raise Invalid("An NPI has ten digits, the last of which checks the others", "npi")
    return text


def _doubled(digit: int) -> int:
    return sum(divmod(2 * digit, 10))
