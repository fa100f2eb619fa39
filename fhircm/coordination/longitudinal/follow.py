"""Keep the plan of a person up to date: a change marks the record, a timer makes the plan anew, and only what differs is written.

docs/explanation/longitudinal-plan.md. The timer is durable and is set in the transaction of the reaction's cursor, so no change is lost; many
changes within its delay are one plan. What the plan is compared with is read before the sources, and written only if nobody wrote it
meanwhile: of two workers the slower one is refused and looks again, so an older view never covers a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from fhircm.coordination import build
from fhircm.coordination.build import concept, for_a_human, instant, reference, stable_id
from fhircm.coordination.codes import NPI, codings, identifiers, own
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.longitudinal.conflicts import KEEP_BOTH, Conflict
from fhircm.coordination.longitudinal.plan import Plan, care_plan, care_team, plan_id, planned, team_id
from fhircm.coordination.longitudinal.sources import gathered, is_derived, local
from fhircm.coordination.people import linked, patient_of, patients_value
from fhircm.coordination.task_states import is_open
from fhircm.fhir.outcome import Gone, NotFound
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import COORDINATION, LONGITUDINAL
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Change, Op, Put, SetTimer, Stored, Timer

Tree = dict[str, Any]
KIND = "longitudinal-plan"  # of the timers
SETTLE = timedelta(seconds=2)  # between the first change of a record and its new plan
TASK = "reconcile-care-plan"
_VANISHED = "The sources do not differ any more"
_STORE_SETS = ("versionId", "lastUpdated")


async def mark(context: Context, change: Change) -> list[Op]:
    """Reaction to what a care plan is made of: the plan of the person is made anew soon after."""
    found = [await _marked(context, patient) for patient in sorted(await _concerned(context, change))]
    return [one for one in found if one is not None]


async def _marked(context: Context, patient: str) -> Op | None:
    """The timer of a record; None when one is set that nobody has begun with: it will see this change, too."""
    key = f"{KIND}:{patient}"
    waiting = await context.store.timer(key)
    if waiting is not None and waiting.attempts == 0:
        return None
    return SetTimer(key, KIND, context.now() + SETTLE, {"patient": patient})


async def _concerned(context: Context, change: Change) -> set[str]:
    """The Patients to whose plan a change may matter: those of the version, and those of the version before it."""
    now, before = [await _version(context, change, version) for version in (change.version, change.version - 1)]
    if change.type == "Patient":
        return {change.id}
    if change.type == "Person":
        return {id for tree in (now, before) for id in _linked_by(tree)}
    if change.type in ("Practitioner", "PractitionerRole"):
        return await _on_the_team(context, change, now, before)
    if change.type == "Task":
        asks = own(now.get("code")) == TASK and change.origin != "hub"
        return {patient} if asks and (patient := patient_of(now)) else set()
    if change.origin == "hub" and is_derived(now or before):
        return set()
    return {patient for tree in (now, before) if (patient := patient_of(tree))}


async def _version(context: Context, change: Change, version: int) -> Tree:
    """A version; empty for one that is a deletion, or that there is not."""
    try:
        return (await context.store.vread(change.type, change.id, version)).tree if version > 0 else {}
    except (NotFound, Gone):
        return {}


def _linked_by(person: Tree) -> Iterable[str]:
    targets = (parse_reference(link["target"].get("reference", "")) for link in person.get("link", []))
    return {to.id for to in targets if to.kind == "local" and to.type == "Patient" and to.id}


async def _on_the_team(context: Context, change: Change, now: Tree, before: Tree) -> set[str]:
    """The Patients who have a professional on a team, when it changed who that is."""
    if _who(now) == _who(before):
        return set()
    asked = [f"{change.type}/{change.id}"]
    if change.type == "Practitioner":
        roles = await context.find("PractitionerRole", ("practitioner", asked[0]))
        asked += [f"PractitionerRole/{one.id}" for one in roles]
    teams = await context.find("CareTeam", ("participant", any_of(asked)))
    return {patient for team in teams if (patient := patient_of(team.tree))}


def _who(tree: Tree) -> Any:
    if not tree:
        return None
    return sorted(identifiers(tree, NPI)), local(tree.get("practitioner")), local(tree.get("organization"))


async def remake(context: Context, timer: Timer) -> list[Op]:
    """Timer handler: make the plan of a person anew, and write what differs."""
    return await made_anew(context, timer.payload["patient"])


async def made_anew(context: Context, patient: str) -> list[Op]:
    """What must be written so that the plan of the person who has this Patient is as the records say. Empty when it is."""
    patients = sorted(await linked(context, patient))
    known = await context.store.read_many([("Patient", one) for one in patients])
    patients = [one for one in patients if ("Patient", one) in known]
    if not patients:
        return []
    standing = await _standing(context, patients)
    tasks = await context.find("Task", patients_value(patients), ("code", token(COORDINATION, TASK)))
    plan = planned(await gathered(context, patients), decisions(tasks))
    return [*_resources(context, plan, standing), *await _questions(context, plan, tasks)]


async def current(context: Context, patient: str) -> Plan:
    """The plan of the person who has this Patient, as the records say now. Nothing is written. Raises NotFound."""
    patients = sorted(await linked(context, patient))
    if await context.get("Patient", patient) is None:
        raise NotFound(f"Patient/{patient} is not known")
    tasks = await context.find("Task", patients_value(patients), ("code", token(COORDINATION, TASK)))
    return planned(await gathered(context, patients), decisions(tasks))


# --- the resources -----------------------------------------------------------------------------------------------------------


async def _standing(context: Context, patients: Sequence[str]) -> dict[str, Stored]:
    """What the hub made for these records before, by reference; retired goals, too."""
    asked = [(type, of(one)) for one in patients for type, of in (("CarePlan", plan_id), ("CareTeam", team_id))]
    found = list((await context.store.read_many(asked)).values())
    goals = [one for one in await context.find("Goal", patients_value(list(patients))) if is_derived(one.tree)]
    found += [one for one in goals if not one.tree.get("meta", {}).get("source")]  # a partner's copy of one comes back as its own
    return {f"{one.type}/{one.id}": one for one in found}


def _resources(context: Context, plan: Plan, standing: Mapping[str, Stored]) -> list[Op]:
    """The writes that make everything as the plan has it."""
    wanted: dict[str, Tree] = {f"Goal/{id}": tree for id, tree in plan.merged.items()}
    for patient in plan.records.patients:
        team, tree = care_team(plan, patient), care_plan(plan, patient, context.coordinator)
        if team is not None:
            wanted[f"CareTeam/{team['id']}"] = team
        if not plan.is_empty or f"CarePlan/{tree['id']}" in standing:
            wanted[f"CarePlan/{tree['id']}"] = tree
    for name, stored in standing.items():
        if name not in wanted:
            wanted[name] = _retired(stored.tree)
    return [put for name, tree in sorted(wanted.items()) for put in _written(standing.get(name), tree)]


def _retired(tree: Tree) -> Tree:
    """What stands for nothing any more, without a word of what it said: others may refer to it, so it stays."""
    kept = {name: tree[name] for name in ("resourceType", "id", "identifier", "subject")}
    if tree["resourceType"] == "Goal":
        text = {"text": "No longer a goal that several sources have"}
        return {**kept, "lifecycleStatus": "entered-in-error", "description": text}
    return {**kept, "status": "inactive", "name": "Nobody is in this team any more"}


def _written(stored: Stored | None, tree: Tree) -> list[Put]:
    """The write that makes a resource so; none when it is. Profiles of guides do not hold it up: a partner's words go into it."""
    if stored is None:
        return [Put(check_tree(tree, by_guides=False), if_version=0)]
    before = stored.tree
    meta = {name: value for name, value in before.pop("meta", {}).items() if name not in _STORE_SETS}
    if {**before, **({"meta": meta} if meta else {})} == tree:
        return []
    return [Put(check_tree(tree, by_guides=False), if_version=stored.version)]


# --- what a human decides ----------------------------------------------------------------------------------------------------


def decisions(tasks: Sequence[Stored]) -> dict[str, str]:
    """What humans decided, by the fingerprint of what was compared: a reference, or `keep-both`. The latest word counts."""
    found: dict[str, str] = {}
    for task in sorted(tasks, key=lambda one: (one.tree.get("lastModified", ""), one.last_updated)):
        if task.tree["status"] == "completed" and (said := _said(task.tree)):
            for fingerprint in identifiers(task.tree, LONGITUDINAL):
                found[fingerprint] = said
    return found


def _said(task: Tree) -> str | None:
    """The output `chosen`: one of the inputs, or `keep-both`."""
    compared = {local(one.get("valueReference")) for one in task.get("input", [])}
    for one in task.get("output", []):
        if any(code == "chosen" for _, code in codings(one["type"])):
            if one.get("valueCode") == KEEP_BOTH:
                return KEEP_BOTH
            to = local(one.get("valueReference"))
            if to in compared:
                return to
    return None


async def _questions(context: Context, plan: Plan, tasks: Sequence[Stored]) -> list[Op]:
    """Ask about every conflict that is left to a human, once for the same values; take back what is no question any more."""
    open_now = {one.fingerprint: one for one in plan.conflicts if one.asks}
    by_fingerprint: dict[str, list[Stored]] = {}
    for task in tasks:
        for fingerprint in identifiers(task.tree, LONGITUDINAL):
            by_fingerprint.setdefault(fingerprint, []).append(task)
    operations: list[Op] = []
    for fingerprint, asked in sorted(by_fingerprint.items()):
        if fingerprint not in open_now:
            why = {"text": _VANISHED}
            operations += [
                build.edit(one, status="cancelled", statusReason=why, lastModified=instant(context.now()))
                for one in asked
                if is_open(one.tree)
            ]
    for fingerprint, conflict in sorted(open_now.items()):
        before = by_fingerprint.get(fingerprint, [])
        if all(_taken_back(one.tree) for one in before):
            operations.append(_question(context, plan, conflict, len(before)))
    return operations


def _taken_back(task: Tree) -> bool:
    """Whether the hub itself ended a question; one that a human ended without a choice is not asked again."""
    if task["status"] == "completed":
        return _said(task) is None
    return task["status"] == "cancelled" and task.get("statusReason", {}).get("text") == _VANISHED


def _question(context: Context, plan: Plan, conflict: Conflict, number: int) -> Put:
    what = {"type": concept("compared")}
    return for_a_human(
        stable_id("reconcile", conflict.fingerprint, str(number)),
        TASK,
        f"Sources differ in {conflict.type}.{conflict.element.removesuffix('[x]')}, and no rule could tell which is right. Complete this with"
        f" an output 'chosen': a reference to one of the inputs, or the code '{KEEP_BOTH}'",
        owner=context.coordinator,
        focus=f"CarePlan/{plan_id(plan.anchor)}",
        patient=reference(f"Patient/{plan.anchor}"),
        at=context.now(),
        identifier=[{"system": LONGITUDINAL, "value": conflict.fingerprint}],
        input=[{**what, "valueReference": reference(one)} for one in conflict.sources],
    )
