"""The page of what happens by itself is the list in reactions.py, word for word."""

import re
from pathlib import Path
from types import SimpleNamespace

from fhircm.coordination import assigning, changing_hands, escalation, open_loops, provenance, referral
from fhircm.coordination.discharge import follow as discharging
from fhircm.coordination.longitudinal import follow as longitudinal
from fhircm.coordination.transition import flags, notices, receiving
from fhircm.coordination.transition import follow as transition
from fhircm.exchange import directory, identity, merge
from fhircm.fhir.definitions import definitions
from fhircm.jobs import exported
from fhircm.reactions import reactions, timer_handlers

PAGE = Path(__file__).parent.parent / "docs/reference/reactions.md"
AROUND = SimpleNamespace(store=None, organization="x", neighbours=())


def first_sentence(function):
    return " ".join(function.func.__doc__.split("\n\n")[0].split())


def test_the_page_lists_exactly_the_reactions_and_timers():
    documented = re.findall(r"^\| `([\w-]+)` \| (.*?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    listed = [(one.name, ", ".join(sorted(one.types)), first_sentence(one.function)) for one in reactions(AROUND)]
    rung = [(one.kind, "a timer", first_sentence(one.function)) for one in timer_handlers(AROUND)]
    assert documented == listed + rung


def test_every_reaction_is_of_types_that_there_are_and_every_workflow_is_listed():
    listed = {one.function.func for one in (*reactions(AROUND), *timer_handlers(AROUND))}
    assert listed == {
        transition.follow,
        flags.follow,
        flags.look_again,
        notices.follow,
        receiving.follow,
        referral.follow,
        assigning.follow,
        changing_hands.follow,
        changing_hands.over,
        discharging.follow,
        discharging.look_again,
        escalation.watch,
        escalation.overdue,
        open_loops.check,
        longitudinal.mark,
        longitudinal.remake,
        provenance.record,
        identity.link_person,
        merge.follow,
        merge.carry_on,
        directory.enlist,
        exported.expire,
    }
    assert all(one.types <= definitions().resource_types for one in reactions(AROUND))
