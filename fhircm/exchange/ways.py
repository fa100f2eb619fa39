"""The ways to tell a partner: each makes of a case what is to be sent, or says why it cannot.

https://hl7.org/fhir/R4/documentreference.html, https://hl7.org/fhir/R4/communication.html, https://hl7.org/fhir/R4/servicerequest.html
and https://hl7.org/fhir/R4/task.html. What is made depends on the case alone, not on the hour, so that a second attempt sends the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fhircm.exchange.attachments import Fetch, held
from fhircm.exchange.care_plan import care_plan_attachments, file_attachment
from fhircm.exchange.case import Case, Unfit, read, sent, source_at
from fhircm.exchange.human import instant
from fhircm.exchange.letter import attachment, letter
from fhircm.exchange.map_rules import Notes
from fhircm.exchange.native import Native, counterpart, native
from fhircm.exchange.outbound import codes
from fhircm.exchange.partners import Partner
from fhircm.exchange.referral_document import document
from fhircm.exchange.repoint import known_as, repoint
from fhircm.fhir.artefacts import read_yaml
from fhircm.fhir.disclosure import CONFIDENTIAL, may_tell
from fhircm.fhir.systems import DELIVERY, REFERRAL

_FORWARDED = ("status", "docStatus", "type", "category", "date", "description", "securityLabel", "content", "context", "language")
_HANDED_ON = ("code", "category", "priority", "orderDetail", "occurrenceDateTime", "occurrencePeriod", "reasonCode", "note")
_CLINICAL_NOTE = {"system": "http://hl7.org/fhir/us/core/CodeSystem/us-core-documentreference-category", "code": "clinical-note"}


@dataclass(frozen=True, slots=True)
class Create:
    """A resource to be created at the partner, once."""

    key: str  # value of its delivery identifier
    tree: dict[str, Any]
    kept: bool = False  # it will be kept alike, so what was sent is remembered

    @property
    def type(self) -> str:
        """Its resource type."""
        return str(self.tree["resourceType"])


@dataclass(frozen=True, slots=True)
class Amend:
    """A change to a resource that the partner has. `members` are those to set, for the tree just read; none when all is so already."""

    key: str
    type: str
    id: str
    members: Callable[[dict[str, Any]], dict[str, Any]]  # raises Unfit
    optional: bool = False  # the news is complete without it: a refusal is no failure


Shipment = Create | Amend | Native


ITS_OWN = ""  # the type of the resource that is told of


@dataclass(frozen=True, slots=True)
class Way:
    """How to tell a partner, and what the partner must be able to do for it."""

    type: str  # ITS_OWN: the type of the resource itself
    interaction: str
    build: Callable[[Case, Fetch | None], Awaitable[list[Shipment]]]  # raises Unfit

    def needs(self, resource: str) -> tuple[str, str]:
        """The type and interaction that it takes to tell of a resource of this type."""
        return self.type or resource, self.interaction


def delivery(key: str) -> dict[str, Any]:
    """The identifier by which a second sending is seen as the same."""
    return {"system": DELIVERY, "value": key}


def number(value: str) -> dict[str, Any]:
    """A referral number as an Identifier."""
    placer = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "PLAC"}
    return {"type": {"coding": [placer]}, "system": REFERRAL, "value": value}


def _identifiers(case: Case, key: str) -> list[dict[str, Any]]:
    """The delivery's own identifier, and the referral number where there is one."""
    return [delivery(key), *([number(case.words["number"])] if case.words.get("number") else [])]


async def _sender(case: Case) -> dict[str, Any]:
    """Who speaks: to the requester the performer, to the performer the requester, else the one that coordinates."""
    author = case.performer if case.occasion.to == "requester" else case.requester
    return (await _named(case, author) if author else {}) or {"display": "Care coordination"}


async def _named(case: Case, tree: dict[str, Any]) -> dict[str, Any]:
    return await known_as(case.store, case.partner, tree)


def _there(case: Case) -> dict[str, Any]:
    """The partner's own organisation, as the partner knows it."""
    return {"reference": f"Organization/{case.partner.organization.id}", "display": case.partner.organization.name}


def _when(case: Case) -> str:
    return instant(case.stored.last_updated)


def _clean(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if value not in (None, "", [], {})}


async def _order_status(case: Case, fetch: Fetch | None) -> list[Shipment]:
    wanted, there = case.occasion.order, case.order_there
    if wanted is None or there is None:
        raise Unfit("there is no order of its own to update")
    own = number(case.words["number"])

    def members(order: dict[str, Any]) -> dict[str, Any]:
        if order.get("status") == wanted:
            return {}
        if order.get("status") not in ("active", "on-hold", "draft", "unknown"):
            raise Unfit(f"its order is already '{order.get('status')}'")
        known = order.get("identifier", [])
        told = any(one.get("system") == REFERRAL and one.get("value") == own["value"] for one in known)
        return {"status": wanted, **({} if told else {"identifier": [*known, own]})}

    return [Amend(f"{case.key}/order-status", "ServiceRequest", there, members)]


async def _referral_task(case: Case, fetch: Fetch | None) -> list[Shipment]:
    key, order = f"{case.key}/referral-task", case.order or {}
    tree = {
        "resourceType": "Task",
        "identifier": _identifiers(case, key),
        "status": "requested",
        "intent": "order",
        "priority": order.get("priority"),
        "code": {"coding": [{"system": "http://hl7.org/fhir/CodeSystem/task-code", "code": "fulfill"}]},
        "description": " ".join(case.text),
        "focus": {"type": "ServiceRequest", "identifier": number(case.words["number"]), "display": case.words["order"]},
        "for": {"reference": f"Patient/{case.need_patient()}"},
        "authoredOn": _when(case),
        "lastModified": _when(case),
        "requester": await _sender(case),
        "owner": _there(case),
        "reasonCode": (order.get("reasonCode") or [None])[0],
        "restriction": case.tree.get("restriction", {}).get("period") and {"period": case.tree["restriction"]["period"]},
    }
    return [Create(key, _clean(tree))]


async def _referral_order(case: Case, fetch: Fetch | None) -> list[Shipment]:
    key, patient = f"{case.key}/referral-order", case.need_patient()
    if case.order is None:
        raise Unfit("there is no order to hand on")
    kept = {name: case.order[name] for name in _HANDED_ON if name in case.order}
    tree = {
        "resourceType": "ServiceRequest",
        "identifier": _identifiers(case, key),
        "status": "active",
        "intent": "order",
        **await repoint(case.store, case.partner, kept),
        "subject": {"reference": f"Patient/{patient}"},
        "authoredOn": case.order.get("authoredOn", _when(case)),
        "requester": await _sender(case),
        "performer": [_there(case)],
    }
    return [Create(key, _clean(tree))]


async def _note(case: Case, key: str, patient: str) -> dict[str, Any]:
    """What every document has that the hub writes itself."""
    return {
        "resourceType": "DocumentReference",
        "identifier": _identifiers(case, key),
        "status": "current",
        "docStatus": "final",
        "type": {"coding": [dict(case.occasion.note)]},
        "category": [{"coding": [_CLINICAL_NOTE]}],
        "subject": {"reference": f"Patient/{patient}"},
        "date": _when(case),
        "author": [await _sender(case)],
        "description": case.title,
    }


async def _letter(case: Case, fetch: Fetch | None) -> list[Shipment]:
    return await _sent_as_letter(case, f"{case.key}/letter", [])


async def _referral_document(case: Case, fetch: Fetch | None) -> list[Shipment]:
    """The letter that sends a referral, with what it carries as a second file."""
    key = f"{case.key}/referral-document"
    body = await document(case, key, _when(case), fetch)
    if body is None:
        raise Unfit("it carries nothing besides the order")
    carried = file_attachment("application/fhir+json", body, f"{case.title} (FHIR document)", _when(case))
    return await _sent_as_letter(case, key, [carried])


async def _sent_as_letter(case: Case, key: str, besides: list[dict[str, Any]]) -> list[Shipment]:
    patient = case.need_patient()
    related = [{"identifier": number(case.words["number"])}] if case.words.get("number") else []
    if case.order_there:
        related.append({"reference": f"ServiceRequest/{case.order_there}"})
    written = attachment(await letter(case), case.title, _when(case))
    tree = {
        **await _note(case, key, patient),
        "content": [{"attachment": one} for one in (written, *besides)],
        "context": {"related": related} if related else None,
    }
    return [Create(key, _clean(tree))]


async def _forward_output(case: Case, fetch: Fetch | None) -> list[Shipment]:
    patient = case.need_patient()
    notes = [await read(case.store, output.get("valueReference")) for output in case.tree.get("output", [])]
    documents = [note for note in notes if note and note["resourceType"] == "DocumentReference"]
    if not documents:
        raise Unfit("no document came of it")
    return [await _forward(case, document, patient, fetch) for document in documents if not source_at(document, case.partner)]


async def _forward(case: Case, document: dict[str, Any], patient: str, fetch: Fetch | None) -> Create:
    """A document of another organisation, with its bytes, its author and its custodian, on the partner's own Patient."""
    labels = codes(document.get("securityLabel", [])) | codes(document.get("meta", {}).get("security", []))
    if labels & CONFIDENTIAL:
        raise Unfit("the document is marked confidential, so a human must decide whether it may be handed on")
    if case.disclosure is not None and not case.disclosure.permits(document):
        raise Unfit("a consent of the patient keeps the document from them", "withheld")
    if "modifierExtension" in document:
        raise Unfit("the document bears an extension that changes its meaning")
    key = f"{case.key}/forward-output/{document['id']}"
    kept = {name: document[name] for name in _FORWARDED if name in document}
    kept["context"] = {
        name: value for name, value in document.get("context", {}).items() if name not in ("encounter", "sourcePatientInfo")
    }
    # Without the number as a related thing: the copy, when it is pulled, must not answer the referral once more.
    related = [one for one in kept["context"].get("related", []) if one.get("identifier", {}).get("system") != REFERRAL]
    kept["context"] = _clean({**kept["context"], "related": related})
    copied = await repoint(case.store, case.partner, kept)
    authors = [await read(case.store, author) for author in document.get("author", [])]
    custodian = await read(case.store, document.get("custodian"))
    about = [{"reference": f"ServiceRequest/{case.order_there}"}] if case.order_there else []
    tree = {
        "resourceType": "DocumentReference",
        "identifier": [
            *_identifiers(case, key),
            *(one for one in document.get("identifier", []) if one.get("system") != REFERRAL),
        ],
        **copied,
        "subject": {"reference": f"Patient/{patient}"},
        "author": [named for author in authors if author and (named := await _named(case, author))] or [await _sender(case)],
        "custodian": await _named(case, custodian) if custodian else None,
        "content": [{**content, "attachment": await held(content["attachment"], fetch)} for content in document["content"]],
        "context": _clean({**copied.get("context", {}), "related": [*copied.get("context", {}).get("related", []), *about]}),
    }
    return Create(key, _clean(tree))


async def _message(case: Case, fetch: Fetch | None) -> list[Shipment]:
    key, patient = f"{case.key}/message", case.need_patient()
    recipients = await _recipients(case)
    payload = [{"contentString": "\n".join([f"{case.title}.", *case.text])}]
    about = [{"reference": f"ServiceRequest/{case.order_there}"}] if case.order_there else []
    tree = {
        "resourceType": "Communication",
        "identifier": _identifiers(case, key),
        "basedOn": about,
        "status": "completed",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/communication-category", "code": "notification"}]}
        ],
        "priority": case.tree.get("priority"),
        "subject": {"reference": f"Patient/{patient}"},
        "topic": {"text": case.title},
        "sent": _when(case),
        "recipient": recipients,
        "sender": await _sender(case),
        "payload": payload,
    }
    return [Create(key, _clean(tree))]


async def _recipients(case: Case) -> list[dict[str, Any]]:
    """To whom at the partner: those it was addressed to, the one who ordered, else the organisation."""
    asked = case.tree.get("recipient", []) if case.occasion.to == "addressee" else []
    if case.occasion.to == "requester" and case.order:
        asked = [case.order["requester"]] if "requester" in case.order else []
    there = []
    for reference in asked:
        target = await read(case.store, reference)
        if target and (id := source_at(target, case.partner)):
            there.append({"reference": f"{target['resourceType']}/{id}"})
    return there or [_there(case)]


def _native(how: str) -> Callable[[Case, Fetch | None], Awaitable[list[Shipment]]]:
    async def build(case: Case, fetch: Fetch | None) -> list[Shipment]:
        return [await native(case, how, await counterpart(case.store, sent(case.partner.name), case.about))]

    return build


def _care_plan(way: str, parts: int) -> Callable[[Case, Fetch | None], Awaitable[list[Shipment]]]:
    async def build(case: Case, fetch: Fetch | None) -> list[Shipment]:
        return await _care_plan_document(case, way, parts)

    return build


async def _care_plan_document(case: Case, way: str, parts: int) -> list[Shipment]:
    """The plan as a document, with so many of its attachments: the page for people first."""
    key, patient = f"{case.key}/{way}", case.need_patient()
    if case.tree["resourceType"] != "CarePlan":
        raise Unfit("it is no care plan")
    if not may_tell(case.disclosure, case.tree):
        raise Unfit("it is marked confidential, so a human must decide whether it may be handed on")
    before = await _document_before(case)
    tree = {
        **await _note(case, key, patient),
        "relatesTo": [{"code": "replaces", "target": {"reference": f"DocumentReference/{before}"}}] if before else [],
        "content": [{"attachment": one} for one in (await care_plan_attachments(case, key, _when(case)))[:parts]],
    }

    def superseded(there: dict[str, Any]) -> dict[str, Any]:
        return {} if there.get("status") == "superseded" else {"status": "superseded"}

    replaced = [Amend(f"{key}/replaced", "DocumentReference", before, superseded, optional=True)] if before else []
    return [Create(key, _clean(tree)), *replaced]


async def _document_before(case: Case) -> str | None:
    """The id at the partner of the document that told of an older version of this plan."""
    prefix = f"{case.about}/{case.occasion.name}."
    told = await case.store.states(sent(case.partner.name), prefix)
    versions = {}
    for key, row in told.items():
        version, _, way = key.removeprefix(prefix).partition("/")
        if way in ("care-plan-document", "care-plan-page") and row["state"] == "done":
            versions[int(version)] = row
    older = [version for version in versions if version < case.stored.version]
    return str(versions[max(older)]["url"]).rpartition("/")[2] if older else None


WAYS: dict[str, Way] = {
    "order-status": Way("ServiceRequest", "update", _order_status),
    "referral-task": Way("Task", "create", _referral_task),
    "referral-order": Way("ServiceRequest", "create", _referral_order),
    "letter": Way("DocumentReference", "create", _letter),
    "referral-document": Way("DocumentReference", "create", _referral_document),
    "forward-output": Way("DocumentReference", "create", _forward_output),
    "message": Way("Communication", "create", _message),
    "native-update": Way(ITS_OWN, "update", _native("update")),
    "native-patch": Way(ITS_OWN, "patch", _native("patch")),
    "native-create": Way(ITS_OWN, "create", _native("create")),
    "care-plan-document": Way("DocumentReference", "create", _care_plan("care-plan-document", 2)),
    "care-plan-page": Way("DocumentReference", "create", _care_plan("care-plan-page", 1)),
}


# --- what a partner wants otherwise ------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _written(path: Path) -> dict[str, Any]:
    return read_yaml(path) or {} if path.exists() else {}


def habits(partner: Partner, type: str) -> dict[str, Any]:
    """What the partner's shape, and over it mappings/<partner>/outbound.yaml, say of a type: `absent`, `always`, `leave-out` and `find`."""
    return {**partner.outbound.get(type, {}), **_written(partner.folder / "outbound.yaml").get(type, {})}


def adapt(partner: Partner, tree: dict[str, Any], notes: Notes | None = None) -> dict[str, Any]:
    """The tree as this partner wants it, by its habits and its map. `{organization}` in the file stands for the id of its Organization.

    Raises MappingFailed. `notes` are told what the map does not know.
    """
    own = fill(habits(partner, tree["resourceType"]), {"{organization}": partner.organization.id})
    absent = {name: value for name, value in own.get("absent", {}).items() if name not in tree}
    whole = {**tree, **absent, **own.get("always", {})}
    kept = {name: value for name, value in whole.items() if name not in own.get("leave-out", [])}
    return partner.maps.outbound(kept, notes or Notes())


def fill(node: Any, words: dict[str, str]) -> Any:
    """A copy with placeholders replaced, whatever the depth."""
    if isinstance(node, list):
        return [fill(one, words) for one in node]
    if isinstance(node, dict):
        return {name: fill(value, words) for name, value in node.items()}
    if isinstance(node, str):
        for placeholder, word in words.items():
            node = node.replace(placeholder, word)
    return node
