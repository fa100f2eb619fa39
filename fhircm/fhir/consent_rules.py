"""What an active Consent permits and denies, as flat rules.

https://hl7.org/fhir/R4/consent.html and https://profiles.ihe.net/ITI/PCF. A nested provision is an exception to the one around it, and has its
limits where it does not say its own. What cannot be told apart here is read in the patient's favour: a denial is then wider, a
permission narrower. docs/explanation/access.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.definitions import definitions
from fhircm.fhir.ranges import EARLIEST, LATEST, date_range
from fhircm.fhir.references import parse_reference

PRIVACY = "patient-privacy"  # of http://terminology.hl7.org/CodeSystem/consentscope
_RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
_DISCLOSING = frozenset({"access", "use", "disclose"})
_RECOGNISED = frozenset({"Organization", "Practitioner", "PractitionerRole", "RelatedPerson", "Patient"})
_DEPTH = 6  # of exceptions to exceptions


class ConsentRule(NamedTuple):
    """One provision. Lists are written between bars, '' stands for anything; times are microseconds, UTC, [low, high).

    `path` tells where it is nested: 1, 1.2, 1.2.1. `things` are resources as type/id, with a tilde before it: what refers to it too.
    """

    parameter: str
    patient_id: str
    path: str
    permit: bool
    low: int
    high: int
    actors: str
    purposes: str
    classes: str
    labels: str
    codes: str
    things: str
    data_low: int
    data_high: int


_NOBODY = "||"  # a list that holds nothing


def consent_rules(tree: Mapping[str, Any]) -> list[ConsentRule]:
    """The rules of a Consent that is in force; none of one that is not, or that is not about privacy."""
    if tree["resourceType"] != "Consent" or tree.get("status") != "active":
        return []
    if PRIVACY not in _codes([tree.get("scope", {})]):
        return []
    patient = parse_reference(tree.get("patient", {}).get("reference", ""))
    if patient.kind != "local" or patient.type != "Patient" or not patient.id:
        return []
    root = dict(tree.get("provision", {}))
    root.setdefault("type", _policy(tree))
    begin = date_range(tree["dateTime"])[0] if "dateTime" in tree else EARLIEST
    whole = ConsentRule("", patient.id, "1", True, begin, LATEST, "", "", "", "", "", "", EARLIEST, LATEST)
    return list(_rules(root, whole, 1))


def _rules(provision: Mapping[str, Any], around: ConsentRule, depth: int) -> Iterator[ConsentRule]:
    rule = _rule(provision, around)
    actions = _codes(provision.get("action", ()))
    if not actions or actions & _DISCLOSING:
        yield rule
    if depth < _DEPTH:
        for number, nested in enumerate(provision.get("provision", ()), start=1):
            yield from _rules(nested, rule._replace(path=f"{rule.path}.{number}"), depth + 1)


def _rule(provision: Mapping[str, Any], around: ConsentRule) -> ConsentRule:
    permit = provision.get("type", "permit") == "permit"
    low, high = _period(provision.get("period", {}))
    data_low, data_high = _period(provision.get("dataPeriod", {}))
    return around._replace(
        permit=permit,
        low=max(around.low, low),
        high=min(around.high, high),
        actors=_actors(provision, permit) or around.actors,
        purposes=_listed(one.get("code", "") for one in provision.get("purpose", ())) or around.purposes,
        classes=_classes(provision, permit) or around.classes,
        labels=_listed(one.get("code", "").casefold() for one in provision.get("securityLabel", ())) or around.labels,
        codes=_listed(_written_codes(provision.get("code", ()))) or around.codes,
        things=_listed(_things(provision, permit)) or around.things,
        data_low=max(around.data_low, data_low),
        data_high=min(around.data_high, data_high),
    )


def _actors(provision: Mapping[str, Any], permit: bool) -> str:
    """Who a provision is about. Of actors that cannot be recognised a denial is about everybody, a permission about nobody."""
    actors = provision.get("actor", ())
    named = [parse_reference(one.get("reference", {}).get("reference", "")) for one in actors]
    known = [f"{one.type}/{one.id}" for one in named if one.kind == "local" and one.type in _RECOGNISED]
    if actors and len(known) < len(actors) and not permit:
        return ""
    return _listed(known) or (_NOBODY if actors else "")


def _classes(provision: Mapping[str, Any], permit: bool) -> str:
    """Which resource types; of classes of other systems a denial is about all, a permission about none."""
    classes = provision.get("class", ())
    known = [
        one["code"] for one in classes if one.get("system") == _RESOURCE_TYPES and one.get("code") in definitions().resource_types
    ]
    if classes and len(known) < len(classes) and not permit:
        return ""
    return _listed(known) or (_NOBODY if classes else "")


def _things(provision: Mapping[str, Any], permit: bool) -> Iterator[str]:
    """The resources that a provision is about; behind a tilde those of which a denial is also about what refers to them."""
    for one in provision.get("data", ()):
        reference = parse_reference(one.get("reference", {}).get("reference", ""))
        name = f"{reference.type}/{reference.id}" if reference.kind == "local" else "-"
        yield name
        if not permit and one.get("meaning") != "instance":  # related, dependents, authoredby
            yield f"~{name}"


def _written_codes(concepts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for concept in concepts:
        for coding in concept.get("coding", ()):
            if "code" in coding:
                yield f"{coding.get('system', '')}#{coding['code'].casefold()}"


def _listed(parts: Iterable[str]) -> str:
    listed = [part for part in dict.fromkeys(parts) if part and "|" not in part]
    return f"|{'|'.join(listed)}|" if listed else ""


def _codes(concepts: Iterable[Mapping[str, Any]]) -> set[str]:
    return {coding.get("code", "") for one in concepts for coding in one.get("coding", ())}


def _period(period: Mapping[str, Any]) -> tuple[int, int]:
    return (
        date_range(period["start"])[0] if "start" in period else EARLIEST,
        date_range(period["end"])[1] if "end" in period else LATEST,
    )


def _policy(tree: Mapping[str, Any]) -> str:
    """What a consent that does not say it itself does by its policy rule."""
    return "deny" if _codes([tree.get("policyRule", {})]) & _denying() else "permit"


@cache
def _denying() -> frozenset[str]:
    return frozenset(read_yaml(folder("profiles") / "consent" / "policy-rule.yaml")["deny"])
