"""$meta: the profiles, tags and security labels of a resource. https://hl7.org/fhir/R4/resource-operation-meta.html"""

from __future__ import annotations

from fhircm.operations.call import Answer, Call, parameters


async def meta(call: Call) -> Answer:
    """The meta element of one resource."""
    assert call.type
    assert call.id
    stored = await call.store.read(call.type, call.id)
    return parameters({"name": "return", "valueMeta": stored.tree["meta"]})
