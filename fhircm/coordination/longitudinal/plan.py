"""The plan of a person: what it points to, what it left out, and where its sources differ; and the resources that say so. Pure.

http://hl7.org/fhir/us/core/StructureDefinition/us-core-careplan, us-core-careteam and us-core-goal; MCC eCare Plan (activities by
reference). The CarePlan points and never tells: each thing that it points to is seen by those who may see that thing. The CareTeam and the
merged Goals tell, so they name every Patient of whose record they tell, and are seen by those who have each of these records open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.coordination.build import profile, reference, stable_id
from fhircm.coordination.codes import BASE, codings
from fhircm.coordination.longitudinal import recognition
from fhircm.coordination.longitudinal.conflicts import Conflict, Settled, settled
from fhircm.coordination.longitudinal.recognition import Seat, Thing
from fhircm.coordination.longitudinal.sources import Left, Records, Source, local, of_these
from fhircm.coordination.longitudinal.table import table
from fhircm.coordination.people import patient_of
from fhircm.fhir.ranges import date_range, normalise
from fhircm.fhir.systems import COORDINATION, LONGITUDINAL

Tree = dict[str, Any]
CODE = "longitudinal"  # of the hub's own code system: the category of everything that is made here
SOURCE = f"{BASE}/StructureDefinition/plan-source"
CONFLICT = f"{BASE}/StructureDefinition/plan-conflict"
POSSIBLE = f"{BASE}/StructureDefinition/plan-possible"
PATIENT = f"{BASE}/StructureDefinition/plan-patient"
_ASSESS_PLAN = {"system": "http://hl7.org/fhir/us/core/CodeSystem/careplan-category", "code": "assess-plan"}
_CATEGORY = {"coding": [{"system": COORDINATION, "code": CODE, "display": "Longitudinal, over all partners"}]}
_TEAM = {"coding": [{"system": "http://loinc.org", "code": "LA28865-6"}]}  # longitudinal care-coordination focused care team
_NO_ROLE = {"text": "Role not stated"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the plan: what is pointed to, and all its sources."""

    leader: str
    thing: Thing


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a person, before it is written down for each of the person's records."""

    records: Records
    problems: tuple[Entry, ...]
    goals: tuple[Entry, ...]
    activities: tuple[Entry, ...]
    inline: tuple[tuple[Source, int], ...]  # activities that stand in a partner's plan itself, by its number
    requests: tuple[tuple[str, tuple[Source, ...]], ...]  # requests of other types that plans name
    plans: tuple[Source, ...]
    seats: tuple[tuple[Seat, ...], ...]  # of the team, by who sits there
    protected_teams: tuple[Source, ...]
    conflicts: tuple[Conflict, ...]
    possible: tuple[tuple[str, str], ...]
    left: tuple[Left, ...]
    merged: Mapping[str, Tree]  # Goals of the hub by id

    @property
    def anchor(self) -> str:
        """The Patient whose record holds the merged goals and the questions."""
        return self.records.patients[0]

    @property
    def is_empty(self) -> bool:
        """Whether nobody says anything that belongs into a plan."""
        return not (self.problems or self.goals or self.activities or self.inline or self.requests or self.plans or self.seats)


def goal_id(anchor: str, thing: Thing) -> str:
    """The id of the hub's Goal for a goal that several sources have."""
    return stable_id("longitudinal", "Goal", anchor, thing.key)


def planned(records: Records, decisions: Mapping[str, str]) -> Plan:
    """The plan that follows from the records and from what humans decided."""
    composing = _Composing(records, decisions)
    plans = composing.current("CarePlan")
    goals_here = records.of("Goal")
    addressed = {to for one in (*plans, *goals_here) for element in one.tree.get("addresses", []) if (to := local(element))}
    conditions = [one for one in records.of("Condition") if composing.is_problem(one, addressed)]
    problems = recognition.problems(records, conditions)
    problem_of = {one.reference: thing.key for thing in problems for one in thing.sources}
    problem_entries = [composing.entry(thing) for thing in problems]
    leader_of = {entry.thing.key: entry.leader for entry in filter(None, problem_entries)}
    goals = recognition.goals(records, goals_here, problem_of)
    goal_entries, merged = composing.goals(goals, {one: leader_of.get(key, one) for one, key in problem_of.items()})
    named = {to for one in plans for activity in one.tree.get("activity", []) if (to := local(activity.get("reference")))}
    orders = [one for one in records.of("ServiceRequest") if composing.is_activity(one, named)]
    activity_entries = [composing.entry(thing) for thing in recognition.activities(records, orders)]
    teams = composing.current("CareTeam")
    kept_problems, kept_goals = tuple(filter(None, problem_entries)), tuple(goal_entries)
    possible = [
        *recognition.possible(records, [entry.thing for entry in kept_problems]),
        *recognition.possible(records, [entry.thing for entry in kept_goals]),
    ]
    return Plan(
        records,
        kept_problems,
        kept_goals,
        tuple(filter(None, activity_entries)),
        tuple((one, at) for one in plans for at, activity in enumerate(one.tree.get("activity", [])) if "detail" in activity),
        composing.requests(plans),
        tuple(plans),
        tuple(tuple(group) for group in recognition.members(records, [one for one in teams if not one.protected])),
        tuple(one for one in teams if one.protected),
        tuple(composing.conflicts),
        tuple(possible),
        tuple(sorted((*records.left, *composing.left), key=lambda one: one.reference)),
        merged,
    )


class _Composing:
    """What comes up while a plan is composed."""

    def __init__(self, records: Records, decisions: Mapping[str, str]) -> None:
        self.records, self.decisions = records, decisions
        self.conflicts: list[Conflict] = []
        self.left: list[Left] = []

    def current(self, type: str) -> list[Source]:
        """The sources of a type that are in force; the others are left out."""
        found = []
        for one in self.records.of(type):
            if self._is_current(one):
                found.append(one)
            else:
                self._leave(one, self._state(one))
        return found

    def _state(self, one: Source) -> str:
        element, _ = table().current[one.type]
        return f"its state is '{_code(one.tree.get(element))}'"

    def _is_current(self, one: Source, value: Any = None) -> bool:
        """Whether the state of a source, or this value of it, is current; a Condition without one is."""
        element, states = table().current[one.type]
        said = one.tree.get(element) if value is None else value
        return said is None or not states.isdisjoint([said] if isinstance(said, str) else [code for _, code in codings(said)])

    def _leave(self, one: Source, why: str) -> None:
        self.left.append(Left(one.reference, why))

    def is_problem(self, one: Source, addressed: set[str]) -> bool:
        """Whether a Condition belongs to the problems."""
        categories = {code for _, code in codings(one.tree.get("category", []))}
        if not categories or categories & table().problems or one.reference in addressed:
            return True
        self._leave(one, "not on a problem list, and no plan or goal is about it")
        return False

    def is_activity(self, one: Source, named: set[str]) -> bool:
        """Whether an order belongs to the activities."""
        kinds = {code for _, code in codings(one.tree.get("category", []))}
        if one.reference in named or not kinds & table().not_an_activity:
            return True
        self._leave(one, "an order of a kind that is no activity of a plan")
        return False

    def settle(self, thing: Thing) -> dict[str, Settled]:
        """What stands for each element of a thing that has several sources; conflicts are noted while any source is current."""
        if len(thing.sources) == 1:
            return {}
        found = {name: settled(self.records, thing, name, self.decisions) for name in table().rules[thing.sources[0].type]}
        if any(map(self._is_current, thing.sources)):
            self.conflicts += [one.conflict for one in found.values() if one.conflict]
        return found

    def stays(self, thing: Thing, found: Mapping[str, Settled]) -> bool:
        """Whether a thing is current: by what stands for its state, or while that is open by any of its sources."""
        element, _ = table().current[thing.sources[0].type]
        stands = found[element].members.get(element) if element in found else None
        current = [one for one in thing.sources if self._is_current(one, stands)]
        if not current:
            for one in thing.sources:
                self._leave(one, self._state(one) if stands is None else f"what stands for its state is '{_code(stands)}'")
        return bool(current)

    def entry(self, thing: Thing) -> Entry | None:
        """A thing that the plan points to directly: to the source whose state stands, else to the first that has a code."""
        found = self.settle(thing)
        if not self.stays(thing, found):
            return None
        element, _ = table().current[thing.sources[0].type]
        conflict = found[element].conflict if element in found else None
        if conflict is not None and conflict.chosen:
            return Entry(conflict.chosen, thing)
        current = [one for one in thing.sources if self._is_current(one)] or thing.sources
        first = min(current, key=lambda one: (not list(codings(one.tree.get("code"))), one.reference))
        return Entry(first.reference, thing)

    def goals(self, things: Sequence[Thing], leader_of: Mapping[str, str]) -> tuple[list[Entry], dict[str, Tree]]:
        """The goals: a partner's own where it is the only source, else a Goal of the hub that tells what stands."""
        entries: list[Entry] = []
        merged: dict[str, Tree] = {}
        for thing in things:
            found = self.settle(thing)
            if not self.stays(thing, found):
                continue
            if not found:
                entries.append(Entry(thing.key, thing))
                continue
            id = goal_id(self.records.patients[0], thing)
            merged[id] = _goal(self.records, id, thing, found, leader_of)
            entries.append(Entry(f"Goal/{id}", thing))
        return entries, merged

    def requests(self, plans: Sequence[Source]) -> tuple[tuple[str, tuple[Source, ...]], ...]:
        """Requests of other types that plans name; what is about somebody else is left out."""
        by: dict[str, list[Source]] = {}
        for one in plans:
            for activity in one.tree.get("activity", []):
                to = local(activity.get("reference"))
                if to is None or to in self.records.sources or any(left.reference == to for left in self.records.left):
                    continue
                tree = self.records.others.get(to)
                if tree is None or not of_these(self.records, tree):
                    self.left.append(Left(to, "it is not of this person, or not at the hub"))
                else:
                    by.setdefault(to, []).append(one)
        return tuple((to, tuple(sources)) for to, sources in sorted(by.items()))


def _code(value: Any) -> str:
    return value if isinstance(value, str) else next((code for _, code in codings(value)), "")


# --- as resources ------------------------------------------------------------------------------------------------------------


def _derived(kind: str, *parts: str) -> list[Tree]:
    return [{"system": LONGITUDINAL, "value": stable_id("longitudinal", kind, *parts)}]


def _sources(references: Sequence[str]) -> list[Tree]:
    return [{"url": SOURCE, "valueReference": reference(one)} for one in sorted(references)]


def _patients(ids: Sequence[str]) -> list[Tree]:
    return [{"url": PATIENT, "valueReference": reference(f"Patient/{id}")} for id in sorted(ids)]


def _goal(records: Records, id: str, thing: Thing, found: Mapping[str, Settled], leader_of: Mapping[str, str]) -> Tree:
    anchor = records.patients[0]
    stands: Tree = {}
    for one in found.values():
        stands |= one.members
    about = sorted({leader_of.get(to, to) for element in stands.pop("addresses", []) if (to := local(element))})
    # What FHIR cannot do without stands for the time being as the first current source has it; the conflict says that it is open.
    _, states = table().current["Goal"]
    first = next((one for one in thing.sources if one.tree["lifecycleStatus"] in states), thing.sources[0])
    for name in ("lifecycleStatus", "description"):
        stands.setdefault(name, first.tree[name])
    tree = {
        "resourceType": "Goal",
        "id": id,
        "meta": profile("goal"),
        "extension": [
            *_sources([one.reference for one in thing.sources]),
            *_patients([name for one in thing.sources if (name := patient_of(one.tree))]),
            *(_told(one.conflict) for one in found.values() if one.conflict),
        ],
        "identifier": _derived("Goal", anchor, thing.key),
        "subject": reference(f"Patient/{anchor}"),
        **stands,
    }
    if about:
        tree["addresses"] = [reference(one) for one in about]
    return tree


def _told(conflict: Conflict) -> Tree:
    """A conflict as an extension: values by reference to who says them, never the values themselves."""
    parts: list[Tree] = [
        {"url": "element", "valueString": f"{conflict.type}.{conflict.element}"},
        {"url": "rule", "valueCode": conflict.rule or "none"},
        {"url": "open", "valueBoolean": conflict.chosen is None and conflict.rule != "human"},
    ]
    if conflict.chosen:
        parts.append({"url": "chosen", "valueReference": reference(conflict.chosen)})
    parts += [{"url": "source", "valueReference": reference(one)} for one in conflict.sources if one != conflict.chosen]
    return {"url": CONFLICT, "extension": parts}


def care_plan(plan: Plan, patient: str, author: Tree) -> Tree:
    """The CarePlan at one of the person's records. `author` is a Reference to the organisation that coordinates."""
    team = f"CareTeam/{team_id(patient)}"
    status = "revoked" if plan.is_empty else "on-hold" if _all_on_hold(plan) else "active"
    tree: Tree = {
        "resourceType": "CarePlan",
        "id": plan_id(patient),
        "meta": profile("care-plan"),
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{_narrative(plan)}</div>'},
        "extension": [
            *(_told(one) for one in plan.conflicts),
            *(
                {"url": POSSIBLE, "extension": [{"url": "source", "valueReference": reference(one)} for one in pair]}
                for pair in plan.possible
            ),
        ],
        "identifier": _derived("person", plan.anchor),
        "status": status,
        "intent": "plan",
        "category": [{"coding": [_ASSESS_PLAN]}, _CATEGORY],
        "title": "Longitudinal care plan",
        "subject": reference(f"Patient/{patient}"),
        "period": _span([one.tree.get("period", {}) for one in plan.plans]),
        "author": author,
        "careTeam": [*([reference(team)] if plan.seats else []), *(reference(one.reference) for one in plan.protected_teams)],
        "addresses": [_pointed(one) for one in plan.problems],
        "supportingInfo": [reference(one.reference) for one in plan.plans],
        "goal": [_pointed(one) for one in plan.goals],
        "activity": _activities(plan),
        "note": [{"text": one} for one in notes(plan)],
    }
    return {name: value for name, value in tree.items() if value not in (None, [], {})}


def plan_id(patient: str) -> str:
    """The id of the CarePlan at a record: it stays, whoever is linked with it."""
    return stable_id("longitudinal", "CarePlan", patient)


def team_id(patient: str) -> str:
    """The id of the CareTeam at a record."""
    return stable_id("longitudinal", "CareTeam", patient)


def _pointed(entry: Entry) -> Tree:
    others = [one.reference for one in entry.thing.sources if one.reference != entry.leader]
    return {"extension": _sources(others), "reference": entry.leader} if others else {"reference": entry.leader}


def _activities(plan: Plan) -> list[Tree]:
    outcomes: dict[str, dict[str, None]] = {}
    for one in plan.plans:
        for activity in one.tree.get("activity", []):
            to = local(activity.get("reference"))
            found = (local(element) for element in activity.get("outcomeReference", []))
            outcomes.setdefault(to or "", {}).update(dict.fromkeys(filter(None, found)))
    made: list[Tree] = []
    for entry in plan.activities:
        came = sorted({outcome for one in entry.thing.sources for outcome in outcomes.get(one.reference, {})})
        made.append(_activity(_pointed(entry), came))
    made += [
        _activity({"extension": _sources([one.reference for one in sources]), "reference": to}, sorted(outcomes.get(to, {})))
        for to, sources in plan.requests
    ]
    # What stands in a partner's plan itself has no resource to point to: the plan and the place are pointed to.
    made += [
        {"extension": [{"url": SOURCE, "valueReference": {**_at(f"CarePlan.activity[{at}]"), "reference": one.reference}}]}
        for one, at in plan.inline
    ]
    return made


def _at(place: str) -> Tree:
    return {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/targetPath", "valueString": place}]}


def _activity(pointed: Tree, outcomes: Sequence[str]) -> Tree:
    came = {"outcomeReference": [reference(one) for one in outcomes]} if outcomes else {}
    return {**came, "reference": pointed}


def care_team(plan: Plan, patient: str) -> Tree | None:
    """The CareTeam at one of the person's records; None when nobody is in it."""
    participants = [one for group in plan.seats for one in _participants(plan.records, group)]
    if not participants:
        return None
    told = {name for group in plan.seats for seat in group if (name := patient_of(seat.team.tree))}
    return {
        "resourceType": "CareTeam",
        "id": team_id(patient),
        "meta": profile("care-team"),
        "extension": _patients(sorted(told)),
        "identifier": _derived("person", plan.anchor),
        "status": "active",
        "category": [_TEAM, _CATEGORY],
        "name": "Longitudinal care team",
        "subject": reference(f"Patient/{patient}"),
        "participant": participants,
    }


def _participants(records: Records, group: Sequence[Seat]) -> list[Tree]:
    """One participant for each role of somebody: US Core lets each have one."""
    by_role: dict[Any, list[tuple[Seat, Tree]]] = {}
    for seat in group:
        for role in seat.tree.get("role") or [_NO_ROLE]:
            key = records.terms.of(codings(role)) or normalise(role.get("text", ""))
            by_role.setdefault(key, []).append((seat, role))
    member = min((seat.member for seat in group), key=lambda one: (one.partition("/")[0] == "PractitionerRole", one))
    made: list[tuple[str, Tree]] = []
    for seats in by_role.values():
        behalf = sorted({to for seat, _ in seats if (to := local(seat.tree.get("onBehalfOf")))})
        tree = {
            "extension": _sources(sorted({seat.team.reference for seat, _ in seats})),
            "role": [seats[0][1]],
            "member": reference(member),
            "onBehalfOf": reference(behalf[0]) if behalf and member.startswith("Practitioner/") else None,
            "period": _span([seat.tree.get("period", {}) for seat, _ in seats]),
        }
        made.append((repr(seats[0][0].order), {name: value for name, value in tree.items() if value}))
    return [tree for _, tree in sorted(made, key=lambda one: one[0])]


def _span(periods: Sequence[Tree]) -> Tree | None:
    """From the first begin to the last end; open where one of them is."""
    starts = [one["start"] for one in periods if "start" in one]
    ends = [one["end"] for one in periods if "end" in one]
    span: Tree = {}
    if starts and len(starts) == len(periods):
        span["start"] = min(starts, key=lambda one: date_range(one)[0])
    if ends and len(ends) == len(periods):
        span["end"] = max(ends, key=lambda one: date_range(one)[1])
    return span or None


def _all_on_hold(plan: Plan) -> bool:
    return bool(plan.plans) and all(one.tree["status"] == "on-hold" for one in plan.plans)


def _narrative(plan: Plan) -> str:
    counts = (
        (len(plan.problems), "problem"),
        (len(plan.goals), "goal"),
        (len(plan.activities) + len(plan.inline) + len(plan.requests), "activity"),
        (len(plan.seats), "member of the care team"),
        (len(plan.plans), "care plan of a partner"),
    )
    lines = "".join(f"<li>{_count(number, what)}</li>" for number, what in counts)
    return f"<p>Longitudinal care plan out of the records of {_count(len(plan.records.patients), 'source')}</p><ul>{lines}</ul>"


_MANY = {
    "activity": "activities",
    "member of the care team": "members of the care team",
    "care plan of a partner": "care plans of partners",
}


def _count(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else _MANY.get(what, what + 's')}"


def notes(plan: Plan) -> list[str]:
    """What a reader must know, in words without clinical content."""
    told = []
    for one in plan.conflicts:
        head = f"{len(one.sources)} records of one {_KIND[one.type]} differ in {one.element.removesuffix('[x]')}: "
        if one.chosen:
            told.append(head + (f"taken by the rule '{one.rule}'" if one.rule != "human" else "a human chose"))
        elif one.rule == "human":
            told.append(head + "a human decided to keep both")
        else:
            told.append(head + ("a human is asked" if one.asks else "no rule could tell, so both stand"))
    if plan.possible:
        told.append(f"{_count(len(plan.possible), 'pair')} of records may be of one thing and are shown side by side")
    return told


_KIND = {"Condition": "problem", "Goal": "goal", "ServiceRequest": "activity"}
