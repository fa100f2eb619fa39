"""A care plan for people who have no care plan in their EHR: what is in it, in words, as a PDF, beside it as a FHIR document.

https://hl7.org/fhir/R4/careplan.html, https://hl7.org/fhir/us/mcc/ and https://pdfa.org/resource/pdfua-in-a-nutshell/. The PDF is tagged and
bears title and language (PDF/UA-1). What it cannot show, a name in a script for which there is no font, makes a well-formed HTML page in
its place. Both follow from the version of the plan alone: a second attempt sends the same bytes.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha1
from importlib import util
from pathlib import Path
from typing import Any

from fhircm.exchange.care_plan_bundle import bundle
from fhircm.exchange.case import Case, concept_text, local_time, name_of, organization, read
from fhircm.exchange.human import instant
from fhircm.exchange.letter import attachment, page
from fhircm.fhir import json
from fhircm.fhir.artefacts import folder
from fhircm.fhir.disclosure import may_tell

_FONTS = ("fontpkg_noto_sans", "fontpkg_noto_sans_arabic")  # beside those that the typesetter itself brings
_PEOPLE = ("Practitioner", "PractitionerRole", "Organization", "RelatedPerson", "Patient", "CareTeam")


@dataclass
class Section:
    """One part of the plan: `items` in words, name and facts; `trees` are the resources that it lists."""

    code: str  # LOINC
    heading: str
    items: list[tuple[str, list[str]]] = field(default_factory=list)
    trees: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Plan:
    """What a partner is told of a plan: nothing that a consent or a label keeps from it."""

    title: str
    sections: list[Section]
    people: dict[str, dict[str, Any]] = field(default_factory=dict)  # local reference: who is named in it


async def care_plan_attachments(case: Case, key: str, created: str) -> list[dict[str, Any]]:
    """The readable page and the FHIR document, as Attachments. Raises Unfit when the document would not be valid."""
    plan = await gathered(case)
    document = await bundle(case, plan, key, instant(case.stored.last_updated))
    readable = await readable_attachment(case, plan, created)
    return [readable, file_attachment("application/fhir+json", document, f"{plan.title} (FHIR document)", created)]


async def gathered(case: Case) -> Plan:
    """The parts of the plan, as far as this partner may know them."""
    tree = case.tree
    plan = Plan(str(tree.get("title") or "Care plan"), [])
    problems = Section("11450-4", "Problems and health concerns")
    goals = Section("61146-7", "Goals")
    interventions = Section("62387-6", "Interventions")
    team = Section("85847-2", "Care team")
    for one in await _open_to(case, tree.get("addresses", [])):
        status = [concept_text(one.get("clinicalStatus")), _since(one)]
        _tell(problems, one, name_of(one), status)
    for one in await _open_to(case, tree.get("goal", [])):
        facts = [str(one.get("lifecycleStatus", "")), concept_text(one.get("achievementStatus")), *_targets(one)]
        _tell(goals, one, concept_text(one.get("description")), facts)
    for activity in tree.get("activity", []):
        await _activity(case, plan, interventions, activity)
    for one in await _open_to(case, tree.get("careTeam", [])):
        team.trees.append(one)
        for participant in one.get("participant", []):
            await _member(case, plan, team, participant)
    for name in ("author",):
        await _person(case, plan, tree.get(name))
    plan.sections = [problems, goals, interventions, team]
    return plan


async def _open_to(case: Case, references: Iterable[Any]) -> list[dict[str, Any]]:
    found = []
    for reference in references:
        tree = await read(case.store, reference)
        if tree is not None and may_tell(case.disclosure, tree):
            found.append(tree)
    return found


def _tell(section: Section, tree: dict[str, Any] | None, name: str, facts: Iterable[str]) -> None:
    section.items.append((name or "not named", [fact for fact in facts if fact]))
    if tree is not None:
        section.trees.append(tree)


async def _activity(case: Case, plan: Plan, section: Section, activity: dict[str, Any]) -> None:
    if detail := activity.get("detail"):
        told = concept_text(detail.get("code")) or str(detail.get("description", ""))
        facts = [
            str(detail.get("status", "")),
            str(detail.get("scheduledString", "")),
            _period(detail.get("scheduledPeriod", {})),
        ]
        _tell(section, None, told, [*facts, str(detail.get("description", "")) if detail.get("code") else ""])
    for tree in await _open_to(case, [activity["reference"]] if "reference" in activity else []):
        told = concept_text(tree.get("code")) or str(tree.get("description", "")) or concept_text(tree.get("serviceType"))
        when = str(tree.get("occurrenceDateTime") or tree.get("start") or _period(tree.get("occurrencePeriod", {})))
        _tell(section, tree, told, [str(tree.get("status", "")), when])


async def _member(case: Case, plan: Plan, section: Section, participant: dict[str, Any]) -> None:
    member = await _person(case, plan, participant.get("member"))
    reference = participant.get("member", {})
    name = name_of(member) or str(reference.get("display", ""))
    if member and member["resourceType"] == "PractitionerRole":
        name = name_of(await _person(case, plan, member.get("practitioner"))) or name
    of = await organization(case.store, participant.get("onBehalfOf") or reference)
    at = name_of(of) if of and of["resourceType"] == "Organization" and of != member else ""
    roles = [concept_text(role) for role in participant.get("role", [])]
    _tell(section, None, name, [*roles, at, *_reached(member)])


async def _person(case: Case, plan: Plan, reference: Any) -> dict[str, Any] | None:
    tree = await read(case.store, reference)
    if tree is not None and tree["resourceType"] in _PEOPLE and tree["resourceType"] not in ("Patient", "CareTeam"):
        plan.people[f"{tree['resourceType']}/{tree['id']}"] = tree
    return tree


def _reached(tree: dict[str, Any] | None) -> list[str]:
    points = (tree or {}).get("telecom", [])
    return [one["value"] for one in points if one.get("system") == "phone" and one.get("use") != "home" and one.get("value")][:1]


def _since(tree: dict[str, Any]) -> str:
    return f"since {tree['onsetDateTime'][:10]}" if "onsetDateTime" in tree else ""


def _period(period: dict[str, Any]) -> str:
    return " to ".join(str(period[end])[:10] for end in ("start", "end") if end in period)


def _targets(goal: dict[str, Any]) -> list[str]:
    told = []
    for target in goal.get("target", []):
        bounds = target.get("detailRange", {})
        values = [target.get("detailQuantity", {}), bounds.get("low", {}), bounds.get("high", {})]
        amounts = [" ".join(str(one[part]) for part in ("comparator", "value", "unit") if part in one) for one in values if one]
        value = " to ".join(amounts) or str(target.get("detailString", "")) or concept_text(target.get("detailCodeableConcept"))
        due = f"by {target['dueDate']}" if "dueDate" in target else ""
        told.append(" ".join(part for part in (concept_text(target.get("measure")), value, due) if part))
    return told


# --- to be read --------------------------------------------------------------------------------------------------------------


async def readable_attachment(case: Case, plan: Plan, created: str) -> dict[str, Any]:
    """The plan as a PDF; as an HTML page when a letter in it cannot be shown by any font."""
    told = _told(case, plan)
    document = await asyncio.to_thread(pdf, told)
    if document is not None:
        return {**file_attachment("application/pdf", document, plan.title, created), "language": "en"}
    lines = [
        (section.heading, [": ".join([name, " · ".join(facts)]).rstrip(": ") for name, facts in section.items])
        for section in plan.sections
    ]
    return attachment(page(plan.title, told["facts"], told["text"], [one for one in lines if one[1]]), plan.title, created)


def _told(case: Case, plan: Plan) -> dict[str, Any]:
    patient = case.patient or {}
    author = case.words.get("coordinator") or "Care coordination"
    as_of = local_time(instant(case.stored.last_updated), case.partner)
    facts = [
        ("Patient", name_of(patient)),
        ("Born", str(patient.get("birthDate", ""))),
        ("Period", _period(case.tree.get("period", {}))),
        ("Status", str(case.tree.get("status", ""))),
        ("As of", as_of),
        ("From", author),
    ]
    return {
        "title": plan.title,
        "author": author,
        "language": "en",
        "footer": f"{plan.title}, version {case.stored.version}, as of {as_of}",
        "facts": [list(fact) for fact in facts if fact[1]],
        "text": [str(case.tree["description"])] if case.tree.get("description") else [],
        "sections": [
            {"heading": one.heading, "empty": "None told", "items": [{"name": name, "facts": facts} for name, facts in one.items]}
            for one in plan.sections
        ],
    }


def pdf(told: dict[str, Any]) -> bytes | None:
    """A tagged PDF of these words; None when there is no font for a letter in them."""
    import typst  # here, for it is large, and most processes never need it

    source = (folder("mappings") / "document" / "care-plan.typ").read_bytes()
    try:
        made = typst.compile(
            source,
            format="pdf",
            font_paths=_fonts(),
            sys_inputs={"document": json.dumps(told).decode()},
            pdf_standards="ua-1",
            timestamp=0,
        )
    except typst.TypstError as error:
        if "could not be displayed" not in str(error):
            raise
        return None
    return bytes(made)


@cache
def _fonts() -> list[str]:
    """The folders of the fonts that are installed with the hub."""
    found = [util.find_spec(name) for name in _FONTS]
    return [str(Path(spec.origin).parent / "files") for spec in found if spec is not None and spec.origin]


def file_attachment(kind: str, body: bytes, title: str, created: str) -> dict[str, Any]:
    """Bytes as an Attachment, in it."""
    return {
        "contentType": kind,
        "data": base64.b64encode(body).decode(),
        "size": len(body),
        "hash": base64.b64encode(sha1(body, usedforsecurity=False).digest()).decode(),  # FHIR wants SHA-1 here
        "title": title,
        "creation": created,
    }
