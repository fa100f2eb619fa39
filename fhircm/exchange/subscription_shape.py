"""What a partner can notify of, and how: the section `subscriptions` of partner.yaml.

https://hl7.org/fhir/uv/subscriptions-backport/ for topics, https://hl7.org/fhir/R4/subscription.html for criteria that are searches. Most EHRs
have none of this; those that do differ in how they prove who they are, in what their event numbers count, and in what they can be asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import timedelta

from fhircm.exchange.yaml_keys import Keys
from fhircm.fhir.definitions import definitions

PATIENT = "{patient}"  # stands in a filter, or in a search, for a Patient's id: one Subscription for each patient


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing to be notified of. `criteria` is a topic's canonical URL or, as plain R4 has it, a search."""

    criteria: str
    filters: tuple[str, ...]  # of the topic, such as Encounter?patient=Patient/{patient}
    payload: str  # empty, id-only, full-resource; or none: plain R4, where the notification has no body
    types: tuple[str, ...]  # that a notification may be about

    @property
    def by_patient(self) -> bool:
        """Whether each patient has a Subscription of its own."""
        return any(PATIENT in one for one in (self.criteria, *self.filters))

    @property
    def mark(self) -> str:
        """Tells this topic from any other, and from itself once it was changed."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """The section."""

    topics: tuple[Topic, ...]
    proof: str = (
        "header"  # Subscription.channel.header; signature: X-Hub-Secret and X-Hub-Signature (WebSub); none: the secret address
    )
    running_numbers: bool = (
        True  # events are counted over the life of a Subscription; false: within each notification (athenahealth)
    )
    status: bool = True  # it has $status
    events: bool = True  # it has $events
    heartbeat: timedelta | None = timedelta(minutes=5)
    life: timedelta = timedelta(days=30)  # until `end`; renewed when a quarter is left
    check: timedelta = timedelta(minutes=15)  # between two looks at how it is


def read(keys: Keys) -> Subscriptions:
    """Read the section. Raises YamlWrong."""
    heartbeat = keys.number("heartbeat", int, 0, 86_400, 300)
    section = Subscriptions(
        topics=keys.each("topics", "a list of topics with criteria", _topic),
        proof=keys.choice("proof", ("header", "signature", "none"), "header"),
        running_numbers=keys.choice("event_numbers", ("running", "notification"), "running") == "running",
        status=keys.take("status", bool, "true or false", True),
        events=keys.take("events", bool, "true or false", True),
        heartbeat=timedelta(seconds=heartbeat) if heartbeat else None,
        life=timedelta(days=keys.number("days", float, 0.01, 3660, 30.0)),
        check=timedelta(seconds=keys.number("check", int, 10, 86_400, 900)),
    )
    if len({one.mark for one in section.topics}) != len(section.topics):
        keys.wrong("topics", "names one and the same topic twice")
    keys.done()
    return section


def _topic(keys: Keys) -> Topic:
    criteria = keys.text("criteria", "a topic's canonical URL, or a search such as Encounter?status=in-progress")
    filters = keys.take("filters", list, "a list of searches such as Encounter?patient=Patient/{patient}", [])
    payload = keys.choice("payload", ("empty", "id-only", "full-resource", "none"), "id-only")
    types = keys.take("types", list, "a list of R4 resource types", [])
    for number, one in enumerate(filters):
        if not isinstance(one, str) or re.search(r"\{(?!patient\})", one):
            keys.wrong(f"filters[{number}]", "must be a text with no other placeholder than {patient}")
    for number, type in enumerate(types):
        if type not in definitions().resource_types:
            keys.wrong(f"types[{number}]", "must be an R4 resource type such as Encounter")
    keys.done()
    return Topic(criteria, tuple(filters), payload, tuple(types))
