"""The LACE index of a discharge, from the record: length of stay, acuity, comorbidity, emergency visits.

van Walraven et al., CMAJ 2010;182(6):551-557; points and codes are in profiles/risk-score/lace.yaml, with what they cover and
what not. https://hl7.org/fhir/R4/riskassessment.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from fhircm.coordination.build import instant, made, reference, stable_id
from fhircm.coordination.codes import BASE, codings, member
from fhircm.coordination.context import Context
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.people import patients_value
from fhircm.coordination.times import moment, months_before
from fhircm.fhir.artefacts import folder, read_yaml
from fhircm.fhir.validation import Checked
from fhircm.store.resources import Stored

Tree = dict[str, Any]
SCORE = f"{BASE}/StructureDefinition/risk-score"
_SNOMED = "http://snomed.info/sct"
_ICD10 = frozenset(("http://hl7.org/fhir/sid/icd-10-cm", "http://hl7.org/fhir/sid/icd-10"))
_SAME_EPISODE = timedelta(hours=24)  # an emergency visit that ends so shortly before the admission led to it
_NEVER_HAPPENED = frozenset(("planned", "cancelled", "entered-in-error"))
_OVER = frozenset(("inactive", "remission", "resolved"))
_NOT_SO = frozenset(("refuted", "entered-in-error"))


@dataclass(frozen=True, slots=True)
class Comorbidity:
    """One condition of the index and the codes that mean it."""

    name: str
    points: int
    past: bool
    instead_of: str | None
    icd10: tuple[str, ...]  # without dots; whatever begins so
    snomed: frozenset[str]

    def means(self, system: str, code: str) -> bool:
        """Whether a code is this condition."""
        return (system == _SNOMED and code in self.snomed) or (system in _ICD10 and code.replace(".", "").startswith(self.icd10))


@dataclass(frozen=True, slots=True)
class Index:
    """The tables of the index."""

    title: str
    version: str
    stay_days: Mapping[int, int]
    emergent_admission: int
    comorbidity: Mapping[int, int]
    emergency_visits: Mapping[int, int]
    emergency_months: int
    levels: Mapping[int, str]
    comorbidities: tuple[Comorbidity, ...]


@dataclass(frozen=True, slots=True)
class Lace:
    """The four parts, in points, and what they are made of."""

    stay_days: int
    emergent: bool
    charlson: int
    emergency_visits: int
    conditions: tuple[str, ...] = ()  # names of the comorbidities found
    known: int = 0  # conditions of the patient that the table knows
    seen: int = 0  # conditions of the patient

    @property
    def parts(self) -> dict[str, int]:
        """Points by letter."""
        table = lace_index()
        return {
            "L": _points(table.stay_days, self.stay_days),
            "A": table.emergent_admission if self.emergent else 0,
            "C": _points(table.comorbidity, self.charlson),
            "E": _points(table.emergency_visits, self.emergency_visits),
        }

    @property
    def score(self) -> int:
        """0 to 19."""
        return sum(self.parts.values())

    @property
    def level(self) -> str:
        """low, moderate or high."""
        return _from_so_many_on(lace_index().levels, self.score)


def _from_so_many_on(table: Mapping[int, Any], value: int) -> Any:
    return table[max(start for start in table if start <= value)]


def _points(table: Mapping[int, int], value: int) -> int:
    return _from_so_many_on(table, max(value, 0))


@cache
def lace_index() -> Index:
    """The index as profiles/risk-score/lace.yaml has it."""
    tree = read_yaml(folder("profiles") / "risk-score" / "lace.yaml")
    comorbidities = tuple(
        Comorbidity(
            name=one["name"],
            points=one["points"],
            past=one.get("past", False),
            instead_of=one.get("instead-of"),
            icd10=tuple(code.replace(".", "") for code in one["icd10"]),
            snomed=frozenset(one["snomed"]),
        )
        for one in tree["comorbidities"]
    )
    names = (
        "title",
        "version",
        "stay-days",
        "emergent-admission",
        "comorbidity",
        "emergency-visits",
        "emergency-months",
        "levels",
    )
    return Index(*(tree[name] for name in names), comorbidities)


def charlson(conditions: Iterable[Tree]) -> tuple[int, tuple[str, ...], int, int]:
    """Points and names of the comorbidities among these Conditions; how many Conditions the table knows; how many there are."""
    found: set[Comorbidity] = set()
    known = seen = 0
    for condition in conditions:
        if _NOT_SO & {code for _, code in codings(condition.get("verificationStatus"))}:
            continue
        seen += 1
        meant = {one for one in lace_index().comorbidities for coding in codings(condition.get("code")) if one.means(*coding)}
        known += bool(meant)
        over = bool(_OVER & {code for _, code in codings(condition.get("clinicalStatus"))})
        found |= {one for one in meant if one.past or not over}
    replaced = {one.instead_of for one in found}
    counted = sorted((one for one in found if one.name not in replaced), key=lambda one: one.name)
    return sum(one.points for one in counted), tuple(one.name for one in counted), known, seen


def stay_days(encounter: Tree, calendar: BusinessCalendar) -> int:
    """Midnights between admission and discharge, by the calendar's clock; 0 when the admission is not known."""
    start, end = (moment(encounter.get("period", {}).get(name), calendar) for name in ("start", "end"))
    return (calendar.day_of(end) - calendar.day_of(start)).days if start and end else 0


def emergent(encounter: Tree) -> bool:
    """Whether the admission was an emergency, by its source, priority or type."""
    source = encounter.get("hospitalization", {}).get("admitSource")
    return member("emergent-admission", source, encounter.get("priority"), encounter.get("type"))


def emergency_visits(encounters: Iterable[Tree], admission: datetime, calendar: BusinessCalendar) -> list[str]:
    """Ids of the emergency visits in the months before an admission, without the one that led to it."""
    since = calendar.start_of(months_before(calendar.day_of(admission), lace_index().emergency_months))
    counted = []
    for encounter in encounters:
        if encounter.get("status") in _NEVER_HAPPENED or member("inpatient-stay", encounter.get("class")):
            continue
        if not member("emergency-visit", encounter.get("class"), encounter.get("type")):
            continue
        start, end = (moment(encounter.get("period", {}).get(name), calendar) for name in ("start", "end"))
        if start and since <= start < admission and (end or start) <= admission - _SAME_EPISODE:
            counted.append(encounter["id"])
    return counted


async def lace(context: Context, encounter: Stored, patients: list[str], calendar: BusinessCalendar) -> tuple[Lace, list[str]]:
    """The index of a stay, over all records of the patient, and the references of what it is based on."""
    tree = encounter.tree
    conditions = await context.find("Condition", patients_value(patients))
    others = [one for one in await context.find("Encounter", patients_value(patients)) if one.id != encounter.id]
    admission = moment(tree.get("period", {}).get("start"), calendar)
    visits = emergency_visits((one.tree for one in others), admission, calendar) if admission else []
    points, names, known, seen = charlson(one.tree for one in conditions)
    counted = [
        one.id
        for one in conditions
        if any(c.means(*k) for k in codings(one.tree.get("code")) for c in lace_index().comorbidities)
    ]
    basis = [f"Encounter/{encounter.id}", *(f"Condition/{id}" for id in counted), *(f"Encounter/{id}" for id in visits)]
    return Lace(stay_days(tree, calendar), emergent(tree), points, len(visits), names, known, seen), basis


def assessment(encounter: Stored, patient: Tree, result: Lace, basis: list[str], at: datetime) -> Checked:
    """The RiskAssessment that says how the score came about. Its id follows from the Encounter's."""
    index = lace_index()
    admission = "emergent" if result.emergent else "not known to be emergent"
    found = ", ".join(result.conditions) or "none"
    how = (
        f"L {result.parts['L']} ({result.stay_days} days), A {result.parts['A']} (admission {admission}), "
        f"C {result.parts['C']} (comorbidity {result.charlson}: {found}), "
        f"E {result.parts['E']} ({result.emergency_visits} emergency visits)"
    )
    coverage = (
        f"The table of comorbidities knows {result.known} of the {result.seen} conditions on record; the others count nothing."
    )
    probability = {"system": "http://terminology.hl7.org/CodeSystem/risk-probability", "code": result.level}
    return made(
        {
            "resourceType": "RiskAssessment",
            "id": stable_id("lace", index.version, encounter.id),
            "status": "final",
            "method": {"text": index.title},
            "subject": patient,
            "encounter": reference(f"Encounter/{encounter.id}"),
            "occurrenceDateTime": instant(at),
            "basis": [reference(one) for one in basis],
            "prediction": [
                {
                    "extension": [{"url": SCORE, "valueInteger": result.score}],
                    "outcome": {"text": "Death or unplanned readmission within 30 days of the discharge"},
                    "qualitativeRisk": {"coding": [probability], "text": result.level},
                    "rationale": how,
                }
            ],
            "note": [{"text": coverage}],
        }
    )
