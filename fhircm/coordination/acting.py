"""What a person or a system does to a resource of coordination: a verb reads what it needs and returns writes, and nothing else.

An operation (`Task/[id]/$accept`) carries out a verb for who calls it, with what they may see and write. A verb writes only what a plain
update could have written, so that both mean the same: what follows from it is the work of the reactions, whichever way it came.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fhircm.access.guarded_store import GuardedStore
from fhircm.coordination.context import Record
from fhircm.fhir.outcome import VersionConflict
from fhircm.store.operations import Delete, Plan, Put
from fhircm.store.resources import Stored

_ATTEMPTS = 5  # to read anew what somebody else wrote in between


@dataclass(frozen=True, slots=True)
class Act(Record):
    """One act: what it is done to, with what is said of it by name; `store` is what the actor sees. What is found is what they may see."""

    store: GuardedStore
    about: Stored = field(kw_only=True)
    said: Mapping[str, Sequence[Any]] = field(kw_only=True)

    def one(self, name: str, default: Any = None) -> Any:
        """What was said under a name, or the default."""
        return next(iter(self.said.get(name, ())), default)


# A verb that weighs what everybody does gives a plan, of updates of what it is done to.
Verb = Callable[[Act], Awaitable[Sequence[Put | Delete] | Plan]]


async def act(
    store: GuardedStore, verb: Verb, type: str, id: str, said: Mapping[str, Sequence[Any]], *, if_version: int | None = None
) -> Stored:
    """Do it, all or nothing; returns how the resource stands after that, or when the verb writes only others, the first of those.

    When somebody else was faster, it looks again and decides anew.

    `if_version`: only at this version. Raises NotFound, Gone, Forbidden, VersionConflict, and what the verb and the write raise.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        about = await store.read(type, id)
        if if_version not in (None, about.version):
            raise VersionConflict(f"{type}/{id} is at version {about.version}, not {if_version}")
        writes = await verb(Act(store, about=about, said=said))
        try:
            if isinstance(writes, Plan):
                stored = await store.weigh(writes, [("u", type)])
            else:
                stored = await store.transact(list(writes), [_needed(write) for write in writes])
        except VersionConflict:
            if if_version is not None or attempt == _ATTEMPTS:
                raise
        else:
            return next((one for one in stored if (one.type, one.id) == (type, id)), stored[0] if stored else about)
    raise AssertionError("unreachable")


def _needed(write: Put | Delete) -> tuple[str, str]:
    if isinstance(write, Delete):
        return "d", write.type
    return "c" if write.if_version == 0 else "u", write.resource.type
