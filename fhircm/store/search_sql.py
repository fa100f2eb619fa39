"""Conditions as SQL: the rows that drive a search, and the tests that every candidate must pass.

https://hl7.org/fhir/R4/search.html#prefix. The most selective condition drives: its index gives resource keys newest first, so a page
reads as many rows as it shows. The others become EXISTS on the candidate's key. Nothing here depends on a planner's
statistics, and the same text runs on SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.conditions import (
    AmountTest,
    AnyOf,
    Chained,
    Condition,
    IdTest,
    Linked,
    Matches,
    Missing,
    SpanTest,
    TargetTest,
    Test,
    TextTest,
    TokenTest,
    UriTest,
)
from fhircm.fhir.definitions import param_key
from fhircm.fhir.extract import START, searchable
from fhircm.fhir.ranges import BOUNDLESS, EARLIEST, LATEST, normalise
from fhircm.fhir.query import Sort

LAST_CHARACTER = "\U0010ffff"  # behind every text that begins alike
_TABLES = {
    TokenTest: "search_token",
    TargetTest: "search_reference",
    TextTest: "search_string",
    SpanTest: "search_date",
    AmountTest: "search_quantity",
    UriTest: "search_uri",
}
_TABLES_OF_KIND = {
    "token": ("search_token", "search_string"),
    "reference": ("search_reference", "search_token"),
    "string": ("search_string",),
    "date": ("search_date",),
    "number": ("search_quantity",),
    "quantity": ("search_quantity",),
    "uri": ("search_uri",),
}
_FEW_CODES = frozenset({"code", "boolean"})  # element types whose tokens match a large part of all resources
_LAST = 9  # the rank of a condition that cannot drive


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What a caller may see: for each resource type the conditions that hold besides; a type that is not listed is not seen.

    It holds wherever a search reaches: matches, included resources, and what chains and _has look into.
    """

    by_type: Mapping[str, Sequence[Condition]]


class Builder:
    """Builds SQL text and gathers its arguments; one builder for one statement."""

    def __init__(self, within: Narrowing | None = None) -> None:
        self.arguments: list[Any] = []
        self.within = within
        self.aliases = 0

    def argument(self, value: Any) -> str:
        """The placeholder of a value."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def alias(self) -> str:
        self.aliases += 1
        return f"x{self.aliases}"

    def narrowed(self, type: str, conditions: Sequence[Condition]) -> list[Condition]:
        """The conditions and those that the narrowing adds for the type."""
        if self.within is None:
            return list(conditions)
        extra = self.within.by_type.get(type)
        return [AnyOf(())] if extra is None else [*conditions, *extra]

    # ---- candidates

    def candidates(self, type: str, conditions: Sequence[Condition]) -> tuple[str, str, str]:
        """FROM clause, WHERE clause and key column of the resources of the type that fulfil all conditions.

        A key can come more than once, except when the resource table itself drives.
        """
        driver = min(conditions, key=_rank, default=None)
        if driver is None or _rank(driver) >= _LAST or _is_own(driver):
            tests = [self.holds(condition, "d.key", "d") for condition in conditions]
            where = [f"d.type = {self.argument(type)}", "NOT d.deleted", *tests]
            return "resource d", " AND ".join(where), "d.key"
        if isinstance(driver, Matches):
            source, where = f"{_table(driver)} d", [self.row(driver, "d")]
        else:
            source, where = f"({self.driven(driver)}) d", []
        where += [self.holds(condition, "d.resource_key") for condition in conditions if condition is not driver]
        return source, " AND ".join(where) or "1 = 1", "d.resource_key"

    def keys(self, type: str, conditions: Sequence[Condition]) -> str:
        """A query for the keys of the resources of the type that fulfil all conditions, as `resource_key`."""
        source, where, key = self.candidates(type, conditions)
        outer = self.alias()
        return (f"SELECT {key} AS resource_key FROM {source} WHERE {where}").replace("d.", f"{outer}.").replace(" d ", f" {outer} ")
