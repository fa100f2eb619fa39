"""THE list: what happens by itself when a resource of a type changes, and what happens when a timer is due.

To add a workflow rule: write a function in `coordination/` and give it a line here. A reaction takes a change and returns operations;
the worker commits them (docs/decisions/reactions-return-operations.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from fhircm.coordination import assigning, changing_hands, escalation, open_loops, provenance, referral
from fhircm.coordination.context import Context
from fhircm.coordination.discharge import arrange as discharge
from fhircm.coordination.discharge import follow as discharging
from fhircm.coordination.longitudinal import follow as longitudinal
from fhircm.coordination.transition import flags, notices, receiving
from fhircm.coordination.transition import follow as transition
from fhircm.exchange import directory, identity, merge
from fhircm.jobs import export, exported
from fhircm.store.resources import Change, Op, Plan, Timer


@dataclass(frozen=True, slots=True)
class Reaction:
    """A function that runs on every change of some types, from a cursor of its own."""

    name: str
    types: frozenset[str]
    function: Callable[[Change], Awaitable[list[Op] | Plan]]


@dataclass(frozen=True, slots=True)
class TimerHandler:
    """A function that runs when a timer of its kind is due."""

    kind: str
    function: Callable[[Timer], Awaitable[list[Op]]]


# name of the cursor: resource types, and the function bound to what it may look at
REACTIONS: dict[str, tuple[str, Callable[[Context], Callable[[Change], Awaitable[list[Op] | Plan]]]]] = {
    "identity": (
        "Patient Task",
        lambda context: partial(
            identity.link_person,
            context.store,
            owner=f"Organization/{context.organization}",
            thresholds={one.base_url: one.linking for one in context.neighbours if one.linking},
        ),
    ),
    "merge": (
        merge.types(),
        lambda context: partial(merge.follow, context.store, owner=f"Organization/{context.organization}"),
    ),
    "directory": (
        " ".join([*directory.TYPES, "Task"]),
        lambda context: partial(directory.enlist, context.store, owner=f"Organization/{context.organization}"),
    ),
    "transition": (
        "Communication DeviceRequest Encounter Patient Person ServiceRequest Task",
        lambda context: partial(transition.follow, context),
    ),
    "flags": ("Encounter Patient Person", lambda context: partial(flags.follow, context)),
    "transition-document": ("Bundle Task", lambda context: partial(receiving.follow, context)),
    "notices": ("CareTeam Encounter EpisodeOfCare Patient Person", lambda context: partial(notices.follow, context)),
    "referral": (" ".join(sorted(referral.TYPES)), lambda context: partial(referral.follow, context)),
    "discharge": (discharging.TYPES, lambda context: partial(discharging.follow, context)),
    escalation.REACTION: ("Task", lambda context: partial(escalation.watch, context)),
    "assignment": ("PractitionerRole Task", lambda context: partial(assigning.follow, context)),
    "claims": ("Task", lambda context: partial(changing_hands.follow, context)),
    "longitudinal": (
        "CarePlan CareTeam Condition Goal Patient Person Practitioner PractitionerRole ServiceRequest Task",
        lambda context: partial(longitudinal.mark, context),
    ),
    "provenance": (
        "Task ServiceRequest Appointment CarePlan Goal CareTeam Communication Encounter DocumentReference Person RiskAssessment",
        lambda context: partial(provenance.record, context),
    ),
}

TIMERS: dict[str, Callable[..., Awaitable[list[Op]]]] = {
    changing_hands.KIND: changing_hands.over,
    escalation.KIND: escalation.overdue,
    open_loops.KIND: open_loops.check,
    discharge.KIND: discharging.look_again,
    flags.KIND: flags.look_again,
    longitudinal.KIND: longitudinal.remake,
    export.EXPIRY: exported.expire,
    merge.KIND: merge.carry_on,
}


def reactions(context: Context) -> list[Reaction]:
    """The list, bound to what its functions may look at."""
    return [Reaction(name, frozenset(types.split()), bind(context)) for name, (types, bind) in REACTIONS.items()]


def timer_handlers(context: Context) -> list[TimerHandler]:
    """The handlers of timers, bound likewise."""
    return [TimerHandler(kind, partial(function, context)) for kind, function in TIMERS.items()]
