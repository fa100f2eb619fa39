"""What shows that an item of the checklist is done: documents, signatures, answers and messages of the stay.

https://hl7.org/fhir/R4/documentreference.html, https://hl7.org/fhir/R4/provenance.html (signature),
http://hl7.org/fhir/StructureDefinition/questionnaireresponse-signature. Which resource shows which item stands in the `output` of
the step (profiles/plan-definition/discharge-planning.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from fhircm.coordination.codes import codings
from fhircm.coordination.context import Context, Record, any_of, token
from fhircm.coordination.deadlines import BusinessCalendar
from fhircm.coordination.discharge.offers import is_chosen
from fhircm.coordination.discharge.plan import Planning, begun
from fhircm.coordination.people import patients_value
from fhircm.coordination.protocol import Shown, Step
from fhircm.coordination.times import moment
from fhircm.fhir.references import parse_reference
from fhircm.store.resources import Stored

Tree = dict[str, Any]
SIGNATURE = "http://hl7.org/fhir/StructureDefinition/questionnaireresponse-signature"
_GOOD = {
    "Appointment": ("booked", "arrived", "checked-in", "fulfilled"),
    "Communication": ("in-progress", "completed"),
    "DocumentReference": ("current",),
    "List": ("current",),
    "QuestionnaireResponse": ("completed", "amended"),
    "Task": ("accepted", "in-progress", "completed"),
}
TYPES = tuple(_GOOD)
_DATES = ("date", "authored", "sent", "start", "authoredOn")


class Search:
    """What there is on record that may show something about a stay, searched once for each type."""

    def __init__(self, context: Context, plan: Planning, steps: Sequence[Step]) -> None:
        self._context, self._plan = context, plan
        self._asked = [shown for step in steps for shown in step.shown]
        self._found: dict[str, list[Stored]] = {}

    async def showing(self, step: Step) -> list[Stored]:
        """The resources that show that a step is done, by id; none when it is not."""
        found = {
            (one.type, one.id): one
            for shown in step.shown
            for one in await self._of_type(shown.type)
            if await _counts(self._context, self._plan, shown, one)
        }
        return [found[key] for key in sorted(found)]

    async def _of_type(self, type: str) -> list[Stored]:
        if type not in self._found:
            patients = patients_value(list(self._plan.patients))
            status = ("status", any_of(_GOOD[type]))
            self._found[type] = await self._context.find(type, patients, status, *self._filters(type))
        return self._found[type]

    def _filters(self, type: str) -> list[tuple[str, str]]:
        """What all that is asked of a type have in common: the element whose code says what it is, or the questionnaire."""
        asked = [one for one in self._asked if one.type == type]
        if all(one.profile for one in asked):
            return [("questionnaire", any_of(sorted({url for one in asked for url in one.profile})))]
        paths = {path for one in asked for path, _ in one.codes}
        if len(paths) != 1 or "." in (path := paths.pop()) or not all(one.codes for one in asked):
            return []
        codes = {code for one in asked for _, found in one.codes for code in found}
        return [(path, any_of(token(*code) for code in sorted(codes)))]


def may_show(shown: Shown, tree: Tree) -> bool:
    """Whether a resource is of the kind that is asked for, as far as it tells by itself."""
    if shown.type != tree["resourceType"] or tree.get("docStatus") in ("preliminary", "entered-in-error"):
        return False
    if shown.profile and tree.get("questionnaire", "").split("|")[0] not in shown.profile:
        return False
    return all("." in path or not codes.isdisjoint(codings(tree.get(path))) for path, codes in shown.codes)


async def _counts(context: Context, plan: Planning, shown: Shown, one: Stored) -> bool:
    tree = one.tree
    if not may_show(shown, tree):
        return False
    for path, codes in shown.codes:
        if "." in path and codes.isdisjoint(codings(await _behind(context, tree, path))):
            return False
    if one.type == "Task" and not is_chosen(tree):
        return False
    if not await _of_stay(context, plan, tree) or not _recent(plan, shown, tree):
        return False
    if shown.in_language and not await _read(context, plan, tree):
        return False
    return not shown.signed or await signed(context, one)


async def _behind(context: Context, tree: Tree, path: str) -> Any:
    """What stands in an element of what a reference leads to."""
    to, _, element = path.partition(".")
    found = await context.follow(tree.get(to))
    return found.tree.get(element) if found else None


async def _of_stay(context: Context, plan: Planning, tree: Tree) -> bool:
    """Whether it names the stay, or no encounter and was made since the stay began."""
    if tree["resourceType"] == "Task":
        order = await context.follow(tree.get("focus"))
        tree = order.tree if order else tree
    around = tree.get("context") or {}
    named = [tree["encounter"]] if "encounter" in tree else around.get("encounter", []) if isinstance(around, dict) else []
    ids = {to.id for one in named if (to := parse_reference(one.get("reference", ""))).type == "Encounter"}
    if ids:
        return plan.stay.id in ids
    start, at = begun(plan.stay.tree, plan.calendar), date_of(tree, plan.calendar)
    return start is not None and at is not None and at >= start


def date_of(tree: Tree, calendar: BusinessCalendar) -> datetime | None:
    """When something was made, sent or is to be (UTC), whatever its type calls that."""
    return next((moment(tree[name], calendar) for name in _DATES if name in tree), None)


def _recent(plan: Planning, shown: Shown, tree: Tree) -> bool:
    if shown.no_older is None:
        return True
    left = moment(plan.stay.tree.get("period", {}).get("end"), plan.calendar) if plan.left else plan.end
    at = date_of(tree, plan.calendar)
    if left is None or at is None:
        return False
    return at >= plan.calendar.start_of(plan.calendar.day_of(left) - timedelta(days=shown.no_older))


async def _read(context: Context, plan: Planning, document: Tree) -> bool:
    """Whether a document is in the language that the patient prefers; one that does not say so is in English."""
    wanted: set[str] = set()
    for id in plan.patients:
        patient = await context.get("Patient", id)
        spoken = patient.tree.get("communication", []) if patient else []
        wanted |= {_primary(one) for one in spoken if one.get("preferred") or len(spoken) == 1}
    written = {
        one.get("attachment", {}).get("language", document.get("language", "en")).split("-")[0].lower()
        for one in document.get("content", [])
    }
    return not wanted or bool(wanted & written)


def _primary(spoken: Tree) -> str:
    return next((code.split("-")[0].lower() for _, code in codings(spoken.get("language"))), "en")


async def signed(record: Record, one: Stored) -> bool:
    """Whether a patient, or who speaks for them, signed it: in a Provenance, in the answers, or in a document that signs it."""
    if one.type == "QuestionnaireResponse":
        return any(_theirs(signature) for signature in _signatures(one.tree))
    target = f"{one.type}/{one.id}"
    for provenance in await record.find("Provenance", ("target", target)):
        if any(_theirs(signature) for signature in provenance.tree.get("signature", [])):
            return True
    signing = await record.find("DocumentReference", ("relatesto", target), ("relation", "signs"), ("status", "current"))
    return bool(signing)


def _signatures(tree: Any) -> Iterator[Tree]:
    if isinstance(tree, dict):
        for one in tree.get("extension", []):
            if one.get("url") == SIGNATURE and "valueSignature" in one:
                yield one["valueSignature"]
        for item in tree.get("item", []):
            yield from _signatures(item)


def _theirs(signature: Tree) -> bool:
    who = {parse_reference(signature.get(name, {}).get("reference", "")).type for name in ("who", "onBehalfOf")}
    return bool(who & {"Patient", "RelatedPerson"})
