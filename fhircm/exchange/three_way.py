"""Three-way merge of a resource's elements: what the hub changed and what the partner changed since both last had the same.

https://hl7.org/fhir/R4/http.html#concurrency. Two bases are kept, for a server may write down what it was sent in its own manner: what the
hub sent then tells what the hub changed since; what the partner had then tells what the partner changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_OWN = frozenset(
    {"resourceType", "id", "meta", "implicitRules", "text", "contained"}
)  # the server's own, or follows from the rest
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Merged:
    """`members` are those to set in theirs (None: to take away); `clashes` names the elements that both changed."""

    members: dict[str, Any]
    clashes: tuple[str, ...]


def merge(
    sent: dict[str, Any],
    had: dict[str, Any],
    theirs: dict[str, Any],
    ours: dict[str, Any],
    prefer: str | None = None,
    tried: Sequence[dict[str, Any]] = (),
) -> Merged:
    """What is to be set in theirs. `prefer` settles the clashes: "hub" or "partner".

    `tried` are members that the hub tried to set since and never heard whether they were: where they stand there, nobody else changed.
    """
    members: dict[str, Any] = {}
    clashes: list[str] = []
    for name in sorted({*sent, *ours} - _OWN):
        before, now, there, was = (one.get(name, _NOTHING) for one in (sent, ours, theirs, had))
        if now == before or says(there, now):
            continue
        if there == was or says(there, before) or any(name in one and _stands(there, one[name]) for one in tried):
            members[name] = None if now is _NOTHING else now
        elif (united := _united(before, now, there)) is not None:
            members[name] = united
        elif prefer == "hub":
            members[name] = None if now is _NOTHING else now
        elif prefer is None:
            clashes.append(name)
    return Merged(members, tuple(clashes))


def _stands(there: Any, value: Any) -> bool:
    return there is _NOTHING if value is None else says(there, value)


def says(there: Any, ours: Any) -> bool:
    """Whether what stands there says at least what we say: a server may add to it (a display, an id)."""
    if isinstance(ours, dict):
        return isinstance(there, dict) and all(name in there and says(there[name], value) for name, value in ours.items())
    if isinstance(ours, list):
        return isinstance(there, list) and len(there) == len(ours) and all(map(says, there, ours))
    return bool(there == ours)


def _united(before: Any, now: Any, there: Any) -> list[Any] | None:
    """A list to which both added: theirs with our additions, without what we took away. None when it cannot be told apart."""
    if not all(isinstance(one, list) for one in (now, there)) or not isinstance(before, list | type(_NOTHING)):
        return None
    before = [] if before is _NOTHING else before
    gone = [one for one in before if one not in now]
    if any(not any(says(other, one) for other in there) for one in before):
        return None  # the partner changed or removed one that was there: which of ours it answers to, nobody knows
    kept = [one for one in there if not any(says(one, away) for away in gone)]
    return kept + [one for one in now if one not in before and not any(says(other, one) for other in kept)]


def json_patch(theirs: dict[str, Any], members: dict[str, Any]) -> list[dict[str, Any]]:
    """The same as JSON Patch (RFC 6902)."""
    edits: list[dict[str, Any]] = []
    for name, value in members.items():
        if value is None:
            edits.append({"op": "remove", "path": f"/{name}"})
        else:
            edits.append({"op": "replace" if name in theirs else "add", "path": f"/{name}", "value": value})
    return edits
