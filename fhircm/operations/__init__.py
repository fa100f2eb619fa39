"""The FHIR operations ($…): THE list that the router, batches and /metadata read.

To add one: its OperationDefinition in `profiles/operation/`, a file here with one function, and a line in OPERATIONS.
https://hl7.org/fhir/R4/operations.html
"""

from __future__ import annotations

from fhircm.operations.bulk_import import bulk_import
from fhircm.operations.definition import Operation, load
from fhircm.operations.export import export
from fhircm.operations.meta import meta

# The name of its definition in profiles/operation/: the function that carries it out. Several definitions may share a code ($export).
OPERATIONS: dict[str, Operation] = {
    name: load(name, function)
    for name, function in {
        "export": export,
        "group-export": export,
        "import": bulk_import,
        "meta": meta,
        "patient-export": export,
    }.items()
}
