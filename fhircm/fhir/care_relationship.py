"""What a resource says of who cares for whom: the members of a team, the receiver of a referral, the payer of a coverage.

The kinds are data: profiles/care-relationship. A relationship shares a patient's whole record, or only what its resource names; the
resource's own state and periods say when. A period without an end lasts; that of what has ended without one ends with the version that
says so. docs/explanation/access.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.definitions import definitions, param_key
from fhircm.fhir.ranges import EARLIEST, LATEST, date_range
from fhircm.fhir.references import Reference, parse_reference, references

_SELF = "$self"
_DAY = 86_400_000_000  # microseconds
_ALL = frozenset({"*"})


class Relationship(NamedTuple):
    """`grantee` may see the whole record of the Patient `id`, or only the resource type/id, within [low, high) in microseconds, UTC.

    `parameter` is the code of the kind.
    """

    parameter: str
    grantee: str
    type: str
    id: str
    whole: bool
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Party:
    """Elements that name who has the relationship: `names` stand inside of `within` ('': the resource), and so does a period of its own."""

    names: tuple[str, ...]
    within: str = ""
    period: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of relationship. `types`: those of the record that it opens (None: all). `except_`: what has this value says nothing.

    `only`: what has not this code, or this value, says nothing. `shares_named`: it shares what its resource names, and not that one alone.
    `emergency`: it overrides consents and labels.
    """

    code: str
    title: str
    resource: str
    only: tuple[str, frozenset[str]] | None
    except_: tuple[str, frozenset[str]] | None
    active: tuple[str, frozenset[Any]] | None
    ended: frozenset[Any]
    inactive: tuple[str, frozenset[Any]] | None
    patients: tuple[str, ...]
    members: Mapping[str, str] | None
    parties: tuple[Party, ...]
    period: str
    lasts: int
    shares_record: bool
    shares_named: bool
    types: frozenset[str] | None
    emergency: bool

    @property
    def key(self) -> int:
        """The number of the kind in the store."""
        return param_key(self.resource, self.code)

    def opens(self, type: str) -> bool:
        """Whether the whole record, as far as this kind shares it, has resources of a type."""
        return self.types is None or type in self.types


@cache
def kinds() -> tuple[Kind, ...]:
    """Every kind of profiles/care-relationship."""
    files = sorted((folder("profiles") / "care-relationship").glob("*.yaml"))
    return tuple(_kind(path.stem, read_yaml(path)) for path in files)


def _kind(code: str, tree: dict[str, Any]) -> Kind:
    def states(name: str) -> tuple[str, frozenset[Any]] | None:
        ((path, values),) = tree.get(name, {"": ()}).items()
        return (path, frozenset(values)) if path else None

    ended = states("ended")
    types = tree.get("types")
    if tree["resource"] not in definitions().resource_types or tree["shares"] not in ("record", "what it names", "itself"):
        raise ValueError(f"care-relationship/{code}.yaml: a resource type or a share that is not known")
    if types and set(types) - definitions().resource_types:
        raise ValueError(f"care-relationship/{code}.yaml: {', '.join(set(types) - definitions().resource_types)} is no type")
    return Kind(
        code=code,
        title=tree["title"],
        resource=tree["resource"],
        only=_test(tree.get("only")),
        except_=_test(tree.get("except")),
        active=states("active"),
        ended=ended[1] if ended else frozenset(),
        inactive=states("inactive"),
        patients=tuple(tree.get("patient", ())),
        members=tree.get("members"),
        parties=tuple(Party(tuple(one["names"]), one.get("within", ""), one.get("period", "")) for one in tree["parties"]),
        period=tree.get("period", ""),
        lasts=_days(tree["lasts"]) * _DAY if "lasts" in tree else 0,
        shares_record=tree["shares"] == "record",
        shares_named=tree["shares"] == "what it names",
        types=frozenset(types) if types else None,
        emergency=bool(tree.get("emergency")),
    )


def _test(tree: dict[str, Any] | None) -> tuple[str, frozenset[str]] | None:
    """A path, and the codes or values of which one stands there."""
    return tree and (tree["path"], frozenset(tree.get("values", ())) or frozenset({tree.get("code") or tree.get("value")}))


def _days(text: str) -> int:
    if not (text.startswith("P") and text.endswith("D") and text[1:-1].isdigit()):
        raise ValueError("a duration is written in days: P90D")
    return int(text[1:-1])


@cache
def _by_resource() -> dict[str, tuple[Kind, ...]]:
    found: dict[str, tuple[Kind, ...]] = {}
    for kind in kinds():
        found[kind.resource] = (*found.get(kind.resource, ()), kind)
    return found


def relationships(
    tree: Mapping[str, Any], *, whole: bool = False, named: Sequence[Reference] | None = None
) -> list[Relationship]:
    """The relationships that a stored resource makes; its `meta.lastUpdated` tells when what has ended did so.

    `whole`: only those that open whole records. `named`: the references that it holds, when they are known.
    """
    found: dict[tuple[Any, ...], Relationship] = {}
    fitting = [kind for kind in _by_resource().get(tree["resourceType"], ()) if kind.shares_record or not whole]
    if named is None:
        named = references(dict(tree)) if any(kind.shares_named for kind in fitting) else []
    for kind in fitting:
        for one in _of_kind(kind, tree, named):
            key = (one.parameter, one.grantee, one.type, one.id, one.low)
            if key not in found or found[key].high < one.high:
                found[key] = one
    return list(found.values())


def makes_relationships(type: str) -> bool:
    """Whether resources of a type can say who cares for whom."""
    return type in _by_resource()


def _of_kind(kind: Kind, tree: Mapping[str, Any], named: Sequence[Reference]) -> Iterator[Relationship]:
    span = _span_of(kind, tree)
    if span is None:
        return
    own = f"{tree['resourceType']}/{tree['id']}"
    shared = list(_shared(kind, tree, own, named))
    for party in kind.parties:
        for element in _within(tree, party.within):
            low, high = _both(span, _period(element, party.period))
            for name in party.names:
                for grantee in _local(element, name, own):
                    for type, id, (least, most) in shared:
                        begin, end = max(low, least), min(high, most)
                        if begin < end and f"{type}/{id}" != grantee:
                            yield Relationship(kind.code, grantee, type, id, kind.shares_record, begin, end)


def _span_of(kind: Kind, tree: Mapping[str, Any]) -> tuple[int, int] | None:
    """When the relationships of a resource hold; None: it makes none."""
    if kind.only and kind.only[1].isdisjoint(_said(_values(tree, kind.only[0]))):
        return None
    if kind.except_ and not kind.except_[1].isdisjoint(_said(_values(tree, kind.except_[0]))):
        return None
    low, high = _period(tree, kind.period)
    if kind.lasts and high != LATEST:
        high += kind.lasts
    if kind.inactive and not kind.inactive[1].isdisjoint(_values(tree, kind.inactive[0])):
        return low, min(high, _changed(tree))
    if kind.active:
        states = _values(tree, kind.active[0])
        if not kind.ended.isdisjoint(states):
            return low, min(high, _changed(tree))
        if kind.active[1].isdisjoint(states):
            return None
    return low, high


def _shared(
    kind: Kind, tree: Mapping[str, Any], own: str, named: Sequence[Reference]
) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """What the grantees may see: patients, or what the resource names (`named`), itself included; and when."""
    always = (EARLIEST, LATEST)
    if kind.members:
        for member in _within(tree, kind.members["within"]):
            if True not in _values(member, kind.members["unless"]):
                for patient in _local(member, kind.members["patient"], own):
                    if patient.startswith("Patient/"):
                        yield "Patient", patient[8:], _period(member, kind.members["period"])
        return
    if kind.shares_record:
        for path in kind.patients:
            for patient in _local(tree, path, own):
                if patient.startswith("Patient/"):
                    yield "Patient", patient[8:], always
        return
    yield tree["resourceType"], tree["id"], always
    if not kind.shares_named:
        return
    for reference in named:
        if reference.kind == "local" and reference.type and reference.id:
            yield reference.type, reference.id, always


def _within(tree: Any, path: str) -> list[Any]:
    return [one for one in _values(tree, path) if isinstance(one, dict)] if path else [tree]


def _values(tree: Any, path: str) -> list[Any]:
    """What stands at a path of members; lists are gone through."""
    found: list[Any] = [tree]
    for member in path.split("."):
        following = [one[member] for one in found if isinstance(one, dict) and member in one]
        found = [part for one in following for part in (one if isinstance(one, list) else [one])]
    return found


def _said(elements: Sequence[Any]) -> set[str]:
    """What elements say: values as they are, and the codes of concepts."""
    concepts = [one for one in elements if isinstance(one, dict)]
    codes = {coding.get("code", "") for one in concepts for coding in one.get("coding", ()) if isinstance(coding, dict)}
    return codes | {one for one in elements if isinstance(one, str)}


def _local(tree: Any, path: str, own: str) -> Iterator[str]:
    if path == _SELF:
        yield own
        return
    for one in _values(tree, path):
        text = one.get("reference") if isinstance(one, dict) else None
        if isinstance(text, str):
            reference = parse_reference(text)
            if reference.kind == "local":
                yield f"{reference.type}/{reference.id}"


def _period(tree: Any, path: str) -> tuple[int, int]:
    low, high = EARLIEST, LATEST
    for period in _values(tree, path) if path else ():
        if isinstance(period, dict):
            low = max(low, date_range(period["start"])[0]) if "start" in period else low
            high = min(high, date_range(period["end"])[1]) if "end" in period else high
    return low, high


def _both(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), min(one[1], other[1])


def _changed(tree: Mapping[str, Any]) -> int:
    return date_range(tree["meta"]["lastUpdated"])[0]
