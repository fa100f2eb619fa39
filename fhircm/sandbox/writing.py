"""Writes to a sandbox EHR: create, update, patch, delete, conditional create, batch and transaction, as far as the vendor has them.

https://hl7.org/fhir/R4/http.html#create and https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fhircm.fhir.outcome import FhirError
from fhircm.fhir.patch import json_patched, read_json_patch
from fhircm.fhir.validation import check
from fhircm.sandbox.chart import Chart, Tree, identifiers, patient_of
from fhircm.sandbox.searching import Searching, bundle_of
from fhircm.sandbox.wrong import FHIR, Wrong

_ETAG = re.compile(r'W/"([^"]*)"|"?([^"]*)"?')


class Writing:
    """The writes of one EHR."""

    def __init__(self, habits: Tree, base_url: str, chart: Chart, searching: Searching) -> None:
        self.habits, self.base_url, self.chart, self.searching = habits, base_url, chart, searching
        self.received: list[Tree] = []

    async def write(self, request: Request, code: str, type: str, id: str | None) -> Response:
        """One interaction that writes. Raises Wrong."""
        body, headers = await request.body(), request.headers
        if code == "create":
            return self._create(type, body, headers.get("if-none-exist"))
        assert id is not None
        if code == "delete":
            return self._delete(type, id)
        if code == "patch":
            self._check_current(type, id, headers.get("if-match"))
            return self.resource(self._stored("PATCH", self._patched(type, id, body), body, id))
        return self._update(type, id, body, headers.get("if-match"))

    def resource(self, tree: Tree, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A resource as an answer."""
        etag = {"ETag": f'W/"{tree["meta"]["versionId"]}"'} if self.habits["versioning"] != "no-version" else {}
        return JSONResponse(self.searching.shown(tree), status, {**etag, **(headers or {})}, media_type=FHIR)

    def _create(self, type: str, body: bytes, condition: str | None) -> Response:
        tree = self._checked(body, type)
        if condition and self.habits["conditional_create"]:
            found = self.searching.matching(type, condition.partition("?")[2] or condition)
            if len(found) > 1:
                raise Wrong(412, "multiple-matches", "the condition finds several")
            if found:
                return self.resource(found[0], 200, {"Location": self._location(found[0])})
        if stamped := self.habits["types"][type].get("stamped"):
            tree = {**tree, stamped: self.chart.clock().isoformat(timespec="seconds")}
        stored = self._stored("POST", tree, body, None)
        if self.habits["create_answer"] == "body":
            return self.resource(stored, 201, {"Location": self._location(stored)})
        return Response(
            status_code=201, headers={"Location": self._location(stored), "ETag": f'W/"{stored["meta"]["versionId"]}"'}
        )

    def _update(self, type: str, id: str, body: bytes, named: str | None) -> Response:
        tree = self._checked(body, type)
        if tree.get("id") != id:
            raise Wrong(400, "invalid", "the id is not that of the address")
        created = self.chart.get(type, id) is None and self.habits["update_create"]
        if not created:
            self._check_current(type, id, named)
        stored = self._stored("PUT", tree, body, id)
        return self.resource(stored, 201 if created else 200)

    def _delete(self, type: str, id: str) -> Response:
        if self.chart.get(type, id) is None:
            raise Wrong(404, "not-found", "no such resource")
        self.chart.delete(type, id)
        return Response(status_code=204)

    def _patched(self, type: str, id: str, body: bytes) -> Tree:
        try:
            tree = self.chart.get(type, id)
            return json.loads(json.dumps(json_patched(json.loads(json.dumps(tree)), read_json_patch(body)).tree, default=float))
        except FhirError as error:
            raise Wrong(error.status, error.issues[0].code, "; ".join(one.text for one in error.issues)) from None

    def _checked(self, body: bytes, type: str) -> Tree:
        try:
            tree = json.loads(json.dumps(check(body, type).tree, default=float))
        except FhirError as error:
            raise Wrong(error.status, error.issues[0].code, "; ".join(one.text for one in error.issues)) from None
        if "modifierExtension" in tree and self.habits["modifier_extension"] == "refused":
            raise Wrong(422, "not-supported", "modifier extensions are not supported")
        return tree

    def _check_current(self, type: str, id: str, named: str | None) -> None:
        before = self.chart.get(type, id)
        if before is None:
            raise Wrong(404, "not-found", "no such resource")
        if named is None and self.habits["update_needs_if_match"]:
            raise Wrong(428, "required", "If-Match is required")
        found = _ETAG.fullmatch(named.strip()) if named is not None else None
        if named is not None and (found is None or (found[1] or found[2]) != before["meta"]["versionId"]):
            raise Wrong(self.habits["stale"], "conflict", "the resource was changed")

    def _stored(self, method: str, tree: Tree, body: bytes, id: str | None) -> Tree:
        stored = self.chart.write(tree, id)
        self.received.append(
            {
                "method": method,
                "type": stored["resourceType"],
                "id": stored["id"],
                "patient": patient_of(stored),
                "sha256": hashlib.sha256(body).hexdigest(),
                "identifiers": [value for _, value in identifiers(stored)],
            }
        )
        return stored

    def _location(self, tree: Tree) -> str:
        return f"{self.base_url}/{tree['resourceType']}/{tree['id']}"

    # --- several at once -----------------------------------------------------------------------------------------------------

    async def bundle(self, request: Request) -> Tree:
        """A batch, or a transaction of creates and updates: all of it or nothing. Raises Wrong."""
        try:
            tree = json.loads(await request.body())
            kind, entries = tree["type"], [(one["request"], one.get("resource")) for one in tree.get("entry", [])]
        except (ValueError, KeyError, TypeError):
            raise Wrong(400, "structure", "this is no batch and no transaction") from None
        if kind not in self.habits["system"]:
            raise Wrong(422, "not-supported", f"a {kind} is not supported")
        answers = []
        if kind == "transaction":
            done = len(self.received)
            try:
                with self.chart.together():
                    answers = [{"response": self._one(asked, resource)} for asked, resource in entries]
            except Wrong:
                del self.received[done:]
                raise
        else:
            for asked, resource in entries:
                try:
                    answers.append({"response": self._one(asked, resource)})
                except Wrong as wrong:
                    answers.append({"response": {"status": str(wrong.status)}})
        return bundle_of(f"{kind}-response", answers)

    def _one(self, asked: Any, resource: Any) -> Tree:
        type, _, id = str(asked.get("url", "")).partition("?")[0].partition("/")
        served = self.habits["types"].get(type, {"interactions": []})["interactions"]
        body = json.dumps(resource).encode()
        if asked.get("method") == "POST" and "create" in served:
            answer = self._create(type, body, asked.get("ifNoneExist"))
        elif asked.get("method") == "PUT" and "update" in served and id:
            answer = self._update(type, id, body, asked.get("ifMatch"))
        else:
            raise Wrong(405, "not-supported", f"{asked.get('method')} of {type} is not supported")
        told = {"status": str(answer.status_code), "location": answer.headers.get("location"), "etag": answer.headers.get("etag")}
        return {name: value for name, value in told.items() if value}
