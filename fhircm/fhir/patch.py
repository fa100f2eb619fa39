"""Change a resource by a patch: JSON Patch. https://hl7.org/fhir/R4/http.html#patch and https://www.rfc-editor.org/rfc/rfc6902"""

from __future__ import annotations

from typing import Any

import jsonpatch
import jsonpointer

from fhircm.fhir import json
from fhircm.fhir.outcome import Conflict, Invalid, Malformed
from fhircm.fhir.validation import Checked, check_tree

LIMIT = 1000  # operations of one patch


def read_json_patch(body: bytes) -> list[dict[str, Any]]:
    """The operations of a JSON Patch. Raises Malformed."""
    operations = json.parse_any(body)
    if not isinstance(operations, list) or not all(isinstance(one, dict) for one in operations):
        raise Malformed("A JSON Patch is a list of objects")
    if len(operations) > LIMIT:
        raise Malformed(f"A JSON Patch may have at most {LIMIT} operations")
    try:
        jsonpatch.JsonPatch(operations)
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, AttributeError):
        raise Malformed("An operation of the JSON Patch is none: each needs op, path, and what belongs to them") from None
    return operations


def json_patched(tree: dict[str, Any], operations: list[dict[str, Any]]) -> Checked:
    """The resource that the operations make of a resource.

    Raises Conflict when a `test` fails, Invalid for a path that leads nowhere, and for a result that may not be.
    """
    type, id = tree["resourceType"], tree["id"]
    try:
        patched = jsonpatch.apply_patch(tree, operations)
    except jsonpatch.JsonPatchTestFailed:
        raise Conflict("A test of the patch failed: the resource is not as the patch expects it") from None
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError, IndexError, ValueError):
        raise Invalid("A path of the patch leads nowhere in this resource", type) from None
    if not isinstance(patched, dict) or patched.get("resourceType") != type or patched.get("id") != id:
        raise Invalid("A patch may not change resourceType or id", f"{type}.id")
    return check_tree(patched)
