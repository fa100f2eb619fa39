"""The providers among which a patient may choose, what they chose, and the request that goes out to those.

https://www.ecfr.gov/current/title-42/section-482.43 (c), https://hl7.org/fhir/R4/list.html. The offer and the choice are Lists of the stay:
both can be read years later as they were. A signature of the choice is a Provenance with the List as its target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from fhircm.coordination.acting import Act
from fhircm.coordination.build import concept, edit, instant, new, reference
from fhircm.coordination.codes import BASE, codings, own
from fhircm.coordination.context import Record, any_of, token
from fhircm.coordination.discharge.acts import open_planning
from fhircm.coordination.distribution import OFFERS, Distribution
from fhircm.coordination.people import named, organization_of
from fhircm.fhir.outcome import Conflict, Invalid
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import COORDINATION
from fhircm.store.operations import Put
from fhircm.store.resources import Stored

Tree = dict[str, Any]
OFFERED, CHOSEN, REFERRAL = "patient-choice-offered", "patient-choice", "post-acute-referral"
CANDIDATE = f"{BASE}/StructureDefinition/candidate"
OFFER = f"{BASE}/StructureDefinition/offered"
_PROVIDERS = frozenset(("HealthcareService", "Organization", "PractitionerRole", "Location"))
_REFERRED = {"coding": [{"system": "http://snomed.info/sct", "code": "3457005", "display": "Patient referral"}]}


async def offer_choices(act: Act) -> list[Put]:
    """The patient is offered providers of a `service`: these (`candidate`), or all in the patient's area that the hub knows."""
    plan, _ = await open_planning(act)
    candidates = [_given(one) for one in act.said.get("candidate", ())] or await _in_area(act, plan.patients[0])
    if not candidates:
        raise Conflict(
            "The hub knows no active HealthcareService of this type in the patient's area; name the providers as 'candidate'"
        )
    return [
        new(
            {
                "resourceType": "List",
                "id": str(uuid4()),
                "status": "current",
                "mode": "snapshot",
                "title": "Providers offered to the patient",
                "code": concept(OFFERED, (act.one("service") or {}).get("text")),
                "subject": reference(f"Patient/{plan.patients[0]}"),
                "encounter": reference(f"Encounter/{act.about.id}"),
                "date": instant(act.store.now),
                "source": act.one("by"),
                "note": [{"text": text} for text in act.said.get("note", ())],
                "entry": [await _entry(act, *one) for one in candidates],
            }
        )
    ]


def _given(parts: dict[str, list[Any]]) -> tuple[Tree, list[Tree]]:
    """A candidate as it was named, and what is told of it."""
    (provider,) = parts["provider"]
    if parse_reference(provider.get("reference", "")).type not in _PROVIDERS:
        raise Invalid(f"A candidate's 'provider' must be a reference to one of: {', '.join(sorted(_PROVIDERS))}", "candidate")
    names = {
        "quality": "valueString",
        "measure": "valueReference",
        "interest": "valueString",
        "network": "valueBoolean",
        "distance": "valueQuantity",
    }
    return provider, [{"url": name, member: value} for name, member in names.items() for value in parts.get(name, ())]


async def _entry(act: Act, provider: Tree, told: list[Tree]) -> Tree:
    """A candidate in the list: with its name, and the measures that are on record of it unless others were named."""
    there = await act.follow(provider)
    if there is None:
        raise Invalid(f"There is no {provider.get('reference')} that you may see", "candidate")
    if not any(one["url"] == "measure" for one in told):
        told = [*told, *[{"url": "measure", "valueReference": one} for one in await _measures(act, provider)]]
    extension = [{"url": CANDIDATE, "extension": told}] if told else []
    item = provider if provider.get("display") else await named(act, there)
    return {"item": item} | ({"extension": extension} if extension else {})


async def _measures(record: Record, provider: Tree) -> list[Tree]:
    """The newest report of each quality measure of a provider's organisation."""
    organization = await organization_of(record, provider)
    if organization is None:
        return []
    newest: dict[str, Stored] = {}
    for one in await record.find("MeasureReport", ("reporter", f"Organization/{organization.id}"), ("_sort", "_id")):
        before = newest.get(one.tree["measure"])
        if before is None or one.tree["period"].get("end", "") > before.tree["period"].get("end", ""):
            newest[one.tree["measure"]] = one
    return [reference(f"MeasureReport/{newest[measure].id}", measure) for measure in sorted(newest)]


async def _in_area(act: Act, patient: str) -> list[tuple[Tree, list[Tree]]]:
    """The services of the type that is asked for with a place where the patient lives: the same first three digits, else the state."""
    service = sorted(codings(act.one("service")))
    if not service:
        raise Invalid(
            "Without 'candidate', a 'service' with a code is needed: the type of HealthcareService to look for", "service"
        )
    human = await act.get("Patient", patient)
    places = list((human.tree if human else {}).get("address", []))
    found = await act.find("HealthcareService", ("active", "true"), ("service-type", any_of(token(*one) for one in service)))
    return [
        (await named(act, one), [])
        for one in found
        if any(_near(there, here) for there in await _addresses(act, one.tree) for here in places)
    ]


async def _addresses(record: Record, service: Tree) -> list[Tree]:
    locations = [await record.follow(one) for one in (*service.get("location", []), *service.get("coverageArea", []))]
    return [one.tree["address"] for one in locations if one is not None and "address" in one.tree]


def _near(there: Tree, here: Tree) -> bool:
    zips = [one.get("postalCode", "")[:3] for one in (there, here)]
    return zips[0] == zips[1] if all(zips) else bool(there.get("state")) and there.get("state") == here.get("state")


# --- the choice --------------------------------------------------------------------------------------------------------------


async def lists_of(record: Record, stay: str, code: str) -> list[Stored]:
    """The current Lists of a stay with a code of the hub, the oldest first."""
    found = await record.find("List", ("encounter", f"Encounter/{stay}"), ("code", token(COORDINATION, code)))
    return sorted((one for one in found if one.tree["status"] == "current"), key=lambda one: (one.tree.get("date", ""), one.id))


async def record_choice(act: Act) -> list[Put]:
    """The patient, or who speaks for them (`by`), chose these providers in this order (`choice`), or has no preference."""
    plan, _ = await open_planning(act)
    offered = await lists_of(act, act.about.id, OFFERED)
    if wanted := act.one("offer"):
        offered = [one for one in offered if f"List/{one.id}" == wanted.get("reference")]
    if not offered:
        raise Conflict("A choice is made among providers that were offered: offer them first, with Encounter/$offer-choices")
    chosen, none = act.said.get("choice", ()), bool(act.one("noPreference"))
    if bool(chosen) == none:
        raise Invalid("Name what was chosen ('choice', in the order of preference), or say 'noPreference'", "choice")
    by = act.one("by") or reference(f"Patient/{plan.patients[0]}")
    if parse_reference(by.get("reference", "")).type not in ("Patient", "RelatedPerson"):
        raise Invalid(
            "'by' must be the Patient or a RelatedPerson who speaks for them: staff record a choice, they do not make it", "by"
        )
    names = {one["item"].get("reference"): one["item"] for one in offered[-1].tree["entry"]}
    text = offered[-1].tree["code"].get("text")
    before = [one for one in await lists_of(act, act.about.id, CHOSEN) if one.tree["code"].get("text") == text]
    made = new(
        {
            "resourceType": "List",
            "id": str(uuid4()),
            "extension": [{"url": OFFER, "valueReference": reference(f"List/{offered[-1].id}")}],
            "status": "current",
            "mode": "snapshot",
            "title": "Providers that the patient chose",
            "code": concept(CHOSEN, text),
            "subject": reference(f"Patient/{plan.patients[0]}"),
            "encounter": reference(f"Encounter/{act.about.id}"),
            "date": instant(act.store.now),
            "orderedBy": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/list-order", "code": "priority"}]},
            "note": [{"authorReference": by, "time": instant(act.store.now), "text": act.one("reason", "Chosen freely")}],
            "entry": [{"item": names.get(one.get("reference"), one)} for one in chosen],
            "emptyReason": {"text": "No preference among those offered"} if none else None,
        }
    )
    return [made, *(edit(one, status="retired") for one in before)]


async def refer_to_chosen(act: Act) -> list[Put]:
    """The providers that the patient chose are asked at once, for offers, in an order of the hospital's for a `service`."""
    plan, _ = await open_planning(act)
    wanted = act.one("choice")
    found = [
        one for one in await lists_of(act, act.about.id, CHOSEN) if wanted is None or f"List/{one.id}" == wanted.get("reference")
    ]
    chosen = found[-1] if found else None
    performers: list[Tree] = [one["item"] for one in (chosen.tree.get("entry", []) if chosen else [])]
    if chosen is None or not (performers or act.said.get("to")):
        raise Conflict("Nobody was chosen so far: record the choice first, with Encounter/$record-choice, or name them as 'to'")
    how = Distribution(act.one("distribution", OFFERS), respond_by=act.one("respondBy"))
    supporting = [reference(f"List/{chosen.id}"), *act.said.get("supporting", ())]
    return [
        new(
            {
                "resourceType": "ServiceRequest",
                "id": str(uuid4()),
                "extension": [how.extension()],
                "status": "active",
                "intent": "order",
                "category": [concept(REFERRAL), _REFERRED],
                "priority": act.one("priority", "urgent"),
                "code": act.one("service") or {"text": chosen.tree["code"].get("text")},
                "subject": reference(f"Patient/{plan.patients[0]}"),
                "encounter": reference(f"Encounter/{act.about.id}"),
                "authoredOn": instant(act.store.now),
                "requester": act.one("requester") or act.about.tree.get("serviceProvider"),
                "performer": _once([*performers, *act.said.get("to", ())]),
                "supportingInfo": supporting,
            }
        )
    ]


def _once(references: Iterable[Tree]) -> list[Tree]:
    return list({one.get("reference"): one for one in references}.values())


def preference(order: Tree, lists: Iterable[Stored]) -> list[str]:
    """The references of an order's performers as the patient ranked them, by the choice that the order names."""
    named_here = {one.get("reference") for one in order.get("supportingInfo", [])}
    for one in lists:
        if f"List/{one.id}" in named_here and own(one.tree.get("code")) == CHOSEN:
            return [entry["item"].get("reference", "") for entry in one.tree.get("entry", [])]
    return [one.get("reference", "") for one in order.get("performer", [])]
