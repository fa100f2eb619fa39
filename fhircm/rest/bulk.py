"""The status of a Bulk Data export or import, its manifest and its files: only for the client that started it.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-status-request
"""

from __future__ import annotations

import re

from starlette.responses import Response, StreamingResponse

from fhircm.fhir import json
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import NotFound
from fhircm.jobs import exported
from fhircm.jobs.export_files import as_gzip, as_text
from fhircm.jobs.exported import Exported, UnderWay
from fhircm.rest import headers
from fhircm.rest.exchange import Exchange

NDJSON = "application/fhir+ndjson"
_PATIENCE = 120  # seconds; the longest that a client is asked to wait before it asks again
_NO_GZIP = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)")


async def export_status(exchange: Exchange, id: str) -> Response:
    """202 while it goes on, 200 with the manifest when it is done."""
    found = await exported.status(exchange.store.store, exchange.store.principal.account, id)
    if isinstance(found, UnderWay):
        waited = (exchange.store.store.clock() - found.since).total_seconds()
        patience = str(round(min(max(waited / 5, 1), _PATIENCE)))
        return Response(status_code=202, headers={"X-Progress": found.progress, "Retry-After": patience})
    body = json.dumps(_manifest(exchange, id, found) if found.inputs is None else _import_manifest(exchange, id, found))
    return Response(body, 200, {"Expires": headers.http_date(found.expires)}, "application/json")


def _manifest(exchange: Exchange, id: str, found: Exported) -> dict[str, object]:
    listed: dict[str, list[dict[str, object]]] = {"output": [], "deleted": [], "error": []}
    for number, file in enumerate(found.files):
        url = f"{exchange.base_url}/$export-file/{id}/{number}"
        listed[file["kind"]].append({"type": file["type"], "url": url, "count": file["count"]})
    if not found.since:
        del listed["deleted"]
    return {
        "transactionTime": found.transaction_time,
        "request": found.request,
        "requiresAccessToken": True,
        **listed,
    }


def _import_manifest(exchange: Exchange, id: str, found: Exported) -> dict[str, object]:
    """https://github.com/smart-on-fhir/bulk-import/blob/master/import.md#response---complete-status"""
    output: list[dict[str, object]] = []
    error: list[dict[str, object]] = []
    for one in found.inputs or ():
        counts = {"imported": one["imported"], "unchanged": one["unchanged"], "rejected": one["rejected"]}
        output.append(
            {"type": one["type"], "inputUrl": one["url"], "count": one["imported"] + one["unchanged"], "extension": counts}
        )
        for number in one["errors"]:
            url, count = f"{exchange.base_url}/$import-file/{id}/{number}", found.files[number]["count"]
            error.append({"type": "OperationOutcome", "inputUrl": one["url"], "count": count, "url": url})
    return {
        "transactionTime": found.transaction_time,
        "request": found.request,
        "requiresAccessToken": True,
        "output": output,
        "error": error,
    }


async def export_remove(exchange: Exchange, id: str) -> Response:
    """End it, or remove its files."""
    await exported.remove(exchange.store.store, exchange.store.principal.account, id)
    return Response(status_code=202)


async def export_file(exchange: Exchange, id: str, number: str) -> Response:
    """A file, a part at a time; compressed, as it is kept, for those who take it so."""
    store, principal = exchange.store.store, exchange.store.principal
    found = await exported.status(store, principal.account, id)
    if isinstance(found, UnderWay) or not number.isdigit() or int(number) >= len(found.files):
        raise NotFound("There is no such file")
    file = found.files[int(number)]
    exchange.touched.job, exchange.touched.query = id, f"type={file['type']}&file={number}"
    if file["kind"] == "output" and file["type"] in definitions().resource_types:
        principal.require("r", file["type"])
    about = {"Vary": "Accept-Encoding", "Cache-Control": "private, no-store", "Expires": headers.http_date(found.expires)}
    accepted = exchange.request.headers.get("accept-encoding", "").lower()
    if "gzip" in accepted and not _NO_GZIP.search(accepted):
        body = as_gzip(store, id, int(number), file)
        return StreamingResponse(body, 200, about | {"Content-Encoding": "gzip"}, NDJSON)
    return StreamingResponse(as_text(store, id, int(number), file), 200, about, NDJSON)
