"""The door for ADT messages: each becomes versions of the partner's Patients and Encounters, once, and is acknowledged when that is committed.

https://build.fhir.org/ig/HL7/v2-to-fhir and chapter 2 of HL7 v2. A record is found by its number (mappings/hl7v2/adt.yaml) among what the
partner's FHIR API brought, else made at a source address that follows from the number. What cannot be taken waits in quarantine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from fhircm.exchange.adt_map import Event, load_adt
from fhircm.exchange.adt_records import MESSAGES, Said, Stamp, applied, happened, numbers, said, taken
from fhircm.exchange.channels import HEARD
from fhircm.exchange.hl7v2 import LIMIT, EventNotSupported, Message, MessageWrong, fhir_time, moment, refusal
from fhircm.exchange.hl7v2_types import Around, pl
from fhircm.exchange.map_rules import Notes
from fhircm.exchange.mapping import Copied, hub_id, provenance
from fhircm.exchange.partners import Partner
from fhircm.exchange.quarantine import MESSAGE, told
from fhircm.exchange.unmapped import Unknown
from fhircm.fhir import json
from fhircm.fhir.outcome import Conflict, FhirError, VersionConflict
from fhircm.fhir.query import parse_query
from fhircm.fhir.validation import check, check_tree
from fhircm.store.resources import Hold, LetGo, Op, Put, SetState, Store, Stored

log = logging.getLogger("fhircm.exchange.adt")

ATTEMPTS = 8  # when others write the same records at the same moment
_TO_THE_MINUTE = timedelta(minutes=1)
DERIVED = "v2-"  # how the ids of records begin that only messages told of
NPI = "http://hl7.org/fhir/sid/us-npi"
_UNKNOWN_CLASS = {"system": "http://terminology.hl7.org/CodeSystem/v3-NullFlavor", "code": "UNK"}


class Busy(Conflict):
    """The hub cannot take a message at this moment; the sender is to send it again."""


@dataclass
class Row:
    """What is remembered of the messages about one patient; `number` grows with every write, so that two writers see one another."""

    patient: str  # Patient/id at the hub
    number: int = 0
    messages: list[str] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Work:
    """One message on its way: the versions to be written, by reference."""

    message: Message
    stamp: Stamp
    around: Around
    notes: Notes
    rows: dict[str, Row] = field(default_factory=dict)
    trees: dict[str, dict[str, Any]] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)


class Adt:
    """The door of one partner. `receive` may be called at the same time by many, in many processes."""

    def __init__(self, store: Store, partner: Partner) -> None:
        """Raises MapWrong."""
        self.store, self.partner, self.map = store, partner, replace(load_adt(partner.folder), maps=partner.maps)
        self.rows, self._unknown = f"adt:{partner.name}", Unknown(store, partner)
        self._around = Around(self.map.systems, partner.time_zone)
        self._addresses: dict[str, str] = {}
        self._heard: datetime | None = None  # as it was written last

    async def receive(self, raw: bytes) -> bytes:
        """Take a message; the acknowledgement is returned when everything is committed, or says why nothing is."""
        now, message = self.store.clock(), None
        try:
            if len(raw) > LIMIT:
                raise MessageWrong(f"The message is longer than {LIMIT} bytes", "MSH", "207")
            message = Message(raw, self.map.segments)
            await self.take(message)
        except Busy as error:
            assert message is not None
            return message.ack("AE", now, error)
        except FhirError as error:
            await self._hold(raw, message, error)
            log.warning("%s: a message waits in quarantine (%s)", self.partner.name, type(error).__name__)
            if message is None:
                return refusal(now, error) if isinstance(error, MessageWrong) else refusal(now, MessageWrong(str(error)))
            return message.ack("AR" if isinstance(error, EventNotSupported) else "AE", now, error)
        return message.ack("AA", now)

    async def again(self, raw: bytes) -> str | None:
        """Take a message that waited in quarantine; returns why it still cannot be taken."""
        try:
            await self.take(Message(raw, self.map.segments))
        except FhirError as error:
            return told(error.issues)
        return None

    async def take(self, message: Message) -> None:
        """Write what a message says; one that was taken before is not written again. Raises FhirError, and Busy."""
        event = self.map.events.get(message.event) if message.kind == "ADT" else None
        if event is None:
            raise EventNotSupported("This message type and trigger event is not supported", "MSH-9")
        for _ in range(ATTEMPTS):
            try:
                return await self._take(message, event)
            except (VersionConflict, Conflict) as error:
                log.debug("%s: again, another one was first (%s)", self.partner.name, type(error).__name__)
        raise Busy("The hub is busy with this record; send the message again")

    # --- one attempt ----------------------------------------------------------------------------------------------------------

    async def _take(self, message: Message, event: Event) -> None:
        work = _Work(message, self._stamp(message), self._around, Notes())
        number = self._number(
            message, "PID-3", numbers(message, ("PID", self.map.patient.field), self.map.patient.types, self._around)
        )
        patient = await self._patient(work, number, work.stamp)
        seen = "|".join((message.text("MSH", 3), message.text("MSH", 4), message.control_id, message.event))
        if seen in work.rows[patient].messages:
            return
        work.rows[patient].messages = [*work.rows[patient].messages[1 - MESSAGES :], seen]
        records = said(message, self.map, self._around, work.notes, patient_only=event.patient_only or event.merges)
        encounter = None if event.patient_only or event.merges else await self._encounter(work, patient)
        for one in records:
            reference = self._reference(one, patient, encounter)
            if reference is not None:
                await self._change(work, patient, reference, one, encounter)
        if encounter is not None:
            row = work.rows[patient].records.setdefault(encounter, {})
            applied(work.trees[encounter], happened(row, self._event(message, work.stamp), self.map))
        if event.merges:
            await self._merge(work, patient)
        await self._commit(work)

    def _stamp(self, message: Message) -> Stamp:
        sent = moment(message.text("MSH", 7), self.partner.time_zone)
        recorded = moment(message.text("EVN", 2), self.partner.time_zone) or sent
        if recorded is None:
            raise MessageWrong("The message has no time: EVN-2, or MSH-7, must be one", "EVN-2", "101")
        if not message.control_id:
            raise MessageWrong("The message has no control id", "MSH-10", "101")
        return [recorded.isoformat(), (sent or recorded).isoformat(), message.control_id]

    def _event(self, message: Message, stamp: Stamp) -> list[Any]:
        segment = message.all("PV1")[:1]
        place = message.field(segment[0], 3)[:1] if segment else []
        location = pl(place[0], self._around) if place and place != [[['""']]] else None
        times = [fhir_time(message.text("PV1", number), self.partner.time_zone) for number in (44, 45)]
        return [stamp, message.event, location, *times]

    def _number(self, message: Message, place: str, found: Sequence[dict[str, Any]]) -> tuple[str, str]:
        if not found:
            raise MessageWrong(
                "There is no number whose assigning authority is known: name it under systems in adt.yaml", place, "101"
            )
        return found[0]["system"], found[0]["value"]

    async def _patient(self, work: _Work, number: tuple[str, str], stamp: Stamp | None) -> str:
        """The Patient with a number, made when there is none. With a stamp, what was merged before then leads to what survived."""
        reference = await self._found("Patient", number) or self._derived("Patient", number)
        for _ in range(10):
            await self._load(work, reference)
            links = work.trees[reference].get("link", ()) if stamp else ()
            survivor = next((one["other"].get("reference") for one in links if one.get("type") == "replaced-by"), None)
            merged = work.rows[reference].records.get(reference, {}).get("merged")
            if survivor is None or not str(survivor).startswith("Patient/") or (merged and stamp and stamp < merged):
                break
            reference = str(survivor)
        return reference

    async def _load(self, work: _Work, reference: str) -> None:
        """A Patient, and what is remembered of the messages about it."""
        if reference in work.rows:
            return
        kept = await self.store.states(self.rows, f"{reference}@")
        row = Row(reference)
        for key, value in kept.items():
            row = Row(reference, int(key.rpartition("@")[2]), value["messages"], value["records"])
        work.rows[reference] = row
        await self._open(work, reference)

    async def _open(self, work: _Work, reference: str) -> None:
        """A resource as it is; an empty one when it is not there."""
        if reference in work.trees:
            return
        type, _, id = reference.partition("/")
        if found := (await self.store.read_many([(type, id)])).get((type, id)):
            work.stored[reference] = found
        work.trees[reference] = found.tree if found else {}

    async def _encounter(self, work: _Work, patient: str) -> str | None:
        found = numbers(work.message, ("PV1", self.map.visit.field), self.map.visit.types, self._around)
        if not found:
            if work.message.all("PV1") and work.message.text("PV1", 2) not in ("", "N"):
                raise MessageWrong(
                    "The visit has no number whose assigning authority is known: name it under systems in adt.yaml",
                    "PV1-19",
                    "101",
                )
            return None
        number = (found[0]["system"], found[0]["value"])
        reference = await self._found("Encounter", number) or self._derived("Encounter", number)
        await self._open(work, reference)
        if not work.trees[reference]:
            self._made(work, reference, {"subject": {"reference": patient}})
        elif work.trees[reference].get("subject", {}).get("reference") != patient and not await self._same_person(
            work, reference, patient
        ):
            raise MessageWrong("The visit is another patient's", "PV1-19", "205")
        return reference

    async def _same_person(self, work: _Work, encounter: str, patient: str) -> bool:
        """Whether the Encounter's Patient was merged with this one."""
        subject = str(work.trees[encounter].get("subject", {}).get("reference"))
        links = work.trees[patient].get("link", ())
        return any(one.get("other", {}).get("reference") == subject for one in links)

    def _reference(self, one: Said, patient: str, encounter: str | None) -> str | None:
        if one.map.type == "Patient":
            return patient
        if one.map.type == "Encounter":
            return encounter
        owner = encounter if "Encounter" in one.map.refers.values() and encounter else patient
        return self._hub(one.map.type, f"{DERIVED}{sha256(f'{owner} {one.key}'.encode()).hexdigest()[:24]}")

    async def _change(self, work: _Work, patient: str, reference: str, one: Said, encounter: str | None) -> None:
        """Note and do what the message says of one record."""
        await self._open(work, reference)
        if not work.trees[reference]:
            targets = {"Patient": patient, "Encounter": encounter}
            refers = {name: {"reference": targets[of]} for name, of in one.map.refers.items() if targets[of]}
            self._made(work, reference, {**refers, **one.map.fixed})
        record = work.rows[patient].records.setdefault(reference, {})
        changes = taken(record, one.elements, work.stamp)
        for path, (value, before) in changes.items():
            if isinstance(value, dict) and "individual" in value:
                changes[path] = ({**value, "individual": await self._practitioner(value["individual"])}, before)
        applied(work.trees[reference], changes)

    async def _practitioner(self, individual: dict[str, Any]) -> dict[str, Any]:
        """A Reference by identifier as one to the partner's Practitioner, when the hub has it."""
        known = individual.get("identifier", {})
        if "system" not in known or (found := await self._found("Practitioner", (known["system"], known["value"]))) is None:
            return individual
        return {"reference": found, **{name: value for name, value in individual.items() if name == "display"}}

    def _made(self, work: _Work, reference: str, members: dict[str, Any]) -> None:
        """A record that only messages tell of yet."""
        type, _, id = reference.partition("/")
        work.trees[reference].update({"resourceType": type, "id": id, **members})
        if type == "Encounter":
            work.trees[reference].update({"status": "unknown", "class": dict(_UNKNOWN_CLASS)})

    async def _merge(self, work: _Work, patient: str) -> None:
        """The Patient of PID replaces that of MRG, which stays as a pointer."""
        number = self._number(work.message, "MRG-1", numbers(work.message, ("MRG", 1), self.map.patient.types, self._around))
        prior = await self._patient(work, number, None)
        if prior == patient:
            raise MessageWrong("The patient cannot be merged with itself", "MRG-1", "207")
        pairs = (
            (patient, {"other": {"reference": prior}, "type": "replaces"}),
            (prior, {"other": {"reference": patient}, "type": "replaced-by"}),
        )
        for reference, link in pairs:
            if not work.trees[reference]:
                self._made(work, reference, {"identifier": [{"system": number[0], "value": number[1]}]})
            links = work.trees[reference].setdefault("link", [])
            if link not in links:
                links.append(link)
        work.trees[prior]["active"] = False
        work.rows[prior].records.setdefault(prior, {})["merged"] = work.stamp

    # --- where records are ----------------------------------------------------------------------------------------------------

    async def _found(self, type: str, number: tuple[str, str]) -> str | None:
        """The record of this partner with a number: what its FHIR API brought before what only messages told of."""
        wanted = "|".join("".join(f"\\{letter}" if letter in "\\|,$" else letter for letter in one) for one in number)
        page = await self.store.search(parse_query(type, [("identifier", wanted), ("_count", "20")]))
        own = [
            one for one in page.matches if str(one.tree.get("meta", {}).get("source", "")).startswith(f"{self.partner.base_url}/")
        ]
        own.sort(key=lambda one: (f"/{DERIVED}" in one.tree["meta"]["source"], one.id))
        return f"{type}/{own[0].id}" if own else None

    def _derived(self, type: str, number: tuple[str, str]) -> str:
        return self._hub(type, DERIVED + sha256("|".join(number).encode()).hexdigest()[:24])

    def _hub(self, type: str, id: str) -> str:
        """The reference at the hub of what has this id at the partner; where that is, is remembered for as long as the message is worked on."""
        reference = f"{type}/{hub_id(self.partner.base_url, f'{type}/{id}')}"
        if len(self._addresses) > 10_000:
            self._addresses.clear()
        self._addresses[reference] = f"{self.partner.base_url}/{type}/{id}"
        return reference

    # --- doing it -------------------------------------------------------------------------------------------------------------

    async def _commit(self, work: _Work) -> None:
        """One transaction: versions, their Provenance, what is remembered, and the end of an earlier failure."""
        puts: list[Put] = []
        for reference, tree in work.trees.items():
            before = work.stored.get(reference)
            if before is None:
                if tree:
                    puts.append(Put(check_tree({**tree, "meta": {"source": self._addresses[reference]}}), 0))
            elif tree != before.tree:
                puts.append(Put(check(json.amended(before.body, tree), by_guides=False), before.version))
        for one in puts:
            self.store.check_rules(
                work.stored.get(f"{one.resource.type}/{one.resource.id}"), one.resource, f"partner:{self.partner.name}"
            )
        facts: list[Op] = []
        for row in work.rows.values():
            if row.number:
                facts.append(SetState(self.rows, f"{row.patient}@{row.number}", None, if_present=True))
            value = {"messages": row.messages, "records": row.records}
            facts.append(SetState(self.rows, f"{row.patient}@{row.number + 1}", value, if_absent=True))
        self._unknown.note(work.message.control_id, work.notes.unmapped)
        facts += [*await self._unknown.facts(), LetGo(self.partner.name, _name(work.message, b""))]
        now = self.store.clock()
        hear = self._heard is None or now - self._heard >= _TO_THE_MINUTE  # many messages a second must not wait for one row
        if hear:
            facts.append(SetState(HEARD, self.partner.name, {"at": now.isoformat()}))
        source = [self._provenance(work, puts)] if puts else []
        await self.store.transact([*puts, *source, *facts], origin=f"partner:{self.partner.name}")
        self._heard = now if hear else self._heard
        self._unknown.saved()

    def _provenance(self, work: _Work, puts: Sequence[Put]) -> Put:
        copied = [Copied(f"{one.resource.type}/{one.resource.id}/_history/{(one.if_version or 0) + 1}", "") for one in puts]
        organization = self.partner.organization
        who = {"display": organization.name, "type": "Organization", "identifier": {"system": NPI, "value": organization.npi}}
        tree = provenance(who, copied, self.store.clock())
        what = {"identifier": {"value": work.message.control_id}, "display": f"HL7 v2 message ADT^{work.message.event}"}
        return Put(
            check_tree(
                {
                    **tree,
                    "activity": {**tree["activity"], "text": "Told by a message of the partner"},
                    "entity": [{"role": "source", "what": what}],
                }
            ),
            0,
        )

    async def _hold(self, raw: bytes, message: Message | None, error: FhirError) -> None:
        """Keep a message that cannot be taken, with the reason, until it can."""
        digest = sha256(raw).hexdigest()[:32]
        await self.store.transact(
            [Hold(self.partner.name, _name(message, raw), MESSAGE, digest, told(error.issues), raw)],
            origin=f"partner:{self.partner.name}",
        )


def _name(message: Message | None, raw: bytes) -> str:
    """Under which name a message waits."""
    if message is None:
        return f"HL7v2/{sha256(raw).hexdigest()[:24]}"
    of = "|".join((message.text("MSH", 3), message.text("MSH", 4), message.control_id))
    return f"HL7v2/{message.kind}-{message.event}/{sha256(of.encode()).hexdigest()[:24]}"
