"""How a partner exports in bulk: the section `bulk` of partner.yaml. Vendors differ in every one of these keys, so each is data.

https://hl7.org/fhir/uv/bulkdata/export.html. STU2 lists types with commas in a GET, STU4 repeats them in a POST; some vendors know one
way only, some do not honour `_since`, and one export at a time and waits of days are common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

from fhircm.exchange.pages import within
from fhircm.exchange.yaml_keys import Keys
from fhircm.fhir.definitions import definitions

LEVELS = ("group", "patient", "system")
SINCE = "{since}"  # stands in a type filter for the instant of the last export


class FilePlace(NamedTuple):
    """Where the partner's files may lie beside its own base URL, and whether its token may go there."""

    prefix: str
    token: bool


@dataclass(frozen=True, slots=True)
class Bulk:
    """The section. Times in seconds unless said otherwise."""

    level: str = "group"  # Group/[id]/$export, Patient/$export or $export
    method: str = "get"  # of the kick-off: get, or post with a Parameters resource
    lists: str = "comma"  # one _type with commas, or repeated
    since: bool = True  # the partner honours _since; without, every export is whole
    new_members: str = (
        "full"  # who is new in the Group: `full` asks for all again, `patient` for these by the parameter `patient`
    )
    types: tuple[str, ...] = ()  # none: all that are pulled
    type_filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by type; one with {since} makes up for _since
    output_format: str | None = "application/fhir+ndjson"  # none: not sent
    members_only: bool = True  # of a patient or system export only the members of the panel are taken
    every: timedelta | None = timedelta(days=7)  # between exports; none: only when somebody asks
    overlap: timedelta = timedelta(minutes=1)  # of what two exports tell
    poll_least: float = 5.0  # between two questions how far it is, when the partner does not say
    poll_most: float = 3600.0  # however long a Retry-After it sends
    give_up: timedelta = timedelta(days=21)
    vanished_reads: int = 2000  # what a whole export does not tell any more is asked for by id, at most so many a time
    files: tuple[FilePlace, ...] = ()

    def of(self, pulled: frozenset[str]) -> tuple[str, ...]:
        """The types that are exported, of those that are pulled."""
        return tuple(sorted(pulled & {*self.types, "Patient"} if self.types else pulled))

    def filtered_since(self, type: str) -> bool:
        """Whether a type filter asks for what is new of this type."""
        return any(SINCE in one for one in self.type_filters.get(type, ()))

    def place(self, base_url: str, url: str) -> FilePlace | None:
        """The place that a file lies at; None when it may not be fetched. The partner's own address has its token."""
        if within(base_url, url):
            return FilePlace(base_url, True)
        return next((one for one in self.files if within(one.prefix, url)), None)


def read(keys: Keys) -> Bulk:
    """Read the section. Raises YamlWrong."""
    default = Bulk()
    days = keys.number("every_days", float, 0, 366, 7.0)
    bulk = Bulk(
        level=keys.choice("level", LEVELS, default.level),
        method=keys.choice("kick_off", ("get", "post"), default.method),
        lists=keys.choice("lists", ("comma", "repeated"), default.lists),
        since=keys.take("since", bool, "true or false", default.since),
        new_members=keys.choice("new_members", ("full", "patient"), default.new_members),
        types=_types(keys),
        type_filters=_type_filters(keys.keys("type_filters", "a mapping of types to lists of searches", {})),
        output_format=_output_format(keys),
        members_only=keys.take("members_only", bool, "true or false", default.members_only),
        every=timedelta(days=days) if days else None,
        overlap=timedelta(seconds=keys.number("overlap", float, 0, 86_400, default.overlap.total_seconds())),
        poll_least=keys.number("poll_least", float, 0.1, 86_400, default.poll_least),
        poll_most=keys.number("poll_most", float, 1, 7 * 86_400, default.poll_most),
        give_up=timedelta(days=keys.number("give_up_days", float, 0.01, 90, 21.0)),
        vanished_reads=keys.number("vanished_reads", int, 0, 1_000_000, default.vanished_reads),
        files=keys.each("files", "a list of places with prefix and token", _file_place, ()),
    )
    if bulk.new_members == "patient" and bulk.method != "post":
        keys.wrong("new_members", "must be full with kick_off: get, because the parameter patient can be sent by post only")
    keys.done()
    return bulk


def _types(keys: Keys) -> tuple[str, ...]:
    types = keys.take("types", list, "a list of R4 resource types", [])
    for number, type in enumerate(types):
        if type not in definitions().resource_types:
            keys.wrong(f"types[{number}]", "must be an R4 resource type such as CarePlan")
    return tuple(types)


def _type_filters(keys: Keys) -> dict[str, tuple[str, ...]]:
    filters: dict[str, tuple[str, ...]] = {}
    for type in list(keys.tree):
        if type not in definitions().resource_types:
            keys.wrong(type, "is not an R4 resource type")
        listed = keys.take(type, list, "a list of searches such as date=ge{since}")
        for number, one in enumerate(listed):
            if not isinstance(one, str) or "=" not in one or re.search(r"\{(?!since\})", one):
                keys.wrong(f"{type}[{number}]", "must be a search such as date=ge{since}, with no other placeholder")
        filters[type] = tuple(listed)
    return filters


def _output_format(keys: Keys) -> str | None:
    text = keys.text("output_format", "a media type, or none", default="application/fhir+ndjson")
    return None if text == "none" else text


def _file_place(keys: Keys) -> FilePlace:
    prefix = keys.text("prefix", "a URL, such as https://files.example/exports")
    parts = urlsplit(prefix)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username is not None:
        keys.wrong("prefix", "must be an http or https URL without query or user name")
    place = FilePlace(prefix.rstrip("/"), keys.take("token", bool, "true or false", False))
    keys.done()
    return place
