"""HL7 v2 messages over HTTP: `POST /hl7v2/<partner>`, answered with the acknowledgement when it is committed.

https://hapifhir.github.io/hapi-hl7v2/hapi-hl7overhttp/specification.html. The client signs in as for everything else, and belongs to the
partner's organisation; any other is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from fhircm.access.audit import Touched, record
from fhircm.access.audit_journal import Journal
from fhircm.access.bearer import Bearer
from fhircm.access.principal import Principal
from fhircm.exchange.adt_doors import Doors
from fhircm.exchange.hl7v2 import LIMIT
from fhircm.fhir.outcome import FhirError, Forbidden, TooLarge, UnsupportedMediaType

MEDIA_TYPE = "application/hl7-v2"


async def message(
    request: Request, partner: str, bearer: Bearer, doors: Doors, journal: Journal | None, admit: Callable[[str], None]
) -> Response:
    """Take one message, and write down that it was sent. 200 with AA; 422 with AE or AR, as HL7 over HTTP has it: the acknowledgement says why.

    `admit` raises when a client has asked too often.
    """
    principal, status = None, 500
    if journal is not None:
        journal.require_room()
    try:
        principal = await bearer.principal(request.headers.get("authorization"))
        admit(principal.client_id)
        answer = await _taken(request, partner, principal, doors)
        status = answer.status_code
        return answer
    except FhirError as error:
        status = error.status
        raise
    finally:
        if journal is not None:
            client = request.client
            address, id = client.host if client else None, request.headers.get("x-request-id")
            said = {"address": address, "request": id, "target": None, "query": ""}
            record(journal, Touched("$hl7v2"), principal, status=status, method="POST", **said)


async def _taken(request: Request, partner: str, principal: Principal, doors: Doors) -> Response:
    if principal.user is not None or doors.organization(partner) not in principal.known_as:
        raise Forbidden("Only a client of the partner's own organisation may send its messages")
    principal.require("c", "Encounter")
    principal.require("u", "Patient")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise UnsupportedMediaType(f"The body must be {MEDIA_TYPE}")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LIMIT:
            raise TooLarge(f"A message may have at most {LIMIT} bytes")
    ack = await doors.of(partner).receive(bytes(body))
    accepted = b"MSA" in ack and ack.split(b"MSA")[1][1:3] == b"AA"
    return Response(ack, 200 if accepted else 422, media_type=f"{MEDIA_TYPE}; charset=utf-8")
