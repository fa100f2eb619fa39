"""An EHR with a vendor's habits over HTTP: what it serves and how follows from vendors/<name>.yaml.

https://hl7.org/fhir/R4/http.html, as far as the vendor keeps to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, urlencode

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.validation import check
from fhircm.sandbox.chart import Chart, Tree, patient_of
from fhircm.sandbox.signin import SignIn

_LETTER = {"read": "r", "search-type": "s", "create": "c", "update": "u"}
_CONTROLS = {"_count", "_format", "_id", "_lastUpdated", "page", "-pageContext", "category", "status", "patient", "identifier"}
FHIR = "application/fhir+json"


class Answer(Exception):
    """An answer that ends the request early."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def vendor(name: str) -> Tree:
    """A vendor's habits. Raises FileNotFoundError."""
    return yaml.safe_load((files("fhircm.sandbox") / "vendors" / f"{name}.yaml").read_text())


def outcome(status: int, code: str, text: str) -> Response:
    """An OperationOutcome as an answer."""
    issue = {"severity": "error", "code": code, "details": {"text": text}}
    return JSONResponse({"resourceType": "OperationOutcome", "issue": [issue]}, status, media_type=FHIR)


class Ehr:
    """The FHIR API of one EHR."""

    def __init__(self, habits: Tree, base_url: str, chart: Chart, sign_in: SignIn) -> None:
        self.habits, self.base_url, self.chart, self.sign_in = habits, base_url, chart, sign_in
        self.received: list[Tree] = []

    async def answer(self, request: Request, path: str) -> Response:
        """Any request below the base path."""
        try:
            if path == "metadata":
                return JSONResponse(self._capability_statement(), media_type=FHIR)
            self._check_accept(request)
            return await self._interaction(request, [step for step in path.split("/") if step])
        except Answer as early:
            return early.response

    async def _interaction(self, request: Request, steps: list[str]) -> Response:
        type = steps[0] if steps else ""
        served = self.habits["types"].get(type)
        if served is None:
            raise Answer(self._unknown_type())
        code = {
            ("GET", 1): "search-type",
            ("GET", 2): "read",
            ("POST", 1): "create",
            ("PUT", 2): "update",
        }.get((request.method, len(steps)))
        allowed = self.sign_in.allowed(request.headers.get("authorization", ""), _LETTER.get(code or "", "-"), type)
        if allowed is None:
            raise Answer(Response(status_code=401, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}))
        if code not in served["interactions"]:
            raise Answer(outcome(405, "not-supported", f"{type} does not support this"))
        if not allowed:
            raise Answer(outcome(403, "forbidden", "insufficient scope"))
        if code == "search-type":
            return self._search(request, type, served)
        if code == "read":
            return self._read(type, steps[1])
        return await self._write(request, type, steps[1] if code == "update" else None)

    def _read(self, type: str, id: str) -> Response:
        found = self.chart.get(type, id)
        return self._resource(found) if found else outcome(404, "not-found", "resource not found")

    def _resource(self, tree: Tree, status: int = 200) -> Response:
        return JSONResponse(tree, status, {"ETag": f'W/"{tree["meta"]["versionId"]}"'}, media_type=FHIR)

    # --- search --------------------------------------------------------------------------------------------------------------

    def _search(self, request: Request, type: str, served: Tree) -> Response:
        parameters = dict(parse_qsl(request.url.query))
        if "-pageContext" in parameters:
            parameters = json.loads(base64.urlsafe_b64decode(parameters["-pageContext"]))
        self._check_parameters(type, served, parameters)
        found = self._found(type, served, parameters)
        size = int(parameters.get("_count", self.habits["page_size"]))
        start = int(parameters.get("page", 0))
        shown = found[start : start + size]
        entries = [
            {"fullUrl": f"{self.base_url}/{type}/{one['id']}", "resource": one, "search": {"mode": "match"}} for one in shown
        ]
        if self.habits["paging"] == "opaque" and start:  # the last entry of the page before stands here once more
            entries.insert(0, {"fullUrl": f"{self.base_url}/{type}/{found[start - 1]['id']}", "resource": found[start - 1]})
        if self.habits["outcome_entry"]:
            issue = {"severity": "information", "code": "informational", "details": {"text": "search finished"}}
            entries.append({"resource": {"resourceType": "OperationOutcome", "issue": [issue]}, "search": {"mode": "outcome"}})
        bundle: Tree = {
            "resourceType": "Bundle",
            "type": "searchset",
            "link": self._links(type, parameters, start, size, len(found)),
        }
        if self.habits["total"] == "page":
            bundle["total"] = len(shown) if "_count" in parameters else len(found)
        if entries:
            bundle["entry"] = entries
        return JSONResponse(bundle, media_type=FHIR)

    def _check_parameters(self, type: str, served: Tree, parameters: dict[str, str]) -> None:
        if not any(set(needed) <= set(parameters) for needed in served["one_of"]):
            wanted = " or ".join("+".join(needed) for needed in served["one_of"])
            raise Answer(outcome(400, "required", f"a search for {type} needs {wanted}"))
        if self.habits["unknown_parameters"] == "refused":
            known = _CONTROLS | {name for needed in served["one_of"] for name in needed}
            for name in set(parameters) - known:
                raise Answer(outcome(400, "not-supported", f"unknown parameter {name}"))
            if "_lastUpdated" in parameters and not served.get("last_updated"):
                raise Answer(outcome(400, "not-supported", "_lastUpdated is not supported for this resource"))

    def _found(self, type: str, served: Tree, parameters: dict[str, str]) -> list[Tree]:
        if "patient" in parameters:
            found = self.chart.of_patient(type, parameters["patient"].removeprefix("Patient/"))
        elif "_id" in parameters:
            found = [one for id in parameters["_id"].split(",") if (one := self.chart.get(type, id))]
        else:
            found = self.chart.of_type(type)
        if "identifier" in parameters:
            found = [one for one in found if parameters["identifier"].rpartition("|")[2] in identifiers(one)]
        if "category" in parameters:
            wanted = set(parameters["category"].replace("|", ",").split(","))
            found = [one for one in found if wanted & set(_codes(one.get("category", [])))]
        elif "category" in served:
            found = [one for one in found if served["category"] in _codes(one.get("category", []))]
        if "recipient" in parameters:
            found = [one for one in found if any(r.get("reference") == parameters["recipient"] for r in one.get("recipient", []))]
        if "_lastUpdated" in parameters and served.get("last_updated"):
            since = datetime.fromisoformat(parameters["_lastUpdated"].removeprefix("ge").removeprefix("gt"))
            since = since if since.tzinfo else since.replace(tzinfo=UTC)
            found = [one for one in found if datetime.fromisoformat(one["meta"]["lastUpdated"]) >= since]
        return found

    def _links(self, type: str, parameters: dict[str, str], start: int, size: int, total: int) -> list[Tree]:
        if start + size >= total:
            return []
        following = {**parameters, "page": str(start + size)}
        if self.habits["paging"] == "opaque":
            following = {"-pageContext": base64.urlsafe_b64encode(json.dumps(following).encode()).decode()}
        return [{"relation": "next", "url": f"{self.base_url}/{type}?{urlencode(following)}"}]

    # --- writing -------------------------------------------------------------------------------------------------------------

    async def _write(self, request: Request, type: str, id: str | None) -> Response:
        body = await request.body()
        try:
            tree = json.loads(json.dumps(check(body, type).tree, default=float))
        except FhirError as error:
            raise Answer(outcome(error.status, error.issues[0].code, "; ".join(one.text for one in error.issues))) from None
        if "modifierExtension" in tree and self.habits["update_needs_if_match"]:
            raise Answer(outcome(422, "not-supported", "modifier extensions are not supported"))
        if id is not None:
            self._check_current(request, type, id, tree)
        stored = self.chart.write(tree, id)
        self._log(request, stored, body)
        if id is not None:
            return self._resource(stored)
        version = stored["meta"]["versionId"]
        headers = {"Location": f"{self.base_url}/{type}/{stored['id']}", "ETag": f'W/"{version}"'}
        return Response(status_code=201, headers=headers)

    def _check_current(self, request: Request, type: str, id: str, tree: Tree) -> None:
        before = self.chart.get(type, id)
        if before is None or tree.get("id") != id:
            raise Answer(outcome(404 if before is None else 400, "not-found", "no such resource"))
        named = request.headers.get("if-match")
        if named is None and self.habits["update_needs_if_match"]:
            raise Answer(outcome(428, "required", "If-Match is required"))
        if named is not None and named.strip('W/"') != before["meta"]["versionId"]:
            raise Answer(outcome(409 if self.habits["update_needs_if_match"] else 412, "conflict", "the resource was changed"))

    def _log(self, request: Request, stored: Tree, body: bytes) -> None:
        self.received.append(
            {
                "method": request.method,
                "type": stored["resourceType"],
                "id": stored["id"],
                "patient": patient_of(stored),
                "sha256": hashlib.sha256(body).hexdigest(),
                "identifiers": identifiers(stored),
            }
        )

    # --- habits --------------------------------------------------------------------------------------------------------------

    def _check_accept(self, request: Request) -> None:
        accept = request.headers.get("accept", "")
        if "json" in accept:
            return
        if self.habits["accept"] == "json_only" and accept not in ("", "*/*"):
            raise Answer(Response(status_code=406))
        if self.habits["accept"] == "xml_unless_json":
            raise Answer(Response("<Bundle xmlns='http://hl7.org/fhir'/>", media_type="application/fhir+xml"))

    def _unknown_type(self) -> Response:
        if self.habits["unknown_type"] == "html":
            return Response(
                "<!DOCTYPE html><html><body><h2>404 - File or directory not found.</h2></body></html>",
                404,
                media_type="text/html",
            )
        return outcome(404, "not-supported", "unknown resource type")

    def _capability_statement(self) -> Tree:
        resources = []
        for type, served in self.habits["types"].items():
            known = definitions().search_parameters[type]
            names = {name for needed in served.get("one_of", []) for name in needed} | {"patient", "category", "identifier"}
            names |= {"_lastUpdated"} if served.get("last_updated") else set()
            parameters = [{"name": name, "type": known[name].type} for name in sorted(names) if name in known]
            searchable = {"searchParam": parameters} if "search-type" in served["interactions"] else {}
            resources.append({"type": type, "interaction": [{"code": code} for code in served["interactions"]], **searchable})
        return {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-02-01",
            "kind": "instance",
            "fhirVersion": "4.0.1",
            "software": {"name": "fhircm sandbox"},
            "format": ["json"],
            "rest": [{"mode": "server", "resource": resources}],
        }


def identifiers(tree: Tree) -> list[str]:
    """Every identifier value of a resource, those of what it names as related too."""
    found: list[str] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("value"), str) and "system" in node:
                found.append(node["value"])
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    look(tree)
    return found


def _codes(concepts: list[Tree]) -> list[str]:
    return [coding.get("code", "") for one in concepts for coding in one.get("coding", [])]
