"""The review queue: one Task for each pair of Patients that a human must judge, and what humans said.

https://hl7.org/fhir/R4/task.html. A human answers a `possible-match` Task by completing it with an output of type `match-decision`, valueCode
`same` or `different`. That holds while the Task is there, also when the records change; a newer Task of the pair takes it back. A pair that was
decided is asked about again only when something speaks against the answer that did not when it was given: until that is answered, too,
the old word stands. A Task tells levels of agreement, never values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fhircm.exchange import human
from fhircm.exchange.linkage import Linkage, Pair, ordered
from fhircm.exchange.matching import Match
from fhircm.fhir.invariants import modified
from fhircm.fhir.query import parse_query
from fhircm.fhir.systems import COORDINATION
from fhircm.fhir.validation import check_tree
from fhircm.store.resources import Op, Put, SetState, Store, Stored

CODE, DISPLAY = "possible-match", "Decide whether two records are of one person"
CARRIED = "match-decision"  # namespace of answers that came with a merge: their Task is about the record that was given up
EVIDENCE, SCORE, DECISION = "match-evidence", "match-score", "match-decision"
_OPEN = "ready,in-progress,on-hold"
_MANY = 200  # open questions about one record that are looked at
_AT_ONCE = 4  # Tasks of one pair that are read together
_LONGEST = 200  # and at most in all
URGENT = 30.0  # bits, from which a question goes before others: it is nearly sure, and news wait for it


def answer(task: dict[str, Any]) -> str | None:
    """What a human decided in a completed possible-match Task: same or different."""
    if task["status"] != "completed" or _code(task) != CODE:
        return None
    said = (
        entry.get("valueCode")
        for entry in task.get("output", [])
        if any(coding.get("code") == DECISION for coding in entry["type"].get("coding", []))
    )
    return next((code for code in said if code in ("same", "different")), None)


def _code(task: dict[str, Any]) -> str | None:
    codings = task.get("code", {}).get("coding", [])
    return next((coding.get("code") for coding in codings if coding.get("system") == COORDINATION), None)


def pair_of(task: dict[str, Any]) -> list[str]:
    """The two Patients that a Task is about: one is its focus, one it is for. Both can be searched by."""
    references = (task.get(element, {}).get("reference", "") for element in ("for", "focus"))
    return [reference.removeprefix("Patient/") for reference in references if reference.startswith("Patient/")]


async def tasks(store: Store, pairs: Iterable[Pair]) -> dict[Pair, list[Stored]]:
    """Every Task of each pair, the oldest first."""
    found: dict[Pair, list[Stored]] = {pair: [] for pair in pairs}
    waiting, begin = list(found), 0
    while waiting and begin < _LONGEST:
        ids = {pair: [_id(pair, number) for number in range(begin, begin + _AT_ONCE)] for pair in waiting}
        there = await store.read_many([("Task", id) for listed in ids.values() for id in listed])
        for pair, listed in ids.items():
            found[pair] += [there["Task", id] for id in listed if ("Task", id) in there]
        waiting = [pair for pair, listed in ids.items() if ("Task", listed[-1]) in there]
        begin += _AT_ONCE
    return found


def _id(pair: Pair, number: int) -> str:
    return human.stable_id(CODE, *pair, *([str(number)] if number else []))


async def decisions(store: Store, pairs: Sequence[Pair]) -> dict[Pair, str]:
    """What humans last said of these pairs."""
    known = await tasks(store, pairs) if pairs else {}
    last = {pair: _last(listed) for pair, listed in known.items()}
    said = {pair: said for pair, task in last.items() if task is not None and (said := answer(task))}
    carried = await store.states_of(CARRIED, ["/".join(pair) for pair in pairs if pair not in said])
    return said | {pair: row["said"] for pair in pairs if (row := carried.get("/".join(pair)))}


def carry(pair: Pair, said: str) -> SetState:
    """What was said of a record that was merged into one of these two goes for that one."""
    return SetState(CARRIED, "/".join(pair), {"said": said})


def _last(listed: Sequence[Stored]) -> dict[str, Any] | None:
    return next((tree for stored in reversed(listed) if answer(tree := stored.tree)), None)


async def questions(store: Store, linkage: Linkage, among: set[str], start: Sequence[str], owner: str | None) -> list[Op]:
    """Ask a human about every uncertain pair; take a question back that settled itself."""
    together = {id: number for number, group in enumerate(linkage.groups(among)) for id in group}
    operations: list[Op] = []
    for pair, match in sorted(linkage.matches.items()):
        a, b = pair
        if linkage.sources[a] == linkage.sources[b]:
            continue
        if said := linkage.decisions.get(pair):
            operations += await _again(store, pair, match, said, owner)
        elif a in together and together[a] == together.get(b):
            operations += await human.take_back(store, (CODE, *pair), "The records were linked since")
        else:
            operations += await _ask(store, pair, match, _reason(match), owner)
    return [*operations, *await _settled(store, linkage, start)]


async def _ask(store: Store, pair: Pair, match: Match, reason: str, owner: str | None) -> list[Put]:
    """Open the Task of a pair, or tell the open one what is known now."""
    told = evidence(match)
    found, id = await human.latest(store, CODE, *pair)
    if found is not None and found.id == id:
        tree = found.tree
        if (tree.get("reasonCode", {}).get("text"), tree.get("input")) == (reason, told):
            return []
        tree |= {"reasonCode": {"text": reason}, "input": told, "priority": _priority(match)}
        tree["lastModified"] = modified(tree, human.instant(store.clock()))
        return [Put(check_tree(tree), if_version=found.version)]
    a, b = (f"Patient/{one}" for one in pair)
    tree = human.task(id, CODE, DISPLAY, reason, focus=b, patient=a, owner=owner, at=store.clock())
    return [Put(check_tree({**tree, "input": told, "priority": _priority(match)}), if_version=0)]


def _priority(match: Match) -> str:
    return "urgent" if match.score >= URGENT else "routine"


def evidence(match: Match) -> list[dict[str, Any]]:
    """What is known of a pair as inputs of a Task: bits, the level of each element, and what forbids a link."""
    told = [f"{field}: {level}" for field, level in sorted(match.levels.items())] + [
        f"{field}: forbids" for field in match.vetoes
    ]
    score = {"type": human.concept(SCORE, "Bits of evidence that they are one person"), "valueString": f"{match.score:.1f}"}
    return [score, *({"type": human.concept(EVIDENCE, "How far an element agrees"), "valueString": one} for one in told)]


async def _again(store: Store, pair: Pair, match: Match, said: str, owner: str | None) -> list[Op]:
    """Ask once more when something speaks against the answer that did not when it was given; else end what is open."""
    listed = (await tasks(store, [pair]))[pair]
    last = _last(listed) or {}
    before = {entry.get("valueString", "") for entry in last.get("input", [])}
    against = _against(match, said)
    new = sorted(against - before)
    if before and new:
        answered = "one person" if said == "same" else "two people"
        reason = f"A human said that they are {answered}; since then this speaks against it: {', '.join(new)}. Until it is answered that stands"
        return list(await _ask(store, pair, match, reason, owner))
    return list(await human.take_back(store, (CODE, *pair), "It was decided"))


def _against(match: Match, said: str) -> set[str]:
    """What speaks against an answer, in the words of `evidence`."""
    if said == "same":
        told = {f"{field}: forbids" for field in match.vetoes}
        contrary = {"given": ("differs", "conflict"), "birth-date": ("differs",)}
        return told | {f"{field}: {level}" for field, levels in contrary.items() if (level := match.levels.get(field)) in levels}
    return {"personal-id: same"} if match.levels.get("personal-id") == "same" and not match.vetoes else set()


def _reason(match: Match) -> str:
    """Why a human is asked: names of elements only."""
    if match.vetoes:
        return f"Nearly everything agrees, but {', '.join(match.vetoes)} contradict each other"
    if match.decision == "link":
        return "The records match, but so does another record of the same partner, or one that contradicts: which is it?"
    agree = ", ".join(sorted(field for field, level in match.levels.items() if level == "same"))
    rest = ", ".join(f"{field} ({level})" for field, level in sorted(match.levels.items()) if level != "same")
    return f"The same: {agree or 'nothing'}. Not surely: {rest or 'nothing else is known'}"


async def _settled(store: Store, linkage: Linkage, start: Sequence[str]) -> list[Op]:
    """Take back the questions about the changed Patients for which nothing speaks any more."""
    open = {pair for id in start for pair in await asked(store, id)}
    operations: list[Op] = []
    for pair in sorted(open - linkage.matches.keys()):
        operations += await human.take_back(store, (CODE, *pair), "The records no longer resemble each other")
    return operations


async def asked(store: Store, id: str) -> set[Pair]:
    """The pairs of a Patient about which a question is open."""
    found = [stored for element in ("focus", "patient") for stored in await waiting(store, [(element, f"Patient/{id}")])]
    return {ordered(pair[0], pair[1]) for stored in found if len(pair := pair_of(stored.tree)) == 2}


async def partners_of(store: Store, id: str) -> set[str]:
    """The other Patients of every question about this one that is open or was answered."""
    found = [
        stored
        for element in ("focus", "patient")
        for stored in await waiting(store, [(element, f"Patient/{id}")], status=f"{_OPEN},completed")
    ]
    return {other for stored in found for other in pair_of(stored.tree)} - {id}


async def waiting(store: Store, more: Sequence[tuple[str, str]] = (), *, status: str = _OPEN) -> list[Stored]:
    """Questions that are open, at most so many."""
    parameters = [*more, ("code", f"{COORDINATION}|{CODE}"), ("status", status), ("_count", str(_MANY))]
    return list((await store.search(parse_query("Task", parameters))).matches)


async def decide(store: Store, pair: Pair, said: str, match: Match, owner: str | None, *, who: str) -> Stored:
    """Say of a pair that they are `same` or `different`, on its open Task or a new one; it goes through the states that people use."""
    for put in await _ask(store, pair, match, f"{who} looks at it", owner):
        await store.transact([put], origin="hub")
    found, _ = await human.latest(store, CODE, *pair)
    if found is None:  # _ask has just made it
        raise AssertionError("unreachable")
    output = {"type": human.concept(DECISION, "What a human decided about a possible match"), "valueCode": said}
    for members in (
        {"status": "in-progress"},
        {"status": "completed", "output": [output], "note": [{"text": f"Decided by {who}"}]},
    ):
        tree = {**found.tree, **members, "lastModified": modified(found.tree, human.instant(store.clock()))}
        (found,) = await store.transact([Put(check_tree(tree), if_version=found.version)], origin="hub")
    return found
