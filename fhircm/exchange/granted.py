"""What granted SMART scopes allow: both forms, system/CarePlan.read of SMART v1 and system/CarePlan.rs of v2.

https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SCOPE = re.compile(r"(?:system|user)/(\*|[A-Z][A-Za-z]+)\.(read|write|\*|c?r?u?d?s?)(?:\?\S+)?")
_LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}
_INTERACTION = {
    "read": "r",
    "vread": "r",
    "history-instance": "r",
    "history-type": "s",
    "search-type": "s",
    "create": "c",
    "update": "u",
    "patch": "u",
    "delete": "d",
}


def allows(scopes: Iterable[str] | None, type: str, interaction: str) -> bool:
    """Whether any of these scopes allows an interaction on a type. None, scopes that are not known, allow everything.

    A scope that is narrowed by a search (system/Observation.rs?category=…) counts: part of the type may be had.
    """
    if scopes is None:
        return True
    letter = _INTERACTION.get(interaction, "")
    for scope in scopes:
        found = _SCOPE.fullmatch(scope)
        if found and found[1] in ("*", type) and letter in _LETTERS.get(found[2], found[2]):
            return True
    return False
