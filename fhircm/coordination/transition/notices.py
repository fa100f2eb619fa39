"""Tell those who care for a patient of an admission, discharge, transfer or emergency visit: each house once, and again when it was corrected.

https://hl7.org/fhir/R4/communication.html, 42 CFR 482.24(d). Who, when and in which words is data (profiles/notice/event-notice.yaml). A
notice is a Communication to the people of one house; fhircm/exchange brings it to a partner in whatever way the partner takes messages.
Nobody is told whom the patient's consents exclude, and no diagnosis that they keep back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from string import Formatter
from typing import Any

from fhircm.coordination.build import instant, new, reference, stable_id
from fhircm.coordination.codes import BASE, codings
from fhircm.coordination.context import Context
from fhircm.coordination.people import current, is_made, linked, name_of, named, organization_of, patient_of, patients_value
from fhircm.coordination.transition.stays import Human, Stay, first_seen, human, setting_of, stay
from fhircm.coordination.wording import text_of
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.consent_rules import consent_rules
from fhircm.fhir.disclosure import Disclosure, may_tell
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import COORDINATION
from fhircm.store.resources import Change, Op, Stored

Tree = dict[str, Any]
NOTICE = f"{BASE}/event-notice"  # system of the identifier: event|house|what was told
_BEGINS = {"emergency": "emergency", "inpatient": "admission", "observation": "observation"}
_NOTIFICATION = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/communication-category", "code": "notification"}]}
_CANCELLED = "cancelled"


@cache
def words() -> Tree:
    """profiles/notice/event-notice.yaml."""
    return read_yaml(folder("profiles") / "notice" / "event-notice.yaml")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing to be told of a stay: `key` stays the same when it is corrected."""

    key: str
    name: str
    at: datetime
    ends: bool

    def told(self, one: Stay) -> str:
        """What matters of it: when this changes, those who were told are told anew."""
        to = one.disposition.name if self.ends and one.disposition else ""
        return f"{self.name} {one.calendar.written(self.at)[:13]} {to}".strip()


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to Encounter, and to who cares for whom: tell those who care for the patient of what happened, once, and of what was corrected."""
    if change.type == "Encounter":
        return await _of_stay(context, change.id, first=change.version == 1)
    # A stay may come before those who care for the patient, or before the two records of them are linked.
    patients = await _patients(context, await context.get(change.type, change.id))
    if not patients:
        return []
    lately = instant(context.now() - timedelta(hours=words()["fresh-hours"]))
    found = await context.find("Encounter", patients_value(patients), ("_lastUpdated", f"ge{lately}"))
    return [op for one in found for op in await _of_stay(context, one.id, first=True)]


async def _patients(context: Context, stored: Stored | None) -> list[str]:
    """All records of the humans for whose care something tells who gives it."""
    if stored is None or is_made(stored.tree):
        return []
    links = (
        parse_reference(one["target"].get("reference", "")) for one in stored.tree.get("link", []) if stored.type == "Person"
    )
    about = [stored.id if stored.type == "Patient" else patient_of(stored.tree), *(to.id for to in links if to.type == "Patient")]
    return sorted({id for one in about if one for id in await linked(context, one)})


async def _of_stay(context: Context, id: str, *, first: bool) -> list[Op]:
    stored = await context.get("Encounter", id)
    if first and (stored is None or setting_of(stored.tree) is None):
        return []
    about = f"Encounter/{id}"
    made = [one for one in await context.find("Communication", ("encounter", about)) if _key(one)]
    known: dict[tuple[str, str], list[Stored]] = {}
    for one in sorted(made, key=lambda one: (one.tree.get("sent", ""), one.last_updated, one.id)):
        known.setdefault(_key(one)[:2], []).append(one)
    one = stay(context, stored) if stored is not None else None
    patient = patient_of(stored.tree) if stored is not None else None
    operations: list[Op] = []
    events: list[Event] = []
    if stored is not None and one is not None and patient is not None:
        events = _events(one, await human(context, patient, stored))
        for event in events:
            operations += await _tell(context, one, event, patient, known)
    return operations + _taken_back(context, known, events, one)


def _key(notice: Stored) -> tuple[str, ...]:
    """Event, house, and what was told."""
    return next((tuple(one["value"].split("|")) for one in notice.tree.get("identifier", []) if one.get("system") == NOTICE), ())


def _events(one: Stay, whole: Human) -> list[Event]:
    if whole.part_of(one) is not None:
        return []
    found = [Event(f"begin-{one.setting}", _BEGINS[one.setting], one.begun, ends=False)] if one.begun else []
    if one.ended and not (not one.in_bed and whole.led_to(one)):
        name = "transfer" if one.disposition and one.disposition.name == "hospital" else "discharge"
        found.append(Event("end", name, one.ended, ends=True))
    return found


# --- telling -----------------------------------------------------------------------------------------------------------------


async def _tell(context: Context, one: Stay, event: Event, patient: str, known: dict[tuple[str, str], list[Stored]]) -> list[Op]:
    operations: list[Op] = []
    told = event.told(one)
    before = {house: notices for (key, house), notices in known.items() if key == event.key}
    for house, notices in before.items():
        if _key(notices[-1])[2] != told:
            people = notices[-1].tree["recipient"]
            operations.append(await _notice(context, one, event, patient, house, people, notices))
    if before or not await _fresh(context, one, event):
        return operations
    for house, people in (await _recipients(context, one, patient)).items():
        operations.append(await _notice(context, one, event, patient, house, people, []))
    return operations


async def _fresh(context: Context, one: Stay, event: Event) -> bool:
    """Whether the hub heard of it in time, or had watched the stay; and not so long ago that it is no news any more."""

    def happened(version: Stay | None) -> bool:
        return version is not None and (version.ended if event.ends else version.begun) is not None

    seen, before = await first_seen(context, one.id, happened)
    in_time = timedelta(hours=words()["fresh-hours"])
    watched = any(version.tree["status"] not in ("finished", "unknown") if event.ends else version.tree["status"] == "planned" for version in before)  # fmt: skip
    heard = context.now() - seen <= in_time and event.at <= seen + timedelta(days=1)
    return heard and (watched or seen - event.at <= in_time)


async def _notice(
    context: Context, one: Stay, event: Event, patient: str, house: str, people: list[Tree], before: list[Stored]
) -> Op:
    about = reference(f"Encounter/{one.id}")
    disclosures = await _disclosures(context, patient, people)
    diagnoses = [each for each in await _diagnoses(context, one) if all(may_tell(rules, each.tree) for rules in disclosures)]
    title = words()["events"][event.name]["title"]
    text = [*([words()["corrected"]] if before else []), *await _text(context, one, event, patient, diagnoses)]
    return new(
        {
            "resourceType": "Communication",
            "id": stable_id("event-notice", one.id, event.key, house, str(len(before))),
            "identifier": [{"system": NOTICE, "value": f"{event.key}|{house}|{event.told(one)}"}],
            "inResponseTo": [reference(f"Communication/{before[-1].id}")] if before else None,
            "status": "completed",
            "category": [_NOTIFICATION],
            "priority": "urgent",
            "subject": reference(f"Patient/{patient}"),
            "topic": {"coding": [{"system": COORDINATION, "code": "event-notice"}], "text": title},
            "about": [about, *(reference(f"Condition/{each.id}") for each in diagnoses)],
            "encounter": about,
            "sent": instant(context.now()),
            "recipient": people,
            "sender": await _house(context, one) or context.coordinator,
            "payload": [{"contentString": " ".join(text)}],
        }
    )


def _taken_back(context: Context, known: dict[tuple[str, str], list[Stored]], events: list[Event], one: Stay | None) -> list[Op]:
    """What was told and is not so: those who were told are told. What one kind of stay became does not take its beginning back."""
    holding = {event.key for event in events}
    begun = one is not None and one.begun is not None
    operations: list[Op] = []
    for (key, house), notices in known.items():
        last = notices[-1]
        if key in holding or (key.startswith("begin-") and begun) or _key(last)[2] == _CANCELLED:
            continue
        tree = last.tree
        operations.append(
            new(
                {
                    **{name: value for name, value in tree.items() if name not in ("meta", "text", "about")},
                    "id": stable_id(
                        "event-notice", tree["encounter"]["reference"].partition("/")[2], key, house, str(len(notices))
                    ),
                    "identifier": [{"system": NOTICE, "value": f"{key}|{house}|{_CANCELLED}"}],
                    "inResponseTo": [reference(f"Communication/{last.id}")],
                    "topic": {"coding": tree["topic"]["coding"], "text": f"Cancelled: {tree['topic']['text']}"},
                    "sent": instant(context.now()),
                    "payload": [{"contentString": f"{words()['cancelled']} {_said(tree)}"}],
                }
            )
        )
    return operations


def _said(tree: Tree) -> str:
    return "It was: " + " ".join(one.get("contentString", "") for one in tree.get("payload", []))


# --- whom --------------------------------------------------------------------------------------------------------------------


async def _recipients(context: Context, one: Stay, patient: str) -> dict[str, list[Tree]]:
    """By house (the system that their record comes from): references to who is to be told, with their names."""
    whole = await human(context, patient)
    disclosed = await _consents(context, whole.patients)
    houses: dict[str, list[Tree]] = {}
    seen: set[str] = set()
    for who, told_anyway in await _candidates(context, whole.patients, one):
        about = f"{who.type}/{who.id}"
        if about in seen or not (told_anyway or await _elsewhere(context, who, one)):
            continue
        seen.add(about)
        if may_tell(Disclosure(disclosed, await _known_as(context, who), _micros(context)), one.tree):
            source = str(who.tree.get("meta", {}).get("source", "")).partition(f"/{who.type}/")[0]
            houses.setdefault(source or "hub", []).append(await named(context, who))
    return dict(sorted(houses.items()))


async def _candidates(context: Context, patients: list[str], one: Stay) -> list[tuple[Stored, bool]]:
    """Who might be told; and whether also when their record comes from the house that tells."""
    wanted = {(system, code) for system, codes in words()["roles"].items() for code in codes}
    found: list[tuple[Tree | None, bool]] = []
    for id in patients:
        stored = await context.get("Patient", id)
        found += [(each, False) for each in (stored.tree.get("generalPractitioner", []) if stored else [])]
    for team in await context.find("CareTeam", patients_value(patients), ("status", "active")):
        if not is_made(team.tree):
            found += [
                (each.get("member"), False)
                for each in team.tree.get("participant", [])
                if wanted & set(codings(each.get("role", []))) and current(each, context.now())
            ]
    for episode in await context.find("EpisodeOfCare", patients_value(patients), ("status", "active")):
        found += [(episode.tree.get(name), False) for name in ("careManager", "managingOrganization")]
    found.append((one.tree.get("hospitalization", {}).get("destination"), True))
    people = [(await context.follow(element), anyway) for element, anyway in found if element]
    return [(who, anyway) for who, anyway in people if who is not None and who.type not in ("Patient", "Location")]


async def _elsewhere(context: Context, who: Stored, one: Stay) -> bool:
    """Whether somebody works in another house than that of the stay, as far as the records tell."""
    house = one.tree.get("serviceProvider", {}).get("reference")
    organization = await organization_of(context, reference(f"{who.type}/{who.id}"))
    if organization is not None and house is not None:
        return f"Organization/{organization.id}" != house
    source = str(who.tree.get("meta", {}).get("source", ""))
    return one.source is None or not source.startswith(f"{one.source}/")


async def _known_as(context: Context, who: Stored) -> frozenset[str]:
    """By which references a Consent may name them."""
    found = {f"{who.type}/{who.id}"}
    if who.type == "PractitionerRole":
        found |= {who.tree.get(name, {}).get("reference", "") for name in ("practitioner", "organization")}
    return frozenset(found)


async def _consents(context: Context, patients: list[str]) -> tuple[tuple[Any, ...], ...]:
    found = await context.find("Consent", patients_value(patients), ("status", "active"))
    return tuple(tuple(rules) for one in found if (rules := consent_rules(one.tree)))


async def _disclosures(context: Context, patient: str, people: list[Tree]) -> list[Disclosure]:
    """What the consents say of each of these people."""
    consents = await _consents(context, (await human(context, patient)).patients)
    there = [who for each in people if (who := await context.follow(each))]
    return [Disclosure(consents, await _known_as(context, who), _micros(context)) for who in there]


def _micros(context: Context) -> int:
    return int(context.now().timestamp() * 1_000_000)


# --- in which words ----------------------------------------------------------------------------------------------------------


async def _text(context: Context, one: Stay, event: Event, patient: str, diagnoses: list[Stored]) -> list[str]:
    stored = await context.get("Patient", patient)
    house, unknown = await _house(context, one), words()["unknown"]
    known = {
        "patient": (await name_of(context, stored) if stored else None) or unknown["patient"],
        "born": (stored.tree.get("birthDate") if stored else None) or unknown["born"],
        "house": (house or {}).get("display") or unknown["house"],
        "when": one.calendar.written(event.at)[:16].replace("T", " at "),
        "practitioner": await _practitioner(context, one),
        "diagnosis": ", ".join(filter(None, (text_of(each.tree.get("code")) for each in diagnoses))),
        "to": one.disposition.title if event.ends and one.disposition else None,
    }
    happened = next(_say([words()["events"][event.name]["happened"]], known))
    return list(_say(words()["sentences"], {**known, "happened": happened}))


def _say(sentences: list[str], known: dict[str, str | None]) -> Iterator[str]:
    for sentence in sentences:
        if all(known.get(name) for _, name, _, _ in Formatter().parse(sentence) if name):
            yield sentence.format_map(known)


async def _practitioner(context: Context, one: Stay) -> str | None:
    """Who treats the patient: the attending, else who admitted, else anybody who takes part."""
    order = {"ATND": 0, "PPRF": 1, "ADM": 2}
    people = one.tree.get("participant", [])

    def rank(each: Tree) -> int:
        return min((order.get(code, 9) for _, code in codings(each.get("type", []))), default=9)

    for each in sorted(people, key=rank):
        who = await context.follow(each.get("individual"))
        name = await name_of(context, who) if who else each.get("individual", {}).get("display")
        if name:
            return name
    return None


async def _diagnoses(context: Context, one: Stay) -> list[Stored]:
    named_ = [await context.follow(each.get("condition")) for each in one.tree.get("diagnosis", [])]
    found = [each for each in named_ if each is not None and each.type == "Condition"]
    return found or await context.find("Condition", ("encounter", f"Encounter/{one.id}"))


async def _house(context: Context, one: Stay) -> Tree | None:
    """The institution: as the Encounter names it, else that of the system from which it came."""
    organization = await organization_of(context, one.tree.get("serviceProvider"))
    if organization is None and (neighbour := context.source_of(one.tree)) is not None:
        by_npi = await context.find("Organization", ("identifier", f"http://hl7.org/fhir/sid/us-npi|{neighbour.npi}"))
        organization = next(iter(by_npi), None)
    return await named(context, organization) if organization else None
