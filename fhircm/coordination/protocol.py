"""Pathways as data: what a PlanDefinition says must happen, when, by whom, and who is next when it does not.

https://hl7.org/fhir/R4/plandefinition.html, profiles/plan-definition/. A pathway is a top-level action whose trigger names an
event (`admission`, `discharge`, `referral`); the actions in it are its steps. A step is mandatory when its `requiredBehavior` is
`must`; its `output` says which resources show that it is done; and a `relatedAction` before the end of the pathway's own action
(with an `offsetDuration`) makes it due so long before the whole is expected to end. Four things are read beyond the plain resource:

- an action is due in days (UCUM d) or hours (h), and in those of business with the extension `business-days` or `business-hours` on
  `timingDuration`;
- the first participant's role owns a step, and extensions `escalation` (`role`, `after`) are those next in line, in order;
- an action may say with how many attempts to reach somebody it is done though nobody was reached: extension `contact-attempts`;
- a condition is FHIRPath of the form `%name = 'value'`, `%name != 'value'` or `%name in ('a' | 'b')`. Any other is refused when
  the file is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fhircm.coordination.build import instant, profile, reference
from fhircm.coordination.codes import BASE
from fhircm.coordination.deadlines import BusinessCalendar, Span
from fhircm.fhir.artefacts import folder
from fhircm.fhir.json import loads
from fhircm.fhir.validation import check

Tree = dict[str, Any]
BUSINESS = {"d": f"{BASE}/StructureDefinition/business-days", "h": f"{BASE}/StructureDefinition/business-hours"}
ESCALATION = f"{BASE}/StructureDefinition/escalation"
ATTEMPTS = f"{BASE}/StructureDefinition/contact-attempts"
_EQUAL = re.compile(r"\s*%([a-z]+)\s*(=|!=)\s*'([^'\\]*)'\s*")
_AMONG = re.compile(r"\s*%([a-z]+)\s+in\s+\(\s*('[^'\\]*'(?:\s*\|\s*'[^'\\]*')*)\s*\)\s*")
_NOTHING = {"value": 0, "code": "d"}
_NO_LATER = frozenset(("before-end", "concurrent-with-end", "before-start", "before"))


class ProtocolWrong(ValueError):
    """A PlanDefinition cannot be used as a pathway; the message names it and the place."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One kind of resource that shows that a step is done: every filter must hold of it (`DataRequirement`)."""

    type: str
    profile: tuple[str, ...] = ()  # of a QuestionnaireResponse: its questionnaires
    codes: tuple[tuple[str, frozenset[tuple[str, str]]], ...] = ()  # element: codings of which it bears one
    signed: bool = False  # by a patient or who speaks for them
    in_language: bool = False  # of the patient
    no_older: int | None = None  # days before the expected end of the whole


@dataclass(frozen=True, slots=True)
class Condition:
    """A step applies when the variable is (or, negated, is not) among the values."""

    variable: str
    values: frozenset[str]
    negated: bool = False

    def holds(self, variables: Mapping[str, str]) -> bool:
        """Raises KeyError for a variable that the event does not have."""
        return (variables[self.variable] in self.values) is not self.negated


@dataclass(frozen=True, slots=True)
class NextInLine:
    """Who has a step when it is overdue, and how long."""

    role: Tree  # CodeableConcept
    after: Span


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a pathway."""

    id: str
    title: str
    description: str | None
    code: Tree  # CodeableConcept
    role: Tree | None  # CodeableConcept of the one who owns it
    within: Span | None
    no_later_than: tuple[str, ...]  # ids of steps of which one applies
    conditions: tuple[Condition, ...]
    chain: tuple[NextInLine, ...]
    mandatory: bool = False
    before_end: Span | None = None  # of the whole
    shown: tuple[Shown, ...] = ()
    attempts: int | None = None  # so many attempts that reach nobody are enough


@dataclass(frozen=True, slots=True)
class Pathway:
    """One pathway: the whole, and its steps."""

    url: str
    version: str
    event: str
    whole: Step
    steps: tuple[Step, ...]

    @property
    def canonical(self) -> str:
        """What Task.instantiatesCanonical names."""
        return f"{self.url}|{self.version}"

    def applies(self, variables: Mapping[str, str]) -> bool:
        """Whether the conditions of the whole hold."""
        return all(condition.holds(variables) for condition in self.whole.conditions)

    def applicable(self, variables: Mapping[str, str]) -> list[Step]:
        """The steps whose conditions hold, in order."""
        return [step for step in self.steps if all(condition.holds(variables) for condition in step.conditions)]

    def due(self, step: Step, start: datetime, calendar: BusinessCalendar, variables: Mapping[str, str]) -> datetime | None:
        """When a step is due (UTC) that begins to run at `start`: by itself, and no later than the steps that it precedes."""
        ends = [calendar.after(start, step.within)] if step.within else []
        for other in self.applicable(variables):
            if other.id in step.no_later_than and other.within:
                ends.append(calendar.after(start, other.within))
        return min(ends, default=None)

    def step(self, id: str) -> Step | None:
        """A step, or the whole, by its id."""
        return next((step for step in (self.whole, *self.steps) if step.id == id), None)


def task_of(
    pathway: Pathway,
    step: Step,
    *,
    patient: str,
    focus: Tree,
    owner: Tree,
    requester: Tree,
    at: datetime,
    period: Tree | None = None,
    **more: Any,
) -> Tree:
    """A new Task for a step of a pathway, or for its whole, without id and status; `patient` is the id of the Patient."""
    return {
        "resourceType": "Task",
        "meta": profile("coordination-task"),
        "instantiatesCanonical": pathway.canonical,
        "instantiatesUri": f"{pathway.url}#{step.id}",
        "intent": "order",
        "priority": "routine",
        "code": step.code,
        "description": step.title,
        "focus": focus,
        "for": reference(f"Patient/{patient}"),
        "authoredOn": instant(at),
        "lastModified": instant(at),
        "requester": requester,
        "performerType": [step.role] if step.role else None,
        "owner": owner,
        "restriction": {"period": period} if period else None,
        "note": [{"text": step.description}] if step.description else None,
        **more,
    }


def load_pathways(place: Path | None = None) -> tuple[Pathway, ...]:
    """Every pathway of the PlanDefinitions in a folder (without one, those that fhircm ships). Raises ProtocolWrong."""
    root = place or folder("profiles") / "plan-definition"
    return tuple(
        pathway for path in sorted(root.glob("*.json")) for pathway in read_pathways(loads(check(path.read_bytes()).body))
    )


def read_pathways(plan: Tree) -> list[Pathway]:
    """The pathways of one PlanDefinition. Raises ProtocolWrong."""
    name = plan.get("url") or plan.get("id", "PlanDefinition")
    if not plan.get("url") or not plan.get("version"):
        raise ProtocolWrong(f"{name}: url and version are needed, because Tasks name them")
    found = []
    for number, action in enumerate(plan.get("action", [])):
        place = f"{name}: action[{number}]"
        for event in _events(action):
            steps = tuple(_step(one, f"{place}.action[{at}]", action["id"]) for at, one in enumerate(action.get("action", [])))
            pathway = Pathway(plan["url"], plan["version"], event, _step(action, place, ""), steps)
            _agree(pathway, place)
            found.append(pathway)
    return found


def _events(action: Tree) -> Iterable[str]:
    return (trigger["name"] for trigger in action.get("trigger", []) if trigger["type"] == "named-event")


def _step(action: Tree, place: str, whole: str) -> Step:
    for needed in ("id", "title", "code"):
        if not action.get(needed):
            raise ProtocolWrong(f"{place}.{needed} is missing")
    participants = (one["role"] for one in action.get("participant", []) if "role" in one)
    related = [one for one in action.get("relatedAction", []) if one["relationship"] in _NO_LATER]
    offsets = (one.get("offsetDuration", _NOTHING) for one in related if one["actionId"] == whole)
    return Step(
        id=action["id"],
        title=action["title"],
        description=action.get("description"),
        code=action["code"][0],
        role=next(participants, None),
        within=_span(action["timingDuration"], f"{place}.timingDuration") if "timingDuration" in action else None,
        no_later_than=tuple(one["actionId"] for one in related if one["actionId"] != whole),
        conditions=tuple(_condition(one["expression"], f"{place}.condition") for one in action.get("condition", [])),
        chain=tuple(_next_in_line(one, place) for one in action.get("extension", []) if one["url"] == ESCALATION),
        mandatory=action.get("requiredBehavior") == "must",
        before_end=next((_span(one, f"{place}.relatedAction.offsetDuration") for one in offsets), None),
        shown=tuple(_shown(one, f"{place}.output") for one in action.get("output", [])),
        attempts=next((one["valuePositiveInt"] for one in action.get("extension", []) if one["url"] == ATTEMPTS), None),
    )


def _span(duration: Tree, place: str) -> Span:
    value, unit = duration.get("value"), duration.get("code")
    if unit not in ("d", "h") or value is None or value != int(value) or value < 0:
        raise ProtocolWrong(f"{place} must be a whole number of days (UCUM code d) or hours (h)")
    business = any(one["url"] == BUSINESS[unit] and one.get("valueBoolean") for one in duration.get("extension", []))
    return Span(int(value), business, unit)


def _shown(requirement: Tree, place: str) -> Shown:
    said = {one["url"].rpartition("/")[2]: one for one in requirement.get("extension", [])}
    if any("path" not in one or not one.get("code") for one in requirement.get("codeFilter", [])):
        raise ProtocolWrong(f"{place}.codeFilter needs a path and the codes, one by one")
    return Shown(
        requirement["type"],
        tuple(requirement.get("profile", [])),
        tuple(
            (one["path"], frozenset((code.get("system", ""), code["code"]) for code in one["code"]))
            for one in requirement.get("codeFilter", [])
        ),
        signed=bool(said.get("signed", {}).get("valueBoolean")),
        in_language=bool(said.get("in-language", {}).get("valueBoolean")),
        no_older=said.get("days-before-end", {}).get("valueInteger"),
    )


def _next_in_line(extension: Tree, place: str) -> NextInLine:
    parts = {one["url"]: one for one in extension.get("extension", [])}
    try:
        return NextInLine(
            parts["role"]["valueCodeableConcept"], _span(parts["after"]["valueDuration"], f"{place}.extension.after")
        )
    except KeyError as error:
        raise ProtocolWrong(f"{place}.extension (escalation) has no {error.args[0]}") from None


def _condition(expression: Tree, place: str) -> Condition:
    text = expression.get("expression", "")
    if expression.get("language") == "text/fhirpath":
        if found := _EQUAL.fullmatch(text):
            return Condition(found[1], frozenset((found[3],)), found[2] == "!=")
        if found := _AMONG.fullmatch(text):
            return Condition(found[1], frozenset(re.findall(r"'([^']*)'", found[2])))
    raise ProtocolWrong(f"{place} must be FHIRPath such as %risk = 'high' or %priority in ('urgent' | 'stat')")


def _agree(pathway: Pathway, place: str) -> None:
    ids = [step.id for step in (pathway.whole, *pathway.steps)]
    if len(ids) != len(set(ids)):
        raise ProtocolWrong(f"{place}: two actions have one id")
    for step in pathway.steps:
        if unknown := set(step.no_later_than) - set(ids):
            raise ProtocolWrong(f"{place}: {step.id} is related to {', '.join(sorted(unknown))}, which is no action here")
