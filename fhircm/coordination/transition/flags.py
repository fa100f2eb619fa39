"""Flags about the use of hospitals: readmission, recent stays, observation, frequent use of the emergency department.

https://hl7.org/fhir/R4/flag.html. What they mean is data (profiles/flag/). There is one Flag for each human and meaning, under an id that
follows from both: active while it holds, with the stays that show it, and inactive when it does not. It follows from the stays as
they stand now; a timer looks again when time alone will change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

from fhircm.coordination.build import concept, edit, instant, new, reference, stable_id
from fhircm.coordination.codes import codings, member
from fhircm.coordination.context import Context
from fhircm.coordination.people import linked, patient_of
from fhircm.coordination.transition.stays import Human, Stay, dispositions, human, setting_of
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.invariants import over
from fhircm.store.resources import Change, Op, Stored, Timer

Tree = dict[str, Any]
KIND = "flags"
DETAIL = "http://hl7.org/fhir/StructureDefinition/flag-detail"
_CATEGORY = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/flag-category", "code": "admin"}]}
_ICD10 = frozenset(("http://hl7.org/fhir/sid/icd-10-cm", "http://hl7.org/fhir/sid/icd-10"))


@dataclass(frozen=True, slots=True)
class Found:
    """A flag that holds: since when, until when if nothing else happens (None: as long as the stay lasts), and what shows it."""

    since: datetime
    until: datetime | None
    stays: tuple[Stay, ...]  # the one that it is about first


@cache
def rules() -> tuple[Tree, ...]:
    """The meanings, in profiles/flag/."""
    return tuple(read_yaml(path) for path in sorted((folder("profiles") / "flag").glob("*.yaml")))


async def follow(context: Context, change: Change) -> list[Op]:
    """Reaction to Encounter, Patient and Person: raise and lower the flags about the use of hospitals."""
    stored = await context.get(change.type, change.id)
    if stored is None:
        return []
    if change.type == "Person":
        targets = [one["target"].get("reference", "").partition("Patient/")[2] for one in stored.tree.get("link", [])]
        return await _of(context, targets[0]) if len(targets) > 1 and targets[0] else []
    if change.type == "Patient":
        return await _of(context, stored.id) if change.version > 1 else []
    patient = patient_of(stored.tree)
    was_none = change.version == 1 and setting_of(stored.tree) is None
    return await _of(context, patient, stored) if patient and not was_none else []


async def look_again(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: time alone ends a flag."""
    return await _of(context, timer.payload["patient"])


async def _of(context: Context, patient: str, *also: Stored) -> list[Op]:
    patients = sorted(await linked(context, patient))
    one = await human(context, patients[0], *also)
    now = context.now()
    operations: list[Op] = []
    ends: list[datetime] = []
    there = await context.store.read_many([("Flag", _id(rule, id)) for rule in rules() for id in patients])
    for rule in rules():
        found = None if one.dead else _find(rule, one, now)
        for id in patients:
            flag = there.get(("Flag", _id(rule, id)))
            operations += _written(context, rule, id, flag, found if id == patients[0] else None)
        if found is not None and found.until is not None:
            ends.append(found.until)
    if ends:  # each time has a timer of its own: one that is not needed any more finds nothing to do
        key = f"flags:Patient/{patients[0]}@{instant(min(ends))}"
        operations += await context.timed(key, KIND, min(ends), {"patient": patients[0]})
    return operations


def _id(rule: Tree, patient: str) -> str:
    return stable_id("flag", rule["code"], patient)


def _written(context: Context, rule: Tree, patient: str, flag: Stored | None, found: Found | None) -> list[Op]:
    """What is to be written so that the Flag says what was found."""
    if found is None:
        if flag is None or flag.tree["status"] != "active":
            return []
        return [edit(flag, status="inactive", period=over(flag.tree["period"], instant(context.now())))]
    about, *_ = found.stays
    members: Tree = {
        "status": "active",
        "period": {"start": instant(found.since)} | ({"end": instant(found.until)} if found.until else {}),
        "encounter": reference(f"Encounter/{about.id}"),
        "extension": [{"url": DETAIL, "valueReference": reference(f"Encounter/{one.id}")} for one in found.stays],
    }
    if flag is not None:
        return [] if all(flag.tree.get(name) == value for name, value in members.items()) else [edit(flag, **members)]
    subject = reference(f"Patient/{patient}")
    fixed = {
        "category": [_CATEGORY],
        "code": concept(rule["code"], rule["title"]),
        "subject": subject,
        "author": context.coordinator,
    }
    return [new({"resourceType": "Flag", "id": _id(rule, patient), **members, **fixed})]


# --- what holds --------------------------------------------------------------------------------------------------------------


def _find(rule: Tree, one: Human, now: datetime) -> Found | None:
    match rule["kind"]:
        case "now":
            return _now(rule, one, now)
        case "count":
            return _count(rule, one, now)
        case "readmission":
            return _readmission(rule, one, now)
    raise ValueError(f"profiles/flag: '{rule['kind']}' is no kind of flag; there are: now, count, readmission")


def _now(rule: Tree, one: Human, now: datetime) -> Found | None:
    """The patient is somewhere now, and perhaps was somewhere before."""
    there = [
        stay
        for stay in one.stays
        if stay.begun and stay.begun <= now and _goes_on(stay, now) and stay.setting in rule["settings"]
    ]
    for stay in reversed(there):
        if "before" not in rule:
            return Found(stay.begun or now, None, (stay,))
        before = [other for other in one.stays if other.id != stay.id and _before(rule["before"], other, stay)]
        if before:
            return Found(stay.begun or now, None, (stay, *before))
    return None


def _goes_on(stay: Stay, now: datetime) -> bool:
    return stay.tree["status"] != "finished" or (stay.ended is not None and stay.ended > now)


def _before(rule: Tree, other: Stay, stay: Stay) -> bool:
    if other.begun is None or stay.begun is None or other.begun >= stay.begun:
        return False
    if "settings" in rule and other.setting not in rule["settings"]:
        return False
    if rule.get("post-acute") and not member("post-acute-stay", other.tree.get("class"), other.tree.get("type")):
        return False
    if "begun-within-days" in rule:
        return stay.begun - other.begun <= timedelta(days=rule["begun-within-days"])
    return other.ended is not None and timedelta() <= stay.begun - other.ended <= timedelta(days=rule["ended-within-days"])


def _count(rule: Tree, one: Human, now: datetime) -> Found | None:
    """So many visits within so many days."""
    visits = [stay for stay in one.stays if stay.setting in rule["settings"] and stay.begun and stay.begun <= now]
    best: Found | None = None
    for limit in rule["any-of"]:
        span = timedelta(days=limit["within-days"])
        recent = [stay for stay in visits if stay.begun and stay.begun + span > now]
        if len(recent) < limit["at-least"]:
            continue
        kept = recent[-limit["at-least"]]  # when this one is too old, it holds no longer
        since = recent[limit["at-least"] - 1].begun
        found = Found(since or now, (kept.begun or now) + span, tuple(reversed(recent)))
        if best is None or (found.until or now) > (best.until or now):
            best = found
    return best


def _readmission(rule: Tree, one: Human, now: datetime) -> Found | None:
    """The newest unplanned stay that began within so many days after another."""
    span, holds = timedelta(days=rule["days"]), timedelta(days=rule["holds-days"])
    chains = _chains(rule, one)
    found: Found | None = None
    ignored_until: datetime | None = None
    for before, after in pairwise(chains):
        left, begun = before[-1].ended, after[0].begun
        if left is None or begun is None or not left <= begun <= left + span:
            continue
        if ignored_until is not None and begun <= ignored_until:
            continue
        disposition = before[-1].disposition
        if disposition is not None and disposition.name in rule["not-after"]:
            continue
        if _planned(rule["planned"], before[-1], after[0]):
            ignored_until = left + span
            continue
        if begun <= now < begun + holds:
            found = Found(begun, begun + holds, (after[0], before[-1]))
    return found


def _chains(rule: Tree, one: Human) -> list[list[Stay]]:
    """Admissions to acute hospitals, in order, with those together that count as one."""
    chains: list[list[Stay]] = []
    for stay in one.stays:
        post_acute = member("post-acute-stay", stay.tree.get("class"), stay.tree.get("type"))
        if stay.setting != "inpatient" or stay.begun is None or post_acute or one.part_of(stay) is not None:
            continue
        if chains and _one(rule["merge"], chains[-1][-1], stay):
            chains[-1].append(stay)
        else:
            chains.append([stay])
    return chains


def _one(rule: Tree, before: Stay, after: Stay) -> bool:
    if before.ended is None or after.begun is None:
        return False
    if rule["transfers"] and before.leads_to(after):
        return True
    same_house = before.tree.get("serviceProvider") == after.tree.get("serviceProvider") and before.source == after.source
    same_day = before.calendar.day_of(before.ended) == before.calendar.day_of(after.begun)
    return bool(rule["same-house-same-day"] and same_house and same_day and before.ended <= after.begun)


def _planned(rule: Tree, before: Stay, after: Stay) -> bool:
    """Whether a return was planned: the discharge said so, or the admission is elective or for what is always planned."""
    left = codings(before.tree.get("hospitalization", {}).get("dischargeDisposition"))
    if rule["dispositions"] and any(code in dispositions().planned for code in left):
        return True
    said = set(codings(after.tree.get("priority"), after.tree.get("type"), after.tree.get("reasonCode")))
    listed = {(system, code) for system, codes in rule["codes"].items() for code in codes}
    prefixes = tuple(code.replace(".", "") for code in rule["icd10"])
    return bool(said & listed) or any(system in _ICD10 and code.replace(".", "").startswith(prefixes) for system, code in said)
