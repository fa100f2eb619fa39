"""The operations on resources of coordination: one line each, for the verbs are in `fhircm/coordination/`.

To add one: its OperationDefinition in `profiles/operation/`, whose description says what it means, and a line in VERBS.
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination import answering, assigning, claiming, pausing, requesting, scheduling
from fhircm.coordination.acting import Verb, act
from fhircm.coordination.discharge import acts as discharge_acts
from fhircm.coordination.discharge import choices, handover
from fhircm.coordination.transition import attempting
from fhircm.operations.call import Answer, Argument, Call
from fhircm.operations.definition import Function

# The name of its definition in profiles/operation/: the verb.
VERBS: dict[str, Verb] = {
    "encounter-add-barrier": discharge_acts.add_barrier,
    "encounter-expect-discharge": discharge_acts.expect_discharge,
    "encounter-offer-choices": choices.offer_choices,
    "encounter-record-choice": choices.record_choice,
    "encounter-refer-to-chosen": choices.refer_to_chosen,
    "encounter-send-handover": handover.send_handover,
    "service-request-refer": requesting.refer,
    "task-accept": answering.accept,
    "task-acknowledge": requesting.acknowledge,
    "task-assign": assigning.assign,
    "task-cancel": answering.cancel,
    "task-choose": requesting.choose,
    "task-claim": claiming.claim,
    "task-complete": answering.complete,
    "task-confirm-cancellation": answering.confirm_cancellation,
    "task-decline": answering.decline,
    "task-delegate": claiming.delegate,
    "task-fail": answering.fail,
    "task-forward": requesting.forward,
    "task-hand-over": claiming.hand_over,
    "task-no-show": scheduling.no_show,
    "task-offer": answering.offer,
    "task-pause": pausing.pause,
    "task-provide-information": answering.provide_information,
    "task-record-contact": attempting.record_contact,
    "task-release": claiming.release,
    "task-reopen": requesting.reopen,
    "task-request-information": answering.request_information,
    "task-reschedule": scheduling.reschedule,
    "task-resume": pausing.resume,
    "task-schedule": scheduling.schedule,
    "task-snooze": pausing.snooze,
    "task-start": answering.start,
    "task-waitlist": scheduling.waitlist,
}


def _said(argument: Argument) -> Any:
    """What was said under a name: a value, or of parts the values of each by name."""
    if not argument.parts:
        return argument.value
    parts: dict[str, list[Any]] = {}
    for part in argument.parts:
        parts.setdefault(part.name, []).append(_said(part))
    return parts


def acting(verb: Verb) -> Function:
    """The operation that carries out a verb at an instance, and answers with how it stands after that."""

    async def operation(call: Call) -> Answer:
        assert call.type is not None
        assert call.id is not None
        said: dict[str, list[Any]] = {}
        for argument in call.arguments:
            said.setdefault(argument.name, []).append(_said(argument))
        stored = await act(call.store, verb, call.type, call.id, said, if_version=call.if_version)
        return Answer(stored.body, headers={"ETag": f'W/"{stored.version}"'})

    return operation
