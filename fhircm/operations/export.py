"""$export: start a Bulk Data export of everything, of all Patients, or of the members of a Group.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-kick-off-request. GET with lists separated by commas (2.0.0) and POST with
repeated parameters (the later drafts) mean the same. With `Prefer: handling=lenient` what this server does not have is passed over, and the
manifest's error files tell what; without `Prefer: respond-async` an export is started all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from fhircm.access.principal import written
from fhircm.fhir.conditions import VALUES_LIMIT
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import Forbidden, Invalid, NotFound, NotSupported
from fhircm.fhir.query import parse_query
from fhircm.fhir.ranges import date_range
from fhircm.fhir.references import parse_reference
from fhircm.fhir.schema import children
from fhircm.jobs.export import ASSOCIATED, Request, compartment_types, start_export
from fhircm.operations.call import Answer, Call
from fhircm.store.stored import micros

_FORMATS = frozenset({"application/fhir+ndjson", "application/ndjson", "ndjson"})
_NEXT_FILTER = re.compile(r",(?=[A-Za-z]+\?)")  # a comma elsewhere belongs to a value
_ABOUT_THE_ANSWER = ("_sort", "_count", "_total", "_summary", "_elements", "_include", "_revinclude")
_LATEST = micros(datetime(9999, 12, 31, tzinfo=UTC))  # nothing here is older than computers, or younger than this
_LEVELS = {None: "system", "Patient": "patient", "Group": "group"}


async def export(call: Call) -> Answer:
    """Check what is asked, and start the job. Raises NotSupported, Invalid, Forbidden, NotFound, TooManyExports."""
    asked = _Asked(call)
    format = call.one("_outputFormat", "ndjson").replace(" ", "+")  # a + that was not escaped
    if format not in _FORMATS:
        raise NotSupported(f"_outputFormat may be: {', '.join(sorted(_FORMATS))}")
    types = asked.types()
    filters = list(asked.filters(types))
    elements = asked.elements(types)
    for _ in call.all("includeAssociatedData"):
        asked.pass_over("The parameter 'includeAssociatedData' has no value that this server supports")
    since, until = asked.time("_since"), asked.time("_until")
    patients = await _patients(call)
    request = Request(
        f"{call.base_url}/{asked.where}$export" + (f"?{query}" if (query := call.url.partition("?")[2]) else ""),
        asked.level,
        types,
        written(call.store.principal),
        since,
        until,
        filters,
        elements,
        issues=asked.issues,
    )
    id = await start_export(call.store.store, call.store.principal.account, request, patients)
    return Answer(status=202, headers={"Content-Location": f"{call.base_url}/$export-status/{id}"})


class _Asked:
    """The parameters of a call as they are understood; `issues` gather what a lenient caller is told instead of being refused."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.level = _LEVELS[call.type]
        self.where = "".join(f"{part}/" for part in (call.type, call.id) if part)
        self.issues = [f"$export has no parameter '{name[:64]}'" for name in call.ignored]

    def pass_over(self, text: str) -> None:
        """Raises NotSupported, unless the caller is lenient."""
        if not self.call.lenient:
            raise NotSupported(text)
        self.issues.append(text)

    def _listed(self, name: str) -> list[str]:
        return [part.strip() for text in self.call.all(name) for part in text.split(",") if part.strip()]

    def types(self) -> list[str]:
        """The types to export: those that are asked for, else all that the caller may read and search but AuditEvents. Raises Forbidden."""
        known = definitions().resource_types
        possible = known if self.level == "system" else compartment_types() | set(ASSOCIATED)
        principal = self.call.store.principal
        named = self._listed("_type")
        if not named:
            unasked = possible - {"AuditEvent"}  # who looked at a record is no part of it
            allowed = sorted(type for type in unasked if principal.may("r", type) and principal.may("s", type))
            if not allowed:
                raise Forbidden("To export, the token needs a scope such as system/*.rs")
            return allowed
        types: list[str] = []
        for type in dict.fromkeys(named):
            if type not in known:
                self.pass_over(f"'{type[:64]}' is not a resource type of FHIR R4")
            elif type not in possible:
                self.pass_over(f"{type} belongs to no Patient; it can be exported at the system level")
            else:
                for verb in "rs":
                    principal.require(verb, type)
                types.append(type)
        if not types or (self.level != "system" and not set(types) - set(ASSOCIATED)):
            raise NotSupported("_type names nothing that can be exported here")
        return types

    def filters(self, types: Sequence[str]) -> Iterable[tuple[str, str]]:
        """The searches of _typeFilter, each as its type and its query. Raises InvalidValue."""
        for text in (one.strip() for given in self.call.all("_typeFilter") for one in _NEXT_FILTER.split(given)):
            type, _, query = text.partition("?")
            if type not in types:
                self.pass_over("_typeFilter takes searches such as Condition?code=… in types that are exported")
                continue
            try:
                _require_plain(type, query, self.call.base_url)
            except NotSupported as error:
                self.pass_over(f"_typeFilter: {error}")
            else:
                yield type, query

    def elements(self, types: Sequence[str]) -> list[str] | None:
        """The elements of _elements, that some of the types have; None when all are wanted."""
        named = self._listed("_elements")
        for name in list(named):
            of, _, element = name.rpartition(".")
            if of not in ("", *types) or not any(element in children(type) for type in ([of] if of else types)):
                self.pass_over(f"_elements: no type that is exported has the element '{name[:64]}'")
                named.remove(name)
        return named or None

    def time(self, name: str) -> int | None:
        """A time in microseconds since the epoch. Raises Invalid."""
        text = self.call.one(name)
        if text is None:
            return None
        try:
            low, _ = date_range(text.replace(" ", "+"))  # a + that was not escaped
            return min(max(low, 0), _LATEST)
        except ValueError:
            raise Invalid(f"The parameter '{name}' must be an instant such as 2026-03-02T15:00:00Z", name) from None


def _require_plain(type: str, query: str, base_url: str) -> None:
    """Raises NotSupported for a search that says how its answer is written, InvalidValue for one that cannot be read."""
    parameters = parse_qsl(query, keep_blank_values=True)
    for name, _ in parameters:
        if name.partition(":")[0] in _ABOUT_THE_ANSWER:
            raise NotSupported(f"'{name[:64]}' says how an answer is written, and an export is none")
    parse_query(type, parameters, base_url=base_url)


async def _patients(call: Call) -> list[str] | None:
    """The ids of the Patients whose records are exported; None: all that there are. Raises NotFound, Forbidden, NotSupported."""
    named = [_patient(one) for one in call.all("patient")]
    if call.type == "Group":
        assert call.id
        members = await _members(call, call.id)
        foreign = [id for id in named if id not in members]
        if foreign:
            raise NotSupported(f"The Group has no such member: {', '.join(f'Patient/{id}' for id in foreign[:5])}")
        return named or members
    if not named:
        return None
    missing = set(named) - await _existing(call, named)
    if missing:
        raise NotSupported(f"There is no such Patient: {', '.join(f'Patient/{id}' for id in sorted(missing)[:5])}")
    return named


def _patient(reference: Any) -> str:
    to = parse_reference(reference.get("reference", ""))
    if to.kind != "local" or to.type != "Patient" or not to.id or to.version:
        raise Invalid("The parameter 'patient' must refer to a Patient as Patient/ID", "patient")
    return to.id


async def _existing(call: Call, ids: Sequence[str]) -> set[str]:
    """Those that there are and that the caller may find."""
    found: set[str] = set()
    for start in range(0, len(ids), VALUES_LIMIT):
        chunk = ids[start : start + VALUES_LIMIT]
        query = parse_query("Patient", [("_id", ",".join(chunk)), ("_count", str(len(chunk)))])
        found |= {one.id for one in (await call.store.search(query)).matches}
    return found


async def _members(call: Call, id: str) -> list[str]:
    """The Patients of a Group and of the Groups that are its members, without those who are no members any more."""
    patients: dict[str, None] = {}
    waiting, seen = [id], {id}
    while waiting:
        try:
            group = (await call.store.read("Group", waiting.pop())).tree
        except NotFound:
            if not seen - {id}:
                raise
            continue
        for member in group.get("member", []):
            to = parse_reference(member["entity"].get("reference", ""))
            if to.kind != "local" or not to.id or not _is_member(call, member):
                continue
            if to.type == "Patient":
                patients[to.id] = None
            elif to.type == "Group" and to.id not in seen:
                seen.add(to.id)
                waiting.append(to.id)
    return list(patients)


def _is_member(call: Call, member: dict[str, Any]) -> bool:
    ended = member.get("period", {}).get("end")
    now: datetime = call.store.store.clock()
    return not member.get("inactive", False) and (ended is None or date_range(ended)[1] > micros(now))
