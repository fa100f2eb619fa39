"""Which state of a Task or ServiceRequest may follow which: one table each, in profiles/state-machine/, enforced on every write.

https://hl7.org/fhir/R4/task.html#statemachine, https://hl7.org/fhir/R4/request.html#statemachine,
http://hl7.org/fhir/us/sdoh-clinicalcare (referral Tasks) and http://hl7.org/fhir/us/bser (their business status).

A mirror is a row of snapshots: the hub misses the states in between, so whatever can be reached from the last one is legal
there, and the first one may be any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from fhircm.coordination.codes import FULFILL, codings
from fhircm.fhir.artefacts import folder
from fhircm.fhir.outcome import IllegalTransition
from fhircm.store.operations import Write, WriteRule

Tree = dict[str, Any]
REFERRAL_PROFILE = "https://fhircm.example/StructureDefinition/referral-task"
_FILES = {"Task": "task.yaml", "ServiceRequest": "service-request.yaml"}


@dataclass(frozen=True, slots=True)
class Machine:
    """One table: the states of an element and the steps between them."""

    element: str  # for example Task.status
    initial: tuple[str, ...]
    next: Mapping[str, tuple[str, ...]]  # without `always`
    always: tuple[str, ...] = ()

    def may(self, start: str, end: str) -> bool:
        """Whether one step, or none, leads from `start` to `end`."""
        return start == end or end in self.next[start] or (end in self.always)

    def reaches(self, start: str, end: str) -> bool:
        """Whether steps lead from `start` to `end`."""
        return end in self.always or self.path(start, end) is not None

    def path(self, start: str, end: str) -> list[str] | None:
        """The shortest way from `start` (left out) to `end`; None when there is none. `always` is no way to anywhere else."""
        ways: deque[list[str]] = deque([[start]])
        seen = {start}
        while ways:
            way = ways.popleft()
            if way[-1] == end:
                return way[1:]
            for state in self.next[way[-1]]:
                if state not in seen:
                    seen.add(state)
                    ways.append([*way, state])
        return None

    @property
    def terminal(self) -> frozenset[str]:
        """The states that nothing follows."""
        return frozenset(state for state, following in self.next.items() if not following)

    def refuse(self, start: str | None, *, initial: tuple[str, ...] | None = None) -> IllegalTransition:
        """The error for a step from `start` (None: a new resource), naming the steps that are allowed."""
        if start is None:
            kind, name = self.element.split(".")
            text = f"The {name} of a new {kind} may be: {', '.join(sorted(initial or self.initial))}"
        else:
            allowed = ", ".join(sorted(self.next[start]))
            besides = " or ".join(state for state in self.always if state != start)
            text = f"{self.element} may go from '{start}' to: {allowed or 'nothing'}" + (f" (or {besides})" if besides else "")
        return IllegalTransition(text, self.element)


@dataclass(frozen=True, slots=True)
class Business:
    """The table of Task.businessStatus of referrals."""

    system: str
    machine: Machine
    of: Mapping[str, tuple[str, ...]]  # Task.status: the codes it can bear
    text: Mapping[str, str]

    def code(self, task: Tree | None) -> str | None:
        """The code that a Task bears; None for none, or one that is not in the table."""
        found = (code for system, code in codings((task or {}).get("businessStatus")) if system == self.system)
        return next((code for code in found if code in self.text), None)

    def concept(self, code: str) -> Tree:
        """The CodeableConcept of a code."""
        return {"coding": [{"system": self.system, "code": code}], "text": self.text[code]}


@cache
def _table(type: str) -> dict[str, Any]:
    return yaml.safe_load((folder("profiles") / "state-machine" / _FILES[type]).read_bytes())


@cache
def machine(type: str, name: str = "base") -> Machine:
    """A table by type and name: `base`, and for Task also `referral`."""
    table = _table(type)
    steps = {state: tuple(following) for state, following in table[name]["next"].items()}
    return Machine(f"{type}.status", tuple(table[name]["initial"]), steps, tuple(table["always"]))


@cache
def business() -> Business:
    """The table of the business status of referrals."""
    table = _table("Task")["business"]
    steps = {code: tuple(following) for code, following in table["next"].items()}
    codes = {status: tuple(codes) for status, codes in table["of"].items()}
    return Business(table["system"], Machine("Task.businessStatus", (), steps), codes, table["text"])


def mirrored(tree: Tree | None) -> bool:
    """Whether a resource is the mirror of one at a partner."""
    return bool((tree or {}).get("meta", {}).get("source"))


def is_referral(task: Tree | None) -> bool:
    """Whether a Task of the hub is a referral: it says so, or it fulfils a ServiceRequest."""
    if task is None or mirrored(task):
        return False
    focus = task.get("focus", {})
    order = focus.get("type") == "ServiceRequest" or "ServiceRequest" in focus.get("reference", "").split("/")
    claimed = (profile.split("|")[0] for profile in task.get("meta", {}).get("profile", []))
    return REFERRAL_PROFILE in claimed or (order and FULFILL in codings(task.get("code")))


def machine_of(tree: Tree, previous: Tree | None = None) -> Machine:
    """The table that a resource is under. What was a referral stays one, whatever it says now."""
    type = tree["resourceType"]
    referral = type == "Task" and (is_referral(previous) or is_referral(tree))
    return machine(type, "referral" if referral else "base")


def is_open(task: Tree) -> bool:
    """Whether a Task can still be worked on."""
    return task["status"] not in machine("Task").terminal


def enforce(write: Write) -> None:
    """The write rule of Tasks and ServiceRequests. Raises IllegalTransition with the states that are allowed."""
    previous, new, origin = write.previous, write.new, write.origin
    assert new is not None
    table = machine_of(new, previous)
    snapshot = origin.startswith("partner:") or origin == "load"
    if previous is None:
        if not snapshot and new["status"] not in table.initial:
            raise table.refuse(None)
    elif not (table.reaches if snapshot else table.may)(previous["status"], new["status"]):
        raise table.refuse(previous["status"])
    if table == machine("Task", "referral"):
        _enforce_business(previous, new, snapshot)


def _enforce_business(previous: Tree | None, new: Tree, snapshot: bool) -> None:
    """A business status must follow the one before and go with the status. Who sets the status alone may leave it as it was."""
    table = business()
    before, after = table.code(previous), table.code(new)
    if after is None or after == before:
        return
    behind = previous is not None and before not in table.of.get(previous["status"], (before,))  # somebody set the status alone
    if before is not None and not (table.machine.reaches if snapshot or behind else table.machine.may)(before, after):
        raise table.machine.refuse(before)
    fitting = table.of.get(new["status"])
    if fitting is not None and after not in fitting:
        status = new["status"]
        raise IllegalTransition(
            f"While Task.status is '{status}', Task.businessStatus may be: {', '.join(fitting)}", "Task.businessStatus"
        )


RULE = WriteRule(frozenset(_FILES), enforce)
