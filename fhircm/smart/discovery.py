"""What the authorization server can do: only what works.

https://hl7.org/fhir/smart-app-launch/conformance.html#using-well-known, https://openid.net/specs/openid-connect-discovery-1_0.html and
https://www.rfc-editor.org/rfc/rfc8414
"""

from __future__ import annotations

from typing import Any

from fhircm.smart.client_auth import ALGORITHMS
from fhircm.smart.clients import GRANT_TYPES, ID_TOKEN_ALGORITHMS, METHODS, PUBLIC
from fhircm.smart.scopes import IDENTITY, SUPPORTED

_PROVED = [method for method in METHODS if method != PUBLIC]
CAPABILITIES = [
    "launch-ehr",
    "launch-standalone",
    "authorize-post",
    "client-public",
    "client-confidential-symmetric",
    "client-confidential-asymmetric",
    "sso-openid-connect",
    "context-banner",
    "context-style",
    "context-ehr-patient",
    "context-ehr-encounter",
    "context-standalone-patient",
    "context-standalone-encounter",
    "permission-offline",
    "permission-online",
    "permission-patient",
    "permission-user",
    "permission-v1",
    "permission-v2",
]


def _common(base: str) -> dict[str, Any]:
    return {
        "issuer": base,
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "authorization_endpoint": f"{base}/oauth/authorize",
        "token_endpoint": f"{base}/oauth/token",
        "introspection_endpoint": f"{base}/oauth/introspect",
        "revocation_endpoint": f"{base}/oauth/revoke",
        "registration_endpoint": f"{base}/oauth/register",
        "token_endpoint_auth_methods_supported": list(METHODS),
        "token_endpoint_auth_signing_alg_values_supported": ALGORITHMS,
        "introspection_endpoint_auth_methods_supported": _PROVED,
        "introspection_endpoint_auth_signing_alg_values_supported": ALGORITHMS,
        "revocation_endpoint_auth_methods_supported": list(METHODS),
        "revocation_endpoint_auth_signing_alg_values_supported": ALGORITHMS,
        "grant_types_supported": list(GRANT_TYPES),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
    }


def smart_configuration(public_base_url: str) -> dict[str, Any]:
    """The document at .well-known/smart-configuration."""
    return _common(public_base_url) | {"scopes_supported": SUPPORTED, "capabilities": CAPABILITIES}


def openid_configuration(public_base_url: str) -> dict[str, Any]:
    """The document at .well-known/openid-configuration."""
    return _common(public_base_url) | {
        "scopes_supported": list(IDENTITY),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": list(ID_TOKEN_ALGORITHMS),
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "at_hash", "fhirUser", "profile"],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
        "claims_parameter_supported": False,
    }
