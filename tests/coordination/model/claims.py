"""A queue, and two coordinators who claim, start, hand over and give back what is in it, while leases run out."""

from __future__ import annotations

from datetime import datetime

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.acting import act
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.validation import check_tree
from fhircm.operations.acting import VERBS
from fhircm.store.operations import Put

from .hub import STAFF, Hub, extension, person, reference

QUEUE = {"coding": [{"system": "https://fhircm.example/role", "code": "care-coordinator"}]}


class Claims(Hub):
    """Work for whoever of the coordinators takes it."""

    def __init__(self):
        self.queued = 0
        super().__init__()

    @initialize()
    def first_in_the_queue(self):
        self.queue()

    @precondition(lambda self: self.queued < 4)
    @rule()
    def queue(self):
        """Work for whoever of the coordinators takes it."""
        number = self.queued
        self.queued += 1
        task = {
            "resourceType": "Task", "id": f"queued-{number}", "status": "ready", "intent": "order", "description": "Call the patient",
            "performerType": [QUEUE], "owner": {"reference": "Organization/north"}, "for": {"reference": "Patient/p"},
            "requester": {"reference": "Organization/north"}, "authoredOn": self.now.isoformat(timespec="seconds"),
        }  # fmt: skip
        self.run(self.put(task))

    @precondition(lambda self: self.queued)
    @rule(
        pick=st.integers(0, 3), who=st.sampled_from(STAFF), verb=st.sampled_from(["claim", "claim", "release", "hand-over", "start"]),
    )  # fmt: skip
    def claim(self, pick, who, verb):
        """Whoever works it is the one who has it: what somebody else has claimed, and has not lost, is nobody else's to write."""
        task = self.run(self.context.get("Task", f"queued-{pick % self.queued}"))
        holder, until, fence = self.held(task.tree)
        there = holder if until is None or until > self.now else None
        said = {"to": [{"reference": f"Practitioner/{STAFF[who == 'ann']}"}], "note": ["Please"]} if verb == "hand-over" else {}
        try:
            store = GuardedStore(self.store, person(who))
            if verb == "start":
                tree = {**task.tree, "status": "in-progress"}
                self.run(store.transact([Put(check_tree(tree), task.version)], [("u", "Task")]))
            else:
                self.run(act(store, VERBS[f"task-{verb}"], "Task", task.id, said))
        except FhirError as error:
            self.caught[f"{verb} refused: {type(error).__name__}"] += 1
            return
        assert there in (None, f"Practitioner/{who}"), f"{who} wrote what {there} has claimed until {until}: {verb}"
        after = self.held(self.run(self.context.get("Task", task.id)).tree)
        assert after[2] >= fence, "a fence only grows"
        self.caught[verb] += 1

    def held(self, tree):
        """Who has claimed a Task, until when, and under which fence."""
        parts = extension(tree, "task-claim")
        until = parts.get("until", {}).get("valueInstant")
        owner = reference(tree, "owner")
        holder = owner if owner.startswith("Practitioner/") else None
        return holder, datetime.fromisoformat(until) if until else None, parts.get("fence", {}).get("valuePositiveInt", 0)
