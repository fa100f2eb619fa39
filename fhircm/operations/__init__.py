"""The FHIR operations ($…): THE list that the router, batches and /metadata read.

To add one: its OperationDefinition in `profiles/operation/`, a file here with one function, and a line in OPERATIONS.
https://hl7.org/fhir/R4/operations.html
"""

from __future__ import annotations

from fhircm.operations.acting import VERBS, acting
from fhircm.operations.break_glass import break_glass
from fhircm.operations.bulk_import import bulk_import
from fhircm.operations.caseload import caseload, hand_over_caseload
from fhircm.operations.definition import Operation, load
from fhircm.operations.discharge import compare_offers, discharge_plan, handover_package
from fhircm.operations.everything import everything
from fhircm.operations.expand import expand
from fhircm.operations.export import export
from fhircm.operations.lookup import lookup, subsumes
from fhircm.operations.match import match
from fhircm.operations.meta import meta, meta_add, meta_delete
from fhircm.operations.referral import candidates, loop, package
from fhircm.operations.timeline import story
from fhircm.operations.transition_document import accept_document, transition_document
from fhircm.operations.translate import translate
from fhircm.operations.validate import validate
from fhircm.operations.validate_code import validate_in_code_system, validate_in_value_set
from fhircm.operations.work_list import claim_next, work_list

# The name of its definition in profiles/operation/: the function that carries it out. Several definitions may share a code ($export).
OPERATIONS: dict[str, Operation] = {
    name: load(name, function)
    for name, function in {
        "bundle-accept-document": accept_document,
        "code-system-validate-code": validate_in_code_system,
        "encounter-discharge-plan": discharge_plan,
        "encounter-everything": everything,
        "encounter-handover-package": handover_package,
        "encounter-transition-document": transition_document,
        "episode-of-care-everything": everything,
        "expand": expand,
        "export": export,
        "group-everything": everything,
        "group-export": export,
        "import": bulk_import,
        "lookup": lookup,
        "meta": meta,
        "meta-add": meta_add,
        "meta-delete": meta_delete,
        "organization-caseload": caseload,
        "patient-break-glass": break_glass,
        "patient-everything": everything,
        "patient-export": export,
        "patient-match": match,
        "patient-timeline": story,
        "practitioner-hand-over-caseload": hand_over_caseload,
        "service-request-candidates": candidates,
        "service-request-loop": loop,
        "service-request-package": package,
        "service-request-compare-offers": compare_offers,
        "subsumes": subsumes,
        "task-claim-next": claim_next,
        "task-worklist": work_list,
        "translate": translate,
        "validate": validate,
        "value-set-validate-code": validate_in_value_set,
        **{name: acting(verb) for name, verb in VERBS.items()},
    }.items()
}
