"""What the one who asks does: give a request out, pass it on, choose an offer, look at the report, ask once more.

http://hl7.org/fhir/us/sdoh-clinicalcare; docs/explanation/referrals.md
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

from fhircm.coordination import asking, distribution, loops
from fhircm.coordination.acting import Act
from fhircm.coordination.answering import accepted
from fhircm.coordination.build import concept, edit, instant, new, profile, reference
from fhircm.coordination.codes import member
from fhircm.coordination.distribution import Distribution
from fhircm.coordination.people import patient_of
from fhircm.coordination.task_states import is_open, is_referral, mirrored
from fhircm.fhir.outcome import Conflict, IllegalTransition
from fhircm.store.operations import Put
from fhircm.store.resources import Stored

Tree = dict[str, Any]
_REFERRAL = {"coding": [{"system": "http://snomed.info/sct", "code": "3457005", "display": "Patient referral"}]}


async def refer(act: Act) -> list[Put]:
    """An order is given out: to whom (`to`), how (`distribution`), until when an answer is awaited (`respondBy`), with what to read."""
    order = act.about.tree
    if mirrored(order):
        raise Conflict(
            "This order is kept by the partner that wrote it, and is changed there. Task/$forward on its referral makes a request of the"
            " hub's own that is based on it"
        )
    if order["status"] not in ("draft", "active", "on-hold"):
        raise IllegalTransition(
            f"An order that is '{order['status']}' is given out to nobody; make a new one", "ServiceRequest.status"
        )
    tasks = [one for one in await act.find("Task", ("focus", f"ServiceRequest/{act.about.id}")) if is_referral(one.tree)]
    said = distribution.of(order)
    here = distribution.of_round(act.about.id, said.round, tasks)
    if any(distribution.has_it(one.tree) and is_open(one.tree) for one in tasks):
        raise Conflict("Somebody has this request already: it is given out anew when that one is cancelled, or has failed")
    added = here and any(is_open(one.tree) for one in here)
    return [
        edit(
            act.about,
            **_given_out(act, order, replace(said, round=said.round if added or not here else said.round + 1), keep=added),
        )
    ]


def _given_out(act: Act, order: Tree, said: Distribution, *, keep: Any = False) -> Tree:
    """The members of an order that is given out as the act says; `keep`: who is asked already is asked still."""
    said = replace(said, how=act.one("distribution", said.how), respond_by=act.one("respondBy", said.respond_by))
    before = order.get("performer", []) if keep or not act.said.get("to") else []
    known = {one.get("reference") for one in before}
    performers = [*before, *(one for one in act.said.get("to", ()) if one.get("reference") not in known)]
    members: Tree = {
        "status": "active",
        "performer": performers or None,
        "extension": distribution.put(order, said) if said != Distribution() else order.get("extension"),
        "note": [*order.get("note", []), *({"time": instant(act.store.now), "text": one} for one in act.said.get("message", ()))],
        "supportingInfo": [*order.get("supportingInfo", []), *act.said.get("supporting", ())],
        "authoredOn": order.get("authoredOn", instant(act.store.now)),
        "performerType": act.one("performerType", order.get("performerType")),
    }
    if not member("referral-order", order.get("category"), order.get("code")):
        members["category"] = [*order.get("category", []), _REFERRAL]
    return {name: value or None for name, value in members.items()}


async def forward(act: Act) -> list[Put]:
    """An intermediary passes on what it was sent: a request of its own, based on that one; the Task is accepted with it."""
    task = act.about.tree
    order = await act.follow(task.get("focus"))
    if not is_referral(task) or order is None or order.type != "ServiceRequest":
        raise IllegalTransition("What is passed on is the Task of a referral, whose focus is a ServiceRequest", "Task.focus")
    if not is_open(task) and task["status"] not in ("rejected", "failed"):
        raise IllegalTransition(f"A referral that is '{task['status']}' is not passed on", "Task.status")
    taken = [accepted(act)] if task["status"] == "requested" else []
    made_by = next((one.resource.tree["owner"] for one in taken), task.get("owner"))
    source = order.tree
    kept = (
        "category",
        "code",
        "priority",
        "encounter",
        "occurrenceDateTime",
        "occurrencePeriod",
        "reasonCode",
        "reasonReference",
    )
    tree = {
        "resourceType": "ServiceRequest",
        "id": str(uuid4()),
        "intent": "filler-order",
        "basedOn": [reference(f"ServiceRequest/{order.id}")],
        "subject": reference(f"Patient/{patient_of(source)}"),
        "requester": made_by if is_open(task) else task.get("requester"),
        **{name: source[name] for name in kept if name in source},
    }
    if code := act.one("code"):
        tree["code"] = code
    return [new({**tree, **_given_out(act, tree, Distribution())}), *taken]


async def choose(act: Act) -> list[Put]:
    """The requester chooses this offer; the others are withdrawn."""
    tree = act.about.tree
    said = distribution.of(tree)
    if said.chosen:
        raise IllegalTransition("This offer was chosen already", "Task.extension")
    return [edit(act.about, extension=distribution.put(tree, replace(said, chosen=True)), lastModified=instant(act.store.now))]


async def acknowledge(act: Act) -> list[Put]:
    """The requester has looked at what came of a referral, and that is it."""
    if act.about.tree["status"] != "completed":
        raise IllegalTransition(f"What is acknowledged is completed; Task.status is '{act.about.tree['status']}'", "Task.status")
    asked = await _acknowledgement(act)
    if asked is None:
        raise Conflict("Nobody waits for this to be acknowledged: it was done, or the referral was completed just now")
    note = act.one("note")
    more = {"note": [*asked.tree.get("note", []), {"time": instant(act.store.now), "text": note}]} if note else {}
    return [edit(asked, status="completed", lastModified=instant(act.store.now), **more)]


async def reopen(act: Act) -> list[Put]:
    """What came of a referral, or that it ended, is not what was asked for: a new Task for the same performer, in place of this one."""
    tree = act.about.tree
    if not is_referral(tree) or is_open(tree):
        raise IllegalTransition("What is asked once more is a referral that has ended", "Task.status")
    if "owner" not in tree and not act.said.get("to"):
        raise IllegalTransition("Nobody had this request: give it out with ServiceRequest/$refer, or say to whom", "Task.owner")
    now, id = instant(act.store.now), str(uuid4())
    kept = ("basedOn", "priority", "code", "description", "focus", "for", "encounter", "requester", "reasonCode", "input")
    again = {
        "resourceType": "Task",
        "id": id,
        "meta": profile("referral-task"),
        "extension": [{"url": asking.REPLACES, "valueReference": reference(f"Task/{act.about.id}")}],
        "status": "requested",
        "intent": "order",
        "authoredOn": now,
        "lastModified": now,
        "owner": act.one("to", tree.get("owner")),
        "note": [{"time": now, "text": act.one("reason")["text"]}] if act.one("reason").get("text") else None,
        **{name: tree[name] for name in kept if name in tree},
    }
    asked = await _acknowledgement(act)
    ended: list[Put] = []
    if asked is not None:
        why = concept("not-asked-any-more", "It is asked once more")
        ended = [edit(asked, status="cancelled", statusReason=why, lastModified=now)]
    return [new(again), *ended]


async def _acknowledgement(act: Act) -> Stored | None:
    found = await act.get("Task", loops.acknowledgement_id(act.about.id))
    return found if found is not None and is_open(found.tree) else None
