"""The HTTP process: wires everything, decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from fhircm import openapi
from fhircm.access.audit_drain import drained
from fhircm.access.audit_journal import Journal
from fhircm.access.bearer import Bearer
from fhircm.edge.config import NO_LIMITS, EdgeConfig
from fhircm.edge.door import Door
from fhircm.exchange.adt_doors import Doors
from fhircm.exchange.client_keys import public_jwks
from fhircm.exchange.partners import Partner
from fhircm.fhir.outcome import FhirError
from fhircm.metrics import CONTENT_TYPE, Metrics
from fhircm.rest import hl7v2, notify
from fhircm.rest.errors import answer_to
from fhircm.rest.exchange import RestSettings
from fhircm.rest.links import PageLinks
from fhircm.rest.router import Router
from fhircm.smart.routes import add_routes
from fhircm.smart.server import SmartSettings, authorization_server
from fhircm.store.client_addresses import client_addresses
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.migrations import migrate
from fhircm.store.principals import Principals
from fhircm.store.resources import Clock, Store, WriteRule
from fhircm.web import routes as web


@dataclass(frozen=True)
class AuditConfig:
    """Where the audit journal is, how large it may become, in bytes, and after how many seconds it is on the disk."""

    folder: Path
    limit: int
    sync: float = 1.0


@dataclass(frozen=True)
class AppConfig:
    """The values that the HTTP process needs."""

    database_url: str
    public_base_url: str  # without a slash at its end
    keys_dir: Path
    rest: RestSettings
    allow_private_jwks: bool
    clock: Clock
    rules: Sequence[WriteRule]
    edge: EdgeConfig = NO_LIMITS
    audit: AuditConfig | None = None
    smart: SmartSettings = field(default_factory=SmartSettings)
    web: web.WebSettings = field(default_factory=web.WebSettings)
    notifiers: Mapping[str, notify.Notifier] = field(default_factory=dict)  # partners with Subscriptions of the hub, by name
    doors: Callable[[Store], Doors] = lambda store: Doors(store, [])  # for HL7 v2 messages
    partners: Sequence[Partner] = ()
    metrics_token: str | None = None  # which a monitoring system shows; without it there are no metrics


def create_app(config: AppConfig) -> FastAPI:
    """The application; opens its database when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await migrate(config.database_url)
        database = await open_database(config.database_url)
        store = Store(database, clock=config.clock, rules=config.rules, full_text=config.rest.full_text)
        credentials = Credentials(database)
        bearer = Bearer(credentials, Principals(store.database))
        app.state.store = store
        app.state.bearer, app.state.doors = bearer, config.doors(store)
        smart = replace(config.smart, allow_private_jwks=config.allow_private_jwks)
        app.state.authorization = authorization_server(database, bearer, config.keys_dir, config.public_base_url, smart)
        app.state.metrics = Metrics(store, config.partners, config.metrics_token)
        web.start(
            app,
            config.web,
            config.partners,
            config.public_base_url,
            config.keys_dir,
            store,
            app.state.authorization.authorizations,
            bearer,
            config.rest.grace,
        )
        base_url = f"{config.public_base_url}/fhir"
        journal = Journal(config.audit.folder, config.audit.limit, config.audit.sync) if config.audit else None
        app.state.journal = journal
        links, admit = await PageLinks.of(store), app.door.rates["fhir"].take
        app.state.fhir = Router(store, bearer, links, base_url, config.rest, admit=admit, journal=journal)
        async with drained(journal, store, base_url):
            yield
        await store.close()

    app = _Hub(
        title="fhircm",
        version=version("fhircm"),
        description=openapi.DESCRIPTION,
        servers=[{"url": config.public_base_url}],
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(FhirError, lambda request, error: answer_to(error))
    app.door = Door(app.inside, config.edge, lambda: client_addresses(app.state.store.database))
    _public_routes(app, config)
    notify.add_routes(app, config.notifiers, config.keys_dir)
    web.add_routes(app)

    return app


class _Hub(FastAPI):
    """FastAPI for everything but what is below /fhir: that goes straight to the FHIR router, past FastAPI's layers. Both behind the door."""

    door: Door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.door(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith("/fhir") and path[5:6] in ("", "/") and path[5:18] != "/.well-known/":
            await self.state.fhir({**scope, "root_path": scope.get("root_path", "") + "/fhir"}, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _public_routes(app: FastAPI, config: AppConfig) -> None:
    add_routes(app, config.public_base_url, lambda: public_jwks(config.keys_dir)["keys"])

    @app.get("/health/live", summary="Does the process run?", response_model=openapi.Health)
    async def live() -> JSONResponse:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @app.get("/health/ready", summary="Can it be worked with?", response_model=openapi.Health, responses=openapi.READY_ANSWERS)
    async def ready() -> JSONResponse:
        """The database answers too."""
        try:
            await app.state.store.cursor("health")
        except FhirError as error:
            return JSONResponse({"status": "unavailable"}, answer_to(error).status_code)
        return JSONResponse({"status": "ok"})

    @app.post(
        "/hl7v2/{partner}",
        summary="Take an HL7 v2 message",
        response_class=Response,
        responses=openapi.HL7V2_ANSWERS,
        openapi_extra=openapi.HL7V2_BODY,
    )
    async def hl7v2_message(request: Request, partner: str) -> Response:
        """The answer is the acknowledgement, when everything is committed."""
        state = app.state
        return await hl7v2.message(request, partner, state.bearer, state.doors, state.journal, state.fhir.admit)

    @app.get(
        "/metrics",
        summary="What is there to watch?",
        response_class=PlainTextResponse,
        responses=openapi.METRICS_ANSWERS,
        openapi_extra=openapi.METRICS_TOKEN,
    )
    async def metrics(request: Request) -> Response:
        """How partners and the hub's own work are doing, in Prometheus's text format."""
        try:
            text = await app.state.metrics.text(request.headers.get("authorization"))
        except FhirError as error:
            status = answer_to(error).status_code
            return PlainTextResponse(f"{error}\n", status, {"WWW-Authenticate": "Bearer"} if status == 401 else None)
        return Response(text, headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})
