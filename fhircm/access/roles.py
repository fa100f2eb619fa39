"""The roles of people and systems: what each may do, and how far it reaches. They are data: profiles/role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

from pydantic import TypeAdapter

from fhircm.access.scopes import Scope, parse_scope
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.systems import ROLE


@dataclass(frozen=True, slots=True)
class Role:
    """`may`: scopes, of any context. `reach`: everything, or by care relationship, or only the own record.

    `pages`: the rooms among the hub's own pages that are open to the role: fhircm/web/rooms.py.
    """

    code: str
    title: str
    about: str
    may: tuple[Scope, ...]
    reach: str  # everything | relationship | own
    purpose: str  # of what is asked for in this role: a code of http://terminology.hl7.org/CodeSystem/v3-ActReason
    directory: bool = False  # whether it says who organisations and practitioners are
    emergency: timedelta | None = None  # for how long an emergency access opens a record; None: it may not be asked for
    pages: tuple[str, ...] = ()
    leads: bool = False  # whether it may pass on and give back what others of the organisation have claimed
    codings: tuple[tuple[str, str], ...] = ()  # (system, code) of those by which a Task means it: the role's own, and others'


@cache
def roles() -> dict[str, Role]:
    """Every role by its code."""
    found = {}
    for path in sorted((folder("profiles") / "role").glob("*.yaml")):
        tree = read_yaml(path)
        may = tuple(scope for text in tree["may"] if (scope := parse_scope(f"system/{text}")))
        if len(may) != len(tree["may"]) or tree["reach"] not in ("everything", "relationship", "own"):
            raise ValueError(f"{path.name} has a scope or a reach that is not known")
        purpose, directory = tree.get("purpose", "TREAT"), bool(tree.get("directory"))
        emergency = TypeAdapter(timedelta).validate_python(tree["emergency"]) if "emergency" in tree else None
        pages = tuple(tree.get("pages", ()))
        leads = bool(tree.get("leads"))
        codings = ((ROLE, path.stem), *((one["system"], str(one["code"])) for one in tree.get("codes", ())))
        about = (tree["title"], tree["about"], may, tree["reach"], purpose, directory)
        found[path.stem] = Role(path.stem, *about, emergency, pages, leads, codings)
    return found


def unknown(codes: Iterable[str]) -> list[str]:
    """Those of the codes that are no roles."""
    return [code for code in codes if code not in roles()]
