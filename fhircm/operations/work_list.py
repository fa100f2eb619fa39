"""Task/$worklist and Task/$claim-next: the open Tasks of a person or a role, each with when it is due, whose it is, what comes next and why it is there.

https://hl7.org/fhir/R4/task.html. The answer is a Bundle of the Tasks as they are stored; what is known of a line besides stands in an
extension of its `search` element, and the Patients and RiskAssessments that it names come along. docs/explanation/work-list.md
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from fhircm.coordination import claiming
from fhircm.coordination.claiming import lease_said, whoever
from fhircm.coordination.codes import BASE
from fhircm.coordination.worklist import WHY, Line, lines, lists_of
from fhircm.fhir.conditions import Condition, InvalidValue
from fhircm.fhir.query import MAX_COUNT, parse_query
from fhircm.fhir.ranges import date_range
from fhircm.fhir.systems import ROLE
from fhircm.fhir.work_list import OPEN, PRIORITIES, RISKS
from fhircm.operations.call import Call, Entry, Searchset
from fhircm.store.stored import instant, micros
from fhircm.store.work_list import SORTS, WorkQuery

LINE = f"{BASE}/StructureDefinition/work-line"
_PLACE = "Task/$worklist"
_NEXT = "Task/$claim-next"
_MOST_CLAIMED = 100
_COUNT = 20
_NOT_KNOWN = "unknown"  # as a risk


async def work_list(call: Call) -> Searchset:
    """A page of the list. Raises Forbidden, NotSupported, InvalidValue, Malformed."""
    given = [(one.name, _written(one.value)) for one in call.arguments]
    after, now = None, micros(call.store.now)
    if (token := call.one("_page")) is not None:
        given, state = call.links.read(_PLACE, token)
        after, now = tuple(state["after"]), state["now"]  # overdue, and what is hidden, is of the moment of the first page
    query = asked(call, given, after, now)
    page = await lines(call.store, query)
    url = f"{call.base_url}/{_PLACE}"
    following = call.links.write(_PLACE, given, {"after": page.next, "now": now}) if page.next else None
    return Searchset(
        _entries(page.lines),
        self_url=f"{url}?{urlencode(given)}" if given else url,
        next_url=f"{url}?_page={following}" if following else None,
        total=len(page.lines) if after is None and not page.next else None,
    )


async def claim_next(call: Call) -> Searchset:
    """The Tasks that were claimed, in the order of the list. Raises Forbidden, NotSupported, InvalidValue."""
    who, lease = whoever(call.store.principal, call.one("owner")), lease_said(call.one("lease"))
    given = [(one.name, _written(one.value)) for one in call.arguments if one.name not in ("owner", "lease", "count")]
    count = call.one("count", 1)
    if count > _MOST_CLAIMED:
        raise InvalidValue(f"'count' takes at most {_MOST_CLAIMED}: what nobody has time for is left to others")
    query = asked(call, [*given, ("why", "role"), ("_count", str(count))], None, micros(call.store.now))
    if not call.all("role") and not call.all("organization"):  # what an organisation has to do is there for anybody of it, too
        query = replace(query, lists=(*query.lists, *lists_of(call.store.principal, why="organization")[0]))
    claimed = await claiming.claim_next(call.store, query, who, lease)
    return Searchset([Entry(one, {"mode": "match"}) for one in claimed], self_url=f"{call.base_url}/{_NEXT}", total=len(claimed))


def asked(call: Call, given: Iterable[tuple[str, str]], after: tuple[int, ...] | None, now: int) -> WorkQuery:
    """The query that these parameters mean."""
    said: dict[str, list[str]] = {}
    for name, value in given:
        said.setdefault(name, []).extend(value.split(",") if name not in ("due-before", "due-after") else [value])
    why = _one_of(said, "why", tuple(WHY))
    names, reasons = lists_of(
        call.store.principal,
        [_reference(one) for one in said.get("owner", ())],
        [_token(one) for one in said.get("role", ())],
        [_reference(one, "Organization") for one in said.get("organization", ())],
        next(iter(why), None),
    )
    low, high = (_moment(said, name) for name in ("due-after", "due-before"))
    if said.get("overdue") == ["true"]:
        high = min(now + 1, high if high is not None else now + 1)
    count = int(said.get("_count", [str(_COUNT)])[0])
    if count < 1:
        raise InvalidValue("'_count' takes a whole number of 1 or more")
    sort = next(iter(_one_of(said, "_sort", tuple(SORTS))), "due")
    return WorkQuery(
        names,
        now,
        sort,
        min(count, MAX_COUNT),
        (low, high),
        tuple(PRIORITIES.index(one) for one in _one_of(said, "priority", PRIORITIES)),
        tuple((*RISKS, _NOT_KNOWN).index(one) for one in _one_of(said, "risk", (*RISKS, _NOT_KNOWN))),
        _one_of(said, "status", OPEN),
        tuple(_reference(one, "Patient").removeprefix("Patient/") for one in said.get("patient", ())),
        reasons,
        said.get("hidden") == ["true"],
        _coded(said.get("code", [])),
        after,
    )


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one_of(said: dict[str, list[str]], name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(said.get(name, ()))
    if wrong := [one for one in found if one not in known]:
        raise InvalidValue(f"'{name}' does not take '{wrong[0][:64]}'; it takes: {', '.join(known)}")
    return found


def _reference(text: str, type: str | None = None) -> str:
    reference = text if "/" in text or type is None else f"{type}/{text}"
    if reference.count("/") != 1 or (type and not reference.startswith(f"{type}/")):
        raise InvalidValue(f"'{text[:64]}' is not a reference such as {type or 'Practitioner'}/123")
    return reference


def _token(text: str) -> tuple[str, str]:
    """A role: of the hub's own without a system."""
    system, bar, code = text.rpartition("|")
    return (system, code) if bar else (ROLE, text)


def _moment(said: dict[str, list[str]], name: str) -> int | None:
    try:
        return date_range(said[name][0])[0] if name in said else None
    except ValueError as error:
        raise InvalidValue(f"'{name}' takes a date or time: this is {error}") from None


def _coded(codes: list[str]) -> tuple[Condition, ...]:
    return parse_query("Task", [("code", ",".join(codes))]).conditions if codes else ()


# --- the answer


def _entries(found: list[Line]) -> list[Entry]:
    """The Tasks, and what they name: each once."""
    along = {f"{one.type}/{one.id}": one for line in found for one in (line.patient, line.risk[1] if line.risk else None) if one}
    matches = [Entry(line.task, {"mode": "match", "extension": [_told(line)]}) for line in found]
    return [*matches, *(Entry(one, {"mode": "include"}) for one in along.values())]


def _told(line: Line) -> dict[str, Any]:
    """What is known of a line, as an extension of parts."""
    parts: list[dict[str, Any]] = []

    def say(name: str, kind: str, value: Any) -> None:
        if value is not None:
            parts.append({"url": name, f"value{kind}": value})

    say("due", "Instant", instant(line.due) if isinstance(line.due, datetime) else None)
    say("overdue", "Boolean", line.overdue)
    say("priority", "Code", line.priority)
    if line.risk:
        say("risk", "Code", line.risk[0])
        say("risk-basis", "Reference", {"reference": f"RiskAssessment/{line.risk[1].id}"})
    say("patient", "String", line.patient_name)
    say("step", "String", line.step)
    for status in line.next:
        say("next", "Code", status)
    for why in line.why:
        say("why", "Code", why)
    say("claimed-by", "Reference", line.claimed)
    say("claimed-until", "Instant", line.until)
    return {"url": LINE, "extension": parts}
