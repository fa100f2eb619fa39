"""What a panel is: the members of a Group or a List, whomever a search finds, or the patients of a roster file beside partner.yaml.

https://hl7.org/fhir/R4/group.html, https://hl7.org/fhir/R4/list.html and https://hl7.org/fhir/R4/search.html. A roster is a CSV file
with a heading line, or NDJSON: in each line `id` (of the Patient there), or `system` and `value` (of one of its identifiers).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fhircm.exchange.pull_types import Search, pairs
from fhircm.exchange.yaml_keys import Keys
from fhircm.fhir.definitions import definitions
from fhircm.fhir.outcome import FhirError

ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_FILE = re.compile(r"[^/\\\s]+\.(csv|ndjson)")
_KINDS = ("group", "list", "search", "roster")
_LARGEST = 64 * 1024 * 1024  # bytes: a million lines


class RosterWrong(FhirError):
    """A roster file cannot be read at all; the message names it."""

    status, code = 500, "processing"


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes the panel, when it is no Group: one of these."""

    list: str | None = None  # id of a List
    search: tuple[str, Search] | None = None  # type and parameters: the Patients found, or those that the matches speak of
    roster: Path | None = None

    def __str__(self) -> str:
        if self.list is not None:
            return f"List/{self.list}"
        if self.search is not None:
            return f"search of {self.search[0]} by {', '.join(dict.fromkeys(name for name, _ in self.search[1])) or 'nothing'}"
        return f"roster {self.roster}"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a roster: the id of a Patient, an identifier as system|value, or why it is neither."""

    number: int
    id: str | None = None
    identifier: str | None = None
    wrong: str | None = None


def read(keys: Keys, folder: Path, parameters: Mapping[str, str]) -> str | Membership:
    """The section `panel` of a partner.yaml: the id of a Group, or what else makes it. Raises YamlWrong."""
    given = [kind for kind in _KINDS if kind in keys.names]
    if len(given) > 1:
        keys.wrong(given[1], f"stands beside {given[0]}: a panel is made by one of {', '.join(_KINDS)}")
    made: str | Membership
    if given == ["list"]:
        made = Membership(list=keys.text("list", "the id of the List that is the panel", ID))
    elif given == ["search"]:
        made = Membership(search=_search(keys.keys("search", "a search whose matches are the panel"), parameters))
    elif given == ["roster"]:
        made = Membership(roster=folder / keys.text("roster", "the name of a .csv or .ndjson file beside partner.yaml", _FILE))
    else:
        made = keys.text("group", "the id of the Group that is the panel (or list, search or roster)", ID)
    keys.known += _KINDS
    keys.done()
    return made


def _search(keys: Keys, parameters: Mapping[str, str]) -> tuple[str, Search]:
    type = keys.text("type", "an R4 resource type such as Patient", default="Patient")
    if type not in definitions().resource_types:
        keys.wrong("type", "must be an R4 resource type such as Patient")
    search = pairs(keys, type, parameters)
    if not search:
        keys.wrong("", "gives no search parameter: every patient of the partner would be the panel")
    keys.done()
    return type, search


def lines(path: Path) -> Iterator[Line]:
    """The lines of a roster that say something. Raises RosterWrong."""
    try:
        if path.stat().st_size > _LARGEST:
            raise RosterWrong(f"{path} is larger than {_LARGEST} bytes")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise RosterWrong(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RosterWrong(f"{path} is not UTF-8") from None
    yield from _csv(path, text) if path.suffix == ".csv" else _ndjson(text)


def _csv(path: Path, text: str) -> Iterator[Line]:
    rows = csv.reader(text.splitlines())
    heading = [name.strip().lower() for name in next(rows, [])]
    if "id" not in heading and not {"system", "value"} <= set(heading):
        raise RosterWrong(f"{path}: its first line must name the columns: id, or system and value")
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield Line(rows.line_num, wrong="is not CSV")
            continue
        if any(cell.strip() for cell in row):
            yield _line(rows.line_num, dict(zip(heading, (cell.strip() for cell in row), strict=False)))


def _ndjson(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):
            tree = None
        yield _line(number, tree) if isinstance(tree, dict) else Line(number, wrong="is not a JSON object")


def _line(number: int, tree: dict[str, Any]) -> Line:
    id, system, value = (tree.get(name) or None for name in ("id", "system", "value"))
    if id is not None:
        good = isinstance(id, str) and ID.fullmatch(id.removeprefix("Patient/"))
        return Line(number, id=id.removeprefix("Patient/")) if good else Line(number, wrong="has an id that is none")
    if not isinstance(system, str) or not isinstance(value, str):
        return Line(number, wrong="has neither an id nor both system and value")
    if re.search(r"[|,\\$\s]", system) or re.search(r"[|,\\$\x00-\x1f]", value):
        return Line(number, wrong="has a system or a value with a character that no identifier has")
    return Line(number, identifier=f"{system}|{value}")
