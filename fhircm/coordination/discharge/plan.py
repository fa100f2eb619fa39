"""The planning of one stay as it stands: the Task of the whole, its items and barriers, and the facts that its conditions ask for.

https://hl7.org/fhir/R4/task.html, https://hl7.org/fhir/R4/encounter.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fhircm.coordination.build import stable_id
from fhircm.coordination.codes import BASE, codings, member, own
from fhircm.coordination.context import Context, Record, token
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.discharge.expectation import Expectation, end_of, expectations
from fhircm.coordination.discharge.rules import rules
from fhircm.coordination.people import linked, patient_of, patients_value
from fhircm.coordination.protocol import Pathway
from fhircm.coordination.task_states import is_open, mirrored
from fhircm.coordination.times import moment
from fhircm.fhir.systems import COORDINATION
from fhircm.store.resources import Stored

Tree = dict[str, Any]
EVENT = "admission"
WHOLE, ITEM, BARRIER, REQUEST, OPEN_ITEMS = (
    "discharge-planning",
    "discharge-item",
    "discharge-barrier",
    "discharge-evaluation-request",
    "discharge-open-items",
)
MANDATORY = f"{BASE}/StructureDefinition/mandatory"  # on an item: the patient should not leave while it is open
PRESENT = frozenset(("arrived", "triaged", "in-progress", "onleave"))


def is_stay(encounter: Tree) -> bool:
    """Whether an Encounter is a stay in a hospital."""
    return member("inpatient-stay", encounter.get("class"))


def begun(encounter: Tree, calendar: BusinessCalendar) -> datetime | None:
    """When a stay began (UTC)."""
    return moment(encounter.get("period", {}).get("start"), calendar)


def step_of(task: Tree) -> str:
    """The id of the step that a Task is."""
    return task.get("instantiatesUri", "").rpartition("#")[2]


def whole_id(stay: str, number: int) -> str:
    """The id of the planning of a stay: a discharge may be taken back, and the planning comes again."""
    return stable_id("discharge-planning", stay, str(number))


@dataclass(frozen=True, slots=True)
class Planning:
    """The planning of a stay. `whole` None: it has not begun."""

    stay: Stored
    calendar: BusinessCalendar
    patients: Sequence[str]  # all records of the human, that of the stay first
    whole: Stored | None
    number: int  # of the next whole
    below: Sequence[Stored]  # the Tasks that are part of the whole
    requests: Sequence[Stored]  # for an evaluation

    @property
    def present(self) -> bool:
        """Whether the patient is in the hospital."""
        return self.stay.tree["status"] in PRESENT

    @property
    def left(self) -> bool:
        """Whether the patient has left."""
        return self.stay.tree["status"] == "finished"

    @property
    def expected(self) -> list[Expectation]:
        """Every expectation, the oldest first."""
        return expectations(self.whole.tree) if self.whole else []

    @property
    def end(self) -> datetime | None:
        """When the discharge is expected (UTC)."""
        return end_of(self.expected[-1].date, self.calendar) if self.expected else None

    @property
    def where(self) -> str:
        """Where the patient went, or is expected to go: a name of planning.yaml."""
        said = self.stay.tree.get("hospitalization", {}).get("dischargeDisposition") if self.left else None
        expected = next((one.disposition for one in reversed(self.expected) if one.disposition), None)
        return rules().disposition(said or expected)

    def of(self, code: str) -> list[Stored]:
        """The Tasks below the whole with a code of the hub."""
        return [one for one in self.below if own(one.tree.get("code")) == code]

    def items(self, step: str) -> list[Stored]:
        """The Tasks that were made for a step, in that order."""
        found = [one for one in self.of(ITEM) if step_of(one.tree) == step]
        order = {self.item_id(step, number): number for number in range(len(found))}
        return sorted(found, key=lambda one: order.get(one.id, -1))

    def item_id(self, step: str, number: int) -> str:
        """The id of the Task that a step gets, counted from 0."""
        return stable_id(self.whole.id if self.whole else self.stay.id, step, str(number))

    def pathway(self, context: Context) -> Pathway | None:
        """The pathway of the whole; for one that has not begun, the first for an admission."""
        if self.whole is not None:
            return context.pathway_of(self.whole.tree)
        return next(iter(context.pathways_of(EVENT)), None)

    def open_mandatory(self) -> list[Stored]:
        """The mandatory items that are not done."""
        return [one for one in self.of(ITEM) if is_mandatory(one.tree) and is_open(one.tree)]


def is_mandatory(item: Tree) -> bool:
    """Whether a patient should not leave while an item is open."""
    return any(one.get("url") == MANDATORY and one.get("valueBoolean") for one in item.get("extension", []))


async def planning(record: Record, stay: Stored, calendar: BusinessCalendar) -> Planning:
    """The planning of a stay as it stands."""
    number, whole = 0, None
    while found := await record.get("Task", whole_id(stay.id, number)):
        whole, number = found, number + 1
    below = await record.find("Task", ("part-of", f"Task/{whole.id}")) if whole else []
    code = ("code", token(COORDINATION, REQUEST))
    requests = [one for one in await record.find("Task", ("focus", f"Encounter/{stay.id}"), code) if not mirrored(one.tree)]
    patient = patient_of(stay.tree)
    patients = await linked(record, patient) if patient else []
    return Planning(stay, calendar, patients, whole, number, sorted(below, key=age), requests)


def age(task: Stored) -> tuple[str, str]:
    """By which the Tasks of a planning are in order, the oldest first."""
    return task.tree.get("authoredOn", ""), task.id


async def variables(context: Context, plan: Planning, *, need: bool) -> dict[str, str]:
    """What the conditions of the checklist ask for."""
    coverages = [one.tree for one in await context.find("Coverage", patients_value(plan.patients))]
    observed = {code for _, code in codings(plan.stay.tree.get("class"))} & rules().observation
    return {
        "disposition": plan.where,
        "class": "observation" if observed else "inpatient",
        "payer": rules().payer(coverages),
        "expected": "yes" if plan.end or plan.left else "no",
        "need": "yes" if need else "no",
    }
