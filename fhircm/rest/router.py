"""From method and path to an interaction: one thin dispatcher. https://hl7.org/fhir/R4/http.html#summary"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fhircm.access.audit import Touched, record
from fhircm.access.audit_journal import AuditUnavailable, Journal
from fhircm.access.bearer import Bearer
from fhircm.access.guarded_store import GuardedStore
from fhircm.access.principal import Principal
from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError, MethodNotAllowed, NotFound, NotSupported
from fhircm.operations import OPERATIONS
from fhircm.rest import headers
from fhircm.rest.bulk import export_file, export_remove, export_status
from fhircm.rest.capability import capability_statement
from fhircm.rest.create import create
from fhircm.rest.delete import delete, delete_conditionally
from fhircm.rest.errors import answer_to
from fhircm.rest.exchange import Exchange, RestSettings
from fhircm.rest.history import history
from fhircm.rest.links import PageLinks
from fhircm.rest.operation import operation
from fhircm.rest.patch import patch, patch_conditionally
from fhircm.rest.read import read
from fhircm.rest.search import search, search_compartment, search_system
from fhircm.rest.terminology_capability import terminology_capabilities
from fhircm.rest.transaction import transaction
from fhircm.rest.update import update, update_conditionally
from fhircm.rest.vread import vread

if TYPE_CHECKING:
    from fhircm.store.resources import Store

log = logging.getLogger("fhircm.access")

Interaction = Callable[..., Awaitable[Response]]
AT_ONCE = 4  # batches and transactions that a process works at: each holds many times the memory of its body
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")

# The list that routes and that /metadata reads: shape of the path, method, code of the interaction, function.
INTERACTIONS: tuple[tuple[str, str, str, Interaction], ...] = (
    ("", "GET", "search-system", search_system),
    ("", "POST", "transaction", transaction),
    ("", "POST", "batch", transaction),
    ("_history", "GET", "history-system", history),
    ("_search", "POST", "search-system", search_system),
    ("type", "GET", "search-type", search),
    ("type", "POST", "create", create),
    ("type", "PUT", "update", update_conditionally),
    ("type", "PATCH", "patch", patch_conditionally),
    ("type", "DELETE", "delete", delete_conditionally),
    ("type/_search", "POST", "search-type", search),
    ("type/_history", "GET", "history-type", history),
    ("type/id/type", "GET", "search-type", search_compartment),
    ("type/id/type/_search", "POST", "search-type", search_compartment),
    ("type/id", "GET", "read", read),
    ("type/id", "PUT", "update", update),
    ("type/id", "PATCH", "patch", patch),
    ("type/id", "DELETE", "delete", delete),
    ("type/id/_history", "GET", "history-instance", history),
    ("type/id/_history/version", "GET", "vread", vread),
)
_BY_SHAPE: dict[str, dict[str, tuple[str, Interaction]]] = {}
for _shape, _method, _code, _function in INTERACTIONS:
    _BY_SHAPE.setdefault(_shape, {})[_method] = _code, _function
# Not of FHIR itself, so /metadata does not name them: where an export or import is, and its files.
_BY_SHAPE["$export-status"] = {"GET": ("$export-status", export_status), "DELETE": ("$export-remove", export_remove)}
_BY_SHAPE["$export-file"] = {"GET": ("export-file", export_file)}
_BY_SHAPE["$operation"] = {"GET": ("$", operation), "POST": ("$", operation)}  # which there are, fhircm/operations lists


@dataclass(frozen=True)
class Router:
    """The FHIR API as an ASGI application. `base_url` is its address, without a slash at the end."""

    store: Store
    bearer: Bearer
    links: PageLinks
    base_url: str
    settings: RestSettings
    admit: Callable[[str], None] = lambda client_id: None  # raises when a client has asked too often
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    journal: Journal | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        begun = time.perf_counter()
        principal: Principal | None = None
        touched = Touched("")
        try:
            if self.journal is not None:
                self.journal.require_room()
            if not _path(request).startswith(("$export-file/", "$import-file/")):
                headers.require_acceptable(request)
            await self.store.guides.follow()
            if _path(request) == "metadata" and request.method in ("GET", "HEAD"):
                response = self._metadata(request.query_params.get("mode"))
            else:
                touched.code, function, arguments = _route(request.method, _path(request))
                principal = await self.bearer.principal(request.headers.get("authorization"))
                self.admit(principal.client_id)
                response = await function(self._exchange(request, principal, touched), *arguments)
        except Exception as error:
            response = answer_to(error)
        if touched.code:
            try:
                self._record(request, touched, principal, response.status_code)
            except AuditUnavailable as error:
                response = answer_to(error)
        if request.query_params.get("_pretty") == "true" and response.media_type == headers.FHIR_JSON:
            response = headers.formatted(response)
        if request.method == "HEAD":
            response = Response(status_code=response.status_code, headers=dict(response.headers))
        _tell(request, principal, response.status_code, begun)
        await response(scope, receive, send)

    def _record(self, request: Request, touched: Touched, principal: Principal | None, status: int) -> None:
        """Write a request down, before anybody is told of it."""
        if self.journal is None:
            return
        scope = request.scope  # of which Starlette would make objects, for each look
        client = scope.get("client")
        record(
            self.journal,
            touched,
            principal,
            status=status,
            method=scope["method"],
            address=client[0] if client else None,
            request=next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), None),
            target=_target(_path(request)),
            query=scope["query_string"].decode("latin-1"),
        )

    def _exchange(self, request: Request, principal: Principal, touched: Touched) -> Exchange:
        async def dispatch(inner: Request) -> Response:
            touched = Touched("")
            status = 500
            try:
                answer = await answered(inner, touched)
                status = answer.status_code
            except FhirError as error:
                status = error.status
                raise
            finally:
                if touched.code:
                    self._record(inner, touched, principal, status)
            return answer

        async def answered(inner: Request, touched: Touched) -> Response:
            touched.code, function, arguments = _route(inner.method, _path(inner))
            if function is transaction:
                raise NotSupported("A batch or transaction cannot stand in another")
            if function in (export_status, export_file):
                raise NotSupported("An export or import is asked for alone: what there is of it is no resource")
            answer = await function(self._exchange(inner, principal, touched), *arguments)
            return Response(b"", answer.status_code, dict(answer.headers)) if inner.method == "HEAD" else answer

        return Exchange(
            request,
            GuardedStore(self.store, principal, self.settings.grace),
            self.base_url,
            self.settings,
            self.links,
            dispatch,
            self.turns,
            touched,
        )

    def _metadata(self, mode: str | None) -> Response:
        if mode == "terminology":
            return Response(json.dumps(terminology_capabilities(self.base_url)), media_type=headers.FHIR_JSON)
        codes: dict[bool, dict[str, None]] = {True: {}, False: {}}
        for shape, _, code, _ in INTERACTIONS:
            codes[shape.startswith("type")][code] = None
        statement = capability_statement(self.base_url, list(codes[True]), list(codes[False]), OPERATIONS.values(), self.settings)
        return Response(json.dumps(statement), media_type=headers.FHIR_JSON)


def _path(request: Request) -> str:
    return request.scope["path"].removeprefix(request.scope.get("root_path", "")).strip("/")


def _target(path: str) -> str | None:
    """The resource type, or the resource, that an address is about."""
    steps = path.split("/")
    if steps[0] not in definitions().resource_types:
        return None
    return "/".join(steps[:2]) if len(steps) > 1 and _ID.fullmatch(steps[1]) and steps[1][0] not in "$_" else steps[0]


def _route(method: str, path: str) -> tuple[str, Interaction, list[str]]:
    """The code of the interaction for the audit, its function, and what it is called with. Raises NotFound, MethodNotAllowed."""
    steps = path.split("/") if path else []
    shape, arguments = _shape_of(steps)
    if steps and steps[0] not in definitions().resource_types and not steps[0].startswith(("$", "_")):
        raise NotFound(f"'{steps[0][:64]}' is not a resource type of FHIR R4")
    methods = _BY_SHAPE.get(shape)
    if methods is None:
        raise NotFound("There is nothing at this address")
    code, function = methods.get("GET" if method == "HEAD" else method, ("", None))
    if function is None:
        raise MethodNotAllowed(f"{method} is not supported here; {', '.join(methods)} are")
    return code + arguments[0] if code == "$" else code, function, arguments


def _shape_of(steps: list[str]) -> tuple[str, list[str]]:
    match steps:
        case [] | ["_history"] | ["_search"]:
            return "/".join(steps), []
        case ["$export-status" | "$import-status", id] if _ID.fullmatch(id):
            return "$export-status", [id]
        case ["$export-file" | "$import-file", id, number] if _ID.fullmatch(id) and _ID.fullmatch(number):
            return "$export-file", [id, number]
        case [*where, called] if called.startswith("$") and len(where) < 3 and all(map(_ID.fullmatch, where)):
            return "$operation", [called[1:], *where]
        case [type, id, "_history", version, called] if called.startswith("$") and all(map(_ID.fullmatch, (type, id, version))):
            return "$operation", [called[1:], type, id, version]
        case [type]:
            return "type", [type]
        case [type, "_search"]:
            return "type/_search", [type]
        case [type, "_history"]:
            return "type/_history", [type]
        case [type, id] if _ID.fullmatch(id):
            return "type/id", [type, id]
        case [type, id, "_history"] if _ID.fullmatch(id):
            return "type/id/_history", [type, id]
        case [type, id, inner] if _ID.fullmatch(id) and (inner == "*" or inner in definitions().resource_types):
            return "type/id/type", [type, id, inner]
        case [type, id, inner, "_search"] if _ID.fullmatch(id) and (inner == "*" or inner in definitions().resource_types):
            return "type/id/type/_search", [type, id, inner]
        case [type, id, "_history", version] if _ID.fullmatch(id):
            return "type/id/_history/version", [type, id, version]
    return "nowhere", []


def _tell(request: Request, principal: Principal | None, status: int, begun: float) -> None:
    """One line for each request: never a query or a body, which may hold what is known of a patient."""
    who = principal.client_id if principal else "-"
    log.info("%s %s %s %d %.1f ms", who, request.method, request.url.path, status, (time.perf_counter() - begun) * 1000)
