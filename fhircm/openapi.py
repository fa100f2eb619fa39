"""What the addresses outside the FHIR API take and answer, as /openapi.json tells it. https://spec.openapis.org/oas/v3.1.0

What is below /fhir is told by /fhir/metadata instead: https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DESCRIPTION = (
    "The addresses of the hub outside its FHIR API: signing in, discovery and health. "
    "The FHIR API, below `/fhir`, is described by the CapabilityStatement at `/fhir/metadata`."
)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Token(_Answer):
    """An access token: https://www.rfc-editor.org/rfc/rfc6749#section-5.1"""

    access_token: str = Field(description="Opaque; sent as `Authorization: Bearer …`")
    token_type: Literal["Bearer"]
    expires_in: int = Field(description="Seconds until it is no longer good")
    scope: str = Field(description="The scopes that were granted, with spaces between them")


class TokenRefusal(_Answer):
    """Why there is no token: https://www.rfc-editor.org/rfc/rfc6749#section-5.2"""

    error: Literal["invalid_request", "invalid_client", "invalid_scope", "unsupported_grant_type"]
    error_description: str


class SmartConfiguration(_Answer):
    """https://hl7.org/fhir/smart-app-launch/conformance.html#using-well-known"""

    token_endpoint: str
    token_endpoint_auth_methods_supported: list[str]
    token_endpoint_auth_signing_alg_values_supported: list[str]
    grant_types_supported: list[str]
    scopes_supported: list[str]
    code_challenge_methods_supported: list[str]
    capabilities: list[str]


class Jwks(_Answer):
    """https://www.rfc-editor.org/rfc/rfc7517#section-5"""

    keys: list[dict[str, Any]] = Field(description="Public keys, each with its kid and alg")


class Health(_Answer):
    """Whether it can be worked with."""

    status: Literal["ok", "unavailable"]


# The form of a token request, which FastAPI does not read, so that a client hears of every fault as OAuth has it.
TOKEN_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "client_assertion_type", "client_assertion"],
                    "properties": {
                        "grant_type": {"type": "string", "enum": ["client_credentials"]},
                        "scope": {"type": "string", "description": "Such as `system/*.rs`, with spaces between several"},
                        "client_assertion_type": {
                            "type": "string",
                            "enum": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"],
                        },
                        "client_assertion": {
                            "type": "string",
                            "description": "A JWT signed with RS384 or ES384: iss and sub the client_id, aud this address, exp at most 5 minutes ahead, jti used once",
                        },
                    },
                }
            }
        },
    }
}

TOKEN_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": TokenRefusal, "description": "The request is not one that is understood or granted"},
    401: {"model": TokenRefusal, "description": "The client did not prove who it is"},
}
READY_ANSWERS: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "The database does not answer"}}
