"""Which implementation guides are in force, as the database says it, brought into every process that reads or writes.

https://hl7.org/fhir/R4/implementationguide.html. Nothing polls in the background: who uses the store asks at most once in a second
whether the generation changed. A search row is never made by definitions that were read longer ago than that, so that a
moment after a change (LATE) no process makes rows without knowing of it: docs/decisions/guides-in-every-process.md.
"""

from __future__ import annotations

import asyncio
import json as std_json
from collections.abc import Collection, Iterable, Mapping
from time import monotonic
from typing import Any
from uuid import uuid4

from fhircm.fhir import json
from fhircm.fhir.guides import Artefact, Guide, InForce, in_force, put_in_force, search_parameter
from fhircm.store.database import Connection, Database
from fhircm.store.operations import SetState

GUIDE = "guide"  # namespace of the guides that are loaded: name#version, and where its definitions are stored
INDEXED = "indexed"  # namespace of the search parameters that every stored resource is indexed by
INDEXING = "indexing"  # namespace of the jobs that are to make parameters answer; a change of guides voids what was under way
GENERATION = "guides"  # namespace of one fact that is new with every change of the others
FRESH = 1.0  # seconds for which what was read is used without asking again
LATE = 3.0  # seconds after a change in which a process may not know of it yet; on top of FRESH, the making of one version's rows

_NEEDED = frozenset({"StructureDefinition", "SearchParameter", "ValueSet", "CodeSystem"})
_ASKED = 300  # versions in one statement
Location = tuple[str, str, int]  # type, id and version


class GuidesMoved(Exception):
    """What is in force changed after this transaction began: it is done anew."""


class GuidesFollowed:
    """Keeps what is in force in this process as the database has it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read_at = float("-inf")
        self._turn = asyncio.Lock()

    @property
    def _is_fresh(self) -> bool:
        return monotonic() - self._read_at < FRESH

    async def follow(self, *, now: bool = False) -> None:
        """Know what is in force, as it was at most FRESH seconds ago (or, if asked, as it is now)."""
        if self._is_fresh and not now:
            return
        async with self._turn:
            if self._is_fresh and not now:
                return
            began = monotonic()
            async with self._database.reading() as connection:
                generation = await _generation(connection)
                if generation != in_force().generation:
                    put_in_force(await _read(connection, generation))
            self._read_at = began

    async def confirm(self, connection: Connection) -> None:
        """In a transaction that is about to make search rows: be sure that it knows what is in force. Raises GuidesMoved."""
        if self._is_fresh:
            return
        began = monotonic()
        if await _generation(connection) != in_force().generation:
            self.forget()
            raise GuidesMoved
        self._read_at = began

    def forget(self) -> None:
        """Ask again at the next use."""
        self._read_at = float("-inf")


def new_generation() -> SetState:
    """What goes with every change of guides and of what is indexed, in the same transaction."""
    return SetState(GENERATION, "generation", {"generation": uuid4().hex})


async def _generation(connection: Connection) -> str:
    text = await connection.fetchval("SELECT value FROM state WHERE namespace = $1 AND key = 'generation'", GENERATION)
    return "" if text is None else std_json.loads(text)["generation"]


async def _read(connection: Connection, generation: str) -> InForce:
    facts: dict[str, dict[str, Any]] = {GUIDE: {}, INDEXED: {}}
    for row in await connection.fetch("SELECT namespace, key, value FROM state WHERE namespace IN ($1, $2)", GUIDE, INDEXED):
        facts[row["namespace"]][row["key"]] = std_json.loads(row["value"])
    known = {guide.key: guide for guide in in_force().guides}
    guides = [await _guide(connection, key, fact, known.get(key)) for key, fact in sorted(facts[GUIDE].items())]
    return InForce(generation, tuple(guides), {key: fact["definition"] for key, fact in facts[INDEXED].items()})


async def _guide(connection: Connection, key: str, fact: Mapping[str, Any], known: Guide | None) -> Guide:
    """The guide of a fact; the one that is known already if it is of the same loading."""
    if known is not None and known.loaded == fact["loaded"]:
        return known
    name, _, version = key.rpartition("#")
    rows = [row for row in fact["artefacts"] if row["type"] in _NEEDED]
    bodies = await _bodies(connection, [located(row) for row in rows])
    artefacts = tuple(
        Artefact(row["type"], row["url"], row["version"], bodies[located(row)], row.get("constrains", ""))
        for row in rows
        if located(row) in bodies
    )
    parameters = tuple(search_parameter(json.parse(one.body)) for one in artefacts if one.type == "SearchParameter")
    return Guide(name, version, artefacts, parameters, fact["loaded"])


def located(row: Mapping[str, Any]) -> Location:
    """Where a guide's fact says that a definition is stored."""
    return row["type"], row["id"], row["stored"]


async def _bodies(connection: Connection, wanted: Collection[Location]) -> dict[Location, bytes]:
    """Versions as they are stored: what somebody writes over a definition later is not in force."""
    found: dict[Location, bytes] = {}
    for chunk in _chunks(sorted(wanted)):
        rows = ", ".join(f"(${at}, ${at + 1}, CAST(${at + 2} AS bigint))" for at in range(1, 3 * len(chunk), 3))
        found |= {
            (row["type"], row["id"], row["version"]): bytes(row["body"])
            for row in await connection.fetch(
                "SELECT r.type, r.id, v.version, v.body FROM resource r JOIN version v ON v.resource_key = r.key"
                f" WHERE (r.type, r.id, v.version) IN (VALUES {rows})",
                *[part for location in chunk for part in location],
            )
        }
    return found


def _chunks(wanted: list[Location]) -> Iterable[list[Location]]:
    return (wanted[start : start + _ASKED] for start in range(0, len(wanted), _ASKED))
