"""The FHIR operations ($…): THE list that the router, batches and /metadata read.

To add one: its OperationDefinition in `profiles/operation/`, a file here with one function, and a line in OPERATIONS.
https://hl7.org/fhir/R4/operations.html
"""

from __future__ import annotations

from fhircm.operations.definition import Operation, load
from fhircm.operations.expand import expand
from fhircm.operations.lookup import lookup, subsumes
from fhircm.operations.meta import meta
from fhircm.operations.translate import translate
from fhircm.operations.validate_code import validate_in_code_system, validate_in_value_set

# The name of its definition in profiles/operation/: the function that carries it out. Several definitions may share a code ($validate-code).
OPERATIONS: dict[str, Operation] = {
    name: load(name, function)
    for name, function in {
        "code-system-validate-code": validate_in_code_system,
        "expand": expand,
        "lookup": lookup,
        "meta": meta,
        "subsumes": subsumes,
        "translate": translate,
        "value-set-validate-code": validate_in_value_set,
    }.items()
}
