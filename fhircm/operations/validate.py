"""$validate: everything that is wrong with a resource, or with what is to be done with it; nothing is written.

https://hl7.org/fhir/R4/resource-operation-validate.html
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fhircm.fhir import json
from fhircm.fhir.outcome import FhirError, Issue, Malformed, NotSupported, outcome
from fhircm.fhir.validation import check, issues_of
from fhircm.operations.call import Answer, Call
from fhircm.store.operations import Delete, Put

_MODES = ("create", "update", "delete", "profile")  # https://hl7.org/fhir/R4/valueset-resource-validation-mode.html


async def validate(call: Call) -> Answer:
    """Validate the resource that is sent, or the one that is stored; always answered 200, with every issue."""
    assert call.type
    mode = call.one("mode")
    if mode not in (None, *_MODES):
        raise NotSupported(f"The parameter 'mode' takes one of: {', '.join(_MODES)}")
    if mode == "profile":
        call.required("profile")
    if mode == "delete":
        return _answer(await _rehearsed(call, None))
    tree = call.one("resource")
    if tree is None:
        tree = json.parse((await call.store.read(call.type, call.id)).body) if call.id else call.required("resource")
    issues = issues_of(tree, call.type, call.all("profile"))
    if mode in ("create", "update") and all(issue.severity != "error" for issue in issues):
        issues += await _rehearsed(call, tree)
    return _answer(issues)


def _answer(issues: list[Issue]) -> Answer:
    return Answer(json.dumps(outcome(issues)))


async def _rehearsed(call: Call, tree: dict[str, Any] | None) -> list[Issue]:
    """What would keep the write from being done now."""
    assert call.type
    try:
        if tree is None:
            if call.id is None:
                raise NotSupported("Whether a resource may be deleted is asked at its own address")
            await call.store.rehearse([Delete(call.type, call.id)], [("d", call.type)])
        elif call.one("mode") == "create":
            checked = check(json.dumps({**tree, "id": str(uuid4())}))  # the server would choose another id
            await call.store.rehearse([Put(checked, if_version=0)], [("c", call.type)])
        else:
            await call.store.rehearse([_update(call, tree)], [("u", call.type)])
    except FhirError as error:
        return error.issues
    return []


def _update(call: Call, tree: dict[str, Any]) -> Put:
    checked = check(json.dumps(tree))
    if checked.id is None or call.id not in (None, checked.id):
        where = "the id in the URL" if call.id else "there for an update"
        raise Malformed(f"{call.type}.id must be {where}", f"{call.type}.id")
    return Put(checked, must_exist=not call.may_create)
