"""The only renderer of errors: every one becomes an OperationOutcome.

https://hl7.org/fhir/R4/operationoutcome.html
"""

from __future__ import annotations

import logging

from starlette.responses import Response

from fhircm import correlation
from fhircm.fhir import json
from fhircm.fhir.outcome import FhirError, Issue, outcome
from fhircm.rest.headers import FHIR_JSON

log = logging.getLogger("fhircm.rest")


def answer_to(error: Exception) -> Response:
    """The answer to an error. One that is unknown shows a correlation id and nothing else, and is logged by its kind."""
    if isinstance(error, FhirError):
        return Response(json.dumps(outcome(error.issues)), error.status, dict(error.headers), FHIR_JSON)
    id = correlation.current.get()
    log.error("unexpected %s, correlation id %s", type(error).__name__, id, exc_info=log.isEnabledFor(logging.DEBUG))
    issue = Issue("fatal", "exception", f"Something went wrong here; the operator finds it by {id}")
    return Response(json.dumps(outcome([issue], id)), 500, media_type=FHIR_JSON)
