"""An EHR with a vendor's habits over HTTP: what it serves and how follows from vendors/<name>.yaml.

https://hl7.org/fhir/R4/http.html, as far as the vendor keeps to it. vendors/r4.yaml explains every habit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fhircm.fhir.artefacts import read_yaml
from fhircm.sandbox.chart import Chart, Tree
from fhircm.sandbox.searching import Searching
from fhircm.sandbox.signin import SignIn
from fhircm.sandbox.statement import statement
from fhircm.sandbox.writing import Writing
from fhircm.sandbox.wrong import FHIR, Answer, Wrong

_INTERACTIONS = {
    ("GET", 1): "search-type",
    ("GET", 2): "read",
    ("GET", 3): "history-instance",
    ("GET", 4): "vread",
    ("POST", 1): "create",
    ("PUT", 2): "update",
    ("PATCH", 2): "patch",
    ("DELETE", 2): "delete",
}
_LETTER = {
    "read": "r",
    "vread": "r",
    "history-instance": "r",
    "search-type": "s",
    "create": "c",
    "update": "u",
    "patch": "u",
    "delete": "d",
}
_CODES = {400: "invalid", 401: "login", 403: "forbidden", 404: "not-found", 405: "not-supported", 409: "conflict"}
_HTML = "<!DOCTYPE html><html><body><h2>404 - File or directory not found.</h2></body></html>"


def vendor(name: str) -> Tree:
    """A vendor's habits over those of plain R4. Raises FileNotFoundError."""
    habits = _written("r4")
    return {**habits, **_written(name)} if name != "r4" else habits


def vendors() -> list[str]:
    """The vendors whose habits are known."""
    return sorted(path.name.removesuffix(".yaml") for path in (files("fhircm.sandbox") / "vendors").iterdir())


def _written(name: str) -> Tree:
    return read_yaml(files("fhircm.sandbox") / "vendors" / f"{name}.yaml")


class Ehr:
    """The FHIR API of one EHR. `clock` counts seconds, for its limit of requests."""

    def __init__(
        self, habits: Tree, base_url: str, chart: Chart, sign_in: SignIn, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.habits, self.base_url, self.chart, self.sign_in = habits, base_url, chart, sign_in
        self.searching = Searching(habits, base_url, chart)
        self.writing = Writing(habits, base_url, chart, self.searching)
        self._clock, self._tokens, self._seen = clock, float(habits["rate"]["burst"]), clock()

    @property
    def received(self) -> list[Tree]:
        """What was written by clients, in order."""
        return self.writing.received

    async def answer(self, request: Request, path: str) -> Response:
        """Any request below the base path."""
        try:
            self._check_rate()
            if path == "metadata":
                return JSONResponse(statement(self.habits, self.base_url), media_type=FHIR)
            self._check_accept(request)
            return await self._interaction(request, [step for step in path.split("/") if step])
        except Answer as early:
            return early.response
        except Wrong as wrong:
            return self._render(wrong)

    async def _interaction(self, request: Request, steps: list[str]) -> Response:
        if not steps:
            return await self._at_base(request)
        type = steps[0]
        served = self.habits["types"].get(type)
        if served is None:
            raise self._unknown_type()
        code = _INTERACTIONS.get((request.method, len(steps)))
        if len(steps) > 2 and steps[2] != "_history":
            code = None
        self._check_token(request, _LETTER.get(code or "", "-"), type, lambda: code in served["interactions"])
        if type in self.habits["withheld"]:
            raise Wrong(403, "forbidden", "the client has no access to this resource")
        if code == "search-type":
            return self._bundle(self.searching.search(request, type, served))
        if code in ("create", "update", "patch", "delete"):
            return await self.writing.write(request, code, type, steps[1] if len(steps) > 1 else None)
        if code == "history-instance":
            return self._bundle(self.searching.history(type, steps[1]))
        return self._read(type, steps[1], steps[3] if code == "vread" else None)

    async def _at_base(self, request: Request) -> Response:
        """A batch or transaction, or the next page of a search that the server remembers."""
        self._check_token(request, "", "", lambda: True)
        if request.method == "GET" and "_getpages" in request.query_params:
            return self._bundle(self.searching.remembered(request))
        if request.method == "POST" and self.habits["system"]:
            return self._bundle(await self.writing.bundle(request))
        raise self._unknown_type()

    def _check_token(self, request: Request, letter: str, type: str, served: Callable[[], bool]) -> None:
        allowed = self.sign_in.allowed(request.headers.get("authorization", ""), letter, type)
        if allowed is None:
            raise Answer(Response(status_code=401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}))
        if not served():
            raise Wrong(405, "not-supported", f"{type} does not support this")
        if not allowed and type:
            raise Wrong(403, "forbidden", "insufficient scope")

    def _read(self, type: str, id: str, version: str | None) -> Response:
        found = self.chart.version(type, id, version) if version else self.chart.get(type, id)
        if found is None and self.chart.was(type, id) and not version:
            raise Wrong(410, "deleted", "resource is deleted")
        if found is None:
            raise Wrong(404, "not-found", "resource not found")
        return self.writing.resource(found)

    def _bundle(self, tree: Tree) -> Response:
        return JSONResponse(tree, media_type=FHIR)

    # --- habits --------------------------------------------------------------------------------------------------------------

    def _check_rate(self) -> None:
        """A bucket that fills at a rate: each request takes one, and an empty one asks for patience."""
        rate, now = self.habits["rate"], self._clock()
        self._tokens = min(float(rate["burst"]), self._tokens + (now - self._seen) * rate["per_second"])
        self._seen = now
        if self._tokens < 1:
            raise Answer(Response("Too Many Requests", 429, {"Retry-After": str(rate["retry_after"])}))
        self._tokens -= 1

    def _check_accept(self, request: Request) -> None:
        accept = request.headers.get("accept", "")
        if "json" in accept:
            return
        if self.habits["accept"] == "json_only" and accept not in ("", "*/*"):
            raise Answer(Response(status_code=406))
        if self.habits["accept"] == "xml_unless_json":
            raise Answer(Response("<Bundle xmlns='http://hl7.org/fhir'/>", media_type="application/fhir+xml"))

    def _unknown_type(self) -> Exception:
        if self.habits["unknown_type"] == "html":
            return Answer(Response(_HTML, 404, media_type="text/html"))
        return Wrong(404, "not-supported", "unknown resource type")

    def _render(self, wrong: Wrong) -> Response:
        if self.habits["errors"] == "resource-detail":
            return JSONResponse({"resource": wrong.code, "detail": wrong.text}, wrong.status)
        coding: Any = {"text": wrong.text}
        if system := self.habits["error_system"]:
            coding = {**coding, "coding": [{"system": system, "code": str(59000 + wrong.status)}]}
        issue = {"severity": "error", "code": wrong.code or _CODES.get(wrong.status, "processing"), "details": coding}
        return JSONResponse({"resourceType": "OperationOutcome", "issue": [issue]}, wrong.status, media_type=FHIR)
