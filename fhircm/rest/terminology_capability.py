"""TerminologyCapabilities, at /metadata?mode=terminology. https://hl7.org/fhir/R4/terminologycapabilities.html"""

from __future__ import annotations

from typing import Any

from fhircm.fhir.terminology import builtin
from fhircm.operations import OPERATIONS
from fhircm.rest.capability import RELEASED


def terminology_capabilities(base_url: str) -> dict[str, Any]:
    """The code systems that are built in, and what an expansion can be asked for; the store may hold more."""
    asked = [one.name for one in OPERATIONS["expand"].parameters if one.name not in ("url", "valueSet", "valueSetVersion")]
    return {
        "resourceType": "TerminologyCapabilities",
        "status": "active",
        "date": RELEASED,
        "kind": "instance",
        "software": {"name": "fhircm"},
        "implementation": {"description": "fhircm, care coordination", "url": base_url},
        "codeSystem": [
            {"uri": url, **({"version": [{"code": version, "isDefault": True}]} if version else {})}
            for url, version in builtin.known_code_systems()
        ],
        "expansion": {
            "hierarchical": True,
            "paging": True,
            "incomplete": True,
            "parameter": [{"name": name} for name in asked],
            "textFilter": "Every word must begin a word of the code, its display or a designation",
        },
        "codeSearch": "all",
        "validateCode": {"translations": False},
        "translation": {"needsMap": False},
        "closure": {"translation": False},
    }
