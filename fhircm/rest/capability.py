"""The CapabilityStatement, made from the lists that route. https://hl7.org/fhir/R4/capabilitystatement.html"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import searchable
from fhircm.fhir.profiles import profiles
from fhircm.operations.definition import Operation
from fhircm.rest.exchange import RestSettings
from fhircm.rest.patch import JSON_PATCH

BULK_DATA = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
RELEASED = "2026-11-25"  # of this version of the software


def capability_statement(
    base_url: str, interactions: list[str], at_system: list[str], operations: Iterable[Operation], settings: RestSettings
) -> dict[str, Any]:
    """What this server does with each type (`interactions`) and as a whole (`at_system`)."""
    operations = sorted(operations, key=lambda one: one.code)
    called = [{"name": one.code, "definition": one.url} for one in operations if "system" in one.levels]
    supported: dict[str, list[str]] = {}
    for profile in profiles().values():
        supported.setdefault(profile.type, []).append(profile.url)
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": RELEASED,
        "kind": "instance",
        "instantiates": [BULK_DATA],
        "software": {"name": "fhircm"},
        "implementation": {"description": "fhircm, care coordination", "url": base_url},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json"],
        "patchFormat": [JSON_PATCH],
        "rest": [
            {
                "mode": "server",
                "security": {
                    "service": [
                        {
                            "coding": [
                                {
                                    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                                    "code": "SMART-on-FHIR",
                                }
                            ]
                        }
                    ]
                },
                "resource": [
                    _type(type, interactions, operations, supported.get(type), settings)
                    for type in sorted(definitions().resource_types)
                ],
                "interaction": [{"code": code} for code in at_system],
                **({"operation": called} if called else {}),
            }
        ],
    }


def _type(
    type: str, interactions: list[str], operations: list[Operation], profiles: list[str] | None, settings: RestSettings
) -> dict[str, Any]:
    parameters = [
        {"name": code, "definition": one.url, "type": one.type}
        for code, one in sorted(definitions().search_parameters[type].items())
        if code in searchable(type).extractors
    ]
    called = [
        {"name": one.code, "definition": one.url}
        for one in operations
        if one.levels - {"system"} and (not one.types or type in one.types)
    ]
    return {
        "type": type,
        **({"supportedProfile": sorted(profiles)} if profiles else {}),
        "interaction": [{"code": code} for code in interactions],
        "versioning": "versioned",
        "readHistory": True,
        "updateCreate": settings.update_create,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": "single" if settings.conditional_delete_limit == 1 else "multiple",
        "searchParam": parameters,
        **({"operation": called} if called else {}),
    }
