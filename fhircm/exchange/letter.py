"""A letter that any EHR can file and any human can read: one HTML page that is well-formed XML too, without script, style or link.

https://hl7.org/fhir/R4/datatypes.html#Attachment and https://html.spec.whatwg.org/multipage/xhtml.html
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from hashlib import sha1
from html import escape
from typing import Any

from fhircm.exchange.case import Case, concept_text, name_of, read
from fhircm.exchange.referral_document import content, said


async def letter(case: Case) -> str:
    """The occasion as a letter to the partner."""
    facts = [
        ("Patient", name_of(case.patient)),
        ("Born", (case.patient or {}).get("birthDate", "")),
        ("Telephone", _telephone(case.patient)),
        ("Referral number", case.words.get("number", "")),
        ("From", case.words.get("requester", "")),
        ("To", case.words.get("performer", "") or case.partner.organization.name),
    ]
    sections = [*await _order(case), *await _along(case)] if case.occasion.to == "performer" else []
    return page(case.title, [(label, value) for label, value in facts if value], case.text, sections)


def attachment(html: str, title: str, created: str) -> dict[str, Any]:
    """A letter as an Attachment, its bytes in it."""
    page = html.encode()
    return {
        "contentType": "text/html",
        "language": "en",
        "data": base64.b64encode(page).decode(),
        "size": len(page),
        "hash": base64.b64encode(sha1(page, usedforsecurity=False).digest()).decode(),  # FHIR wants SHA-1 here
        "title": title,
        "creation": created,
    }


def _telephone(patient: dict[str, Any] | None) -> str:
    points = (patient or {}).get("telecom", [])
    return next((one["value"] for one in points if one.get("system") == "phone" and one.get("value")), "")


async def _order(case: Case) -> list[tuple[str, list[str]]]:
    """What the performer must know of the order, by headings."""
    order = case.order or {}
    problems = [name_of(await read(case.store, one)) or one.get("display", "") for one in order.get("reasonReference", [])]
    told = [
        ("Ordered", [concept_text(order.get("code")), *(concept_text(detail) for detail in order.get("orderDetail", []))]),
        ("Reasons", [*(concept_text(reason) for reason in order.get("reasonCode", [])), *problems]),
        ("Notes", [note["text"] for note in order.get("note", []) if note.get("text")]),
        ("Instructions to the patient", [order.get("patientInstruction", "")]),
        ("Wanted", [_wanted(order)]),
    ]
    kept = [(heading, [line for line in dict.fromkeys(lines) if line]) for heading, lines in told]
    return [(heading, lines) for heading, lines in kept if lines]


async def _along(case: Case) -> list[tuple[str, list[str]]]:
    """What is in the file that goes along with the letter that sends a referral."""
    carried = await content(case) if case.occasion.name == "referral-sent" else []
    return [("Comes along", [said(tree) for tree in carried])] if carried else []


def _wanted(order: dict[str, Any]) -> str:
    period = order.get("occurrencePeriod", {})
    if "occurrenceDateTime" in order:
        return str(order["occurrenceDateTime"])
    return " to ".join(period[end] for end in ("start", "end") if end in period)


def page(title: str, facts: Iterable[Sequence[str]], text: list[str], sections: list[tuple[str, list[str]]]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>' for label, value in facts)
    paragraphs = "".join(f"<p>{escape(line)}</p>" for sentence in text for line in sentence.splitlines() if line.strip())
    lists = "".join(
        f"<h2>{escape(heading)}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for heading, lines in sections
    )
    head = f'<head><meta charset="utf-8"/><title>{escape(title)}</title></head>'
    body = f"<body><h1>{escape(title)}</h1><table>{rows}</table>{paragraphs}{lists}</body>"
    return f'<!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml" lang="en">{head}{body}</html>'
