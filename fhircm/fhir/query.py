"""A search as it was asked: every parameter understood or refused, nothing silently ignored.

https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from fhircm.fhir.asked import value_condition
from fhircm.fhir.conditions import (
    VALUES_LIMIT,
    AnyOf,
    Chained,
    Condition,
    IdTest,
    InvalidValue,
    Linked,
    Matches,
    Missing,
    in_compartment,
)
from fhircm.fhir.definitions import definitions
from fhircm.fhir.extract import Extractor, searchable
from fhircm.fhir.filter import read_filter
from fhircm.fhir.outcome import Malformed, NotSupported
from fhircm.fhir.word_search import word_search

__all__ = [
    "AnyOf",
    "Chained",
    "Condition",
    "Cursor",
    "Include",
    "InvalidValue",
    "Linked",
    "Matches",
    "Missing",
    "Query",
    "Sort",
    "in_compartment",
    "parse_query",
]

DEFAULT_COUNT = 50
MAX_COUNT = 1000
DEPTH_LIMIT = 4  # links of a chain; deeper ones are joins that no index can serve well

# The parameters of full text, and their definitions; with or without narratives, every type has them.
FULL_TEXT = {
    "_content": "http://hl7.org/fhir/SearchParameter/Resource-content",
    "_text": "http://hl7.org/fhir/SearchParameter/DomainResource-text",
}

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_ONLY_ONCE = frozenset({"_count", "_sort", "_total", "_summary", "_elements"})
_CONTROLS = ("_count", "_elements", "_include", "_revinclude", "_sort", "_summary", "_total")
_ABOUT_THE_ANSWER = frozenset({"_format", "_pretty"})  # how the answer is written: not a matter of what is found


@dataclass(frozen=True, slots=True)
class Sort:
    """One sort key: a search parameter, `_id` or `_lastUpdated`."""

    code: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Include:
    """Follow references of `source` by parameter `code` ("*": all of them) to `target` (None: to any type).

    For _include from what was found; for _revinclude against the direction; `source` "*" is every type. `iterate`: again from what was included.
    """

    source: str
    code: str
    target: str | None
    iterate: bool


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page ended: `after` holds the sort values of its last entry, its key last.

    `snapshot` is the moment of the first page, as the database tells it; `total` is carried on from there.
    """

    after: tuple[int | float | str, ...]
    snapshot: str
    total: int | None = None

    def as_json(self) -> dict[str, Any]:
        """A small object for an opaque token."""
        return {"a": list(self.after), "s": self.snapshot, "t": self.total}

    @classmethod
    def from_json(cls, tree: Any) -> Cursor:
        """Read it back. Raises Malformed for what `as_json` does not make."""
        try:
            after = tuple(float(value) if isinstance(value, Decimal) else value for value in tree["a"])
            snapshot, total = tree["s"], tree["t"]
            if any(type(value) not in (int, float, str) for value in after) or type(snapshot) is not str:
                raise TypeError
            if total is not None and type(total) is not int:
                raise TypeError
            if any(not -(2**63) <= number < 2**63 for number in (*after, total or 0) if type(number) is int):
                raise TypeError
            return cls(after, snapshot, total)
        except (KeyError, TypeError):
            raise Malformed("This page link is not one that this server made") from None


@dataclass(frozen=True, slots=True)
class Query:
    """A search that can be carried out.

    `used` are the parameters as they were understood, for the self link; `ignored` those that a lenient search passed
    over, each with the reason. `count_only`: the total is asked, no entries. `others`: more types that are searched along with the
    first, and what theirs fulfil. `include_only`: the types that alone are included, and what those fulfil.
    """

    type: str
    conditions: tuple[Condition, ...] = ()
    sort: tuple[Sort, ...] = ()
    count: int = DEFAULT_COUNT
    total: bool = False
    count_only: bool = False
    includes: tuple[Include, ...] = ()
    revincludes: tuple[Include, ...] = ()
    include_only: tuple[tuple[str, tuple[Condition, ...]], ...] | None = None
    cursor: Cursor | None = None
    others: tuple[tuple[str, tuple[Condition, ...]], ...] = ()
    used: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    ignored: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def branches(self) -> tuple[tuple[str, tuple[Condition, ...]], ...]:
        """Every resource type that is searched, with what its matches fulfil."""
        return ((self.type, self.conditions), *self.others)


def parse_query(
    type: str,
    parameters: Sequence[tuple[str, str]],
    *,
    base_url: str | None = None,
    lenient: bool = False,
    default_count: int = DEFAULT_COUNT,
    max_count: int = MAX_COUNT,
    full_text: bool = False,
) -> Query:
    """Understand the parameters of a search in one type, names and values already URL-decoded.

    References that begin with `base_url` are references to this server. `_format` and `_pretty` are passed over: they say how
    the answer is written. `full_text`: words are kept, so that `_text` and `_content` can be asked. Raises NotSupported for what
    this server does not have (when `lenient`: lists it in `ignored` instead) and InvalidValue for a value that cannot be read; both are 400.
    """
    parser = _QueryParser(type, base_url, default_count, max_count, full_text)
    used: list[tuple[str, str]] = []
    ignored: list[tuple[str, str]] = []
    for name, value in parameters:
        if name in _ABOUT_THE_ANSWER:
            continue
        try:
            parser.parameter(name, value)
            used.append((name, value))
        except NotSupported as error:
            if not lenient:
                raise
            ignored.append((name, str(error)))
    return parser.query(tuple(used), tuple(ignored))


def parse_types(types: Sequence[str], parameters: Sequence[tuple[str, str]], **options: Any) -> Query:
    """Understand a search over several types: every parameter must be one of each. Raises as `parse_query` does."""
    first, *others = [parse_query(type, parameters, **options) for type in types]
    if others and (first.includes or first.revincludes):
        raise NotSupported("A search over several types includes nothing besides; search one type to use _include or _revinclude")
    return replace(first, others=tuple((one.type, one.conditions) for one in others))


class _QueryParser:
    def __init__(self, type: str, base_url: str | None, default_count: int, max_count: int, full_text: bool) -> None:
        if type not in definitions().resource_types:
            raise NotSupported(f"'{type[:64]}' is not a resource type of FHIR R4")
        self.type = type
        self.base_url = base_url
        self.count = default_count
        self.max_count = max_count
        self.full_text = full_text
        self.conditions: list[Condition] = []
        self.sort: tuple[Sort, ...] = ()
        self.total = self.count_only = False
        self.includes: list[Include] = []
        self.revincludes: list[Include] = []
        self.seen: set[str] = set()

    def query(self, used: tuple[tuple[str, str], ...], ignored: tuple[tuple[str, str], ...]) -> Query:
        return Query(
            self.type,
            tuple(self.conditions),
            self.sort,
            self.count,
            self.total,
            self.count_only,
            tuple(self.includes),
            tuple(self.revincludes),
            used=used,
            ignored=ignored,
        )

    def parameter(self, name: str, value: str) -> None:
        if name in self.seen:
            raise InvalidValue(f"'{name}' stands more than once")
        if name in _ONLY_ONCE:
            self.seen.add(name)
        match name.split(":"):
            case ["_count"]:
                self._count(value)
            case ["_sort"]:
                self.sort = tuple(self._sort_key(key) for key in value.split(","))
            case ["_total"]:
                self.total = self._one_of(name, value, ("none", "estimate", "accurate")) != "none"
            case ["_elements"]:
                pass  # subset.py reads it: it is about the answer, and goes along with the page links
            case ["_summary"]:
                self._summary(value)
            case ["_include"] | ["_include", "iterate"]:
                self.includes.append(self._include(name, value, iterate=":" in name))
            case ["_revinclude"] | ["_revinclude", "iterate"]:
                self.revincludes.append(self._revinclude(name, value, iterate=":" in name))
            case _:
                self.conditions.append(self.condition(self.type, name, value))

    def _count(self, value: str) -> None:
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise InvalidValue("'_count' takes a whole number")
        self.count = min(int(value), self.max_count)
        if self.count == 0:
            self.count_only = True

    def _one_of(self, name: str, value: str, allowed: tuple[str, ...]) -> str:
        if value not in allowed:
            raise InvalidValue(f"'{name}' takes one of: {', '.join(allowed)}")
        return value

    def _summary(self, value: str) -> None:
        self._one_of("_summary", value, ("count", "false", "true", "text", "data"))
        self.count_only = self.count_only or value == "count"

    def _sort_key(self, key: str) -> Sort:
        code = key.removeprefix("-")
        kind = self._extractor(self.type, code, "_sort").definition.type
        if kind in ("composite", "special"):
            raise NotSupported(f"'_sort' has no order for '{code}', a {kind} parameter")
        return Sort(code, key.startswith("-"))

    def _include(self, name: str, value: str, *, iterate: bool) -> Include:
        if value == "*":
            return Include(self.type, "*", None, iterate)
        source, code, target = self._path(name, value)
        if source != self.type and not iterate:
            raise NotSupported(f"'{name}' can start from {self.type} only; '_include:iterate' starts from what was included too")
        if code != "*":
            self._link(source, code, target, name)
        return Include(source, code, target, iterate)

    def _revinclude(self, name: str, value: str, *, iterate: bool) -> Include:
        if value == "*":
            return Include("*", "*", None, iterate)
        source, code, target = self._path(name, value)
        self._link(source, code, target or (None if iterate else self.type), name)
        if target not in (None, self.type) and not iterate:
            raise NotSupported(f"'{name}' can lead to {self.type} only")
        return Include(source, code, target, iterate)

    def _path(self, name: str, value: str) -> tuple[str, str, str | None]:
        parts = value.split(":")
        if len(parts) not in (2, 3) or not all(parts):
            raise InvalidValue(f"'{name}' takes Type:parameter or Type:parameter:TargetType")
        for type in (parts[0], *parts[2:]):
            if type not in definitions().resource_types:
                raise InvalidValue(f"'{name}' names '{type[:64]}', which is not a resource type of FHIR R4")
        return parts[0], parts[1], parts[2] if len(parts) == 3 else None

    def _extractor(self, type: str, code: str, where: str | None = None) -> Extractor:
        known = searchable(type)
        if code in known.extractors:
            return known.extractors[code]
        place = f" in '{where}'" if where else ""
        if code in known.refused:
            raise NotSupported(f"The search parameter '{code}'{place} is not supported for {type}: {known.refused[code]}")
        names = ", ".join(sorted(known.extractors))
        others = (*_CONTROLS, "_filter", "_has", "_list", *(FULL_TEXT if self.full_text else ()))
        controls = f"; besides: {', '.join(others)}" if where is None else ""
        raise NotSupported(f"'{code[:64]}'{place} is not a search parameter of {type}. There are: {names}{controls}")

    def _link(self, source: str, code: str, target: str | None, where: str) -> tuple[str, ...]:
        """The types that a reference parameter leads to."""
        extractor = self._extractor(source, code, where)
        if extractor.definition.type != "reference" or not extractor.types & {"Reference", "Resource"}:
            raise NotSupported(f"'{code}' in '{where}' does not hold references from {source} to resources")
        targets = extractor.targets
        if target is not None and targets and target not in targets:
            raise NotSupported(f"'{code}' of {source} does not lead to {target[:64]}; it leads to: {', '.join(targets)}")
        return targets

    def _leads_to(self, source: str, code: str, where: str) -> tuple[str, ...]:
        return self._link(source, code, None, where)

    def condition(self, type: str, name: str, value: str, depth: int = 0) -> Condition:
        if depth >= DEPTH_LIMIT:
            raise NotSupported(f"Chains are followed over at most {DEPTH_LIMIT - 1} links")
        if name.startswith("_has:"):
            return self._has(type, name, value, depth)
        if name == "_list":
            return self._list(type, value)
        if name == "_filter" and depth == 0:
            return read_filter(value, type, self._extractor, self._leads_to, self.base_url)
        head, dot, rest = name.partition(".")
        code, _, modifier = head.partition(":")
        if dot:
            return self._chain(type, code, modifier, rest, value, depth)
        if head in FULL_TEXT:
            return self._words(type, code, value)
        extractor = self._extractor(type, code)
        return value_condition(type, code, modifier, extractor, value, self.base_url)

    def _words(self, type: str, code: str, value: str) -> Condition:
        if not self.full_text:
            raise NotSupported(f"'{code}' is not supported: the setting FHIRCM_FULL_TEXT is off here")
        return word_search(type, code, value)

    def _list(self, type: str, value: str) -> Condition:
        """What one of the lists holds: the same as _has:List:item:_id."""
        ids = value.split(",")
        if any(id.startswith("$") for id in ids):
            raise NotSupported(
                "'_list' takes ids of List resources; functional lists such as $current-problems are not kept here"
            )
        if len(ids) > VALUES_LIMIT or not all(map(_ID.fullmatch, ids)):
            raise InvalidValue(f"'_list' takes at most {VALUES_LIMIT} ids of List resources")
        return Linked(type, "List", "item", Matches("List", "_id", tuple(map(IdTest, ids))))

    def _has(self, type: str, name: str, value: str, depth: int) -> Condition:
        parts = name.split(":", 3)
        if len(parts) != 4 or not all(parts):
            raise InvalidValue("'_has' is written _has:Type:reference:parameter=value")
        _, source, code, rest = parts
        if source not in definitions().resource_types:
            raise InvalidValue(f"'_has' names '{source[:64]}', which is not a resource type of FHIR R4")
        self._link(source, code, type, "_has")
        return Linked(type, source, code, self.condition(source, rest, value, depth + 1))

    def _chain(self, type: str, code: str, target: str, rest: str, value: str, depth: int) -> Condition:
        """Without a named type the chain goes on in every target type that has the next parameter."""
        leads_to = self._link(type, code, target or None, f"{code}.{rest[:64]}")
        if target:
            return Chained(type, code, ((target, self.condition(target, rest, value, depth + 1)),))
        alternatives: list[tuple[str, Condition]] = []
        refusal: NotSupported | None = None
        for one in leads_to:
            try:
                alternatives.append((one, self.condition(one, rest, value, depth + 1)))
            except NotSupported as error:
                refusal = error
        if not alternatives:
            raise refusal or NotSupported(f"'{code}' of {type} leads to no type that is known")
        return Chained(type, code, tuple(alternatives))
