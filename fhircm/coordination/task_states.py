"""Under which protocol a resource is, and whether a write keeps to it: asked of every write, whichever way it comes.

https://hl7.org/fhir/R4/task.html#statemachine. The tables: fhircm/coordination/state_tables.py. What a step asks for:
fhircm/coordination/steps.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fhircm.coordination.codes import codings
from fhircm.coordination.state_tables import TYPES, Business, Machine, Protocol, Tree, business, machine, protocols
from fhircm.coordination.steps import check, check_deletion, parties
from fhircm.store.operations import Write, WriteRule

__all__ = [
    "RULE",
    "Business",
    "Machine",
    "Protocol",
    "business",
    "enforce",
    "is_open",
    "is_referral",
    "machine",
    "machine_of",
    "mirrored",
    "protocol_of",
]


def mirrored(tree: Tree | None) -> bool:
    """Whether a resource is the mirror of one at a partner."""
    return bool((tree or {}).get("meta", {}).get("source"))


def protocol_of(tree: Tree, previous: Tree | None = None) -> Protocol:
    """The protocol that a resource is under: what it was under before, else what it claims, else how it looks, else plain R4.

    Only what was plain R4 may be put under another one.
    """
    found = protocols(tree["resourceType"])
    for one in (previous, tree):
        if one is not None and (fitting := _fitting(one, found.values())) is not None:
            return fitting
    return found["base"]


def _fitting(tree: Tree, listed: Collection[Protocol]) -> Protocol | None:
    claimed = {profile.split("|")[0] for profile in tree.get("meta", {}).get("profile", ())}
    by_profile = next((one for one in listed if not claimed.isdisjoint(one.profiles)), None)
    if by_profile is not None or mirrored(tree):
        return by_profile
    return next((one for one in listed if one.shape and _looks(tree, one.shape)), None)


def _looks(task: Tree, shape: Mapping[str, str]) -> bool:
    focus = task.get("focus", {})
    there = shape["focus"] in (focus.get("type"), *focus.get("reference", "").split("/"))
    return there and shape["code"] in {f"{system}#{code}" for system, code in codings(task.get("code"))}


def machine_of(tree: Tree, previous: Tree | None = None) -> Machine:
    """The table of states that a resource is under."""
    return protocol_of(tree, previous).machine


def is_referral(task: Tree | None) -> bool:
    """Whether a Task of the hub is a referral: it says so, or it fulfils a ServiceRequest."""
    return task is not None and not mirrored(task) and protocol_of(task).referral


def is_open(task: Tree) -> bool:
    """Whether a Task can still be worked on."""
    return task["status"] not in machine("Task").terminal


def enforce(write: Write) -> None:
    """The write rule of all that has states. Raises IllegalTransition and NotTheirStep, with the steps that are allowed."""
    if write.new is None:
        check_deletion(write)
    else:
        check(protocol_of(write.new, write.previous), write)


RULE = WriteRule(TYPES, enforce, deletes=True, parties=parties)
