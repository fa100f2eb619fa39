"""The FHIR operations ($…): THE list that the router, batches and /metadata read.

To add one: its OperationDefinition in `profiles/operation/`, a file here with one function, and a line in OPERATIONS.
https://hl7.org/fhir/R4/operations.html
"""

from __future__ import annotations

from fhircm.operations.definition import Operation, load
from fhircm.operations.everything import everything
from fhircm.operations.match import match
from fhircm.operations.meta import meta, meta_add, meta_delete

# The name of its definition in profiles/operation/: the function that carries it out. Several definitions may share a code ($everything).
OPERATIONS: dict[str, Operation] = {
    name: load(name, function)
    for name, function in {
        "encounter-everything": everything,
        "episode-of-care-everything": everything,
        "group-everything": everything,
        "meta": meta,
        "meta-add": meta_add,
        "meta-delete": meta_delete,
        "patient-everything": everything,
        "patient-match": match,
    }.items()
}
