"""In whose work lists an open Task stands, by what it is ordered there, and what is known of its patient's risk.

https://hl7.org/fhir/R4/task.html and https://hl7.org/fhir/R4/riskassessment.html. A Task stands in the list of its owner, and as long as the owner is an organisation (or nobody) also in the
queue of each role that may do it (`performerType`) there. docs/explanation/work-list.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fhircm.fhir.ranges import EARLIEST, LATEST, date_range
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import HUB

RISKS = ("certain", "high", "moderate", "low", "negligible")  # http://terminology.hl7.org/CodeSystem/risk-probability
PRIORITIES = ("stat", "asap", "urgent", "routine")  # the most pressing first
OPEN = ("requested", "received", "accepted", "ready", "in-progress", "on-hold")  # a draft is nobody's work yet
REASONS = ("owner", "escalated", "delegated", "offered", "queue")
ESCALATED = f"{HUB}StructureDefinition/task-escalation"
SNOOZED = f"{HUB}StructureDefinition/snoozed-until"
CLAIM = f"{HUB}StructureDefinition/task-claim"
_HOLDS = frozenset({"final", "amended", "corrected", "preliminary"})
_QUEUES = frozenset({"Organization", "HealthcareService", "CareTeam"})  # who own what one of them is to do


class WorkLine(NamedTuple):
    """An open Task in one list. `due` is in microseconds since the epoch, UTC; what has no due time comes last.

    `parameter`: `owner` for the list of somebody, `performer` for the queue of a role. `priority` is its place in PRIORITIES. `hidden`: not
    shown until then, for it is snoozed, or somebody has claimed it out of this queue. `why` it is there: one of REASONS.
    """

    parameter: str
    list: str
    due: int
    priority: int
    patient: str
    status: str
    hidden: int
    why: str


class PatientRisk(NamedTuple):
    """What a RiskAssessment that holds says of its Patient: `level` is a place in RISKS, that of the highest risk; `at` is when, in microseconds."""

    parameter: str
    patient: str
    at: int
    level: int


def queue(owner: str, system: str, code: str) -> str:
    """The name of the queue of a role at an owner (a reference; '': the queue of what nobody owns yet)."""
    return f"{owner}|{system}|{code}"


def work_lines(tree: Mapping[str, Any]) -> list[WorkLine]:
    """The lines of a Task; none of one that is a draft or done, and of any other resource."""
    if tree["resourceType"] != "Task" or tree["status"] not in OPEN:
        return []
    due, patient = due_of(tree), local(tree.get("for"))
    common = (due, _rank(tree), patient.removeprefix("Patient/") if patient.startswith("Patient/") else "", tree["status"])
    snoozed = _moment(_part(tree, SNOOZED, "until").get("valueDateTime"), EARLIEST)
    found = {name: WorkLine(parameter, name, *common, max(snoozed, taken), why) for parameter, name, taken, why in _lists(tree)}
    return list(found.values())


def patient_risks(tree: Mapping[str, Any]) -> list[PatientRisk]:
    """The risk that a RiskAssessment tells of, if it holds and is in words of RISKS; none of any other resource."""
    if tree["resourceType"] != "RiskAssessment" or tree["status"] not in _HOLDS:
        return []
    patient = local(tree.get("subject"))
    levels = [level for one in tree.get("prediction", ()) if (level := risk_of(one)) is not None]
    if not patient.startswith("Patient/") or not levels:
        return []
    when = tree.get("occurrenceDateTime") or (tree.get("occurrencePeriod") or {}).get("start")
    return [PatientRisk("patient", patient.removeprefix("Patient/"), _moment(when, EARLIEST), min(levels))]


def risk_of(prediction: Mapping[str, Any]) -> int | None:
    """The place in RISKS of what a prediction says."""
    codings = (prediction.get("qualitativeRisk") or {}).get("coding", ())
    return next((RISKS.index(one["code"]) for one in codings if one.get("code") in RISKS), None)


def due_of(tree: Mapping[str, Any]) -> int:
    """When the present owner's time is over: as escalated, else as the Task was made. LATEST: it has no due time."""
    if _level(tree):
        return _moment(_part(tree, ESCALATED, "due").get("valueDateTime"), LATEST)
    return _moment(((tree.get("restriction") or {}).get("period") or {}).get("end"), LATEST)


def is_queue(reference: str) -> bool:
    """Whether who is named is no person, so that what they own waits for one of them."""
    return reference.partition("/")[0] in _QUEUES


def _lists(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, int, str]]:
    """The lists: the parameter that names them, their name, until when the Task is taken out of them, and why it is there."""
    owner, claim = local(tree.get("owner")), claim_of(tree)
    offered = local(claim.get("offered", {}).get("valueReference"))
    if offered:
        yield "owner", offered, EARLIEST, "offered"
    if owner:
        yield "owner", owner, EARLIEST, reason_of(tree)
    recipients = [local(one) for one in (tree.get("restriction") or {}).get("recipient", ())]
    places = [one for one in (owner, *recipients, local(claim.get("queue", {}).get("valueReference"))) if is_queue(one)]
    taken = EARLIEST if is_queue(owner) or not owner else _moment(claim.get("until", {}).get("valueInstant"), LATEST)
    for place in places or ([""] if "owner" not in tree else []):
        for role in tree.get("performerType", ()):
            for coding in role.get("coding", ()):
                if "code" in coding:
                    yield "performer", queue(place, coding.get("system", ""), coding["code"]), taken, "queue"


def reason_of(tree: Mapping[str, Any]) -> str:
    """Why a Task is in the list of its owner: it was escalated, or somebody else passed it on (`by` of its claim)."""
    owner, by = local(tree.get("owner")), local(claim_of(tree).get("by", {}).get("valueReference"))
    if _level(tree):
        return "escalated"
    return "delegated" if by and by != owner and not is_queue(owner) else "owner"


def claim_of(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parts of the extension of a claim, by name."""
    return {one.get("url", ""): one for one in _extension(tree, CLAIM).get("extension", ())}


def local(element: Any) -> str:
    """The reference, if it leads to a resource of this server; else ''."""
    to = parse_reference((element or {}).get("reference", ""))
    return f"{to.type}/{to.id}" if to.kind == "local" else ""


def _rank(tree: Mapping[str, Any]) -> int:
    priority = tree.get("priority", "routine")
    return PRIORITIES.index(priority) if priority in PRIORITIES else len(PRIORITIES) - 1


def _moment(text: Any, otherwise: int) -> int:
    """A moment as it is written; of a date (UTC), which is meant with its last day, the last one."""
    if not isinstance(text, str):
        return otherwise
    try:
        low, high = date_range(text)
    except ValueError:
        return otherwise
    return high - 1 if len(text) <= len("2024-05-17") else low


def _extension(tree: Mapping[str, Any], url: str) -> Mapping[str, Any]:
    return next((one for one in tree.get("extension", ()) if one.get("url") == url), {})


def _part(tree: Mapping[str, Any], url: str, name: str) -> Mapping[str, Any]:
    return next((one for one in _extension(tree, url).get("extension", ()) if one.get("url") == name), {})


def _level(tree: Mapping[str, Any]) -> int:
    level = _part(tree, ESCALATED, "level").get("valueInteger", 0)
    return level if isinstance(level, int) else 0
