"""The invariants of R4 for the types in scope, by their keys.

https://hl7.org/fhir/R4/conformance-rules.html#constraints. Each rule is written as a condition on an element's tree, so that a
write costs microseconds; the keys are HL7's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from fhircm.fhir.outcome import Issue
from fhircm.fhir.references import parse_reference
from fhircm.fhir.walk import Node, walk

Tree = dict[str, Any]
_REFERENCES = frozenset({"Reference"})
URLS = frozenset({"uri", "canonical", "url"})  # they can refer to what a resource contains
Rule = tuple[str, str, Callable[[Tree], bool]]  # key, what must hold, whether it does


def broken(tree: Tree, nodes: Sequence[Node]) -> Iterator[Issue]:
    """The invariants that a resource breaks; `nodes` are its elements of the TYPES that any invariant is about.

    Of one that contains others also those of the URLS.
    """
    local = {f"#{one.get('id')}" for one in tree.get("contained", ())}
    used: set[str] = set()
    for node in nodes:
        if node.type == "Reference":
            target = node.value.get("reference", "")
            if target.startswith("#"):
                used.add(target)
                if target != "#" and target not in local:
                    text = f"{node.path} refers to a contained resource that is not there (ref-1)"
                    yield Issue("error", "invariant", text, node.path)
        elif node.type in URLS:
            used.add(node.value)
        for key, text, holds in RULES.get(node.type, ()):
            if not holds(node.value):
                yield Issue("error", "invariant", f"{node.path}: {text} ({key})", node.path)
    if local:
        yield from _contained(tree, used)


def _contained(tree: Tree, used: set[str]) -> Iterator[Issue]:
    for index, one in enumerate(tree.get("contained", [])):
        path = f"{tree['resourceType']}.contained[{index}]"
        if "contained" in one:
            yield Issue("error", "invariant", f"{path} contains a resource itself (dom-2)", path)
        if any(name in one.get("meta", {}) for name in ("versionId", "lastUpdated")):
            yield Issue("error", "invariant", f"{path}.meta has a version or a time of its own (dom-4)", path)
        if "security" in one.get("meta", {}):
            yield Issue("error", "invariant", f"{path}.meta has a security label of its own (dom-5)", path)
        refers_back = any(node.value.get("reference") == "#" for node in walk(one, _REFERENCES))
        if f"#{one.get('id')}" not in used and not refers_back:
            yield Issue("error", "invariant", f"{path} is not referred to from the resource (dom-3)", path)


def _moment(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) and "T" in text else None
    except ValueError:
        return None


def modified(tree: dict[str, Any], at: str) -> str:
    """When a Task is modified that is written at `at`: a clock that was set back, or another machine's, may say a time before its authoredOn."""
    authored = tree.get("authoredOn")
    return at if _in_order(authored, at) else str(authored)


def over(period: dict[str, Any], at: str) -> dict[str, Any]:
    """A period that is over at `at`; where a clock was set back since it began, or another machine's is ahead, it ends as it begins."""
    start = period.get("start")
    return {**period, "end": at if _in_order(start, at) else start}


def _in_order(first: Any, second: Any) -> bool:
    """Whether one time is not after the other; times of different precision are compared as far as both reach."""
    if not isinstance(first, str) or not isinstance(second, str):
        return True
    one, other = _moment(first), _moment(second)
    if one and other and (one.tzinfo is None) == (other.tzinfo is None):
        return one <= other
    length = min(len(first), len(second), 10)
    return first[:length] <= second[:length]


def _any(tree: Tree, *names: str) -> bool:
    return any(name in tree or f"_{name}" in tree for name in names)


def _value_of_extension(tree: Tree) -> bool:
    has_value = any(name.lstrip("_").startswith("value") for name in tree)
    return has_value != ("extension" in tree)


RULES: dict[str, tuple[Rule, ...]] = {
    "Extension": (("ext-1", "must have either extensions or a value", _value_of_extension),),
    "Period": (("per-1", "must not end before it starts", lambda t: _in_order(t.get("start"), t.get("end"))),),
    "Attachment": (("att-1", "needs a contentType for its data", lambda t: not _any(t, "data") or _any(t, "contentType")),),
    "Quantity": (("qty-3", "needs a system for its code", lambda t: not _any(t, "code") or _any(t, "system")),),
    "ContactPoint": (("cpt-2", "needs a system for its value", lambda t: not _any(t, "value") or _any(t, "system")),),
    "CarePlan.activity": (
        ("cpl-3", "must have a detail or a reference, not both", lambda t: not ("detail" in t and "reference" in t)),
    ),
    "Goal.target": (
        ("gol-1", "needs a measure for its detail", lambda t: not any(n.startswith("detail") for n in t) or "measure" in t),
    ),
    "CareTeam.participant": (
        (
            "ctm-1",
            "may act on behalf of an organization only as a practitioner",
            lambda t: (
                "onBehalfOf" not in t or parse_reference(t.get("member", {}).get("reference", "")).type in (None, "Practitioner")
            ),
        ),
    ),
    "Patient.contact": (
        (
            "pat-1",
            "needs a name, a telecom, an address or an organization",
            lambda t: _any(t, "name", "telecom", "address", "organization"),
        ),
    ),
    "Bundle.entry": (
        (
            "bdl-5",
            "must be a resource unless it has a request or a response",
            lambda t: _any(t, "resource", "request", "response"),
        ),
    ),
    "Task": (
        (
            "inv-1",
            "lastModified must not be before authoredOn",
            lambda t: _in_order(t.get("authoredOn"), t.get("lastModified")),
        ),
    ),
    "ServiceRequest": (("prr-1", "orderDetail needs a code", lambda t: "orderDetail" not in t or "code" in t),),
    "Organization": (
        ("org-1", "needs an identifier or a name", lambda t: _any(t, "identifier", "name")),
        ("org-2", "its address is never a home", lambda t: all(one.get("use") != "home" for one in t.get("address", []))),
        ("org-3", "its telecom is never a home's", lambda t: all(one.get("use") != "home" for one in t.get("telecom", []))),
    ),
    "Condition": (
        (
            "con-4",
            "an abated condition is inactive, resolved or in remission",
            lambda t: (
                not any(name.startswith("abatement") for name in t)
                or "clinicalStatus" not in t
                or any(one.get("code") in ("resolved", "remission", "inactive") for one in t["clinicalStatus"].get("coding", []))
            ),
        ),
        (
            "con-5",
            "one entered in error has no clinicalStatus",
            lambda t: (
                "clinicalStatus" not in t
                or all(one.get("code") != "entered-in-error" for one in t.get("verificationStatus", {}).get("coding", []))
            ),
        ),
    ),
    "Bundle": (
        (
            "bdl-1",
            "only a search or history has a total",
            lambda t: "total" not in t or t.get("type") in ("searchset", "history"),
        ),
    ),
}
TYPES = _REFERENCES | RULES.keys()
