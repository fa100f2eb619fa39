"""Appointments of referrals, made here or at the clinic: booked, moved, missed, waited for. docs/explanation/referral-logistics.md"""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import rule

from .hub import REASON, code_of, id_of, is_open
from .referrals import BSER, PICK, Referrals, has_it

VERBS = ("task-schedule", "task-schedule", "task-reschedule", "task-no-show", "task-waitlist")
STATES = ("proposed", "pending", "booked", "arrived", "checked-in", "fulfilled", "noshow", "cancelled", "waitlist")
TO_COME, KEPT = {"proposed", "pending", "booked"}, {"fulfilled"}
BOOKED = {"booked", "arrived", "checked-in"}
# What the state of an appointment means for its referral: status, and the step of businessStatus in BSeR.
MEANS = {
    "booked": ("in-progress", "5.1.1"), "arrived": ("in-progress", "5.1.1"), "checked-in": ("in-progress", "5.1.1"),
    "noshow": ("in-progress", "5.1.2"), "cancelled": ("in-progress", "5.1.3"), "fulfilled": ("in-progress", "5.1.4"),
    "waitlist": ("on-hold", "5.1"),
}  # fmt: skip


class Appointments(Referrals):
    """A front desk, and a clinic that keeps its own calendar."""

    @rule(pick=PICK, verb=st.sampled_from(VERBS), who=st.sampled_from(["owner", "owner", "requester"]), days=st.integers(1, 9))
    def at_the_desk(self, pick, verb, who, days):
        """An act of a front desk, by the operation."""
        task = self.referral(pick, "open")
        if task is None or not id_of(task.tree, who):
            return
        there = self.appointments(task)
        said = self.times(days) if verb in ("task-schedule", "task-reschedule") else {"reason": REASON}
        if not self.act(id_of(task.tree, who), verb, task, **said):
            return
        self.caught[verb] += 1
        coming = [one for one in there if one.tree["status"] in TO_COME]
        assert verb != "task-schedule" or not coming, f"a second appointment beside {coming}"
        now = [one for one in self.appointments(task) if one.tree["status"] in TO_COME]
        assert len(now) <= 1 or len(now) <= len(coming), f"{verb} made another: {now}"
        self.moved(task)

    @rule(
        pick=PICK,
        changes=st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([*STATES, "booked", "noshow", "noshow"]), st.integers(-3, 9)),
            min_size=1,
            max_size=3,
        ),
    )
    def at_the_clinic(self, pick, changes):
        """The clinic writes or changes appointments itself, one after the other."""
        task = self.referral(pick, "open")
        for one in changes:
            if task is not None and is_open(task) and id_of(task.tree, "owner"):
                self.visit(task, *one)
                task = self.get("Task", task.id)

    def visit(self, task, which, status, days):
        there, place = self.appointments(task), id_of(task.tree, "owner")
        when = {"start": None, "end": None} if status == "waitlist" else self.times(days)
        if which < len(there):
            went = self.update(place, there[which], status=status, **when)
        else:
            tree = {
                "resourceType": "Appointment",
                "id": f"visit-{len(there)}-{task.id}"[:64],
                "status": status,
                "basedOn": [{"reference": task.tree["focus"]["reference"]}],
                "identifier": [one for one in task.tree.get("identifier", []) if one["system"].endswith("/referral")],
                "participant": [{"actor": {"reference": "Patient/p"}, "status": "accepted"}],
                **{name: at for name, at in when.items() if at},
            }
            went = self.made(place, tree)
        if went:
            self.caught[f"appointment {status}"] += 1
            self.moved(task)

    def times(self, days):
        at = self.now + timedelta(days=days)
        return {"start": at.isoformat(timespec="seconds"), "end": (at + timedelta(minutes=30)).isoformat(timespec="seconds")}

    def appointments(self, task):
        return self.run(self.of_task(task))

    async def of_task(self, task):
        found = await self.found("Appointment", ("based-on", task.tree["focus"]["reference"]))
        numbers = {one["value"] for one in task.tree.get("identifier", [])}
        mine = [one for one in found if numbers & {said["value"] for said in one.tree.get("identifier", [])}]
        return [one for one in mine if one.tree["status"] != "entered-in-error"]

    def moved(self, task):
        """What an appointment says is where its referral stands, when the worker has seen it: of all, what counts most."""
        self.run(self.react())
        now = self.get("Task", task.id)
        self.run(self.looked_after(now))
        states = {one.tree["status"] for one in self.appointments(task)} - {"proposed", "pending"}
        if not is_open(now) or not has_it(now.tree) or not states:
            return
        counts = next((one for one in ("fulfilled", *BOOKED, "waitlist") if one in states), None)
        means = [MEANS[one] for one in states if counts in (one, None)]
        stands = now.tree["status"], now.tree.get("businessStatus", {}).get("coding", [{}])[0].get("code")
        kept = [(status, stands[1]) for status, step in means if step not in BSER.get(stands[1], ())]  # BSeR has no step there
        assert stands in means + kept, f"{states} mean {means}, and it is {stands}"

    async def check(self, tasks):
        await super().check(tasks)
        for one in tasks:
            if code_of(one) == "fulfill":
                await self.looked_after(one)

    async def looked_after(self, task):
        """Who did not come is looked for until there is another appointment; who waits is asked after, one time after the other."""
        mine, about = await self.of_task(task), [one for one in self.tasks if f"Task/{task.id}" in str(one.tree.get("input"))]
        states = {one.tree["status"] for one in mine}
        looking = [one for one in about if code_of(one) == "no-show-outreach" and is_open(one)]
        asking = [one for one in about if code_of(one) == "recheck-waitlist" and is_open(one)]
        if not is_open(task) or states & (BOOKED | KEPT):
            assert not looking, f"Task/{task.id}: nobody needs to be looked for any more"
        assert len(looking) <= sum(one.tree["status"] in ("noshow", "cancelled") for one in mine), "once for each missed visit"
        if is_open(task) and states == {"noshow"}:
            assert any(code_of(one) == "no-show-outreach" for one in about), f"nobody looks for who did not come: Task/{task.id}"
        why = str([task.tree.get("businessStatus"), task.tree.get("statusReason")])
        waits = task.tree["status"] == "on-hold" and "waitlist" in why
        assert len(asking) == waits, f"Task/{task.id} is {task.tree['status']}, and asked after by {len(asking)}"
