"""What apps and systems do at the authorization server is written down before its answer leaves: tokens, revocations, launches, registrations.

https://profiles.ihe.net/ITI/BALP. Who a client says that it is, as far as the request tells; never a token, a code, a secret or an assertion.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from fastapi import Request
from fastapi.responses import Response

from fhircm import correlation
from fhircm.access import audit

_HARMLESS = re.compile(r"[\x21-\x7e]{1,200}")


def note(
    request: Request,
    what: str,
    answer: Response,
    client: str | None = None,
    patient: str | None = None,
    target: str | None = None,
) -> None:
    """Write down what was asked for and how it was answered. Raises AuditUnavailable."""
    journal = request.app.state.journal
    if journal is not None:
        audit.record_security(
            journal,
            what,
            status=answer.status_code,
            client=client if client and _HARMLESS.fullmatch(client) else None,
            patient=patient,
            address=request.client.host if request.client else None,
            request=correlation.current.get(),
            target=target,
        )


def said_to_be(form: Mapping[str, str], authorization: str | None) -> str | None:
    """The client that a request claims to be of, proved or not."""
    if "client_id" in form:
        return form["client_id"]
    kind, _, encoded = (authorization or "").partition(" ")
    try:
        if kind.lower() == "basic":
            return unquote_plus(base64.b64decode(encoded, validate=True).decode().partition(":")[0])
        claims: Any = json.loads(base64.urlsafe_b64decode(form["client_assertion"].split(".")[1] + "=="))
        return str(claims["iss"])
    except (binascii.Error, ValueError, LookupError, TypeError, RecursionError):
        return None
