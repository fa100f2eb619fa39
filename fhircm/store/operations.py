"""What a transaction may hold: writes of resources, timers, cursors and small durable facts.

docs/decisions/reactions-return-operations.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fhircm.fhir.conditions import Condition
from fhircm.fhir.query import Query
from fhircm.fhir.validation import Checked
from fhircm.store.stored import Stored

if TYPE_CHECKING:
    from fhircm.store.reindex import Reindexed
    from fhircm.store.visibility import Viewer
    from fhircm.store.work_list import WorkQuery


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What a caller may see: for each resource type the conditions that hold besides; a type that is not listed is not seen.

    It holds wherever a search reaches: matches, included resources, and what chains and _has look into. `viewer`: who looks, when that
    is somebody who does not see everything, at the time `now` (microseconds since the epoch, UTC).
    """

    by_type: Mapping[str, Sequence[Condition]]
    viewer: Viewer | None = None
    now: int = 0


class Position(NamedTuple):
    """How far the changes have been read: docs/decisions/change-numbers-in-order.md."""

    transaction: int
    number: int


START = Position(0, 0)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who writes: the references by which resources name them. `everyone`: a system that acts for whoever is concerned.

    `roles`: their codes of profiles/role/. `unplaced`: references to people of whom no organisation is known, as far as a rule asked.
    `leads`: they lead the others of their organisation.
    """

    known_as: frozenset[str]
    everyone: bool = False
    roles: frozenset[str] = frozenset()
    unplaced: frozenset[str] = frozenset()
    leads: bool = False

    def is_(self, element: Mapping[str, Any] | None) -> bool:
        """Whether a Reference names them."""
        return self.everyone or (element or {}).get("reference") in self.known_as


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a resource, as a rule sees it, under the lock of that resource.

    `previous` None: there was none; `new` None: it is deleted. `actor` None: the hub itself, or a record that comes from elsewhere
    (`origin` says from where). `now`: when, by the store's clock, in UTC; None when it is only asked whether it could be made.
    """

    previous: dict[str, Any] | None
    new: dict[str, Any] | None
    origin: str
    actor: Actor | None = None
    now: datetime | None = None


Chains = Mapping[str, Mapping[str, str]]  # resource type: element: the search parameter that tells what it refers to


class WriteRule(NamedTuple):
    """What every write of these types must obey: `check` raises what is wrong.

    `deletes`: it is asked of a deletion, too. `facts`: what else is true with the write, in the same transaction: with `if_absent` a fact
    is held by one resource at a time, however many are written at the same moment. `parties`: the references to those on whose side the
    writer could be; `check` finds those of the writer's organisations among what the actor is known as. `chains`: what must not lead back
    to where it began.
    """

    types: frozenset[str]
    check: Callable[[Write], None]
    deletes: bool = False
    facts: Callable[[Write], Sequence[SetState]] | None = None
    parties: Callable[[Write], Iterable[str]] | None = None
    chains: Chains = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Change:
    """One write that became visible; `origin` names who caused it (hub, partner:NAME, client:ID, load)."""

    position: Position
    type: str
    id: str
    version: int
    method: str
    origin: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Timer:
    """A due timer as it was claimed; `token` is the fence against a worker that lost its claim."""

    key: str
    kind: str
    due: datetime
    payload: dict[str, Any]
    attempts: int
    token: int


@dataclass(frozen=True, slots=True)
class Put:
    """Create or update. `if_version` None: whatever is there; 0: must not exist; n: version n must be current.

    `fresh`: its id was drawn at random just now, so that there is nothing to look for and nobody to wait for.
    """

    resource: Checked
    if_version: int | None = None
    must_exist: bool = False
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete, when `if_version` (if given) is current."""

    type: str
    id: str
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Set a timer; one with the same key is replaced."""

    key: str
    kind: str
    due: datetime
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Remove a timer, if it is there."""

    key: str


@dataclass(frozen=True, slots=True)
class FinishTimer:
    """Remove a claimed timer; StaleClaim if another worker has claimed it since."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class RepeatTimer:
    """Set a claimed timer again, with no attempt counted; StaleClaim if another worker has claimed it since, or it was cancelled."""

    timer: Timer
    due: datetime
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MoveCursor:
    """Move a cursor that must stand at `before`; CursorMoved if it does not."""

    name: str
    before: Position
    to: Position


@dataclass(frozen=True, slots=True)
class SetState:
    """Set a fact, or remove it with value None. Conflict when it is there already and `if_absent`, or is not and `if_present`."""

    namespace: str
    key: str
    value: dict[str, Any] | None
    if_absent: bool = False
    if_present: bool = False  # with value None only
    if_equal: dict[str, Any] | None = None  # with value None only: another value stays, without a word
    otherwise: str = ""  # what the Conflict says to people


@dataclass(frozen=True, slots=True)
class ClearStates:
    """Remove every fact of a namespace."""

    namespace: str


@dataclass(frozen=True, slots=True)
class RewriteSearchRows:
    """Replace the search rows of resources (as `Store.to_reindex` gives them) that are still at the version they were made of."""

    resources: Sequence[Reindexed]


@dataclass(frozen=True, slots=True)
class KeepForJob:
    """Keep what a job needs or makes: parts of its files (file, part, body), and the resources it is about (type, id).

    `referring`: also what these resources (by key) refer to, of the types `to`; `closed`: also what that refers to, and so on.
    """

    job: str
    parts: Sequence[tuple[int, int, bytes]] = ()
    targets: Sequence[tuple[str, str]] = ()
    referring: Sequence[int] = ()
    to: Sequence[str] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True)
class DropForJob:
    """Forget all of that."""

    job: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep in quarantine what a partner sent and the hub cannot take; the same name again replaces what was held under it.

    `kind` is why, in one word; `reason` says it in words that tell nothing of a patient; `batch`: store/quarantine.py.
    """

    partner: str
    name: str
    kind: str
    digest: str
    reason: str
    body: bytes
    batch: str = ""


@dataclass(frozen=True, slots=True)
class LetGo:
    """Forget what was held under a name, if anything."""

    partner: str
    name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write depends on what is there: `make` is given what each search finds, and returns what to do.

    The searches are asked inside the transaction, under a lock on their words: of equal plans at the same time one comes first, and
    the others find what it wrote. Each finds at most as many matches as its query's `count`. `make` must do nothing but return or
    raise: it is asked anew when somebody else wrote a match in between.
    """

    searches: Sequence[Query]
    make: Callable[[list[list[Stored]]], Sequence[Op]]
    within: Narrowing | None = None
    free: Free | None = None


@dataclass(frozen=True, slots=True)
class Free:
    """What a plan is given besides, after what its searches find: of a work list the first Tasks that `fits` says yes to, at most `query.count`.

    What somebody else writes at this moment is passed over, so that many who take from one list do not wait for each other.
    """

    query: WorkQuery
    fits: Callable[[Stored], bool]


Op = (
    Put
    | Delete
    | SetTimer
    | CancelTimer
    | FinishTimer
    | RepeatTimer
    | MoveCursor
    | SetState
    | ClearStates
    | RewriteSearchRows
    | KeepForJob
    | DropForJob
    | Hold
    | LetGo
)


def preceded_by(operations: Sequence[Op] | Plan, *more: Op) -> Sequence[Op] | Plan:
    """The same, with more before it in the same transaction."""
    if isinstance(operations, Plan):
        return replace(operations, make=lambda found: [*more, *operations.make(found)])
    return [*more, *operations]
