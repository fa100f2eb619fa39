"""Discharges as they are planned: expected, put off, ordered, with items that are done, waived and declined, and what is in the way.
docs/explanation/discharge-planning.md"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from hypothesis import strategies as st
from hypothesis.stateful import rule

from .hub import BASE, OWN, code_of, extension, id_of, is_open
from .stays import FRESH, NUBC, PICK, Stays, in_hospital_again, klass, went

# 42 CFR 482.43 and what profiles/plan-definition/discharge-planning.json cites: by where the patient goes, what must be done and may be.
ANYWHERE = {"evaluation", "expected-date", "important-message", "observation-notice"}
MUST = {
    "01": {"medication-list", "instructions", "follow-up", "summary"},
    "06": {"medication-list", "instructions", "follow-up", "summary", "choice", "acceptance", "orders", "face-to-face"},
    "03": {"medication-list", "summary", "choice", "acceptance", "orders", "pasrr", "transport"},
    "07": {"medication-list", "instructions", "against-advice"},
}
MAY = {
    "01": {"important-message-copy", "equipment", "caregiver"},
    "06": {"important-message-copy", "equipment", "caregiver", "authorisation"},
    "03": {"important-message-copy", "authorisation"},
    "07": set(),
}
HOW = st.sampled_from(["done", "done", "done", "waived", "dropped", "declined", "begun"])
BARRIER = {"coding": [{"system": OWN, "code": "barrier-placement"}]}


class Discharges(Stays):
    """What people do to the planning of a discharge."""

    @rule(pick=PICK, days=st.sampled_from([None, 0, 1, 2, 7]), code=st.sampled_from([None, *MUST]))
    def expect(self, pick, days, code):
        """Somebody says when and where to the patient goes."""
        stay = self.planned_stay(pick)
        if stay is None:
            return
        said = {"date": (self.now + timedelta(days=days)).isoformat(timespec="seconds")} if days is not None else {}
        said |= {"disposition": {"coding": [{"system": NUBC, "code": code}]}} if code else {}
        self.caught["expected"] += self.act("north", "encounter-expect-discharge", stay, **said)

    @rule(pick=PICK)
    def in_the_way(self, pick):
        """Something keeps the patient in hospital."""
        stay = self.planned_stay(pick)
        if stay is None:
            return
        self.caught["barrier"] += self.act("north", "encounter-add-barrier", stay, reason=BARRIER)

    @rule(items=st.lists(st.tuples(st.integers(0, 40), HOW), min_size=1, max_size=5))
    def items(self, items):
        """Somebody works on what is open."""
        for one in items:
            self.item(*one)

    def item(self, pick, how):
        """Somebody ends one of the open items, or begins it."""
        found = [one for one in self.find("Task", ("code", "discharge-item,discharge-barrier")) if is_open(one)]
        if not found:
            return
        task = found[pick % len(found)]
        steps = {"done": ["in-progress", "completed"], "begun": ["in-progress"]}.get(how, ["cancelled"])
        if how == "declined" and task.tree["status"] == "ready":
            steps = ["rejected"]
        reason = {"statusReason": {"text": "The patient does not want it"}} if how in ("waived", "declined") else {}
        for status in steps:
            if task.tree["status"] != status:
                self.caught[f"item {status}"] += self.update(id_of(task.tree, "owner"), task, status=status, **reason)
                task = self.get("Task", task.id)

    def planned_stay(self, pick):
        plans = [id_of(one.tree, "encounter") for one in self.find("Task", ("code", "discharge-planning")) if is_open(one)]
        return self.get("Encounter", plans[pick % len(plans)]) if plans else None

    # --- what must hold ----------------------------------------------------------------------------------------------------------

    async def check(self, tasks):
        await super().check(tasks)
        stays = {id: (await self.context.get("Encounter", id)).tree for id in self.stays}
        for id, tree in stays.items():
            mine = [one for one in tasks if id_of(one.tree, "encounter") == id]
            plans = [one for one in mine if code_of(one) == "discharge-planning"]
            going_on = [one for one in plans if is_open(one)]
            assert len(going_on) <= 1, f"one planning of {id}"
            present = tree["status"] == "in-progress" and klass(tree) != "EMER"
            if present and not self.dead:
                young = self.under_way[id] - datetime.fromisoformat(tree["period"]["start"]) <= FRESH
                assert plans or not young, f"{id} is not planned"
            if going_on:
                await self.planned(id, tree, going_on[0], [one for one in mine if code_of(one) == "discharge-item"])
            standing = [one for one in mine if code_of(one) in ("discharge-item", "discharge-barrier") and is_open(one)]
            assert going_on or not standing, f"{id}: {[step_of(one) for one in standing]} is open, and its planning is over"
            again = in_hospital_again(tree, [other for name, other in stays.items() if name != id])
            assert not (again and going_on), f"{id}: the patient is in hospital again"
            if tree["status"] == "finished":
                assert not any(code_of(one) == "discharge-barrier" for one in standing), "nothing is in the way any more"
                assert standing or not going_on, f"{id}: all is done, and the planning goes on"

    async def planned(self, id, tree, plan, items):
        has_left = tree["status"] == "finished"
        expected = [extension({"extension": [one]}, "expected-discharge") for one in plan.tree.get("extension", [])]
        expected = [one for one in expected if one]
        said = [one["disposition"]["valueCodeableConcept"]["coding"][0]["code"] for one in expected if "disposition" in one]
        where = (went(tree) if has_left else None) or (said[-1] if said else None)
        standing = Counter(step_of(one) for one in items if is_open(one))
        assert max(standing.values(), default=1) == 1, f"{id}: one item of a step is open at a time: {standing}"
        if where in MUST:
            elsewhere = standing.keys() - ANYWHERE - MUST[where] - MAY[where]
            assert not elsewhere, f"{id}: {elsewhere} is not asked for by {where}"
            ended = {step_of(one) for one in items if one.tree["status"] == "completed" or waived(one.tree)}
            lost = MUST[where] - standing.keys() - ended
            assert not lost, f"{id}: {lost} of {where} is lost"
        must = [one for one in items if is_open(one) and mandatory(one.tree)]
        assert not has_left or len(must) == len(standing), f"{id}: what was not mandatory is called off: {standing}"
        issues = [one for one in await self.context.find("DetectedIssue", ("_lastUpdated", "ge2000")) if about(one, items)]
        final = [one for one in issues if one.tree["status"] == "final"]
        flags = await self.context.find("Flag", ("encounter", f"Encounter/{id}"))
        flagged = [one for one in flags if one.tree["status"] == "active" and code_of(one) == "discharge-open-items"]
        urgent = [one for one in self.tasks if code_of(one) == "discharge-open-items" and id_of(one.tree, "encounter") == id]
        urgent = [one for one in urgent if is_open(one)]
        assert len(flagged) == len(urgent) <= 1, f"{id}: {len(flagged)} flags, {len(urgent)} tasks"
        if has_left:
            assert final or not must, (
                f"{id}: nobody put on record that the patient left with {[step_of(one) for one in must]} open"
            )
            assert not flagged, f"{id}: the patient has left"
            return
        assert not final, f"{id}: the discharge was taken back"
        dated = [one["date"]["valueDateTime"] for one in expected if "date" in one]
        if dated and datetime.fromisoformat(dated[-1]) <= self.now + timedelta(hours=24):
            assert flagged or not must, (
                f"{id}: {[step_of(one) for one in must]} is open, the discharge is near, and nobody is told"
            )
        if not must or not dated or datetime.fromisoformat(dated[-1]) > self.furthest + timedelta(days=6):
            assert not flagged, f"{id}: flagged without a reason"


def step_of(task):
    return task.tree.get("instantiatesUri", "").rpartition("#")[2]


def mandatory(tree):
    return any(one["url"] == f"{BASE}/mandatory" and one["valueBoolean"] for one in tree.get("extension", []))


def waived(tree):
    """Whether somebody called an item off and said why."""
    return tree["status"] == "cancelled" and "statusReason" in tree and "coding" not in tree["statusReason"]


def about(issue, items):
    named = {one["reference"] for one in issue.tree.get("implicated", [])}
    return not named.isdisjoint(f"Task/{one.id}" for one in items)
