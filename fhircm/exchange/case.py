"""What is known around a resource when a partner is to be told of it: whose patient, which order, who asked whom, in words too.

https://hl7.org/fhir/R4/references.html. A partner is only ever told of its own Patient: the record that it holds itself, or the one
that a Person links to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from string import Formatter
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from fhircm.exchange.merge import survivor, target_of
from fhircm.exchange.outbound import Occasion
from fhircm.exchange.partners import Partner
from fhircm.fhir.query import parse_query
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import LONGITUDINAL, REFERRAL
from fhircm.store.resources import Store, Stored

if TYPE_CHECKING:
    from fhircm.fhir.disclosure import Disclosure

NPI = "http://hl7.org/fhir/sid/us-npi"


class Unfit(Exception):
    """A way cannot be used for this case; the text says why, in words for a human, and `why` in one for the code."""

    def __init__(self, text: str, why: str = "unfit") -> None:
        super().__init__(text)
        self.why = why


@dataclass
class Case:
    """One occasion of one resource for one partner."""

    store: Store
    partner: Partner
    occasion: Occasion
    stored: Stored  # the version that made the occasion
    tree: dict[str, Any]
    patient: dict[str, Any] | None = None  # as the hub has it
    patient_there: str | None = None  # id of the partner's own Patient
    order: dict[str, Any] | None = None  # the ServiceRequest that a Task fulfils
    order_there: str | None = None  # its id at the partner
    requester: dict[str, Any] | None = None
    performer: dict[str, Any] | None = None
    words: dict[str, str] = field(default_factory=dict)
    prefer: str | None = None  # whose changes win where hub and partner changed the same, as a human decided
    disclosure: Disclosure | None = None  # what the patient's consents let the partner know

    @property
    def key(self) -> str:
        """See Occasion.key."""
        return self.occasion.key(self.stored.type, self.stored.id, self.stored.version)

    @property
    def about(self) -> str:
        """The local reference of the resource."""
        return f"{self.stored.type}/{self.stored.id}"

    @property
    def title(self) -> str:
        """The occasion in a few words."""
        return next(self._say([self.occasion.title]), "Message from care coordination")

    @property
    def text(self) -> list[str]:
        """The occasion in sentences."""
        return list(self._say(self.occasion.text))

    def _say(self, sentences: Iterable[str]) -> Iterator[str]:
        for sentence in sentences:
            names = [name for _, name, _, _ in Formatter().parse(sentence) if name]
            if all(self.words.get(name) for name in names):
                yield sentence.format_map(self.words)

    def need_patient(self) -> str:
        """The id of the partner's own Patient. Raises Unfit when it has none that is known."""
        if self.patient_there is None:
            raise Unfit("the patient has no record there that the hub knows of", "no-record")
        return self.patient_there


def source_at(tree: dict[str, Any] | None, partner: Partner) -> str | None:
    """The id at the partner of a resource that was pulled from it."""
    source = (tree or {}).get("meta", {}).get("source", "")
    where, _, id = source.rpartition(f"/{(tree or {}).get('resourceType')}/")
    return id if id and where == partner.base_url else None


def sent(partner: str) -> str:
    """The namespace of the rows that tell what was sent to a partner, by the value of its delivery identifier."""
    return f"delivery:{partner}"


def counterpart_key(about: str) -> str:
    """The key of the row that tells of a partner's counterpart of a resource, which the hub made there."""
    return f"{about}/native"


async def read(store: Store, reference: Any) -> dict[str, Any] | None:
    """The resource behind a Reference element, when it is here."""
    parsed = parse_reference((reference or {}).get("reference", ""))
    if parsed.kind != "local" or not parsed.type or not parsed.id:
        return None
    stored = (await store.read_many([(parsed.type, parsed.id)])).get((parsed.type, parsed.id))
    return stored.tree if stored else None


async def patient_at(store: Store, patient: dict[str, Any] | None, partner: Partner) -> str | None:
    """The id of this human's Patient at the partner: the record itself, or one that an active Person links to it."""
    if patient is not None and target_of(patient):  # merged there: the survivor is meant
        end = await survivor(store, patient["id"])
        stored = (await store.read_many([("Patient", end)])).get(("Patient", end)) if end else None
        patient = stored.tree if stored else None
    if patient is None or (own := source_at(patient, partner)):
        return own if patient else None
    page = await store.search(parse_query("Person", [("patient", f"Patient/{patient['id']}")]))
    persons = [person.tree for person in page.matches]
    members = {link["target"]["reference"] for person in persons if person.get("active") for link in person.get("link", [])}
    keys = [("Patient", member.removeprefix("Patient/")) for member in sorted(members) if member.startswith("Patient/")]
    there = {id for stored in (await store.read_many(keys)).values() if (id := source_at(stored.tree, partner))}
    return there.pop() if len(there) == 1 else None


def npi(tree: dict[str, Any] | None) -> str | None:
    """The National Provider Identifier of an organisation or practitioner."""
    identifiers = (tree or {}).get("identifier", [])
    return next((one.get("value") for one in identifiers if one.get("system") == NPI), None)


async def gather(store: Store, partner: Partner, occasion: Occasion, stored: Stored) -> Case | None:
    """The case of an occasion, or None when it does not concern this partner."""
    case = await concerns(store, partner, occasion, stored)
    if case is None:
        return None
    case.patient = case.patient or await read(store, subject_of(case.tree))
    case.patient_there = case.patient_there or await patient_at(store, case.patient, partner)
    case.words = await _words(case)
    return case


async def concerns(store: Store, partner: Partner, occasion: Occasion, stored: Stored) -> Case | None:
    """The case as far as it takes to see that it concerns this partner; None when it does not."""
    case = Case(store, partner, occasion, stored, stored.tree)
    return case if await _concerns(case) else None


def subject_of(tree: dict[str, Any]) -> Any:
    """The Reference to the patient that a resource is about."""
    return tree.get("for") or tree.get("subject") or tree.get("patient")


def of_each_record(tree: dict[str, Any]) -> bool:
    """Whether each record of a human has one of these that says the same: the plan and the team out of all records."""
    made = any(one.get("system") == LONGITUDINAL for one in _identifiers(tree))
    return made and tree["resourceType"] in ("CarePlan", "CareTeam")


def _identifiers(tree: dict[str, Any]) -> list[dict[str, Any]]:
    found = tree.get("identifier", [])
    return found if isinstance(found, list) else [found]


async def _concerns(case: Case) -> bool:
    tree, partner, store = case.tree, case.partner, case.store
    if case.occasion.to == "addressee":
        recipients = [await read(store, reference) for reference in tree.get("recipient", [])]
        return any(source_at(recipient, partner) for recipient in recipients)
    if case.occasion.to == "elsewhere":
        case.patient = await read(store, tree.get("for"))
        case.patient_there = await patient_at(store, case.patient, partner)
        happened = await read(store, tree.get("encounter")) or await read(store, tree.get("focus"))
        return case.patient_there is not None and not source_at(happened, partner)
    if case.occasion.to == "known":
        case.patient = await read(store, subject_of(tree))
        case.patient_there = await patient_at(store, case.patient, partner)
        if of_each_record(tree) and not source_at(case.patient, partner):
            return False  # the partner's own record of this human has one that says the same
        return case.patient_there is not None
    case.performer = await organization(store, tree.get("owner"))
    if case.occasion.to == "performer" and npi(case.performer) != partner.organization.npi:
        return False
    case.order = await read(store, tree.get("focus"))
    case.order_there = source_at(case.order, partner)
    if case.occasion.to == "requester" and case.order_there is None:
        return False
    if case.order and case.order.get("status") in case.occasion.order_not:
        return False
    case.requester = await organization(store, tree.get("requester")) or await organization(
        store, (case.order or {}).get("requester")
    )
    return True


async def organization(store: Store, reference: Any) -> dict[str, Any] | None:
    """The organisation behind a Reference to an Organization, or to a PractitionerRole in one."""
    tree = await read(store, reference)
    return await read(store, tree.get("organization")) if tree and tree["resourceType"] == "PractitionerRole" else tree


# --- words -------------------------------------------------------------------------------------------------------------------


def concept_text(concept: Any) -> str:
    """A CodeableConcept in words, or its code for want of any."""
    if not isinstance(concept, dict):
        return ""
    codings = concept.get("coding", [])
    told = [concept.get("text"), *(coding.get("display") for coding in codings), *(coding.get("code") for coding in codings)]
    return next((text for text in told if text), "")


def name_of(tree: dict[str, Any] | None) -> str:
    """The name of an organisation, place or human; of a Condition or an order what it is; else nothing."""
    name = (tree or {}).get("name")
    if isinstance(name, list):
        first = next((one for one in name if one.get("use") == "official"), name[0])
        parts = [*first.get("given", []), first.get("family"), *first.get("suffix", [])]
        return first.get("text") or " ".join(part for part in parts if part)
    return name if isinstance(name, str) else concept_text((tree or {}).get("code"))


def referral_number(task: dict[str, Any]) -> str:
    """The number that a referral goes by everywhere."""
    own = (one.get("value") for one in task.get("identifier", []) if one.get("system") == REFERRAL)
    return next((value for value in own if value), task["id"])


def local_time(text: str, partner: Partner) -> str:
    """A FHIR dateTime on the partner's own clock, in words; a date alone stays as it is."""
    if "T" not in text:
        return text
    at = datetime.fromisoformat(text).astimezone(ZoneInfo(partner.time_zone))
    return f"{at:%Y-%m-%d} at {at:%H:%M} ({partner.time_zone})"


async def _words(case: Case) -> dict[str, str]:
    tree, order = case.tree, case.order or {}
    words = {
        "number": referral_number(tree) if case.occasion.to in ("performer", "requester") else "",
        "requester": name_of(case.requester),
        "performer": name_of(case.performer),
        "order": concept_text(order.get("code")),
        "priority": str(order.get("priority", "")),
        "reason": "; ".join(await reasons(case.store, order)),
        "status_reason": concept_text(tree.get("statusReason")).rstrip("."),
        "outcome": "; ".join([text async for text in _outcome(case)]),
        "topic": concept_text(tree.get("topic")),
        "message": "\n".join(part["contentString"] for part in tree.get("payload", []) if "contentString" in part),
    }
    if case.occasion.to == "elsewhere":
        words |= await _discharge(case)
    if case.occasion.to == "known":
        words["coordinator"] = name_of(await organization(case.store, tree.get("author") or tree.get("managingOrganization")))
    if case.occasion.name == "referral-scheduled":
        words["when"] = await _appointment(case)
    return words


async def reasons(store: Store, order: dict[str, Any]) -> list[str]:
    """Why an order was placed, in words."""
    told = [concept_text(reason) for reason in order.get("reasonCode", [])]
    for reference in order.get("reasonReference", []):
        told.append(name_of(await read(store, reference)) or reference.get("display", ""))
    return list(dict.fromkeys(text for text in told if text))


async def _outcome(case: Case) -> Any:
    for output in case.tree.get("output", []):
        target = await read(case.store, output.get("valueReference"))
        told = (target or {}).get("description") or concept_text((target or {}).get("type")) or output.get("valueString")
        yield told or concept_text(output.get("type"))


async def _discharge(case: Case) -> dict[str, str]:
    encounter = await read(case.store, case.tree.get("encounter")) or await read(case.store, case.tree.get("focus")) or {}
    coordinator = await organization(case.store, case.tree.get("requester"))
    return {
        "discharged_by": name_of(await read(case.store, encounter.get("serviceProvider"))),
        "discharged_on": local_time(encounter.get("period", {}).get("end", ""), case.partner),
        "coordinator": name_of(coordinator),
    }


async def _appointment(case: Case) -> str:
    """When the visit begins that was booked under the referral number."""
    query = parse_query("Encounter", [("identifier", f"{REFERRAL}|{referral_number(case.tree)}")])
    booked = [stored.tree for stored in (await case.store.search(query)).matches]
    starts = sorted(one.get("period", {}).get("start", "") for one in booked if one.get("status") == "planned")
    return local_time(starts[0], case.partner) if starts else ""
