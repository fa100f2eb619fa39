"""What a data steward asks of two records, and says of them: the evidence in words, and the decision.

https://hl7.org/fhir/R4/person.html. Levels are told, never values: what is printed here may be copied into a ticket.
"""

from __future__ import annotations

from collections.abc import Mapping

from fhircm.exchange import review
from fhircm.exchange.identity import Surroundings, surroundings
from fhircm.exchange.linkage import Pair, ordered
from fhircm.exchange.matching import Thresholds
from fhircm.fhir.outcome import Invalid, NotFound
from fhircm.store.resources import Store, Stored

_VERDICT = {"link": "it links them", "possible": "it asks a human", "distinct": "it takes them for two people"}
_SAID = {"same": "they are one person", "different": "they are two people"}


async def explain(store: Store, a: str, b: str, thresholds: Mapping[str, Thresholds]) -> list[str]:
    """What speaks for and against two Patients being one person, a line each. Raises NotFound, Invalid for one and the same."""
    pair, around = await _around(store, a, b, thresholds)
    linkage = around.linkage
    match = linkage.judge(*pair)
    lines = [f"Patient/{id} is of {linkage.sources[id] or 'no partner'}" for id in pair]
    lines.append(f"{match.score:.1f} bits of evidence; by the records alone {_VERDICT[match.decision]}")
    lines += [f"  {field}: {level}" for field, level in sorted(match.levels.items())]
    lines += [f"  {field}: contradicts, which forbids a link" for field in match.vetoes]
    if said := linkage.decisions.get(pair):
        lines.append(f"A human said that {_SAID[said]}")
    rivals = [id for id in pair if linkage.linkable(*pair) and not linkage.sure(*pair)]
    if rivals:
        lines.append("Another record of one of the two partners matches as well, so a human must choose")
    together = any(set(pair) <= set(group) for group in around.groups())
    lines.append("They are linked" if together else "They are not linked")
    return lines


async def decide(
    store: Store, a: str, b: str, said: str, thresholds: Mapping[str, Thresholds], *, owner: str | None, who: str
) -> Stored:
    """Say that two Patients are `same` or `different`: the completed Task, which the reaction follows. Raises NotFound, Invalid."""
    pair, around = await _around(store, a, b, thresholds)
    if said == "same" and around.linkage.sources[pair[0]] == around.linkage.sources[pair[1]]:
        raise Invalid("Two records of one partner are merged there, not linked here")
    return await review.decide(store, pair, said, around.linkage.judge(*pair), owner, who=who)


async def _around(store: Store, a: str, b: str, thresholds: Mapping[str, Thresholds]) -> tuple[Pair, Surroundings]:
    first, second = (id.removeprefix("Patient/") for id in (a, b))
    if first == second:
        raise Invalid("Name two records")
    around = await surroundings(store, [first, second], thresholds)
    for id in (first, second):
        if id not in around.patients:
            raise NotFound(f"Patient/{id} is not known, or was merged into another record")
    return ordered(first, second), around
