"""The FHIR operations ($…): THE list that the router, batches and /metadata read.

To add one: its OperationDefinition in `profiles/operation/`, a file here with one function, and a line in OPERATIONS.
https://hl7.org/fhir/R4/operations.html
"""

from __future__ import annotations

from fhircm.operations.definition import Operation, load
from fhircm.operations.meta import meta
from fhircm.operations.validate import validate

# code: the function that carries it out
OPERATIONS: dict[str, Operation] = {code: load(code, function) for code, function in {"meta": meta, "validate": validate}.items()}
