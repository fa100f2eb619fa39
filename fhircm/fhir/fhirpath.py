"""Whether an invariant of a profile holds, by its FHIRPath expression. http://hl7.org/fhirpath/N1/

The evaluator is a package of its own, imported when a profile with an invariant is first claimed. R4's own invariants are
not evaluated here but written in Python (invariants.py): every write meets those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from fhircm.fhir.outcome import FhirError

_LENGTH = 20_000  # characters of an expression that is read


def holds(expression: str, value: Any, type: str, resource: dict[str, Any]) -> bool | None:
    """Whether it holds for an element of this type; None when the expression cannot be evaluated.

    One thing that is not a flag counts as true, nothing at all does not: http://hl7.org/fhirpath/N1/#singleton-evaluation-of-collections
    and https://hl7.org/fhir/R4/conformance-rules.html#constraints
    """
    evaluate = _compiled(expression)
    if evaluate is None:
        return None
    node = value if isinstance(value, dict) and "resourceType" in value else _create_node()(value, type)
    try:
        result = evaluate(node, {"resource": resource, "rootResource": resource})
    except Exception:  # the evaluator raises plain exceptions, whose texts quote the resource
        return None
    if len(result) > 1:
        return None
    return bool(result) and result[0] is not False


class ExpressionWrong(FhirError):
    """A FHIRPath expression cannot be read, or not be evaluated on this resource."""

    status, code = 422, "processing"


def check_expression(expression: str, type: str) -> None:
    """Whether an expression can be read and its functions are known. Raises ExpressionWrong."""
    if _compiled(expression) is None:
        raise ExpressionWrong("is not FHIRPath")
    evaluate(expression, {"resourceType": type})


def evaluate(expression: str, resource: dict[str, Any]) -> list[Any]:
    """What an expression gives for a resource. Raises ExpressionWrong."""
    compiled = _compiled(expression)
    if compiled is None:
        raise ExpressionWrong("is not FHIRPath")
    try:
        return list(compiled(resource, {"resource": resource, "rootResource": resource}))
    except Exception:  # the evaluator raises plain exceptions, whose texts quote the resource
        raise ExpressionWrong("cannot be evaluated") from None


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> Callable[..., list[Any]] | None:
    if len(expression) > _LENGTH:
        return None
    try:
        compiled: Callable[..., list[Any]] = import_module("fhirpathpy").compile(expression, _model())
    except Exception:  # of its parser
        return None
    return compiled


@cache
def _model() -> Any:
    return import_module("fhirpathpy.models").models["r4"]


@cache
def _create_node() -> Any:
    return import_module("fhirpathpy.engine.nodes").ResourceNode.create_node
