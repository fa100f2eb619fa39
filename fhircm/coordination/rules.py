"""THE list of what every write of coordination must obey, over every way in: REST, bundles, operations, pulls, messages, loads.

To add a rule: a function in `coordination/` that takes a Write and raises what is wrong, its WriteRule, and a line here.
"""

from __future__ import annotations

from fhircm.coordination import addressed, claims, correlation, distribution, pausing, plausible, task_states
from fhircm.coordination.transition import receiving
from fhircm.store.operations import WriteRule

RULES: tuple[WriteRule, ...] = (
    plausible.RULE,
    claims.RULE,  # before who takes a step: who works the Task is the better answer
    task_states.RULE,
    addressed.RULE,
    distribution.RULE,
    pausing.RULE,
    receiving.RULE,
    correlation.RULE,
)
