"""What people do at the EHR's own screens: discharge, order, book, write a note. Not FHIR, and not for clients.

Each act takes a `key`; the same key again does nothing and answers the same.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime

from fhircm.fhir.systems import REFERRAL
from fhircm.sandbox.chart import Chart, Tree


class NotPossible(Exception):
    """There is nobody for whom this could be done."""


class Staff:
    """The people of one EHR. `known_elsewhere` tells which patients the clinic knows too."""

    def __init__(self, chart: Chart, known_elsewhere: set[str]) -> None:
        self._chart, self._known = chart, known_elsewhere
        self._own = next(id for id in ("lakeside", "riverbend") if chart.get("Organization", id))
        self._done: dict[str, Tree] = {}

    def act(self, name: str, details: Tree) -> Tree:
        """Do it, once for each key. Raises NotPossible, KeyError."""
        acts: dict[str, Callable[..., Tree]] = {
            "discharge": self._discharge,
            "order-referral": self._order_referral,
            "book": self._book,
            "consult-note": self._consult_note,
        }
        key = f"{name} {details.pop('key')}"
        if key not in self._done:
            self._done[key] = acts[name](**details)
        return self._done[key]

    def _discharge(self, disposition: str = "home", patient: str | None = None) -> Tree:
        stays = [
            one
            for one in self._chart.of_type("Encounter")
            if one["status"] == "in-progress" and one["class"]["code"] == "IMP" and patient in (None, _id(one["subject"]))
        ]
        if not stays:
            raise NotPossible("nobody is an inpatient")
        stay = stays[0]
        system = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
        left = {
            **stay,
            "status": "finished",
            "period": {**stay["period"], "end": _now()},
            "hospitalization": {"dischargeDisposition": {"coding": [{"system": system, "code": disposition}]}},
        }
        self._chart.write(left, stay["id"])
        return {"encounter": f"Encounter/{stay['id']}", "patient": stay["subject"]["reference"]}

    def _order_referral(self, known_at_clinic: bool = True, patient: str | None = None) -> Tree:
        drafts = [
            one
            for one in self._chart.of_type("ServiceRequest")
            if one["status"] == "draft"
            and (_id(one["subject"]) in self._known) == known_at_clinic
            and patient in (None, _id(one["subject"]))
        ]
        if not drafts:
            raise NotPossible("nobody waits for a referral")
        order = {**drafts[0], "status": "active", "authoredOn": _now()}
        self._chart.write(order, order["id"])
        return {"service_request": f"ServiceRequest/{order['id']}", "patient": order["subject"]["reference"]}

    def _book(self, referral_number: str, patient: str, at: str) -> Tree:
        visit = self._chart.write(
            {
                "resourceType": "Encounter",
                "identifier": [_number(referral_number)],
                "status": "planned",
                "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
                "subject": {"reference": f"Patient/{patient}"},
                "period": {"start": at},
                "serviceProvider": {"reference": f"Organization/{self._own}"},
            }
        )
        return {"encounter": f"Encounter/{visit['id']}"}

    def _consult_note(self, referral_number: str, patient: str, text: str) -> Tree:
        note = self._chart.write(
            {
                "resourceType": "DocumentReference",
                "status": "current",
                "docStatus": "final",
                "type": {"coding": [{"system": "http://loinc.org", "code": "11488-4", "display": "Consult note"}]},
                "subject": {"reference": f"Patient/{patient}"},
                "date": _now(),
                "author": [{"reference": f"Practitioner/{self._own}-p1"}],
                "custodian": {"reference": f"Organization/{self._own}"},
                "content": [{"attachment": {"contentType": "text/plain", "data": base64.b64encode(text.encode()).decode()}}],
                "context": {"related": [{"identifier": _number(referral_number)}]},
            }
        )
        return {"document": f"DocumentReference/{note['id']}"}


def _id(reference: Tree) -> str:
    return str(reference["reference"]).removeprefix("Patient/")


def _number(value: str) -> Tree:
    return {"system": REFERRAL, "value": value}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def known_at_both(truth: dict[str, int]) -> set[str]:
    """The patient ids, at either EHR, of humans that both know."""
    humans = list(truth.values())
    return {id for id, human in truth.items() if humans.count(human) > 1}
