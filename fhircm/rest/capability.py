"""The CapabilityStatement, made from the lists that route. https://hl7.org/fhir/R4/capabilitystatement.html"""

from __future__ import annotations

from typing import Any

from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import searchable
from fhircm.fhir.profiles import profiles


def capability_statement(base_url: str, interactions: list[str]) -> dict[str, Any]:
    """What this server does with each type."""
    supported: dict[str, list[str]] = {}
    for profile in profiles().values():
        supported.setdefault(profile.type, []).append(profile.url)
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-24",
        "kind": "instance",
        "software": {"name": "fhircm"},
        "implementation": {"description": "fhircm, care coordination", "url": base_url},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json"],
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
                "resource": [_type(type, interactions, supported.get(type)) for type in sorted(definitions().resource_types)],
            }
        ],
    }


def _type(type: str, interactions: list[str], profiles: list[str] | None) -> dict[str, Any]:
    parameters = [
        {"name": code, "definition": one.url, "type": one.type}
        for code, one in sorted(definitions().search_parameters[type].items())
        if code in searchable(type).extractors
    ]
    return {
        "type": type,
        **({"supportedProfile": sorted(profiles)} if profiles else {}),
        "interaction": [{"code": code} for code in interactions],
        "versioning": "versioned",
        "readHistory": True,
        "updateCreate": False,
        "conditionalCreate": False,
        "conditionalRead": "full-support",
        "searchParam": parameters,
    }
