"""Questions of a performer, and what becomes of the referral that waits for the answer. docs/explanation/referrals.md"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from .hub import code_of, extension, id_of, is_open
from .referrals import PICK, Referrals, how

AWAITING = "awaiting-information"


class Questions(Referrals):
    """Asked by who has a referral, answered by who asks for it."""

    @rule(pick=PICK, among=st.sampled_from(["open", "open", "all"]), who=st.sampled_from(["P", "P", "P", "R", "south"]))
    def ask(self, pick, among, who):
        self.ask_about(pick, among, who)

    def ask_about(self, pick, among, who):
        """Somebody has a question: who owns an open referral may ask."""
        task = self.referral(pick, among)
        if task is None or not id_of(task.tree, "owner"):
            return
        sides = {"P": id_of(task.tree, "owner"), "R": id_of(task.tree, "requester")}
        went = self.act(sides.get(who, who), "task-request-information", task, question="Which payer?")
        if went:
            assert is_open(task), "nobody asks about what has ended"
            self.caught["asked"] += 1
        elif who == "P" and is_open(task) and task.tree["status"] != "draft":
            raise AssertionError(f"who owns it may ask: {self.tried[-1]}")

    @rule(
        pick=PICK,
        who=st.sampled_from(["owner", "owner", "owner", "requester"]),
        way=st.sampled_from(["on the question", "on the referral", "by an update", "no answer"]),
    )
    def answer(self, pick, who, way):
        """It is answered in one way or another, or called off; where there is none, somebody asks."""
        asked = [one for one in self.find("Task", ("code", "provide-information")) if is_open(one)]
        if not asked:
            return self.ask_about(pick, "open", "P")
        question = asked[pick % len(asked)]
        place = id_of(question.tree, who) or "north"
        text = f"Medicare, says {question.id}"
        if way == "on the question":
            went = self.act(place, "task-provide-information", question, text=text)
        elif way == "on the referral":
            went = self.act(place, "task-provide-information", self.get("Task", about(question)), text=text)
        elif way == "by an update":
            said = [{"type": {"text": "Answer"}, "valueString": text}]
            went = self.update(place, question, status="completed", output=said)
        else:
            went = self.update(place, question, status="cancelled", statusReason={"text": "Nobody knows"})
        self.caught[f"answered {way}"] += went

    async def check(self, tasks):
        await super().check(tasks)
        by_id = {one.id: one for one in tasks}
        waits_for = set()
        for one in (one for one in tasks if code_of(one) == "provide-information"):
            referral = by_id[about(one)]
            if is_open(one):
                assert is_open(referral), "nobody needs an answer when the referral has ended"
                passed_on = extension(one.tree, "task-escalation")
                assert passed_on or id_of(one.tree, "owner") == id_of(referral.tree, "requester"), "who asks for it answers"
                waits_for.add(referral.id)
            elif one.tree["status"] == "completed" and is_open(referral):
                given = [said["valueString"] for said in one.tree.get("output", [])]
                known = [said.get("valueString") for said in referral.tree.get("input", [])]
                assert set(given) <= set(known), f"the answer went nowhere: Task/{referral.id}"
                assert len(known) == len(set(known)), f"the answer is there twice: Task/{referral.id}"
        for one in tasks:
            if one.tree["status"] == "on-hold" and AWAITING in str(one.tree.get("statusReason")):
                assert one.id in waits_for, f"Task/{one.id} ({how(one.tree)}) waits for an answer to nothing"


def about(question):
    """The id of the referral about which somebody asks."""
    return question.tree["partOf"][0]["reference"].partition("/")[2]
