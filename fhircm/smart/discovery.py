"""What the authorization server can do: only what works.

https://hl7.org/fhir/smart-app-launch/conformance.html#using-well-known
"""

from __future__ import annotations

from typing import Any

from fhircm.smart.token import ALGORITHMS


def smart_configuration(public_base_url: str) -> dict[str, Any]:
    """The document at .well-known/smart-configuration."""
    return {
        "token_endpoint": f"{public_base_url}/oauth/token",
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ALGORITHMS,
        "grant_types_supported": ["client_credentials"],
        "scopes_supported": ["system/*.cruds", "system/*.rs", "system/*.read", "system/*.write"],
        "code_challenge_methods_supported": ["S256"],
        "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
    }
