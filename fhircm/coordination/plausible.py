"""What cannot be, whoever says it: dates out of order, a Task that fulfils nothing, a role that does not exist, chains that bite their tail.

https://hl7.org/fhir/R4/task.html. Asked of every write here; of what a partner says of its own records only whether a chain comes back.
What dates can be stands in profiles/state-machine/. What a resource said before may stay as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from fhircm.access.roles import roles
from fhircm.coordination.codes import FULFILL, codings
from fhircm.coordination.state_tables import TYPES, Tree, table
from fhircm.coordination.steps import snapshot
from fhircm.fhir.outcome import Invalid, Issue
from fhircm.fhir.ranges import date_range
from fhircm.fhir.systems import ROLE
from fhircm.store.operations import Write, WriteRule
from fhircm.store.stored import micros

SKEW = timedelta(days=1)  # that clocks may differ, and that a date without a zone may be ahead
HORIZON = timedelta(days=100 * 366)  # further ahead nobody plans
EARLIEST = "1900"


def check(write: Write) -> None:
    """Raises Invalid, which names every place and what would do."""
    if write.new is None or snapshot(write):
        return
    # The hub learns late of what was due long ago: its own due times are what they are.
    found = [*(_dates(write) if write.origin != "hub" else ()), *_focus(write), *_roles(write)]
    if found:
        raise Invalid(found[0].text, issues=found)


def _issue(text: str, place: str) -> Issue:
    return Issue("error", "business-rule", f"{place}: {text}", place)


# --- dates -------------------------------------------------------------------------------------------------------------------


def _dates(write: Write) -> Iterator[Issue]:
    previous, new = write.previous or {}, write.new
    assert new is not None
    type, said = new["resourceType"], table(new["resourceType"]).get("dates", {})
    changed = previous.get("status") != new["status"]
    for first, second in said.get("order", ()):
        low, high = _range(new, first), _range(new, second)
        if low and high and low[0] >= high[1] and _differs(previous, new, first, second):
            yield _issue(f"it is before {type}.{first}", f"{type}.{second}")
    while_ = said.get("past_while", {}).get(new["status"], ())
    for path in dict.fromkeys((*said.get("past", ()), *while_, *said.get("ahead", ()))):
        if (at := _range(new, path)) and (_differs(previous, new, path) or (changed and path in while_)):
            yield from _when(write, at, f"{type}.{path}", past=path in said.get("past", ()) or path in while_)


def _when(write: Write, at: tuple[int, int], place: str, *, past: bool) -> Iterator[Issue]:
    if at[1] <= date_range(EARLIEST)[0]:
        yield _issue(f"it is before the year {EARLIEST}", place)
    if write.now is None:
        return
    if past and at[0] > micros(write.now + SKEW):
        yield _issue("it is still to come, and tells what was", place)
    elif at[0] > micros(write.now + HORIZON):
        yield _issue(f"it is more than {HORIZON.days // 366} years ahead", place)


def _at(tree: Tree, path: str) -> str | None:
    value: Any = tree
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _range(tree: Tree, path: str) -> tuple[int, int] | None:
    """The time that an element stands for, in microseconds since the epoch; None when there is none."""
    text = _at(tree, path)
    return date_range(text) if text else None


def _differs(previous: Tree, new: Tree, *paths: str) -> bool:
    return any(_at(previous, path) != _at(new, path) for path in paths)


# --- Tasks -------------------------------------------------------------------------------------------------------------------


def _focus(write: Write) -> Iterator[Issue]:
    previous, new = write.previous, write.new
    assert new is not None
    if new["resourceType"] != "Task" or "focus" in new or FULFILL not in codings(new.get("code")):
        return
    if previous is None or "focus" in previous or FULFILL not in codings(previous.get("code")):
        yield _issue("a Task with the code 'fulfill' needs it, to say which request is to be fulfilled", "Task.focus")


def _roles(write: Write) -> Iterator[Issue]:
    previous, new = write.previous or {}, write.new
    assert new is not None
    if new["resourceType"] != "Task":
        return
    before = set(codings(previous.get("performerType")))
    if any(system == ROLE and code not in roles() for system, code in set(codings(new.get("performerType"))) - before):
        yield _issue(f"there is no such role at {ROLE}; there are: {', '.join(roles())}", "Task.performerType")


def _chains() -> Mapping[str, Mapping[str, str]]:
    return {type: table(type)["chains"] for type in TYPES if "chains" in table(type)}


RULE = WriteRule(TYPES, check, chains=MappingProxyType(_chains()))
