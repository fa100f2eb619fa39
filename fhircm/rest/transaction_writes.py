"""The writes of a transaction: checked as a whole, then one plan. https://hl7.org/fhir/R4/http.html#trules"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from fhircm.fhir import json
from fhircm.fhir.bundle import Entry, carried_patch, require_write, rewrite_urls
from fhircm.fhir.outcome import FhirError, Invalid, Issue, Malformed, MultipleMatches
from fhircm.fhir.query import Query
from fhircm.fhir.references import references
from fhircm.fhir.validation import Checked, check
from fhircm.rest import conditional, headers
from fhircm.rest.exchange import Exchange
from fhircm.rest.patch import Change, change_of, patch_of
from fhircm.store.operations import Delete, Plan, Put
from fhircm.store.stored import Stored

Decided = TypeVar("Decided")
_VERBS = {"POST": "c", "PUT": "u", "PATCH": "u", "DELETE": "d"}
Result = tuple[int, Stored | None]


@dataclass
class _Write:
    """An entry on its way. `search` says which of the plan's searches is its condition; `identity` is what it writes."""

    entry: Entry
    if_version: int | None
    id: str | None = None
    resource: Checked | None = None
    change: Change | None = None
    search: int | None = None
    matches: Sequence[Stored] = ()


@dataclass(frozen=True)
class _Asked:
    """A conditional reference: which of the plan's searches it is, and where it stands first."""

    search: int
    write: _Write
    path: str


class Writes:
    """The writes of one transaction."""

    def __init__(self, exchange: Exchange, entries: Sequence[Entry]) -> None:
        self.exchange, self.searches = exchange, list[Query]()
        self.writes = [_Write(entry, None) for entry in entries]
        self.targets: dict[str, str] = {}  # where references among the entries lead
        self.asked: dict[str, _Asked] = {}  # conditional references
        self.results: list[list[Put | Delete] | Stored | None] = []

    async def commit(self) -> list[Result]:
        """Do all of it or nothing. Raises what is wrong with any entry, with its place."""
        self._each(self._prepare)
        self._each(self._read)
        self._require_once()
        needs = [(_VERBS[one.entry.method], one.entry.type) for one in self.writes]
        needs += [("c", one.entry.type) for one in self.writes if one.entry.method == "PUT" and one.search is not None]
        needs += [("s", query.type) for query in self.searches if query.used[0][0] != "_id"]
        try:
            stored = iter(await self.exchange.store.transact(Plan(self.searches, self._make), dict.fromkeys(needs)))
        except FhirError as error:
            error.issues = self._located(error.issues)
            raise
        return [self._result(one, stored) for one in self.results]

    def _located(self, issues: Sequence[Issue]) -> list[Issue]:
        """What the store found wrong with a resource, told of the entry that writes it."""
        writing = {
            _identity(operation): write.entry
            for write, done in zip(self.writes, self.results, strict=False)
            for operation in (done if isinstance(done, list) else ())
        }
        return [_placed(issue, writing[issue.resource]) if issue.resource in writing else issue for issue in issues]

    def _result(self, done: list[Put | Delete] | Stored | None, stored: Iterator[Stored]) -> Result:
        if isinstance(done, Stored):
            return 200, done  # what a conditional create found
        if not done:
            return 204, None
        written = [next(stored) for _ in done][-1]
        return (204 if written.deleted else 201 if written.method == "create" else 200), written

    def _each(self, step: Callable[[_Write], None]) -> None:
        issues: list[Issue] = []
        for write in self.writes:
            try:
                step(write)
            except FhirError as error:
                if not isinstance(error, Invalid | Malformed):
                    raise
                issues += [_placed(issue, write.entry) for issue in error.issues]
        if issues:
            raise Invalid(issues[0].text, issues=issues)

    # --- before anything is written --------------------------------------------------------------------------------------------

    def _prepare(self, write: _Write) -> None:
        """What the entry writes, by its URL alone, and where references to it will lead."""
        entry, issues = write.entry, list[Issue]()
        require_write(entry, issues)
        if issues:
            raise Invalid(issues[0].text, issues=issues)
        write.if_version = headers.version_of(entry.headers.get("if-match"))
        if len(entry.steps) == 2:
            write.id = entry.steps[1]
        elif entry.method == "POST":
            write.id = str(uuid4())
            if "if-none-exist" in entry.headers:
                write.search = self._ask(entry.type, entry.headers["if-none-exist"])
        else:
            limit = self.exchange.settings.conditional_delete_limit if entry.method == "DELETE" else 1
            write.search = self._ask(entry.type, entry.query, limit)
            write.id = str(uuid4()) if entry.method == "PUT" else None
        if entry.method == "PATCH" and write.search is None:
            write.search = self._search(conditional.by_id(entry.type, entry.steps[1]))
        if entry.full_url and write.id and entry.method in ("POST", "PUT"):
            self._lead(entry, f"{entry.type}/{write.id}")

    def _lead(self, entry: Entry, target: str) -> None:
        self.targets[entry.full_url or ""] = target
        *_, type, id = ["", "", *(entry.full_url or "").split("/")]
        if type == entry.type and entry.method == "POST":  # a relative reference means the entry whose fullUrl ends so
            self.targets.setdefault(f"{type}/{id}", target)

    def _ask(self, type: str, text: str, limit: int = 1) -> int:
        query = conditional.condition(self.exchange, type, text, limit)
        if any(query.type == other.type and query.conditions == other.conditions for other in self.searches):
            raise Invalid("The same condition stands in two entries of a transaction")
        return self._search(query)

    def _search(self, query: Query) -> int:
        self.searches.append(query)
        return len(self.searches) - 1

    def _read(self, write: _Write) -> None:
        """Check the resource as it will be written, as far as that is known before conditions are asked."""
        entry = write.entry
        if entry.method == "PATCH":
            kind, patch = carried_patch(entry)
            if entry.resource_type == "Parameters":  # its references lead to other entries, as those of a resource do
                patch = rewrite_urls(patch, self.targets)
                self._ask_references(write, json.loads(patch))
            write.change = change_of(kind, patch)
        elif entry.method in ("POST", "PUT"):
            resource = check(rewrite_urls(entry.body, self.targets), entry.type)
            if entry.method == "PUT" and len(entry.steps) == 2 and resource.id != write.id:
                raise Malformed(f"{entry.type}.id must be the id in the URL", f"{entry.type}.id")
            if write.search is None or entry.method == "POST":
                resource = replace(resource, id=write.id)
            write.resource = resource
            self._ask_references(write, resource.tree)

    def _ask_references(self, write: _Write, tree: dict[str, Any]) -> None:
        for reference in references(tree):
            if reference.kind == "conditional" and reference.type and reference.url not in self.asked:
                query = conditional.condition(self.exchange, reference.type, reference.url)
                self.asked[reference.url] = _Asked(self._search(query), write, reference.path)

    def _require_once(self) -> None:
        seen: set[str] = set()
        for write in self.writes:
            name = f"{write.entry.type}/{write.id}"
            if write.id and name in seen:
                raise Invalid(f"{write.entry.path} writes what another entry writes too", f"{write.entry.path}.request.url")
            seen.add(name)

    # --- inside the transaction ------------------------------------------------------------------------------------------------

    def _make(self, found: list[list[Stored]]) -> list[Put | Delete]:
        """The plan: every condition is decided, then references are led to what that came to."""
        gone = {f"{one.entry.type}/{one.id}" for one in self.writes if one.entry.method == "DELETE"}
        moved: dict[str, str] = {}
        for write in self.writes:
            if write.search is not None:
                write.matches = [one for one in found[write.search] if f"{one.type}/{one.id}" not in gone]
                self._move(write, moved)
        for text, asked in self.asked.items():
            moved[text] = _placed_error(asked.write, partial(_led, text, found[asked.search], asked.path))
        self.results = [self._operations(write, moved) for write in self.writes]
        operations = [operation for done in self.results if isinstance(done, list) for operation in done]
        _require_distinct(operations)
        return operations

    def _move(self, write: _Write, moved: dict[str, str]) -> None:
        """A condition that found something, or a client's own id: references lead there instead of to the id that was made up."""
        if write.entry.method not in ("POST", "PUT"):
            return
        match = _placed_error(write, lambda: conditional.the_match(list(write.matches), write.entry.type))
        own = match.id if match else write.resource.id if write.resource and write.resource.id else write.id
        if own != write.id:
            moved[f"{write.entry.type}/{write.id}"] = f"{write.entry.type}/{own}"

    def _operations(self, write: _Write, moved: Mapping[str, str]) -> list[Put | Delete] | Stored | None:
        entry, matches = write.entry, list(write.matches)
        if entry.method == "DELETE":
            if write.search is None:
                return [Delete(entry.type, write.id or "", write.if_version)]
            limit = self.exchange.settings.conditional_delete_limit
            return list(_placed_error(write, lambda: conditional.deletes_of(matches, entry.type, limit, write.if_version)))
        if write.change is not None:
            change = write.change
            put = _placed_error(write, lambda: patch_of(matches, entry.type, change, write.if_version))
            return [replace(put, resource=_moved(put.resource, moved))]
        resource = _moved(write.resource, moved)
        if entry.method == "POST":
            return matches[0] if matches else [Put(resource, if_version=0, fresh=True)]
        if write.search is None:
            return [Put(resource, write.if_version, must_exist=not self.exchange.may_create(entry.type))]
        match, may_create = matches[0] if matches else None, self.exchange.may_create(entry.type)
        return [
            _placed_error(
                write, lambda: conditional.update_of(match, resource, write.if_version, may_create=may_create, new_id=write.id)
            )
        ]


def _led(text: str, matches: list[Stored], path: str) -> str:
    """Where a conditional reference leads. Raises Invalid, MultipleMatches."""
    if len(matches) != 1:
        many = "several resources" if matches else "nothing"
        error = MultipleMatches if matches else Invalid
        raise error(f"A conditional reference to {text.partition('?')[0]} matches {many}; it must match one", path)
    return f"{matches[0].type}/{matches[0].id}"


def _moved(resource: Checked | None, moved: Mapping[str, str]) -> Checked:
    assert resource is not None
    body = rewrite_urls(resource.body, moved) if moved else resource.body
    return resource if body == resource.body else replace(resource, body=body, tree=json.loads(body))


def _require_distinct(operations: Sequence[Put | Delete]) -> None:
    seen: set[tuple[str, str]] = set()
    for one in operations:
        if _identity(one) in seen:
            raise Invalid("A condition matches what another entry of the transaction writes")
        seen.add(_identity(one))


def _identity(operation: Put | Delete) -> tuple[str, str]:
    if isinstance(operation, Delete):
        return operation.type, operation.id
    return operation.resource.type, operation.resource.id or ""


def _placed(issue: Issue, entry: Entry) -> Issue:
    if issue.expression and issue.expression.startswith(entry.path):
        return issue
    expression = f"{entry.path}.resource.{issue.expression.partition('.')[2]}".rstrip(".") if issue.expression else entry.path
    return replace(issue, text=f"{entry.path}: {issue.text}", expression=expression)


def _placed_error(write: _Write, decide: Callable[[], Decided]) -> Decided:
    """Tell an error of one entry with its place."""
    try:
        return decide()
    except FhirError as error:
        error.issues = [_placed(issue, write.entry) for issue in error.issues]
        raise
