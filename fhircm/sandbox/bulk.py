"""The sandbox's bulk exports: asynchronous, with the vendor's rules about dialect, waiting, `_since`, tokens and how long files are kept.

https://hl7.org/fhir/uv/bulkdata/export.html, as far as the vendor keeps to it. What differs is in `bulk` of vendors/<name>.yaml (see RULES).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fhircm.sandbox.chart import Chart, Tree, patient_of

RULES: Tree = {
    "levels": ["group"],
    "methods": ["GET"],
    "lists": "comma",  # comma, repeated: the other form is refused; both
    "since": True,  # honoured; a vendor that does not still takes it
    "one_at_a_time": False,
    "retry_after": 0,  # seconds, told with every 202
    "polls": 1,  # answered 202 before it is done
    "token": True,  # requiresAccessToken
    "ranges": True,
    "serves": 1000,  # how often a file is served before it has expired
    "error_types": [],  # that it says it could not export
    "pages": 1,  # of the manifest
    "files": "",  # base URL of the files, if they are elsewhere
}


class SignIn(Protocol):
    """Who may."""

    def allowed(self, authorization: str, letter: str, type: str) -> bool | None: ...


class Ehr(Protocol):
    """What of the EHR is looked at."""

    habits: Tree
    base_url: str
    chart: Chart
    sign_in: Any


@dataclass
class _Export:
    request: str
    at: datetime
    since: datetime | None
    types: list[str]
    patients: list[str]
    polls: int
    files: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)  # name: kind, type, bytes
    served: dict[str, int] = field(default_factory=dict)


class Exports:
    """The exports of one EHR. `clock` gives its time."""

    def __init__(self, ehr: Ehr, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.ehr, self.rules, self.clock = ehr, {**RULES, **ehr.habits.get("bulk", {})}, clock
        self.running: dict[str, _Export] = {}
        self.begun = 0  # kick-offs that started something
        self.seen: list[tuple[str, str]] = []  # method and URL of every kick-off

    # --- kick-off ------------------------------------------------------------------------------------------------------------

    async def kick_off(self, request: Request) -> Response:
        """GET or POST [level]/$export."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        self.seen.append((request.method, str(request.url)))
        level = "system" if request.url.path.endswith("/$export") and "Group/" not in request.url.path else "group"
        level = "patient" if "/Patient/$export" in request.url.path else level
        if level not in self.rules["levels"] or request.method not in self.rules["methods"]:
            return _outcome(400, "not-supported", f"no {request.method} of an export of this level")
        if "respond-async" not in request.headers.get("prefer", ""):
            return _outcome(400, "required", "Prefer: respond-async is required")
        if self.rules["one_at_a_time"] and self.running:
            headers = {"Retry-After": str(self.rules["retry_after"])}
            return _outcome(429, "throttled", "a bulk export of this client is running", headers)
        named = await _named(request)
        types = [one for name, value in named if name == "_type" for one in value.split(",")]
        listed = sum(name == "_type" for name, _ in named)
        wrong = (listed > 1 and self.rules["lists"] == "comma") or (
            listed == 1 and "," in str(named) and self.rules["lists"] == "repeated"
        )
        if wrong:
            return _outcome(400, "invalid", "_type in the other form is not supported")
        since = next((datetime.fromisoformat(value) for name, value in named if name == "_since"), None)
        wanted = [value.removeprefix("Patient/") for name, value in named if name == "patient"]
        members = (
            self._members(request.path_params.get("id"))
            if level == "group"
            else [one["id"] for one in self.ehr.chart.of_type("Patient")]
        )
        id = secrets.token_hex(8)
        patients = [one for one in members if not wanted or one in wanted]
        self.running[id] = _Export(
            str(request.url), self.clock(), since if self.rules["since"] else None, types, patients, self.rules["polls"]
        )
        self._make(self.running[id])
        self.begun += 1
        where = f"{self.ehr.base_url}/bulk-status/{id}"
        return Response(status_code=202, headers={"Content-Location": where, "Retry-After": str(self.rules["retry_after"])})

    def _members(self, id: str | None) -> list[str]:
        group = self.ehr.chart.get("Group", id or "") or {}
        return [str(one["entity"]["reference"]).removeprefix("Patient/") for one in group.get("member", ())]

    def _make(self, export: _Export) -> None:
        """The files as they are at this moment."""
        patients = set(export.patients)
        for type in export.types:
            found = [one for one in self.ehr.chart.of_type(type) if self._in(one, patients)]
            if export.since is not None:
                found = [one for one in found if datetime.fromisoformat(one["meta"]["lastUpdated"]) > export.since]
            if type in self.rules["error_types"]:
                issue = {"severity": "error", "code": "processing", "diagnostics": f"{type}/1 could not be exported"}
                line = {"resourceType": "OperationOutcome", "issue": [issue]}
                export.files[f"error-{type}.ndjson"] = "error", "OperationOutcome", json.dumps(line).encode() + b"\n"
            elif found:
                body = "".join(json.dumps(one) + "\n" for one in found).encode()
                export.files[f"{type}.ndjson"] = "output", type, body
        gone = [(type, id) for type, id, at in self.ehr.chart.deleted if export.since is not None and at > export.since]
        if gone:
            entries = [{"request": {"method": "DELETE", "url": f"{type}/{id}"}} for type, id in gone]
            bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
            export.files["deleted.ndjson"] = "deleted", "Bundle", json.dumps(bundle).encode() + b"\n"

    def _in(self, tree: Tree, patients: set[str]) -> bool:
        about = tree["id"] if tree["resourceType"] == "Patient" else patient_of(tree)
        return about is None or about in patients

    # --- status and files ----------------------------------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        """GET tells how far it is, DELETE ends it."""
        if (refused := self._unauthorized(request)) is not None:
            return refused
        id = request.path_params["id"]
        export = self.running.get(id)
        if export is None:
            return _outcome(404, "not-found", "no such export")
        if request.method == "DELETE":
            del self.running[id]
            return Response(status_code=202)
        if export.polls > 0:
            export.polls -= 1
            return Response(status_code=202, headers={"Retry-After": str(self.rules["retry_after"]), "X-Progress": "in progress"})
        return self._manifest(id, export, int(request.query_params.get("page", 1)))

    def _manifest(self, id: str, export: _Export, page: int) -> Response:
        base = self.rules["files"] or f"{self.ehr.base_url}/bulk-file"
        names, pages = sorted(export.files), self.rules["pages"]
        told: dict[str, Any] = {
            "transactionTime": export.at.isoformat(),
            "request": export.request,
            "requiresAccessToken": self.rules["token"],
            "output": [],
            "error": [],
        }
        for name in names[page - 1 :: pages]:
            kind, type, body = export.files[name]
            told.setdefault(kind, []).append({"type": type, "url": f"{base}/{id}/{name}", "count": body.count(b"\n")})
        if page < pages:
            told["link"] = [{"relation": "next", "url": f"{self.ehr.base_url}/bulk-status/{id}?page={page + 1}"}]
        return JSONResponse(told, headers={"Expires": "Thu, 31 Dec 2099 00:00:00 GMT"})

    async def file(self, request: Request) -> Response:
        """GET of a file."""
        if self.rules["token"] and (refused := self._unauthorized(request)) is not None:
            return refused
        export, name = self.running.get(request.path_params["id"]), request.path_params["name"]
        if export is None or name not in export.files:
            return _outcome(404, "not-found", "no such file")
        export.served[name] = export.served.get(name, 0) + 1
        if export.served[name] > self.rules["serves"]:
            return _outcome(410, "not-found", "the file has expired")
        body, headers = export.files[name][2], {"ETag": f'"{request.path_params["id"]}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if wanted and self.rules["ranges"]:
            start = int(wanted[1])
            if start >= len(body):
                return Response(status_code=416, headers={"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return Response(body[start:], 206, headers, "application/fhir+ndjson")
        return Response(body, 200, headers, "application/fhir+ndjson")

    def _unauthorized(self, request: Request) -> Response | None:
        allowed = self.ehr.sign_in.allowed(request.headers.get("authorization", ""), "r", "Patient")
        return None if allowed else Response(status_code=401 if allowed is None else 403)


def routes(exports: Exports, base_path: str) -> list[Route]:
    """Where it is served; before the route of everything else below the base path."""
    paths = {"group": "Group/{id}/$export", "patient": "Patient/$export", "system": "$export"}
    served = [paths[level] for level in exports.rules["levels"]]  # at the others there is what is at any wrong address
    return [
        *(Route(f"{base_path}/{path}", exports.kick_off, methods=["GET", "POST"]) for path in served),
        Route(f"{base_path}/bulk-status/{{id}}", exports.status, methods=["GET", "DELETE"]),
        Route(f"{base_path}/bulk-file/{{id}}/{{name}}", exports.file),
    ]


async def _named(request: Request) -> list[tuple[str, str]]:
    if request.method == "GET":
        return parse_qsl(request.url.query)
    parameters = json.loads(await request.body() or b"{}").get("parameter", [])
    named = []
    for one in parameters:
        value = next(value for name, value in one.items() if name.startswith("value"))
        named.append((one["name"], value["reference"] if isinstance(value, dict) else value))
    return named


def _outcome(status: int, code: str, text: str, headers: dict[str, str] | None = None) -> Response:
    issue = {"severity": "error", "code": code, "details": {"text": text}}
    return JSONResponse(
        {"resourceType": "OperationOutcome", "issue": [issue]}, status, headers, media_type="application/fhir+json"
    )
