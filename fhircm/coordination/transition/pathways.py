"""Which transitions there should be for the stays of a human, and their Tasks: opened, kept as they should be, or called off.

https://hl7.org/fhir/R4/plandefinition.html: the pathways (profiles/plan-definition/) for the events `stay-begun`, `discharge` and
`emergency-visit` say what must happen, for whom, and by when, in the business days of the house of the stay.

A first pull brings years of history, and a discharge of last week whose call was due long ago is noise. So an event that was over for longer
than `Context.window` when the hub first saw it opens nothing, and of one that the hub did not see coming (its first version here
was of after it) only the steps are opened whose time had not run out at that moment. Of a stay that the hub watched, all are. Both
follow from the versions of the Encounter, so a replay decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination import risk
from fhircm.coordination.build import concept, edit, instant, new, reference, stable_id
from fhircm.coordination.codes import own
from fhircm.coordination.context import Context
from fhircm.coordination.people import patient_of
from fhircm.coordination.protocol import Pathway, Step
from fhircm.coordination.task_states import is_open, machine
from fhircm.coordination.times import moment
from fhircm.coordination.transition.closing import completeness
from fhircm.coordination.transition.facts import Facts
from fhircm.coordination.transition.stays import Human, Stay, first_seen, stay
from fhircm.coordination.transition.wholes import (
    ADMISSION,
    DISCHARGE,
    EMERGENCY,
    Latest,
    call_off,
    called_off,
    latest,
    open_wholes,
    pathways,
    stay_of,
    step_id,
    steps_of,
    task_of,
)
from fhircm.store.resources import Op, Put, Stored

Tree = dict[str, Any]
_EARLY = timedelta(days=1)  # clocks differ; what is said to happen later than this has not happened
_LATE = timedelta(
    days=2
)  # news that is no older is late, and no history: a step whose time has run out is overdue, not forgotten
_WITHDRAWN = "entered-in-error"
_UNTOUCHED = frozenset(("requested", "ready"))
_AGAIN = "The patient is in hospital again"
_TAKEN_BACK = {
    ADMISSION: "The admission was taken back",
    DISCHARGE: "The discharge was taken back or led elsewhere",
    EMERGENCY: "The visit was taken back",
}


async def reconcile(context: Context, human: Human, *always: str) -> list[Op]:
    """Bring the transitions of a human to what their stays ask for; `always` are stays that are looked at whatever their age."""
    running = await open_wholes(context, human.patients)
    named = {stay_of(task.tree) for task in running} | set(always)
    since = context.now() - context.window - _EARLY
    looked = [one for one in human.stays if one.id in named or (one.ended or one.begun or since) > since]
    known = await latest(context, looked)
    operations: list[Op] = []
    for one in looked:
        own_record = patient_of(one.tree) or human.patients[0]
        of_stay = replace(human, patients=[own_record, *(id for id in human.patients if id != own_record)])
        facts = Facts(context, of_stay, one)
        for pathway in pathways(context):
            operations += await _Course(context, facts, pathway, known[one.id, pathway.url]).sync()
    for task in running:
        if stay_of(task.tree) not in {one.id for one in looked} and await _no_stay(context, task):
            operations += await call_off(context, [task], _TAKEN_BACK[DISCHARGE])
    return operations


async def _no_stay(context: Context, task: Stored) -> bool:
    encounter = await context.follow(task.tree.get("encounter"))
    return encounter is None or stay(context, encounter) is None


@dataclass
class _Course:
    """One pathway of one stay: what there should be of it, and what there is."""

    context: Context
    facts: Facts
    pathway: Pathway
    latest: Latest

    @property
    def stay(self) -> Stay:
        return self.facts.stay

    @property
    def start(self) -> datetime | None:
        """When the event of the pathway happened."""
        return self.stay.begun if self.pathway.event == ADMISSION else self.stay.ended

    @property
    def start_text(self) -> str:
        return self.stay.tree["period"]["start" if self.pathway.event == ADMISSION else "end"]

    async def sync(self) -> list[Op]:
        """Open it, keep it, or call it off."""
        task, why = self.latest.task, self._why_not()
        if why is not None and (task is None or not is_open(task.tree)):
            return []
        variables = await self.facts.variables(self.pathway) if why is None else {}
        if why is None and not self.pathway.applies(variables):
            why = _TAKEN_BACK[self.pathway.event]
        if why is not None:
            return await call_off(self.context, [task], why) if task and is_open(task.tree) else []
        if task is not None and is_open(task.tree):
            return await self._keep(task, variables)
        again = task is None or called_off(task.tree) or await self._of_another(task)
        return await self._open(variables) if again else []

    def _why_not(self) -> str | None:
        """Why there should be none now, in the words that its Tasks are called off with."""
        one, human, event = self.stay, self.facts.human, self.pathway.event
        over = event != ADMISSION
        if one.in_bed is (event == EMERGENCY) or self.start is None or (event == DISCHARGE and one.disposition is None):
            return _TAKEN_BACK[event]
        if human.dead:
            return "The patient has died"
        if human.part_of(one) is not None:
            return "It is a part of another stay"
        if not over:
            return "The stay is over" if one.ended is not None else None
        if event == EMERGENCY and human.led_to(one) is not None:
            return "The patient was admitted"
        return _AGAIN if human.again(one) else None

    async def _of_another(self, task: Stored) -> bool:
        """Whether an event that came, and was over with, was taken back, and has happened once more since."""
        before, made = self._started(task), moment(task.tree.get("authoredOn"))
        if before is None or made is None or self.start is None or abs(self.start - before) <= _EARLY:
            return False
        history = await self.context.store.history("Encounter", self.stay.id)
        since = [one for one in history if not one.deleted and one.last_updated >= made]
        return not all(self._happened(stay(self.context, one)) for one in since)

    def _started(self, task: Stored) -> datetime | None:
        """From when a Task of the event counts: the time of the event as it was known then."""
        return moment(task.tree.get("restriction", {}).get("period", {}).get("start"), self.stay.calendar)

    async def _seen(self) -> tuple[datetime, bool]:
        """When the hub first knew of the event, and whether that was in time: it had watched the stay, or the news is fresh."""
        seen, before = await first_seen(self.context, self.stay.id, self._happened)
        watched = any(self._before(one.tree["status"]) for one in before)
        return seen, watched or (self.start is not None and seen - self.start <= _LATE)

    def _happened(self, one: Stay | None) -> bool:
        if one is None:
            return False
        if self.pathway.event == ADMISSION:
            return one.begun is not None
        return one.ended is not None and (not one.in_bed or one.disposition is not None)

    def _before(self, status: str) -> bool:
        """Whether an Encounter of this status tells that the event was still to come."""
        return status == "planned" if self.pathway.event == ADMISSION else status != "finished"

    # --- opening -------------------------------------------------------------------------------------------------------------

    async def _open(self, variables: Mapping[str, str]) -> list[Op]:
        seen, watched = await self._seen()
        if self.start is None or not seen - self.context.window <= self.start <= seen + _EARLY:
            return []
        due = self._due(variables, None if watched else seen)
        if not due:
            return []
        whole = self.latest.vacant
        done = await self._done_before(whole)
        kept = [task.resource.tree for task in done]
        trees = [await self._step(step, end, whole) for step, end in due if step.id not in {step_id(one) for one in kept}]
        period = {"start": self.start_text, "end": self._written(max(end for _, end in due))}
        tree = await self._task(self.pathway.whole, period)
        tree |= {"id": whole, "status": "in-progress", "extension": [completeness([*kept, *trees])], **self._place()}
        return [*(new(one) for one in (tree, *trees)), *done, *await self._assessed()]

    def _due(self, variables: Mapping[str, str], not_before: datetime | None) -> list[tuple[Step, datetime]]:
        assert self.start is not None
        steps = [
            (step, self.pathway.due(step, self.start, self.stay.calendar, variables))
            for step in self.pathway.applicable(variables)
        ]
        return [(step, due) for step, due in steps if due is not None and (not_before is None or due > not_before)]

    def _written(self, at: datetime) -> str:
        return self.stay.calendar.written(at)

    async def _done_before(self, whole: str) -> list[Put]:
        """What somebody did, or ended, of the same event before the hub called its transition off: it belongs to the new one, too."""
        if self.latest.task is None:
            return []
        above = reference(f"Task/{whole}")
        return [
            edit(task, partOf=[*task.tree["partOf"], above])
            for task in await steps_of(self.context, self.latest.task.id)
            if not is_open(task.tree) and not called_off(task.tree) and self._started(task) == self.start
        ]

    def _place(self) -> Tree:
        """Where the patient is while the stay goes on: a transfer within the house moves the whole along."""
        return {"location": self.stay.place} if self.pathway.event == ADMISSION and self.stay.place else {}

    async def _task(self, step: Step, period: Tree) -> Tree:
        organization = await self.context.follow(self.stay.tree.get("serviceProvider"))
        return await task_of(self.context, self.stay, self.facts.human.patients, organization, self.pathway, step, period)

    async def _step(self, step: Step, end: datetime, whole: str, number: int = 0) -> Tree:
        tree = await self._task(step, {"start": self.start_text, "end": self._written(end)})
        id = stable_id(whole, step.id, *([str(number)] if number else []))
        return tree | {"id": id, "status": "ready", "partOf": [reference(f"Task/{whole}")]}

    async def _assessed(self) -> list[Op]:
        """The RiskAssessment behind the steps, if one is, when there is none or it says something else."""
        result = self.facts.lace
        if result is None or self.facts.basis is None:
            return []
        subject = reference(f"Patient/{self.facts.human.patients[0]}")
        assessed = risk.assessment(self.stay.stored, subject, result, self.facts.basis, self.context.now())
        there = await self.context.get("RiskAssessment", assessed.id or "")
        if there is None:
            return [Put(assessed, if_version=0)]
        same = there.tree["prediction"] == assessed.tree["prediction"]
        return [] if same else [Put(assessed, if_version=there.version)]

    # --- keeping -------------------------------------------------------------------------------------------------------------

    async def _keep(self, whole: Stored, variables: Mapping[str, str]) -> list[Op]:
        """Follow corrections: of the time, of where the patient goes, of what was ordered, of the risk."""
        assert self.start is not None
        rows = [task for task in await steps_of(self.context, whole.id) if self._ours(task.tree)]
        steps = self.pathway.applicable(variables)
        wanted = [(step, self.pathway.due(step, self.start, self.stay.calendar, variables)) for step in steps]
        edits = {row.id: (row, members) for row, members in self._arrival(rows)}
        withdrawn = {id for id, (_, members) in edits.items() if members["status"] == _WITHDRAWN}
        matched: dict[str, Stored] = {}  # step: its Task
        for step, end in wanted:
            row = self._row([row for row in rows if row.id not in withdrawn], step, matched)
            if row is not None:
                matched[step.id] = row
                if is_open(row.tree):
                    edits[row.id] = (row, self._moved(row, step, end, variables) | edits.get(row.id, (row, {}))[1])
        operations = await self._missing([(step, end) for step, end in wanted if step.id not in matched], rows, whole)
        there = {row.id for row in matched.values()}
        for row in rows:
            if row.id not in there and row.tree["status"] in _UNTOUCHED:
                operations += await call_off(self.context, [row], "It does not apply any more")
        last = max((end for _, end in wanted if end is not None), default=None)
        place = {name: value for name, value in self._place().items() if value != whole.tree.get(name)}
        edits[whole.id] = (whole, self._moved(whole, self.pathway.whole, last, variables) | place)
        now = instant(self.context.now())
        operations += [edit(row, **members, lastModified=now) for row, members in edits.values() if members]
        return [*operations, *await self._assessed()] if operations else []

    async def _missing(self, steps: list[tuple[Step, datetime | None]], rows: list[Stored], whole: Stored) -> list[Op]:
        """New Tasks for the steps that have none; when the hub had not watched the stay, of those whose time had not run out."""
        if not steps:
            return []
        seen, watched = await self._seen()
        return [
            new(await self._step(step, end, whole.id, sum(step_id(task.tree) == step.id for task in rows)))
            for step, end in steps
            if end is not None and (watched or end > seen)
        ]

    def _ours(self, task: Tree) -> bool:
        return task.get("instantiatesUri", "").startswith(f"{self.pathway.url}#")

    @staticmethod
    def _row(rows: list[Stored], step: Step, matched: Mapping[str, Stored]) -> Stored | None:
        """The Task that is this step: by its id, else one that asks for the same by another day."""
        taken = {task.id for task in matched.values()}
        there = [task for task in rows if task.id not in taken and not called_off(task.tree)]
        by_id = (task for task in there if step_id(task.tree) == step.id)
        by_code = (task for task in there if own(task.tree.get("code")) == own(step.code))
        return next(by_id, None) or next(by_code, None)

    def _moved(self, row: Stored, step: Step, end: datetime | None, variables: Mapping[str, str]) -> Tree:
        """The members of a Task that follows a corrected time, or is another step of the same kind now. A due time that a human gave it stays."""
        period = row.tree.get("restriction", {}).get("period", {})
        other = step_id(row.tree) != step.id
        before, former = self._started(row), self.pathway.step(step_id(row.tree))
        if end is None or (before == self.start and not other):
            return {}
        usual = self._usual_end(former, before, variables)
        written = self._written(end) if usual is None or moment(period.get("end")) == usual else period.get("end")
        members: Tree = {"restriction": {**row.tree.get("restriction", {}), "period": {"start": self.start_text, "end": written}}}
        if other:
            note = [{"text": step.description}] if step.description else None
            members |= {
                "instantiatesUri": f"{self.pathway.url}#{step.id}",
                "code": step.code,
                "description": step.title,
                "note": note,
            }
        return members

    def _usual_end(self, step: Step | None, start: datetime | None, variables: Mapping[str, str]) -> datetime | None:
        """When a step would have been due by an earlier start; None for the whole, which is due with its last step."""
        if step is None or start is None or step is self.pathway.whole:
            return None
        if step.within is not None:
            return self.stay.calendar.after(start, step.within)
        return self.pathway.due(step, start, self.stay.calendar, variables)

    def _arrival(self, rows: list[Stored]) -> list[tuple[Stored, Tree]]:
        """The step `arrival` is done when the stay is seen to which the discharge led; taken back when that one is."""
        there = self.facts.human.led_to(self.stay)
        found = [task for task in rows if own(task.tree.get("code")) == "arrival" and not called_off(task.tree)]
        if not found:
            return []
        task = found[-1]
        by_hub = [one for one in task.tree.get("output", []) if own(one["type"]) == "arrival"]
        if by_hub and (there is None or by_hub[0]["valueReference"]["reference"] != f"Encounter/{there.id}"):
            return [(task, {"status": _WITHDRAWN, "statusReason": concept("called-off", "The arrival was taken back")})]
        if there is None or not is_open(task.tree):
            return []
        status = (machine("Task").path(task.tree["status"], "completed") or ["completed"])[0]
        if status != "completed":
            return [(task, {"status": status})]
        output = [{"type": concept("arrival"), "valueReference": reference(f"Encounter/{there.id}")}]
        began = there.tree["period"]["start"]
        return [(task, {"status": status, "output": output, "executionPeriod": {"start": began, "end": began}})]
