"""Role queues: how long a claim lasts, and what becomes of it when its time is over or it was passed on.

What is usual in each queue is data: profiles/caseload/queues.yaml. https://hl7.org/fhir/R4/task.html
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from fhircm.access.roles import unknown
from fhircm.fhir.artefacts import folder, read_yaml

Tree = dict[str, Any]


@cache
def _leases() -> tuple[timedelta | None, dict[str, timedelta | None]]:
    tree = read_yaml(folder("profiles") / "caseload" / "queues.yaml")
    if wrong := unknown(tree["roles"]):
        raise ValueError(f"profiles/caseload/queues.yaml names {', '.join(wrong)}, which is no role")
    return _lease(tree["default"]), {code: _lease(one) for code, one in tree["roles"].items()}


def _lease(tree: Tree) -> timedelta | None:
    return TypeAdapter(timedelta).validate_python(tree["lease"]) if "lease" in tree else None


def lease_of(roles: Iterable[str]) -> timedelta | None:
    """How long a claim in the queue of these roles usually lasts: the shortest that any of them says; None: until it is given back."""
    usual, by_role = _leases()
    found = [lease for code in roles if (lease := by_role.get(code, usual)) is not None]
    return min(found, default=None)
