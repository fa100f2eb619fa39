"""What all partners say of one person, read from the hub's copies, and what of it is no input at all.

https://hl7.org/fhir/R4/careplan.html. The copies are only read. What the hub itself made out of them, or sent to a partner and got back,
is never an input: it bears an identifier that says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fhircm.access.visibility import closed_labels
from fhircm.coordination.build import npi
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Context
from fhircm.coordination.longitudinal.table import table
from fhircm.coordination.longitudinal.terms import Terms, known
from fhircm.coordination.people import patient_of, patients_value
from fhircm.fhir.references import parse_reference
from fhircm.fhir.systems import DELIVERY, LONGITUDINAL
from fhircm.store.resources import Stored

Tree = dict[str, Any]
TYPES = ("CarePlan", "CareTeam", "Condition", "Goal", "ServiceRequest")
HUB = "hub"  # who says what came from no partner
GONE = "gone"  # the fingerprint of what a partner has no more
_WITHDRAWN = {"CarePlan": "status", "CareTeam": "status", "Goal": "lifecycleStatus", "ServiceRequest": "status"}


@dataclass(frozen=True, slots=True)
class Source:
    """One resource of a partner. `voice` is who says it; `own` whether that organisation also wrote it."""

    type: str
    id: str
    tree: Tree
    voice: str = HUB
    own: bool = False
    protected: bool = False  # a security label closes it: it is pointed to and never told

    @property
    def reference(self) -> str:
        """Type/id at the hub."""
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class Left:
    """What is not in the plan, and why, in words without clinical content."""

    reference: str
    reason: str


@dataclass(frozen=True, slots=True)
class Records:
    """Everything that goes into the plan of a person. `patients` are the ids of its Patients, the first is the anchor."""

    patients: tuple[str, ...]
    sources: Mapping[str, Source] = field(default_factory=dict)  # by reference
    others: Mapping[str, Tree] = field(default_factory=dict)  # what they refer to beside: practitioners, requests of other types
    left: tuple[Left, ...] = ()
    primary_care: frozenset[str] = frozenset()  # the partners at which the person's general practitioner works
    terms: Terms = field(default_factory=Terms)

    def of(self, type: str) -> list[Source]:
        """The sources of a type, in the order of their references."""
        return [one for _, one in sorted(self.sources.items()) if one.type == type]


def is_derived(tree: Tree) -> bool:
    """Whether the hub made this out of what others say."""
    return any(one.get("system") == LONGITUDINAL for one in tree.get("identifier", []))


def local(element: Any) -> str | None:
    """Type/id that a Reference to this server means."""
    to = parse_reference((element or {}).get("reference", ""))
    return f"{to.type}/{to.id}" if to.kind == "local" and to.type and to.id else None


async def gathered(context: Context, patients: Sequence[str]) -> Records:
    """All records of the person who has these Patients. They are taken in a fixed order: the smallest id is the anchor."""
    ids = tuple(sorted(patients))
    found = [one for type in TYPES for one in await context.find(type, patients_value(list(ids)))]
    people = await context.store.read_many([("Patient", id) for id in ids])
    gone = await _gone(context, [stored.tree for stored in people.values()])
    kept: list[Stored] = []
    left: list[Left] = []
    for stored in found:
        if is_derived(stored.tree):
            continue
        if reason := _no_input(stored.tree, gone):
            left.append(Left(f"{stored.type}/{stored.id}", reason))
        else:
            kept.append(stored)
    others = await _others(context, kept, people.values())
    sources = {f"{one.type}/{one.id}": _source(context, one, others) for one in kept}
    codes = (
        code for one in kept if one.type != "CareTeam" for code in codings(one.tree.get("code"), one.tree.get("description"))
    )
    return Records(
        ids, sources, others, tuple(left), _primary_care(context, people.values(), others), await known(context.store, codes)
    )


def _no_input(tree: Tree, gone: frozenset[str]) -> str | None:
    """Why a resource is no input."""
    if any(one.get("system") == DELIVERY for one in tree.get("identifier", [])):
        return "the hub sent it"
    withdrawn = tree.get(_WITHDRAWN.get(tree["resourceType"], "")) == "entered-in-error"
    if withdrawn or any(code in ("entered-in-error", "refuted") for _, code in codings(tree.get("verificationStatus"))):
        return "it was entered in error or refuted"
    return "the partner has it no more" if tree.get("meta", {}).get("source") in gone else None


async def _gone(context: Context, patients: Iterable[Tree]) -> frozenset[str]:
    """The addresses of what partners had of these Patients and have no more; the copies stay at the hub."""
    found: set[str] = set()
    for tree in patients:
        partner = context.source_of(tree)
        if partner is not None:
            key = tree["meta"]["source"].removeprefix(f"{partner.base_url}/")
            row = await context.store.state(f"mirror:{partner.name}", key)
            found |= {f"{partner.base_url}/{one}" for one, mark in (row or {}).get("of", {}).items() if mark == GONE}
    return frozenset(found)


async def _others(context: Context, kept: Sequence[Stored], patients: Iterable[Stored]) -> dict[str, Tree]:
    """What the sources refer to beside one another: two steps, from a role to who holds it and where."""
    have = {f"{one.type}/{one.id}" for one in kept}
    wanted = {to for one in kept for to in _referred(one.tree)}
    wanted |= {to for one in patients for element in one.tree.get("generalPractitioner", []) if (to := local(element))}
    found: dict[str, Tree] = {}
    for _ in range(2):
        asked = sorted(wanted - have - found.keys())
        pairs = [(one.partition("/")[0], one.partition("/")[2]) for one in asked]
        fresh = {f"{type}/{id}": stored.tree for (type, id), stored in (await context.store.read_many(pairs)).items()}
        found |= fresh
        wanted = {to for tree in fresh.values() for name in ("practitioner", "organization") if (to := local(tree.get(name)))}
    return found


def _referred(tree: Tree) -> Iterable[str]:
    elements = [activity.get("reference") for activity in tree.get("activity", [])] if tree["resourceType"] == "CarePlan" else []
    elements += [one.get(name) for one in tree.get("participant", []) for name in ("member", "onBehalfOf")]
    elements += [tree.get(name) for name in table().author.get(tree["resourceType"], ())]
    return [to for one in elements if isinstance(one, dict) and (to := local(one))]


def _source(context: Context, stored: Stored, others: Mapping[str, Tree]) -> Source:
    tree = stored.tree
    neighbour = context.source_of(tree)
    voice = neighbour.name if neighbour else HUB
    wrote = {_partner(context, tree.get(name), others) for name in table().author.get(stored.type, ())}
    labels = {code.casefold() for _, code in codings(tree.get("meta", {}).get("security", []))}
    return Source(stored.type, stored.id, tree, voice, voice in wrote, not labels.isdisjoint(closed_labels(frozenset())))


def _partner(context: Context, element: Any, others: Mapping[str, Tree]) -> str | None:
    """The partner at whose organisation somebody is; None when that is not known."""
    tree = others.get(local(element) or "")
    if tree is not None and tree["resourceType"] == "PractitionerRole":
        tree = others.get(local(tree.get("organization")) or "")
    if tree is None or tree["resourceType"] != "Organization":
        return None
    number = npi(tree)
    neighbour = context.neighbour(npi=number) if number else None
    return neighbour.name if neighbour else None


def _primary_care(context: Context, patients: Iterable[Stored], others: Mapping[str, Tree]) -> frozenset[str]:
    said = (_partner(context, one, others) for stored in patients for one in stored.tree.get("generalPractitioner", []))
    return frozenset(name for name in said if name)


def of_these(records: Records, tree: Tree) -> bool:
    """Whether a resource is about this person, or about nobody."""
    patient = patient_of(tree)
    return patient is None or patient in records.patients


def asserted(tree: Tree, names: Sequence[str]) -> str | None:
    """When a source says that it was asserted, as written: the first of these elements that it has."""
    return next((tree[name] for name in names if isinstance(tree.get(name), str)), None)
