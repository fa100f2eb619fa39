"""The CapabilityStatement, made from the lists that route. https://hl7.org/fhir/R4/capabilitystatement.html"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import searchable
from fhircm.fhir.profiles import profiles
from fhircm.fhir.query import FULL_TEXT
from fhircm.operations.definition import Operation
from fhircm.rest.exchange import RestSettings
from fhircm.rest.patch import FORMATS

OAUTH = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
BULK_DATA = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
RELEASED = "2026-11-25"  # of this version of the software


def capability_statement(
    base_url: str, interactions: list[str], at_system: list[str], operations: Iterable[Operation], settings: RestSettings
) -> dict[str, Any]:
    """What this server does with each type (`interactions`) and as a whole (`at_system`)."""
    operations = sorted(operations, key=lambda one: one.code)
    called = [{"name": one.code, "definition": one.url} for one in operations if "system" in one.levels]
    supported: dict[str, list[str]] = {}
    for url, type in profiles().items():
        supported.setdefault(type, []).append(url)
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
        "patchFormat": list(FORMATS),
        "rest": [
            {
                "mode": "server",
                "security": {
                    "extension": [_oauth(base_url.removesuffix("/fhir"))],
                    "service": [
                        {
                            "coding": [
                                {
                                    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                                    "code": "SMART-on-FHIR",
                                }
                            ]
                        }
                    ],
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


def _oauth(issuer: str) -> dict[str, Any]:
    """Where to sign in, for apps that do not know .well-known/smart-configuration yet.

    https://hl7.org/fhir/smart-app-launch/1.0.0/conformance/index.html#declaring-support-for-oauth2-endpoints
    """
    names = ("authorize", "token", "register", "introspect", "revoke")
    return {"url": OAUTH, "extension": [{"url": name, "valueUri": f"{issuer}/oauth/{name}"} for name in names]}


def _type(
    type: str, interactions: list[str], operations: list[Operation], profiles: list[str] | None, settings: RestSettings
) -> dict[str, Any]:
    parameters = [
        {"name": code, "definition": one.definition.url, "type": one.definition.type}
        for code, one in sorted(searchable(type).extractors.items())
    ]
    asked = definitions().search_parameters[type]["_filter"]
    parameters.append({"name": "_filter", "definition": asked.url, "type": asked.type})
    if settings.full_text:
        parameters += [{"name": code, "definition": url, "type": "string"} for code, url in FULL_TEXT.items()]
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
