"""One performer is asked once: of the open referral Tasks of the hub, no two have the same owner and the same order.

http://hl7.org/fhir/us/sdoh-clinicalcare: one Task for one performer. A fact that commits with the write, so that it holds among any number
of writers at once.
"""

from __future__ import annotations

from fhircm.coordination.state_tables import Tree
from fhircm.coordination.task_states import is_open, is_referral
from fhircm.store.operations import SetState, Write, WriteRule

ASKED = "referral-asked"  # namespace of the facts: which Task asks this performer for this order


def facts(write: Write) -> list[SetState]:
    """What is asked with the Task, and what is asked no more."""
    tree = write.new or write.previous
    assert tree is not None
    task = {"task": tree["id"]}
    before, after = _asks(write.previous), _asks(write.new)
    if before == after:
        return []
    words = (
        "There is an open referral Task for this order with this owner already; follow that one, or close it first (Task.owner)"
    )
    let_go = [SetState(ASKED, before, None, if_equal=task)] if before else []
    return [*let_go, *([SetState(ASKED, after, task, if_absent=True, otherwise=words)] if after else [])]


def _asks(task: Tree | None) -> str | None:
    """Whom a Task asks for what, as long as it is open."""
    if task is None or not is_open(task) or not is_referral(task):
        return None
    order, owner = (task.get(name, {}).get("reference") for name in ("focus", "owner"))
    return f"{order} {owner}" if order and owner else None


RULE = WriteRule(frozenset({"Task"}), lambda write: None, deletes=True, facts=facts)
