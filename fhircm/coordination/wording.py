"""A version in words: what a resource is about, and what one version changed against the one before.

https://hl7.org/fhir/R4/datatypes.html#CodeableConcept
"""

from __future__ import annotations

from typing import Any

from fhircm.coordination.codes import codings
from fhircm.coordination.task_states import business

Tree = dict[str, Any]


def told(type: str, before: Tree | None, after: Tree | None) -> str:
    """What a version is about and what it changed, in a line."""
    if after is None:
        return f"{type} deleted"
    what = f"{type} {_words(after)}".strip()
    facts = _facts(after)
    if before is None:
        return f"{what}: " + ", ".join([f"{name} {value}" for name, value in facts.items()] or ["new"])
    earlier = _facts(before)
    changed = [f"{name} {_from(earlier, name)}{value}" for name, value in facts.items() if earlier.get(name) != value]
    changed += [f"no {name} any more" for name in earlier if name not in facts]
    return f"{what}: {', '.join(changed) or 'changed'}"


def _from(earlier: dict[str, str], name: str) -> str:
    return f"{earlier[name]} → " if name in earlier and name != "because" else ""


def _words(tree: Tree) -> str:
    """What a resource is about, as it says itself."""
    for name in ("description", "title", "code", "topic", "type", "class"):
        if text := text_of(tree.get(name)):
            return f"'{text}'"
    return ""


def text_of(element: Any) -> str | None:
    """The words of a CodeableConcept or Coding, or of the first in a list that has any."""
    if isinstance(element, list):
        return next(filter(None, map(text_of, element)), None)
    if isinstance(element, dict):
        return element.get("text") or element.get("display") or text_of(element.get("coding", []))
    return element if isinstance(element, str) else None


def _facts(tree: Tree) -> dict[str, str]:
    """What is worth telling of a resource's state."""
    facts = {
        "status": tree.get("status") or tree.get("lifecycleStatus"),
        "step": next(
            (f"{code} {business().text[code]}" for _, code in codings(tree.get("businessStatus")) if code in business().text),
            None,
        ),
        "because": text_of(tree.get("statusReason")),
        "owner": _who(tree.get("owner")),
        "to": ", ".join(filter(None, map(_who, tree.get("recipient", [])))),
        "priority": tree.get("priority"),
        "due": _due(tree.get("restriction", {}).get("period", {}).get("end")),
        "output": ", ".join(
            filter(None, (text_of(one.get("type")) or _who(one.get("valueReference")) for one in tree.get("output", [])))
        ),
        "linked records": str(len(tree.get("link", [])) or "") if tree.get("resourceType") == "Person" else None,
        "risk": text_of([one.get("qualitativeRisk") for one in tree.get("prediction", [])]),
    }
    return {name: value for name, value in facts.items() if value}


def _due(end: str | None) -> str | None:
    """Day and minute, on the clock on which it was written."""
    return end and end[:16].replace("T", " ")


def _who(element: Tree | None) -> str | None:
    return (element or {}).get("display") or (element or {}).get("reference")
