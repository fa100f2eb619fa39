"""What the hub leaves for a human: done, begun, put on hold or called off by who has it, whether or not that makes sense."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from .hub import WHOLES, Hub, code_of, id_of, is_open

OTHERS = {"fulfill", "abort", "discharge-item", "discharge-barrier", "provide-information", None}  # have rules of their own
HOW = st.sampled_from(["done", "done", "begun", "on hold", "called off", "called off without a word"])


class Chores(Hub):
    """Somebody closes what is on the work list: what is still needed comes again."""

    @rule(chores=st.lists(st.tuples(st.integers(0, 40), HOW), min_size=1, max_size=3))
    def chores(self, chores):
        for pick, how in chores:
            found = sorted(
                (one for one in self.find("Task", ("_lastUpdated", "ge2000")) if is_chore(one)), key=lambda one: one.id
            )
            if found:
                self.chore(found[pick % len(found)], how)

    def chore(self, task, how):
        steps = {"done": ["in-progress", "completed"], "begun": ["in-progress"], "on hold": ["on-hold"]}.get(how, ["cancelled"])
        why = {"statusReason": {"text": "Not now"}} if how in ("called off", "on hold") else {}
        for status in steps:
            if task.tree["status"] != status:
                went = self.update(id_of(task.tree, "owner"), task, status=status, **why)
                self.caught[f"chore {how}"] += went
                task = self.get("Task", task.id)


def is_chore(task):
    return is_open(task) and code_of(task) not in OTHERS | WHOLES and id_of(task.tree, "owner") not in ("", "ann", "bob")
