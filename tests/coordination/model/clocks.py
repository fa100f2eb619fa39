"""Clocks that go on, and back: no timer fires early, twice or never."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from .hub import WHOLES, Hub, code_of, extension, is_open


class Clocks(Hub):
    """What the machine's clock does, and what was to happen by it."""

    @precondition(lambda self: not self.idle)
    @rule(hours=st.sampled_from([1, 5, 30, 100, 400]))
    def wait(self, hours):
        self.now += timedelta(hours=hours)
        self.furthest = max(self.now, self.furthest)
        self.idle = True

    @precondition(lambda self: not self.idle and self.now == self.furthest)
    @rule(minutes=st.sampled_from([1, 20, 90, 300]))
    def set_back(self, minutes):
        """Somebody corrects the clock."""
        self.now -= timedelta(minutes=minutes)
        self.idle = True
        self.caught["clock set back"] += 1

    async def check(self, tasks):
        await super().check(tasks)
        passed_on = {one.id: raised(self.versions[one.id]) for one in tasks}
        for one in tasks:
            for before, after in passed_on[one.id]:
                assert after.last_updated >= self.at_last(one.id, before, after), f"Task/{one.id} was passed on before it was due"
            if is_open(one) and one.tree["status"] != "on-hold" and "snoozed-until" not in str(one.tree.get("extension")):
                overdue = due(one.tree) <= self.now and code_of(one) not in WHOLES
                assert not overdue, f"Task/{one.id} was due {due(one.tree)}, and it is {self.now}"
        await self.told_once(passed_on)

    def at_last(self, id, before, after):
        """From when on a Task may be passed on: when it is due, or when it was unanswered for three business days."""
        if "state" not in extension(after.tree, "task-escalation") or "due" in extension(before.tree, "task-escalation"):
            return due(before.tree)
        earlier = [one for one in self.versions[id] if one.version <= before.version]
        others = [one.version for one in earlier if one.tree["status"] != before.tree["status"]]
        return earlier[max(others, default=0)].last_updated + timedelta(days=3)

    async def told_once(self, passed_on):
        """One message each time that a Task was passed on, and one reminder of each due time."""
        sent, reminders = Counter(), Counter()
        for one in await self.context.find("Communication", ("_lastUpdated", "ge2000")):
            topic = one.tree.get("topic", {}).get("coding", [{}])[0].get("code")
            about = one.tree.get("about", [{}])[0].get("reference", "").removeprefix("Task/")
            sent[about] += topic == "escalation"
            reminders[about, one.tree.get("payload", [{}])[0].get("contentString")] += topic == "reminder"
        for id, steps in passed_on.items():
            assert sent[id] <= len(steps), f"Task/{id} was told {sent[id]} times and passed on {len(steps)} times"
        assert max(reminders.values(), default=0) <= 1, f"reminded twice: {reminders.most_common(1)}"


def raised(versions):
    """The writes by which a Task was passed on, or came back to who has it in the end: before and after."""
    return [(one, other) for one, other in pairwise(versions) if _level(other.tree) and _level(one.tree) != _level(other.tree)]


def _level(tree):
    """How often a Task was passed on, and until when who has it now has it."""
    said = extension(tree, "task-escalation")
    return said and (said["level"]["valueInteger"], said.get("due", {}).get("valueDateTime"))


def due(tree):
    """When something happens to a Task next, unless it stays in a status for too long before."""
    said = extension(tree, "task-escalation").get("due", {}).get("valueDateTime")
    return datetime.fromisoformat(said or tree["restriction"]["period"]["end"])
