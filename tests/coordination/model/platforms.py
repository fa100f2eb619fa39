"""Requests that a platform passes on: its own orders, and how they move the Task that it was sent. docs/explanation/referrals.md"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from .hub import PERFORMERS, TYPE, id_of, is_open
from .referrals import PICK, WAYS, Referrals, has_it, is_offer

GOOD = ("active", "on-hold", "completed")


class Platforms(Referrals):
    """Whoever has a request may pass it on; the one in the middle does nothing else."""

    def __init__(self):
        self.wishes = 0
        self.passed_on = {}  # order: the one that it is based on
        super().__init__()

    @precondition(lambda self: self.wishes < 8)
    @rule(
        pick=PICK,
        to=st.lists(st.sampled_from(PERFORMERS), min_size=1, max_size=2, unique=True),
        way=st.sampled_from(WAYS),
        who=st.sampled_from(["P", "P", "P", "R", "west"]),
        parts=st.sampled_from([1, 2]),
    )
    def split(self, pick, to, way, who, parts):
        """Orders of its own are made for what somebody was sent."""
        self.wishes += 1
        task = self.referral(pick, "open")
        if task is None or len(self.passed_on) > 3:
            return
        sides = {"P": id_of(task.tree, "owner") or "south", "R": id_of(task.tree, "requester")}
        for _ in range(parts):
            self.pass_on(self.get("Task", task.id), to, way, sides.get(who, who))

    @rule(picks=st.lists(PICK, min_size=1, max_size=4))
    def work_below(self, picks):
        """Somebody accepts what was passed on, and does it; what the worker completes above, all parts of it are done."""
        above = [one for order in self.orders for one in self.run(self.referrals(order)) if is_open(one)]
        worked_on = set()
        for pick in picks:
            found = [one for order in self.passed_on for one in self.run(self.referrals(order)) if is_open(one)]
            if found:
                task = found[pick % len(found)]
                worked_on.add(task.id)
                verb = "task-accept" if task.tree["status"] == "requested" else "task-complete"
                self.caught[f"below {verb}"] += self.act(id_of(task.tree, "owner") or "south", verb, task)
        self.run(self.react())
        for one in above:
            parts = self.run(self.parts(one))
            if parts and self.get("Task", one.id).tree["status"] == "completed" and one.id not in worked_on:
                assert all_done(parts), f"Task/{one.id} is completed, and not all below it is done"

    def pass_on(self, task, to, way, place):
        order = id_of(task.tree, "focus")
        named = {"to": [{"reference": f"Organization/{one}"} for one in to if one != place]}
        if not self.act(place, "task-forward", task, distribution=way, **({"performerType": TYPE} if way == "open" else named)):
            return
        found = self.find("ServiceRequest", ("based-on", f"ServiceRequest/{order}"))
        made = [one for one in found if one.id not in self.passed_on]
        assert len(made) == 1
        self.passed_on[made[0].id] = order
        self.orders.append(made[0].id)
        self.caught["passed on"] += 1

    async def check(self, tasks):
        await super().check(tasks)
        for one in tasks:
            await self.follows(one)

    async def follows(self, task):
        """What a Task says is what became of the orders that its owner made of it."""
        own = await self.made_of(task)
        status = task.tree["status"]
        if not is_open(task):
            left = [one.id for one in own if one.tree["status"] in ("active", "on-hold")]
            assert status == "completed" or not left, f"Task/{task.id} is {status}, and {left} is asked for still"
            return
        parts = await self.parts(task)
        if is_offer(task.tree) or not parts:
            return
        held = [each for part in parts for each in part if has_it(each)]
        assert not held or status not in ("requested", "accepted"), (
            f"Task/{task.id} is {status}, and below it somebody is at work"
        )
        assert not all_done(parts), f"Task/{task.id} is {status}, and all below it is done"
        results = {str(out.get("valueReference", out)) for each in held for out in each.get("output", [])}
        assert results <= {str(out.get("valueReference", out)) for out in task.tree.get("output", [])}, "results go up"

    async def made_of(self, task):
        """The orders that the owner of a Task made of it."""
        made = [id for id, order in self.passed_on.items() if order == id_of(task.tree, "focus")]
        below = [await self.context.get("ServiceRequest", id) for id in made]
        return [one for one in below if id_of(one.tree, "requester") == id_of(task.tree, "owner")]

    async def parts(self, task):
        """The Tasks of each of them that is good still."""
        own = [one for one in await self.made_of(task) if one.tree["status"] in GOOD]
        return [[each.tree for each in await self.referrals(one.id)] for one in own]


def all_done(parts):
    return all(any(each["status"] == "completed" for each in part) for part in parts)
