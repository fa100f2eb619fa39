"""What a sandbox EHR says of itself: its CapabilityStatement, made from its habits.

https://hl7.org/fhir/R4/capabilitystatement.html. A vendor may declare what it does not do; that is a habit too.
"""

from __future__ import annotations

from fhircm.fhir.definitions import definitions
from fhircm.sandbox.chart import Tree
from fhircm.sandbox.searching import parameters


def statement(habits: Tree, base_url: str) -> Tree:
    """The CapabilityStatement."""
    rest: Tree = {
        "mode": "server",
        "security": {
            "service": [
                {
                    "coding": [
                        {"system": "http://terminology.hl7.org/CodeSystem/restful-security-service", "code": "SMART-on-FHIR"}
                    ]
                }
            ]
        },
        "resource": [_resource(habits, type, served) for type, served in habits["types"].items()],
        "interaction": [{"code": code} for code in habits["system"]],
        "operation": [
            {"name": name, "definition": f"http://hl7.org/fhir/OperationDefinition/{name}"} for name in habits["operations"]
        ],
    }
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-02-01",
        "kind": "instance",
        "fhirVersion": "4.0.1",
        "software": dict(zip(("name", "version"), habits["software"], strict=False)),
        "implementation": {"description": "A sandbox of fhircm", "url": base_url},
        "format": habits["formats"],
        "rest": [{name: value for name, value in rest.items() if value}],
    }


def _resource(habits: Tree, type: str, served: Tree) -> Tree:
    known = definitions().search_parameters[type]
    names = parameters(served) if "search-type" in served["interactions"] else set()
    names |= {"_lastUpdated"} if served.get("last_updated") else set()
    made: Tree = {
        "type": type,
        "interaction": [{"code": code} for code in served["interactions"]],
        "versioning": habits["versioning"],
        "searchParam": [{"name": name, "type": known[name].type if name in known else "string"} for name in sorted(names)],
    }
    if "create" in served["interactions"] and habits["conditional_create"]:
        made["conditionalCreate"] = True
    return {name: value for name, value in made.items() if value}
