"""Who is likely to do badly without planning: found at the admission, from what is on record.

https://www.ecfr.gov/current/title-42/section-482.43. The rule is data: `screening` in profiles/discharge/planning.yaml.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from fhircm.coordination import risk
from fhircm.coordination.codes import codings, value_set
from fhircm.coordination.context import Context, any_of, token
from fhircm.coordination.discharge.plan import Planning, begun, is_stay
from fhircm.coordination.discharge.rules import rules
from fhircm.coordination.people import patients_value
from fhircm.coordination.times import moment
from fhircm.fhir.json import dumps


async def reasons(context: Context, plan: Planning) -> list[str]:
    """Why an evaluation is called for, in words; none when nothing on record calls for one."""
    rule, patients = rules().screening, list(plan.patients)
    found = []
    years = await _age(context, plan)
    if years is not None and years >= rule.age:
        found.append(f"{years} years old")
    level = await _level(context, plan)
    if level in rule.risk:
        found.append(f"the risk of readmission so far is {level}")
    if await _stayed_before(context, plan):
        found.append(f"in hospital within {rule.stay_before.days} days before")
    if rule.lives_alone and await _lives_alone(context, patients):
        found.append("lives alone")
    return found


async def _age(context: Context, plan: Planning) -> int | None:
    today = plan.calendar.day_of(context.now())
    for id in plan.patients:
        patient = await context.get("Patient", id)
        born = patient.tree.get("birthDate", "") if patient else ""
        if len(born) == 10:
            day = date.fromisoformat(born)
            return today.year - day.year - ((today.month, today.day) < (day.month, day.day))
    return None


async def _level(context: Context, plan: Planning) -> str:
    """The level of the LACE index, as if the stay ended now."""
    tree = plan.stay.tree
    tree["period"] = {**tree.get("period", {}), "end": plan.calendar.written(context.now())}
    result, _ = await risk.lace(context, replace(plan.stay, body=dumps(tree)), list(plan.patients), plan.calendar)
    return result.level


async def _stayed_before(context: Context, plan: Planning) -> bool:
    start = begun(plan.stay.tree, plan.calendar)
    for other in await context.find("Encounter", patients_value(list(plan.patients)), ("status", "finished")):
        end = moment(other.tree.get("period", {}).get("end"), plan.calendar)
        if other.id == plan.stay.id or not is_stay(other.tree) or not start or not end:
            continue
        if start - rules().screening.stay_before <= end <= start:
            return True
    return False


async def _lives_alone(context: Context, patients: list[str]) -> bool:
    codes = ("code", any_of(token(*one) for one in sorted(value_set("lives-alone"))))
    conditions = await context.find("Condition", patients_value(patients), codes)
    over = {"inactive", "remission", "resolved"}
    if any(over.isdisjoint({code for _, code in codings(one.tree.get("clinicalStatus"))}) for one in conditions):
        return True
    return bool(await context.find("Observation", patients_value(patients), codes, ("status", "final,amended,corrected")))
