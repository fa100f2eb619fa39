"""What a pathway asks of a stay before it is opened: its variables, each looked up when a condition names it.

profiles/transition/conditions.yaml and dispositions.yaml are the tables; the risk is that of fhircm/coordination/risk.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from fhircm.coordination import risk
from fhircm.coordination.codes import codings
from fhircm.coordination.context import Context
from fhircm.coordination.people import patients_value
from fhircm.coordination.protocol import Pathway
from fhircm.coordination.transition.stays import Human, Stay
from fhircm.fhir.artefacts import folder, read_yaml

Tree = dict[str, Any]
_SNOMED = "http://snomed.info/sct"
_ICD10 = frozenset(("http://hl7.org/fhir/sid/icd-10-cm", "http://hl7.org/fhir/sid/icd-10"))
_NOT_SO = frozenset(("refuted", "entered-in-error"))
_VOID = frozenset(("revoked", "entered-in-error", "draft"))
NAMES = ("risk", "disposition", "setting", "followup", "equipment", "homehealth", "transport", "education")


@dataclass(frozen=True, slots=True)
class Group:
    """A group of conditions, and the codes that mean it."""

    icd10: tuple[str, ...]  # without dots; whatever begins so
    snomed: frozenset[str]

    def among(self, *elements: Any) -> bool:
        """Whether any coding of these elements is in the group."""
        return any(
            (system == _SNOMED and code in self.snomed) or (system in _ICD10 and code.replace(".", "").startswith(self.icd10))
            for system, code in codings(*elements)
        )


@cache
def _table() -> Tree:
    return read_yaml(folder("profiles") / "transition" / "conditions.yaml")


@cache
def groups(part: str) -> dict[str, Group]:
    """The groups of one part of the table, by name."""
    return {
        name: Group(tuple(code.replace(".", "") for code in one["icd10"]), frozenset(one["sct"]))
        for name, one in _table()[part].items()
    }


@dataclass
class Facts:
    """The variables of one stay. What was asked once is not looked up again."""

    context: Context
    human: Human
    stay: Stay
    lace: risk.Lace | None = None
    basis: list[str] | None = None

    async def variables(self, *pathways: Pathway) -> dict[str, str]:
        """The values of those variables that the conditions of these pathways name."""
        steps = [step for pathway in pathways for step in (pathway.whole, *pathway.steps)]
        return await self.values({condition.variable for step in steps for condition in step.conditions})

    async def values(self, names: Iterable[str]) -> dict[str, str]:
        """Variables by name. Raises KeyError for one that there is not."""
        return {name: await self._value(name) for name in sorted(names)}

    async def assess(self) -> risk.Lace:
        """The LACE index of the stay."""
        if self.lace is None:
            self.lace, self.basis = await risk.lace(self.context, self.stay.stored, self.human.patients, self.stay.calendar)
        return self.lace

    async def _value(self, name: str) -> str:
        match name:
            case "risk":
                return (await self.assess()).level
            case "disposition":
                return self.stay.disposition.name if self.stay.disposition else "unknown"
            case "setting":
                return self.stay.setting
            case "followup":
                return await self._follow_up()
            case "homehealth" if self.stay.disposition and self.stay.disposition.name == "home-health":
                return "ordered"
            case _:
                return await self._ordered(name)

    async def _ordered(self, name: str) -> str:
        """Whether something was ordered during the stay."""
        wanted = _table()["orders"][name]
        codes = {(system, code) for system, listed in wanted.get("codes", {}).items() for code in listed}
        for order in await self.context.find(wanted["resource"], ("encounter", f"Encounter/{self.stay.id}")):
            said = set(codings(order.tree.get("code"), order.tree.get("category")))
            if order.tree.get("status") not in _VOID and (not codes or codes & said):
                return "ordered"
        return "none"

    async def _follow_up(self) -> str:
        """Why an emergency visit calls for a follow-up: what it was for, or that several chronic conditions are known."""
        tree = self.stay.tree
        diagnoses = [await self.context.follow(one.get("condition")) for one in tree.get("diagnosis", [])]
        said = [tree.get("reasonCode"), *(one.tree.get("code") for one in diagnoses if one is not None)]
        for name, group in groups("reason").items():
            if group.among(*said):
                return name
        conditions = await self.context.find("Condition", patients_value(self.human.patients))
        known = [
            one.tree for one in conditions if not _NOT_SO & {code for _, code in codings(one.tree.get("verificationStatus"))}
        ]
        chronic = {name for name, group in groups("chronic").items() if group.among(*(one.get("code") for one in known))}
        return "chronic" if len(chronic) >= _table()["chronic-from"] else "none"
