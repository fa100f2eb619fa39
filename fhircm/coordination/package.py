"""What a referral carries, and what is missing before it may be sent: profiles/referral-package/ says what each kind needs.

http://hl7.org/fhir/us/sdoh-clinicalcare (content-rich referral, SDOHCC-Consent). The content is what the order refers to (supportingInfo,
reasonReference, insurance), what somebody added to the Task's input, and the patient's consent to the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from fhircm.coordination.build import npi
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Record
from fhircm.coordination.people import linked, organization_of, patient_of, patients_value
from fhircm.coordination.times import moment
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.store.resources import Stored

Tree = dict[str, Any]
CARRIED = ("supportingInfo", "reasonReference", "insurance")
ADDITIONAL_CONTENT = {
    "system": "http://hl7.org/fhir/us/sdoh-clinicalcare/CodeSystem/SDOHCC-CodeSystemTemporaryCodes",
    "code": "additional-content",
}
_RELEASE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_NOT_YET = ("draft", "proposed", "entered-in-error")


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a referral must bring: `any` of these, or a consent of this category."""

    says: str
    any: tuple[Tree, ...] = ()
    consent: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of referral needs."""

    title: str
    when: frozenset[tuple[str, str]]
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """What a referral carries, in the order in which it is named, and in words what is missing."""

    content: tuple[Stored, ...]
    missing: tuple[str, ...]
    consent: Stored | None = None

    @property
    def inputs(self) -> list[Tree]:
        """The content as Task.input."""
        return [
            {"type": {"coding": [ADDITIONAL_CONTENT]}, "valueReference": {"reference": f"{one.type}/{one.id}"}}
            for one in self.content
        ]


@cache
def rules() -> tuple[Rule, ...]:
    """All of profiles/referral-package/."""
    return tuple(_rule(read_yaml(path)) for path in sorted((folder("profiles") / "referral-package").glob("*.yaml")))


def _rule(tree: Tree) -> Rule:
    needs = tuple(Need(one["says"], tuple(one.get("any", ())), one.get("consent")) for one in tree["needs"])
    return Rule(tree["title"], frozenset(_listed(tree["when"])), needs)


def _listed(codes: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    return ((system, code) for system, listed in codes.items() for code in listed)


async def packed(record: Record, order: Tree, task: Tree, now: datetime) -> Package:
    """The package of an order for the owner of a Task, as it is now."""
    named = [
        *(one for name in CARRIED for one in order.get(name, [])),
        *(one.get("valueReference", {}) for one in task.get("input", [])),
    ]
    content = [found for one in named if (found := await record.follow(one)) is not None]
    missing: list[str] = []
    consent: Stored | None = None
    for need in needs_of(order):
        if need.consent is None:
            if not any(_meets(kind, order, content) for kind in need.any):
                missing.append(need.says)
            continue
        consent = await release(record, order, task.get("owner"), need.consent, now)
        if consent is None:
            missing.append(need.says)
    # An older consent does not go along with the one that counts.
    told = [one for one in content if one.type != "Consent" or consent is None or one.id == consent.id]
    return Package(tuple(_once([*told, *([consent] if consent else [])])), tuple(missing), consent)


def needs_of(order: Tree) -> list[Need]:
    """What the rules ask of an order."""
    coded = set(codings(order.get("category"), order.get("code")))
    return [need for rule in rules() if not rule.when.isdisjoint(coded) for need in rule.needs]


def _meets(kind: Tree, order: Tree, content: Iterable[Stored]) -> bool:
    if "element" in kind:
        return bool(order.get(kind["element"]))
    wanted = set(_listed(kind.get("code", {})))
    return any(
        one.type == kind["type"] and (not wanted or not wanted.isdisjoint(codings(one.tree.get("code"), one.tree.get("type"))))
        for one in content
    )


def _once(content: Iterable[Stored]) -> list[Stored]:
    return list({(one.type, one.id): one for one in content}.values())


async def release(record: Record, order: Tree, recipient: Tree | None, category: str, now: datetime) -> Stored | None:
    """The patient's consent that lets the recipient be told; None when there is none, or the latest that concerns it takes it back."""
    patient = patient_of(order)
    if patient is None:
        return None
    patients = await linked(record, patient)
    found = await record.find("Consent", patients_value(patients), ("category", f"{_RELEASE}|{category}"))
    concerning = [one for one in found if one.tree["status"] not in _NOT_YET and await _concerns(record, one.tree, recipient)]
    # The latest wins; of two of one moment the one that refuses.
    latest = max(concerning, key=lambda one: (_written(one), not _gives(one.tree, now), one.id), default=None)
    return latest if latest is not None and _gives(latest.tree, now) else None


def _written(consent: Stored) -> datetime:
    return moment(consent.tree.get("dateTime")) or consent.last_updated


def _gives(consent: Tree, now: datetime) -> bool:
    provision = consent.get("provision", {})
    start, end = (moment(provision.get("period", {}).get(name)) for name in ("start", "end"))
    held = (start is None or start <= now) and (end is None or now <= end)
    return consent["status"] == "active" and provision.get("type") != "deny" and held


async def _concerns(record: Record, consent: Tree, recipient: Tree | None) -> bool:
    """Whether a consent speaks of this recipient: it names it, or nobody."""
    provision = consent.get("provision", {})
    actors = [one for one in provision.get("actor", []) if "IRCP" in {code for _, code in codings(one.get("role"))}]
    if not actors:
        return True
    asked = await organization_of(record, recipient)
    for actor in actors:
        named = await organization_of(record, actor.get("reference"))
        if (
            named is not None
            and asked is not None
            and (named.id == asked.id or (npi(named.tree) and npi(named.tree) == npi(asked.tree)))
        ):
            return True
    return False
