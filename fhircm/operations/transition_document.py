"""$transition-document and $accept-document: a transition of care as a document, given and taken. fhircm/coordination/transition/"""

from __future__ import annotations

from fhircm.coordination.build import stable_id
from fhircm.coordination.context import Record
from fhircm.coordination.transition.document import document
from fhircm.coordination.transition.receiving import is_transition_document
from fhircm.fhir.outcome import Invalid
from fhircm.fhir.validation import check_tree
from fhircm.operations.call import Answer, Call
from fhircm.store.resources import Put


async def transition_document(call: Call) -> Answer:
    """The document of a stay, of what the caller may see. Raises NotFound, Gone, Forbidden, Invalid."""
    assert call.id is not None
    stay = await call.store.read("Encounter", call.id)
    return Answer(await document(Record(call.store), stay, call.base_url, call.store.now))


async def accept_document(call: Call) -> Answer:
    """Keep the document as a Bundle, under an id that follows from its identifier: sent again, it is the same. Raises Invalid, Forbidden."""
    tree = call.required("document")
    if not is_transition_document(tree):
        raise Invalid("The Bundle must be a document whose Composition has the type or category 18761-7 of LOINC", "Bundle")
    identifier = tree.get("identifier", {})
    id = stable_id("Bundle", identifier.get("system", ""), identifier.get("value", ""))
    bundle = check_tree({**tree, "id": id}, by_guides=False)
    there = (await call.store.read_many([("Bundle", id)])).get(("Bundle", id))
    if there is not None and there.tree.get("entry") == tree.get("entry"):
        return Answer(there.body, 200, {"ETag": f'W/"{there.version}"'})
    verb = "u" if there is not None else "c"
    (stored,) = await call.store.transact([Put(bundle, there.version if there else 0)], [(verb, "Bundle")])
    location = {"Location": f"{call.base_url}/Bundle/{id}/_history/{stored.version}", "ETag": f'W/"{stored.version}"'}
    return Answer(stored.body, 200 if there else 201, location)
