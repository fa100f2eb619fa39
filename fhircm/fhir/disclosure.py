"""Whether a patient's consents let somebody be told of something: the same rules by which people see the record.

https://hl7.org/fhir/R4/consent.html and docs/explanation/access.md. What cannot be told apart is read in the patient's favour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fhircm.fhir.coded import codes
from fhircm.fhir.consent_rules import ConsentRule
from fhircm.fhir.ranges import EARLIEST, LATEST
from fhircm.fhir.references import references

PURPOSES = ("TREAT", "CAREMGT", "COC")  # http://terminology.hl7.org/CodeSystem/v3-ActReason: what others are told things for
CONFIDENTIAL = frozenset(
    {"R", "V", "ETH", "HIV", "PSY", "SDV", "SEX", "SUD", "ETHUD", "PSYTHPN"}
)  # v3-ActCode, v3-Confidentiality
_CODED_BY = ("code", "category", "type")


@dataclass(frozen=True, slots=True)
class Disclosure:
    """The rules of one patient's consents, one list for each, and who asks at which time."""

    consents: tuple[tuple[ConsentRule, ...], ...]
    known_as: frozenset[str]  # local references of who asks
    now: int  # microseconds since the epoch

    def permits(self, tree: dict[str, Any]) -> bool:
        """Whether nothing stands against telling them of this resource."""
        return not any(self._denied(rules, tree) for rules in self.consents)

    def _denied(self, rules: Iterable[ConsentRule], tree: dict[str, Any]) -> bool:
        rules = list(rules)
        for rule in rules:
            if rule.permit or not self._applies(rule, tree):
                continue
            below = [other for other in rules if other.permit and other.path.startswith(f"{rule.path}.")]
            if not any(self._applies(other, tree) for other in below):
                return True
        return False

    def _applies(self, rule: ConsentRule, tree: dict[str, Any]) -> bool:
        if not rule.low <= self.now < rule.high:
            return False
        named = f"{tree['resourceType']}/{tree.get('id')}"
        labels = {
            code.casefold() for code in codes(tree.get("meta", {}).get("security", [])) | codes(tree.get("securityLabel", []))
        }
        things = {named, *(f"~{reference.url}" for reference in references(tree))} if rule.things else set()
        return (
            _in(rule.actors, self.known_as)
            and _in(rule.purposes, PURPOSES)
            and _in(rule.classes, [tree["resourceType"]])
            and _in(rule.labels, labels)
            and _in(rule.codes, _written(tree))
            and _in(rule.things, things)
            # A denial of data of some time denies it of any time; a permission of some time lifts nothing.
            and (not rule.permit or (rule.data_low, rule.data_high) == (EARLIEST, LATEST))
        )


def _in(listed: str, wanted: Iterable[str]) -> bool:
    return not listed or any(f"|{one}|" in listed for one in wanted)


def _written(tree: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for name in _CODED_BY:
        concepts = tree.get(name, [])
        for concept in concepts if isinstance(concepts, list) else [concepts]:
            for coding in concept.get("coding", ()) if isinstance(concept, dict) else ():
                code = str(coding.get("code", "")).casefold()
                found |= {f"{coding.get('system', '')}#{code}", f"#{code}"}
    return found


def may_tell(disclosure: Disclosure | None, tree: dict[str, Any]) -> bool:
    """Whether neither a consent nor a confidential label keeps a resource back."""
    if codes(tree.get("meta", {}).get("security", [])) & CONFIDENTIAL:
        return False
    return disclosure is None or disclosure.permits(tree)
