"""The addresses of the authorization server.

Token requests and what they hold travel in bodies: an address with a query is refused, for addresses end up in logs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from fhircm import openapi
from fhircm.smart.authorize import AuthorizationWrong
from fhircm.smart.clients import RegistrationWrong
from fhircm.smart.discovery import openid_configuration, smart_configuration
from fhircm.smart.launch import STYLE, STYLE_VERSION
from fhircm.smart.noting import note, said_to_be
from fhircm.smart.refusal import TokenRefused
from fhircm.smart.server import AuthorizationServer

_LIMIT = 64 * 1024  # bytes of a form or a registration
_FIELDS = 100
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_OPEN_TO_ALL = {"Access-Control-Allow-Origin": "*"}

Fields = list[tuple[str, str]]
PartnerKeys = Callable[[], list[dict[str, Any]]]


def add_routes(app: FastAPI, base_url: str, partner_keys: PartnerKeys) -> None:
    """Add them to an application whose state has the server as `authorization`. `partner_keys`: those with which the hub signs in elsewhere."""
    _discovery(app, base_url, partner_keys)
    _authorize(app)
    _tokens(app)
    _registration(app)


def _server(app: FastAPI) -> AuthorizationServer:
    server: AuthorizationServer = app.state.authorization
    return server


def _discovery(app: FastAPI, base_url: str, partner_keys: PartnerKeys) -> None:
    @app.get("/.well-known/smart-configuration", summary="How to sign in", response_model=openapi.SmartConfiguration)
    @app.get("/fhir/.well-known/smart-configuration", summary="How to sign in", response_model=openapi.SmartConfiguration)
    async def configuration() -> JSONResponse:
        """What the authorization server can do."""
        return JSONResponse(smart_configuration(base_url))

    @app.get("/.well-known/openid-configuration", summary="How to sign people in", response_model=openapi.OpenidConfiguration)
    @app.get(
        "/.well-known/oauth-authorization-server", summary="How to sign people in", response_model=openapi.OpenidConfiguration
    )
    async def openid() -> JSONResponse:
        """What the authorization server can do, as OpenID Connect has it."""
        return JSONResponse(openid_configuration(base_url))

    @app.get("/.well-known/jwks.json", summary="The keys of the hub", response_model=openapi.Jwks)
    async def keys() -> JSONResponse:
        """The public keys of identity tokens, and those with which the hub signs in at partners."""
        listed = [*await _server(app).keys.published(), *partner_keys()]
        return JSONResponse({"keys": listed}, headers={"Cache-Control": "max-age=60"})

    @app.get(f"/oauth/style/{STYLE_VERSION}.json", summary="The look of the hub", response_model=openapi.Style)
    async def style() -> JSONResponse:
        """How apps may look to fit in, as the launch context tells them (smart_style_url)."""
        return JSONResponse(STYLE, headers=_OPEN_TO_ALL | {"Cache-Control": "max-age=86400"})


def _authorize(app: FastAPI) -> None:
    async def authorize(request: Request) -> Response:
        """Check a request of an app, and send the browser on to the page where its person decides."""
        try:
            fields = await _form(request) if request.method == "POST" else _fields(request.url.query)
            return RedirectResponse(await _server(app).authorizations.ask(fields), 303, headers=_NO_STORE)
        except AuthorizationWrong as error:
            return PlainTextResponse(f"{error}\n", 400, headers=_NO_STORE)
        except TokenRefused as error:
            return PlainTextResponse(f"{error.description}\n", 400, headers=_NO_STORE)

    # A browser comes here, no program: what it needs to know is in the configuration.
    app.add_api_route("/oauth/authorize", authorize, methods=["GET", "POST"], include_in_schema=False)


def _tokens(app: FastAPI) -> None:
    @app.post(
        "/oauth/token",
        summary="Get an access token",
        response_model=openapi.Token,
        responses=openapi.TOKEN_ANSWERS,
        openapi_extra=openapi.TOKEN_FORM,
    )
    async def token(request: Request) -> JSONResponse:
        """For a code, a refresh token, or (SMART backend services) a signed assertion alone."""
        return await _answered(request, "token", _server(app).tokens.grant)

    @app.post(
        "/oauth/introspect",
        summary="What is a token worth?",
        response_model=openapi.Introspected,
        responses=openapi.INTROSPECT_ANSWERS,
        openapi_extra=openapi.ABOUT_TOKEN_FORM,
    )
    async def introspect(request: Request) -> JSONResponse:
        """For servers that are shown an access token of this hub."""
        return await _answered(request, "introspect", _server(app).introspection.answer)

    @app.post(
        "/oauth/revoke",
        summary="Give a token back",
        responses=openapi.REVOKE_ANSWERS,
        openapi_extra=openapi.ABOUT_TOKEN_FORM,
    )
    async def revoke(request: Request) -> JSONResponse:
        """End an access token; with a refresh token, everything that was granted with it."""

        async def end(fields: Fields, authorization: str | None) -> dict[str, Any]:
            await _server(app).revocation.end(fields, authorization)
            return {}

        return await _answered(request, "revoke", end)

    @app.post(
        "/oauth/launch",
        summary="Launch an app",
        response_model=openapi.Launched,
        responses=openapi.INTROSPECT_ANSWERS,
        openapi_extra=openapi.LAUNCH_BODY,
    )
    async def launch(request: Request) -> JSONResponse:
        """For EHRs and portals that are registered with the scope `launcher`: what the app is to be opened with."""
        try:
            told = await _server(app).launches.answer(_authorization(request), await _body(request))
            answer = JSONResponse(told, headers=_NO_STORE)
        except TokenRefused as error:
            answer = _refusal(error)
        note(request, "launch", answer)
        return answer


def _registration(app: FastAPI) -> None:
    described: dict[str, Any] = {"response_model": openapi.Registration, "responses": openapi.REGISTER_ANSWERS}

    @app.post(
        "/oauth/register", summary="Register a client", status_code=201, openapi_extra=openapi.REGISTRATION_BODY, **described
    )
    async def register(request: Request) -> JSONResponse:
        """Takes an initial access token as bearer token."""
        registrations = _server(app).registrations
        return await _registered(request, lambda body: registrations.create(_authorization(request), body), 201)

    @app.get("/oauth/register/{client_id}", summary="What is registered", **described)
    async def read(client_id: str, request: Request) -> JSONResponse:
        """Takes the registration access token of the client as bearer token."""
        registrations = _server(app).registrations
        return await _registered(request, lambda body: registrations.read(client_id, _authorization(request)))

    @app.put("/oauth/register/{client_id}", summary="Register anew", openapi_extra=openapi.REGISTRATION_BODY, **described)
    async def update(client_id: str, request: Request) -> JSONResponse:
        """Takes the registration access token of the client as bearer token, and everything that shall be registered."""
        registrations = _server(app).registrations
        return await _registered(request, lambda body: registrations.update(client_id, _authorization(request), body))

    @app.delete(
        "/oauth/register/{client_id}",
        summary="Forget a client",
        status_code=204,
        response_model=None,
        responses={401: openapi.REGISTER_ANSWERS[401]},
    )
    async def delete(client_id: str, request: Request) -> Response:
        """Takes the registration access token of the client as bearer token; its tokens end."""
        answer = Response(status_code=204, headers=_NO_STORE)
        try:
            await _server(app).registrations.delete(client_id, _authorization(request))
        except TokenRefused as error:
            answer = _refusal(error)
        note(request, "client", answer, client_id)
        return answer


async def _answered(
    request: Request, what: str, endpoint: Callable[[Fields, str | None], Awaitable[dict[str, Any]]]
) -> JSONResponse:
    """What an endpoint answers to a form; written down as `what`."""
    fields, told = Fields(), dict[str, Any]()
    try:
        if request.url.query:
            raise TokenRefused("invalid_request", "What is asked for belongs in the body: addresses are logged")
        fields = await _form(request)
        told = await endpoint(fields, _authorization(request))
        answer = JSONResponse(told, headers=_NO_STORE)
    except TokenRefused as error:
        answer = _refusal(error)
    note(request, what, answer, said_to_be(dict(fields), _authorization(request)), told.get("patient"))
    return answer


async def _registered(
    request: Request, endpoint: Callable[[bytes], Awaitable[dict[str, Any]]], status: int = 200
) -> JSONResponse:
    client = request.path_params.get("client_id")
    try:
        told = await endpoint(await _body(request))
        client, answer = client or told.get("client_id"), JSONResponse(told, status, headers=_NO_STORE)
    except RegistrationWrong as error:
        answer = JSONResponse({"error": error.error, "error_description": error.description}, 400, headers=_NO_STORE)
    except TokenRefused as error:
        answer = _refusal(error)
    note(request, "client", answer, client)
    return answer


def _refusal(error: TokenRefused) -> JSONResponse:
    headers = dict(_NO_STORE)
    if error.scheme == "Bearer":
        headers["WWW-Authenticate"] = f'Bearer error="{error.error}"'
    elif error.scheme:
        headers["WWW-Authenticate"] = f'{error.scheme} realm="fhircm"'
    return JSONResponse({"error": error.error, "error_description": error.description}, error.status, headers=headers)


def _authorization(request: Request) -> str | None:
    return request.headers.get("Authorization")


async def _form(request: Request) -> Fields:
    """The fields of a form; those without a value count as left out (RFC 6749 section 3.1). Raises TokenRefused."""
    body = await _body(request)
    try:
        return _fields(body.decode())
    except ValueError:
        raise TokenRefused("invalid_request", "The form cannot be read") from None


def _fields(text: str) -> Fields:
    try:
        fields = parse_qsl(text, max_num_fields=_FIELDS, errors="strict")
    except ValueError:
        fields = None
    if fields is None or any("\0" in value for _, value in fields):
        raise TokenRefused("invalid_request", "The parameters cannot be read")
    return fields


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LIMIT:
            raise TokenRefused("invalid_request", f"The body is larger than {_LIMIT} bytes")
    return bytes(body)
