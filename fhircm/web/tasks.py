"""A Task in a few words, as the work list shows it. https://hl7.org/fhir/R4/task.html"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

Tree = Mapping[str, Any]
_LATE = datetime.max.replace(tzinfo=UTC)  # what has no due time comes last
STATUS = {
    "draft": "draft",
    "requested": "new",
    "received": "received",
    "accepted": "accepted",
    "ready": "ready to begin",
    "in-progress": "in progress",
    "on-hold": "on hold",
    "completed": "done",
}
_URGENT = {"urgent": "urgent", "asap": "as soon as possible", "stat": "at once"}


@dataclass(frozen=True, slots=True)
class Work:
    """A Task: `due` None when it has no due time; `patient` is the id of the patient it is for."""

    id: str
    what: str
    due: datetime | None
    whole_day: bool
    status: str
    urgent: str
    patient: str
    tree: Tree

    @property
    def order(self) -> tuple[datetime, str]:
        """By due time, and what has none last."""
        return self.due or _LATE, self.id


def work(tree: Tree) -> Work:
    """What is to be done."""
    text = (tree.get("restriction") or {}).get("period", {}).get("end")
    due, whole_day = _moment(text) if isinstance(text, str) else (None, False)
    kind, _, patient = str((tree.get("for") or {}).get("reference", "")).partition("/")
    status = STATUS.get(str(tree.get("status")), str(tree.get("status")))
    if step := (tree.get("businessStatus") or {}).get("text"):
        status = f"{status}: {step}"
    what = _concept(tree.get("code")) or str(tree.get("description") or "") or "Task"
    return Work(
        tree["id"],
        what,
        due,
        whole_day,
        status,
        _URGENT.get(str(tree.get("priority")), ""),
        patient if kind == "Patient" else "",
        tree,
    )


def _moment(text: str) -> tuple[datetime | None, bool]:
    """A FHIR date or time; of a date its end. https://hl7.org/fhir/R4/datatypes.html#dateTime"""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None, False
    if len(text) == 10:
        return datetime.combine(found.date(), time.max, UTC), True
    return (found if found.tzinfo else found.replace(tzinfo=UTC)), False


def _concept(concept: Any) -> str:
    if not isinstance(concept, Mapping):
        return ""
    displays = [one.get("display") for one in concept.get("coding") or []]
    return str(concept.get("text") or next((display for display in displays if display), ""))
