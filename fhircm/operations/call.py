"""What an operation is called with, and what it answers. https://hl7.org/fhir/R4/operations.html#request"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fhircm.access.guarded_store import GuardedStore
from fhircm.exchange.source_address import Allowed
from fhircm.fhir import json
from fhircm.fhir.outcome import NotSupported
from fhircm.store.stored import Stored


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a call: a value (a string, number or flag, or the tree of a data type), a resource's tree, or parts."""

    name: str
    type: str  # the FHIR type of the value; the type of the resource; '' for parts
    value: Any
    parts: tuple[Argument, ...] = ()


class Links(Protocol):
    """Makes and reads the tokens of next pages: fhircm/rest/links.py."""

    def write(self, place: str, parameters: list[tuple[str, str]], state: dict[str, Any]) -> str: ...
    def read(self, place: str, token: str) -> tuple[list[tuple[str, str]], dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A call that has passed its OperationDefinition: every argument is one of its parameters, of the type that it says.

    `type` and `id` say at what it was called: neither at the system, `type` alone at a type, both at an instance; `version` one of
    its versions, as it was written in the address. `if_version` is what If-Match names.
    """

    store: GuardedStore
    base_url: str
    type: str | None
    id: str | None
    arguments: Sequence[Argument] = ()
    headers: Mapping[str, str] = field(default_factory=dict)  # of the request, names in lower case
    url: str = ""  # as it was requested, with its query
    version: str | None = None
    if_version: int | None = None
    sources: Allowed = field(default_factory=Allowed)  # from where files may be imported
    ignored: Sequence[str] = ()  # parameters that the operation does not have, of a caller that prefers handling=lenient
    may_create: bool = False  # whether an update of what does not exist creates it
    links: Links = field(kw_only=True)

    @property
    def lenient(self) -> bool:
        """Whether the caller takes an answer that passes over what this server does not have."""
        return "handling=lenient" in self.headers.get("prefer", "").replace(" ", "").lower()

    def all(self, name: str) -> list[Any]:
        """The values of a parameter that may come again."""
        return [argument.value for argument in self.arguments if argument.name == name]

    def one(self, name: str, default: Any = None) -> Any:
        """The value of a parameter, or the default."""
        return next(iter(self.all(name)), default)

    def required(self, name: str) -> Any:
        """The value of a parameter that this use of the operation needs. Raises NotSupported."""
        value = self.one(name)
        if value is None:
            raise NotSupported(f"The parameter '{name}' is needed here")
        return value


@dataclass(frozen=True, slots=True)
class Answer:
    """The result: the bytes of a resource (none: no body), the status, and headers besides."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Entry(NamedTuple):
    """A resource in a Searchset, and its `search` element: mode, score …"""

    stored: Stored
    search: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Searchset:
    """A result that is a Bundle of what was found, as it is stored."""

    entries: Sequence[Entry]
    self_url: str
    next_url: str | None = None
    total: int | None = None


def parameters(*members: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of a Parameters resource with these parameters, each as FHIR has it: name and value[x], resource or part."""
    tree: dict[str, Any] = {"resourceType": "Parameters"}
    return Answer(json.dumps(tree | ({"parameter": list(members)} if members else {})), headers=headers or {})
