"""The tables of states in profiles/state-machine/: which state may follow which, who may take the step, and what the resource must have.

https://hl7.org/fhir/R4/task.html#statemachine, https://hl7.org/fhir/R4/request.html#statemachine, and the guides that each table names as
its source. What the words of a table mean stands at the top of task.yaml.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from fhircm.coordination.codes import codings
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.outcome import IllegalTransition

Tree = dict[str, Any]
Names = Mapping[str, tuple[str, ...]]
_FILES = {
    "Task": "task.yaml",
    "ServiceRequest": "service-request.yaml",
    "Encounter": "encounter.yaml",
    "Appointment": "appointment.yaml",
    "EpisodeOfCare": "episode-of-care.yaml",
}
TYPES = frozenset(_FILES)


class Step(NamedTuple):
    """One step of a machine; `start` None: the resource is new."""

    start: str | None
    end: str
    who: str  # requester | performer | either | concerned | anyone


@dataclass(frozen=True, slots=True)
class Machine:
    """One table: the states of an element and the steps between them."""

    element: str  # for example Task.status
    initial: tuple[str, ...]
    next: Names  # without `always`
    always: tuple[str, ...] = ()
    ends: frozenset[str] = frozenset()  # where the work is over, though steps lead on
    steps: tuple[Step, ...] = field(default=(), repr=False)

    def may(self, start: str, end: str) -> bool:
        """Whether one step, or none, leads from `start` to `end`."""
        return (start == end and end in self.next) or end in self.next.get(start, ()) or (end in self.always)

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
            for state in self.next.get(way[-1], ()):
                if state not in seen:
                    seen.add(state)
                    ways.append([*way, state])
        return None

    def who(self, start: str | None, end: str) -> str:
        """Who takes a step that there is: requester, performer, either, concerned or anyone."""
        return next((one.who for one in self.steps if (one.start, one.end) == (start, end)), "anyone")

    @property
    def terminal(self) -> frozenset[str]:
        """The states in which the work is over."""
        return self.ends | {state for state, following in self.next.items() if not following}

    def refuse(self, start: str | None, *, initial: tuple[str, ...] | None = None) -> IllegalTransition:
        """The error for a step from `start` (None: a new resource), naming the steps that are allowed."""
        if start is None:
            kind, name = self.element.split(".")
            text = f"The {name} of a new {kind} may be: {', '.join(sorted(initial or self.initial))}"
        else:
            allowed = ", ".join(sorted(self.next.get(start, ())))
            besides = " or ".join(state for state in self.always if state != start)
            text = f"{self.element} may go from '{start}' to: {allowed or 'nothing'}" + (f" (or {besides})" if besides else "")
        return IllegalTransition(text, self.element)


@dataclass(frozen=True, slots=True)
class Business:
    """The table of Task.businessStatus of a protocol. `leads`: no step of the status without one of the business status."""

    system: str
    machine: Machine
    of: Names  # Task.status: the codes it can bear
    text: Mapping[str, str]
    leads: bool = False

    def code(self, task: Tree | None) -> str | None:
        """The code that a Task bears; None for none, or one that is not in the table."""
        found = (code for system, code in codings((task or {}).get("businessStatus")) if system == self.system)
        return next((code for code in found if code in self.text), None)

    def concept(self, code: str) -> Tree:
        """The CodeableConcept of a code."""
        return {"coding": [{"system": self.system, "code": code}], "text": self.text[code]}


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rules that a resource is under: its machine, who takes its steps, and what it must have.

    `cancellation`: `either` side cancels, or the requester may only `ask`, and the performer confirms or does it all the same.
    `handover`: who may give a Task another owner, or an order another requester.
    """

    type: str
    name: str
    title: str
    source: str  # where the table comes from
    profiles: frozenset[str]  # canonical URLs that a resource claims in meta.profile
    machine: Machine
    cancellation: str
    handover: str
    needs: Names  # a state: the elements that the resource must have in it
    forbids: Names  # a state: the elements that it must not have
    business: Business | None = None
    referral: bool = False  # one who is asked stays the one who is asked: what is late is not passed on
    shape: Mapping[str, str] | None = None  # how a Task looks that claims no profile of any protocol

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step of the status, those of a new resource first."""
        return self.machine.steps


@cache
def table(type: str) -> dict[str, Any]:
    """What the file of a type says."""
    tree: dict[str, Any] = read_yaml(folder("profiles") / "state-machine" / _FILES[type])
    return tree


@cache
def protocols(type: str) -> Mapping[str, Protocol]:
    """The protocols of a type by name, in the order in which they are tried."""
    return {name: _protocol(type, name, tree) for name, tree in table(type)["protocols"].items()}


def machine(type: str, name: str = "base") -> Machine:
    """The table of the status of a type, by the name of its protocol."""
    return protocols(type)[name].machine


def business(name: str = "referral") -> Business:
    """The table of the business status of Tasks under a protocol that has one."""
    found = protocols("Task")[name].business
    assert found is not None, name
    return found


def _protocol(type: str, name: str, tree: Mapping[str, Any]) -> Protocol:
    return Protocol(
        type,
        name,
        tree["title"],
        tree["source"],
        frozenset(tree.get("profiles", ())),
        _machine(f"{type}.status", tree["steps"], tree["initial"], tree["always"], tree.get("ends", ())),
        tree["cancellation"],
        tree["handover"],
        _names(tree.get("needs", {})),
        _names(tree.get("forbids", {})),
        _business(tree["business"]) if "business" in tree else None,
        tree.get("referral", False),
        tree.get("shape"),
    )


def _machine(
    element: str, steps: Mapping[str, Any], initial: Mapping[str, str], always: Mapping[str, str], ends: Any = ()
) -> Machine:
    return Machine(
        element,
        tuple(initial),
        {state: tuple(following) for state, following in steps.items()},
        tuple(always),
        frozenset(ends),
        tuple(_steps(steps, initial, always)),
    )


def _steps(steps: Mapping[str, Mapping[str, str]], initial: Mapping[str, str], always: Mapping[str, str]) -> Iterator[Step]:
    for end, who in initial.items():
        yield Step(None, end, who)
    for start, following in steps.items():
        for end, who in following.items():
            yield Step(start, end, who)
        for end, who in always.items():
            if end != start:
                yield Step(start, end, who)


def _business(tree: Mapping[str, Any]) -> Business:
    steps = _machine("Task.businessStatus", tree["steps"], {}, {})
    return Business(tree["system"], steps, _names(tree["of"]), tree["text"], tree["leads"])


def _names(tree: Mapping[str, Any]) -> Names:
    return {state: tuple(names) for state, names in tree.items()}
