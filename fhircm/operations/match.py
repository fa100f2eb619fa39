"""$match: which Patients a description could mean, each human once, the likeliest first.

https://hl7.org/fhir/R4/patient-operation-match.html and https://hl7.org/fhir/R4/extension-match-grade.html. The hub judges as it does when
it links the records of its partners: fhircm/exchange/matching.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhircm.exchange.candidates import BLOCK, wider_blocks
from fhircm.exchange.features import features, tables
from fhircm.exchange.matching import Match, compare
from fhircm.fhir.conditions import IdTest, InvalidValue, Matches
from fhircm.fhir.outcome import FhirError
from fhircm.fhir.query import Query, parse_query
from fhircm.operations.call import Call, Entry, Searchset
from fhircm.operations.linked import joined
from fhircm.store.stored import Stored

DEFAULT_COUNT, MAX_COUNT = 20, 100
GRADE = "http://hl7.org/fhir/StructureDefinition/match-grade"
# A grade's scores: the higher grade always comes first.
_SCORES = {"certain": (0.9, 1.0), "probable": (0.6, 0.8999), "possible": (0.0, 0.5999)}


class TooThin(FhirError):
    """The description says too little of anybody."""

    status, code = 400, "required"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A Patient that could be meant."""

    stored: Stored
    match: Match
    replaced: bool


async def match(call: Call) -> Searchset:
    """The Patients that match, one for each human."""
    call.store.principal.require("r", "Patient")
    tree = call.one("resource")
    if tree["resourceType"] != "Patient":
        raise InvalidValue("'resource' takes a Patient")
    limit = call.one("count", DEFAULT_COUNT)
    if limit < 1:
        raise InvalidValue("'count' takes a whole number of 1 or more")
    humans = await _humans(call, await _candidates(call, tree))
    links = sum(best.match.decision == "link" for best in humans)
    graded = [(grade, best) for best in humans if (grade := _grade(best.match, links))]
    if call.one("onlyCertainMatches", False):
        graded = [(grade, best) for grade, best in graded if grade == "certain"]
    entries = [Entry(best.stored, _search(grade, best.match)) for grade, best in graded]
    entries.sort(key=lambda entry: (-entry.search["score"], entry.stored.id))
    return Searchset(entries[: min(limit, MAX_COUNT)], self_url=f"{call.base_url}/Patient/$match", total=len(entries))


async def _candidates(call: Call, tree: dict[str, Any]) -> dict[str, _Candidate]:
    """Everybody that one of the searches finds and who is not surely another. Raises TooThin."""
    this = features(tree)
    searches = wider_blocks(tree, this)
    if not searches:
        raise TooThin(
            "Give a birth date, an identifier with its system, family and given name, a phone number or an e-mail address"
        )
    found: dict[str, _Candidate] = {}
    for block in searches:
        page = await call.store.search(parse_query("Patient", [*block, ("_count", str(BLOCK))]))
        for stored in page.matches:
            if stored.id not in found:
                found[stored.id] = _candidate(stored, compare(this, features(stored.tree)))
    return {id: one for id, one in found.items() if _grade(one.match, 1)}


def _candidate(stored: Stored, match: Match) -> _Candidate:
    links = stored.tree.get("link", [])
    return _Candidate(stored, match, any(link.get("type") == "replaced-by" for link in links))


async def _humans(call: Call, candidates: Mapping[str, _Candidate]) -> list[_Candidate]:
    """The best of those that are linked to each other; what was merged into another record stands for that one."""
    humans: list[_Candidate] = []
    for group in await joined(call.store, sorted(candidates)) if candidates else []:
        known = [candidates[id] for id in group if id in candidates]
        best = max(known, key=lambda one: (_rank(one.match), not one.replaced, one.stored.id))
        standing = [one for one in known if not one.replaced] or [one for one in await _others(call, group) if not one.replaced]
        if best.replaced and standing:
            kept = max(standing, key=lambda one: (one.match.score, one.stored.id))
            best = _Candidate(kept.stored, best.match, False)
        humans.append(best)
    return humans


async def _others(call: Call, group: set[str]) -> list[_Candidate]:
    """The records that a candidate is linked to, whom no search found."""
    page = await call.store.search(Query("Patient", (Matches("Patient", "_id", tuple(map(IdTest, sorted(group)))),), count=BLOCK))
    nothing = Match("distinct", 0.0, {}, (), None)
    return [_candidate(stored, nothing) for stored in page.matches]


def _rank(match: Match) -> tuple[int, float]:
    return ("distinct", "possible", "link").index(match.decision), match.score


def _grade(match: Match, links: int) -> str | None:
    """The grade, None for somebody else; `links`: how many humans match so well that each could be linked."""
    decision = tables()["decision"]
    if match.decision == "link":
        return "certain" if links == 1 else "probable"
    if match.vetoes:
        return "possible" if match.decision == "possible" else None
    if match.decision == "possible" and match.score >= decision["link"]:
        return "probable"
    return "possible" if match.score >= decision["possible"] else None


def _search(grade: str, match: Match) -> dict[str, Any]:
    """The search element. The score grows with the evidence, and stays within those of its grade."""
    decision = tables()["decision"]
    middle = (decision["possible"] + decision["link"]) / 2
    low, high = _SCORES[grade]
    score = min(max(1 / (1 + 2 ** ((middle - match.score) / 2)), low), high)
    return {"extension": [{"url": GRADE, "valueCode": grade}], "mode": "match", "score": round(score, 4)}
