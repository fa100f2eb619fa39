"""Terminology from the store: what a computation needs, gathered on one connection, and conditions that speak of value sets, resolved.

https://hl7.org/fhir/R4/search.html#token. Artefacts are compiled once for each version: every question asks the database which version is
current, and reads only those that are new to this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

from fhircm.fhir import json
from fhircm.fhir.conditions import CodesTest, Condition, IdTest, InvalidValue, Matches, MemberTest, SubsumedTest, UriTest
from fhircm.fhir.outcome import TooCostly
from fhircm.fhir.query import Query
from fhircm.fhir.ranges import clip
from fhircm.fhir.terminology import builtin
from fhircm.fhir.terminology.artefacts import Artefact, CannotCompute, Canonical, canonical
from fhircm.fhir.terminology.code_system import compiled
from fhircm.fhir.terminology.expansion import Expansion, Members, expand
from fhircm.fhir.terminology.library import Library, Versions, Wanted, needs
from fhircm.store.database import Connection
from fhircm.store.operations import Narrowing
from fhircm.store.search_sql import Builder

KEPT_ARTEFACTS = 8_000_000  # bytes of bodies whose artefacts a process keeps compiled: some 40 MB of memory
KEPT_MEMBERS = 50_000  # members of expansions that it keeps, and as many codes that searches looked for: some 20 MB
GATHERED = 2_000  # artefacts of the store that one computation may need
GATHERED_BYTES = 20_000_000  # of their bodies: some 100 MB of memory
SEARCHED = 20_000  # codes of a value set that a search looks for
SEARCHED_TOGETHER = 100_000  # codes that one search looks for

Version = tuple[int, int]  # key of a resource, and number of its version
Unresolved = MemberTest | SubsumedTest


class Kept:
    """The last used of what was made, as much as its weight allows."""

    def __init__(self, limit: int) -> None:
        self.limit, self.weight = limit, 0
        self.entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """What is kept under a key, or None."""
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def keep(self, key: Any, made: Any, weight: int) -> None:
        """Keep it, in place of what was not used for longest."""
        self.weight += weight - self.entries.pop(key, (None, 0))[1]
        self.entries[key] = (made, weight)
        while self.weight > self.limit:
            self.weight -= self.entries.popitem(last=False)[1][1]


class Terminology:
    """What this process has compiled of one database."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self.artefacts, self.expansions, self.searched = Kept(KEPT_ARTEFACTS), Kept(KEPT_MEMBERS), Kept(KEPT_MEMBERS)

    async def library(self, connection: Connection, roots: Iterable[Wanted], within: Narrowing | None) -> Library:
        """The artefacts that these need, and those that they need in turn. Raises TooCostly."""
        stored: dict[Wanted, list[Artefact]] = {}
        waiting = set(roots)
        while waiting:
            fresh = {wanted: [] for wanted in waiting}
            for type in sorted({wanted.type for wanted in waiting}):
                urls = sorted(wanted.url for wanted in waiting if wanted.type == type)
                for one in await self.found(connection, type, Matches(type, "url", (UriTest(tuple(map(clip, urls))),)), within):
                    fresh.get(Wanted(type, one.url), []).append(one)
            stored |= fresh
            known = [one for listed in stored.values() for one in listed]
            _check_gathered(len(known), sum(one.size for one in known))
            waiting = {need for wanted in fresh for one in self._of(wanted, fresh) for need in needs(one.tree)} - stored.keys()
        return Library(stored)

    def _of(self, wanted: Wanted, stored: dict[Wanted, list[Artefact]]) -> Sequence[Artefact]:
        if wanted.type != "ValueSet":
            return ()
        return (*stored[wanted], *builtin.artefacts(wanted.type, wanted.url))

    async def found(self, connection: Connection, type: str, condition: Condition, within: Narrowing | None) -> list[Artefact]:
        """The artefacts of the store that fulfil a condition and may be seen, in the order in which they were made."""
        builder = Builder(self.dialect, within)
        source, where, key = builder.candidates(type, builder.narrowed(type, [condition]), "d")
        rows = await connection.fetch(
            f"SELECT DISTINCT r.key, r.version, LENGTH(v.body) AS size FROM {source} JOIN resource r ON r.key = {key}"
            f" JOIN version v ON v.resource_key = r.key AND v.version = r.version"
            f" WHERE {where} AND NOT r.deleted ORDER BY r.key LIMIT {GATHERED + 1}",
            *builder.arguments,
        )
        _check_gathered(len(rows), sum(row["size"] for row in rows))
        return [await self._compiled(connection, type, (row["key"], row["version"])) for row in rows]

    async def _compiled(self, connection: Connection, type: str, version: Version) -> Artefact:
        known = self.artefacts.get(version)
        if known is None:
            body = bytes(await connection.fetchval("SELECT body FROM version WHERE resource_key = $1 AND version = $2", *version))
            known = compiled(json.loads(body), f"{type} {version[0]} {version[1]}")
            known.size = len(body)
            self.artefacts.keep(version, known, len(body))
        return known

    def expansion(
        self,
        library: Library,
        value_set: Artefact,
        versions: Versions,
        without: Sequence[Canonical] = (),
        only: str | None = None,
    ) -> Expansion:
        """A value set, computed once for the same artefacts. Raises what `expand` does."""
        question = (value_set.identity, library.identity, repr(versions), tuple(without), only)
        known = self.expansions.get(question)
        if known is None:
            known = expand(library, value_set, versions, without, only)
            self.expansions.keep(question, known, len(known.members) + 1)
        return known

    # --- conditions of a search -----------------------------------------------------------------------------------------------

    async def resolved(self, connection: Connection, query: Query, within: Narrowing | None) -> Query:
        """The query with codes in place of value sets and of what is above or below a code. Raises InvalidValue, TooCostly."""
        answers: dict[Unresolved, CodesTest] = {}
        for test in set(asked(query)):
            make = self._members if isinstance(test, MemberTest) else self._subsumed
            answers[test] = await make(connection, test, within)
            if sum(len(listed) for one in answers.values() for _, listed in one.codes) > SEARCHED_TOGETHER:
                raise TooCostly(f"More than {SEARCHED_TOGETHER} codes would be looked for in one search")
        return _replaced(query, answers) if answers else query

    async def _members(self, connection: Connection, test: MemberTest, within: Narrowing | None) -> CodesTest:
        library, value_set = await self._value_set(connection, test, within)
        if value_set is None:
            raise InvalidValue(f"The value set that '{test.parameter}:in' names is not known here")
        question = (value_set.identity, library.identity, test.bare)
        known = self.searched.get(question)
        if known is None:
            known = _codes(self._computed(library, value_set, test), bare=test.bare)
            self.searched.keep(question, known, sum(len(listed) for _, listed in known.codes) + 1)
        return known

    def _computed(self, library: Library, value_set: Artefact, test: MemberTest) -> Members:
        try:
            members = self.expansion(library, value_set, Versions()).members
        except CannotCompute as error:
            raise InvalidValue(f"The value set that '{test.parameter}:in' names cannot be computed: {error}") from None
        if len(members) > SEARCHED:
            raise TooCostly(f"The value set that '{test.parameter}:in' names has more than {SEARCHED} codes")
        return members

    async def _value_set(
        self, connection: Connection, test: MemberTest, within: Narrowing | None
    ) -> tuple[Library, Artefact | None]:
        if test.value_set.startswith("ValueSet/"):
            by_id = Matches("ValueSet", "_id", (IdTest(test.value_set.removeprefix("ValueSet/")),))
            value_set = next(iter(await self.found(connection, "ValueSet", by_id, within)), None)
            return await self.library(connection, needs(value_set.tree) if value_set else (), within), value_set
        named = canonical(test.value_set)
        library = await self.library(connection, [Wanted("ValueSet", named.url)], within)
        return library, library.find("ValueSet", named)

    async def _subsumed(self, connection: Connection, test: SubsumedTest, within: Narrowing | None) -> CodesTest:
        library = await self.library(connection, [Wanted("CodeSystem", test.system)], within)
        system = library.code_system(test.system)
        if system is None:
            raise InvalidValue(
                f"The code system that '{test.parameter}' names is not known here, nor what is above or below its codes"
            )
        codes = system.above(test.code) if test.above else system.below(test.code)
        return _codes([(test.system, code) for code in codes], bare=test.bare)


def _check_gathered(number: int, size: int) -> None:
    if number > GATHERED or size > GATHERED_BYTES:
        limit = f"{GATHERED} artefacts of together {GATHERED_BYTES} bytes"
        raise TooCostly(f"More terminology of the store would be needed than the limit here: {limit}")


def asked(value: Any) -> list[Unresolved]:
    """All that a query or a condition asks of terminology, at any depth."""
    kind = type(value)
    if kind in (MemberTest, SubsumedTest):
        return [value]
    parts = value if kind is tuple else [getattr(value, name) for name in _holders(kind)]
    return [one for part in parts for one in asked(part)]


@cache
def _holders(kind: type) -> tuple[str, ...]:
    """The members of a query, condition or test that can hold conditions or tests; of anything else none."""
    if not is_dataclass(kind):
        return ()
    return tuple(field.name for field in fields(kind) if "Condition" in str(field.type) or "Test" in str(field.type))


def _replaced(value: Any, answers: dict[Unresolved, CodesTest]) -> Any:
    kind = type(value)
    if kind in (MemberTest, SubsumedTest):
        return answers[value]
    if kind is tuple:
        return tuple([_replaced(one, answers) for one in value])
    changed = {name: _replaced(getattr(value, name), answers) for name in _holders(kind)}
    return replace(value, **changed) if changed else value


def _codes(members: Iterable[tuple[str, str]], *, bare: bool) -> CodesTest:
    """The codes as the search rows hold them. A bare code's row has no system: it is looked for among the codes of all."""
    by_system: dict[str, dict[str, None]] = {}
    for system, code in members:
        folded = clip(code.casefold())
        by_system.setdefault(clip(system), {})[folded] = None
        if bare:
            by_system.setdefault("", {})[folded] = None
    return CodesTest(tuple((system, tuple(codes)) for system, codes in by_system.items()))
