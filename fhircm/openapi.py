"""What the addresses outside the FHIR API take and answer, as /openapi.json tells it. https://spec.openapis.org/oas/v3.1.0

What is below /fhir is told by /fhir/metadata instead: https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DESCRIPTION = (
    "The addresses of the hub outside its FHIR API: signing in, discovery, HL7 v2 messages, health and metrics. "
    "The FHIR API, below `/fhir`, is described by the CapabilityStatement at `/fhir/metadata`."
)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _LaunchContext(_Answer):
    """https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#launch-context-arrives-with-your-access_token"""

    patient: str | None = Field(None, description="The id of the Patient that the app was launched for")
    encounter: str | None = Field(None, description="The id of the Encounter that the app was launched in")
    fhirContext: list[dict[str, Any]] | None = Field(None, description="What else it was launched about")
    need_patient_banner: bool | None = None
    intent: str | None = None
    smart_style_url: str | None = None
    tenant: str | None = None
    appContext: str | None = Field(None, description="What the Task that asked for the launch has for the app")


class Token(_LaunchContext):
    """An access token: https://www.rfc-editor.org/rfc/rfc6749#section-5.1"""

    access_token: str = Field(description="Opaque; sent as `Authorization: Bearer …`")
    token_type: Literal["Bearer"]
    expires_in: int = Field(description="Seconds until it is no longer good")
    scope: str = Field(description="The scopes that were granted, with spaces between them")
    refresh_token: str | None = Field(None, description="Good once: its answer holds the next one")
    id_token: str | None = Field(None, description="Who the person is, signed")


class TokenRefusal(_Answer):
    """Why there is no token: https://www.rfc-editor.org/rfc/rfc6749#section-5.2"""

    error: Literal[
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_token",
        "insufficient_scope",
        "temporarily_unavailable",
    ]
    error_description: str


class Introspected(_LaunchContext):
    """https://www.rfc-editor.org/rfc/rfc7662#section-2.2; of a token that is worth nothing only that it is not active."""

    active: bool
    scope: str | None = None
    client_id: str | None = None
    exp: int | None = Field(None, description="Until when it is good, in seconds since 1970")
    token_type: Literal["Bearer"] | None = None
    iss: str | None = None
    sub: str | None = None
    fhirUser: str | None = Field(None, description="The address of the resource that is the person")
    profile: str | None = None


class Launched(_Answer):
    """https://hl7.org/fhir/smart-app-launch/app-launch.html#launch-app-ehr-launch"""

    launch: str = Field(description="The parameter `launch` with which the app is opened; good once")
    iss: str = Field(description="The parameter `iss`")
    expires_in: int


class Registration(BaseModel):
    """https://www.rfc-editor.org/rfc/rfc7591#section-3.2.1"""

    client_id: str
    client_id_issued_at: int
    client_secret: str | None = Field(None, description="Told once")
    client_secret_expires_at: int | None = None
    registration_client_uri: str
    registration_access_token: str
    token_endpoint_auth_method: str
    grant_types: list[str]
    scope: str


class RegistrationRefusal(_Answer):
    """https://www.rfc-editor.org/rfc/rfc7591#section-3.2.2"""

    error: Literal["invalid_redirect_uri", "invalid_client_metadata", "unapproved_software_statement", "invalid_request"]
    error_description: str


class _Configuration(_Answer):
    """https://www.rfc-editor.org/rfc/rfc8414#section-2"""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str
    introspection_endpoint: str
    revocation_endpoint: str
    registration_endpoint: str
    token_endpoint_auth_methods_supported: list[str]
    token_endpoint_auth_signing_alg_values_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_signing_alg_values_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_signing_alg_values_supported: list[str]
    grant_types_supported: list[str]
    response_types_supported: list[str]
    response_modes_supported: list[str]
    scopes_supported: list[str]
    code_challenge_methods_supported: list[str]
    authorization_response_iss_parameter_supported: bool


class SmartConfiguration(_Configuration):
    """https://hl7.org/fhir/smart-app-launch/conformance.html#using-well-known"""

    capabilities: list[str]


class OpenidConfiguration(_Configuration):
    """https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderMetadata"""

    subject_types_supported: list[str]
    id_token_signing_alg_values_supported: list[str]
    claims_supported: list[str]
    prompt_values_supported: list[str]
    request_parameter_supported: bool
    request_uri_parameter_supported: bool
    claims_parameter_supported: bool


class Style(_Answer):
    """https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#styling"""

    color_background: str
    color_error: str
    color_highlight: str
    color_modal_backdrop: str
    color_success: str
    color_text: str
    dim_border_radius: str
    dim_font_size: str
    dim_spacing_size: str
    font_family_body: str
    font_family_heading: str


class Jwks(_Answer):
    """https://www.rfc-editor.org/rfc/rfc7517#section-5"""

    keys: list[dict[str, Any]] = Field(description="Public keys, each with its kid and alg")


class Health(_Answer):
    """Whether it can be worked with."""

    status: Literal["ok", "unavailable"]


_TEXT = {"type": "string"}
_AS_CLIENT: dict[str, Any] = {
    "client_id": {"type": "string", "description": "Of a client without a secret, or with one that it sends in this form"},
    "client_secret": {"type": "string", "description": "Of a client that is registered to send it here (else HTTP Basic)"},
    "client_assertion_type": {"type": "string", "enum": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]},
    "client_assertion": {
        "type": "string",
        "description": "A JWT signed with RS384 or ES384: iss and sub the client_id, aud the token endpoint, exp at most 5 minutes ahead, jti used once",
    },
}


def _form(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    """A form which FastAPI does not read, so that a client hears of every fault as OAuth has it."""
    schema = {"type": "object", "required": required, "properties": properties | _AS_CLIENT}
    return {"requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}}


TOKEN_FORM = _form(
    ["grant_type"],
    {
        "grant_type": {"type": "string", "enum": ["authorization_code", "refresh_token", "client_credentials"]},
        "scope": {"type": "string", "description": "Such as `system/*.rs`, with spaces between several"},
        "code": _TEXT,
        "redirect_uri": {"type": "string", "description": "The one to which the code was sent"},
        "code_verifier": {"type": "string", "description": "That of which code_challenge was the SHA-256"},
        "refresh_token": _TEXT,
    },
)
ABOUT_TOKEN_FORM = _form(["token"], {"token": _TEXT, "token_type_hint": _TEXT})
REGISTRATION_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "description": "https://www.rfc-editor.org/rfc/rfc7591#section-2"}}
        },
    }
}

LAUNCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["client_id"],
                    "properties": {"client_id": {"type": "string"}, **_LaunchContext.model_json_schema()["properties"]},
                }
            }
        },
    }
}
TOKEN_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": TokenRefusal, "description": "The request is not one that is understood or granted"},
    401: {"model": TokenRefusal, "description": "The client did not prove who it is"},
    429: {"model": TokenRefusal, "description": "Asked too often: Retry-After tells when to try again"},
}
INTROSPECT_ANSWERS = TOKEN_ANSWERS | {403: {"model": TokenRefusal, "description": "The bearer token is not for this"}}
REVOKE_ANSWERS = TOKEN_ANSWERS | {200: {"model": dict[str, Any], "description": "The token is worth nothing (any more)"}}
REGISTER_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": RegistrationRefusal, "description": "The client cannot be registered so"},
    401: {"model": TokenRefusal, "description": "The bearer token is not for this"},
}
READY_ANSWERS: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "The database does not answer"}}
_MESSAGE = {"application/hl7-v2": {"schema": {"type": "string", "description": "Segments with a carriage return behind each"}}}
HL7V2_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _MESSAGE}}
HL7V2_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": _MESSAGE, "description": "Taken: MSA-1 is AA"},
    401: {"description": "No token, or one that is not good"},
    403: {"description": "The client is not of the partner's organisation, or its scopes do not reach so far"},
    404: {"description": "No partner of this name sends messages"},
    413: {"description": "The message is too long"},
    415: {"description": "The body is not application/hl7-v2"},
    422: {"content": _MESSAGE, "description": "Not taken: MSA-1 is AE or AR, and ERR tells place and reason"},
}
METRICS_TOKEN: dict[str, Any] = {
    "parameters": [
        {
            "name": "Authorization",
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "description": "`Bearer` and the token of the setting `FHIRCM_METRICS_TOKEN`",
        }
    ]
}
_SENTENCE: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
METRICS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "https://prometheus.io/docs/instrumenting/exposition_formats/"},
    401: {"description": "Another token is shown, or none", **_SENTENCE},
    404: {"description": "No token is set, so nobody may read them", **_SENTENCE},
    503: {"description": "The database does not answer", **_SENTENCE},
}
